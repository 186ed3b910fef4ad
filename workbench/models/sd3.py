"""Stable Diffusion 3 and 3.5 (medium, large, turbo) as velocity fields with classifier-free guidance, from a folder or the hub.

The only place that knows of their timesteps, their three text encoders and what stands for the one that a checkpoint may lack.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from workbench.contracts import FlowMapKind
from workbench.models.guidance import TRAIN_NEGATIVE, Conditions, GuidedMap
from workbench.models.pipeline import PipelineModel
from workbench.models.sd3_sizes import MEDIUM

TOKENS = 512
"""Most tokens of a prompt that T5 was given in training; the two CLIP encoders read 77 of them."""


class SD3Map(GuidedMap):
    """A Stable Diffusion 3 transformer with its prompts bound.

    It predicts the velocity of the linear path, noise minus data, on latents as they are; its timestep is 1000 times our t.
    """

    def predict(self, x: Tensor, t: Tensor, prompts: Conditions) -> Tensor:
        return self.network(
            hidden_states=x.to(prompts["hidden"].dtype),
            timestep=1000.0 * t,
            encoder_hidden_states=prompts["hidden"],
            pooled_projections=prompts["pooled"],
            return_dict=False,
        )[0].float()


class SD3Model(PipelineModel):
    """Stable Diffusion 3 or 3.5, a text-to-image velocity field, as diffusers keeps it: medium, large or turbo."""

    name: Literal["sd3"] = "sd3"
    source: str = Field(
        "stabilityai/stable-diffusion-3.5-medium",
        description="folder of a StableDiffusion3Pipeline, or its id on the hub, fetched at first use",
    )
    guidance: float = Field(
        4.5, ge=0, le=30, description="guidance scale, the same in training and use; 1 and less ask the network once (turbo)"
    )
    negative_prompt: str = Field("", description="what guidance leads away from; empty for pictures of anything")
    train_negative: bool = Field(False, description=f"{TRAIN_NEGATIVE}; Flow-GRPO does without")
    max_tokens: int = Field(
        256, ge=8, le=TOKENS, description="tokens of a prompt that T5 reads; without T5 CLIP's 77 are the limit"
    )

    kind: ClassVar[FlowMapKind] = "velocity"
    adapter_targets: ClassVar[tuple[str, ...]] = (  # Flow-GRPO's, which leave the second attention of 3.5 medium as it is
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),  # of the pictures
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),  # of the texts
    )
    pipeline = "StableDiffusion3Pipeline"
    published = MEDIUM
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    optional = ("text_encoder_3", "tokenizer_3")

    @property
    def negative(self) -> str | None:
        return self.negative_prompt if self.guidance > 1 else None

    def lengths(self, pipeline: Any, prompts: Sequence[str]) -> Sequence[int]:
        if pipeline.text_encoder_3 is not None:
            return [len(ids) for ids in pipeline.tokenizer_3(list(prompts)).input_ids]
        counts = [len(ids) for ids in pipeline.tokenizer(list(prompts)).input_ids]
        most = pipeline.tokenizer.model_max_length
        for prompt, count in zip(prompts, counts, strict=True):
            if count > most:
                raise ValueError(
                    f"prompt {prompt[:80]!r} has {count} tokens, and CLIP reads {most}: these weights come without T5, which "
                    "reads more; shorten it"
                )
        return counts

    def read(self, pipeline: Any, prompts: Sequence[str], device: torch.device) -> Mapping[str, Tensor]:
        texts = list(prompts)
        if pipeline.text_encoder_3 is not None:
            hidden, _, pooled, _ = pipeline.encode_prompt(
                texts, texts, texts, device=device, do_classifier_free_guidance=False, max_sequence_length=self.max_tokens
            )
            return {"hidden": hidden, "pooled": pooled}
        # What T5 would have said is zeros, as wide as the transformer wants them: the map adds them, and the cache stays small.
        read = [pipeline._get_clip_prompt_embeds(texts, device=device, clip_model_index=number) for number in (0, 1)]
        hidden, pooled = (torch.cat(parts, dim=-1) for parts in zip(*read, strict=True))
        return {"hidden": hidden, "pooled": pooled}

    def prompt_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        return super().prompt_shapes(config) | {"hidden": (77 + self.max_tokens, config.joint_attention_dim)}  # CLIP first

    def flow_map(
        self, network: nn.Module, config: Any, prompts: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None
    ) -> SD3Map:
        positive, negative = (self._padded(each, config.joint_attention_dim) for each in (prompts, negative))
        assert positive is not None
        return SD3Map(network, self.kind, positive, negative, scale=self.guidance, train_negative=self.train_negative)

    def latent_shape(self, transformer: Any, vae: Any) -> tuple[int, ...]:
        shrinks, config = 2 ** (len(vae.config.block_out_channels) - 1), transformer.config
        token, largest = shrinks * config.patch_size, shrinks * config.patch_size * config.pos_embed_max_size
        side = self.cells(shrinks, token)
        if self.resolution > largest:
            raise ValueError(
                f"model.resolution = {self.resolution} is above {largest}, the most pixels that these weights know of"
            )
        return (config.in_channels, side, side)

    def _padded(self, read: Mapping[str, Tensor] | None, width: int) -> Mapping[str, Tensor] | None:
        """With zeros in the place of T5's tokens, where it is missing: then CLIP's are narrower than the transformer's."""
        if read is None or read["hidden"].shape[-1] == width:
            return read
        hidden = read["hidden"]
        return {**read, "hidden": functional.pad(hidden, (0, width - hidden.shape[-1], 0, self.max_tokens))}
