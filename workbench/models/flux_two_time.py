"""The network of FLUX as a two-time map: a second timestep embedder says where a jump ends.

Two published ways of telling it, which a checkpoint's settings name in AnyFlow's words:

- `deltatime_type = "t-r"` without `gate_value`: the second embedder reads the interval t - s, and what it says is added to what
  the first says of t (T2I-Distill, arXiv:2512.13006).
- `deltatime_type = "r"` with `gate_value = g`: it reads the target s, and the two are mixed, (1 - g) of the first and g of the
  second (AnyFlow, arXiv:2605.13724).

With a time alone the network says the velocity there, so that it takes FLUX's place in any pipeline. This module loads
diffusers: import it inside functions, or before `FluxPipeline.from_pretrained` of a folder that names it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from diffusers.models.model_loading_utils import load_state_dict
from torch import Tensor, nn

from workbench.first_line import first_line

SECOND = "time_text_embed.delta_embedder."
"""What the names of the second embedder's weights begin with; AnyFlow's name."""

FIRST = "time_text_embed.timestep_embedder."

_FREQUENCIES = 256  # numbers that stand for a time


class TwoTimeEmbedding(nn.Module):
    """What FLUX's blocks are told of times, guidance and text: [N, width].

    Args:
        gate: share of the second embedder in the mixture; None adds it instead.
        time_scale, second_scale, guidance_scale: what a 1 is to the sinusoids of each; FLUX's own is 1000.
    """

    def __init__(
        self,
        width: int,
        pooled: int,
        *,
        guided: bool,
        gate: float | None,
        time_scale: float,
        second_scale: float,
        guidance_scale: float,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.time_proj = _sinusoids(time_scale)
        self.second_proj = _sinusoids(second_scale)
        self.guidance_proj = _sinusoids(guidance_scale)
        self.timestep_embedder = TimestepEmbedding(_FREQUENCIES, width)
        self.delta_embedder = TimestepEmbedding(_FREQUENCIES, width)
        self.guidance_embedder = TimestepEmbedding(_FREQUENCIES, width) if guided else None
        self.text_embedder = PixArtAlphaTextProjection(pooled, width, act_fn="silu")

    def forward(self, times: Tensor, *rest: Tensor) -> Tensor:
        """`times` [N, 2], what the two embedders read, in thousandths; `rest`: guidance [N] in thousandths if any, and text."""
        *guidance, pooled = rest
        first, second = times.unbind(-1)
        told = self.timestep_embedder(self.time_proj(first).to(pooled.dtype))
        with torch.autocast(pooled.device.type, enabled=False):  # so that it says nothing of an interval of 0, not nearly so
            read = self.second_proj(second).to(self.delta_embedder.linear_1.weight.dtype)
            beside = self.delta_embedder(read).to(pooled.dtype)
        told = told + beside if self.gate is None else (1 - self.gate) * told + self.gate * beside
        if self.guidance_embedder is not None and guidance:
            told = told + self.guidance_embedder(self.guidance_proj(guidance[0]).to(pooled.dtype))
        return told + self.text_embedder(pooled)


class FluxTwoTimeTransformer2DModel(FluxTransformer2DModel):
    """FLUX's transformer with a second timestep embedder; u(x, t, s) with a target, the velocity u(x, t, t) without.

    The second embedder stays in float32 whatever the rest is in: it is small, and trained as it is.
    """

    _keep_in_fp32_modules = ["delta_embedder"]  # noqa: RUF012 - diffusers reads it as a list

    @register_to_config
    def __init__(
        self,
        patch_size: int = 1,
        in_channels: int = 64,
        out_channels: int | None = None,
        num_layers: int = 19,
        num_single_layers: int = 38,
        attention_head_dim: int = 128,
        num_attention_heads: int = 24,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 768,
        guidance_embeds: bool = False,
        axes_dims_rope: tuple[int, int, int] = (16, 56, 56),
        deltatime_type: str = "t-r",
        gate_value: float | None = None,
        time_scale: float = 1000.0,
        second_scale: float = 1000.0,
        guidance_scale: float = 1000.0,
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            pooled_projection_dim=pooled_projection_dim,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=axes_dims_rope,
        )
        if deltatime_type not in ("r", "t-r"):
            raise ValueError(f"deltatime_type is 'r' (the target) or 't-r' (the interval), got {deltatime_type!r}")
        self.reads_target = deltatime_type == "r"
        self.time_text_embed = TwoTimeEmbedding(
            self.inner_dim,
            pooled_projection_dim,
            guided=guidance_embeds,
            gate=gate_value,
            time_scale=time_scale,
            second_scale=second_scale,
            guidance_scale=guidance_scale,
        )

    def forward(
        self, hidden_states: Tensor, *, timestep: Tensor, target_timestep: Tensor | None = None, **rest: Any
    ) -> Any:  # a Transformer2DModelOutput, or a tuple with return_dict = False
        """As FLUX's, with [N] times as shares of 1000 steps.

        Args:
            target_timestep: where the jump from `timestep` ends; the same time where it is None.
        """
        target = timestep if target_timestep is None else target_timestep
        second = target if self.reads_target else timestep - target  # before anything is rounded to the network's numbers
        return super().forward(hidden_states=hidden_states, timestep=torch.stack([timestep, second], -1), **rest)


def two_time_settings(config: Mapping[str, Any], *, interval: bool, gate: float = 0.25, scale: float = 1.0) -> dict[str, Any]:
    """Settings of FLUX's transformer with a second embedder: of the interval, or of the target with its share in the mixture.

    The derivative of a MeanFlow target runs through the interval and not through the target. A thousandfold interval would
    let it explode as the embedder learns, which is why T2I-Distill tells it as it is (arXiv:2512.13006, section 4.2.1).

    Args:
        scale: what an interval of 1 is to the sinusoids.
    """
    added = {"deltatime_type": "t-r", "gate_value": None, "second_scale": scale}
    mixed = {"deltatime_type": "r", "gate_value": gate, "second_scale": 1000.0}
    return {**config, **(added if interval else mixed), "_class_name": FluxTwoTimeTransformer2DModel.__name__}


def second_embedder(tensors: Mapping[str, Tensor], *, interval: bool) -> dict[str, Tensor]:
    """Weights of a second embedder with which u(x, t, t) is the velocity of the FLUX that the first is from; float32.

    A copy of the first. Of an interval its output is added, and what it would say of an interval of 0 is taken off its last
    bias, so that there it says nothing.

    Args:
        tensors: the first embedder's, under their names in the transformer.
    """
    copied = {name.removeprefix(FIRST): value.float().clone() for name, value in tensors.items() if name.startswith(FIRST)}
    if interval:
        width, frequencies = copied["linear_1.weight"].shape
        embedder = TimestepEmbedding(frequencies, width)
        embedder.load_state_dict(copied)
        with torch.no_grad():
            copied["linear_2.bias"] -= embedder(_sinusoids(1.0)(torch.zeros(1)))[0]
    return {SECOND + name: value for name, value in copied.items()}


def published_network(config: Mapping[str, Any], file: Path) -> FluxTwoTimeTransformer2DModel:
    """T2I-Distill's weights as they were published: told t, t - s and guidance as they are, not in thousandths.

    Args:
        config: settings of the transformer that they are a distillate of.
        file: .pt or safetensors; nothing in it is run.
    Raises: ValueError: if they do not fit.
    """
    try:
        found = load_state_dict(str(file))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not readable as weights: {first_line(error)}") from error
    found = found.get("module", found)
    named = {name.replace("timestep_embedder2.", SECOND, 1): value for name, value in found.items()}
    settings = two_time_settings(config, interval=True) | {"time_scale": 1.0, "guidance_scale": 1.0}
    with torch.device("meta"):
        network = FluxTwoTimeTransformer2DModel.from_config(settings)
    expected = network.state_dict()
    for name in sorted(expected.keys() ^ named.keys()):
        whose = "the checkpoint" if name in expected else "the file"
        raise ValueError(f"{file} does not fit the checkpoint: only {whose} has {name!r}")
    for name, value in named.items():
        if value.shape != expected[name].shape:
            shapes = f"{list(value.shape)}, expected {list(expected[name].shape)}"
            raise ValueError(f"{file} does not fit the checkpoint: {name!r} is {shapes}")
    network.load_state_dict(named, assign=True)
    return network


def _sinusoids(scale: float) -> Timesteps:
    """The sinusoids of a time that comes in thousandths."""
    return Timesteps(_FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0, scale=scale / 1000.0)  # type: ignore[arg-type]
