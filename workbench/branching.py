"""Runs that begin from a checkpoint of another with other settings, and how the settings of runs differ."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from workbench.config import RunConfig, change
from workbench.events import CheckpointReady
from workbench.settings import TITLE_LENGTH


def branched_config(config: RunConfig, iteration: int, changes: Mapping[str, Any]) -> RunConfig:
    """The settings of a branch: those of its parent with dotted `changes`.

    A branch from the last iteration goes on for as many again, and says in its title where it began, unless told otherwise.

    Raises: ValueError: one line for each mistake.
    """
    own: dict[str, Any] = {}
    if "title" not in changes:
        tail = f" from {iteration}"
        own["title"] = config.title[: TITLE_LENGTH - len(tail)] + tail
    if "iterations" not in changes and iteration >= config.iterations:
        own["iterations"] = iteration + config.iterations
    return change(config, own | dict(changes))


def branch_state(checkpoint: CheckpointReady, parent: RunConfig, config: RunConfig) -> CheckpointReady:
    """What a run with the settings `config` goes on from: the weights, averages and optimizer of its parent's checkpoint.

    It is checked before its first update, and evaluated if its settings have that due, since what was true of the parent need
    not be true of it.

    Raises: ValueError: if the weights do not fit, or nothing is left to do.
    """
    for name in ("model", "adapter"):
        ours, theirs = getattr(config, name).model_dump(), getattr(parent, name).model_dump()
        for key, before, now in differences(theirs, ours):
            raise ValueError(
                f"{name}.{key} = {now!r}: the checkpoint was made with {before!r}, and its weights fit no other {name}; "
                "leave it as it is, or start a new run"
            )
    if config.iterations <= checkpoint.iteration:
        raise ValueError(
            f"iterations = {config.iterations}: the branch begins after iteration {checkpoint.iteration}, so nothing is left; "
            f"ask for more than {checkpoint.iteration}"
        )
    state = checkpoint.state | {"checked": False, "evaluated": -1, "changes": {}, "config": config.model_dump(mode="json")}
    if config.rollout != parent.rollout or config.sampler != parent.sampler:
        state["spreads"] = [1.0] * len(config.training_steps)  # what was learned of other steps is no guide to these
    state |= {"best": checkpoint.iteration, "best_reward": -math.inf}  # of this run; its first evaluation says how good that is
    if config.rewards != parent.rewards:
        state["base_reward"] = None  # in another unit
    tensors = dict(checkpoint.tensors)
    if config.objective.behaviour_decay(0) is not None:
        tensors.setdefault("behaviour", tensors["policy"])  # until now the policy itself has sampled
    return replace(checkpoint, tensors=tensors, state=state)


def differences(before: Any, after: Any) -> list[tuple[str, Any, Any]]:
    """Dotted keys at which two settings differ, with both values; None where one lacks the key."""
    left, right = flat(before), flat(after)
    return [(key, left.get(key), right.get(key)) for key in {**left, **right} if left.get(key) != right.get(key)]


def compared(configs: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The dotted keys at which some of these settings differ, each with its value in all of them."""
    columns = [flat(config) for config in configs]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = {key: [column.get(key) for column in columns] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, a reward by its name and not by its place: `rewards.shapes_exact.weight`."""
    if isinstance(settings, Mapping):
        return {key: value for name, item in settings.items() for key, value in flat(item, f"{prefix}{name}.").items()}
    if isinstance(settings, list | tuple):
        if settings and all(isinstance(item, Mapping) and "name" in item.get("reward", ()) for item in settings):
            found: dict[str, Any] = {}
            for item in settings:
                own = {name: value for name, value in item["reward"].items() if name != "name"}
                rest = {name: value for name, value in item.items() if name != "reward"}
                found |= flat({**rest, **own} or True, f"{prefix}{item['reward']['name']}.")
            return found
        settings = list(settings)
    return {prefix.removesuffix("."): settings}
