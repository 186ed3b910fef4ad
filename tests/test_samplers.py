"""Every transition kernel: densities, limits and marginals against distributions whose flow is known exactly.

A sampler added to SAMPLERS is picked up unaided and must then have the right marginals in the limit of small steps; where
theory says otherwise it is named below.
"""

import itertools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench.benchmarks.samplers import (
    LEVEL,
    SAMPLES,
    WidenedSampler,
    adjusted_in_family,
    compose,
    distributions,
    family_p_values,
    references,
)
from workbench.contracts import Sampler
from workbench.energy import EnergyReference, holm
from workbench.flow import noise_rate, noise_share, seed_stream, seeded_noise, time_grid
from workbench.lab import GaussianMixture, double_ring, exact_flow_map, outer_mass
from workbench.samplers import SAMPLERS

CASES = [(name, kind) for name, sampler in SAMPLERS.items() for kind in sampler.needs]
EXACT_AT_ANY_STEP = {
    ("ode", "two_time"),
    ("asfmc", "two_time"),
    ("asfmc_endpoint", "two_time"),
    ("asfmc_endpoint", "single_time"),
}
EXACT_AT_SHORT_DISTANCE = {("asfmc_local", "two_time")}  # its error is that of its own small step, whatever the grid's
BIASED_IN_EVERY_LIMIT = {
    ("ode", "single_time"),       # the straight path from a consistency model's endpoint is not the flow
    ("ddim_mix", "two_time"),     # the noise that an endpoint implies is not independent of it
    ("ddim_mix", "single_time"),
    ("cps", "two_time"),          # a fixed share of the noise is replaced in every step, however short
    ("cps", "velocity"),
}
LESS_NOISE_THAN_ITS_TIME = {"asfmc_endpoint"}  # without fresh noise it stays at (1 - s) x_0, off the path
CONVERGENT = [case for case in CASES if case not in EXACT_AT_ANY_STEP | EXACT_AT_SHORT_DISTANCE | BIASED_IN_EVERY_LIMIT]
ORDERS = {
    "ode": (0.9, 1.1),        # Euler's 1
    "dance_sde": (0.9, 1.1),  # Euler-Maruyama's weak order 1: no noise is drawn where its drift is singular
    "precise": (0.85, 1.1),   # 1, as predictions are held over a step; from below, since steps near noise span much of log k
    "flow_sde": (0.45, 0.75),  # first steps err by about a^4 / 8 on any grid, and later ones forget that as h^(a^2), a^2 = 0.49
}
"""Order in the number of steps that theory gives to mean and standard deviation, as a band for the slope at 40 to 640 steps."""

LINE = GaussianMixture([[0.7]], 0.4)
"""One Gaussian in one dimension: its flow is affine, so a composition's mean and variance follow without drawing a sample."""


def silent(name: str) -> Sampler:
    """The sampler with its noise knob at 0."""
    return SAMPLERS[name](noise=0.0) if "noise" in SAMPLERS[name].model_fields else SAMPLERS[name]()


def moments(sampler: Sampler, kind: str, steps: int) -> list[tuple[float, float, float]]:
    """(s, mean, std) at each node of a composition on LINE, by propagating an affine mean and a constant spread."""
    flow_map, probe = exact_flow_map(LINE, kind), torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    mean, variance, nodes = 0.0, 1.0, []
    for t, s in itertools.pairwise(time_grid(steps)):
        transition = sampler.step(flow_map, probe, t, s)
        low, high = transition.mean.flatten().tolist()
        gain, offset = (high - low) / 2, (high + low) / 2
        mean, variance = gain * mean + offset, gain**2 * variance + transition.std**2
        nodes.append((s, mean, math.sqrt(variance)))
    return nodes


