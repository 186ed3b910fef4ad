"""Runs again what was run before, from its record: the same settings, seeds, threads, and what was changed on the way."""

import hashlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, update

from workbench.branching import branch_state
from workbench.checkpoints import CheckpointError, write_checkpoint
from workbench.config import RunConfig, change_live, parse_config
from workbench.events import CheckpointReady
from workbench.exact_json import to_json
from workbench.experiments import papermilling
from workbench.experiments.differences import Differences, between
from workbench.experiments.queue import LANE, Entry, enqueue
from workbench.masking import masked
from workbench.provenance import SOURCE, Provenance, collect, git, read_provenance
from workbench.records import Run
from workbench.replay import Replay, replay_of, write_replay
from workbench.store import TITLE_LENGTH, Store
from workbench.tables import RUNS

TAG = "reproduction"
"""Among the tags of a run that repeats another; that one is its parent."""

AT_COMMIT = "at-commit"
"""The lane of a run that repeats another with the code of then; whoever queues it begins it, and no other dispatcher does."""

_GIT_SECONDS = 120.0


def reproduce(store: Store, run: str, *, command: str = "", lane: str = LANE) -> str:
    """Queue a run that repeats another, and return its id; `compare` says afterwards how well it did.

    Settings that were changed while the run went on change again at the same iterations, torch works with the same number of
    threads, and a run that was stopped stops there again. What was resumed needs no care: going on is exact.

    Args:
        command: what the user typed.
    Raises: ValueError: if the run is not over, is no run by itself, or something that it began from is missing or damaged.
    """
    found = store.run(run)
    if not found.over:
        raise ValueError(f"run {found.id} is {found.status}; it can be reproduced once it has ended")
    if found.kind not in ("train", "pretrain", "notebook"):
        raise ValueError(
            f"run {found.id} is of kind {found.kind!r}, which computes nothing itself; reproduce the runs that belong to it"
        )
    replay = replay_of(store, found)
    begin = _beginning(store, found, replay.begins)
    own = store.folder(found.id) / papermilling.SOURCE
    if found.kind == "notebook" and not own.is_file():
        raise ValueError(
            f"run {found.id} is a notebook that was run by hand, so its cells were not recorded; run it through the queue"
        )

    def along(connection: Connection, new: str) -> None:
        folder = store.folder(new)
        with store.disk(folder):
            write_replay(replay, folder)
            if begin is not None:
                write_checkpoint(folder / "checkpoints", new, begin)
            if found.kind == "notebook":
                shutil.copyfile(own, folder / papermilling.SOURCE)
        connection.execute(update(RUNS).where(RUNS.c.id == new).values(tags=to_json([TAG])))
        enqueue(connection, Entry(new, lane))

    settings = found.config
    if found.kind == "notebook":  # its training adds its own settings again
        settings = {name: value for name, value in settings.items() if name not in RunConfig.model_fields}
    title = f"Reproduction of {found.title}"[:TITLE_LENGTH]
    origin = f"reproduction of {found.id}"
    return store.create(found.kind, settings, title=title, origin=origin, command=command, parent=found.id, along=along)


def begun_from(store: Store, origin: str, iteration: int, config: RunConfig) -> CheckpointReady:
    """The state that a branch with these settings goes on from, as `branch_state`, from a recorded run after an iteration.

    Raises: ValueError: if there is no such run or checkpoint, or its weights do not fit.
    """
    parent = store.run(origin)
    checkpoint = store.load_checkpoint(parent.id, iteration)
    settings = parse_config(parent.training or {})
    for row in store.events(parent.id, kinds=("Changed",)):
        if row.iteration < iteration:
            settings = change_live(settings, row.data["changes"])
    return branch_state(checkpoint, settings, config)


def since(store: Store, run: str) -> Differences | None:
    """What is different here and now from what a run was made with; None where that was not recorded.

    The number of threads is left out, since a reproduction sets it.

    Raises: ValueError: if there is no such run, or what it was made with is damaged.
    """
    found = store.run(run)
    drivers = read_provenance(store, found.id)
    if not drivers:
        return None
    apart = between(drivers[-1], collect(found.config, found.command, kind=found.kind))
    return replace(apart, environment=tuple(item for item in apart.environment if item.name != "threads"))


