"""Begins the processes that train one run together, watches over them, and says what became of them.

They get the environment that torchrun gives, so that torchrun or a cluster's own launcher may begin them as well. But torchrun
kills half a minute after Ctrl-C, in which an iteration of a large model does not end; here it ends, with a checkpoint.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from workbench.experiments import rank_process
from workbench.experiments.executors import environment, last_words
from workbench.experiments.queue import Queue
from workbench.experiments.rank_process import Told
from workbench.store import Store

LOGS = "processes"
"""In a run's directory: what each process said, in a file of its own."""

GRACE_SECONDS = 8.0
"""How long the others have to notice that one of them has died, before they are ended too."""

END_SECONDS = 60.0
"""How long the others have to end after the one that keeps the record has."""


@dataclass(frozen=True)
class Nodes:
    """The machines that share a run's processes, and which of them this one is."""

    count: int = 1
    index: int = 0
    address: str = "127.0.0.1"  # of the first
    port: int = 0  # there; 0: any that is free, for one machine alone
    seconds: float = 600.0  # in which all processes have to come up

    def processes_here(self, processes: int) -> int:
        """How many of a run's processes this machine has. Raises: ValueError: if they do not divide, or a number is wrong."""
        if not 0 <= self.index < self.count:
            raise ValueError(f"--node = {self.index}: {self.count} nodes are numbered from 0 to {self.count - 1}")
        if processes % self.count:
            raise ValueError(f"--processes = {processes} is over all nodes, and does not divide over --nodes = {self.count}")
        if self.count > 1 and not self.port:
            raise ValueError("several nodes need --address and --port, those of the first, the same on each of them")
        return processes // self.count


