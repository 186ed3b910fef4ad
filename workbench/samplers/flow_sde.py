"""Flow-GRPO's stochastic differential equation, discretised by Euler-Maruyama."""

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from workbench.contracts import FlowMap, Sampler
from workbench.flow import Gaussian
from workbench.samplers.ode import deterministic_step


class FlowSDESampler(Sampler):
    """Reverse SDE with the marginals of the ODE; approximate, exact only as the steps shrink.

    Its noise scale a relates to the common one by a = sqrt(2) lambda. At t = 1 the scale is infinite; as in the source, the
    first step takes it at the second grid time instead.

    Source: Flow-GRPO (arXiv:2505.05470), equations 9 and 12.
    """

    name: Literal["flow_sde"] = "flow_sde"
    noise: float = Field(0.7, ge=0, le=2, description="noise scale a; 0 is the Euler step of the ODE")

    needs = ("two_time", "velocity")

    def step(self, flow_map: FlowMap, x: Tensor, t: float, s: float) -> Gaussian:
        if s == 0.0:
            return Gaussian(deterministic_step(flow_map, x, t, s), 0.0)
        v = flow_map.velocity(x, t)
        g = self.noise * math.sqrt(t / (1.0 - (s if t >= 1.0 else t)))
        change = s - t
        mean = x * (1.0 + g**2 / (2.0 * t) * change) + v * (1.0 + g**2 * (1.0 - t) / (2.0 * t)) * change
        return Gaussian(mean, g * math.sqrt(-change))
