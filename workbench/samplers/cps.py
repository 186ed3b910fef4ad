"""Coefficients-preserving sampling: each step replaces a fixed share of the noise."""

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from workbench.contracts import FlowMap, Sampler
from workbench.flow import Gaussian, data_prediction, noise_prediction
from workbench.samplers.ode import deterministic_step


class CPSSampler(Sampler):
    """Predict data and noise, then mix the predicted noise with fresh noise so that their coefficients stay on the path.

    Its samples look clean at few steps, but the marginals are wrong at any number of steps: the share is drawn afresh in every
    step, however short, so that the noise in a stretch of time grows without bound as the steps shrink.

    Source: Flow-CPS (arXiv:2509.05952). Its published log-probability drops 1 / (2 std^2); ours is the density.
    """

    name: Literal["cps"] = "cps"
    noise: float = Field(0.8, ge=0, le=1, description="angle of the mixture in right angles (eta): the fresh share is sin^2")

    needs = ("two_time", "velocity")

    def step(self, flow_map: FlowMap, x: Tensor, t: float, s: float) -> Gaussian:
        if s == 0.0:
            return Gaussian(deterministic_step(flow_map, x, t, s), 0.0)
        v, angle = flow_map.velocity(x, t), 0.5 * math.pi * self.noise
        mean = (1.0 - s) * data_prediction(x, v, t) + s * math.cos(angle) * noise_prediction(x, v, t)
        return Gaussian(mean, s * math.sin(angle))
