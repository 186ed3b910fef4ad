"""Runs as files for elsewhere: an archive that can be taken in again, and weights that other programs load."""

import dataclasses
import errno
import json
import lzma
import re
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typing_extensions import TypedDict

from workbench import __version__, checkpoints
from workbench.config import RunConfig, parse_config, validated
from workbench.events import Event, Measure, Progress
from workbench.exact_json import fields_of, from_json, to_json
from workbench.first_line import first_line
from workbench.models.embedded import EmbeddedModel, shipped_weights
from workbench.models.lora import DIFFUSERS_NOTE, NOTE, PEFT, base_of
from workbench.needs import PLACES
from workbench.records import OVER, Row, Run
from workbench.store import Store
from workbench.whole_file import whole_file

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.contracts import Model
    from workbench.events import CheckpointReady
    from workbench.models.lora import Lora

LARGEST = 16 * 2**30
"""Most bytes that an archive may unpack to."""
MOST_FILES = 100_000

START = "start.safetensors"
"""In the directory of a run that was made of a LoRA from elsewhere: its own copy of it."""

LARGEST_HEAD = 16 * 2**20
"""Most bytes of what an archive says of its run."""

_FORMAT = "flow-map-workbench run"
_MEMBER = re.compile(
    r"run\.json|events\.jsonl|error\.txt|provenance\.json|changes(?:-\d+)?\.patch|replay\.json|(?:source|notebook)\.ipynb"
    r"|[\w-]+\.safetensors|images/[\w.-]+\.webp"
    r"|checkpoints/\d{6,}/(?:state\.json|[\w-]+\.safetensors)"
)
_EVENTS = {
    kind.__name__: {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    for kind in get_args(Event)
    if kind is not Progress
}


class _Preview(TypedDict):
    sprite: str | None
    tile: tuple[int, int]
    columns: int
    count: int


_PREVIEW = TypeAdapter(_Preview)
_MEASURES = TypeAdapter(dict[str, dict[str, Measure]])


class _Archived(BaseModel):
    """What an archive says of its run; what only held where it ran is left behind."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["flow-map-workbench run"]
    version: Literal[1]
    id: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=120)
    kind: str = Field(max_length=40)
    title: str
    origin: str
    command: str
    parent: str | None
    branched: int | None
    config: dict[str, Any]
    status: str = Field(max_length=20)
    error: str | None
    iteration: int = Field(ge=0)
    iterations: int | None
    created: float
    updated: float
    tags: tuple[str, ...]
    note: str
    worked: float | None = None  # not known of runs from before it was counted


def export_folder(store: Store, run: str) -> Path:
    """Where the files made of a run lie; nothing else is ever in it."""
    folder = store.folder(run) / "exports"
    with store.disk(folder):
        folder.mkdir(exist_ok=True)
    return folder


def write_archive(store: Store, run: str, path: Path | None = None) -> Path:
    """One zip file with everything of a run: its settings, its events as JSON lines, pictures and checkpoints.

    Raises: ValueError: if there is no such run; StoreError: if the disk refuses.
    """
    found = store.run(run)
    path = path or export_folder(store, found.id) / f"{found.id}.zip"
    head = {"format": _FORMAT, "version": 1} | {
        name: value for name, value in fields_of(found).items() if name not in ("host", "pid")
    }
    with store.disk(path.parent), whole_file(path) as hidden, zipfile.ZipFile(hidden, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("run.json", to_json(head, indent=1))
        with archive.open("events.jsonl", "w") as lines:
            for row in store.events(found.id):
                lines.write(to_json(fields_of(row)).encode() + b"\n")
        for file in _files(store.folder(found.id)):
            try:
                archive.write(file, file.relative_to(store.folder(found.id)).as_posix(), zipfile.ZIP_STORED)
            except FileNotFoundError:
                continue  # thinned meanwhile: the run goes on
    return path


def read_archive(store: Store, path: Path, places: Mapping[str, str] | None = None) -> str:
    """Take in a run from its archive; returns its id, which is a new one where the old one is taken.

    Every name, size and digest is checked before anything is believed, and nothing is changed where anything fails.

    Args:
        places: where things lie on this machine, by the settings that say so: some of `needs.PLACES`.
    Raises: ValueError: if this is no archive of a run, is damaged, or leads outside the run; StoreError: if the disk refuses.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give the archive that an export wrote")
    hidden = store.location / f".importing-{secrets.token_hex(4)}"
    try:
        with store.disk(store.location), _readable(), zipfile.ZipFile(path) as archive:
            head = _placed(_check(archive, path), places or {})
            _expect_space(archive, store.location)
            (hidden / "images").mkdir(parents=True)
            for name in sorted(archive.namelist()):
                if name not in ("run.json", "events.jsonl"):
                    (hidden / name).parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(name) as source, (hidden / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
            run = head.id if _is_free(store, head.id) else f"{head.id[:110]}-{secrets.token_hex(2)}"
            if (hidden / START).is_file():
                head = _placed(head, {"adapter.start": str(store.folder(run).absolute() / START)})
            checkpoints.readdress(hidden / "checkpoints", head.id, run)
            (hidden / "config.json").write_text(to_json(head.config, indent=2) + "\n")
            with archive.open("events.jsonl") as lines:
                store.adopt(_run(head, run), hidden, _rows(lines, hidden / "images", path))
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path.name} is not a readable archive of a run: {error}; export it again") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return run


def write_weights(store: Store, run: str, iteration: int | None = None) -> Path:
    """The averaged weights of a checkpoint, the last one without `iteration`, as one file.

    All weights: a safetensors file that `model.weights` loads, or that takes the place of the file in the folder of a
    pipeline's component. A LoRA adapter: a file for diffusers' `load_lora_weights`; of a model that is in no pipeline, a zip of
    its folder in the format of peft.

    Raises: ValueError: if the run has no such checkpoint; StoreError: if the disk refuses.
    """
    found, checkpoint, config = averaged(store, run, iteration)
    stem = export_folder(store, found.id) / f"{found.id}-{checkpoint.iteration:06d}"
    made = made_of(found, checkpoint.iteration, config)
    try:
        with store.disk(stem.parent):
            component, trained = config.model.component, checkpoint.tensors["ema"]
            if config.adapter.kind == "lora" and component:
                return write_lora(stem.with_name(f"{stem.name}-lora.safetensors"), trained, config, made)
            if config.adapter.kind == "lora":
                return _write_adapter(stem.with_name(f"{stem.name}-lora.zip"), trained, config, made)
            prefix = "" if component else "network."
            tensors = _beside(config) | {f"{prefix}{name}": value for name, value in trained.items()}
            return _write_safely(stem.with_name(f"{stem.name}.safetensors"), tensors, made)
    except SafetensorError as error:  # how the library reports a full disk
        with store.disk(stem.parent):
            raise OSError(str(error)) from error


def averaged(store: Store, run: str, iteration: int | None = None) -> tuple[Run, "CheckpointReady", RunConfig]:
    """A training run with its checkpoint, the last one without `iteration`, and its settings.

    Raises: ValueError: if the run trains no policy or has no such checkpoint.
    """
    found = store.run(run)
    if found.training is None:
        raise ValueError(f"run {found.id} is of kind {found.kind!r}; its weights are in its own folder, {store.folder(found.id)}")
    return found, store.load_checkpoint(found.id, iteration), parse_config(found.training)


def made_of(run: Run, iteration: int, config: RunConfig) -> dict[str, Any]:
    """What a file of weights says of where it comes from; no words in a prompt call for it."""
    base = base_of(config.model)
    told = {"run": run.id, "iteration": iteration, "title": run.title, "model": config.model.name, "trigger": None}
    adapter = {"rank": config.adapter.rank, "alpha": config.adapter.alpha} if config.adapter.kind == "lora" else {}
    return told | adapter | {"base": base.name, "base_digest": base.digest, "version": __version__}


def write_lora(path: Path, tensors: "Mapping[str, Tensor]", config: RunConfig, made: dict[str, Any]) -> Path:
    """A policy's adapters as a file for diffusers' `load_lora_weights`, all of it or nothing; says what it was made of."""
    content = lora_for_diffusers(tensors, config)
    prefix = f"{config.model.component}."
    layers = sorted({name.removeprefix(prefix).partition(".lora_")[0] for name in content})
    rank = config.adapter.rank  # and so is alpha: the scale is in the weights
    settings = {"r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none", "target_modules": layers}
    note = json.dumps({f"{prefix}{name}": value for name, value in settings.items()}, sort_keys=True)
    return _write_safely(path, content, made, {DIFFUSERS_NOTE: note})


def write_start(path: Path, lora: "Lora", model: "Model", made: Mapping[str, Any]) -> None:
    """The adapters of a file, whatever its format, as diffusers writes them; says what the file said of itself."""
    prefix = f"{model.component}." if model.component else ""
    content = {}
    for layer, (first, second) in lora.factors.items():
        content[f"{prefix}{layer}.lora_A.weight"] = first
        content[f"{prefix}{layer}.lora_B.weight"] = (second.float() * lora.scale).to(second.dtype) if lora.scale != 1 else second
    base = {"base": lora.base.name, "base_digest": lora.base.digest} if lora.base else {}
    _write_safely(path, content, base | dict(made))


def lora_for_diffusers(tensors: "Mapping[str, Tensor]", config: RunConfig) -> "dict[str, Tensor]":
    """A policy's adapters under the names that diffusers gives them.

    The scale alpha / rank is worked into the second factor, so that no program has to know it.
    """
    scale, found = config.adapter.alpha / config.adapter.rank, {}
    for name, value in tensors.items():
        plain = name.removeprefix("base_model.model.").replace(".default.", ".")
        found[f"{config.model.component}.{plain}"] = value * scale if ".lora_B." in name else value
    return found


def _write_safely(
    path: Path, tensors: "Mapping[str, Tensor]", made: dict[str, Any], notes: Mapping[str, str] | None = None
) -> Path:
    with whole_file(path) as hidden:
        content = {name: value.contiguous() for name, value in tensors.items()}
        save_file(content, hidden, {"format": "pt", NOTE: json.dumps(made), **(notes or {})})
    return path


def _write_adapter(path: Path, tensors: dict[str, Any], config: RunConfig, made: dict[str, Any]) -> Path:
    """A zip of what peft's `save_pretrained` would write."""
    settings = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": config.model.name,
        "r": config.adapter.rank,
        "lora_alpha": config.adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.removeprefix("base_model.model.").partition(".lora_")[0] for name in tensors}),
        "inference_mode": True,
    }
    plain = {name.replace(".default.", "."): value.contiguous() for name, value in tensors.items()}
    sentence = "Load it with peft's `PeftModel.from_pretrained(network, folder)`, on the network that the run began from.\n"
    weights = path.with_name(f".{path.stem}.safetensors")
    try:
        save_file(plain, weights, {"format": "pt", NOTE: json.dumps(made)})
        with whole_file(path) as hidden, zipfile.ZipFile(hidden, "w") as archive:
            archive.writestr(PEFT[0], json.dumps(settings, indent=2))
            archive.write(weights, PEFT[1])
            archive.writestr("README.md", f"# {made['title']}\n\n{sentence}\n```json\n{json.dumps(made, indent=2)}\n```\n")
    finally:
        weights.unlink(missing_ok=True)
    return path


