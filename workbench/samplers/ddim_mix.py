"""DDIM's mixture of old and fresh noise, for maps that only reach the data."""

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from workbench.contracts import FlowMap, Sampler
from workbench.flow import Gaussian
from workbench.samplers.ode import deterministic_step


class DDIMMixSampler(Sampler):
    """Jump to the data, then renoise with a mixture of the noise that the jump implies and fresh noise.

    Approximate, and not only for large steps: the implied noise is not independent of the endpoint, so the marginals are exact
    at `noise = 1` alone. It keeps at s the noise that `asfmc_endpoint` drops. `noise = 0` is the deterministic DDIM step.

    Source: DDIM (arXiv:2010.02502), equation 12, restated for the linear path with an endpoint map as its denoiser.
    """

    name: Literal["ddim_mix"] = "ddim_mix"
    noise: float = Field(0.7, ge=0, le=1, description="fresh noise at the target (lambda); only 1 keeps the marginals exact")

    needs = ("two_time", "single_time")

    def step(self, flow_map: FlowMap, x: Tensor, t: float, s: float) -> Gaussian:
        if s == 0.0:
            return Gaussian(deterministic_step(flow_map, x, t, s), 0.0)
        endpoint = flow_map(x, t, 0.0)
        implied = (x - (1.0 - t) * endpoint) / t  # the noise that would have made x from this endpoint
        return Gaussian((1.0 - s) * endpoint + s * math.sqrt(1.0 - self.noise**2) * implied, self.noise * s)
