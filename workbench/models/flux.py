"""FLUX.1 checkpoints (dev, schnell, Krea, lite and their like) as velocity fields, from a folder or the hub.

The only place that knows of FLUX's packed latents, timesteps, guidance and text encoders.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.contracts import FlowMapKind
from workbench.models.embedded import NetworkFlowMap, time_on
from workbench.models.flux_sizes import DEV
from workbench.models.pipeline import PipelineModel

TOKENS = 512
"""Most tokens of a prompt that FLUX was trained to read."""


def pack(latents: Tensor) -> Tensor:
    """[N, C, 2h, 2w] -> [N, h w, 4 C]: one token for each two by two cells, as FLUX wants them."""
    n, channels, rows, columns = latents.shape
    cells = latents.view(n, channels, rows // 2, 2, columns // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns // 4, 4 * channels)


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """[N, rows / 2 * columns / 2, 4 C] -> [N, C, rows, columns]; inverse of `pack`."""
    n, _, channels = tokens.shape
    cells = tokens.view(n, rows // 2, columns // 2, channels // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(n, channels // 4, rows, columns)


class FluxMap(NetworkFlowMap):
    """A FLUX transformer with its prompts bound.

    FLUX predicts the velocity of the linear path, noise minus data, and its sigma is our time: 1 is noise. It wants the time as
    a share of 1000 steps, which it multiplies by itself.

    Args:
        hidden: [N, tokens, width], the T5 embeddings; one row stands for all.
        pooled: [N, width], the CLIP embeddings.
        guidance: scale that a guidance-distilled model is told; None for others.
    """

    def __init__(self, network: nn.Module, hidden: Tensor, pooled: Tensor, guidance: float | None, kind: FlowMapKind) -> None:
        super().__init__(network, hidden, kind)
        self.hidden, self.pooled, self.guidance = hidden, pooled, guidance

    def _average_velocity(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        n, (rows, columns) = len(x), x.shape[-2:]
        guidance = None if self.guidance is None else torch.full((n,), self.guidance, device=x.device)
        predicted = self.network(
            hidden_states=pack(x).to(self.hidden.dtype),
            **self._times(x, t, s),
            guidance=guidance,
            encoder_hidden_states=self.hidden.expand(n, -1, -1),
            pooled_projections=self.pooled.expand(n, -1),
            txt_ids=self.hidden.new_zeros(self.hidden.shape[1], 3),
            img_ids=_position_ids(rows // 2, columns // 2, self.hidden),
            return_dict=False,
        )[0]
        return unpack(predicted.float(), rows, columns)

    def _times(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> dict[str, Tensor]:
        """What the network is told of times, by name, each [N]; a velocity field is told no target."""
        return {"timestep": time_on(x, t).expand(len(x))}


def _position_ids(rows: int, columns: int, like: Tensor) -> Tensor:
    """Where each token is, [rows * columns, 3]: nothing, its row, its column; made on the device, which then need not wait."""
    place = like.new_zeros(rows, columns, 3)
    place[..., 1] = torch.arange(rows, device=like.device)[:, None]
    place[..., 2] = torch.arange(columns, device=like.device)
    return place.flatten(0, 1)


class FluxModel(PipelineModel):
    """FLUX.1, a text-to-image velocity field, as diffusers keeps it: dev, schnell, Krea, lite, or any of their shape."""

    name: Literal["flux"] = "flux"
    source: str = Field(
        "black-forest-labs/FLUX.1-dev", description="folder of a FluxPipeline, or its id on the hub, fetched at first use"
    )
    guidance: float = Field(
        3.5, ge=0, le=30, description="guidance that a distilled model is told, the same in training and use; schnell has none"
    )
    max_tokens: int = Field(
        TOKENS, ge=8, le=TOKENS, description="tokens of a prompt that are read; a prompt's file in the cache takes 8 kB for each"
    )

    kind: ClassVar[FlowMapKind] = "velocity"
    adapter_targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),  # of the pictures' attention
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of the texts'
    )
    pipeline = "FluxPipeline"
    published = DEV
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    def lengths(self, pipeline: Any, prompts: Sequence[str]) -> Sequence[int]:
        return [len(ids) for ids in pipeline.tokenizer_2(list(prompts)).input_ids]  # CLIP reads 77 of them, as in training

    def read(self, pipeline: Any, prompts: Sequence[str], device: torch.device) -> Mapping[str, Tensor]:
        hidden, pooled, _ = pipeline.encode_prompt(list(prompts), max_sequence_length=self.max_tokens, device=device)
        return {"hidden": hidden, "pooled": pooled}

    def flow_map(
        self, network: nn.Module, config: Any, prompts: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None
    ) -> FluxMap:
        return FluxMap(network, prompts["hidden"], prompts["pooled"], self.embedded_guidance(config), self.kind)

    def embedded_guidance(self, config: Any) -> float | None:
        """The scale that the network is told; None where it was made without."""
        return self.guidance if config.guidance_embeds else None

    def latent_shape(self, transformer: Any, vae: Any) -> tuple[int, ...]:
        shrinks = 2 ** (len(vae.config.block_out_channels) - 1)
        side = self.cells(shrinks, 2 * shrinks)
        return (transformer.config.in_channels // 4, side, side)