def _beside(config: RunConfig) -> dict[str, Any]:
    """What an embedded model's file holds that is not trained, its autoencoder; nothing for other models."""
    if not isinstance(config.model, EmbeddedModel):
        return {}
    source = Path(config.model.weights) if config.model.weights else shipped_weights(config.model.name)
    found: dict[str, Any] = load_file(source)
    return found


def _files(folder: Path) -> Iterator[Path]:
    """What an archive holds of a run's directory; a checkpoint's state after its tensors, without which it does not count."""
    found = [path for path in folder.rglob("*") if _MEMBER.fullmatch(path.relative_to(folder).as_posix()) and path.is_file()]
    yield from sorted(found, key=lambda path: (path.parent, path.name == "state.json", path.name))


def _check(archive: zipfile.ZipFile, path: Path) -> _Archived:
    """What the archive says of its run. Raises: ValueError: at the first thing that is not as `write_archive` makes it."""
    members = archive.infolist()
    for member in members:
        name = member.filename
        if not _MEMBER.fullmatch(name):
            raise ValueError(f"{path.name} holds {name!r}, which is no part of a run; nothing was taken in")
        if member.flag_bits & 1:
            raise ValueError(f"{path.name} is encrypted; export the run again without a password")
    size = sum(member.file_size for member in members)
    if size > LARGEST or len(members) > MOST_FILES:
        raise ValueError(
            f"{path.name} would unpack to {size / 2**30:.1f} GiB in {len(members)} files; at most {LARGEST / 2**30:.0f} GiB"
        )
    if any(member.filename == "run.json" and member.file_size > LARGEST_HEAD for member in members):
        raise ValueError(f"{path.name}: run.json is larger than {LARGEST_HEAD / 2**20:.0f} MiB, so it is not that of a run")
    missing = {"run.json", "events.jsonl"} - {member.filename for member in members}
    if missing or len({member.filename for member in members}) < len(members):
        what = f"it lacks {sorted(missing)[0]}" if missing else "it names a file twice"
        raise ValueError(f"{path.name} is not an archive of a run: {what}")
    try:
        return validated(_Archived, _mapping(from_json(archive.read("run.json"))))
    except ValueError as error:
        raise ValueError(f"{path.name}: run.json is not as this program writes it: {first_line(error)}") from error


