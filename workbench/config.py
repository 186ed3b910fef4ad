"""Configurations from presets and from what people typed, and the one line that explains each mistake."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from workbench.contracts import Extension, Reward
from workbench.models import MODELS
from workbench.objectives import OBJECTIVES
from workbench.presets import PRESETS
from workbench.rewards import REWARDS
from workbench.samplers import SAMPLERS
from workbench.settings import EvalReward, RunConfig, WeightedReward
from workbench.tasks import TASKS

M = TypeVar("M", bound=BaseModel)


def configure(preset: str = "shapes", changes: Mapping[str, Any] | None = None) -> RunConfig:
    """A preset with dotted changes applied, such as `{"grpo.group_size": 16, "sampler.name": "flow_sde"}`.

    Values may be text as typed on a command line. `rewards.NAME` sets the weight of one reward, `rewards.NAME.FIELD` one of its
    own settings. Changing an extension's
    `name` starts it from its own defaults, whatever the order of the changes.

    Raises: ValueError: one line for each mistake, naming the key, the value and what would be accepted.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose from: {', '.join(PRESETS)}")
    return change(PRESETS[preset], changes or {})


def change(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A configuration with dotted changes applied, as `configure` reads them."""
    values = config.model_dump()
    for key, value in sorted(changes.items(), key=lambda item: (not _chooses_extension(item[0]), _is_of_a_reward(item[0]))):
        _set(values, key, _read(value))
    return parse_config(values)


LIVE = ("sampler", "prompts", "optimizer.learning_rate", "objective.kl_weight", "objective.clip_range")
"""What may change while a run goes on: settings, and extensions with all of theirs but their name."""


PORTIONS = ("compute.sample_batch", "compute.train_batch")
"""What else may, without changing what is computed: how much is done at a time."""


def change_live(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A running configuration with dotted changes applied.

    Raises: ValueError: one line for each mistake; lists what may change, where something else was asked for.
    """
    for key in changes:
        if _chooses_extension(key) or not any(key == live or key.startswith(f"{live}.") for live in (*LIVE, *PORTIONS)):
            choices = ", ".join(["sampler.*" if live == "sampler" else live for live in (*LIVE, *PORTIONS)])
            raise ValueError(f"{key} cannot change while a run goes on; it can be set in a new run. What can change: {choices}")
    return change(config, changes) if changes else config


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """A validated configuration from its JSON form; errors are one line for each mistake."""
    return validated(RunConfig, values)


def validated(model: type[M], values: Mapping[str, Any]) -> M:
    """Any settings from their JSON form. Raises: ValueError: one line for each mistake, in the words of every form."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        items = error.errors()
        causes = [item for item in items if item["type"] != "too_short" or len(items) == 1]  # else it counts what else is wrong
        raise ValueError("\n".join(_explain(item, model) for item in causes)) from None


_EXTENSIONS: dict[str, Mapping[str, type[Extension]]] = {
    "task": TASKS,
    "model": MODELS,
    "sampler": SAMPLERS,
    "objective": OBJECTIVES,
}
_MEMBERS: dict[Any, type[Extension]] = {**TASKS, **MODELS, **SAMPLERS, **OBJECTIVES, **REWARDS}


def _chooses_extension(key: str) -> bool:
    return key.removesuffix(".name") in _EXTENSIONS


def _read(value: Any) -> Any:
    """Text as typed on a command line: a list is read as YAML; all else stays text, which the field's own type understands."""
    if not (isinstance(value, str) and value.lstrip().startswith(("[", "{"))):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:  # text that only begins like a list
        return value


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    if _chooses_extension(key) and not isinstance(value, Mapping):
        _choose(values, key.removesuffix(".name"), value)
        return
    *path, last = key.split(".")
    if path and path[0] in ("rewards", "eval_rewards"):
        set_one = _set_of_a_reward if _is_of_a_reward(key) else _set_reward
        set_one(values, path[0], ".".join([*path[1:], last]), value)
        return
    node: Any = values
    for part in (*path, last):
        if not isinstance(node, dict):
            raise ValueError(f"unknown setting {key!r}: {key.removesuffix('.' + part)!r} is a single value")
        if part not in node:
            raise ValueError(f"unknown setting {key!r}; choose from: {', '.join(node)}")
        parent, node = node, node[part]
    parent[last] = value


def _choose(values: dict[str, Any], field: str, name: Any) -> None:
    """Another extension, with its own defaults."""
    known = _EXTENSIONS[field]
    if name not in known:
        raise ValueError(f"{field}.name: unknown {field} {name!r}; choose from: {', '.join(known)}")
    if name != values[field]["name"]:
        values[field] = known[name]().model_dump()


def _set_reward(values: dict[str, Any], field: str, name: str, value: Any) -> None:
    """The weight of a trained reward; or whether a reward judges, 1 or 0."""
    if name not in REWARDS:
        raise ValueError(f"{field}.{name}: unknown reward {name!r}; choose from: {', '.join(REWARDS)}")
    entries = [entry for entry in values[field] if entry["reward"]["name"] != name]
    present = next((entry for entry in values[field] if entry["reward"]["name"] == name), {"reward": {"name": name}})
    if field == "rewards":
        place = next((i for i, entry in enumerate(values[field]) if entry["reward"]["name"] == name), len(entries))
        entries.insert(place, present | {"weight": value})
    elif yaml.safe_load(str(value)):
        entries.append(present)
    values[field] = tuple(entries)
    judges = {entry["reward"]["name"] for entry in values["eval_rewards"]}
    values["rewards"] = tuple(  # a reward of weight 0 that is asked to judge does nothing else
        entry
        for entry in values["rewards"]
        if entry["reward"]["name"] not in judges or str(entry.get("weight")) not in ("0", "0.0")
    )


def _is_of_a_reward(key: str) -> bool:
    """Whether it is a reward's own setting; set last, since the reward has to be there."""
    field, _, rest = key.partition(".")
    return field in ("rewards", "eval_rewards") and rest.partition(".")[0] in REWARDS and "." in rest


def _set_of_a_reward(values: dict[str, Any], field: str, name: str, value: Any) -> None:
    """A setting of a reward that is switched on."""
    name, _, setting = name.partition(".")
    if all(entry["reward"]["name"] != name for entry in values[field]):
        raise ValueError(f"{field}.{name}.{setting}: reward {name!r} is not among {field}; put it there with {field}.{name} = 1")
    values[field] = tuple(
        entry | {"reward": entry["reward"] | {setting: value}} if entry["reward"]["name"] == name else entry
        for entry in values[field]
    )


def configure_reward(name: str, changes: Mapping[str, Any] | None = None) -> Reward:
    """A reward with some of its own settings, as text or values.

    Raises: ValueError: one line for each mistake, naming the setting, the value and what would be accepted.
    """
    if name not in REWARDS:
        raise ValueError(f"unknown reward {name!r}; choose from: {', '.join(REWARDS)}")
    return validated(REWARDS[name], {key: _read(value) for key, value in (changes or {}).items()})


def _explain(item: Any, model: type[BaseModel]) -> str:
    """pydantic's error as one line: key, value, rule, and the choices where a name is wrong."""
    where = ".".join(_without_tags(item["loc"]))
    rule = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"unknown setting {where!r}; choose from: {', '.join(_fields_beside(item['loc'], model))}"
    if item["type"] == "union_tag_invalid":
        choices = item["ctx"]["expected_tags"].replace("'", "")
        return f"{where}.name: unknown {where.split('.')[-1]} {item['ctx']['tag']!r}; choose from: {choices}"
    if item["type"] in ("missing", "union_tag_not_found"):
        return f"{where}: a value is required" + (", with a 'name'" if item["type"] == "union_tag_not_found" else "")
    if not where:
        return rule
    return f"{where} = {item['input']!r}: {rule[0].lower()}{rule[1:]}"


def _without_tags(loc: Sequence[int | str]) -> list[str]:
    """The dotted key of an error; pydantic also puts the name of the union member that it tried."""
    named = (*_EXTENSIONS, "reward")
    return [str(part) for i, part in enumerate(loc) if not (i and loc[i - 1] in named and part in _MEMBERS)]


def _fields_beside(loc: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    """What could have been written where an unknown setting stands."""
    kind: Any = model
    for part in loc[:-1]:
        if isinstance(part, int):
            kind = EvalReward if loc[0] == "eval_rewards" else WeightedReward
        elif part in kind.model_fields and hasattr(kind.model_fields[part].annotation, "model_fields"):
            kind = kind.model_fields[part].annotation
        elif part in _MEMBERS:
            kind = _MEMBERS[part]
    return list(kind.model_fields)
