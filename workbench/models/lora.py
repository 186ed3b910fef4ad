"""Low-rank adapters: fresh ones on a network, or those of a file that somebody made before, for the same base alone.

A file is what diffusers' `save_lora_weights` writes, or a folder or zip in the format of peft. In memory the scale alpha / rank
is the policy's own, whatever scale the file was made with: the second factor makes up for the difference.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.contracts import Model
from workbench.models.diffusers_folder import cached_folder, fingerprint

PEFT = ("adapter_config.json", "adapter_model.safetensors")
"""Names of the files of an adapter in the format of peft."""
DIFFUSERS = "pytorch_lora_weights.safetensors"
"""Name that diffusers looks for in a folder."""
DIFFUSERS_NOTE = "lora_adapter_metadata"
"""Where diffusers looks for an adapter's settings in the notes of a file."""
NOTE = "workbench"
"""Where a file's own notes say what it was made of."""

_FACTOR = re.compile(r"(?P<layer>.+?)\.(?:lora_(?P<new>[AB])(?:\.default)?|lora\.(?P<old>down|up))\.weight")
_OLD = {"down": "A", "up": "B"}


@dataclass(frozen=True)
class Base:
    """What adapters were trained on: its name for people, and the digest of its weights, None where they are not here."""

    name: str
    digest: str | None

    def __str__(self) -> str:
        return f"{self.name} ({self.digest[:12]})" if self.digest else self.name


@dataclass(frozen=True)
class Lora:
    """The adapters of a file.

    Args:
        factors: A [rank, in] and B [out, rank] by layer.
        scale: of their product.
        base: what they were trained on; None where the file does not say.
    """

    path: Path
    factors: Mapping[str, tuple[Tensor, Tensor]]
    scale: float
    base: Base | None

    @property
    def rank(self) -> int:
        return len(next(iter(self.factors.values()))[0])

    def parameters(self, scale: float) -> dict[str, Tensor]:
        """As a policy names them whose own scale, alpha / rank, is this; float32."""
        share, found = self.scale / scale, {}
        for layer, (first, second) in self.factors.items():
            found[f"base_model.model.{layer}.lora_A.default.weight"] = first.float()
            found[f"base_model.model.{layer}.lora_B.default.weight"] = second.float() * share
        return found


def base_of(model: Model) -> Base:
    """The weights that a model's adapters are trained on."""
    source = str(getattr(model, "source", ""))
    if source:
        folder = cached_folder(source)
        named = Path(source).expanduser().name if folder is not None and Path(source).expanduser().is_dir() else source
        return Base(named, fingerprint(folder, (model.component,)) if folder is not None else None)
    file = next((path for path in model.weight_files() if path.is_file()), None)
    return Base(_name(model), None if file is None else hashlib.sha256(file.read_bytes()).hexdigest())


def lora_file(path: str) -> Path:
    """The file of weights that `adapter.start` names. Raises: ValueError: if there is none."""
    given = Path(path).expanduser()
    if given.is_file():
        return given
    if not given.is_dir():
        hub = f"; fetch it first, with: hf download {path}" if re.fullmatch(r"[\w.-]+/[\w.-]+", path) else ""
        raise ValueError(f"adapter.start = {path!r} is no file or folder{hub or '; name a LoRA that diffusers or peft wrote'}")
    found = next((given / name for name in (PEFT[1], DIFFUSERS) if (given / name).is_file()), None)
    if found is None:
        raise ValueError(f"adapter.start = {path!r} holds no LoRA: it has neither {PEFT[1]} nor {DIFFUSERS}")
    return found


def read_lora(path: str, component: str) -> Lora:
    """The adapters of a file or folder.

    Args:
        component: what the network is called in its pipeline, with which diffusers begins the names.
    Raises: ValueError: if it is missing, damaged, in another format, or changes more than the network.
    """
    file = lora_file(path)
    tensors, notes, settings = _content(file)
    made, told = _mapping(notes.get(NOTE)), _mapping(notes.get(DIFFUSERS_NOTE))
    settings = settings or {key.removeprefix(f"{component}."): value for key, value in told.items()}
    factors: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        match = _FACTOR.fullmatch(name.removeprefix("base_model.model."))
        layer = match["layer"].removeprefix(f"{component}.") if match else name
        if match is None or layer.startswith(("text_encoder", "lora_", "diffusion_model.")):
            raise ValueError(_foreign(file, name))
        factors.setdefault(layer, {})[match["new"] or _OLD[match["old"]]] = value
    torn = next((layer for layer, both in factors.items() if both.keys() != {"A", "B"}), None)
    if torn or not factors:
        raise ValueError(f"{file} is no whole LoRA: {f'{torn} has one factor of two' if torn else 'it is empty'}; fetch it again")
    ranks = sorted({len(both["A"]) for both in factors.values()} | {both["B"].shape[-1] for both in factors.values()})
    if len(ranks) > 1 or settings.get("alpha_pattern"):
        raise ValueError(f"{file} has adapters of different ranks or scales ({ranks}), and only one for all can be trained")
    base = made.get("base") or settings.get("base_model_name_or_path")
    known = Base(str(base), made.get("base_digest")) if base else None
    scale = float(settings.get("lora_alpha", ranks[0])) / (ranks[0] ** (0.5 if settings.get("use_rslora") else 1.0))
    return Lora(file, {layer: (both["A"], both["B"]) for layer, both in factors.items()}, scale, known)


