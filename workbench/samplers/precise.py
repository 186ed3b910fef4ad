"""Precise: each step replaces the share of the noise that the time it spans calls for."""

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from workbench.contracts import FlowMap, Sampler
from workbench.flow import Gaussian, data_prediction, noise_prediction, noise_to_signal
from workbench.samplers.ode import deterministic_step


class PreciseSampler(Sampler):
    """The reverse SDE solved exactly over a step with its predictions held fixed; exact as the steps shrink.

    Its noise scale eta relates to the common one by eta = sqrt(2) lambda, at any step size; eta = sqrt(2) is ancestral
    sampling. The first step, from pure noise, keeps nothing of it.

    Source: Precise (arXiv:2605.23522).
    """

    name: Literal["precise"] = "precise"
    noise: float = Field(1.5, ge=0, le=4, description="noise scale eta; 0 is the Euler step of the ODE")

    needs = ("two_time", "velocity")

    def step(self, flow_map: FlowMap, x: Tensor, t: float, s: float) -> Gaussian:
        if s == 0.0:
            return Gaussian(deterministic_step(flow_map, x, t, s), 0.0)
        v = flow_map.velocity(x, t)
        kept = (noise_to_signal(s) / noise_to_signal(t)) ** (0.5 * self.noise**2)  # rho; from t = 1 it is 0, or 0^0 = 1 at rest
        mean = (1.0 - s) * data_prediction(x, v, t) + s * kept * noise_prediction(x, v, t)
        return Gaussian(mean, s * math.sqrt((1.0 - kept) * (1.0 + kept)))
