"""SANA as a velocity field and SANA-Sprint as a consistency map, from a folder or the hub.

The only place that knows of their times, guidance, latents and text encoder.
"""

import inspect
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.contracts import FlowMapKind
from workbench.models.guidance import TRAIN_NEGATIVE, Conditions, GuidedMap
from workbench.models.pipeline import PipelineModel
from workbench.models.sana_sizes import SANA, SPRINT

TOKENS = 300
"""Most tokens of a prompt that SANA was trained to read."""


class SanaMap(GuidedMap):
    """A SANA transformer with its prompts bound: the velocity v(x, t) of the linear path, on latents as they are.

    SANA-Sprint was distilled from it on TrigFlow's arc, x_a = sigma_d (cos a x_0 + sin a eps), where the jump to the data is
    cos a x_a - sin a sigma_d F. Its network is still asked and answers on the straight path, which is ours: with
    tan a = t / (1 - t) and N = sqrt(t^2 + (1 - t)^2),

        x = N x_a / sigma_d,    v = (N F - (1 - 2 t) x) / N^2,

    and in units of sigma_d that jump is x - t v. So what it answers is v, and G(x, t) = x - t v the map of the kind single_time.

    Args:
        timestep_scale: what the network counts from data to noise; its timestep is so many times our t.
        embedded_guidance: scale that it is told, in its own unit; None where it is told none.
    Source: SANA-Sprint (arXiv:2503.09641), section 3.1; sCM (arXiv:2410.11081).
    """

    def __init__(
        self,
        network: nn.Module,
        kind: FlowMapKind,
        prompts: Conditions,
        negative: Conditions | None = None,
        *,
        scale: float = 1.0,
        train_negative: bool = False,
        timestep_scale: float = 1.0,
        embedded_guidance: float | None = None,
    ) -> None:
        super().__init__(network, kind, prompts, negative, scale=scale, train_negative=train_negative)
        self.timestep_scale, self.embedded_guidance = timestep_scale, embedded_guidance

    def predict(self, x: Tensor, t: Tensor, prompts: Conditions) -> Tensor:
        hidden, scale = prompts["hidden"], self.embedded_guidance
        return self.network(
            hidden_states=x.to(hidden.dtype),
            timestep=self.timestep_scale * t,
            guidance=None if scale is None else hidden.new_full((len(x),), scale),
            encoder_hidden_states=hidden,
            encoder_attention_mask=prompts["mask"],
            return_dict=False,
        )[0].float()


class SanaFamily(PipelineModel):
    """What the checkpoints of SANA share: a language model that is asked to enlarge on prompts, and 32 pixels a token."""

    resolution: int = Field(1024, ge=8, le=2048, multiple_of=2, description="side of a picture, pixels; a multiple of 32")
    max_tokens: int = Field(
        TOKENS, ge=8, le=TOKENS, description="tokens of a prompt that are read; a prompt's file in the cache takes 5 kB for each"
    )

    adapter_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")  # of both attentions: pictures', and texts'
    encoders = ("text_encoder", "tokenizer")

    def lengths(self, pipeline: Any, prompts: Sequence[str]) -> Sequence[int]:
        asked = "\n".join(_instruction(pipeline))
        before = len(pipeline.tokenizer.encode(asked)) - 2  # of it the first token and the last are read, whatever the prompt
        return [len(ids) - before for ids in pipeline.tokenizer([asked + text.lower().strip() for text in prompts]).input_ids]

    def prompt_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        return {"hidden": (self.max_tokens, config.caption_channels), "mask": (self.max_tokens,)}

    def latent_shape(self, transformer: Any, vae: Any) -> tuple[int, ...]:
        shrinks = 2 ** (len(vae.config.encoder_block_out_channels) - 1)
        side = self.cells(shrinks, shrinks * transformer.config.patch_size)
        return (transformer.config.in_channels, side, side)

    def _read(
        self, pipeline: Any, prompts: Sequence[str], device: torch.device, instruction: Sequence[str] | None, **alone: bool
    ) -> dict[str, Tensor]:
        """What Gemma makes of prompts where this instruction goes before them; `alone` keeps a pipeline to the prompts."""
        hidden, mask, *_ = pipeline.encode_prompt(
            list(prompts), device=device, max_sequence_length=self.max_tokens, complex_human_instruction=instruction, **alone
        )
        return {"hidden": hidden, "mask": mask}


class SanaModel(SanaFamily):
    """SANA, a text-to-image velocity field with classifier-free guidance, as diffusers keeps it: 1.0 and 1.5."""

    name: Literal["sana"] = "sana"
    source: str = Field(
        "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers",
        description="folder of a SanaPipeline, or its id on the hub, fetched at first use",
    )
    guidance: float = Field(
        4.5, ge=0, le=30, description="guidance scale, the same in training and use; 1 and less ask the network once"
    )
    train_negative: bool = Field(False, description=TRAIN_NEGATIVE)

    kind: ClassVar[FlowMapKind] = "velocity"
    pipeline = "SanaPipeline"
    published = SANA

    @property
    def negative(self) -> str | None:
        return "" if self.guidance > 1 else None

    def read(self, pipeline: Any, prompts: Sequence[str], device: torch.device) -> Mapping[str, Tensor]:
        """The empty prompt, which guidance leads away from, has no instruction before it."""
        parts = [
            self._read(pipeline, list(texts), device, _instruction(pipeline) if full else None, do_classifier_free_guidance=False)
            for full, texts in groupby(prompts, bool)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def flow_map(
        self, network: nn.Module, config: Any, prompts: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None
    ) -> SanaMap:
        return SanaMap(
            network,
            self.kind,
            prompts,
            negative,
            scale=self.guidance,
            train_negative=self.train_negative,
            timestep_scale=1000.0 * config.timestep_scale,
        )


class SanaSprintModel(SanaFamily):
    """SANA-Sprint, a text-to-image consistency map of one to four steps, as diffusers keeps it."""

    name: Literal["sana_sprint"] = "sana_sprint"
    source: str = Field(
        "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        description="folder of a SanaSprintPipeline, or its id on the hub, fetched at first use",
    )
    guidance: float = Field(4.5, ge=0, le=30, description="guidance that the model is told, the same in training and use")

    kind: ClassVar[FlowMapKind] = "single_time"
    pipeline = "SanaSprintPipeline"
    published = SPRINT

    def read(self, pipeline: Any, prompts: Sequence[str], device: torch.device) -> Mapping[str, Tensor]:
        return self._read(pipeline, prompts, device, _instruction(pipeline))

    def flow_map(
        self, network: nn.Module, config: Any, prompts: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None
    ) -> SanaMap:
        return SanaMap(network, self.kind, prompts, embedded_guidance=self.guidance * config.guidance_embeds_scale)


def _instruction(pipeline: Any) -> Sequence[str]:
    """What the pipeline asks its language model to do with every prompt, unless it is told otherwise."""
    return inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
