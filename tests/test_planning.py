"""Which steps of an iteration's rollout are stochastic, and in what shape."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from workbench.config import RunConfig, configure
from workbench.flow import Gaussian, time_grid
from workbench.planning import kernel_stds, plan_rollout
from workbench.samplers import SAMPLERS

EVEN = [1.0] * 7


def config(**changes: object) -> RunConfig:
    """Eight steps, seven of which could be stochastic."""
    settings = {"rollout.steps": 8, **{key.replace("__", "."): value for key, value in changes.items()}}
    return configure("shapes", settings)


def steps(settings: RunConfig, iteration: int) -> tuple[int, ...]:
    return plan_rollout(settings, iteration, EVEN, EVEN).steps


def test_a_plan_says_what_the_settings_say() -> None:
    settings = config(rollout__mode="all", rollout__shared_noise=True, compute__sample_batch=9, compute__train_batch=5)
    plan = plan_rollout(settings, 0, EVEN, EVEN)
    assert (plan.structure, plan.steps, plan.times) == ("chain", (0, 1, 2, 3, 4, 5, 6), time_grid(8, 4.0))
    assert (plan.group_size, plan.shared_noise, plan.sample_batch, plan.train_batch) == (8, True, 9, 5)
    assert plan_rollout(config(rollout__mode="window"), 0, EVEN, EVEN).structure == "chain"
    assert plan_rollout(config(), 0, EVEN, EVEN).structure == "branch"


# Windows


def test_a_sliding_window_moves_by_a_step_and_stays_at_the_end() -> None:
    settings = config(rollout__mode="window", rollout__window=3, rollout__window_every=10)
    first = [steps(settings, iteration)[0] for iteration in (0, 9, 10, 25, 40, 49, 50, 1000)]
    assert first == [0, 0, 1, 2, 4, 4, 4, 4]
    assert steps(settings, 25) == (2, 3, 4)


@pytest.mark.parametrize(("until", "places"), [(0, range(5)), (4, range(2)), (3, range(1)), (8, range(5))])
def test_a_jumping_window_is_drawn_anew_within_its_first_steps_and_never_holds_the_last(until: int, places: range) -> None:
    settings = config(rollout__mode="window", rollout__window=3, rollout__window_moves="jumps", rollout__window_until=until)
    drawn = [steps(settings, iteration) for iteration in range(400)]
    assert all(window == tuple(range(window[0], window[0] + 3)) for window in drawn)
    counts = Counter(window[0] for window in drawn)
    assert set(counts) == set(places)
    share = 1 / len(places)
    for count in counts.values():  # four standard errors of the binomial
        assert abs(count / 400 - share) <= 4 * (share * (1 - share) / 400) ** 0.5
    assert drawn[:20] == [steps(settings, iteration) for iteration in range(20)]
    other = settings.model_copy(update={"seed": 1})
    assert len(places) == 1 or drawn != [steps(other, iteration) for iteration in range(400)]


# Branches and trees


def test_one_branching_step_is_drawn_in_proportion_to_where_the_reward_varies() -> None:
    spreads = [0.0, 3.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    drawn = Counter(plan_rollout(config(), iteration, EVEN, spreads).steps for iteration in range(400))
    assert set(drawn) == {(1,), (3,)}
    assert abs(drawn[(1,)] / 400 - 0.75) <= 4 * (0.75 * 0.25 / 400) ** 0.5


def test_branches_leave_at_every_step_or_at_chosen_ones() -> None:
    assert steps(config(rollout__branch_at="every"), 3) == (0, 1, 2, 3, 4, 5, 6)
    assert steps(config(rollout__branch_at="chosen", rollout__chosen_steps="[0, 5]"), 3) == (0, 5)


def test_a_tree_splits_at_chosen_steps_or_at_all() -> None:
    chosen = config(rollout__mode="tree", rollout__chosen_steps="[0, 1, 5]")
    plan = plan_rollout(chosen, 0, EVEN, EVEN)
    assert (plan.structure, plan.steps, plan.children) == ("tree", (0, 1, 5), 2)
    assert plan_rollout(config(rollout__mode="tree", grpo__group_size=128), 0, EVEN, EVEN).children == 2


@pytest.mark.parametrize("structure", ["all", "branch"])
def test_steps_without_noise_stay_deterministic(structure: str) -> None:
    settings = config(rollout__mode=structure, rollout__branch_at="every")
    assert plan_rollout(settings, 0, [0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0], EVEN).steps == (1, 3, 4, 5, 6)


def test_the_branching_step_is_drawn_among_those_with_noise() -> None:
    drawn = {plan_rollout(config(), iteration, [0.0, 0.0, 0.0, 0.5, 0.0, 0.1, 0.1], EVEN).steps for iteration in range(50)}
    assert drawn == {(3,), (5,), (6,)}


# The kernel's noise


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("grid", ["uniform", "linspace", "log_snr", "trigflow"])
def test_a_kernels_noise_is_known_without_a_network(name: str, grid: str) -> None:
    sampler, times = SAMPLERS[name](), time_grid(5, 3.0, grid)  # type: ignore[arg-type]
    stds = kernel_stds(sampler, sampler.needs[0], times)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))

    class Shrinking:
        kind = sampler.needs[0]

        def __call__(self, x, t, s):
            return x * (0.1 + s) / (0.1 + t)

        def velocity(self, x, t):
            return x / (0.1 + t)

    found = [sampler.step(Shrinking(), x, t, s) for t, s in pairwise(times[:-1])]
    assert all(isinstance(step, Gaussian) for step in found)
    assert stds == tuple(step.std for step in found)
    assert all(std == 0 for std in stds) if name == "ode" else all(std > 0 for std in stds)
