"""One run of a notebook: a supervisor, which the queue began, watches over papermill and its kernel, and says how it went.

Papermill works in a process of its own, its kernel in another, each the first of a group: whatever happens to one of the three,
none of the others is left behind. What the notebook's own metadata say of its end is never believed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from sqlalchemy import exists, insert, select, update

from workbench.experiments import papermilling_process
from workbench.experiments.executors import environment
from workbench.experiments.papermilling_process import NOTEBOOK, SOURCE
from workbench.processes import descendants, is_alive, kill, signal_group
from workbench.store import StoreError
from workbench.tables import EVENTS, RUNS, WISHES
from workbench.whole_file import whole_file

if TYPE_CHECKING:
    from workbench.experiments.queue import Entry
    from workbench.records import Run
    from workbench.store import Store

RUN, FOLDER = "WORKBENCH_RUN", "WORKBENCH_RUNS"
"""Variables that tell a kernel which run it is, and in which folder of run directories; WORKBENCH_STORE tells the database."""

KERNEL = "kernel"
"""In a run's directory while its notebook goes on: what belongs to its kernel alone."""
LISTENS = f"{KERNEL}/listens"
"""In a run's directory while a training of its notebook obeys wishes, however long it takes to come to the next one."""

ERROR_ANCHOR = "papermill-error-cell"
"""Where the failing cell begins, in an output notebook that is shown as a page."""

UNTAKEN_SECONDS = 2.0
"""A wish to stop that nothing has taken by then is not going to be taken, where no training listens."""
GRACE_SECONDS = 120.0
"""For a training to take the wish; and then to come to the end of its iteration and keep a checkpoint."""
INTERRUPT_SECONDS, TERMINATE_SECONDS, KILL_SECONDS = 5.0, 3.0, 5.0
"""What the kernel is given to end after each signal, until all is killed."""
SETTLE_SECONDS = 600.0
"""For the record, where it cannot be written when a run has ended, to be made usable again."""

_POLL_SECONDS = 0.2
_HEARTBEAT_SECONDS = 2.0
_AGAIN_SECONDS = 1.0


def supervise(store: "Store", run: "Run", entry: "Entry", interrupted: Callable[[], bool]) -> None:
    """Drive a queued run of a notebook until it is over; the record says how it ended.

    A notebook that goes on does not depend on the record: while that cannot be used, its progress is not written.

    Args:
        entry: its place in the queue, which holds the seconds that it may take.
        interrupted: whether this process was asked to end; the run then stops.
    Raises:
        ValueError: if the run does not wait: another process drives it, or it is over.
        StoreError: if it cannot be written how the run ended.
    """
    store.claim(run.id, fresh=True)
    if store.run(run.id).wanted == "stop":
        store.set_status(run.id, "stopped")
        return
    try:
        _keep_source(store, run)
        papermill = _Papermill(store, run)
    except (ValueError, OSError, StoreError) as error:
        store.set_status(run.id, "failed", str(error))
        return
    try:
        store.set_status(run.id, "running")
        _say_where_it_comes_from(store, run.id)
        reason = _watch(store, run, papermill, entry.timeout, interrupted)
    except KeyboardInterrupt:
        papermill.end()
        _settle(store, run.id, "stopped")
        raise
    except StoreError as error:  # it has hardly begun
        papermill.end()
        _settle(store, run.id, "failed", str(error))
        return
    finally:
        papermill.end()
    _settle(store, run.id, *_outcome(papermill, reason, entry.timeout))
    if papermill.trace:
        with suppress(StoreError):  # its first line is in the record
            store.write_traceback(run.id, papermill.trace)


def end_at_once(store: "Store", run: str) -> None:
    """Let a supervisor of this machine end its notebook without waiting for anything: two signals are two requests.

    Nothing happens where it has ended, or is on another machine.
    """
    found = store.read(select(RUNS.c.host, RUNS.c.pid, RUNS.c.process_started).where(RUNS.c.id == run))[0]
    if found.pid is not None and is_alive(found.host, found.pid, found.process_started):
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ProcessLookupError):
                os.kill(found.pid, number)


