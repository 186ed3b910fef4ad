"""The hacking radar, on made-up histories: judges against the reward that is trained on."""

from collections.abc import Sequence
from typing import Any

import pytest

from workbench.config import PRESETS
from workbench.figures import FIGURES
from workbench.health import Verdict, held_out_reward, judges, statistics, verdicts
from workbench.history import History, Recorded
from workbench.rewards import REWARDS
from workbench.settings import EvalReward

CONFIG: dict[str, Any] = {
    "rewards": [{"reward": {"name": "charm"}, "weight": 1.0}, {"reward": {"name": "muted"}, "weight": 0.0}],
    "eval_rewards": [{"reward": {"name": "wise_judge"}}, {"reward": {"name": "other_judge"}}],
    "rollout": {"steps": 4},
}
RISING = (0.4, 0.5, 0.6, 0.7, 0.8)
FLAT = (0.4, 0.41, 0.39, 0.4, 0.41)


def history(half: float = 0.05, steps: int = 4, **figures: Sequence[float]) -> History:
    """Evaluations at every tenth iteration; each figure has an interval of `half` to both sides."""
    rows = [
        {name: {"value": value, "low": value - half, "high": value + half} for name, value in zip(figures, values, strict=True)}
        for values in zip(*figures.values(), strict=True)
    ]
    return History(
        evaluations=tuple(Recorded(at, 10 * at, {"measures": {str(steps): row}}) for at, row in enumerate(rows)),
        metrics={"reward": [(10 * at, value) for at, value in enumerate(figures.get("charm", ()))]},
    )


def told(seen: History, config: dict[str, Any] = CONFIG) -> list[Verdict]:
    return [verdict for verdict in verdicts(seen, config, "running") if verdict.level != "green"]


def test_a_judge_that_falls_while_the_reward_rises_is_called_hacking() -> None:
    (verdict,) = told(history(charm=RISING, wise_judge=(0.8, 0.82, 0.7, 0.5, 0.3)))
    assert (verdict.level, verdict.title) == ("red", "Reward hacking suspected")
    for part in ("from 0.4 to 0.8", "wise judge", "from 0.82 at iteration 10 to 0.3", "since iteration 20"):
        assert part in verdict.sentence
    for part in ("objective.kl_weight", "give wise judge", "before iteration 20"):
        assert part in verdict.remedy


def test_a_judge_that_loses_what_it_had_gained_is_told_in_amber() -> None:
    (verdict,) = told(history(charm=RISING, wise_judge=(0.5, 0.7, 0.9, 0.6, 0.55)))
    assert (verdict.level, verdict.title) == ("amber", "A judge disagrees")
    assert "from 0.9 at iteration 20 to 0.55" in verdict.sentence
    assert "since iteration 30" in verdict.sentence
    assert "base it was 0.5" in verdict.sentence


def test_a_dip_that_was_made_good_is_not_where_the_fall_began() -> None:
    (verdict,) = told(history(charm=RISING, wise_judge=(0.8, 0.5, 0.8, 0.78, 0.3)))
    assert "since iteration 40" in verdict.sentence


@pytest.mark.parametrize(
    ("charm", "judge"),
    [
        (RISING, (0.4, 0.5, 0.6, 0.7, 0.8)),  # both rise
        (RISING, (0.80, 0.76, 0.83, 0.79, 0.75)),  # noise within the intervals
        (RISING, (0.8, 0.3, 0.3, 0.8, 0.8)),  # it has come back
        (FLAT, (0.8, 0.7, 0.6, 0.5, 0.3)),  # nothing was gained by it
        (RISING[:1], (0.8,)),  # nothing to compare with
    ],
)
def test_the_radar_is_silent_where_nothing_is_hacked(charm: Sequence[float], judge: Sequence[float]) -> None:
    assert not [verdict for verdict in told(history(charm=charm, wise_judge=judge)) if "judge" in verdict.sentence]


