"""Where a run comes from: code, packages, machine, weights, prompts and seeds, written down when its driver begins.

It holds no secret: nothing of the environment's variables is read, and what was typed is masked.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import runpy
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import workbench
from workbench.first_line import first_line
from workbench.masking import masked
from workbench.processes import this_process
from workbench.whole_file import whole_file

if TYPE_CHECKING:
    from workbench.contracts import Extension
    from workbench.store import Store

FILE = "provenance.json"
"""In a run's directory: one entry for each process that drove it, in their order."""

LARGEST_PATCH = 4 * 2**20
"""Bytes of uncommitted changes that are kept; more are told by their digest alone, since half a patch cannot be applied."""

_FORMAT = "flow-map-workbench provenance"
SOURCE = Path(workbench.__file__).parent.parent
"""The folder that the package lies in, the root of its repository where there is one."""

_GIT_SECONDS = 5.0
_PREFIXES = ("--src-prefix=a/", "--dst-prefix=b/")  # whatever the user's own settings say, so that it can be applied
_MOST_UNTRACKED, _LARGEST_UNTRACKED = 200, 64 * 2**20
_WHOLE = 2 * 2**30  # bytes of a weight file that are read to its end
_ENDS = 64 * 2**20  # of a larger one: this much of its beginning, and of its end


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Code(_Told):
    """The state of the repository that the package lies in. `note` says why, where something is not known."""

    commit: str | None = None
    branch: str | None = None
    dirty: bool = False  # tracked files differ from the commit
    patch: str | None = None  # the file in the run's directory that holds these changes
    patch_sha256: str | None = None
    untracked: dict[str, str] = {}  # SHA-256 by name; empty where the file was too large to read
    note: str = ""
    changes: bytes = Field(b"", exclude=True, repr=False)  # the patch itself; it gets a file of its own


class Machine(_Told):
    """What computes. `threads` are those that torch works with, on which the last bits of a CPU's sums depend."""

    host: str
    python: str
    platform: str
    processor: str
    cores: int
    threads: int
    torch: str
    cuda: str | None = None
    driver: str | None = None
    devices: tuple[str, ...] = ()


class Weights(_Told):
    """A file that was loaded, or the revision of the hub that it came from."""

    owner: str  # the extension that names it
    path: str
    bytes: int
    sha256: str
    whole: bool = True  # otherwise the digest is of the file's beginning, end and size
    revision: str | None = None


class Prompts(_Told):
    """One split of the task's prompts."""

    count: int
    sha256: str


class Provenance(_Told):
    """What one driver of a run knew of itself when it began. `notes` say what could not be found out, and why."""

    at: float  # seconds since 1970
    iteration: int  # that it began from: 0, or that of a checkpoint
    command: str  # what the user typed
    process: str  # the command of the process that drove the run
    version: str  # of this package
    store: str
    code: Code
    machine: Machine
    packages: dict[str, str]  # version by name
    weights: tuple[Weights, ...] = ()
    prompts: dict[str, Prompts] = {}  # by split
    seeds: dict[str, int] = {}  # by dotted key
    notes: tuple[str, ...] = ()


def collect(config: Mapping[str, Any], command: str, *, kind: str = "train", iteration: int = 0, store: str = "") -> Provenance:
    """What can be said of this process about to drive a run with these settings; takes a fraction of a second once.

    Code and packages are those found at the first call of a process, since they are what it has loaded. Nothing that cannot be
    found out is an error: it is told in a note.

    Args:
        store: the URL of the database, without its password.
    """
    notes: list[str] = []
    task, extensions = _parts(kind, config, notes)
    return Provenance(
        at=time.time(),
        iteration=iteration,
        command=masked(command),
        process=masked(shlex.join(sys.argv)),
        version=workbench.__version__,
        store=store,
        code=code_of(SOURCE),
        machine=_machine(config),
        packages=packages(),
        weights=tuple(_weights(extensions, notes)),
        prompts={} if task is None else {split: _digest_of(task.prompts(split)) for split in ("train", "held_out")},
        seeds=dict(_seeds(config)),
        notes=tuple(notes),
    )


