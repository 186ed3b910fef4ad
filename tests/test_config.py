"""A run's configuration: one line for each mistake, and nothing lost on the way through JSON."""

import json

import pytest
from pydantic import BaseModel

from workbench.config import PRESETS, RunConfig, configure, parse_config
from workbench.models import MODELS
from workbench.objectives import OBJECTIVES
from workbench.recipes import RECIPES
from workbench.rewards import REWARDS
from workbench.samplers import SAMPLERS
from workbench.tasks import TASKS

EXTENSIONS = [kind for registry in (SAMPLERS, OBJECTIVES, REWARDS, MODELS, TASKS) for kind in registry.values()]


def groups_of_settings(kind: type[BaseModel]) -> set[type[BaseModel]]:
    """The class and every settings class inside it."""
    found = {kind}
    for field in kind.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= groups_of_settings(field.annotation)
    return found


def mistake(changes: dict, preset: str = "shapes") -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        configure(preset, changes)
    assert type(caught.value) is ValueError  # plain, so that the command line calls it a bad argument
    return str(caught.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_survives_its_own_json(preset: str) -> None:
    config = PRESETS[preset]
    assert parse_config(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert configure(preset) == config


def test_a_preset_is_named_by_its_key_or_the_keys_are_listed() -> None:
    with pytest.raises(ValueError, match="unknown preset 'shape'; choose from: shapes, shapes_jump") as caught:
        configure("shape")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    sorted({*groups_of_settings(RunConfig), *RECIPES.values(), *EXTENSIONS}, key=lambda kind: kind.__name__),
    ids=lambda kind: kind.__name__,
)
def test_every_setting_says_what_it_is(kind: type[BaseModel]) -> None:
    for name, field in kind.model_fields.items():
        is_group = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        assert field.description or name == "name" or is_group, f"{kind.__name__}.{name} has no description"


@pytest.mark.parametrize("extension", EXTENSIONS, ids=lambda kind: kind.__name__)
def test_an_extension_needs_no_arguments_and_is_registered_under_its_own_name(extension: type[BaseModel]) -> None:
    made = extension()
    registries = [registry for registry in (SAMPLERS, OBJECTIVES, REWARDS, MODELS, TASKS) if extension in registry.values()]
    assert registries[0][made.name] is extension


def test_text_from_a_command_line_becomes_what_the_setting_is() -> None:
    config = configure(
        "shapes",
        {
            "grpo.group_size": "16",
            "objective.clip_range": "1e-5",
            "rollout.antithetic": "false",
            "compute.precision": "no",
            "title": "123",
            "evaluation.steps": "[1, 3]",
            "rewards.shapes_exact": "0.25",
        },
    )
    assert config.grpo.group_size == 16
    assert config.objective.clip_range == 1e-5
    assert config.rollout.antithetic is False
    assert config.compute.precision == "no"
    assert config.title == "123"
    assert config.evaluation.steps == (1, 3)
    assert {weighted.reward.name: weighted.weight for weighted in config.rewards}["shapes_exact"] == 0.25


@pytest.mark.parametrize("key", ["sampler", "sampler.name"])
def test_another_sampler_starts_from_its_own_defaults_whatever_the_order(key: str) -> None:
    assert configure("shapes", {"sampler.noise": 0.5, key: "flow_sde"}).sampler == SAMPLERS["flow_sde"](noise=0.5)
    assert configure("shapes", {key: "flow_sde"}).sampler == SAMPLERS["flow_sde"]()
    changed = configure("shapes", {key: "asfmc", "sampler.anchor": 0.5})
    assert changed.sampler == PRESETS["shapes"].sampler.model_copy(update={"anchor": 0.5})


def test_a_reward_that_the_preset_lacks_can_be_added() -> None:
    values = PRESETS["shapes"].model_dump(mode="json")
    values["rewards"] = [item for item in values["rewards"] if item["reward"]["name"] == "shapes_exact"]
    assert len(parse_config(values).rewards) == 1
    added = configure("shapes", {"rewards": values["rewards"], "rewards.shapes_dense": 2})
    assert [weighted.weight for weighted in added.rewards][-1] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grpo.group_siz": 8}, ["grpo.group_siz", "choose from", "group_size"]),
        ({"grp.group_size": 8}, ["'grp.group_size'", "choose from", "grpo"]),
        ({"iteration": 8}, ["'iteration'", "choose from", "iterations"]),
        ({"iterations.x": 8}, ["'iterations.x'", "'iterations' is a single value"]),
        ({"grpo.group_size": 1}, ["grpo.group_size = 1", "greater than or equal to 2"]),
        ({"grpo.group_size": "many"}, ["grpo.group_size = 'many'", "valid integer"]),
        ({"grpo.group_size": 2.5}, ["grpo.group_size = 2.5", "valid integer"]),
        ({"grpo": 5}, ["grpo = 5"]),
        ({"sampler.noise": 1.5}, ["sampler.noise = 1.5", "less than or equal to 1"]),
        ({"sampler.noise": "nan"}, ["sampler.noise = 'nan'", "finite"]),
        ({"sampler.name": "gamma"}, ["sampler.name", "unknown sampler 'gamma'", "asfmc", "flow_sde"]),
        ({"sampler.name": "flow_sde", "sampler.anchor": 0.5}, ["'sampler.anchor'", "choose from: name, noise"]),
        ({"model": "flux"}, ["model.name", "'flux'", "choose from: shapes"]),
        ({"rewards.aesthetics": 1}, ["rewards.aesthetics", "unknown reward", *REWARDS]),
        ({"rollout.mode": "some"}, ["rollout.mode = 'some'", "'branch', 'all', 'window' or 'tree'"]),
        ({"evaluation.steps": "[1, 0]"}, ["evaluation.steps.1 = 0", "greater than or equal to 1"]),
        ({"evaluation.steps": "[]"}, ["evaluation.steps = []", "at least 1"]),
        ({"grpo.group_size": 7}, ["antithetic", "even", "grpo.group_size", "7"]),
        ({"sampler.name": "ode"}, ["'ode'", "no noise", "asfmc"]),
        ({"sampler.noise": 0}, ["'asfmc'", "noise > 0"]),
        ({"sampler.anchor": 0}, ["'asfmc'", "anchor = 0"]),
        ({"grpo.groups": 7, "compute.processes": 2}, ["grpo.groups = 7", "compute.processes = 2"]),
        ({f"rewards.{name}": 0 for name, kind in REWARDS.items() if kind.domain == "shapes"}, ["weight 0"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line_that_names_key_value_and_choices(changes: dict, words: list[str]) -> None:
    message = mistake(changes)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_several_mistakes_are_a_line_each() -> None:
    lines = mistake({"grpo.group_size": 1, "optimizer.learning_rate": -1}).splitlines()
    assert [line.split(" = ")[0] for line in lines] == ["grpo.group_size", "optimizer.learning_rate"]


def test_an_odd_group_is_fine_without_antithetic_pairs_or_branches() -> None:
    assert configure("shapes", {"grpo.group_size": 7, "rollout.antithetic": False}).grpo.group_size == 7
    assert configure("shapes", {"grpo.group_size": 7, "rollout.mode": "all"}).grpo.group_size == 7


def test_a_file_with_an_unknown_setting_names_it_and_what_stands_beside_it() -> None:
    values = PRESETS["shapes"].model_dump(mode="json")
    values["sampler"]["anker"] = 1.0
    with pytest.raises(ValueError, match=r"unknown setting 'sampler.anker'; choose from: name, noise, anchor") as caught:
        parse_config(values)
    assert "\n" not in str(caught.value)
    values = PRESETS["shapes"].model_dump(mode="json")
    values["sampler"]["name"] = values["rewards"][0]["reward"]["name"] = "gamma"
    with pytest.raises(ValueError, match=r"unknown sampler 'gamma'") as caught:
        parse_config(values)
    assert str(caught.value).splitlines()[1].startswith("rewards.0.reward.name: unknown reward 'gamma'; choose from: ")


def test_each_reward_may_appear_once() -> None:
    values = PRESETS["shapes"].model_dump(mode="json")
    values["rewards"] = values["rewards"][:1] * 2
    with pytest.raises(ValueError, match="once among rewards and eval_rewards, got shapes_dense, shapes_dense"):
        parse_config(values)


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        PRESETS["shapes"].iterations = 3  # type: ignore[misc]
