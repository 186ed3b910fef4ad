"""Any text-to-image pipeline of diffusers that follows a velocity by Euler steps, from a folder or the hub.

Nothing is known of the pipeline: it is driven by its own call (`workbench.models.driven`), and what that gives is compared at
loading time with what the pipeline draws by itself. Where the two differ it is refused.
"""

import inspect
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from workbench.contracts import FlowMapKind
from workbench.first_line import first_line
from workbench.flow import seed_stream, seeded_noise
from workbench.models.diffusers_folder import cached_folder, fingerprint, loading, quietly, read_head
from workbench.models.driven import Driven, Said, TooLong, Undriven, alike, joined, packed, unpacked
from workbench.models.embedded import NetworkFlowMap
from workbench.models.pipeline import DTYPES, Encoders, PipelineGenerator, PipelineModel, Prompts
from workbench.newest import newest
from workbench.prompt_cache import KEPT, PromptCache

EULER = "FlowMatchEulerDiscreteScheduler"
PROBES = ("a", "a cat")
"""Prompts of different lengths, by which a pipeline is compared with itself."""

_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 2e-2}  # of a velocity, as a share of its size
_MANY = 64  # pictures whose noise is looked at
_DIGIT = 1024  # numbers up to this are exact, and places are told in two of them


class DrivenMap(NetworkFlowMap):
    """A pipeline's velocity with its prompts bound; guided as the pipeline guides, with gradients through all of it.

    Rows are asked for together as far as they have one time and prompts of which their encoders said equally much.

    Args:
        said: what the encoders said of each row's prompt, or of the one that stands for all.
    """

    def __init__(self, driven: Driven, network: nn.Module, said: Sequence[Said], dtype: torch.dtype, kind: FlowMapKind) -> None:
        super().__init__(network, torch.empty(0), kind)
        self.driven, self.said, self.dtype = driven, said, dtype

    def _average_velocity(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        self.driven.pipeline.transformer = self.network  # with adapters, or the reference's
        said = list(self.said) * (len(x) if len(self.said) == 1 else 1)
        times = t.flatten().tolist() if isinstance(t, Tensor) else [t]
        times = times * (len(x) if len(times) == 1 else 1)
        sets: dict[Any, list[int]] = {}
        for row, key in enumerate(zip(times, map(alike, said), strict=True)):
            sets.setdefault(key, []).append(row)
        if len(sets) == 1:
            return self.driven.velocity(joined(said), x.to(self.dtype), times[0])
        parts = [
            self.driven.velocity(joined([said[r] for r in rows]), x[rows].to(self.dtype), key[0]) for key, rows in sets.items()
        ]
        order = torch.tensor([row for rows in sets.values() for row in rows], device=x.device)
        return torch.cat(parts)[order.argsort()]


class FlowMatchModel(PipelineModel):
    """Any text-to-image pipeline of diffusers whose steps are x + (s - t) v, such as QwenImage, Z-Image, Lumina 2 or AuraFlow.

    An adapter of its own costs less where there is one: this one asks the pipeline's whole call for every velocity, and under
    guidance it carries gradients through the negative prompt as well.
    """

    name: Literal["flow_match"] = "flow_match"
    source: str = Field(
        "fal/AuraFlow-v0.3", description="folder of a pipeline of diffusers, or its id on the hub, fetched at first use"
    )
    guidance: float = Field(
        1.0,
        ge=0,
        le=30,
        description="what the pipeline is told as guidance_scale or true_cfg_scale; 1 for none where it guides so",
    )
    negative_prompt: str = Field("", description="what guidance leads away from, where the pipeline takes one")
    max_tokens: int = Field(
        256, ge=8, le=2048, description="what the pipeline is told as max_sequence_length, where it takes one"
    )
    adapted: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"),
        min_length=1,
        description="ends of the names of the Linear layers that LoRA attaches to, separated by commas",
    )

    kind = "velocity"
    pipeline = ""  # whatever the folder holds
    encoders = ()
    uneven = True

    @model_validator(mode="after")
    def _stays(self) -> "FlowMatchModel":
        if self.offload != "no":
            raise ValueError(
                f"model.offload = {self.offload!r}: a pipeline that is driven has all its parts on one device; use "
                "model.offload = 'no', and for less memory model.quantize or a model that knows the family"
            )
        return self

    @property
    def adapter_targets(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.adapted

    @property
    def parts(self) -> tuple[str, ...]:
        """The subfolders that are needed: all that the head names, once it is on this machine."""
        folder = cached_folder(self.source)
        return ("transformer", "vae", "scheduler", *_readers(folder)) if folder else ("*",)

    def check(self, folder: Path) -> None:
        import diffusers

        head = read_head(folder)
        whose, found = head["_class_name"], (head.get("scheduler") or ["", "nobody"])[1]
        if {"transformer", "vae"} - inspect.signature(getattr(diffusers, whose, object).__init__).parameters.keys():
            raise ValueError(
                f"{folder} holds a {whose}, and this model loads a pipeline of diffusers with a transformer and a vae"
            )
        path = folder / "scheduler" / "scheduler_config.json"
        told = json.loads(path.read_text()) if path.is_file() else {}
        higher = told.get("use_flow_sigmas") and told.get("prediction_type") == "flow_prediction"  # the same field, other steps
        bent = [name for name in ("stochastic_sampling", "invert_sigmas") if told.get(name)]
        if (found != EULER and not higher) or bent:
            how = f"{found} with {' and '.join(bent)}" if bent else found
            raise ValueError(
                f"{folder} holds a {whose} with the scheduler {how}: its step is not x + (s - t) v, which this model relies on; "
                "write an adapter, or take a pipeline that comes with one"
            )

    def read_ahead(self, prompts: Sequence[str], device: torch.device) -> None:
        """Nothing: its encoders read inside the pipeline's own call, for which the other parts have to be at hand."""

    def generator(self, folder: Path, transformer: Any, vae: Any, device: torch.device) -> "FlowMatchGenerator":
        """Raises: ValueError: if driving the pipeline does not give what it draws by itself, saying where the two part."""
        return FlowMatchGenerator(self, folder, transformer, vae, device)

    def driven(self, folder: Path, transformer: Any, vae: Any, *, reads: bool) -> Driven:
        """The folder's pipeline over networks that are at hand.

        Args:
            reads: with its encoders, which are loaded; a pipeline without them draws from prompts that were read.
        """
        import diffusers

        head = read_head(folder)
        absent = [name for name, part in head.items() if isinstance(part, list) and not any(part)]
        left_out = dict.fromkeys((*absent, *(() if reads else _readers(folder))))
        settings = {"dtype": DTYPES[self.dtype], "use_safetensors": True}
        with loading(folder):
            kind = getattr(diffusers, head["_class_name"])
            pipeline = kind.from_pretrained(folder, transformer=transformer, vae=vae, **left_out, **settings)
        config = pipeline.scheduler.config
        if type(pipeline.scheduler).__name__ != EULER:
            pipeline.scheduler = getattr(diffusers, EULER)(shift=config.get("flow_shift") or 1.0)
        embedded = transformer.config.get("guidance_embeds")  # then the scale is told to the network
        scale = (
            "true_cfg_scale"
            if "true_cfg_scale" in inspect.signature(kind.__call__).parameters and not embedded
            else "guidance_scale"
        )
        told: dict[str, Any] = {
            scale: self.guidance,
            "height": self.resolution,
            "width": self.resolution,
            "max_sequence_length": self.max_tokens,
            "use_resolution_binning": False,
        }
        if self.guidance > 1:
            told["negative_prompt"] = self.negative_prompt
        return Driven(pipeline, told)

    # What can be said of a family by its settings alone, nobody can say of a pipeline that is not known.

    def latent_shape(self, transformer: Any, vae: Any) -> tuple[int, ...]:
        raise ValueError(_unknown(self.source))

    def flow_map(self, network: nn.Module, config: Any, prompts: Any, negative: Any) -> NetworkFlowMap:
        raise ValueError(_unknown(self.source))

    def lengths(self, pipeline: Any, prompts: Sequence[str]) -> Sequence[int]:
        raise ValueError(_unknown(self.source))

    def read(self, pipeline: Any, prompts: Sequence[str], device: torch.device) -> Mapping[str, Tensor]:
        raise ValueError(_unknown(self.source))

    def prompt_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        raise ValueError(_unknown(self.source))


class FlowMatchGenerator(PipelineGenerator):
    """A pipeline that is driven; its latents are in the shape and the numbers in which it keeps them itself."""

    def __init__(self, model: FlowMatchModel, folder: Path, transformer: Any, vae: Any, device: torch.device) -> None:
        self.model, self.device, self.kind = model, device, model.kind
        self.network, self.config = transformer.to(device), transformer.config
        self.vae = vae.to(device).requires_grad_(False).eval()
        self.driven = model.driven(folder, transformer, vae, reads=False)
        self.encoders: _Readers = _Readers(model, folder, transformer, vae, device)
        self.layout: _Layout | None = None
        _check_adapted(model, self.network)
        with _driving(f"{folder} holds a {type(self.driven.pipeline).__name__}"):
            self.encoders.prepare(PROBES)
            self.said = self.encoders.said(PROBES[0])
            own = self.driven.noise(joined([self.said] * _MANY), _MANY)
            self.latent_shape, self.dtype = tuple(own.shape[1:]), own.dtype
            _check_driven(self, own)

    def bind(self, embeddings: Prompts) -> DrivenMap:
        said = [self.encoders.said(text) for text in embeddings.texts]
        return DrivenMap(self.driven, self.network, said, self.dtype, self.kind)

    def pictures(self, latents: Tensor) -> Tensor:
        return self.driven.decode(joined([self.said] * len(latents)), latents.to(self.dtype))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Raises: ValueError: if the pipeline makes more of its latents than other places, scales and shifts."""
        if self.layout is None:
            self.layout = _Layout(lambda x: self.driven.code(self.said, x), self.latent_shape, self.device)
        pixels = (2 * images - 1).to(self.device, self.vae.dtype)
        coded = self.vae.encode(pixels if self.layout.dimensions == 4 else pixels[:, :, None])  # a video of one picture
        return self.layout.latents(coded.latent_dist.mode() if hasattr(coded, "latent_dist") else coded.latent)


class _Readers(Encoders):
    """The encoders of a pipeline that is driven; it reads one prompt at a time."""

    model: FlowMatchModel

    def __init__(self, model: FlowMatchModel, folder: Path, transformer: Any, vae: Any, device: torch.device) -> None:
        self.model, self.folder, self.device, self.parts = model, folder, device, (transformer, vae)
        guided = f"away from {model.negative_prompt!r}" if model.guidance > 1 else ""
        key = f"{model.name} {fingerprint(folder, _readers(folder))} {model.dtype} {model.max_tokens} {guided}"
        self.cache = PromptCache(key, str(device))
        self._said: OrderedDict[str, Said] = OrderedDict()

    def cramped(self) -> bool:
        """Never: a pipeline that is driven has all its parts on one device."""
        return False

    @torch.no_grad()
    def prepare(self, prompts: Sequence[str]) -> None:
        missing = self.cache.missing(prompts)
        if not missing:
            return
        driven = self.model.driven(self.folder, *self.parts, reads=True)
        with quietly():
            for name in _readers(self.folder):
                if isinstance(part := getattr(driven.pipeline, name), nn.Module):
                    part.to(self.device)
            for prompt in missing:
                try:
                    said = driven.read(prompt)
                except TooLong as error:
                    most = self.model.max_tokens
                    raise ValueError(
                        f"prompt {prompt[:80]!r} has {most + error.tokens} tokens, and model.max_tokens = {most} are read; "
                        "shorten it, or raise model.max_tokens as far as the pipeline allows"
                    ) from error
                self.cache.write(prompt, packed(said))
        del driven
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def said(self, prompt: str) -> Said:
        """What was said of a prompt that has been read."""
        if prompt not in self._said:
            self._said[prompt] = unpacked(self.cache.read(prompt))
        return newest(self._said, prompt, KEPT)


class _Layout:
    """What a pipeline makes of its latents before they are decoded, if that is a scale and a shift of each and another order.

    Three questions tell: of zeros, of ones, and of places, which are asked for in two digits so that they stay exact.
    """

    def __init__(self, code: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device) -> None:
        self.shape, size = shape, math.prod(shape)
        place = torch.arange(size, device=device)
        asked = torch.stack([place * 0, place * 0 + 1, place // _DIGIT, place % _DIGIT]).float()
        codes = [code(x.view(1, *shape)) for x in asked]
        self.dimensions = codes[0].dim()
        zeros, ones, high, low = (each.flatten() for each in codes)
        self.shift, self.scale = zeros, ones - zeros
        digits = (((each - zeros) / self.scale).round().long() for each in (high, low))
        self.place = next(digits) * _DIGIT + next(digits)
        sample = torch.linspace(-2, 2, size, device=device)
        whole = torch.equal(self.place.sort().values, place)
        if not whole or not torch.allclose(self.latents(code(sample.view(1, *shape))).flatten(), sample, atol=1e-3):
            raise ValueError("pictures cannot be made latents of this pipeline: it does more to them than scale, shift and move")

    def latents(self, code: Tensor) -> Tensor:
        """The latents [N, ...] of which the pipeline would make this code."""
        found = torch.empty(len(code), len(self.place), device=code.device)
        found[:, self.place] = (code.float().flatten(1) - self.shift) / self.scale
        return found.view(len(code), *self.shape)


@contextmanager
def _driving(whose: str) -> Iterator[None]:
    """Say of what goes wrong that this pipeline wants an adapter; all but want of memory."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Undriven as error:
        raise ValueError(f"{whose}, {error}; it wants an adapter of its own") from error
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{whose}, which cannot be driven by its call ({first_line(error)}); it wants an adapter of its own"
        ) from error


