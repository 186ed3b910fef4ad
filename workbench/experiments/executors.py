"""Where a queued run gets its process: each executor begins `python -m workbench execute RUN` somewhere.

Wherever that is, it finds this package, the folder of runs and their database under the same names.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import workbench
from workbench.places import REWARDS, reward_folder
from workbench.store import Store

LOG = "log.txt"
"""What the process of a run printed, in the run's directory."""


class Started(Protocol):
    """A process that was begun for a run."""

    def ended(self) -> str | None:
        """None while it goes on; then the last it said, empty where it ended well."""
        ...

    def cancel(self) -> None:
        """Take it back before it begins the run; one that is begun obeys the wishes of the record instead."""
        ...


class Executor(Protocol):
    """Begins processes."""

    def start(self, store: Store, run: str, device: str | None) -> Started:
        """Begin the process that drives a run. Raises: OSError or RuntimeError: if it cannot."""
        ...


class Local:
    """Subprocesses of this machine, each in a session of its own: they outlive whoever began them.

    Args:
        source: the root of another repository to run the package from.
    """

    def __init__(self, source: Path | None = None) -> None:
        self._source = source

    def start(self, store: Store, run: str, device: str | None) -> "LocalProcess":
        values = environment(store, device)
        if self._source is not None:
            values["PYTHONPATH"] = f"{self._source}{os.pathsep}{values['PYTHONPATH']}"
        with store.disk(store.folder(run)), (store.folder(run) / LOG).open("ab") as log:
            process = subprocess.Popen(
                command(store, run),
                cwd=self._source,
                env=values,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return LocalProcess(process, store.folder(run) / LOG)


class LocalProcess:
    """A subprocess and its log."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process = process
        self._log = log

    def ended(self) -> str | None:
        """None while it goes on; then the last it said, empty where it ended well."""
        status = self._process.poll()
        return None if status is None else said(status, self._log)

    def cancel(self) -> None:
        """Take it back before it begins the run."""
        self._process.terminate()


def command(store: Store, run: str) -> list[str]:
    """What drives a run in a process of its own; the database's URL, which may hold a password, goes by the environment."""
    return [sys.executable, "-m", "workbench", "execute", run, "--runs", str(store.location)]


def environment(store: Store, device: str | None) -> dict[str, str]:
    """The environment of such a process: this package, this store, and one device if given; not what visitors of the app sign
    in with, which every cell of a notebook could read.
    """
    return {name: value for name, value in os.environ.items() if name != "WORKBENCH_AUTH"} | additions(store, device)


def last_words(log: Path) -> str:
    """The last line of a log that is not empty."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def said(status: int, log: Path) -> str:
    """The last that a process said, by its exit status and its log; empty where it ended well."""
    return "" if status == 0 else last_words(log) or f"exit status {status}"


def additions(store: Store, device: str | None) -> dict[str, str]:
    """What `environment` adds."""
    package = str(Path(workbench.__file__).parent.parent)
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH")) if part)
    values = {"WORKBENCH_STORE": store.url, "PYTHONPATH": path, REWARDS: str(reward_folder())}
    return values if device is None else values | {"CUDA_VISIBLE_DEVICES": device}