def error(sampler: Sampler, kind: str, steps: int, below: float = 1.0) -> float:
    """Largest deviation of mean or standard deviation from those of x_t, over the nodes with t <= `below`."""
    nodes = [node for node in moments(sampler, kind, steps) if node[0] <= below]
    return max(max(abs(mean - (1 - s) * 0.7), abs(std - math.hypot((1 - s) * 0.4, s))) for s, mean, std in nodes)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_its_configuration(name):
    sampler = SAMPLERS[name]()
    assert sampler.name == name
    assert SAMPLERS[name].model_validate(sampler.model_dump()) == sampler
    assert all(field.description for key, field in SAMPLERS[name].model_fields.items() if key != "name")


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_std_is_a_float_and_the_last_step_is_deterministic(name, kind):
    ring = double_ring()
    flow_map, sampler = exact_flow_map(ring, kind), SAMPLERS[name]()
    for t, s in itertools.pairwise(time_grid(4, shift=3.0)):
        x = ring.sample(5, seed=0, t=t)
        transition = sampler.step(flow_map, x, t, s)
        assert type(transition.std) is float
        assert transition.std >= 0.0
        assert transition.mean.shape == x.shape
        assert transition.mean.dtype == torch.float32
    assert transition.std == 0.0


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_last_step_lands_where_the_deterministic_sampler_does(name, kind):
    ring = double_ring()
    flow_map, x = exact_flow_map(ring, kind), ring.sample(100, seed=0, t=0.25)
    expected = SAMPLERS["ode"]().step(flow_map, x, 0.25, 0.0).mean
    torch.testing.assert_close(SAMPLERS[name]().step(flow_map, x, 0.25, 0.0).mean, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_without_noise_a_kernel_is_the_deterministic_sampler(name):
    ring, sampler = double_ring(), silent(name)
    kind = sampler.needs[-1]  # the weakest map that it can use
    flow_map = exact_flow_map(ring, kind)
    for t, s in itertools.pairwise(time_grid(4)):
        x = ring.sample(100, seed=0, t=t)
        transition = sampler.step(flow_map, x, t, s)
        assert transition.std == 0.0
        if name in LESS_NOISE_THAN_ITS_TIME:
            expected = (1 - s) * flow_map(x, t, 0.0)
        else:
            expected = SAMPLERS["ode"]().step(flow_map, x, t, s).mean
        torch.testing.assert_close(transition.mean, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] != "ode"])