def made_with(path: str) -> dict[str, Any]:
    """What a file of this program says of where it comes from; nothing of others. Raises: ValueError: if it is not readable."""
    return _mapping(_content(lora_file(path))[1].get(NOTE))


def attach(
    network: nn.Module,
    model: Model,
    rank: int,
    alpha: float,
    seed: int,
    lora: Lora | None = None,
    *,
    whole: Sequence[str] = (),
) -> nn.Module:
    """The network with adapters: fresh ones on the model's layers, which change nothing, or those of a file on its layers.

    Args:
        whole: names of modules whose own weights are trained besides.
    Raises: ValueError: if the file's adapters do not fit the network or have another rank.
    """
    from peft import LoraConfig, get_peft_model

    if lora is not None:
        _check_fit(lora, network, model, rank)
    network.requires_grad_(False)
    targets: Any = list(model.adapter_targets)  # ends of names
    if lora is not None:
        targets = "|".join(map(re.escape, lora.factors))  # whole names: the end of one may be another's
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets, modules_to_save=list(whole) or None)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(network, settings)
    if lora is not None:
        own = dict(adapted.named_parameters())
        with torch.no_grad():
            for name, value in lora.parameters(alpha / rank).items():
                own[name].copy_(value)
    return adapted


def check_base(lora: Lora, model: Model) -> None:
    """Raise ValueError where the adapters were trained on other weights than the model's, as far as both are known."""
    base = base_of(model)
    if lora.base and lora.base.digest and base.digest and lora.base.digest != base.digest:
        raise ValueError(
            f"{lora.path} was trained on {lora.base}, and model {_name(model)!r} is {base}; choose that base, or set "
            "adapter.other_base = true to begin from it all the same"
        )


def _check_fit(lora: Lora, network: nn.Module, model: Model, rank: int) -> None:
    layers = dict(network.named_modules())
    made = f"{lora.path} was made for {lora.base.name if lora.base else 'another base'}"
    base = f"{base_of(model).name} ({_name(model)!r})"
    for name, (first, second) in lora.factors.items():
        wanted = (getattr(layers.get(name), "in_features", None), getattr(layers.get(name), "out_features", None))
        if None in wanted:
            raise ValueError(f"{made}: it adapts the layer {name!r}, which {base} does not have")
        if (first.shape[1], second.shape[0]) != wanted:
            raise ValueError(
                f"{made}: its layer {name!r} takes {first.shape[1]} numbers and gives {second.shape[0]}, that of {base} "
                f"{wanted[0]} and {wanted[1]}"
            )
    if lora.rank != rank:
        raise ValueError(f"adapter.rank = {rank}, and {lora.path} has rank {lora.rank}: set adapter.rank = {lora.rank}")


def _content(file: Path) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """The tensors of a file, its notes, and where it is in the format of peft its settings."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                content = archive.read(PEFT[1])
                head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
                return load(content), head.get("__metadata__", {}), json.loads(archive.read(PEFT[0]))
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            notes = dict(opened.metadata() or {})
        settings = json.loads((file.parent / PEFT[0]).read_text()) if file.name == PEFT[1] else {}
    except (SafetensorError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is not a readable LoRA: {error}; fetch it again") from None
    return tensors, notes, settings


def _name(model: Model) -> str:
    return str(getattr(model, "name", ""))


def _mapping(note: str | None) -> dict[str, Any]:
    """A note in JSON; nothing where it is none of ours."""
    try:
        found = json.loads(note or "{}")
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _foreign(file: Path, name: str) -> str:
    if "text_encoder" in name:
        return f"{file} also changes a text encoder ({name!r}), which is not trained here; take a LoRA of the network alone"
    return (
        f"{file} is no LoRA as diffusers or peft writes it: {name!r} is no factor of an adapter; where diffusers reads it, load "
        "it there and write it again with save_lora_weights"
    )