def test_wide_intervals_excuse_a_fall() -> None:
    falling = (0.8, 0.8, 0.7, 0.7, 0.6)
    assert not told(history(half=0.15, charm=(0.2, 0.4, 0.6, 0.8, 0.9), wise_judge=falling))
    assert told(history(half=0.05, charm=(0.2, 0.4, 0.6, 0.8, 0.9), wise_judge=falling))


def test_every_judge_is_heard() -> None:
    found = told(history(charm=RISING, wise_judge=(0.8, 0.7, 0.6, 0.5, 0.3), other_judge=(0.5, 0.8, 0.8, 0.6, 0.5)))
    assert [verdict.level for verdict in found] == ["red", "amber"]
    assert "wise judge" in found[0].sentence
    assert "other judge" in found[1].sentence


def test_judges_are_heard_at_the_steps_that_evaluations_take() -> None:
    seen = history(steps=8, charm=RISING, wise_judge=(0.8, 0.7, 0.6, 0.5, 0.3))
    assert told(seen, CONFIG | {"evaluation": {"sampling_steps": 8}})
    assert not told(seen)


def test_a_judge_that_rises_a_lot_is_no_drifting_statistic() -> None:
    seen = history(half=0.01, charm=RISING, wise_judge=(0.1, 0.3, 0.5, 0.7, 0.9), smear=(0.2, 0.2, 0.2, 0.2, 0.2))
    assert statistics(seen, CONFIG) == ["smear"]
    (verdict,) = verdicts(seen, CONFIG, "running")
    assert verdict.title == "Healthy"
    assert "wise judge from 0.1 to 0.9" in verdict.sentence


def test_any_statistic_of_a_task_is_watched() -> None:
    (verdict,) = told(history(half=0.01, charm=RISING, smear=(0.2, 0.3, 0.5, 0.7, 0.9)))
    assert verdict.title == "Reward hacking suspected"
    assert "smear is 4.5 times" in verdict.sentence


@pytest.mark.parametrize(("name", "alarming"), [("contrast", True), ("palette_distance", False)])
def test_a_statistic_that_dwindles_is_told_unless_it_is_a_distance(name: str, alarming: bool) -> None:
    found = told(history(half=0.01, charm=RISING, **{name: (0.9, 0.8, 0.4, 0.25, 0.18)}))
    assert bool(found) is alarming
    if alarming:
        assert f"{name} is 0.20 times the base's (beyond a factor of 3 since iteration 30)" in found[0].sentence


def test_judges_are_drawn_beside_the_reward() -> None:
    seen = history(charm=RISING, wise_judge=(0.8, 0.7, 0.6, 0.5, 0.3))
    (line,) = [trace for trace in FIGURES["train"]["reward"](seen, CONFIG).data if trace.name == "judge: wise judge"]
    assert line.y == (0.8, 0.7, 0.6, 0.5, 0.3)
    assert line.visible is True


def test_runs_without_judges_are_read_as_before() -> None:
    seen = history(charm=RISING)
    assert judges({}) == []
    assert [verdict.title for verdict in verdicts(seen, {key: CONFIG[key] for key in ("rewards", "rollout")}, "running")] == [
        "Healthy"
    ]


def test_judges_are_found_in_the_form_that_configurations_have() -> None:
    judge = EvalReward(reward=REWARDS["shapes_exact"]())
    config = PRESETS["shapes"].model_copy(update={"eval_rewards": (judge,)}).model_dump(mode="json")
    assert judges(config) == ["shapes_exact"]


def test_a_queued_run_says_what_it_waits_for() -> None:
    (verdict,) = verdicts(History(), {}, "queued")
    assert (verdict.level, verdict.title) == ("green", "Queued")
    assert "before it has ended or is paused" in verdict.sentence


def test_the_interval_of_a_weighted_sum_holds_what_a_penalty_may_be() -> None:
    config = CONFIG | {"rewards": [{"reward": {"name": name}, "weight": weight} for name, weight in (("a", 1.0), ("b", -1.0))]}
    ((_, value, low, high),) = held_out_reward(history(0.1, a=(0.5,), b=(0.5,)), config)
    assert value == pytest.approx(0)
    assert (low, high) == pytest.approx((-0.2, 0.2))