def test_the_density_of_a_step_equals_torch_distributions(name, kind):
    ring = double_ring()
    x = ring.sample(50, seed=0, t=0.75)
    transition = SAMPLERS[name]().step(exact_flow_map(ring, kind), x, 0.75, 0.5)
    drawn = transition.sample(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    expected = torch.distributions.Normal(transition.mean, transition.std).log_prob(drawn).mean(1)
    torch.testing.assert_close(transition.log_prob(drawn), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_image_depends_on_its_seed_and_not_on_its_batch(name, kind):
    ring, sampler = double_ring(), SAMPLERS[name]()
    flow_map = exact_flow_map(ring, kind)

    def draw(samples: list[int]) -> torch.Tensor:
        x = seeded_noise([seed_stream("start", i) for i in samples], (2,))
        for step, (t, s) in enumerate(itertools.pairwise(time_grid(4))):
            noise = seeded_noise([seed_stream("step", i, step) for i in samples], (2,))
            x = sampler.step(flow_map, x, t, s).sample(noise)
        return x

    whole = draw(list(range(40)))
    torch.testing.assert_close(draw([31, 4, 17]), whole[[31, 4, 17]], rtol=0, atol=1e-5)
    torch.testing.assert_close(draw([8]), whole[[8]], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), sorted(EXACT_AT_ANY_STEP))
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_kernels_of_an_exact_map_keep_a_gaussian_s_mean_and_variance_at_any_step_size(name, kind, steps):
    assert error(SAMPLERS[name](), kind, steps) < 1e-7


@pytest.mark.parametrize("noise", [0.0, 0.25, 0.7, 1.0])
@pytest.mark.parametrize("anchor", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("budget", ["step", "time"])
@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_every_anchor_noise_and_budget_keeps_a_gaussian_s_mean_and_variance(noise, anchor, budget, shift):
    flow_map, sampler = exact_flow_map(LINE), SAMPLERS["asfmc"](noise=noise, anchor=anchor, budget=budget)
    for t, s in itertools.pairwise(time_grid(4, shift)):
        spread_t, spread_s = (math.hypot((1 - time) * 0.4, time) for time in (t, s))
        probe = (1 - t) * 0.7 + torch.tensor([[0.0], [spread_t]], dtype=torch.float64)
        transition = sampler.step(flow_map, probe, t, s)
        centre, gain = float(transition.mean[0]), float(transition.mean[1] - transition.mean[0])
        assert centre == pytest.approx((1 - s) * 0.7, abs=1e-7)
        assert math.hypot(gain, transition.std) == pytest.approx(spread_s, abs=1e-7)


def order(counts: Sequence[float], errors: Sequence[float]) -> float:
    """The power of 1 / count that the errors fall with: a least-squares slope in logarithms."""
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


@pytest.mark.parametrize(("name", "kind"), CONVERGENT)
def test_approximate_kernels_converge_to_a_gaussian_s_mean_and_variance_with_the_order_of_theory(name, kind):
    """Below t = 1/2, where Flow-SDE's error at its first steps, which no grid removes, has begun to be forgotten."""
    counts = (40, 80, 160, 320, 640)
    errors = [error(SAMPLERS[name](), kind, count, below=0.5) for count in counts]
    low, high = ORDERS.get(name, (0.45, 2.5))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01, errors
    assert low < order(counts, errors) < high, errors


def test_the_order_of_flow_sde_is_the_square_of_its_noise_up_to_one():
    for noise, low, high in ((0.5, 0.2, 0.4), (1.4, 0.9, 1.1)):
        counts = (320, 640, 1280)
        assert low < order(counts, [error(SAMPLERS["flow_sde"](noise=noise), "velocity", n, below=0.5) for n in counts]) < high


@pytest.mark.parametrize("noise", [0.4, 0.7, 1.0])
def test_the_local_kernel_s_std_errs_by_the_power_three_halves_of_its_distance_and_its_marginals_by_the_square(noise):
    s, distances = 0.5, (0.04, 0.02, 0.01, 0.005)
    x, flow_map = LINE.sample(4, seed=0, t=0.75), exact_flow_map(LINE)
    stds, marginals = [], []
    for d in distances:
        local = SAMPLERS["asfmc_local"](noise=noise, distance=d)
        anchored = SAMPLERS["asfmc"](noise=noise, anchor=d / s).step(flow_map, x, 0.75, s)
        stds.append(abs(local.step(flow_map, x, 0.75, s).std - anchored.std))
        marginals.append(error(local, "two_time", 4))
    assert 1.4 < -order(distances, stds) < 1.6, stds
    assert 1.85 < -order(distances, marginals) < 2.15, marginals


def test_more_steps_do_not_mend_the_local_kernel_and_a_shorter_distance_does():
    near, far = ([error(SAMPLERS["asfmc_local"](distance=d), "two_time", n) for n in (4, 40)] for d in (0.001, 0.03))
    assert far[1] > far[0] > 1e-3
    assert far[0] > 100 * near[0]  # 900 by the square of the distance, 100 where it is shortened beside the ends of time
    assert far[1] > 100 * near[1]


@pytest.mark.parametrize("shift", [0.05, 1.0, 12.0])
def test_the_local_kernel_shortens_its_distance_close_to_the_ends_of_time(shift):
    """Never past the data, and never more fresh noise than x_s holds."""
    flow_map, sampler = exact_flow_map(LINE), SAMPLERS["asfmc_local"](noise=1.0, distance=0.2)
    nodes = list(itertools.pairwise(time_grid(64, shift)))
    shares = [noise_share(sampler.step(flow_map, torch.zeros(1, 1), t, s).std, s) for t, s in nodes[:-1]]
    assert max(shares) == pytest.approx(1.0)
    drift = [share * s * (1 - s) / 2 for share, (_, s) in zip(shares, nodes[:-1], strict=True)]
    assert all(value <= min(0.2, s) + 1e-12 for value, (_, s) in zip(drift, nodes, strict=False))


@pytest.mark.parametrize(("name", "kind"), sorted(BIASED_IN_EVERY_LIMIT & set(CASES)))
def test_kernels_that_theory_calls_biased_stay_biased(name, kind):
    assert error(SAMPLERS[name](), kind, 320, below=0.5) > 0.5 * error(SAMPLERS[name](), kind, 40, below=0.5) > 0.01


def test_the_endpoint_kernel_is_exact_only_at_full_noise():
    assert error(SAMPLERS["asfmc_endpoint"](noise=1.0), "single_time", 4) < 1e-7
    assert error(SAMPLERS["asfmc_endpoint"](noise=0.7), "single_time", 4) > 0.05


def test_full_noise_and_anchor_is_multistep_consistency_sampling():
    ring = double_ring()
    flow_map, x = exact_flow_map(ring), ring.sample(100, seed=0, t=0.8)
    anchored = SAMPLERS["asfmc"](noise=1.0, anchor=1.0).step(flow_map, x, 0.8, 0.6)
    endpoint = SAMPLERS["asfmc_endpoint"](noise=1.0).step(flow_map, x, 0.8, 0.6)
    torch.testing.assert_close(anchored.mean, endpoint.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(endpoint.mean, 0.4 * flow_map(x, 0.8, 0.0), rtol=0, atol=1e-6)
    assert anchored.std == pytest.approx(0.6)
    assert endpoint.std == pytest.approx(0.6)


def test_anchor_and_noise_act_through_the_effective_anchor_alone_when_the_map_is_exact():
    ring = double_ring()
    flow_map, x = exact_flow_map(ring), ring.sample(50, seed=0, t=0.8)
    s, ratio = 0.6, 0.6 / 0.4
    first = SAMPLERS["asfmc"](noise=0.5, anchor=1.0).step(flow_map, x, 0.8, s)
    tau = math.sqrt(0.75) * ratio / (1 + math.sqrt(0.75) * ratio)  # with noise = 1 the same r: k_tau = sqrt(1 - 0.5^2) k_s
    second = SAMPLERS["asfmc"](noise=1.0, anchor=1 - tau / s).step(flow_map, x, 0.8, s)
    torch.testing.assert_close(first.mean, second.mean, rtol=0, atol=1e-5)
    assert first.std == pytest.approx(second.std)


@pytest.mark.parametrize("noise", [0.4, 1.0])
def test_a_short_anchor_has_the_local_limit(noise):
    """x_s ~ N(y - d noise^2 (y / (1 - s) + v(y, s)), 2 noise^2 d s / (1 - s)) for y = psi(x, t, s), to second order in d."""
    s, errors = 0.5, []
    x = LINE.sample(20, seed=0, t=0.8).double()
    y = exact_flow_map(LINE)(x, 0.8, s)
    for d in (0.02, 0.01):
        step = SAMPLERS["asfmc"](noise=noise, anchor=d / s).step(exact_flow_map(LINE), x, 0.8, s)
        mean, variance = y - d * noise**2 * (y / (1 - s) + LINE.velocity(y, s)), 2 * noise**2 * d * s / (1 - s)
        local = SAMPLERS["asfmc_local"](noise=noise, distance=d).step(exact_flow_map(LINE), x, 0.8, s)
        torch.testing.assert_close(local.mean, mean, rtol=0, atol=1e-12)
        assert local.std == pytest.approx(math.sqrt(variance))
        errors.append((float((step.mean - mean).abs().max()), abs(step.std**2 - variance)))
    for coarse, fine in zip(*errors, strict=True):
        assert coarse / fine == pytest.approx(4.0, rel=0.1)


class Learned:
    """A flow map of two parameters, one for its jumps and one for its velocity."""

    kind = "two_time"

    def __init__(self):
        self.jump, self.slope = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.8, -0.3))

    def __call__(self, x: torch.Tensor, t: float, s: float) -> torch.Tensor:
        return (1 + (t - s) * self.jump) * x

    def velocity(self, x: torch.Tensor, t: float) -> torch.Tensor:
        return (1 + t) * self.slope * x


def test_detaching_the_local_correction_changes_the_gradient_and_nothing_else():
    x = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    t, s, noise, distance = 0.75, 0.5, 0.7, 0.03
    steps, gradients = {}, {}
    for detached in (True, False):
        learned = Learned()
        sampler = SAMPLERS["asfmc_local"](noise=noise, distance=distance, detach_correction=detached)
        steps[detached] = sampler.step(learned, x, t, s)
        parameters = [learned.jump, learned.slope]
        gradients[detached] = torch.autograd.grad(steps[detached].mean.sum(), parameters, allow_unused=True)
    assert torch.equal(steps[True].mean, steps[False].mean)
    assert steps[True].std == steps[False].std
    drift, carried = distance * noise**2, (t - s) * float(x.sum())  # d lambda^2, and the sum of y's derivative by `jump`
    assert float(gradients[True][0]) == pytest.approx((1 - drift / (1 - s)) * carried)
    assert gradients[True][1] is None
    assert float(gradients[False][0]) == pytest.approx((1 - drift / (1 - s) - drift * (1 + s) * -0.3) * carried)
    assert float(gradients[False][1]) == pytest.approx(-drift * (1 + s) * float((1 + 0.8 * (t - s)) * x.sum()))
    with torch.no_grad():  # a rollout's step must not turn gradients on
        assert not SAMPLERS["asfmc_local"](detach_correction=False).step(Learned(), x, t, s).mean.requires_grad


def test_without_noise_ddim_walks_from_the_endpoint_and_a_two_time_map_serves_it_too():
    ring = double_ring()
    x, still = ring.sample(100, seed=0, t=0.75), SAMPLERS["ddim_mix"](noise=0.0)
    means = [still.step(exact_flow_map(ring, kind), x, 0.75, 0.25).mean for kind in ("two_time", "single_time")]
    assert torch.equal(*means)
    endpoint = exact_flow_map(ring)(x, 0.75, 0.0)
    torch.testing.assert_close(means[0], endpoint + (x - endpoint) / 3, rtol=0, atol=1e-6)


def test_at_full_noise_ddim_is_multistep_consistency_sampling():
    ring = double_ring()
    flow_map, x = exact_flow_map(ring, "single_time"), ring.sample(50, seed=0, t=0.75)
    mixed, endpoint = (SAMPLERS[name](noise=1.0).step(flow_map, x, 0.75, 0.5) for name in ("ddim_mix", "asfmc_endpoint"))
    torch.testing.assert_close(mixed.mean, endpoint.mean, rtol=0, atol=1e-6)
    assert mixed.std == endpoint.std


def rate(sampler: Sampler, kind: str, t: float, s: float) -> float:
    return noise_rate(sampler.step(exact_flow_map(LINE, kind), torch.zeros(1, 1), t, s).std, t, s)


@pytest.mark.parametrize("noise", [0.3, 0.7, 1.5])
@pytest.mark.parametrize("shift", [1.0, 4.0])
@pytest.mark.parametrize("steps", [3, 10, 100])
def test_precise_draws_the_noise_rate_of_its_eta_by_root_two_at_any_step_size(noise, shift, steps):
    for t, s in list(itertools.pairwise(time_grid(steps, shift)))[1:-1]:
        assert rate(SAMPLERS["precise"](noise=noise), "velocity", t, s) == pytest.approx(noise / math.sqrt(2), rel=1e-9)


@pytest.mark.parametrize("noise", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("steps", [3, 10, 100])
def test_a_budget_per_time_draws_the_noise_rate_itself_at_any_step_size(noise, steps):
    """All of it in the step from pure noise, which spans an infinite time."""
    first, *inner, _ = itertools.pairwise(time_grid(steps, 4.0))
    sampler = SAMPLERS["asfmc"](noise=noise, budget="time")
    assert all(rate(sampler, "two_time", t, s) == pytest.approx(noise, rel=1e-9) for t, s in inner)
    assert rate(sampler, "two_time", *first) == math.inf
    assert rate(SAMPLERS["asfmc"](noise=noise), "two_time", *first) == (math.inf if noise == 1 else 0.0)


def test_flow_sde_draws_the_noise_rate_of_its_a_by_root_two_as_steps_shrink():
    errors = []
    for width in (0.02, 0.01, 0.005):
        rates = [rate(SAMPLERS["flow_sde"](noise=0.7), "velocity", t, t - width) for t in (0.3, 0.5, 0.9)]
        errors.append([abs(value - 0.7 / math.sqrt(2)) for value in rates])
    for at_t in zip(*errors, strict=True):
        assert order((50, 100, 200), at_t) == pytest.approx(1.0, abs=0.2)
        assert at_t[-1] < 0.02


@pytest.mark.parametrize("name", ["cps", "asfmc"])
def test_noise_counted_by_the_step_has_no_rate_in_the_limit_of_small_steps(name):
    rates = [rate(SAMPLERS[name](), SAMPLERS[name].needs[-1], 0.5, 0.5 - width) for width in (0.04, 0.01)]
    assert rates[1] > 1.8 * rates[0]


@pytest.mark.parametrize("name", ["flow_sde", "dance_sde", "cps", "precise"])
def test_from_pure_noise_no_kernel_divides_by_the_missing_signal(name):
    x = LINE.sample(50, seed=0, t=1.0)
    transition = SAMPLERS[name]().step(exact_flow_map(LINE, "velocity"), x, 1.0, 0.9)
    assert torch.isfinite(transition.mean).all()
    assert 0.0 < transition.std <= 0.9


@pytest.mark.parametrize(
    ("name", "setting", "value", "rule"),
    [
        ("asfmc", "anchor", 1.01, "less than or equal to 1"),  # there is nothing past the data
        ("asfmc", "anchor", -0.1, "greater than or equal to 0"),
        ("asfmc", "noise", 1.2, "less than or equal to 1"),
        ("asfmc", "budget", "second", "'step' or 'time'"),
        ("asfmc_local", "distance", 0.0, "greater than 0"),
        ("ddim_mix", "noise", -0.5, "greater than or equal to 0"),
        ("cps", "noise", 1.2, "less than or equal to 1"),
        ("precise", "noise", math.nan, "finite number"),
        ("dance_sde", "anchor", 0.5, "not permitted"),
    ],
)
def test_a_setting_out_of_range_is_refused_at_construction_by_name_value_and_rule(name, setting, value, rule):
    with pytest.raises(ValueError, match=rule) as refused:
        SAMPLERS[name](**{setting: value})
    assert setting in str(refused.value)
    assert str(value) in str(refused.value)


@pytest.mark.parametrize(("name", "kind"), sorted(EXACT_AT_ANY_STEP | {(name, SAMPLERS[name].needs[-1]) for name in SAMPLERS}))
def test_samples_of_the_double_ring_pass_the_energy_test_in_the_limit_each_kernel_promises(name, kind):
    ring, num = double_ring(), 2000
    exact, local = ((name, kind) in cases for cases in (EXACT_AT_ANY_STEP, EXACT_AT_SHORT_DISTANCE))
    sampler = SAMPLERS[name](distance=0.001) if local else SAMPLERS[name]()
    start = ring.sample(num, seed_stream("start", name, kind), t=1.0)
    times = time_grid(2 if exact else 8 if local else 320)
    passed = compose(sampler, exact_flow_map(ring, kind), start, times, seed_stream(name, kind))
    checked = [(s, x) for s, x in passed if exact or s in (0.5, 0.0)]
    p_values = [EnergyReference(ring.sample(2 * num, seed_stream("ring", str(s)), s)).test(x).p_value for s, x in checked]
    if (name, kind) in BIASED_IN_EVERY_LIMIT:
        assert min(p_values) < 1e-6
    else:
        assert min(p_values) > 1e-3, p_values


def test_cps_keeps_losing_the_outer_ring_while_precise_regains_it():
    """The outer mass wants to be 0.5; with n = 4,000 its standard error is below 0.008."""
    ring, num = double_ring(), 4000
    flow_map, start = exact_flow_map(ring, "velocity"), ring.sample(num, seed=0, t=1.0)

    def mass(sampler: Sampler, steps: int) -> float:
        *_, (_, final) = compose(sampler, flow_map, start, time_grid(steps), steps)
        return outer_mass(final)

    assert mass(SAMPLERS["cps"](noise=0.7), 1280) < 0.45
    precise = [mass(SAMPLERS["precise"](), steps) for steps in (10, 320)]
    assert precise[0] < 0.4
    assert precise[1] == pytest.approx(0.493, abs=0.03)


def test_few_steps_of_an_approximate_kernel_lose_the_outer_ring_and_the_anchored_kernel_does_not():
    ring, num = double_ring(), 10_000
    start = ring.sample(num, seed=0, t=1.0)
    *_, (_, anchored) = compose(SAMPLERS["asfmc"](), exact_flow_map(ring), start, time_grid(2), 1)
    *_, (_, approximate) = compose(SAMPLERS["flow_sde"](), exact_flow_map(ring, "velocity"), start, time_grid(4), 1)
    assert outer_mass(anchored) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(num))
    assert outer_mass(approximate) == pytest.approx(0.371, abs=0.02)


@pytest.mark.parametrize("name", SAMPLES)
def test_no_anchored_kernel_is_rejected_and_a_std_5_percent_too_large_is(name):
    """Nine kernels at every node of two steps, as one family; `bench samplers` takes 25 at 2, 4 and 8 steps with the same n.

    The widened kernel is tested at the first node of eight steps, where nearly all of the sample is the kernel's own noise.
    """
    distribution, num = distributions()[name], SAMPLES[name]
    nodes = references(distribution, (0.5, 0.0), num)
    family = family_p_values(distribution, nodes, num, steps=(2,), knobs=(0.0, 0.5, 1.0))
    assert len(family) == 18
    assert min(holm(family)) > LEVEL
    first = time_grid(8)[1]
    reference = references(distribution, (first,), num)[first]
    start = distribution.sample(num, seed_stream("widened", name), t=1.0)
    kernels = {"right": SAMPLERS["asfmc"](noise=1.0, anchor=1.0), "wide": WidenedSampler(noise=1.0, anchor=1.0)}
    p_values = {}
    for label, sampler in kernels.items():
        _, x = next(compose(sampler, exact_flow_map(distribution), start, (1.0, first), seed_stream("widened noise", name)))
        p_values[label] = reference.test(x).p_value
    assert adjusted_in_family(p_values["right"], family) > LEVEL
    assert p_values["wide"] * 700 < LEVEL  # survives even the correction for the whole family


ADDED = '''"""A sampler of somebody else's."""
from typing import Literal

from pydantic import Field

from workbench.contracts import Sampler
from workbench.flow import Gaussian


class LazySampler(Sampler):
    """It stays where it is."""

    name: Literal["lazy"] = "lazy"
    noise: float = Field(0.5, gt=0, le=3, description="how lazily")

    def step(self, flow_map, x, t, s):
        return Gaussian(x, self.noise * s)
'''

USED = """
from workbench.config import RunConfig, configure
from workbench.panels.form import render

form = render(RunConfig())
assert '<option value="lazy"' in form and 'name="sampler.lazy.noise"' in form and "how lazily" in form
assert configure("shapes", {"sampler.name": "lazy", "sampler.noise": "2.5"}).sampler.noise == 2.5
for changes in ({"sampler.name": "lzy"}, {"sampler.name": "lazy", "sampler.noise": 4}):
    try:
        configure("shapes", changes)
    except ValueError as error:
        print(error)
"""


def test_a_sampler_added_in_its_own_file_and_the_list_is_known_to_the_form_the_settings_and_the_errors(tmp_path):
    package = tmp_path / "workbench"
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(Path(__file__).parents[1] / "workbench", package, ignore=ignored)
    (package / "samplers" / "lazy.py").write_text(ADDED)
    registry = package / "samplers" / "__init__.py"
    text = registry.read_text().replace('    "ode":', '    "lazy": LazySampler,\n    "ode":')
    registry.write_text("from workbench.samplers.lazy import LazySampler\n" + text)
    place = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path)}}
    used = subprocess.run([sys.executable, "-c", USED], **place, capture_output=True, text=True, check=False)
    assert used.returncode == 0, used.stderr
    unknown, too_large = used.stdout.splitlines()
    assert "unknown sampler 'lzy'; choose from: lazy, ode, asfmc" in unknown
    assert "sampler.noise" in too_large
    assert "less than or equal to 3" in too_large
