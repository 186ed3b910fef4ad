"""One run of a notebook: a supervisor, which the queue began, watches over papermill and its kernel, and says how it went.

Papermill works in a process of its own, its kernel in another, each the first of a group: whatever happens to one of the three,
none of the others is left behind. What the notebook's own metadata say of its end is never believed.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from sqlalchemy import exists, insert, select, update

from workbench.experiments.executors import environment
from workbench.provenance import record_provenance
from workbench.store import StoreError
from workbench.tables import EVENTS, RUNS, WISHES

if TYPE_CHECKING:
    from workbench.experiments.queue import Entry
    from workbench.records import Run
    from workbench.store import Store

NOTEBOOK, SOURCE = "notebook.ipynb", "source.ipynb"
"""In a run's directory: the notebook with its outputs, as far as it has come; and as it was when the run began."""

RUN, FOLDER = "WORKBENCH_RUN", "WORKBENCH_RUNS"
"""Variables that tell a kernel which run it is, and in which folder of run directories; WORKBENCH_STORE tells the database."""

ERROR_ANCHOR = "papermill-error-cell"
"""Where the failing cell begins, in an output notebook that is shown as a page."""

UNTAKEN_SECONDS = 2.0
"""A wish to stop that no training in the notebook has taken by then is not going to be taken."""
GRACE_SECONDS = 120.0
"""For a training that has taken it, to come to the end of its iteration and keep a checkpoint."""
INTERRUPT_SECONDS, TERMINATE_SECONDS, KILL_SECONDS = 5.0, 3.0, 5.0
"""What the kernel is given to end after each signal, until all is killed."""

_POLL_SECONDS = 0.2
_HEARTBEAT_SECONDS = 2.0
_SAVE_SECONDS = 5  # in a cell that takes long


def supervise(store: "Store", run: "Run", entry: "Entry", interrupted: Callable[[], bool]) -> None:
    """Drive a queued run of a notebook until it is over; the record says how it ended.

    Args:
        entry: its place in the queue, which holds the seconds that it may take.
        interrupted: whether this process was asked to end; the run then stops.
    Raises: ValueError: if the run does not wait: another process drives it, or it is over.
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
        record_provenance(store, run.id)  # while the kernel starts
        reason = _watch(store, run, papermill, entry.timeout, interrupted)
    except KeyboardInterrupt:
        papermill.end()
        store.set_status(run.id, "stopped")
        raise
    except StoreError as error:
        papermill.end()
        store.set_status(run.id, "failed", str(error))
        return
    finally:
        papermill.end()
    if papermill.trace:
        store.write_traceback(run.id, papermill.trace)
    store.set_status(run.id, *_outcome(papermill, reason, entry.timeout))


def _keep_source(store: "Store", run: "Run") -> None:
    """Take the notebook into the run's directory when it first begins; later attempts find it there as it was.

    Raises: ValueError: if it has changed since the run was queued, or is gone.
    """
    kept = store.folder(run.id) / SOURCE
    if not kept.is_file():
        from workbench.experiments.notebooks import checked_source

        content = checked_source(run.config)
        hidden = kept.with_name(f".{SOURCE}")
        with store.disk(kept.parent):
            hidden.write_bytes(content)
            os.replace(hidden, kept)


def _watch(
    store: "Store", run: "Run", papermill: "_Papermill", timeout: float | None, interrupted: Callable[[], bool]
) -> str | None:
    """Wait for the end, note progress, and see to it that the end comes where it is asked for.

    Returns: why it was made to end: "stopped" or "late"; None where it ended by itself.
    """
    began = heard = time.monotonic()
    reason: str | None = None
    steps: Iterator[None] = iter(())
    while papermill.goes_on():
        now = time.monotonic()
        if papermill.news():
            _note(store, run.id, *papermill.progress)
        if now - heard >= _HEARTBEAT_SECONDS:
            store.heartbeat(run.id)
            papermill.look()
            heard = now
        if reason is None:
            wanted = store.read(select(RUNS.c.wanted).where(RUNS.c.id == run.id))[0].wanted
            reason = "stopped" if wanted == "stop" or interrupted() else None
            reason = reason or ("late" if timeout and now - began > timeout else None)
            if reason is not None:
                steps = _insist(store, run.id, papermill, wished=wanted == "stop")
        next(steps, None)
    if papermill.news():
        _note(store, run.id, *papermill.progress)
    return reason


def _insist(store: "Store", run: str, papermill: "_Papermill", wished: bool) -> Iterator[None]:
    """Make a notebook end, a step at each turn: ask its training, then interrupt its kernel, terminate it, kill all."""
    stop = (WISHES.c.run == run) & (WISHES.c.wanted == "stop")
    if not wished:
        with store.writing() as connection:
            connection.execute(insert(WISHES).values(run=run, wanted="stop", changes="{}"))
    asked = time.monotonic()
    while untaken := bool(store.read(select(WISHES.c.id).where(stop).limit(1))):
        if time.monotonic() - asked > UNTAKEN_SECONDS:
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
        self._own = folder / "kernel"
        self._heard = b""
        self._news = False
        with store.disk(folder):
            name = _write_kernel(self._own, run.id)
            (folder / NOTEBOOK).unlink(missing_ok=True)  # an earlier attempt's
        values = environment(store, None) | {RUN: run.id, FOLDER: str(store.location), "JUPYTER_PATH": str(self._own)}
        values |= {"JUPYTER_RUNTIME_DIR": str(self._own / "runtime"), "IPYTHONDIR": str(self._own / "ipython")}
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), name],
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

    def news(self) -> bool:
        """Whether the progress is another than when this was last asked."""
        self._news, news = False, self._news
        return news

    def look(self) -> None:
        """Remember what the notebook has begun: a process that makes itself the first of a group is not found by its parent's."""
        self._family |= {child for pid in (self._process.pid, self._kernel) for child in _descendants(pid)}

    def signal(self, number: int) -> None:
        """To the kernel's group; to papermill's, while it has no kernel."""
        self.look()
        _signal_group(self._kernel or self._process.pid, number)

    def end(self) -> None:
        """Leave nothing of it: neither papermill nor its kernel, nor what they began."""
        self.look()
        for group in (self._kernel, self._process.pid):
            _signal_group(group, signal.SIGKILL)
        for process in self._family:
            _kill(process)
        self._socket.close()
        self.status = self._process.wait()
        psutil.wait_procs(self._family, timeout=KILL_SECONDS)
        shutil.rmtree(self._own, ignore_errors=True)

    def _take(self, told: dict[str, Any]) -> None:
        self._kernel = told.get("kernel", self._kernel)
        self.error, self.trace = told.get("error", self.error), told.get("trace", self.trace)
        if "progress" in told:
            self.progress, self._news = tuple(told["progress"]), True


