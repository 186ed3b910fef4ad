"""Whether a run is healthy, hacked or broken, in plain sentences with a remedy; a pure judgement of recorded numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from workbench.events import Level
from workbench.history import History

HACKED = 3.0
"""A picture statistic this many times its base value is drift, whatever the reward says; so is its inverse, but for distances."""
NARROW = 0.85
"""Least share of the base's in-group diversity that counts as healthy."""
COMPARABLE = {"diversity", "layouts", "distance_to_base", "saturation", "sharpness", "reward"}
"""Measures of every evaluation that are neither a reward nor one of the task's own statistics."""


@dataclass(frozen=True)
class Verdict:
    """One thing that people should know about a run."""

    level: Level
    title: str
    sentence: str
    remedy: str = ""
    since: int | None = None  # the iteration where the reward and what it stands for parted


def verdicts(
    history: History, config: Mapping[str, Any], status: str, error: str | None = None, *, resumable: bool = True
) -> list[Verdict]:
    """What to say about a run, gravest first; never empty. Whether it is `resumable` decides what is advised."""
    fallen = _fallen(history, config)
    found = [*_ended_badly(status, error, resumable), *fallen, *_hacking(history, config), *_judged(history, config)]
    found += _collapse(history, config)
    if not fallen:
        found += _signal(history, config)
    order = {"red": 0, "amber": 1, "green": 2}
    return sorted(found, key=lambda verdict: order[verdict.level]) or [_fine(history, config, status)]


def parted(history: History, config: Mapping[str, Any]) -> int | None:
    """The iteration from which on the training reward rises at the cost of what it stands for; None where it does not."""
    found = [verdict.since for verdict in _hacking(history, config) + _judged(history, config) if verdict.since is not None]
    return min(found, default=None)


def held_out_reward(
    history: History, config: Mapping[str, Any], steps: int | None = None
) -> list[tuple[int, float, float, float]]:
    """The trained reward on held-out prompts, at `steps` or the rollout's number of steps: iteration, value, low, high.

    Where only its parts were measured, their weighted sum; the bounds are then summed as well, which is wider than exact.
    """
    steps = steps or rollout_steps(config)
    measured = history.measure(steps, "reward")
    if measured:
        return measured
    weights = {item["reward"]["name"]: float(item["weight"]) for item in config.get("rewards", ())}
    parts = {name: {at: rest for at, *rest in history.measure(steps, name)} for name, weight in weights.items() if weight}
    if not parts:
        return []
    common = sorted(set.intersection(*(set(points) for points in parts.values())))
    summed = []
    for at in common:
        weighted = [sorted(weights[name] * bound for bound in points[at][1:]) for name, points in parts.items()]
        value = sum(weights[name] * points[at][0] for name, points in parts.items())
        summed.append((at, value, sum(low for low, _ in weighted), sum(high for _, high in weighted)))
    return summed


def rollout_steps(config: Mapping[str, Any]) -> int | None:
    """The number of sampling steps that all evaluations of a run report, its rollouts' unless set; None where it has none."""
    return config.get("evaluation", {}).get("sampling_steps") or config.get("rollout", {}).get("steps")


def judges(config: Mapping[str, Any]) -> list[str]:
    """Names of the rewards that only judge."""
    return [item["reward"]["name"] for item in config.get("eval_rewards", ())]


def statistics(history: History, config: Mapping[str, Any]) -> list[str]:
    """Names of the measures that no reward sees: the task's own statistics."""
    if not history.evaluations:
        return []
    rewards = {item["reward"]["name"] for item in config.get("rewards", ())}
    names = {name for measures in history.evaluations[0].data["measures"].values() for name in measures}
    return sorted(names - rewards - set(judges(config)) - COMPARABLE)


def _ended_badly(status: str, error: str | None, resumable: bool) -> list[Verdict]:
    if status == "paused" and error:
        remedy = (
            "The last good checkpoint is kept: press Resume to go on from it, or start a new run with a smaller learning rate."
        )
        return [Verdict("red", "Paused by itself", error, remedy)]
    if status == "crashed":
        remedy = "Press Resume: it goes on from its last checkpoint, with the same numbers as if nothing had happened."
        sentence = "The process that drove this run is gone without finishing it."
        return [Verdict("red", "Crashed", sentence, remedy if resumable else "It had no checkpoint yet: start it again.")]
    if status == "failed":
        remedy = "The full traceback is in error.txt in the run's folder. Mend the cause, then "
        return [
            Verdict(
                "red",
                "Failed",
                error or "The run ended with an error.",
                remedy + ("press Resume." if resumable else "start it again."),
            )
        ]
    return []