class Team:
    """The processes of a run that this machine has; each in a session of its own, so that Ctrl-C reaches none by itself.

    Args:
        task: what the first process has to do, as `rank_process.main` reads it; None on other machines than the first.
        logs: folder for what the processes say; None for a temporary one.
    """

    def __init__(
        self, processes: int, nodes: Nodes, values: Mapping[str, str], task: Mapping[str, Any] | None, logs: Path | None
    ) -> None:
        here = nodes.processes_here(processes)
        first, self.count = nodes.index * here, processes
        self.whole = here == processes  # no other machine has any
        self._temporary = TemporaryDirectory(prefix="workbench-") if logs is None else None
        self.logs = Path(self._temporary.name) if self._temporary else logs or Path()
        self.logs.mkdir(parents=True, exist_ok=True)
        common = dict(values) | {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(here), "NODE_RANK": str(nodes.index)}
        common |= {"MASTER_ADDR": nodes.address, "MASTER_PORT": str(nodes.port or _free_port())}
        common |= {rank_process.WAIT: str(nodes.seconds)}
        common.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // here)))
        self._processes = {
            rank: self._begin(rank, common | {"RANK": str(rank), "LOCAL_RANK": str(rank - first)}, None if rank else task)
            for rank in range(first, first + here)
        }
        self.pid = self._processes[first].pid if task is not None else None  # of the process that keeps the record
        self._deadline: float | None = None
        self._ended: dict[int, tuple[float, int]] = {}  # when, and the exit status; those that ended by themselves
        self._late: list[int] = []  # those that had to be ended, as they did not follow

    def _begin(self, rank: int, values: Mapping[str, str], task: Mapping[str, Any] | None) -> "subprocess.Popen[bytes]":
        self._told(rank).unlink(missing_ok=True)
        command = [sys.executable, "-m", rank_process.__name__, str(self._told(rank)), *([json.dumps(task)] if task else [])]
        with (self.logs / f"{rank}.txt").open("wb") as log:
            return subprocess.Popen(
                command, env=dict(values), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def goes_on(self, seconds: float = 0.2) -> bool:
        """Whether any of them lives, after waiting a little.

        Where one has failed, the others have to follow soon. Where one has ended well, the one that keeps the record may take its
        time; once that has ended, the others have to follow.
        """
        living = [process for rank, process in self._processes.items() if rank not in self._ended]
        with suppress(subprocess.TimeoutExpired):
            living[0].wait(seconds)
        for rank, process in self._processes.items():
            if rank not in self._ended and process.poll() is not None:
                self._ended[rank] = (time.time(), process.returncode)
                if process.returncode or not self._keeps():
                    patience = GRACE_SECONDS if process.returncode else END_SECONDS
                    self._deadline = min(self._deadline or float("inf"), time.monotonic() + patience)
        if len(self._ended) == len(self._processes):
            return False
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._late = [rank for rank in self._processes if rank not in self._ended]
            self.end()
            return False
        return True

    def interrupt(self) -> None:
        """Ask them to stop after the current iteration, with a checkpoint."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """Leave none of them."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def failure(self) -> Told | None:
        """What the first that failed said last; None where all ended well.

        One that was killed could say nothing, and the others failed because they missed it.
        """
        failed = {rank: status for rank, (_, status) in self._ended.items() if status}
        if not failed and self._late:
            late = f"process {self._late[0]} of {self.count} had not ended {END_SECONDS:g} s after another had, and was ended"
            return Told(time.time(), late, "", False)
        if not failed:
            return None
        told = {rank: found for rank in failed if (found := Told.read(self._told(rank))) is not None}
        silent = [rank for rank in failed if rank not in told]
        rank = silent[0] if silent else min(told, key=lambda rank: told[rank].at)
        who = f"process {rank} of {self.count}"
        if rank in told:
            return Told(told[rank].at, f"{who}: {told[rank].error}", told[rank].trace, told[rank].recorded)
        if failed[rank] < 0:
            killed = signal.Signals(-failed[rank]).name
            hint = "; the system does so where memory runs out" if killed == "SIGKILL" else ""
            return Told(self._ended[rank][0], f"{who} was ended by {killed}{hint}", "", False)
        said = last_words(self.logs / f"{rank}.txt") or f"exit status {failed[rank]}"
        return Told(self._ended[rank][0], f"{who}: {said}", "", False)

    def close(self) -> None:
        """Leave none of them, and no temporary folder."""
        self.end()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _keeps(self) -> bool:
        """Whether the process that keeps the record is one of these and lives."""
        return any(process.pid == self.pid and rank not in self._ended for rank, process in self._processes.items())

    def _told(self, rank: int) -> Path:
        return self.logs / f"{rank}.json"


def team_of(
    store: Store,
    run: str,
    nodes: Nodes | None = None,
    *,
    checkpoint: int | None = None,
    changes: Mapping[str, Any] | None = None,
    fresh: bool = False,
) -> Team:
    """Begin the processes that drive a run together.

    Args:
        checkpoint: the iteration to go on from; the last one by default, where there is one.
        changes: settings that hold from there on.
        fresh: only where the run waits for its first driver, or for the next one after a failure.
    Raises: ValueError: if its processes do not divide over the nodes.
    """
    processes = store.run(run).config["compute"]["processes"]
    task = {"runs": str(store.location), "run": run, "checkpoint": checkpoint, "changes": dict(changes or {}), "fresh": fresh}
    with store.disk(store.folder(run)):
        return Team(processes, nodes or Nodes(), environment(store, None), task, store.folder(run) / LOGS)


def settle(store: Store, run: str, team: Team) -> None:
    """See to it that the record says why a run ended, where the process that kept it could not say so, or knew less."""
    failure = team.failure()
    lost = failure is not None and not team.whole and any(name in failure.error for name in ("gloo", "NCCL"))
    if failure is None or (failure.recorded and not lost):
        return
    if lost:  # it is the other machine that knows
        told = "a process of another machine ended, or the network between; what launch said there tells why"
        failure = replace(failure, error=f"{told} ({failure.error})")
    remedy = "; it can be resumed from its last checkpoint" if store.checkpoints(run) else ""
    error, found = f"{failure.error}{remedy}", store.run(run)
    said = store.correct(run, team.pid, error)
    if not said and found.status == "queued" and found.pid is None and Queue(store).entry(run) is None:
        said = store.set_status(run, "failed", error)
    if said and failure.trace:
        store.write_traceback(run, failure.trace)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
