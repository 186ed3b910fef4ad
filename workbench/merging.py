"""Merged weights: what a run learned folded into the weights that it began from, one tensor in memory at a time."""

import json
import shutil
from collections.abc import Generator as Stream
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench.events import Progress
from workbench.export import averaged, export_folder, made_of
from workbench.linked import add_parts, parts_of
from workbench.models.lora import NOTE
from workbench.whole_file import whole_file, whole_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from workbench.config import RunConfig
    from workbench.models.pipeline import PipelineModel
    from workbench.store import Store

Dtype = Literal["base", "bf16", "fp16", "fp32"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""Name of a component's weights, as diffusers writes and finds them."""
INDEX = f"{WEIGHTS}.index.json"
SHARD = "10GB"
"""Most of one file, as diffusers writes it."""

_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}
_TYPES |= {"F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
_WANTED = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the base, and what it becomes."""

    source: Path
    key: str  # in the source
    type: str  # that is written, in the words of safetensors
    shape: tuple[int, ...]

    @property
    def dtype(self) -> "torch.dtype":
        import torch

        found: torch.dtype = getattr(torch, _TYPES[self.type])
        return found

    @property
    def bytes(self) -> int:
        count = self.dtype.itemsize
        for side in self.shape:
            count *= side
        return count


class Learned:
    """What training changed, by the name of the weight: other values, or two factors whose product is added.

    Args:
        tensors: as the network's parameters are named, with adapters or without.
        scale: of the product of an adapter's factors.
        prefix: of the names in the base's files.
    """

    def __init__(self, tensors: "Mapping[str, Tensor]", scale: float, prefix: str = "") -> None:
        self.scale = scale
        self.whole: dict[str, Tensor] = {}
        self.factors: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            plain = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
            layer, adapted, factor = plain.partition(".lora_")
            if adapted:
                self.factors.setdefault(f"{prefix}{layer}.weight", {})[factor[0]] = value
            else:
                self.whole[f"{prefix}{plain}"] = value

    def check(self, base: Mapping[str, _Tensor]) -> None:
        """Raise ValueError where the base is not what was trained."""
        known = {name: (*both["B"].shape[:1], *both["A"].shape[1:]) for name, both in self.factors.items()}
        for name, shape in (known | {name: tuple(value.shape) for name, value in self.whole.items()}).items():
            found = base.get(name)
            if found is None or found.shape != shape:
                has = "no such weight" if found is None else f"one of {list(found.shape)}"
                where = next(iter(base.values())).source.parent
                raise ValueError(f"the run trained {name!r} of {list(shape)}, and {where} has {has}: it is another base")

    def applied(self, name: str, weight: "Tensor") -> "Tensor":
        if name in self.whole:
            return self.whole[name]
        if name not in self.factors:
            return weight
        first, second = (self.factors[name][factor].float().flatten(1) for factor in "AB")  # of a convolution too
        return weight.float() + self.scale * (second @ first).view_as(weight)


def write_merged(
    store: "Store",
    run: str,
    iteration: int | None = None,
    *,
    pipeline: bool = False,
    dtype: Dtype = "base",
    out: Path | None = None,
) -> Stream[Progress, None, Path]:
    """The averaged weights of a checkpoint, the last one without `iteration`, as weights that need no adapter.

    Yields progress, returns what was written, which is there whole or not at all: of a model in a pipeline of diffusers the
    component's folder, as its `save_pretrained` writes it, or with `pipeline` a folder that `DiffusionPipeline.from_pretrained`
    loads; of an embedded model a file that `model.weights` takes.

    Args:
        dtype: numbers of the network; those of the base's files by default, and float32 of an embedded model.
        out: where to write it, instead of the run's exports; must not be there yet.
    Raises: ValueError: if there is no such checkpoint, the base is not here or another one, or there is no room; StoreError: if
        the disk refuses.
    """
    from workbench.models.pipeline import PipelineModel

    found, checkpoint, config = averaged(store, run, iteration)
    if out is not None and out.exists():
        raise ValueError(f"{out} is there already; name a place where nothing is, or remove it")
    tensors, made = checkpoint.tensors["ema"], made_of(found, checkpoint.iteration, config)
    folder = export_folder(store, found.id) if out is None else out.absolute().parent
    what = ("pipeline" if pipeline else "merged") + ("" if isinstance(config.model, PipelineModel) else ".safetensors")
    path = out or folder / f"{found.id}-{checkpoint.iteration:06d}-{what}"
    with store.disk(folder):
        if isinstance(config.model, PipelineModel):
            with whole_folder(path) as hidden:
                yield from merge(hidden, tensors, config, made, pipeline=pipeline, dtype=dtype)
        else:
            if pipeline:
                raise ValueError(f"model {config.model.name!r} is part of no pipeline of diffusers; leave out --pipeline")
            with whole_file(path) as hidden:
                yield from merge(hidden, tensors, config, made, dtype=dtype)
    return path


def merge(
    path: Path,
    tensors: "Mapping[str, Tensor]",
    config: "RunConfig",
    made: dict[str, Any],
    *,
    pipeline: bool = False,
    dtype: Dtype = "base",
) -> Stream[Progress, None, None]:
    """What `write_merged` writes: into a folder that is there and empty, or of an embedded model as the file `path`."""
    from workbench.models.pipeline import PipelineModel

    model = config.model
    learned = Learned(tensors, config.adapter.alpha / config.adapter.rank, "" if model.component else "network.")
    if not isinstance(model, PipelineModel):
        (file,) = model.weight_files()
        base = _tensors((file,), "fp32" if dtype == "base" else dtype)
        learned.check(base)
        _expect_room(base, path.parent)
        yield from _write(path, base, learned, {NOTE: json.dumps(made)}, 0, _size(base))
        return
    source = _source(model, pipeline)
    component = path / model.component if pipeline else path
    component.mkdir(exist_ok=True)
    yield from merge_component(component, source / model.component, learned, {NOTE: json.dumps(made)}, dtype=dtype)
    if pipeline:
        add_parts(source, path, but=model.component)


def _source(model: "PipelineModel", whole: bool) -> Path:
    """The folder of the base, with all parts of the pipeline where they are wanted."""
    from workbench.models.diffusers_folder import pipeline_folder

    folder = pipeline_folder(model.source, model.pipeline, (model.component,), offline=model.offline)
    if not whole:
        return folder
    return pipeline_folder(model.source, model.pipeline, parts_of(folder), offline=model.offline)


def _files(component: Path) -> tuple[Path, ...]:
    """The files of a component's weights that diffusers loads. Raises: ValueError: if they are not there."""
    if (component / INDEX).is_file():
        names = dict.fromkeys(json.loads((component / INDEX).read_text())["weight_map"].values())
        files = tuple(component / name for name in names)
    else:
        files = (component / WEIGHTS,)
    for file in files:
        if not file.is_file():
            raise ValueError(f"{component} lacks {file.name}, so there is nothing to merge into; fetch it again")
    return files


def _tensors(files: tuple[Path, ...], dtype: Dtype) -> dict[str, _Tensor]:
    """What the base holds, by name, in its own order; numbers that are not whole are written in `dtype`."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, _Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118
                    view = opened.get_slice(key)
                    kind = view.get_dtype()
                    wanted = kind if dtype == "base" or not kind.startswith(("F", "BF")) else _WANTED[dtype]
                    found[key] = _Tensor(file, key, wanted, tuple(view.get_shape()))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is not readable: {error}; fetch it again") from error
    return found


def merge_component(
    folder: Path,
    source: Path,
    learned: Learned,
    notes: Mapping[str, str],
    *,
    dtype: Dtype = "base",
    trained: Dtype = "base",
) -> Stream[Progress, None, None]:
    """A component as diffusers' `save_pretrained` writes it: its settings, and weights in files of at most `SHARD`.

    Args:
        folder: to write into, which is there and empty.
        source: the component that was trained.
        notes: what each file says of itself.
        dtype: numbers of its weights; by default those of the source's files.
        trained: numbers of the weights that were trained without adapters, where others are wanted for them.
    Raises: ValueError: if the source is damaged or not what was trained, or there is no room.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    base = _tensors(_files(source), dtype)
    learned.check(base)
    if trained != "base":
        base |= {name: replace(base[name], type=_WANTED[trained]) for name in learned.whole}
    _expect_room(base, folder)
    shutil.copyfile(source / "config.json", folder / "config.json")
    pattern = WEIGHTS.replace(".safetensors", "{suffix}.safetensors")
    sizes = {name: torch.empty(each.shape, dtype=each.dtype, device="meta") for name, each in base.items()}
    plan, done, total = split_torch_state_dict_into_shards(sizes, filename_pattern=pattern, max_shard_size=SHARD), 0, _size(base)
    for name, keys in plan.filename_to_tensors.items():
        part = {key: base[key] for key in keys}
        yield from _write(folder / name, part, learned, {"format": "pt", **notes}, done, total)
        done += _size(part)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write(
    path: Path, tensors: Mapping[str, _Tensor], learned: Learned, notes: Mapping[str, str], done: int, total: int
) -> Stream[Progress, None, None]:
    """A file in the format of safetensors, written tensor by tensor: its library wants all of them at once.

    The format: the length of the head in 8 bytes, the head in JSON padded to a multiple of 8, the numbers one after another.
    """
    import torch
    from safetensors import safe_open

    head: dict[str, Any] = {"__metadata__": dict(notes)}
    place = 0
    for name, each in tensors.items():
        head[name] = {"dtype": each.type, "shape": each.shape, "data_offsets": [place, place + each.bytes]}
        place += each.bytes
    written = json.dumps(head, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    with path.open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        for name, each in tensors.items():
            with safe_open(each.source, framework="pt") as source:
                weight = learned.applied(name, source.get_tensor(each.key))
            file.write(weight.detach().cpu().to(each.dtype).contiguous().flatten().view(torch.uint8).numpy().tobytes())
            done += each.bytes
            yield Progress("merge", done, total)


def _size(tensors: Mapping[str, _Tensor]) -> int:
    return sum(each.bytes for each in tensors.values())


def _expect_room(base: Mapping[str, _Tensor], folder: Path) -> None:
    needed, free = _size(base), shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise ValueError(
            f"merged weights need {needed / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} GiB are free; make room, or "
            "name another place with --out"
        )