def record_provenance(store: "Store", run: str, *, iteration: int = 0) -> Provenance:
    """Write down where a run comes from, in its directory: `provenance.json`, and the uncommitted changes as a patch beside it.

    To be called by whoever begins to drive it. A run that goes on gets a further entry, and keeps the earlier ones.

    Raises: StoreError: if the disk refuses.
    """
    found, folder = store.run(run), store.folder(run)
    told = collect(found.config, found.command, kind=found.kind, iteration=iteration, store=store.address)
    with store.disk(folder):
        try:
            earlier = list(read_provenance(store, run))
        except ValueError:
            os.replace(folder / FILE, folder / "provenance.damaged.json")
            earlier = []
            told = told.model_copy(update={"notes": (*told.notes, "what earlier drivers said of themselves could not be read")})
        if told.code.changes:
            told = told.model_copy(update={"code": _with_patch(told.code, folder, earlier)})
        entries = [entry.model_dump(mode="json") for entry in (*earlier, told)]
        with whole_file(folder / FILE) as hidden:
            hidden.write_text(json.dumps({"format": _FORMAT, "version": 1, "drivers": entries}, indent=1) + "\n")
    return told


def read_provenance(store: "Store", run: str) -> tuple[Provenance, ...]:
    """What the drivers of a run said of themselves, in their order; none where nothing was recorded.

    Raises: ValueError: if the file is damaged, naming it.
    """
    path = store.folder(run) / FILE
    if not path.is_file():
        return ()
    try:
        head = json.loads(path.read_bytes())
        if not isinstance(head, dict) or head.get("format") != _FORMAT or head.get("version") != 1:
            raise ValueError(f"it lacks the marker {_FORMAT!r}, version 1")
        return tuple(Provenance.model_validate(entry) for entry in head["drivers"])
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        why = "an entry is not as this program writes it" if isinstance(error, ValidationError) else str(error)
        raise ValueError(
            f"{path} is damaged: {why}; what run {run} was made with is not known any more. Take it from a copy or an archive of "
            "the run, or remove the file to go on without it"
        ) from None


def summary(told: Provenance) -> list[tuple[str, str]]:
    """A provenance in words, as pairs of a label and what it says."""
    code, machine = told.code, told.machine
    state = "" if code.commit is None else ", with uncommitted changes" if code.dirty else ", nothing uncommitted"
    commit = f"{code.commit[:12]} on {code.branch or 'no branch'}{state}" if code.commit else "not known"
    more = f" and {len(code.untracked) - 5} more" if len(code.untracked) > 5 else ""
    untracked = ", ".join(sorted(code.untracked)[:5]) + more
    device = ", ".join(machine.devices) or f"{machine.processor} ({machine.cores} cores)"
    cuda = f", CUDA {machine.cuda}" if machine.cuda else ""
    driver = f", driver {machine.driver}" if machine.driver else ""
    lines = [
        ("Began", _when(told.at) + (f", from iteration {told.iteration}" if told.iteration else "")),
        ("Command", told.command or told.process),
        ("Commit", commit),
        ("Changes", f"{code.patch} ({(code.patch_sha256 or '')[:12]})" if code.patch else ""),
        ("Untracked files", untracked),
        ("Code", code.note),
        ("Workbench", told.version),
        ("Python", f"{machine.python} on {machine.platform}"),
        ("Torch", f"{machine.torch}{cuda}{driver}, {machine.threads} thread{'s' * (machine.threads != 1)}"),
        ("Device", device),
        ("Host", machine.host),
        ("Record", told.store),
        ("Packages", f"{len(told.packages)} installed"),
        *((f"Weights of {file.owner}", _file_in_words(file)) for file in told.weights),
        *((f"Prompts, {split.replace('_', ' ')}", f"{each.count}, {each.sha256[:12]}") for split, each in told.prompts.items()),
        ("Seeds", ", ".join(f"{key} {value}" for key, value in told.seeds.items())),
        *(("Not known", note) for note in told.notes),
    ]
    return [(label, text) for label, text in lines if text]


# Code


