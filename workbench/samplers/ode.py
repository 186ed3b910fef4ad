"""Deterministic composition of the flow map; the sampler of every evaluation."""

from typing import Literal

from torch import Tensor

from workbench.contracts import FlowMap, Sampler
from workbench.flow import Gaussian


def deterministic_step(flow_map: FlowMap, x: Tensor, t: float, s: float) -> Tensor:
    """Carry x from t to s with whichever call the map was trained for.

    A two-time map jumps; a velocity map takes one Euler step; a single-time map predicts x_0 and walks the straight path from
    it back to s (DDIM), and at s = 0 jumps.
    """
    if flow_map.kind == "two_time":
        return flow_map(x, t, s)
    if flow_map.kind == "velocity":
        return x + (s - t) * flow_map.velocity(x, t)
    endpoint = flow_map(x, t, 0.0)
    return endpoint if s == 0.0 else endpoint + (s / t) * (x - endpoint)


class ODESampler(Sampler):
    """The probability-flow ODE: no noise, no density; exact at any step size when the flow map is."""

    name: Literal["ode"] = "ode"

    def step(self, flow_map: FlowMap, x: Tensor, t: float, s: float) -> Gaussian:
        return Gaussian(deterministic_step(flow_map, x, t, s), 0.0)
