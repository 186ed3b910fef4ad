"""The double ring, where a kernel's bias shows: its mass leaves the outer ring, or its points leave both.

Every kernel draws from the exact map or velocity of the data, so that all of its error is its own.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from workbench.benchmarks.samplers import compose
from workbench.contracts import FlowMap, FlowMapKind, Sampler
from workbench.energy import EnergyReference
from workbench.flow import seed_stream, time_grid
from workbench.lab import double_ring, exact_flow_map, outer_mass, ring_scatter
from workbench.samplers import SAMPLERS

STEPS = (10, 20, 40, 80, 160, 320, 640, 1280)
FEW_STEPS = (2, 4, 8)


class Kernel(NamedTuple):
    """A sampler on the kind of map that it is made for; `exact` where its marginals are, at any number of steps."""

    sampler: Sampler
    kind: FlowMapKind
    exact: bool = False


KERNELS: dict[str, Kernel] = {
    "asfmc": Kernel(SAMPLERS["asfmc"](), "two_time", exact=True),
    "ode, flow map": Kernel(SAMPLERS["ode"](), "two_time", exact=True),
    "asfmc_endpoint": Kernel(SAMPLERS["asfmc_endpoint"](), "single_time", exact=True),
    "ode, Euler": Kernel(SAMPLERS["ode"](), "velocity"),
    "asfmc_local": Kernel(SAMPLERS["asfmc_local"](), "two_time"),
    "ddim_mix": Kernel(SAMPLERS["ddim_mix"](), "single_time"),
    "flow_sde": Kernel(SAMPLERS["flow_sde"](), "velocity"),
    "dance_sde": Kernel(SAMPLERS["dance_sde"](), "velocity"),
    "cps": Kernel(SAMPLERS["cps"](), "velocity"),
    "precise": Kernel(SAMPLERS["precise"](), "velocity"),
}
"""Every sampler with its default noise."""


class CountedMap:
    """A flow map that counts its calls: what a network in its place would be evaluated."""

    def __init__(self, flow_map: FlowMap):
        self.flow_map = flow_map
        self.evaluations = 0

    @property
    def kind(self) -> FlowMapKind:
        return self.flow_map.kind

    def __call__(self, x: Tensor, t: float, s: float) -> Tensor:
        self.evaluations += 1
        return self.flow_map(x, t, s)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        self.evaluations += 1
        return self.flow_map.velocity(x, t)


def bench_rings(
    num: int = 20_000,
    steps: Sequence[int] = STEPS,
    few_steps: Sequence[int] = FEW_STEPS,
    kernels: Mapping[str, Kernel] = KERNELS,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Outer mass, scatter and energy test of what each kernel draws, by its number of steps on the uniform grid.

    Args:
        num: points drawn by each kernel at each number of steps.
        steps: of the approximate kernels. few_steps: of the exact ones.
    Returns: figures of the data, and `curves`: for each kernel, lists over its numbers of steps.
    Source: the experiment of Precise (arXiv:2605.23522).
    """
    began = time.perf_counter()
    curves = {}
    for label, kernel in kernels.items():
        curves[label] = _curve(label, kernel, few_steps if kernel.exact else steps, num)
        if progress is not None:
            progress(f"rings: {label}")
    return {
        "samples": num,
        "wanted_mass": 0.5,
        "scatter_of_data": ring_scatter(double_ring().sample(10 * num, seed_stream("rings", "data"))),
        "curves": curves,
        "seconds": time.perf_counter() - began,
    }


def _curve(label: str, kernel: Kernel, steps: Sequence[int], num: int) -> dict[str, Any]:
    rings, points = double_ring(), []
    for count in steps:
        flow_map = CountedMap(exact_flow_map(rings, kernel.kind))
        start = rings.sample(num, seed_stream("rings", label, count), t=1.0)
        *_, (_, final) = compose(kernel.sampler, flow_map, start, time_grid(count), seed_stream("rings noise", label, count))
        # a reference for each sample: with one for all, its own chance error would pull every p-value the same way
        reference = EnergyReference(rings.sample(2 * num, seed_stream("rings reference", label, count)))
        mass = outer_mass(final)
        figures = {
            "outer_mass": mass,
            "standard_error": math.sqrt(mass * (1 - mass) / num),
            "scatter": ring_scatter(final),
            "p_value": reference.test(final).p_value,
        }
        rounded = {key: float(f"{value:.4g}") for key, value in figures.items()}
        points.append({"steps": count, "evaluations": flow_map.evaluations} | rounded)
    settings = {"noise": getattr(kernel.sampler, "noise", 0.0), "exact": kernel.exact}
    return settings | {key: [point[key] for point in points] for key in points[0]}