@torch.no_grad()
def _check_driven(generator: FlowMatchGenerator, noise: Tensor) -> None:
    """That single answers of a pipeline are what a whole call of it goes through, and that gradients reach its network.

    Args:
        noise: the pipeline's own.
    Raises: Undriven: saying where the two part.
    """
    limit = _TOLERANCE[generator.model.dtype]
    if abs(float(noise.float().std()) - 1) > 0.1:
        raise Undriven(f"which does not begin at noise of unit variance but of {float(noise.float().var()):.2g}")
    x = seeded_noise([seed_stream("driven", prompt) for prompt in PROBES], generator.latent_shape, generator.device)
    alone = [generator.bind(generator.embed([prompt])) for prompt in PROBES]  # of different lengths, they need not fit together
    for flow_map, prompt, start in zip(alone, PROBES, x.to(generator.dtype).split(1), strict=True):
        drawn, heard = generator.driven.trace(generator.encoders.said(prompt), start, 3)
        if not torch.equal(heard[0][1], start.float()):
            raise Undriven("which does not begin at the noise that it is given")
        if any(_apart(after - state, (s - t) * v) > limit for (t, state, v), (s, after, _) in pairwise(heard)):
            raise Undriven("whose steps are not x + (s - t) v")
        if any(_apart(flow_map.velocity(state, t), v) > limit for t, state, v in heard):
            raise Undriven("whose velocity at a time depends on the steps before it")
        t, state, v = heard[-1]
        if (generator.decode(state - t * v) - drawn).abs().mean() > limit:
            raise Undriven("which draws something else than it decodes")
    each = torch.cat([flow_map.velocity(own, 0.5) for flow_map, own in zip(alone, x.split(1), strict=True)])
    if _apart(generator.bind(generator.embed(PROBES)).velocity(x, 0.5), each) > limit:
        raise Undriven("whose prompts cannot be put together in one call")
    with torch.enable_grad():
        answer = alone[0].velocity(x[:1], 0.5)
        if answer.grad_fn is None and any(p.requires_grad for p in generator.network.parameters()):
            raise Undriven("whose call keeps gradients from its network")


def _apart(one: Tensor, other: Tensor) -> float:
    """|one - other| as a share of |other|."""
    return float((one.float() - other.float()).norm() / other.float().norm().clamp_min(1e-12))


def _check_adapted(model: FlowMatchModel, network: nn.Module) -> None:
    linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    lost = [end for end in model.adapted if not any(name == end or name.endswith(f".{end}") for name in linear)]
    if len(lost) == len(model.adapted):
        ends = sorted({re.sub(r"^.*?\d+\.", "", name) for name in linear})
        raise ValueError(
            f"model.adapted = {', '.join(lost)}: its network has no layers of such names; choose from: {', '.join(ends)}"
        )


def _readers(folder: Path) -> tuple[str, ...]:
    """The parts of a pipeline that read prompts: all but those that draw. A damaged head names none, and is told of in `load`."""
    try:
        head = read_head(folder)
    except ValueError:
        return ()
    drawing = ("transformer", "vae", "scheduler")
    return tuple(name for name, part in head.items() if isinstance(part, list) and any(part) and name not in drawing)


def _unknown(source: str) -> str:
    return f"what the pipeline {source!r} does is only known once it is loaded and driven; take a model that knows its family"
