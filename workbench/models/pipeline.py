"""What generators share that diffusers keeps as a pipeline: loading, prompts read once, batched decoding.

A family of pipelines is one subclass of `PipelineModel`: how its encoders read a prompt, how its network is asked for a
velocity, and what its latents look like. It alone knows of the family's timesteps, packing and guidance.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.contracts import FlowMap, Model
from workbench.models.diffusers_folder import cached_folder, fingerprint, loading, pipeline_folder, quietly, read_head
from workbench.models.offload import stream_linears
from workbench.models.quantization import check_library, quantize
from workbench.models.sharding import placed
from workbench.models.transformers_folder import expect_libraries
from workbench.prompt_cache import PromptCache

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

PROMPTS_AT_ONCE = 16
"""Most prompts that the encoders read at a time."""
_WORKING = 1.5  # times their weights is what encoders need while they read
_PIXELS = 8 * 512 * 512  # that are decoded at a time


class PipelineModel(Model):
    """A pipeline of diffusers, in a folder or on the hub; a subclass for each family."""

    name: str = ""  # every one names itself
    source: str = Field("", description="folder of a pipeline, or its id on the hub, fetched at first use")
    resolution: int = Field(512, ge=8, le=2048, multiple_of=2, description="side of a picture, pixels; a multiple of 16")
    guidance: float = Field(1.0, ge=0, le=30, description="guidance scale, the same in training and use")
    max_tokens: int = Field(512, ge=8, le=512, description="tokens of a prompt that are read")
    dtype: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="numbers of the base; adapters are float32 in any case")
    gradient_checkpointing: bool = Field(
        True, description="work activations out again in the backward pass: a third slower, a fraction of the memory"
    )
    vae_slicing: bool = Field(False, description="decode pictures one at a time, for less memory")
    offload: Literal["no", "parts", "linears"] = Field(
        "no",
        description="what waits in main memory. parts: the autoencoder while nothing is decoded, the network while prompts are "
        "read; linears: also the weights of linear layers, copied in at every use, for a device that is too small",
    )
    quantize: Literal["no", "int8", "nf4"] = Field(
        "no", description="weights of the network's blocks in 8 or 4 bits, a half or a quarter of the memory; for LoRA"
    )
    offline: bool = Field(False, description="take only what is on this machine, never ask the hub")

    component: ClassVar[str] = "transformer"
    pipeline: ClassVar[str]  # class of diffusers that a folder has to hold
    encoders: ClassVar[tuple[str, ...]]  # the parts that read prompts
    optional: ClassVar[tuple[str, ...]] = ()  # those of them that a pipeline may say it does without
    asks: ClassVar[Mapping[str, bool]] = {}  # how the pipeline asks them, beside the tokens: what they keep is memory
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # settings of the networks of the default `source`, by part

    @property
    def negative(self) -> str | None:
        """The prompt that classifier-free guidance leads away from; None where a map needs none."""
        return None

    @abstractmethod
    def lengths(self, pipeline: Any, prompts: Sequence[str]) -> Sequence[int]:
        """Tokens of each prompt, as the encoder counts them that reads furthest."""

    @abstractmethod
    def read(self, pipeline: Any, prompts: Sequence[str], device: torch.device) -> Mapping[str, Tensor]:
        """What the encoders make of prompts, by name; each [N, ...], as long for every prompt."""

    @abstractmethod
    def flow_map(
        self, network: nn.Module, config: Any, prompts: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None
    ) -> FlowMap:
        """The map conditioned on what `read` gave.

        Args:
            network: the transformer, perhaps with adapters on it.
            config: the transformer's own settings.
            prompts, negative: rows first; one row stands for all.
        """

    @abstractmethod
    def latent_shape(self, transformer: Any, vae: Any) -> tuple[int, ...]:
        """Of one picture, without the batch. Raises: ValueError: if `resolution` does not fit."""

    def cells(self, cell: int, token: int) -> int:
        """Of its latents along a side, where one stands for `cell` pixels. Raises: ValueError: if they are no whole tokens."""
        if self.resolution % token:
            raise ValueError(f"model.resolution = {self.resolution} is not a multiple of {token}, the pixels of one token")
        return self.resolution // cell

    def check(self, folder: Path) -> None:
        """Raise ValueError, before anything is loaded, where what a folder says of itself does not fit the settings."""

    def normalise(self, latents: Tensor, vae: Any) -> Tensor:
        """The autoencoder's numbers -> latents of about unit variance."""
        return (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor

    def denormalise(self, latents: Tensor, vae: Any) -> Tensor:
        """Inverse of `normalise`."""
        return latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)

    def load_transformer(self, folder: Path, settings: Mapping[str, Any]) -> Any:
        """The network that is trained."""
        return diffusers_class(folder, "transformer").from_pretrained(folder, subfolder="transformer", **settings)

    def made(self, settings: Mapping[str, Any]) -> Any:
        """The network that `load_transformer` would load, as its settings describe it, with fresh weights."""
        import diffusers

        return getattr(diffusers, settings["_class_name"]).from_config(settings)

    def prompt_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of what `read` gives of one prompt, by name, as far as the transformer's settings say."""
        shapes: dict[str, tuple[int, ...]] = {"hidden": (self.max_tokens, config.joint_attention_dim)}
        if "pooled_projection_dim" in config:
            shapes["pooled"] = (config.pooled_projection_dim,)
        return shapes

    @property
    def parts(self) -> tuple[str, ...]:
        """The subfolders that are needed."""
        return ("transformer", "vae", *self.encoders)

    def weight_files(self) -> tuple[Path, ...]:
        """What is on this machine of the weights that it loads."""
        if (folder := cached_folder(self.source)) is None:
            return ()
        return tuple(sorted(path for part in self.parts for path in (folder / part).glob("*.safetensors")))

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """What its encoders have to read so that a map can be bound to these prompts."""
        return [*prompts, *([] if self.negative is None else [self.negative])]

    def found(self) -> Path:
        """The folder that it is in, fetched if need be and looked at; nothing is loaded.

        Raises:
        ValueError: if the model is missing, gated, or another pipeline.
        ModuleNotFoundError: if diffusers is not installed, saying how to install it.
        """
        expect_libraries(f"the model {self.name!r}")
        check_library(self.quantize)
        folder = pipeline_folder(self.source, self.pipeline, self.parts, self.optional, offline=self.offline)
        self.check(folder)
        return folder

    def read_ahead(self, prompts: Sequence[str], device: torch.device) -> None:
        if prompts:
            Encoders(self, self.found(), device).prepare(self.texts(prompts))

    def load(self, device: torch.device) -> "PipelineGenerator":
        """Raises:
        ValueError: if the model is missing, gated, damaged, another pipeline, or cannot draw pictures of this size.
        ModuleNotFoundError: if diffusers is not installed, saying how to install it.
        """
        folder = self.found()
        settings = {"dtype": DTYPES[self.dtype], "use_safetensors": True}
        with loading(folder):
            transformer = self.load_transformer(folder, settings)
            vae = diffusers_class(folder, "vae").from_pretrained(folder, subfolder="vae", **settings)
        if self.quantize != "no":
            quantize(transformer, self.quantize, DTYPES[self.dtype])
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        if self.vae_slicing:
            vae.enable_slicing()
        return self.generator(folder, transformer, vae, device)

    def generator(self, folder: Path, transformer: Any, vae: Any, device: torch.device) -> "PipelineGenerator":
        """Over networks that are at hand."""
        return PipelineGenerator(self, transformer, vae, Encoders(self, folder, device), device)