def _settle(store: "Store", run: str, status: str, error: str | None = None) -> None:
    """Write down how a run ended; where the record refuses, again and again for a while."""
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            store.set_status(run, status, error)
            return
        except StoreError:
            if time.monotonic() > until:
                raise
        threading.Event().wait(_AGAIN_SECONDS)


def _say_where_it_comes_from(store: "Store", run: str) -> None:
    from workbench.provenance import record_provenance  # only now: the kernel is on its way

    record_provenance(store, run)


def _keep_source(store: "Store", run: "Run") -> None:
    """Take the notebook into the run's directory when it first begins; later attempts find it there as it was.

    Raises: ValueError: if it has changed since the run was queued, or is gone.
    """
    kept = store.folder(run.id) / SOURCE
    if not kept.is_file():
        from workbench.experiments.notebooks import checked_source

        content = checked_source(run.config)
        with store.disk(kept.parent), whole_file(kept) as hidden:
            hidden.write_bytes(content)


def _watch(
    store: "Store", run: "Run", papermill: "_Papermill", timeout: float | None, interrupted: Callable[[], bool]
) -> str | None:
    """Wait for the end, note progress, and see to it that the end comes where it is asked for.

    Returns: why it was made to end: "stopped" or "late"; None where it ended by itself.
    """
    began = heard = time.monotonic()
    noted = papermill.progress
    reason: str | None = None
    steps: Iterator[None] = iter(())
    while papermill.goes_on():
        now, wished = time.monotonic(), False
        with suppress(StoreError):  # the next turn tries again
            wished = store.read(select(RUNS.c.wanted).where(RUNS.c.id == run.id))[0].wanted == "stop"
            if now - heard >= _HEARTBEAT_SECONDS:
                heard = now
                papermill.look()
                if not store.heartbeat(run.id):  # this process was silent for so long that another one drives the run now
                    papermill.end()
            if papermill.progress != noted:
                _note(store, run.id, *papermill.progress)
                noted = papermill.progress
        if reason is None:
            reason = "stopped" if wished or interrupted() else "late" if timeout and now - began > timeout else None
            if reason is not None:
                steps = _insist(store, run.id, papermill, wished)
        next(steps, None)
    with suppress(StoreError):
        _note(store, run.id, *papermill.progress)
    return reason


def _insist(store: "Store", run: str, papermill: "_Papermill", wished: bool) -> Iterator[None]:
    """Make a notebook end, a step at each turn: ask its training, then interrupt its kernel, terminate it, kill all."""
    stop = (WISHES.c.run == run) & (WISHES.c.wanted == "stop")

    def is_untaken() -> bool:
        nonlocal wished
        try:
            if not wished:
                with store.writing() as connection:
                    connection.execute(insert(WISHES).values(run=run, wanted="stop", changes="{}"))
                wished = True
            return bool(store.read(select(WISHES.c.id).where(stop).limit(1)))
        except StoreError:
            return True

    asked = time.monotonic()
    while untaken := is_untaken():
        if time.monotonic() - asked > (GRACE_SECONDS if papermill.listens else UNTAKEN_SECONDS):
            break
        yield
    if not untaken:
        yield from _turns(GRACE_SECONDS)
    papermill.signal(signal.SIGINT)
    yield from _turns(INTERRUPT_SECONDS)
    papermill.signal(signal.SIGTERM)
    yield from _turns(TERMINATE_SECONDS)
    papermill.signal(signal.SIGKILL)
    yield from _turns(KILL_SECONDS)
    papermill.end()


def _turns(seconds: float) -> Iterator[None]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield


def _note(store: "Store", run: str, done: int, cells: int) -> None:
    """How far a notebook has come, in cells; the iterations of its training count instead once there is one."""
    trains = select(EVENTS.c.id).where(EVENTS.c.run == run, EVENTS.c.kind == "Started")
    values = {"iteration": done, "iterations": cells, "updated": time.time()}
    with store.writing() as connection:
        connection.execute(update(RUNS).where(RUNS.c.id == run, ~exists(trains)).values(values))


