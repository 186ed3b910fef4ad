"""A pipeline of diffusers as a folder: where it is, fetched from the hub where it has to be, and whether it is the right one."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from workbench.first_line import first_line

HEAD = "model_index.json"
"""The file that says which classes a pipeline is made of."""

HUB = re.compile(r"[\w.-]+/[\w.-]+")
"""The id of a model on the hub."""

TINY = "tiny:"
"""Before the name of a model: a random pipeline of it, which tries every step of the way on any machine."""

_ENDS = 2**24  # bytes of the beginning and the end of a file that tell its content
_PIECE, _PIECES = 2**12, 8  # bytes of a piece of a tensor, and about how many of them are a sample of it
_HEADER, _NOTES = 10**8, "__metadata__"  # most bytes of what a safetensors says of its tensors, and its entry that is none
_WRITER = {"_diffusers_version", "_name_or_path", "transformers_version"}
"""Settings that say who wrote them."""


def pipeline_folder(
    source: str, pipeline: str, parts: Sequence[str], optional: Sequence[str] = (), *, offline: bool = False
) -> Path:
    """The folder of a pipeline.

    Args:
        source: a folder; the id of a model on the hub, from where it is fetched once; or `tiny:` and the name of a model, for a
            random one that draws nothing.
        pipeline: name of the class that it has to be; empty for any.
        parts: the subfolders that are needed; `*` stands for all that there are.
        optional: those of them that may be missing where the pipeline's head says that it does without.
        offline: take only what has been fetched before.
    Raises: ValueError: if it is missing, gated, cannot be reached or holds another pipeline; says what to do.
    """
    folder = _here(source)
    if folder is None:
        if not HUB.fullmatch(source):
            raise ValueError(
                f"model.source = {source!r} is no folder; name one with a {HEAD} in it, or a model of the hub such as "
                "'black-forest-labs/FLUX.1-dev'"
            )
        folder = _fetched(source, pipeline, parts, offline)
    head = _check(folder, pipeline)
    for part in parts:
        absent = part in optional and not any(head.get(part) or ())  # saved as [null, null]
        if part != "*" and not absent and not (folder / part).is_dir():
            raise ValueError(f"{folder} lacks the folder {part!r} of a {head['_class_name']}; fetch it again")
    return folder


def cached_folder(source: str) -> Path | None:
    """The folder of a pipeline if it is on this machine already; asks nobody."""
    if (folder := _here(source)) is not None:
        return folder
    if not HUB.fullmatch(source):
        return None
    from huggingface_hub import try_to_load_from_cache

    head = try_to_load_from_cache(source, HEAD)
    return Path(head).parent if isinstance(head, str) else None


def _here(source: str) -> Path | None:
    """A folder that is named, or made of nothing."""
    if source.startswith(TINY):
        from workbench.models.tiny import tiny_pipeline

        return tiny_pipeline(source.removeprefix(TINY))
    folder = Path(source).expanduser()
    return folder if folder.is_dir() else None


def read_head(folder: Path) -> dict[str, Any]:
    """What a pipeline says it is made of. Raises: ValueError: if the folder is none, or what it says cannot be read."""
    return read_settings(folder / HEAD, f"{folder} holds no pipeline of diffusers: it has no {HEAD}; name the folder that has it")


def read_settings(path: Path, missing: str) -> dict[str, Any]:
    """What a file of settings says. Raises: ValueError: if it cannot be read, or `missing` if it is not there."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(missing) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no settings; fetch it again")
    return found