@lru_cache
def code_of(folder: Path) -> Code:
    """The repository that tracks the package in this folder, as it is at the first call."""
    try:
        top = Path(git(folder, "rev-parse", "--show-toplevel").decode().strip())
        if not git(folder, "ls-files", "--", "workbench/__init__.py"):
            return Code(note="the package is installed, not part of a git repository; its version is all that is known of it")
        commit, branch = git(top, "rev-parse", "HEAD", "--abbrev-ref", "HEAD").decode().split()
        changes = git(top, "diff", "--binary", "--full-index", "--no-ext-diff", "--no-textconv", "--no-color", *_PREFIXES, "HEAD")
        others = git(top, "ls-files", "-z", "--others", "--exclude-standard").decode(errors="replace").split("\0")[:-1]
    except FileNotFoundError:
        return Code(note="git is not installed, so the commit is not known")
    except subprocess.TimeoutExpired:
        return Code(note=f"git took longer than {_GIT_SECONDS:g} s, so the commit is not known")
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["it failed"]
        return Code(note=f"the commit is not known: git says {said[-1]!r}")
    except OSError as error:
        return Code(note=f"the commit is not known: {error}")
    notes = []
    if len(changes) > LARGEST_PATCH:
        size, most = len(changes) / 2**20, LARGEST_PATCH / 2**20
        notes.append(f"the uncommitted changes are {size:.1f} MiB, more than the {most:g} MiB kept; only their digest is here")
    if len(others) > _MOST_UNTRACKED:
        notes.append(f"of {len(others)} untracked files the first {_MOST_UNTRACKED} are named")
    return Code(
        commit=commit,
        branch=None if branch == "HEAD" else branch,
        dirty=bool(changes),
        patch_sha256=hashlib.sha256(changes).hexdigest() if changes else None,
        untracked={name: _digest_if_small(top / name) for name in others[:_MOST_UNTRACKED]},
        note="; ".join(notes),
        changes=changes if len(changes) <= LARGEST_PATCH else b"",
    )


def git(folder: Path, *arguments: str, seconds: float = _GIT_SECONDS) -> bytes:
    """What git prints. Raises: OSError or subprocess.SubprocessError: if there is no git, it fails, or takes too long."""
    command = ["git", "-c", "core.quotepath=off", "-c", "core.fsmonitor=false", *arguments]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    made = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=True
    )
    return made.stdout


def _with_patch(code: Code, folder: Path, earlier: Sequence[Provenance]) -> Code:
    """The same code, its changes in a file of the run: that of an earlier driver if it had the same ones."""
    for entry in earlier:
        if entry.code.patch and entry.code.patch_sha256 == code.patch_sha256 and (folder / entry.code.patch).is_file():
            return code.model_copy(update={"patch": entry.code.patch})
    number = len({entry.code.patch for entry in earlier if entry.code.patch}) + 1
    name = "changes.patch" if number == 1 else f"changes-{number}.patch"
    with whole_file(folder / name) as hidden:
        hidden.write_bytes(code.changes)
    return code.model_copy(update={"patch": name})


# Machine


@lru_cache
def packages() -> dict[str, str]:
    """Every installed distribution with its version, by name."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        told = distribution.metadata
        if told is not None and told["Name"]:
            found.setdefault(told["Name"], told["Version"] or "")  # the first on the path is the one that is imported
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _machine(config: Mapping[str, Any]) -> Machine:
    compute = config.get("compute")
    asked = compute.get("threads") if isinstance(compute, Mapping) else None
    version, cuda = _torch()
    return Machine(
        host=this_process()[0],
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=asked if isinstance(asked, int) and asked > 0 else _threads(),
        torch=version,
        cuda=cuda,
        driver=_driver(),
        devices=_devices(),
    )


@lru_cache
def _torch() -> tuple[str, str | None]:
    """Its version and that of CUDA which it was built for; what a process has not loaded is not loaded for this."""
    found = importlib.util.find_spec("torch")
    told = runpy.run_path(str(Path(found.origin).parent / "version.py")) if found and found.origin else {}
    return str(told.get("__version__", "none")), told.get("cuda")


def _threads() -> int:
    """How many threads torch works with; where it is not loaded, as many as it will begin with."""
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else psutil.cpu_count(logical=False) or os.cpu_count() or 1


@lru_cache
def _processor() -> str:
    """The processor's name; its instructions decide which kernels torch runs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


