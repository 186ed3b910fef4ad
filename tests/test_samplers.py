"""Every transition kernel: densities, limits and marginals against distributions whose flow is known exactly.

A sampler added to SAMPLERS is picked up unaided and must then have the right marginals in the limit of small steps; where
theory says otherwise it is named below.
"""

import itertools
import math

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
from workbench.flow import seed_stream, seeded_noise, time_grid
from workbench.lab import GaussianMixture, double_ring, exact_flow_map, outer_mass
from workbench.samplers import SAMPLERS

CASES = [(name, kind) for name, sampler in SAMPLERS.items() for kind in sampler.needs]
EXACT_AT_ANY_STEP = {
    ("ode", "two_time"),
    ("asfmc", "two_time"),
    ("asfmc_endpoint", "two_time"),
    ("asfmc_endpoint", "single_time"),
}
BIASED_IN_EVERY_LIMIT = {("ode", "single_time")}  # the straight path from a consistency model's endpoint is not the flow
LESS_NOISE_THAN_ITS_TIME = {"asfmc_endpoint"}     # without fresh noise it stays at (1 - s) x_0, off the path
CONVERGENT = [case for case in CASES if case not in EXACT_AT_ANY_STEP | BIASED_IN_EVERY_LIMIT]

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
@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_every_anchor_and_noise_keeps_a_gaussian_s_mean_and_variance(noise, anchor, shift):
    flow_map, sampler = exact_flow_map(LINE), SAMPLERS["asfmc"](noise=noise, anchor=anchor)
    for t, s in itertools.pairwise(time_grid(4, shift)):
        spread_t, spread_s = (math.hypot((1 - time) * 0.4, time) for time in (t, s))
        probe = (1 - t) * 0.7 + torch.tensor([[0.0], [spread_t]], dtype=torch.float64)
        transition = sampler.step(flow_map, probe, t, s)
        centre, gain = float(transition.mean[0]), float(transition.mean[1] - transition.mean[0])
        assert centre == pytest.approx((1 - s) * 0.7, abs=1e-7)
        assert math.hypot(gain, transition.std) == pytest.approx(spread_s, abs=1e-7)


@pytest.mark.parametrize(("name", "kind"), CONVERGENT)
def test_approximate_kernels_converge_to_a_gaussian_s_mean_and_variance_as_steps_shrink(name, kind):
    """Below t = 1/2: Flow-SDE's first steps err by about a^4 / 8 on any grid, and the later ones forget that as h^(a^2)."""
    steps = (40, 160, 640)
    errors = [error(SAMPLERS[name](), kind, count, below=0.5) for count in steps]
    order = math.log(errors[0] / errors[-1]) / math.log(steps[-1] / steps[0])
    assert errors[0] > errors[1] > errors[2]
    assert errors[-1] < 0.01, errors
    assert order > 0.45, errors  # Euler's is 1; Flow-SDE's at a = 0.7 falls toward a^2 = 0.49


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
        local = y - d * noise**2 * (y / (1 - s) + LINE.velocity(y, s))
        errors.append((float((step.mean - local).abs().max()), abs(step.std**2 - 2 * noise**2 * d * s / (1 - s))))
    for coarse, fine in zip(*errors, strict=True):
        assert coarse / fine == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_samples_of_the_double_ring_pass_the_energy_test_in_the_limit_each_kernel_promises(name, kind):
    ring, num = double_ring(), 2000
    exact = (name, kind) in EXACT_AT_ANY_STEP
    start = ring.sample(num, seed_stream("start", name, kind), t=1.0)
    passed = compose(SAMPLERS[name](), exact_flow_map(ring, kind), start, time_grid(2 if exact else 320), seed_stream(name, kind))
    checked = [(s, x) for s, x in passed if exact or s in (0.5, 0.0)]
    p_values = [EnergyReference(ring.sample(2 * num, seed_stream("ring", str(s)), s)).test(x).p_value for s, x in checked]
    if (name, kind) in BIASED_IN_EVERY_LIMIT:
        assert min(p_values) < 1e-6
    else:
        assert min(p_values) > 1e-3, p_values


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
