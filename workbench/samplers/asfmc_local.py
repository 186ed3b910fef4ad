"""The anchored kernel with its anchor just past the target, to first order: the form for maps that also give a velocity."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.contracts import FlowMap, Sampler
from workbench.flow import Gaussian
from workbench.samplers.ode import deterministic_step


class LocalAnchoredSampler(Sampler):
    """Jump to the target, then one small step of noise and of the drift that makes up for it, taken from the velocity there.

    The limit of the anchored kernel for an anchor a short `distance` d below the target s. Unlike that kernel it trains the
    jump that is deployed, but its marginals are exact only as d shrinks, whatever the number of steps: its std errs by
    O(d^1.5) and its variance by O(d^2). d is shortened where it would pass the data, or draw more noise than x_s holds, which
    happens close to either end of time.

    Source: Flow-Map GRPO (arXiv:2607.00535), its two-time setting.
    """

    name: Literal["asfmc_local"] = "asfmc_local"
    noise: float = Field(0.7, ge=0, le=1, description="noise strength (lambda); 0 is deterministic composition")
    distance: float = Field(
        0.03, gt=0, le=1, description="time from the target to the anchor (d); the marginals are exact only as it shrinks"
    )
    detach_correction: bool = Field(
        True, description="keep the gradient out of the drift that makes up for the noise; samples are the same"
    )

    needs = ("two_time",)

    def step(self, flow_map: FlowMap, x: Tensor, t: float, s: float) -> Gaussian:
        y = deterministic_step(flow_map, x, t, s)
        drift = min(self.distance * self.noise**2, s * self.noise**2, 0.5 * s * (1.0 - s))  # d lambda^2
        if drift == 0.0:
            return Gaussian(y, 0.0)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_correction):
            v = flow_map.velocity(y, s)
        return Gaussian((1.0 - drift / (1.0 - s)) * y - drift * v, math.sqrt(2.0 * drift * s / (1.0 - s)))