@lru_cache
def _driver() -> str | None:
    """The version of NVIDIA's driver, where the system tells it."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().partition("\n")[0]
    except OSError:
        return None
    return next((word for word in first.split() if word[0].isdigit() and "." in word), None)


def _devices() -> tuple[str, ...]:
    """Names of the accelerators that torch can see; where it is not loaded, of those that the system names.

    Where the system tells what is built in, torch is not asked: it would take memory on each of them.
    """
    told = Path("/proc/driver/nvidia/gpus").glob("*/information")
    built_in = [line.partition(":")[2].strip() for file in told for line in file.read_text().splitlines() if line[:6] == "Model:"]
    torch = sys.modules.get("torch")
    if torch is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return tuple(built_in if visible is None else built_in[: len([name for name in visible.split(",") if name.strip()])])
    if not torch.cuda.is_available():
        return ("MPS",) if torch.backends.mps.is_available() else ()
    count, models = torch.cuda.device_count(), set(built_in)
    return (models.pop(),) * count if len(models) == 1 else tuple(torch.cuda.get_device_name(index) for index in range(count))


# Inputs


def _parts(kind: str, config: Mapping[str, Any], notes: list[str]) -> "tuple[Any, list[tuple[str, Extension | Path]]]":
    """The task of a run, and what it loads: extensions, or files, each by its name."""
    try:
        if kind == "train" or (kind == "notebook" and "objective" in config):  # a notebook's training adds its settings
            from workbench.config import RunConfig, parse_config

            settings = parse_config({name: value for name, value in config.items() if name in RunConfig.model_fields})
            trained, judging = (each.reward for each in settings.rewards), (each.reward for each in settings.eval_rewards)
            extensions: list[Any] = [settings.model, *trained, *judging]
            loaded: list[Any] = [*((each.name, each) for each in extensions), ("adapter.start", settings.adapter)]
            return settings.task, loaded
        if kind == "pretrain":
            from workbench.models.embedded import shipped_weights
            from workbench.pretrain import recorded_recipe
            from workbench.recipes.distillation import DistillationRecipe

            recipe = recorded_recipe(config)
            if isinstance(recipe, DistillationRecipe):
                return recipe.task, [("source", recipe.teacher)]
            begins = getattr(recipe, "begins_as", "")
            domain = getattr(recipe, "domain", None)
            return domain and domain.task, [(begins, shipped_weights(begins))] if begins else []
    except ValueError as error:
        notes.append(f"the settings are not valid here, so weights and prompts are not known: {first_line(error)}")
    return None, []


def _weights(parts: "Sequence[tuple[str, Extension | Path]]", notes: list[str]) -> Iterator[Weights]:
    for owner, part in parts:
        for path in (part,) if isinstance(part, Path) else part.weight_files():
            try:
                yield weights_of(owner, path)
            except OSError as error:
                notes.append(f"the weights of {owner} in {path} cannot be read: {error.strerror or error}")


def weights_of(owner: str, path: Path) -> Weights:
    """A file of weights and its digest, which is that of its beginning, end and size where it is larger than 2 GiB.

    A file of the hub's cache is told with its revision; its digest is the name that the cache gave it.

    Raises: OSError: if it cannot be read.
    """
    status, snapshot = path.stat(), path.parent
    while snapshot.name and snapshot.parent.name != "snapshots":
        snapshot = snapshot.parent
    revision, blob = snapshot.name or None, path.resolve().name
    if revision and len(blob) == 64 and all(letter in "0123456789abcdef" for letter in blob):
        return Weights(owner=owner, path=str(path), bytes=status.st_size, sha256=blob, revision=revision)
    digest = _digest_of_file(path, status.st_size, status.st_mtime_ns)
    whole = status.st_size <= _WHOLE
    return Weights(owner=owner, path=str(path), bytes=status.st_size, sha256=digest, whole=whole, revision=revision)


@lru_cache(maxsize=64)
def _digest_of_file(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        if size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        digest.update(file.read(_ENDS))
        file.seek(-_ENDS, os.SEEK_END)
        digest.update(file.read())
        return digest.hexdigest()


def _digest_if_small(path: Path) -> str:
    """The digest of a file; empty for one that is too large to be read in passing, or gone."""
    try:
        size = path.stat().st_size
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and size <= _LARGEST_UNTRACKED else ""
    except OSError:
        return ""


def _digest_of(prompts: Sequence[str]) -> Prompts:
    return Prompts(count=len(prompts), sha256=hashlib.sha256("\n".join(prompts).encode()).hexdigest())


def _seeds(config: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name == "seed" and isinstance(value, int):
                yield f"{prefix}{name}", value
            else:
                yield from _seeds(value, f"{prefix}{name}.")


def _file_in_words(file: Weights) -> str:
    of = "" if file.whole else " of its ends"
    revision = f", revision {file.revision[:12]}" if file.revision else ""
    return f"{Path(file.path).name}, {file.bytes / 2**20:.1f} MiB, {file.sha256[:12]}{of}{revision}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