def fingerprint(folder: Path, parts: Sequence[str]) -> str:
    """A digest of what some subfolders hold: of every tensor its name, shape, type and a sample from all over it.

    So weights into which an adapter was fused are others, while it makes no difference over which files they are spread, or how
    settings are laid out. Tens of gigabytes take a fraction of a second.
    """
    found: list[tuple[str, ...]] = []
    for path in (path for part in parts for path in (folder / part).rglob("*") if path.is_file()):
        place = path.parent.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            found += [(place, *tensor) for tensor in _tensors(path)]
        elif not path.name.endswith(".safetensors.index.json"):  # which only says where each tensor is
            found.append((place, path.name, _content(path)))
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def _tensors(path: Path) -> Iterator[tuple[str, str, str]]:
    """Each tensor of a file: its name, its type and shape, and the digest of a sample; the file itself if it is damaged."""
    with path.open("rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            told = json.loads(file.read(min(length, _HEADER)))
            tensors = [(name, f"{of['dtype']} {of['shape']}", *of["data_offsets"]) for name, of in told.items() if name != _NOTES]
        except (ValueError, KeyError, TypeError, AttributeError):
            yield path.name, "damaged", _content(path)
            return
        for name, kind, start, end in tensors:
            digest = hashlib.sha256()
            step = max(_PIECE, (end - start - _PIECE) // (_PIECES - 1))  # of a small tensor the pieces are all there is
            for offset in range(start, end, step):
                file.seek(8 + length + offset)
                digest.update(file.read(min(_PIECE, end - offset)))
            yield name, kind, digest.hexdigest()


def _content(path: Path) -> str:
    """A digest of a file that is no safetensors: of all of it, or of the ends of a large one; of settings what they say."""
    size = path.stat().st_size
    with path.open("rb") as file:
        content = file.read(_ENDS)
        file.seek(max(len(content), size - _ENDS))
        content += file.read()
    if path.name == "config.json":
        with suppress(ValueError, AttributeError):
            content = json.dumps({k: v for k, v in json.loads(content).items() if k not in _WRITER}, sort_keys=True).encode()
    return f"{size if size > 2 * _ENDS else ''} {hashlib.sha256(content).hexdigest()}"


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Load from a folder, quietly; what goes wrong is told in one line, with what to do."""
    from safetensors import SafetensorError

    try:
        with quietly():
            yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be loaded: {first_line(error)}; fetch it again") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Keep bars and notes of the libraries off the screen."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = (diffusers_log, transformers_log)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (verbosity, bar) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if bar:
                log.enable_progress_bar()


def _fetched(source: str, pipeline: str, parts: Sequence[str], offline: bool) -> Path:
    """The hub's copy on this machine. Its head comes first, so that a wrong pipeline is not fetched whole."""
    from huggingface_hub import hf_hub_download, snapshot_download

    with fetching(source, "model.source", f"{source} on the hub has no {HEAD}, so it is no pipeline of diffusers"):
        _check(Path(hf_hub_download(source, HEAD, local_files_only=offline)).parent, pipeline)
        patterns = [HEAD, *(f"{part}/*" for part in parts)]
        return Path(snapshot_download(source, allow_patterns=patterns, local_files_only=offline))


@contextmanager
def fetching(source: str, setting: str, absent: str) -> Iterator[None]:
    """Ask the hub for files of a model; what goes wrong is told in one line, with what to do.

    Args:
        source: the model's id.
        setting: the key that names it in a configuration.
        absent: what to say where the model is there and the file is not.
    """
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError

    page = f"https://huggingface.co/{source}"
    try:
        yield
    except GatedRepoError as error:
        raise ValueError(
            f"{source} is only given to those who accepted its licence: do so on {page}, then log in with `hf auth login`; or "
            f"let {setting} name a folder that holds it"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"there is no folder {source!r} here, and no model of that name on the hub that you may see: look at {page}, and log "
            "in with `hf auth login` where it is private"
        ) from error
    except RemoteEntryNotFoundError as error:
        raise ValueError(f"{absent}: look at {page}") from error
    except OSError as error:
        raise ValueError(
            f"{source} is not on this machine and cannot be fetched from the hub: run `hf download {source}` where it can, "
            f"having accepted the licence on {page} if it asks for that; or let {setting} name a folder with it "
            f"({first_line(error)})"
        ) from error


def _check(folder: Path, pipeline: str) -> dict[str, Any]:
    """What the folder's head says. Raises: ValueError: as `read_head`, or if it is of another pipeline."""
    told = read_head(folder)
    found = told.get("_class_name")
    if pipeline and found != pipeline:
        raise ValueError(f"{folder} holds a {found}, and this model loads a {pipeline}; choose another folder or model.name")
    return told