def remedy(store: Store, run: str) -> list[str]:
    """The commands that bring back the code of a run, in a folder of its own; none where its commit is not known."""
    found = store.run(run)
    drivers = read_provenance(store, found.id)
    if not drivers or drivers[-1].code.commit is None:
        return []
    code, place = drivers[-1].code, f"../at-{drivers[-1].code.commit[:12]}"
    lines = [f"git worktree add --detach {place} {code.commit}"]
    if code.patch:
        lines.append(f"git -C {place} apply {shlex.quote(str(store.folder(found.id) / code.patch))}")
    return lines


@contextmanager
def worktree(store: Store, run: str, repository: Path = SOURCE, *, stays: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """The repository as a run found it, in a temporary folder: its commit with the uncommitted changes of then.

    Args:
        stays: whether the folder is left where it is, asked at the end; a process may still run what is in it.
    Raises: ValueError: if the commit or the changes are not known, not here, damaged, or do not fit.
    """
    found = store.run(run)
    drivers = read_provenance(store, found.id)
    code = drivers[-1].code if drivers else None
    if code is None or code.commit is None:
        raise ValueError(
            f"run {found.id} does not say of which commit it was made{f': {code.note}' if code and code.note else ''}"
        )
    patch = _patch(store, found, drivers[-1])
    folder = Path(tempfile.mkdtemp(prefix="workbench-"))
    tree, otherwise = folder / code.commit[:12], f"commit {code.commit} cannot be checked out"
    try:
        _do(repository, "worktree", "add", "--detach", str(tree), code.commit, otherwise=otherwise)
        try:
            if patch is not None:
                _do(tree, "apply", "--whitespace=nowarn", str(patch), otherwise=f"{patch} does not fit on commit {code.commit}")
            yield tree
        finally:
            if not stays():
                _do(repository, "worktree", "remove", "--force", str(tree), otherwise=f"{tree} cannot be removed")
    finally:
        with suppress(OSError):  # it is not empty where the tree stays
            folder.rmdir()


def _beginning(store: Store, run: Run, begins: tuple[str, int] | None) -> CheckpointReady | None:
    """What a branch began from, as it was then; None for a run that began from nothing."""
    if begins is None:
        return None
    (origin, iteration), config = begins, parse_config(run.config)
    try:
        return begun_from(store, origin, iteration, config)
    except ValueError as error:
        kind = "is damaged or missing" if isinstance(error, CheckpointError) else "is missing"
        raise ValueError(
            f"run {run.id} began from the checkpoint after iteration {iteration} of run {origin}, which {kind}: {error}"
        ) from None


def _patch(store: Store, run: Run, told: Provenance) -> Path | None:
    """The file of uncommitted changes, checked; None where there were none."""
    code = told.code
    if not code.dirty:
        return None
    if code.patch is None:
        raise ValueError(f"the uncommitted changes that run {run.id} was made with were not kept: {code.note}")
    path = store.folder(run.id) / code.patch
    if not path.is_file():
        raise ValueError(f"{path} is missing, so the uncommitted changes that run {run.id} was made with are not known")
    if hashlib.sha256(path.read_bytes()).hexdigest() != code.patch_sha256:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one that was written")
    return path


def _do(folder: Path, *arguments: str, otherwise: str) -> None:
    try:
        git(folder, *arguments, seconds=_GIT_SECONDS)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["git failed"]
        raise ValueError(f"{otherwise}: {masked(said[-1])}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{otherwise}: {error}") from None


def said_of(replay: Replay) -> list[str]:
    """What a reproduction does besides running, in words."""
    lines = [f"settings change after iteration {at}: {_pairs(changes)}" for at, changes in sorted(replay.changes.items())]
    counts = ", ".join(f"{count} from iteration {start} on" if start else str(count) for start, count in replay.threads)
    lines += [f"threads: {counts}"] if counts else []
    return lines + ([f"it stops after iteration {replay.until}, as that run did"] if replay.until is not None else [])


def _pairs(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in changes.items())
