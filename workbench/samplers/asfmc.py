"""Anchored stochastic flow-map composition, the default kernel."""

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from workbench.contracts import FlowMap, Sampler
from workbench.flow import Gaussian, noise_to_signal, time_of_ratio


class AnchoredSampler(Sampler):
    """Run the map past the target to an anchor, then renoise back up to the target.

    With an exact flow map the marginals are exact for every anchor and noise, at any step size. `noise = 0` is deterministic
    composition; `noise = 1, anchor = 1` is multistep consistency sampling. With a learned map the jump to the effective anchor
    is what is trained, while the jump to s is what is deployed.

    A budget per step draws more noise in all the more steps a rollout has. A budget per time draws the same whatever their
    number: at anchor 1 `noise` is then the common noise rate (see `workbench.flow.noise_rate`), and the first step, from pure
    noise, keeps nothing of it.

    Source: Flow-Map GRPO (arXiv:2607.00535), anchored stochastic flow-map composition.
    """

    name: Literal["asfmc"] = "asfmc"
    noise: float = Field(
        0.7, ge=0, le=1, description="share of the target's noise that is drawn afresh (lambda); 0 is deterministic"
    )
    anchor: float = Field(
        1.0, ge=0, le=1, description="how far past the target the map runs: 1 reaches the data, 0 stays at the target"
    )
    budget: Literal["step", "time"] = Field(
        "step", description="what the noise is counted by: each step, or the time it spans, whatever the number of steps"
    )

    needs = ("two_time",)

    def step(self, flow_map: FlowMap, x: Tensor, t: float, s: float) -> Gaussian:
        k_s, k_anchor = noise_to_signal(s), noise_to_signal(s * (1.0 - self.anchor))
        fresh = self.noise**2
        if self.budget == "time":
            fresh = 1.0 - (k_s / noise_to_signal(t)) ** (2.0 * self.noise**2)
        k_r = math.sqrt((1.0 - fresh) * k_s**2 + fresh * k_anchor**2)
        r = min(time_of_ratio(k_r), s)  # the effective anchor: where the map stops and renoising begins
        std = math.sqrt(fresh) * (1.0 - s) * math.sqrt(max(k_s**2 - k_anchor**2, 0.0))
        if std == 0.0:
            return Gaussian(flow_map(x, t, s), 0.0)
        return Gaussian((1.0 - s) / (1.0 - r) * flow_map(x, t, r), std)