def _write_kernel(folder: Path, run: str) -> str:
    """A kernel that is this interpreter, whatever others the machine knows; returns its name, which nothing else has."""
    name = f"workbench-{run}".lower()
    place = folder / "kernels" / name
    place.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": f"Run {run}", "language": "python"}
    (place / "kernel.json").write_text(json.dumps(spec))
    return name


def _descendants(pid: int | None) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True) if pid else []
    except psutil.NoSuchProcess:
        return []


def _signal_group(group: int | None, number: int) -> None:
    try:
        if group:
            os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return  # nothing of it is left, or only what has ended and was not yet waited for


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


# The other end of the socket: papermill's own process, which knows nothing of the record


def main(descriptor: int, kernel: str) -> int:
    """Execute the notebook in the working directory, which is the run's, with the parameters in its `config.json`.

    Tells of it through the socket. Exit status 0: all cells are done.
    """
    supervisor = socket.socket(fileno=descriptor)
    supervisor.set_inheritable(False)
    threading.Thread(target=_end_with, args=(supervisor,), daemon=True).start()

    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import execute_notebook

    from workbench.experiments.notebooks import code_cells

    parameters = json.loads(Path("config.json").read_text())["parameters"]
    cells = code_cells(Path(SOURCE).read_bytes()) + bool(parameters)  # papermill adds one that sets them
    done = 0

    def tell(**told: Any) -> None:
        supervisor.sendall(json.dumps(told).encode() + b"\n")

    def begun(cell: Any, cell_index: int) -> None:
        if cell_index == 0:
            tell(kernel=psutil.Process().children()[0].pid, progress=(0, cells))

    def executed(cell: Any, cell_index: int, execute_reply: Any) -> None:
        nonlocal done
        if execute_reply["content"]["status"] == "ok":
            done += 1
            tell(progress=(done, cells))

    try:
        execute_notebook(
            SOURCE,  # relative paths: papermill would look for places to fill in in others
            NOTEBOOK,
            parameters,
            kernel_name=kernel,
            language="python",
            progress_bar=False,
            autosave_cell_every=_SAVE_SECONDS,
            on_cell_start=begun,
            on_cell_executed=executed,
        )
    except PapermillExecutionError as error:
        trace = "\n".join(error.traceback)
        tell(error=f"cell {error.exec_count}: {error.ename}: {_first_line(error.evalue)}", trace=_plain(trace))
        return 1
    except Exception as error:  # a kernel that died, a disk that is full: whatever it is, the record has to say it
        died = type(error).__name__ == "DeadKernelError"
        why = "its kernel died; there may not have been enough memory" if died else f"{type(error).__name__}: {error}"
        tell(error=f"cell {done + 1}: {_first_line(why)}", trace=traceback.format_exc())
        return 1
    return 0


def _end_with(supervisor: socket.socket) -> None:
    """Wait until the supervisor is no more, or wants it; then take the kernel and this process along."""
    while supervisor.recv(64):
        continue
    for child in _descendants(os.getpid()):
        _signal_group(child.pid, signal.SIGKILL)
        _kill(child)
    os.killpg(0, signal.SIGKILL)


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 500 else f"{line[:499]}…"


def _plain(text: str) -> str:
    """Without the colours of a terminal."""
    return re.sub("\x1b\\[[0-9;]*m", "", text)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
