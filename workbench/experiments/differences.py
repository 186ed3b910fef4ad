"""What differs between two runs: settings, code, environment, packages, prompts, weights."""

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from workbench import branching
from workbench.provenance import SOURCE, Code, Provenance, git, read_provenance
from workbench.records import Run
from workbench.replay import beginning
from workbench.store import Store

_LINES = 40  # most of a summary of changes


class Difference(NamedTuple):
    """One thing that is not the same, with what each side says; None where it says nothing."""

    name: str
    one: Any
    other: Any


@dataclass(frozen=True)
class Differences:
    """Two runs, or two environments, side by side. `notes` say what could not be compared."""

    config: tuple[Difference, ...] = ()
    code: tuple[Difference, ...] = ()
    diffstat: str = ""  # of the two commits
    environment: tuple[Difference, ...] = ()
    packages: tuple[Difference, ...] = ()
    prompts: tuple[Difference, ...] = ()
    weights: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def groups(self) -> dict[str, tuple[Difference, ...]]:
        """What differs, by what it is about; only where something does."""
        named = {name: getattr(self, name) for name in ("config", "code", "environment", "packages", "prompts", "weights")}
        return {name: found for name, found in named.items() if found}

    @property
    def nothing(self) -> bool:
        """Whether all that could be compared is the same."""
        return not self.groups


def difference(store: Store, a: str, b: str) -> Differences:
    """What differs between two runs, as the last driver of each told it.

    Raises: ValueError: if there is no such run, or what one of them was made with is damaged.
    """
    one, other = store.run(a), store.run(b)
    told = [read_provenance(store, run.id) for run in (one, other)]
    notes = [
        f"run {run.id} does not say what it was made with" for run, drivers in zip((one, other), told, strict=True) if not drivers
    ]
    settings = _differing(_settings(store, one), _settings(store, other))
    if notes:
        return Differences(config=settings, notes=tuple(notes))
    rest = between(told[0][-1], told[1][-1])
    return Differences(settings, *(getattr(rest, name) for name in Differences.__dataclass_fields__ if name != "config"))


def between(one: Provenance, other: Provenance) -> Differences:
    """What differs between two origins; no settings among it."""
    machines = [told.machine.model_dump(mode="json") | {"workbench": told.version} for told in (one, other)]
    code = _differing(_code(one.code), _code(other.code))
    notes = [f"{which} run: {told.code.note}" for which, told in (("first", one), ("second", other)) if told.code.note]
    diffstat = ""
    if one.code.commit and other.code.commit and one.code.commit != other.code.commit:
        try:
            diffstat = _diffstat(one.code.commit, other.code.commit)
        except (OSError, subprocess.SubprocessError):
            notes.append("the commits are not both in this repository, so what changed between them is not known")
    return Differences(
        code=code,
        diffstat=diffstat,
        environment=_differing(machines[0], machines[1]),
        packages=_differing(one.packages, other.packages),
        prompts=_differing(
            *({split: f"{each.count}, {each.sha256[:12]}" for split, each in told.prompts.items()} for told in (one, other))
        ),
        weights=_differing(*({file.owner: file.sha256 for file in told.weights} for told in (one, other))),
        notes=tuple(notes),
    )


def _settings(store: Store, run: Run) -> dict[str, Any]:
    """What a run depends on, by dotted key: its settings, where it began, and what was changed while it went on."""
    flat = {key: value for key, value in branching.flat(run.config).items() if key != "title"}
    if begins := beginning(store, run):
        flat["began from"] = f"iteration {begins[1]} of {begins[0]}"
    for row in store.events(run.id, kinds=("Changed",)):
        flat |= {f"{key}, changed after iteration {row.iteration}": value for key, value in row.data["changes"].items()}
    return flat if run.kind == "train" else flat | {"kind": run.kind}


def _code(code: Code) -> dict[str, Any]:
    untracked = {f"untracked {name}": digest[:12] for name, digest in code.untracked.items()}
    return {
        "commit": code.commit,
        "uncommitted changes": code.patch_sha256 and f"SHA-256 {code.patch_sha256[:12]}",
        **untracked,
    }


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[Difference, ...]:
    keys: Iterable[str] = {**one, **other}
    return tuple(Difference(key, one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key))


def _diffstat(one: str, other: str, folder: Path = SOURCE) -> str:
    lines = git(folder, "diff", "--stat=100", one, other, "--").decode(errors="replace").rstrip().splitlines()
    shown = lines if len(lines) <= _LINES else [*lines[: _LINES - 2], " ...", lines[-1]]
    return "\n".join(shown)
