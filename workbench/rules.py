"""What must agree in a run's configuration, beyond the range of each setting; every refusal names the rule and the choices."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from workbench.flow import check_times
from workbench.models import MODELS
from workbench.objectives import OBJECTIVES
from workbench.rewards import REWARDS
from workbench.rollout import children_of_a_tree
from workbench.samplers import SAMPLERS

if TYPE_CHECKING:
    from workbench.settings import RunConfig


def check_domain(config: "RunConfig") -> None:
    """Model, rewards and prompts are about the same things."""
    domain, task = config.task.domain, config.task.name
    if config.model.domain not in ("", domain):
        fitting = [name for name, model in MODELS.items() if model.domain in ("", domain)]
        told = f"model {config.model.name!r} does not understand the prompts of task {task!r}"
        raise ValueError(f"{told}; choose from: {_list(fitting)}")
    for reward in [weighted.reward for weighted in config.rewards] + [judge.reward for judge in config.eval_rewards]:
        if reward.domain not in ("", domain):
            fitting = [name for name, known in REWARDS.items() if known.domain in ("", domain)]
            raise ValueError(f"reward {reward.name!r} cannot score images of task {task!r}; choose from: {_list(fitting)}")


def check_maps(config: "RunConfig") -> None:
    """The sampler and the objective use the map in ways that it was trained for."""
    kind = config.model.kind
    for label, chosen, wanted, known in (
        ("sampler", config.sampler, config.sampler.needs, {name: sampler.needs for name, sampler in SAMPLERS.items()}),
        ("objective", config.objective, config.objective.maps, {name: objective.maps for name, objective in OBJECTIVES.items()}),
    ):
        if kind not in wanted:
            raise ValueError(
                f"{label} {chosen.name!r} needs a {' or '.join(wanted)} map, and {config.model.name!r} is a {kind} map; "
                f"choose from: {_list([name for name, kinds in known.items() if kind in kinds])}"
            )
    if kind == "single_time" and config.rollout.mode in ("branch", "tree") and config.rollout.completion == "compose":
        raise ValueError(
            f"{config.model.name!r} is a single_time map, which reaches only the data: rollout.completion = 'compose' has no "
            "steps to take; choose 'jump'"
        )


def check_adapter(config: "RunConfig") -> None:
    """What is trained is precise enough to take small steps, and is of the kind that it begins from; the rest is held one way."""
    dtype = getattr(config.model, "dtype", "fp32")
    if config.adapter.kind == "full" and dtype != "fp32":
        raise ValueError(
            f"adapter.kind = 'full' trains weights that model.dtype = {dtype!r} holds too coarsely for small steps; use "
            "adapter.kind = 'lora', or model.dtype = 'fp32'"
        )
    for setting in ("quantize", "offload"):
        value = getattr(config.model, setting, "no")
        if config.adapter.kind == "full" and value not in ("no", "parts"):
            raise ValueError(
                f"model.{setting} = {value!r} holds weights that are not trained, and adapter.kind = 'full' trains all of them; "
                f"use adapter.kind = 'lora', or model.{setting} = 'no'"
            )
    held, waits = getattr(config.model, "quantize", "no"), getattr(config.model, "offload", "no")
    if held != "no" and waits == "linears":
        raise ValueError(
            f"model.quantize = {held!r} and model.offload = 'linears' each hold the weights of linear layers in their own way; "
            "use model.offload = 'parts', or model.quantize = 'no'"
        )
    if config.adapter.start and config.adapter.kind != "lora":
        raise ValueError(
            f"adapter.start = {config.adapter.start!r} are adapters, and adapter.kind = {config.adapter.kind!r} trains none; use "
            "adapter.kind = 'lora', or merged weights as the model"
        )


def check_processes(config: "RunConfig") -> None:
    """The processes of a run have equal shares, and those that share weights ask for them equally often."""
    compute, objective = config.compute, config.objective
    if config.grpo.groups % compute.processes:
        raise ValueError(f"grpo.groups = {config.grpo.groups} does not divide over compute.processes = {compute.processes}")
    if compute.sharding == "none":
        return
    told = f"compute.sharding = {compute.sharding!r}"
    if config.adapter.kind != "lora":
        raise ValueError(
            f"{told} divides frozen weights, and adapter.kind = {config.adapter.kind!r} trains all of them; use "
            "adapter.kind = 'lora'"
        )
    for setting in ("offload", "quantize"):
        if (value := getattr(config.model, setting, "no")) != "no":
            raise ValueError(
                f"{told} divides weights that model.{setting} = {value!r} holds otherwise; use model.{setting} = 'no'"
            )
    if getattr(objective, "interval_share", 0.0) and config.model.kind == "two_time":
        raise ValueError(
            f"{told}: objective {objective.name!r} asks the network for jumps where it happens to draw some, and all processes "
            "have to ask equally often; use objective.interval_share = 0"
        )
    if config.model.uneven:
        even = _list([name for name, model in MODELS.items() if not model.uneven])
        raise ValueError(
            f"{told}: model {config.model.name!r} asks its network as often as its prompts differ, and all processes have to ask "
            f"equally often; choose from: {even}"
        )


def check_noise(config: "RunConfig") -> None:
    """Samples of a group differ, and where the objective needs it their steps have a density."""
    sampler, rollout = config.sampler, config.rollout
    silent = sampler.name == "ode" or getattr(sampler, "noise", 1.0) == 0 or getattr(sampler, "anchor", 1.0) == 0
    if not silent:
        return
    noisy = _list([name for name, known in SAMPLERS.items() if name != "ode" and config.model.kind in known.needs])
    cause = "at anchor = 0" if sampler.name != "ode" and getattr(sampler, "noise", 1.0) else "as it is set"
    if config.objective.density:
        raise ValueError(
            f"sampler {sampler.name!r} draws no noise {cause}, so objective {config.objective.name!r} has no ratio to train; use "
            f"noise > 0 and anchor > 0 with one of: {noisy}; or an objective that needs no ratio: "
            f"{_list([name for name, known in OBJECTIVES.items() if not known.density]) or 'there is none'}"
        )
    if rollout.mode != "all" or rollout.shared_noise:
        raise ValueError(
            f"sampler {sampler.name!r} draws no noise {cause}, so the samples of a group must start from different noise: use "
            f"rollout.mode = 'all' without rollout.shared_noise, or noise > 0 with one of: {noisy}"
        )


def check_rollout(config: "RunConfig") -> None:
    """The grid descends, and what is stochastic lies on it."""
    rollout, size = config.rollout, config.grpo.group_size
    if rollout.grid == "custom":
        if len(rollout.times) != rollout.steps + 1:
            raise ValueError(
                f"rollout.times must be rollout.steps + 1 = {rollout.steps + 1} numbers for the grid 'custom', got "
                f"{len(rollout.times)}"
            )
        with _about("rollout.times"):
            check_times(rollout.times)
    elif rollout.times:
        raise ValueError(f"rollout.times is only read by rollout.grid = 'custom', got the grid {rollout.grid!r}")
    within = rollout.steps - 1
    if rollout.window_moves == "jumps":
        within = min(rollout.window_until or within, within)
    if rollout.mode == "window" and rollout.window > within:
        raise ValueError(
            f"rollout.window = {rollout.window} is larger than the {within} steps it may lie in: the last step is never "
            "stochastic; choose a smaller window or more rollout.steps"
        )
    chosen = rollout.chosen_steps
    if rollout.mode == "branch" and rollout.branch_at == "chosen" and not chosen:
        raise ValueError("rollout.branch_at = 'chosen' needs rollout.chosen_steps")
    if chosen and rollout.mode != "tree" and (rollout.mode, rollout.branch_at) != ("branch", "chosen"):
        raise ValueError(
            f"rollout.chosen_steps = {list(chosen)} is only read by rollout.mode = 'tree' or rollout.branch_at = 'chosen'"
        )
    if list(chosen) != sorted(set(chosen)) or (chosen and chosen[-1] > rollout.steps - 2):
        raise ValueError(
            f"rollout.chosen_steps = {list(chosen)} must ascend within 0 to {rollout.steps - 2}: the last is never stochastic"
        )
    children = size
    if rollout.mode == "tree":
        with _about(f"grpo.group_size = {size}"):
            children = children_of_a_tree(size, len(chosen or config.training_steps))
    if rollout.antithetic and rollout.mode in ("branch", "tree") and children % 2:
        raise ValueError(
            f"antithetic noise comes in pairs, and {children} children of a state (grpo.group_size = {size}) are odd; choose an "
            "even number or rollout.antithetic = false"
        )


@contextmanager
def _about(setting: str) -> Iterator[None]:
    """Name the setting in a refusal that knows only its value."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
