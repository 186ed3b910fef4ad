"""FLUX as a consistency map: sCM distillates of FLUX.1, which go from any time to the data at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from workbench.contracts import FlowMapKind
from workbench.models.flux import TOKENS, FluxMap, FluxModel


class FluxConsistencyMap(FluxMap):
    """A FLUX consistency network with its prompts bound: G(x, t) = x - t v(x, t) is the data.

    sCM learns on TrigFlow's arc, where the jump to the data is cos a x_a - sin a sigma_d F. T2I-Distill asks FLUX on the
    straight path all the same, which is ours, at tan a = t / (1 - t), and makes F of the velocity that it answers; in our
    coordinates the two transformations cancel, as they do for SANA-Sprint (`workbench.models.sana.SanaMap`).

    Args:
        scale: what a time of 1, and a guidance of 1, are to the network's sinusoids.
    Source: sCM (arXiv:2410.11081) on FLUX (arXiv:2512.13006).
    """

    def __init__(
        self, network: nn.Module, hidden: Tensor, pooled: Tensor, guidance: float | None, kind: FlowMapKind, scale: float
    ) -> None:
        self.share = scale / 1000  # of what the network makes of times and guidance by itself
        super().__init__(network, hidden, pooled, None if guidance is None else self.share * guidance, kind)

    def _times(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> dict[str, Tensor]:
        return {name: self.share * time for name, time in super()._times(x, t, s).items()}


class FluxConsistencyModel(FluxModel):
    """FLUX.1 as a consistency map of one to four steps: T2I-Distill's sCM, or any other with FLUX's network and velocity.

    Nothing in its weights tells it from a velocity field: a plain FLUX read as one jumps to the mean of what it might draw.
    """

    name: Literal["flux_scm"] = "flux_scm"  # type: ignore[assignment]
    source: str = Field(
        "", description="folder of a FluxPipeline whose transformer is a consistency map (sCM), or its id on the hub"
    )
    max_tokens: int = Field(256, ge=8, le=TOKENS, description="tokens of a prompt that are read; T2I-Distill's learned with 256")
    time_scale: int = Field(
        1000,
        ge=1,
        le=1000,
        description="what times and guidance are multiplied by before the network hears them: 1000 in FLUX, 1 in T2I-Distill, "
        "where a derivative by the time stays small so",
    )

    kind: ClassVar[FlowMapKind] = "single_time"

    def found(self) -> Path:
        if not self.source:
            raise ValueError("model.source is empty: name the folder of a FluxPipeline whose transformer is a consistency map")
        return super().found()

    def flow_map(
        self, network: nn.Module, config: Any, prompts: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None
    ) -> FluxConsistencyMap:
        told = self.embedded_guidance(config)
        return FluxConsistencyMap(network, prompts["hidden"], prompts["pooled"], told, self.kind, self.time_scale)