def _outcome(papermill: "_Papermill", reason: str | None, timeout: float | None) -> tuple[str, str | None]:
    """Status and error; what papermill's process ended with decides."""
    if papermill.status == 0:
        return "done", None
    if reason == "stopped":
        return "stopped", None
    done, cells = papermill.progress
    where = f"cell {done + 1} of {cells}" if cells else "before its first cell"
    if reason == "late":
        return "failed", f"{where}: it took longer than {timeout:g} s"
    if papermill.error:
        return "failed", papermill.error
    how = f"was killed by signal {-papermill.status}" if papermill.status < 0 else f"ended with status {papermill.status}"
    return "failed", f"{where}: papermill {how}; see log.txt in the run's folder"


class _Papermill:
    """Papermill in a process of its own, at the other end of a socket: closed, it ends papermill and kernel."""

    def __init__(self, store: "Store", run: "Run") -> None:
        folder = store.folder(run.id)
        self.progress = (0, 0)  # cells done, and all that hold code
        self.status = 0  # of the process, once it is over
        self.error = self.trace = ""
        self._kernel: int | None = None
        self._family: set[psutil.Process] = set()
        self._own, self._listens = folder / KERNEL, folder / LISTENS
        self._heard = b""
        with store.disk(folder):
            shutil.rmtree(self._own, ignore_errors=True)  # an earlier attempt's
            name = _write_kernel(self._own, run.id)
            (folder / NOTEBOOK).unlink(missing_ok=True)
        values = environment(store, None) | {RUN: run.id, FOLDER: str(store.location), "JUPYTER_PATH": str(self._own)}
        values |= {"JUPYTER_RUNTIME_DIR": str(self._own / "runtime"), "IPYTHONDIR": str(self._own / "ipython")}
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", papermilling_process.__name__, str(theirs.fileno()), name],
                env=values,
                cwd=folder,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._socket.settimeout(_POLL_SECONDS)

    def goes_on(self) -> bool:
        """Whether the process lives; listens for a moment to what it tells."""
        if self._socket.fileno() < 0:  # it was made to end
            return False
        try:
            heard = self._socket.recv(65_536)
        except TimeoutError:
            return True
        except ConnectionError:
            heard = b""
        *lines, self._heard = (self._heard + heard).split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        if heard:
            return True
        try:
            self.status = self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self.end()
        return False

    @property
    def listens(self) -> bool:
        """Whether a training in the notebook is going to take a wish."""
        return self._listens.exists()

    def look(self) -> None:
        """Remember what the notebook has begun: a process that makes itself the first of a group is not found by its parent's."""
        self._family |= {child for pid in (self._process.pid, self._kernel) for child in descendants(pid)}

    def signal(self, number: int) -> None:
        """To the kernel's group; to papermill's, while it has no kernel."""
        self.look()
        signal_group(self._kernel or self._process.pid, number)

    def end(self) -> None:
        """Leave nothing of it: neither papermill nor its kernel, nor what they began."""
        self.look()
        for group in (self._kernel, self._process.pid):
            signal_group(group, signal.SIGKILL)
        for process in self._family:
            kill(process)
        self._socket.close()
        self.status = self._process.wait()
        psutil.wait_procs(self._family, timeout=KILL_SECONDS)
        shutil.rmtree(self._own, ignore_errors=True)

    def _take(self, told: dict[str, Any]) -> None:
        self._kernel = told.get("kernel", self._kernel)
        self.error, self.trace = told.get("error", self.error), told.get("trace", self.trace)
        if "progress" in told:
            self.progress = tuple(told["progress"])


def _write_kernel(folder: Path, run: str) -> str:
    """A kernel that is this interpreter, whatever others the machine knows; returns its name, which nothing else has."""
    name = f"workbench-{run}".lower()
    place = folder / "kernels" / name
    place.mkdir(parents=True, exist_ok=True)
    history = "--HistoryManager.hist_file=:memory:"  # nobody's own; switched off, a kernel takes seconds to end
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", history]
    spec = {"argv": argv, "display_name": f"Run {run}", "language": "python"}
    (place / "kernel.json").write_text(json.dumps(spec))
    return name
