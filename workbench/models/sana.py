"""SANA-Sprint checkpoints as consistency maps, from a folder or the hub.

The only place that knows of SANA's times, guidance, latents and text encoder.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.contracts import FlowMapKind
from workbench.models.embedded import NetworkFlowMap, time_on
from workbench.models.pipeline import PipelineModel

TOKENS = 300
"""Most tokens of a prompt that SANA was trained to read."""


class SanaSprintMap(NetworkFlowMap):
    """A SANA-Sprint transformer with its prompts bound: G(x, t) = x - t v, the jump to the data from any time.

    It was distilled on TrigFlow's arc, x_a = sigma_d (cos a x_0 + sin a eps), whose jump is cos a x_a - sin a sigma_d F. The
    network itself is asked and answers on the straight path that it was pretrained on, which is ours: with tan a = t / (1 - t)
    and N = sqrt(t^2 + (1 - t)^2),

        x = N x_a / sigma_d,    v = (N F - (1 - 2 t) x) / N^2,

    and the arc's jump, in units of sigma_d, is x - t v. So its answer is v as it stands, and only its time (ours, in [0, 1]),
    its guidance and the mask of its prompts remain to be told.

    Args:
        hidden: [N, tokens, width], the embeddings of Gemma; one row stands for all.
        mask: [N, tokens], 1 where a token belongs to a prompt.
        guidance: what the model is told of it.

    Source: SANA-Sprint (arXiv:2503.09641), section 3.1; sCM (arXiv:2410.11081).
    """

    def __init__(self, network: nn.Module, hidden: Tensor, mask: Tensor, guidance: float, kind: FlowMapKind) -> None:
        super().__init__(network, hidden, kind)
        self.hidden, self.mask, self.guidance = hidden, mask, guidance

    def _average_velocity(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        n = len(x)
        return self.network(
            hidden_states=x.to(self.hidden.dtype),
            timestep=time_on(x, t).expand(n),
            guidance=self.hidden.new_full((n,), self.guidance),
            encoder_hidden_states=self.hidden.expand(n, -1, -1),
            encoder_attention_mask=self.mask.expand(n, -1),
            return_dict=False,
        )[0].float()


class SanaSprintModel(PipelineModel):
    """SANA-Sprint, a text-to-image consistency map of one to four steps, as diffusers keeps it."""

    name: Literal["sana_sprint"] = "sana_sprint"
    source: str = Field(
        "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        description="folder of a SanaSprintPipeline, or its id on the hub, fetched at first use",
    )
    resolution: int = Field(1024, ge=8, le=2048, multiple_of=2, description="side of a picture, pixels; a multiple of 32")
    guidance: float = Field(4.5, ge=0, le=30, description="guidance that the model is told, the same in training and use")
    max_tokens: int = Field(
        TOKENS, ge=8, le=TOKENS, description="tokens of a prompt that are read; a prompt's file in the cache takes 5 kB for each"
    )

    kind: ClassVar[FlowMapKind] = "single_time"
    adapter_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")  # of the pictures, and to the text
    pipeline = "SanaSprintPipeline"
    encoders = ("text_encoder", "tokenizer")

    def lengths(self, pipeline: Any, prompts: Sequence[str]) -> Sequence[int]:
        asked = "\n".join(_instruction(pipeline))
        before = len(pipeline.tokenizer.encode(asked)) - 2  # of it the first token and the last are read, whatever the prompt
        return [len(ids) - before for ids in pipeline.tokenizer([asked + text.lower().strip() for text in prompts]).input_ids]

    def read(self, pipeline: Any, prompts: Sequence[str], device: torch.device) -> Mapping[str, Tensor]:
        hidden, mask = pipeline.encode_prompt(
            list(prompts),
            device=device,
            max_sequence_length=self.max_tokens,
            complex_human_instruction=_instruction(pipeline),
        )
        return {"hidden": hidden, "mask": mask}

    def flow_map(
        self, network: nn.Module, config: Any, prompts: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None
    ) -> SanaSprintMap:
        told = self.guidance * config.guidance_embeds_scale
        return SanaSprintMap(network, prompts["hidden"], prompts["mask"], told, self.kind)

    def latent_shape(self, transformer: Any, vae: Any) -> tuple[int, ...]:
        cell = 2 ** (len(vae.config.encoder_block_out_channels) - 1) * transformer.config.patch_size
        if self.resolution % cell:
            raise ValueError(f"model.resolution = {self.resolution} is not a multiple of {cell}, the pixels of one token")
        side = self.resolution // cell * transformer.config.patch_size
        return (transformer.config.in_channels, side, side)


def _instruction(pipeline: Any) -> Sequence[str]:
    """What the pipeline asks its language model to do with every prompt, unless it is told otherwise."""
    return inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
