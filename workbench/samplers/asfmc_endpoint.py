"""The anchored kernel for maps that only reach the data: consistency models and sCM."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from workbench.contracts import FlowMap, Sampler
from workbench.flow import Gaussian


class EndpointSampler(Sampler):
    """Jump to the data, then renoise to the target with a share of the noise.

    Exact marginals only at `noise = 1`, where it is multistep consistency sampling: below that the sample at s carries less
    noise than its time says, since a single-time map gives no other noise to keep.

    Source: Flow-Map GRPO (arXiv:2607.00535), endpoint anchor for single-time maps.
    """

    name: Literal["asfmc_endpoint"] = "asfmc_endpoint"
    noise: float = Field(
        1.0, ge=0, le=1, description="renoising strength at the target (lambda); only 1 keeps the marginals exact"
    )

    needs = ("two_time", "single_time")

    def step(self, flow_map: FlowMap, x: Tensor, t: float, s: float) -> Gaussian:
        return Gaussian((1.0 - s) * flow_map(x, t, 0.0), self.noise * s)
