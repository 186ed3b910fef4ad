"""The proof of the anchored kernel: with an exact map its marginals are exact at any step size, a wrong kernel's are not.

Every node of every composition is tested against exact samples of x_t by the energy test, all tests as one family.
"""

import itertools
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from workbench.contracts import FlowMap, Sampler
from workbench.energy import EnergyReference, holm
from workbench.flow import Gaussian, seed_stream, time_grid
from workbench.lab import Distribution, GaussianMixture, double_ring, exact_flow_map
from workbench.samplers.asfmc import AnchoredSampler

STEPS = (2, 4, 8)
KNOBS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of noise and of anchor: 25 kernels
LEVEL = 0.01                         # for the whole family
SAMPLES = {"double ring": 24_000, "mixture in 8 dimensions": 8_000}
"""Large enough that the widened kernel is rejected at the family's level; references hold twice as many."""


class WidenedSampler(AnchoredSampler):
    """The anchored kernel gone wrong, for the tests to find: its standard deviation is 5 % too large."""

    def step(self, flow_map: FlowMap, x: Tensor, t: float, s: float) -> Gaussian:
        transition = super().step(flow_map, x, t, s)
        return Gaussian(transition.mean, 1.05 * transition.std)


def eight_dimensions() -> GaussianMixture:
    """Six unequal Gaussians in eight dimensions, some of them overlapping."""
    means = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return GaussianMixture(means, [0.3, 0.3, 0.4, 0.4, 0.5, 0.5], [3, 1, 2, 2, 1, 3])


def distributions() -> dict[str, Distribution]:
    return {"double ring": double_ring(), "mixture in 8 dimensions": eight_dimensions()}


def compose(sampler: Sampler, flow_map: FlowMap, x: Tensor, times: Sequence[float], seed: int) -> Iterator[tuple[float, Tensor]]:
    """Each node (s, x_s) that a sampler passes from x [N, D] at times[0]; fresh noise from `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    for t, s in itertools.pairwise(times):
        transition = sampler.step(flow_map, x, t, s)
        x = transition.sample(torch.randn(x.shape, generator=generator))
        yield s, x


def references(distribution: Distribution, times: Sequence[float], num: int) -> dict[float, EnergyReference]:
    """Exact samples of x_t at every node, 2 `num` of them."""
    return {t: EnergyReference(distribution.sample(2 * num, seed_stream("reference", str(t)), t)) for t in times if t < 1}


def marginal_p_values(
    sampler: Sampler, distribution: Distribution, nodes: dict[float, EnergyReference], steps: int, num: int, *key: str
) -> list[float]:
    """The energy test's p-value at each node of a uniform grid, from `num` samples of pure noise named by `key`."""
    start = distribution.sample(num, seed_stream("start", *key), t=1.0)
    passed = compose(sampler, exact_flow_map(distribution), start, time_grid(steps), seed_stream("noise", *key))
    return [nodes[s].test(x).p_value for s, x in passed]


def family_p_values(
    distribution: Distribution,
    nodes: dict[float, EnergyReference],
    num: int,
    steps: Sequence[int] = STEPS,
    knobs: Sequence[float] = KNOBS,
) -> list[float]:
    """p-values of every kernel, any noise with any anchor out of `knobs`, at every node of every grid.

    The kernels without noise (noise = 0 or anchor = 0) are one map: tested once, counted each time.
    """
    p_values: list[float] = []
    for count in steps:
        silent = marginal_p_values(AnchoredSampler(noise=0.0), distribution, nodes, count, num, "silent", str(count))
        for noise, anchor in itertools.product(knobs, knobs):
            if noise == 0 or anchor == 0:
                p_values += silent
            else:
                key = (str(count), str(noise), str(anchor))
                p_values += marginal_p_values(AnchoredSampler(noise=noise, anchor=anchor), distribution, nodes, count, num, *key)
    return p_values


def adjusted_in_family(p_value: float, family: Sequence[float]) -> float:
    """Holm's adjusted p-value of a further test, taken into the family as one more member."""
    return holm([p_value, *family])[0]


def bench_samplers() -> dict[str, object]:
    """Whether any exact kernel is rejected and the widened one is."""
    began, worked = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    families, widened = {}, {}
    for name, distribution in distributions().items():
        num = SAMPLES[name]
        nodes = references(distribution, time_grid(max(STEPS)), num)  # holds the nodes of the coarser grids too
        families[name] = family_p_values(distribution, nodes, num)
        wrong = WidenedSampler(noise=1.0, anchor=1.0)
        widened[name] = {n: marginal_p_values(wrong, distribution, nodes, n, num, "widened", str(n)) for n in STEPS}
    family = [p for p_values in families.values() for p in p_values]
    adjusted = holm(family)
    return {
        "family": len(family),
        "level": LEVEL,
        "samples": SAMPLES,
        "smallest_p": min(family),
        "smallest_adjusted_p": min(adjusted),
        "rejected": sum(p <= LEVEL for p in adjusted),
        "widened_adjusted_p": {
            name: {f"{count} steps": adjusted_in_family(min(p_values), family) for count, p_values in by_steps.items()}
            for name, by_steps in widened.items()
        },
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - worked,
    }
