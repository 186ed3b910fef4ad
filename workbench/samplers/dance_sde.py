"""DanceGRPO's stochastic differential equation, whose noise does not depend on time."""

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from workbench.contracts import FlowMap, Sampler
from workbench.flow import Gaussian, noise_prediction
from workbench.samplers.ode import deterministic_step


class DanceSDESampler(Sampler):
    """Reverse SDE with a constant noise scale, by Euler-Maruyama; exact only as the steps shrink.

    Being constant, its noise is a small share of x_s near noise and a large one near data.

    Source: DanceGRPO (arXiv:2505.07818), rectified flows.
    """

    name: Literal["dance_sde"] = "dance_sde"
    noise: float = Field(0.3, ge=0, le=2, description="noise scale h, per square root of time; 0 is the Euler step of the ODE")

    needs = ("two_time", "velocity")

    def step(self, flow_map: FlowMap, x: Tensor, t: float, s: float) -> Gaussian:
        if s == 0.0:
            return Gaussian(deterministic_step(flow_map, x, t, s), 0.0)
        v = flow_map.velocity(x, t)
        score = -noise_prediction(x, v, t) / t
        mean = x + (s - t) * v + 0.5 * self.noise**2 * score * (t - s)
        return Gaussian(mean, self.noise * math.sqrt(t - s))