def _placed(head: _Archived, places: Mapping[str, str]) -> _Archived:
    """With other places in its settings. Raises: ValueError: if a setting is not one that only says where something lies."""
    config = head.config
    for key, place in places.items():
        group, _, name = key.partition(".")
        if key not in PLACES or name not in (config.get(group) or {}):
            raise ValueError(f"{key} is no place in the settings of this run; what may be elsewhere here: {', '.join(PLACES)}")
        config = config | {group: config[group] | {name: place}}
    return head.model_copy(update={"config": config})


@contextmanager
def _readable() -> Iterator[None]:
    """A damaged archive may send its reader to a place before its beginning, which looks like an error of the disk."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise zipfile.BadZipFile("its directory is damaged") from error
        raise


def _expect_space(archive: zipfile.ZipFile, folder: Path) -> None:
    needed, free = sum(member.file_size for member in archive.infolist()), shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise ValueError(
            f"the run needs {needed / 2**20:.0f} MiB in {folder}, where {free / 2**20:.0f} MiB are free; make room first"
        )


def _rows(lines: Any, images: Path, path: Path) -> Iterator[Row]:
    """The recorded events, checked; a picture that did not come along is not named any more."""
    here = {file.name for file in images.iterdir()}
    for number, line in enumerate(lines, 1):
        try:
            row = _mapping(from_json(line))
            kind, data = row["kind"], _mapping(row["data"])
            if missing := _EVENTS[kind] - data.keys():
                raise ValueError(f"{kind} lacks {sorted(missing)[0]!r}")
            for name, value in data.items():
                if isinstance(value, dict) and "sprite" in value:
                    _PREVIEW.validate_python(value)
                    data[name] = value if value["sprite"] in here else value | {"sprite": None}
            if kind == "Evaluated":
                _MEASURES.validate_python(data["measures"])
            yield Row(0, kind, int(row["iteration"]), float(row["time"]), data)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path.name}: line {number} of events.jsonl is not an event of a run: {error}") from error


def _run(head: _Archived, run: str) -> Run:
    """The run as it is here: nobody drives it."""
    origin = head.origin if head.origin.endswith("(imported)") else f"{head.origin} (imported)"
    over = head.status in OVER or (head.status == "paused" and head.error is not None)
    values = {name: getattr(head, name) for name in type(head).model_fields if name not in ("format", "version")}
    values |= {"id": run, "origin": origin, "status": head.status if over else "stopped"}
    return Run(**values, wanted="run", host=None, pid=None)


def _is_free(store: Store, run: str) -> bool:
    taken = {found.id for found in (*store.runs(), *store.trash())}
    return run not in taken and not store.folder(run).exists()


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} where a mapping was expected")
    return value