def _fallen(history: History, config: Mapping[str, Any]) -> list[Verdict]:
    """The held-out reward was clearly better before, or the training reward has lost most of what it had gained."""
    remedy = "Go back to the best checkpoint, then lower the learning rate, raise the KL weight or raise grpo.std_floor."
    held = held_out_reward(history, config)
    if len(held) > 2:
        best = max(held[:-1], key=lambda point: point[1])
        now = held[-1]
        if now[3] < best[2] and best[1] - now[1] > 0.3 * abs(best[1] - held[0][1]):
            sentence = f"Held-out reward was {best[1]:.3g} at iteration {best[0]} and is {now[1]:.3g} at iteration {now[0]}."
            return [Verdict("red", "The reward has fallen back", sentence, remedy)]
    values = [value for _, value in history.metric("reward")]
    if len(values) >= 30:
        means = [sum(values[i : i + 10]) / 10 for i in range(0, len(values) - 9, 5)]
        first, top, now_mean = means[0], max(means), sum(values[-10:]) / 10
        if (
            top - first > 0.05 * max(abs(top), 1e-9)
            and now_mean < first + 0.4 * (top - first)
            and means.index(top) < len(means) - 2
        ):
            sentence = f"Training reward climbed to {top:.3g} and is back at {now_mean:.3g}."
            return [Verdict("red", "The reward is falling back", sentence, remedy)]
    return []


def _hacking(history: History, config: Mapping[str, Any]) -> list[Verdict]:
    """Statistics far from the base after the training reward has risen, wherever it went later."""
    reward = history.metric("reward")
    if len(history.evaluations) < 2 or len(reward) < 2 or not _rose([value for _, value in reward]):
        return []
    found = []
    for name in statistics(history, config):
        points = history.measure(rollout_steps(config), name)
        if len(points) < 2 or points[0][1] <= 0:
            continue
        base, now = points[0][1], points[-1][1]
        if _drifted(name, now / base):
            since = next(at for at, value, *_ in points if _drifted(name, value / base))
            times = f"{now / base:.{1 if now > base else 2}f}"
            sentence = (
                f"The training reward rose, but {_words(name)} is {times} times the base's (beyond a factor of {HACKED:g} since "
                f"iteration {since}): the policy is learning to please the reward rather than to follow the prompt."
            )
            remedy = (
                "Raise objective.kl_weight, give a fidelity reward more weight, or go back to a checkpoint before "
                f"iteration {since}."
            )
            found.append(Verdict("red", "Reward hacking suspected", sentence, remedy, since))
    return found


def _drifted(name: str, ratio: float) -> bool:
    """Whether a statistic is too far from the base's; less of a distance is no harm."""
    return ratio > HACKED or (ratio < 1 / HACKED and not name.endswith("distance"))


def _judged(history: History, config: Mapping[str, Any]) -> list[Verdict]:
    """Judges whose figure fell while the trained reward rose; a fall counts from where the intervals no longer touch.

    The reward is compared with the base's, the judge with its best so far: a policy may first learn what was meant.
    """
    reward = held_out_reward(history, config)
    if len(reward) < 2 or reward[-1][2] <= reward[0][1]:
        return []
    rose = f"The trained reward rose from {reward[0][1]:.3g} to {reward[-1][1]:.3g} on held-out prompts"
    found = []
    for name in judges(config):
        points = history.measure(rollout_steps(config), name)
        if len(points) < 2:
            continue
        base, now = points[0], points[-1]
        best = max(points[:-1], key=lambda point: point[1])
        if now[3] >= best[2]:
            continue
        since = next(points[i][0] for i in range(len(points)) if all(high < best[2] for _, _, _, high in points[i:]))
        told = f"{rose}, but {_words(name)}, which only judges, fell from {best[1]:.3g} at iteration {best[0]} to {now[1]:.3g} "
        told += f"(beyond its 95 % intervals since iteration {since})"
        remedy = (
            f"Raise objective.kl_weight, give {_words(name)} or a reward like it a share in the training, or go back to a "
            f"checkpoint before iteration {since}."
        )
        if now[3] < base[2]:
            sentence = f"{told}: the policy pleases the reward with something else than what it stands for."
            found.append(Verdict("red", "Reward hacking suspected", sentence, remedy, since))
        else:
            sentence = f"{told}. For the base it was {base[1]:.3g}."
            found.append(Verdict("amber", "A judge disagrees", sentence, remedy))
    return found


