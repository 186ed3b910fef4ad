"""FLUX.1 checkpoints (dev, schnell, Krea, lite and their like) as velocity fields, from a folder or the hub.

The only place that knows of FLUX's packed latents, timesteps, guidance and text encoders.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.contracts import FlowMapKind, Model
from workbench.models.diffusers_folder import cached_folder, fingerprint, loading, pipeline_folder, quietly
from workbench.models.embedded import NetworkFlowMap
from workbench.prompt_cache import PromptCache

PIPELINE = "FluxPipeline"
ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
PARTS = ("transformer", "vae", *ENCODERS)

TOKENS = 512
"""Most tokens of a prompt that FLUX was trained to read."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_PROMPTS = 16  # that the encoders read at a time
_CELLS = 2**15  # of latents that are decoded at a time: 8 pictures of 512 pixels


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
        time = torch.as_tensor(t, dtype=torch.float32, device=x.device).reshape(-1).expand(n)
        guidance = None if self.guidance is None else time.new_full((n,), self.guidance)
        predicted = self.network(
            hidden_states=pack(x).to(self.hidden.dtype),
            timestep=time,
            guidance=guidance,
            encoder_hidden_states=self.hidden.expand(n, -1, -1),
            pooled_projections=self.pooled.expand(n, -1),
            txt_ids=self.hidden.new_zeros(self.hidden.shape[1], 3),
            img_ids=_places(rows // 2, columns // 2).to(self.hidden),
            return_dict=False,
        )[0]
        return unpack(predicted.float(), rows, columns)


def _places(rows: int, columns: int) -> Tensor:
    """Where each token is, [rows * columns, 3]: nothing, its row, its column."""
    place = torch.zeros(rows, columns, 3)
    place[..., 1] = torch.arange(rows)[:, None]
    place[..., 2] = torch.arange(columns)
    return place.flatten(0, 1)


class Encoders:
    """FLUX's two text encoders, which are in memory only while prompts are read that no run has had before."""

    def __init__(self, folder: Path, dtype: Literal["bf16", "fp16", "fp32"], tokens: int, device: torch.device) -> None:
        self.folder, self.dtype, self.tokens, self.device = folder, dtype, tokens, device
        self.cache = PromptCache(f"flux {fingerprint(folder, ENCODERS)} {dtype} {tokens}", str(device))

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> None:
        """See to it that the embeddings of these prompts are known.

        Raises: ValueError: if a prompt is longer than the encoder reads, or the encoders cannot be loaded.
        """
        missing = self.cache.missing(prompts)
        if not missing:
            return
        with loading(self.folder):
            from diffusers import FluxPipeline

            pipeline: Any = FluxPipeline.from_pretrained(
                self.folder, transformer=None, vae=None, dtype=_DTYPES[self.dtype], use_safetensors=True
            )
        with quietly():  # CLIP reads only the first 77 tokens, as it was when FLUX was trained
            self._check(pipeline, missing)
            pipeline.to(self.device)
            for start in range(0, len(missing), _PROMPTS):
                portion = missing[start : start + _PROMPTS]
                hidden, pooled, _ = pipeline.encode_prompt(portion, max_sequence_length=self.tokens, device=self.device)
                for prompt, one, whole in zip(portion, hidden, pooled, strict=True):
                    self.cache.write(prompt, {"hidden": one, "pooled": whole})
        del pipeline
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _check(self, pipeline: Any, prompts: Sequence[str]) -> None:
        for prompt, ids in zip(prompts, pipeline.tokenizer_2(list(prompts)).input_ids, strict=True):
            if len(ids) > self.tokens:
                remedy = "shorten it" if self.tokens == TOKENS else f"shorten it, or raise model.max_tokens to at most {TOKENS}"
                raise ValueError(
                    f"prompt {prompt[:80]!r} has {len(ids)} tokens, and model.max_tokens = {self.tokens} are read; {remedy}"
                )


class Prompts:
    """Prompts whose embeddings are known; they come into memory when a map is bound to them, row by row."""

    def __init__(self, texts: Sequence[str], encoders: Encoders) -> None:
        self.texts, self.encoders = tuple(texts), encoders

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Tensor | slice) -> "Prompts":
        chosen = torch.arange(len(self.texts))[rows.cpu() if isinstance(rows, Tensor) else rows]
        return Prompts([self.texts[row] for row in chosen.tolist()], self.encoders)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The T5 embeddings [N, tokens, width] and the CLIP embeddings [N, width]."""
        found = [self.encoders.cache.read(text) for text in self.texts]
        return torch.stack([each["hidden"] for each in found]), torch.stack([each["pooled"] for each in found])


class FluxGenerator:
    """A FLUX transformer, its autoencoder and what its text encoders said, in the coordinates of `workbench.flow`."""

    kind: FlowMapKind = "velocity"

    def __init__(
        self, transformer: Any, vae: Any, encoders: Encoders, latent_shape: tuple[int, ...], guidance: float, device: torch.device
    ) -> None:
        self.network: nn.Module = transformer.to(device)
        self.vae = vae.to(device).requires_grad_(False).eval()
        self.encoders = encoders
        self.latent_shape = latent_shape
        self.guidance = guidance if transformer.config.guidance_embeds else None
        self.device = device

    def embed(self, prompts: Sequence[str]) -> Prompts:
        self.encoders.read(prompts)
        return Prompts(prompts, self.encoders)

    def bind(self, embeddings: Prompts) -> FluxMap:
        return FluxMap(self.network, *embeddings.tensors(), self.guidance, self.kind)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        pixels = (2 * images - 1).to(self.device, self.vae.dtype)
        latents = self.vae.encode(pixels).latent_dist.mean.float()
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        latents = (latents.float() / self.vae.config.scaling_factor + self.vae.config.shift_factor).to(self.vae.dtype)
        portions = latents.split(max(1, _CELLS // latents[0, 0].numel()))
        pixels = torch.cat([self.vae.decode(portion, return_dict=False)[0].float() for portion in portions])
        return (pixels / 2 + 0.5).clamp(0, 1)


class FluxModel(Model):
    """FLUX.1, a text-to-image velocity field, as diffusers keeps it: dev, schnell, Krea, lite, or any of their shape."""

    name: Literal["flux"] = "flux"
    source: str = Field(
        "black-forest-labs/FLUX.1-dev", description="folder of a FluxPipeline, or its id on the hub, fetched at first use"
    )
    resolution: int = Field(512, ge=8, le=2048, multiple_of=2, description="side of a picture, pixels; a multiple of 16")
    guidance: float = Field(
        3.5, ge=0, le=30, description="guidance that a distilled model is told, the same in training and use; schnell has none"
    )
    max_tokens: int = Field(
        TOKENS, ge=8, le=TOKENS, description="tokens of a prompt that are read; a prompt's file in the cache takes 8 kB for each"
    )
    dtype: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="numbers of the base; adapters are float32 in any case")
    gradient_checkpointing: bool = Field(
        True, description="work activations out again in the backward pass: a third slower, a fraction of the memory"
    )
    vae_slicing: bool = Field(False, description="decode pictures one at a time, for less memory")
    offline: bool = Field(False, description="take only what is on this machine, never ask the hub")

    kind: ClassVar[FlowMapKind] = "velocity"
    adapter_targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),  # of the pictures' attention
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of the texts'
    )
    component: ClassVar[str] = "transformer"

    def weight_files(self) -> tuple[Path, ...]:
        """What is on this machine of the weights that it loads."""
        folder = cached_folder(self.source)
        return () if folder is None else tuple(sorted(path for part in PARTS for path in (folder / part).glob("*.safetensors")))

    def load(self, device: torch.device) -> FluxGenerator:
        """Raises:
        ValueError: if the model is missing, gated, damaged, no FluxPipeline, or cannot draw pictures of this size.
        ModuleNotFoundError: if diffusers is not installed, saying how to install it.
        """
        try:
            import transformers  # noqa: F401  # diffusers comes without it, and without the text encoders then
            from diffusers import AutoencoderKL, FluxTransformer2DModel
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the model 'flux' needs {error.name}, which is not installed: pip install flow-map-workbench[models]",
                name=error.name,
            ) from error
        folder = pipeline_folder(self.source, PIPELINE, PARTS, offline=self.offline)
        settings = {"dtype": _DTYPES[self.dtype], "use_safetensors": True}
        with loading(folder):
            transformer = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer", **settings)
            vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **settings)
        shrinks = 2 ** (len(vae.config.block_out_channels) - 1)
        if self.resolution % (2 * shrinks):
            raise ValueError(f"model.resolution = {self.resolution} is not a multiple of {2 * shrinks}, the pixels of one token")
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        if self.vae_slicing:
            vae.enable_slicing()
        side = self.resolution // shrinks
        shape = (transformer.config.in_channels // 4, side, side)
        return FluxGenerator(
            transformer, vae, Encoders(folder, self.dtype, self.max_tokens, device), shape, self.guidance, device
        )

