"""FLUX.2 Klein (4B, 9B and their bases) as velocity fields, from a folder or the hub.

The only place that knows of its patched and batch-normalised latents, its four-dimensional places, its chat-templated prompts and
the shift of its time grid.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from workbench.contracts import FlowMapKind
from workbench.models.diffusers_folder import read_head
from workbench.models.flux2_sizes import KLEIN_4B
from workbench.models.guidance import TRAIN_NEGATIVE, Conditions, GuidedMap
from workbench.models.pipeline import PipelineModel

TOKENS = 512
"""Most tokens of a prompt that it was trained to read, those of the chat around it among them."""

TOKEN_PIXELS = 16
"""Side of what one token shows in the published models: two by two cells of eight pixels."""


def klein_shift(resolution: int, steps: int) -> float:
    """The shift of a uniform grid of this many steps that the pipeline itself takes, for `workbench.flow.time_grid`.

    An empirical law of picture size and steps: from 200 steps on it grows with the size alone, and fewer steps spend more of
    them near noise.

    Args:
        resolution: side of a picture, pixels.
    Source: `compute_empirical_mu` of Flux2KleinPipeline in diffusers; the shift is exp(mu).
    """
    tokens = (resolution // TOKEN_PIXELS) ** 2
    many = 0.00016927 * tokens + 0.45666666  # mu at 200 steps
    if tokens > 4300:
        return math.exp(many)
    ten = 8.73809524e-05 * tokens + 1.89833333  # mu at 10 steps
    return math.exp(many + (many - ten) / 190.0 * (steps - 200))


class Flux2Map(GuidedMap):
    """A FLUX.2 transformer with its prompts bound.

    It predicts the velocity of the linear path, noise minus data; its sigma is our time, given as a share of 1000 steps, which it
    multiplies by itself. A token is one cell of the latents.
    """

    def predict(self, x: Tensor, t: Tensor, prompts: Conditions) -> Tensor:
        hidden, (rows, columns) = prompts["hidden"], x.shape[-2:]
        predicted = self.network(
            hidden_states=x.flatten(2).transpose(1, 2).to(hidden.dtype),
            timestep=t,
            guidance=None,
            encoder_hidden_states=hidden,
            txt_ids=_position_ids(1, 1, hidden.shape[1], x.device),
            img_ids=_position_ids(rows, columns, 1, x.device),
            return_dict=False,
        )[0]
        return predicted.float().transpose(1, 2).unflatten(2, (rows, columns))


def _position_ids(rows: int, columns: int, length: int, device: torch.device) -> Tensor:
    """Where each token is, [rows * columns * length, 4]: its picture, its row, its column, its place in the text."""
    sizes = (1, rows, columns, length)
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))


class Flux2KleinModel(PipelineModel):
    """FLUX.2 Klein, a text-to-image velocity field, as diffusers keeps it: distilled to a few steps, or its base, guided."""

    name: Literal["flux2_klein"] = "flux2_klein"
    source: str = Field(
        "black-forest-labs/FLUX.2-klein-4B",
        description="folder of a Flux2KleinPipeline, or its id on the hub, fetched at first use",
    )
    guidance: float = Field(
        1.0,
        ge=0,
        le=30,
        description="guidance scale, the same in training and use: 1 for distilled checkpoints, which take none; a base about 4",
    )
    train_negative: bool = Field(False, description=TRAIN_NEGATIVE)
    max_tokens: int = Field(
        TOKENS,
        ge=32,
        le=TOKENS,
        description="tokens of a prompt that are read, the chat around it among them; a prompt's file in the cache takes "
        "15 kB for each (4B)",
    )

    kind: ClassVar[FlowMapKind] = "velocity"
    adapter_targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),  # of the pictures' attention
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of the texts'
        "to_qkv_mlp_proj",  # of the single blocks, which have attention and what follows it in one layer
    )
    pipeline = "Flux2KleinPipeline"
    published = KLEIN_4B
    encoders = ("text_encoder", "tokenizer")
    asks = {"output_hidden_states": True, "use_cache": False}  # noqa: RUF012  # three of its layers are what a prompt becomes

    @property
    def negative(self) -> str | None:
        return "" if self.guidance > 1 else None  # the pipeline knows no other

    def check(self, folder: Path) -> None:
        if self.guidance > 1 and read_head(folder).get("is_distilled"):
            raise ValueError(
                f"model.guidance = {self.guidance:g}: {folder} holds a distilled checkpoint, which takes no guidance; use 1, "
                "or the base checkpoint it was distilled from"
            )

    def lengths(self, pipeline: Any, prompts: Sequence[str]) -> Sequence[int]:
        chats = [
            pipeline.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            for prompt in prompts
        ]
        return [len(ids) for ids in pipeline.tokenizer(chats).input_ids]

    def read(self, pipeline: Any, prompts: Sequence[str], device: torch.device) -> Mapping[str, Tensor]:
        hidden, _ = pipeline.encode_prompt(list(prompts), device=device, max_sequence_length=self.max_tokens)
        return {"hidden": hidden}

    def flow_map(
        self, network: nn.Module, config: Any, prompts: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None
    ) -> Flux2Map:
        return Flux2Map(network, self.kind, prompts, negative, scale=self.guidance, train_negative=self.train_negative)

    def latent_shape(self, transformer: Any, vae: Any) -> tuple[int, ...]:
        token = 2 * 2 ** (len(vae.config.block_out_channels) - 1)
        side = self.cells(token, token)
        return (transformer.config.in_channels, side, side)

    def normalise(self, latents: Tensor, vae: Any) -> Tensor:
        shift, scale = _statistics(vae)
        return (functional.pixel_unshuffle(latents, 2) - shift) / scale

    def denormalise(self, latents: Tensor, vae: Any) -> Tensor:
        shift, scale = _statistics(vae)
        return functional.pixel_shuffle(latents * scale + shift, 2)


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of its patched latents, [1, C, 1, 1] each: a batch norm's, which is kept and never called."""
    mean, variance = (each.float()[None, :, None, None] for each in (vae.bn.running_mean, vae.bn.running_var))
    return mean, torch.sqrt(variance + vae.config.batch_norm_eps)