class PipelineGenerator:
    """A pipeline's transformer, its autoencoder and what its text encoders said, in the coordinates of `workbench.flow`."""

    def __init__(self, model: PipelineModel, transformer: Any, vae: Any, encoders: "Encoders", device: torch.device) -> None:
        self.model, self.encoders, self.device = model, encoders, device
        self.kind = model.kind
        self.latent_shape = model.latent_shape(transformer, vae)
        self.config = transformer.config
        if model.offload == "linears":
            stream_linears(transformer, device)
        self.network: nn.Module = placed(transformer, device)
        self.vae = vae.to(device if model.offload == "no" else "cpu").requires_grad_(False).eval()

    def embed(self, prompts: Sequence[str]) -> "Prompts":
        """Read at most once per prompt and machine; where memory is short, the network makes room for the encoders meanwhile.

        Raises: ValueError: if a prompt is longer than the encoder reads.
        """
        texts = self.model.texts(prompts)
        away = bool(self.encoders.missing(texts)) and (self.model.offload != "no" or self.encoders.cramped())
        try:
            if away:
                self.network.to("cpu")  # the encoders are as large as it is
            self.encoders.prepare(texts)
        finally:
            if away:
                self.network.to(self.device)
        return Prompts(prompts, self.encoders)

    def bind(self, embeddings: "Prompts") -> FlowMap:
        negative = self.model.negative
        away = None if negative is None else Prompts((negative,), self.encoders).tensors()
        return self.model.flow_map(self.network, self.config, embeddings.tensors(), away)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        with self._autoencoder() as vae:
            coded = vae.encode((2 * images - 1).to(self.device, vae.dtype))
            latents = coded.latent_dist.mode() if hasattr(coded, "latent_dist") else coded.latent
            return self.model.normalise(latents.float(), vae)

    def decode(self, latents: Tensor) -> Tensor:
        size = max(1, _PIXELS // self.model.resolution**2)
        with self._autoencoder():
            return torch.cat([self.pictures(portion) for portion in latents.split(size)])

    @contextmanager
    def _autoencoder(self) -> Iterator[Any]:
        """The autoencoder on the device; where it otherwise waits in main memory, it goes back there."""
        if self.model.offload == "no":
            yield self.vae
            return
        self.vae.to(self.device)
        try:
            yield self.vae
        finally:
            self.vae.to("cpu")

    def pictures(self, latents: Tensor) -> Tensor:
        """`decode` of as many as memory holds at a time."""
        latents = self.model.denormalise(latents.float(), self.vae).to(self.vae.dtype)
        pixels = self.vae.decode(latents, return_dict=False)[0].float()
        return (pixels / 2 + 0.5).clamp(0, 1)


class Encoders:
    """A pipeline's text encoders, which are in memory only while prompts are read that no run has had before."""

    def __init__(self, model: PipelineModel, folder: Path, device: torch.device) -> None:
        self.model, self.folder, self.device = model, folder, device
        key = f"{model.name} {fingerprint(folder, model.encoders)} {model.dtype} {model.max_tokens}"
        self.cache = PromptCache(key, str(device))

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Those that have to be read before they can be used."""
        return self.cache.missing(prompts)

    def cramped(self) -> bool:
        """Whether they would not fit on the device beside what is there, and the network can be moved to make room.

        It cannot where several processes may each hold a share of it.
        """
        if self.device.type != "cuda" or torch.distributed.is_initialized():
            return False
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        wanted = sum(path.stat().st_size for part in self.model.encoders for path in (self.folder / part).glob("*.safetensors"))
        return free < _WORKING * wanted

    @torch.no_grad()
    def prepare(self, prompts: Sequence[str]) -> None:
        """See to it that the embeddings of these prompts are known.

        Raises: ValueError: if a prompt is longer than the encoder reads, or the encoders cannot be loaded.
        """
        missing = self.missing(prompts)
        if not missing:
            return
        import diffusers

        head = read_head(self.folder)
        read = {part for part in self.model.encoders if (self.folder / part).is_dir()}
        absent = {part: None for part, kind in head.items() if isinstance(kind, list) and part not in read}
        with loading(self.folder):
            pipeline = getattr(diffusers, self.model.pipeline).from_pretrained(
                self.folder, dtype=DTYPES[self.model.dtype], use_safetensors=True, **absent
            )
        with quietly():  # an encoder that reads less than the longest one says so of every prompt
            self._check(pipeline, missing)
            pipeline.to(self.device)
            for start in range(0, len(missing), PROMPTS_AT_ONCE):
                portion = missing[start : start + PROMPTS_AT_ONCE]
                found = self.model.read(pipeline, portion, self.device)
                for row, prompt in enumerate(portion):
                    self.cache.write(prompt, {name: values[row] for name, values in found.items()})
        del pipeline
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _check(self, pipeline: Any, prompts: Sequence[str]) -> None:
        most, longest = self.model.max_tokens, _longest(type(self.model))
        for prompt, length in zip(prompts, self.model.lengths(pipeline, prompts), strict=True):
            if length > most:
                remedy = "shorten it" if most == longest else f"shorten it, or raise model.max_tokens to at most {longest}"
                raise ValueError(f"prompt {prompt[:80]!r} has {length} tokens, and model.max_tokens = {most} are read; {remedy}")


class Prompts:
    """Prompts whose embeddings are known; they come into memory when a map is bound to them, row by row."""

    def __init__(self, texts: Sequence[str], encoders: Encoders) -> None:
        self.texts, self.encoders = tuple(texts), encoders

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Tensor | slice) -> "Prompts":
        chosen = torch.arange(len(self.texts))[rows.cpu() if isinstance(rows, Tensor) else rows]
        return Prompts([self.texts[row] for row in chosen.tolist()], self.encoders)

    def tensors(self) -> dict[str, Tensor]:
        """What the encoders made of them, by name; each [N, ...]."""
        found = [self.encoders.cache.read(text) for text in self.texts]
        return {name: torch.stack([each[name] for each in found]) for name in found[0]}


def diffusers_class(folder: Path, part: str) -> Any:
    """The class of a part of a pipeline, as the pipeline's head names it. Raises: ValueError: if it is not diffusers' own."""
    import diffusers

    library, name = read_head(folder).get(part) or ("nobody", "part that is missing")
    if library != "diffusers" or not hasattr(diffusers, name):
        raise ValueError(f"its {part} is a {name} of {library}, which is no class of this version of diffusers")
    return getattr(diffusers, name)


def _longest(model: type[PipelineModel]) -> int:
    """Most tokens that a family was trained to read."""
    return next(limit.le for limit in model.model_fields["max_tokens"].metadata if hasattr(limit, "le"))
