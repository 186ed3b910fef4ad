"""Checkpoints on disk: directories that are complete or not there at all, and that are checked before they are believed."""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from workbench.events import CheckpointReady
from workbench.exact_json import from_json, to_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "flow-map-workbench checkpoint"
VERSION = 1
_STATE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or not ours; says which file, what is wrong and what can be done."""


def list_checkpoints(folder: Path) -> list[int]:
    """Iterations of the complete checkpoints, ascending."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if re.fullmatch(r"\d{6,}", path.name))
    return sorted(int(name) for name in names if (folder / name / _STATE).is_file())


def write_checkpoint(folder: Path, run: str, event: CheckpointReady) -> Path:
    """Write a checkpoint beside its place, force it to disk, and rename it into place.

    Raises: OSError: if it cannot be written; what was there before is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove(path for path in folder.iterdir() if path.name.startswith("."))  # left by a process that was killed
    target = folder / f"{event.iteration:06d}"
    hidden = folder / f".{target.name}.writing-{secrets.token_hex(4)}"
    hidden.mkdir()
    try:
        named = {f"{stem}.safetensors": tensors for stem, tensors in event.tensors.items()}
        files = {name: _write_tensors(hidden / name, tensors) for name, tensors in named.items()}
        head = {"format": FORMAT, "version": VERSION, "run": run, "iteration": event.iteration, "files": files}
        (hidden / _STATE).write_text(to_json(head | {"state": event.state}, indent=1))
        _force_to_disk(hidden / _STATE)
        _force_to_disk(hidden)
        _put_in_place(hidden, target, run, files)
    finally:
        _remove([hidden])
    return target


def read_checkpoint(folder: Path, run: str, iteration: int | None = None) -> CheckpointReady:
    """The checkpoint after `iteration`, or the last one, every byte checked against the digests written with it.

    Raises: CheckpointError: if it is missing, incomplete, damaged, or of another run or program.
    """
    available = list_checkpoints(folder)
    if iteration is None:
        if not available:
            raise CheckpointError(f"run {run} has no checkpoint in {folder}; start it again")
        iteration = available[-1]
    path = folder / f"{iteration:06d}"
    others = ", ".join(str(other) for other in reversed(available) if other != iteration)
    remedy = f"other checkpoints of this run: {others}" if others else "this run has no other checkpoint"
    if iteration not in available:
        missing = f"{path / _STATE} is missing"
        raise CheckpointError(f"run {run} has no complete checkpoint after iteration {iteration}: {missing}; {remedy}")
    from safetensors.torch import load_file

    try:
        head = _read_head(path, run)
        _check_files(path, head["files"])
        tensors = {name.removesuffix(".safetensors"): load_file(path / name) for name in head["files"]}
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {remedy}") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}; {remedy}") from error
    return CheckpointReady(iteration=iteration, tensors=tensors, state=head["state"])


def stamp(folder: Path, iteration: int) -> int:
    """When the checkpoint after `iteration` was written, in nanoseconds; 0 where there is none."""
    state = folder / f"{iteration:06d}" / _STATE
    return state.stat().st_mtime_ns if state.is_file() else 0


def thin_checkpoints(folder: Path, kept: int, best: Any) -> None:
    """Keep the first, the best and the last `kept`; remove the others."""
    available = list_checkpoints(folder)
    drop = set(available[1:-kept]) - {best}
    _remove(folder / f"{iteration:06d}" for iteration in sorted(drop))


def discard_after(folder: Path, iteration: int) -> None:
    """Remove the checkpoints past `iteration`, which a run that begins again from there supersedes."""
    _remove(folder / f"{later:06d}" for later in list_checkpoints(folder) if later > iteration)


def readdress(folder: Path, run: str, new: str) -> None:
    """Make the checkpoints of `run` in `folder` those of another run, every byte checked against its digest before.

    Raises: CheckpointError: if one is damaged, or not of this run.
    """
    for iteration in list_checkpoints(folder):
        path = folder / f"{iteration:06d}"
        head = _read_head(path, run)
        _check_files(path, head["files"])
        (path / _STATE).write_text(to_json(head | {"run": new}, indent=1))


def _write_tensors(path: Path, tensors: "dict[str, Tensor]") -> dict[str, Any]:
    from safetensors.torch import save_file

    try:
        save_file(_own_memory(tensors), path)
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(str(error)) from error
    _force_to_disk(path)
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _own_memory(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The same values, each in memory of its own: views and tied weights cannot be saved as they are."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        own[name] = tensor.clone() if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes else tensor
        seen.add(storage.data_ptr())
    return own


def _put_in_place(hidden: Path, target: Path, run: str, files: dict[str, Any]) -> None:
    if not target.exists():
        os.rename(hidden, target)
    elif _holds(target, run, files):  # the same tensors again: only the state beside them may be newer
        os.replace(hidden / _STATE, target / _STATE)
        _force_to_disk(target)
    else:
        os.rename(target, target.parent / f".{target.name}.replaced-{secrets.token_hex(4)}")
        os.rename(hidden, target)
    _force_to_disk(target.parent)
    _remove(target.parent.glob(f".{target.name}.replaced-*"))


def _holds(path: Path, run: str, files: dict[str, Any]) -> bool:
    try:
        head = _read_head(path, run)
        _check_files(path, head["files"])
    except (CheckpointError, OSError):
        return False
    return bool(head["files"] == files)


def _read_head(path: Path, run: str) -> dict[str, Any]:
    file = path / _STATE
    try:
        head = from_json(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise CheckpointError(f"{file} was not written by this program: it lacks the marker {FORMAT!r}")
    if head.get("version") != VERSION:
        raise CheckpointError(f"{file} has format version {head.get('version')!r}, this program reads {VERSION}")
    if head.get("run") != run:
        raise CheckpointError(f"{file} belongs to run {head.get('run')!r}, not to {run!r}")
    complete = isinstance(head.get("files"), dict) and isinstance(head.get("state"), dict)
    if head.get("iteration") != int(path.name) or not complete:
        raise CheckpointError(f"{file} is damaged: it does not describe the checkpoint after iteration {int(path.name)}")
    return head


def _check_files(path: Path, files: dict[str, Any]) -> None:
    for name, written in files.items():
        file = path / name
        if Path(name).name != name:
            raise CheckpointError(f"{path / _STATE} names {name!r}, which is outside the checkpoint")
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if (size := file.stat().st_size) != written["bytes"]:
            raise CheckpointError(f"{file} is truncated: it has {size} of {written['bytes']} bytes")
        if _digest(file) != written["sha256"]:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one that was written")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(paths: Iterable[Path]) -> None:
    """Hide first, so that a directory that is half removed is never taken for a checkpoint."""
    for path in list(paths):
        if path.name[0] != ".":
            path = path.rename(path.with_name(f".{path.name}.removed-{secrets.token_hex(4)}"))
        shutil.rmtree(path, ignore_errors=True)