def _collapse(history: History, config: Mapping[str, Any]) -> list[Verdict]:
    found = []
    for name in ("layouts", "diversity"):
        points = history.measure(rollout_steps(config), name)
        if len(points) < 2 or points[0][1] <= 0:
            continue
        share = points[-1][1] / points[0][1]
        if share < NARROW:
            what = "different compositions in a group" if name == "layouts" else "difference between images of a group"
            level: Level = "red" if share < 0.5 else "amber"
            sentence = f"Images of one prompt grow alike: {what}, {share:.0%} of the base's."
            found.append(
                Verdict(
                    level, "Diversity is shrinking", sentence, "Raise the KL weight, lower the learning rate, or stop earlier."
                )
            )
            break
    held = held_out_reward(history, config)
    trained = history.metric("reward")
    if (
        len(held) > 2
        and _rose([v for _, v in trained])
        and held[-1][3] < max(v for _, v, *_ in held[:-1]) - 1e-9
        and held[-1][1] < held[0][1]
    ):
        sentence = "The training reward rose while the held-out reward has fallen below the base's."
        found.append(
            Verdict(
                "amber",
                "Held-out reward falls",
                sentence,
                "Stop, and take the best checkpoint; then raise the KL weight or use more prompts.",
            )
        )
    return found


def _signal(history: History, config: Mapping[str, Any]) -> list[Verdict]:
    found = []
    groups = history.groups
    if groups is not None:
        advantages, size = groups.data["advantages"], groups.data["group_size"]
        quiet = quiet_groups(advantages, size) * size / max(1, len(advantages))
        if quiet > 0.75:
            sentence = f"{quiet:.0%} of the latest groups have no spread of reward, so they give no gradient."
            found.append(
                Verdict(
                    "amber",
                    "Little to learn from",
                    sentence,
                    "Use prompts of middling difficulty, larger groups, or more sampler noise.",
                )
            )
    held = held_out_reward(history, config)
    trained = history.metric("reward")
    if len(held) > 1 and trained and trained[-1][0] >= 40 and held[-1][2] <= held[0][1] and not _rose([v for _, v in trained]):
        sentence = f"After {trained[-1][0]} iterations the held-out reward is still within the base's error band."
        found.append(
            Verdict(
                "amber",
                "Not learning yet",
                sentence,
                "Raise the learning rate, or the sampler's noise so that groups differ more.",
            )
        )
    return found


def quiet_groups(advantages: Sequence[float], size: int) -> int:
    """How many groups of `size` have advantages that are all exactly zero."""
    return sum(not any(advantages[at : at + size]) for at in range(0, len(advantages), size))


def _fine(history: History, config: Mapping[str, Any], status: str) -> Verdict:
    held = held_out_reward(history, config)
    if status == "queued":
        return Verdict("green", "Queued", "It begins as soon as the run before it has ended or is paused.")
    if not history.evaluations and not history.metrics:
        return Verdict("green", "Starting", "The base is being evaluated first, so that there is something to compare with.")
    if len(held) < 2:
        sentence = f"{status.capitalize()}. Nothing wrong so far; the next held-out evaluation will tell more."
        return Verdict("green", "So far, so good", sentence)
    gain = f"Held-out reward went from {held[0][1]:.3g} to {held[-1][1]:.3g} by iteration {held[-1][0]}"
    drift = [
        f"{_words(name)} {ratio:.1f}x the base's"
        for name in statistics(history, config)
        if (ratio := _growth(history, config, name))
    ]
    opinions = [
        f"{_words(name)} from {points[0][1]:.3g} to {points[-1][1]:.3g}"
        for name in judges(config)
        if len(points := history.measure(rollout_steps(config), name)) > 1
    ]
    told = "; ".join([gain, *([", ".join(drift)] if drift else []), *([f"judges: {', '.join(opinions)}"] if opinions else [])])
    return Verdict("green", "Healthy", told + ".")


def _growth(history: History, config: Mapping[str, Any], name: str) -> float | None:
    points = history.measure(rollout_steps(config), name)
    return points[-1][1] / points[0][1] if len(points) > 1 and points[0][1] > 0 else None


def _rose(values: Sequence[float]) -> bool:
    """Some tenth lies clearly above the first: by more than the noise between neighbours explains."""
    part = max(1, len(values) // 10)
    means = [sum(values[at : at + part]) / part for at in range(0, len(values) - part + 1, part)]
    jumps = sorted(abs(b - a) for a, b in pairwise(values))
    noise = jumps[len(jumps) // 2] if jumps else 0.0
    return max(means) - means[0] > 0.5 * noise


def _words(name: str) -> str:
    return name.replace("_", " ")
