"""A run's configuration: one line for each mistake, and nothing lost on the way through JSON."""

import json

import pytest
from pydantic import BaseModel

from workbench.config import PRESETS, RunConfig, change, configure, configure_reward, parse_config
from workbench.flow import time_grid
from workbench.models import MODELS
from workbench.objectives import OBJECTIVES
from workbench.recipes import RECIPES
from workbench.rewards import REWARDS
from workbench.samplers import SAMPLERS
from workbench.tasks import TASKS

EXTENSIONS = [kind for registry in (SAMPLERS, OBJECTIVES, REWARDS, MODELS, TASKS) for kind in registry.values()]


CUSTOM = {"rollout.grid": "custom"}
CHOSEN = {"rollout.branch_at": "chosen"}
TREE = {"rollout.mode": "tree"}
EXACT_ALONE = {"rewards": [{"reward": {"name": "shapes_exact"}, "weight": 1.0}]}


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
        ({"model": "sdxl"}, ["model.name", "'sdxl'", "choose from: shapes"]),
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
        # objectives
        ({"objective": "ppo"}, ["objective.name", "unknown objective 'ppo'", *OBJECTIVES]),
        ({"objective.clip": 1}, ["'objective.clip'", "choose from", "clip_range"]),
        ({"grpo.kl_weight": 0.1}, ["'grpo.kl_weight'", "choose from: groups"]),
        ({"grpo.combine": "mean"}, ["grpo.combine = 'mean'", "'sum' or 'gdpo'"]),
        # time grids
        ({"rollout.grid": "karras"}, ["rollout.grid = 'karras'", "'uniform', 'linspace', 'log_snr', 'trigflow' or 'custom'"]),
        (CUSTOM | {"rollout.times": "[1, 0.5, 0.6, 0.2, 0]"}, ["rollout.times", "descends strictly", "1 is 0.5", "2 is 0.6"]),
        (CUSTOM | {"rollout.times": "[0.9, 0.5, 0.3, 0.2, 0]"}, ["rollout.times", "starts at 1", "ends at 0", "got 0.9 and 0"]),
        (CUSTOM | {"rollout.times": "[1, 0.5, 0]"}, ["rollout.times", "rollout.steps + 1 = 5 numbers", "got 3"]),
        (CUSTOM, ["rollout.times", "5 numbers", "got 0"]),
        ({"rollout.times": "[1, 0.5, 0]"}, ["rollout.times", "rollout.grid = 'custom'", "got the grid 'uniform'"]),
        # what is stochastic
        ({"sampler.anchor": 1.5}, ["sampler.anchor = 1.5", "less than or equal to 1"]),
        ({"rollout.mode": "window", "rollout.window": 4}, ["rollout.window = 4", "3 steps", "smaller window"]),
        (
            {"rollout.mode": "window", "rollout.window": 3, "rollout.window_moves": "jumps", "rollout.window_until": 2},
            ["rollout.window = 3", "2 steps"],
        ),
        ({"rollout.branch_at": "chosen"}, ["rollout.branch_at = 'chosen'", "rollout.chosen_steps"]),
        (CHOSEN | {"rollout.chosen_steps": "[0, 3]"}, ["rollout.chosen_steps = [0, 3]", "0 to 2", "last"]),
        (CHOSEN | {"rollout.chosen_steps": "[2, 0]"}, ["rollout.chosen_steps = [2, 0]", "ascend"]),
        (CHOSEN | {"rollout.chosen_steps": "[1, 1]"}, ["rollout.chosen_steps = [1, 1]", "ascend"]),
        ({"rollout.mode": "tree", "rollout.chosen_steps": "[3]"}, ["rollout.chosen_steps = [3]", "0 to 2"]),
        (TREE | {"grpo.group_size": 6}, ["grpo.group_size = 6", "splits 3 times", "possible are: 8, 27, 64"]),
        (TREE | {"grpo.group_size": 2}, ["grpo.group_size = 2", "possible are: 8, 27, 64"]),
        (TREE | {"grpo.group_size": 27}, ["antithetic", "3 children", "grpo.group_size = 27", "rollout.antithetic = false"]),
        # what agrees with what
        ({"model": "shapes_cm"}, ["'asfmc' needs a two_time map", "'shapes_cm' is a single_time map", "asfmc_endpoint"]),
        ({"model": "shapes_cm", "sampler": "flow_sde"}, ["'flow_sde' needs a two_time or velocity map", "asfmc_endpoint"]),
        ({"model": "shapes_fm", "sampler": "asfmc_endpoint"}, ["'shapes_fm' is a velocity map", "flow_sde, dance_sde"]),
        ({"model": "shapes_cm", "sampler": "asfmc_endpoint"}, ["rollout.completion = 'compose'", "choose 'jump'"]),
        (
            {"model": "shapes_cm", "sampler": "asfmc_endpoint", "rollout.completion": "jump", "objective": "nft"},
            ["'nft' needs a two_time or velocity map", "choose from: "],
        ),
        ({"model": "glyphs"}, ["model 'glyphs'", "task 'shapes'", "choose from: shapes, shapes_fm, shapes_cm"]),
        ({"rewards.glyphs_exact": 1}, ["reward 'glyphs_exact'", "task 'shapes'", "choose from: shapes_dense, shapes_exact"]),
        ({"eval_rewards.glyphs_exact": 1}, ["reward 'glyphs_exact'", "task 'shapes'", "choose from: shapes_dense, shapes_exact"]),
        ({"sampler.name": "ode"}, ["'grpo' has no ratio", "needs no ratio: nft"]),
        ({"sampler.name": "ode", "objective": "nft"}, ["start from different noise", "rollout.mode = 'all'"]),
        (
            {"sampler.name": "ode", "objective": "nft", "rollout.mode": "all", "rollout.shared_noise": True},
            ["start from different noise", "without rollout.shared_noise"],
        ),
        # judges
        ({"eval_rewards.aesthetics": 1}, ["eval_rewards.aesthetics", "unknown reward", *REWARDS]),
        ({"eval_rewards.shapes_exact": 1}, ["once among rewards and eval_rewards", "shapes_exact"]),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items())[:60] if isinstance(value, dict) else "",
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


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "ode", "objective": "nft", "rollout.mode": "all"},
        {"model": "shapes_cm", "sampler": "asfmc_endpoint", "rollout.mode": "all"},
        {"model": "shapes_cm", "sampler": "ddim_mix", "rollout.completion": "jump"},
        {"model": "shapes_fm", "sampler": "precise"},
        TREE | {"grpo.group_size": 16, "rollout.chosen_steps": "[0, 2]"},
        TREE | {"grpo.group_size": 27, "rollout.antithetic": False},
        {"rollout.mode": "window", "rollout.window": 3},
        EXACT_ALONE | {"eval_rewards.shapes_dense": 1, "eval_rewards.shapes_fidelity": 1},
        {"rollout.grid": "log_snr", "evaluation.sampling_steps": 12},
    ],
    ids=str,
)
def test_what_agrees_is_accepted_and_survives_its_json(changes: dict) -> None:
    config = configure("shapes", changes)
    assert parse_config(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_judges_are_switched_on_and_off_by_name() -> None:
    judged = configure("shapes", EXACT_ALONE | {"eval_rewards.shapes_dense": "1", "eval_rewards.shapes_fidelity": "true"})
    assert [judge.reward.name for judge in judged.eval_rewards] == ["shapes_dense", "shapes_fidelity"]
    assert [weighted.reward.name for weighted in judged.rewards] == ["shapes_exact"]
    entries = judged.model_dump(mode="json")["eval_rewards"]
    one = configure("shapes", EXACT_ALONE | {"eval_rewards": entries, "eval_rewards.shapes_dense": "0"})
    assert [judge.reward.name for judge in one.eval_rewards] == ["shapes_fidelity"]
    assert configure("shapes", {"eval_rewards.shapes_exact": "0"}) == PRESETS["shapes"]


@pytest.mark.parametrize("steps", [2, 4, 7])
@pytest.mark.parametrize("grid", ["uniform", "log_snr", "trigflow"])
def test_a_grid_has_the_same_shape_at_every_number_of_steps(grid: str, steps: int) -> None:
    rollout = configure("shapes", {"rollout.grid": grid, "rollout.shift": 2}).rollout
    assert rollout.grid_of(steps) == time_grid(steps, 2.0, grid)  # type: ignore[arg-type]


def test_explicit_times_hold_at_their_own_number_of_steps_and_elsewhere_the_shifted_grid() -> None:
    config = configure("shapes", {**CUSTOM, "rollout.times": "[1, 0.8, 0.5, 0.1, 0]", "rollout.shift": 3})
    assert config.times == config.rollout.grid_of(4) == (1.0, 0.8, 0.5, 0.1, 0.0)
    assert config.rollout.grid_of(6) == time_grid(6, 3.0)


def test_a_grid_that_ends_with_a_short_step_does_so_at_the_rollouts_own_number_alone() -> None:
    rollout = configure("flux_meanflow_pickscore").rollout
    assert rollout.grid_of(5) == time_grid(5, kind="linspace")
    assert rollout.grid_of(2) == (1.0, 0.5, 0.0)


def test_the_steps_that_count_are_a_rollouts_unless_told_otherwise() -> None:
    assert configure("shapes").sampling_steps == 4
    reduced = configure("shapes", {"evaluation.sampling_steps": 10})
    assert (reduced.sampling_steps, len(reduced.times)) == (10, 5)


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


def test_a_reward_s_own_settings_are_set_by_its_name_in_any_order() -> None:
    changes = {"rewards.remote.addresses": "[http://a:1, http://b:2/]", "rewards.remote": "0.3", "rewards.remote.batch": "4"}
    entry = configure("shapes", changes).rewards[-1]
    assert (entry.weight, entry.reward.batch, entry.reward.addresses) == (0.3, 4, ("http://a:1", "http://b:2"))
    again = change(configure("shapes", changes), {"rewards.remote.batch": 5, "rewards.remote": 1})
    assert (again.rewards[-1].weight, again.rewards[-1].reward.batch) == (1, 5)
    judging = configure("shapes", {"eval_rewards.judge": 1, "eval_rewards.judge.question": "{prompt}: is it there?"})
    assert judging.eval_rewards[-1].reward.question == "{prompt}: is it there?"
    with pytest.raises(ValueError, match=r"reward 'remote' is not among rewards; put it there with rewards\.remote = 1"):
        configure("shapes", {"rewards.remote.batch": 4})
    with pytest.raises(ValueError, match=r"unknown setting .*bach'; choose from: name, addresses, batch"):
        configure("shapes", {"rewards.remote": 1, "rewards.remote.bach": 4})


def test_a_reward_is_configured_by_itself() -> None:
    assert configure_reward("jpeg_size", {"quality": "30"}).quality == 30
    with pytest.raises(ValueError, match=r"unknown reward 'jpeg'; choose from: .*jpeg_size"):
        configure_reward("jpeg")
    with pytest.raises(ValueError, match="quality = '300': input should be less than or equal to 95"):
        configure_reward("jpeg_size", {"quality": "300"})
