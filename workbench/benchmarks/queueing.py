"""Whether the queue and the schedules keep their word while processes are killed: nothing lost, nothing twice, every end true."""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from workbench.benchmarks.serving import ROOT
from workbench.config import validated
from workbench.experiments.notebooks import VARIABLE
from workbench.experiments.papermilling import RUN
from workbench.experiments.queue import Queue
from workbench.experiments.schedules import Schedule, Schedules
from workbench.experiments.work import Work, submit
from workbench.records import Run
from workbench.store import Store

WATCHED_SECONDS = 0.05
KILL_WITHIN_SECONDS = 6.0  # of the moment at which a run is claimed

NOTED = f"""import os
def note(word):
    with open(side, "a") as file:
        file.write(os.environ["{RUN}"] + " " + word + "\\n")
"""


def bench_queue(runs: int = 100, kills: int = 10, parallel: int = 2, seed: int = 0) -> dict[str, Any]:
    """Queued notebooks, some of which are killed at random moments, as is the process that dispatches them, once.

    A notebook's first and last cell write a line into a file beside the record. A run is in its true state if it is done and
    both lines are there once, or if it was killed and the record says that it crashed or failed.

    Returns: counts; `lost`, `twice`, `untrue` and `left_behind` (processes of runs that are over) should all be 0.
    """
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, _noted_notebook(Path(folder)) as (name, side):
        store = Store(Path(folder) / "runs")
        work = Work(kind="notebook", config={"notebook": name, "parameters": {"side": str(side)}})
        queued = [submit(store, work, origin="benchmark") for _ in range(runs)]
        delays = {run: draw.uniform(0, KILL_WITHIN_SECONDS) for run in draw.sample(queued, kills)}
        half = draw.randrange(runs // 4, 3 * runs // 4)
        killed: dict[str, str] = {}
        began = time.monotonic()
        server, restarts, claimed = _serve(store, parallel), 0, dict[str, float]()
        try:
            while entries := {entry.run for entry in Queue(store).entries()}:
                _let_pass(server)
                if not restarts and len(queued) - len(entries) >= half:
                    server.kill()
                    server.wait()
                    server, restarts = _serve(store, parallel), 1
                for run in map(store.run, sorted(entries & delays.keys())):
                    if run.pid is not None and not run.over:
                        claimed.setdefault(run.id, time.monotonic())
                    if run.id in claimed and run.id not in killed and time.monotonic() - claimed[run.id] > delays[run.id]:
                        killed |= _kill_a_part(run, draw)
        finally:
            server.terminate()
            server.wait()
        seconds = time.monotonic() - began
        found = [store.run(run) for run in queued]
        noted = Counter(side.read_text().splitlines()) if side.exists() else Counter[str]()
        store.close()
        return {
            "runs": runs,
            "parallel": parallel,
            "statuses": dict(Counter(run.status for run in found)),
            "killed": dict(Counter(killed.values())),
            "dispatcher_killed": restarts,
            "lost": sum(not run.over for run in found),
            "twice": sum(noted[f"{run.id} {word}"] > 1 for run in found for word in ("begun", "ended")),
            "untrue": sum(not _is_true(run, run.id in killed, noted) for run in found),
            "left_behind": _left_behind({run.id for run in found}),
            "seconds": round(seconds, 1),
            "seconds_per_run": round(seconds / runs, 2),
        }


def bench_schedule(firings: int = 50, seconds: int = 2, restarts: int = 3, seed: int = 0) -> dict[str, Any]:
    """A schedule at short intervals, seen to by two processes, of which one or the other is killed and begun again.

    At the first of these restarts both are killed. The runs wait in a lane that nobody serves.

    Returns: counts; `missing` and `twice` should be 0, and there should be as many runs and places in the queue as firings.
    """
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, _noted_notebook(Path(folder)) as (name, side):
        store = Store(Path(folder) / "runs")
        work = {"kind": "notebook", "config": {"notebook": name, "parameters": {"side": str(side)}}, "lane": "nowhere"}
        trigger = {"name": "every", "amount": seconds, "unit": "seconds"}
        settings = {"name": "often", "work": work, "trigger": trigger, "timezone": "UTC", "catch_up": "all"}
        pair = [_serve(store, 1), _serve(store, 1)]
        schedules = Schedules(store)
        anchor = time.time()
        end = anchor + (firings + 0.5) * seconds
        schedules.add(validated(Schedule, settings), now=anchor)
        moments = sorted(anchor + draw.uniform(0.1, 0.9) * firings * seconds for _ in range(restarts))
        killed = 0
        try:
            while time.time() < end or _is_due(schedules, end):
                _let_pass(pair[0])
                if moments and time.time() > moments[0]:
                    moments.pop(0)
                    for place in (0, 1) if not killed else (draw.randrange(2),):
                        pair[place].kill()
                        pair[place].wait()
                        pair[place] = _serve(store, 1)
                    killed += 1
            schedules.pause("often")
        finally:
            for server in pair:
                server.terminate()
                server.wait()
        seen = [firing for firing in schedules.firings() if firing.due <= end]
        due = Counter(round((firing.due - anchor) / seconds) for firing in seen)
        figures = {
            "firings": firings,
            "every_seconds": seconds,
            "restarts": killed,
            "begun": sum(firing.state == "begun" for firing in seen),
            "missing": sum(due[place] == 0 for place in range(1, firings + 1)),
            "twice": sum(count > 1 for count in due.values()),
            "runs": sum(run.id in {firing.run for firing in seen} for run in store.runs()),
            "runs_of_no_firing": len({run.id for run in store.runs()} - {firing.run for firing in schedules.firings()}),
            "places_in_the_queue": len({entry.run for entry in Queue(store).entries()} & {firing.run for firing in seen}),
            "median_delay_seconds": round(sorted(firing.time - firing.due for firing in seen)[len(seen) // 2], 2),
            "largest_delay_seconds": round(max(firing.time - firing.due for firing in seen), 2),
        }
        store.close()
        return figures


def _is_due(schedules: Schedules, end: float) -> bool:
    following = schedules.get("often").next
    return following is not None and following <= end


@contextmanager
def _noted_notebook(folder: Path) -> Iterator[tuple[str, Path]]:
    """The name of a notebook that writes a line as it begins and as it ends, and the file that it writes them into."""
    import nbformat

    before = os.environ.get(VARIABLE)
    made = nbformat.v4.new_notebook()
    cells = ('side: str = ""  # file that is written into', NOTED + 'note("begun")', "sum(range(10**6))", 'note("ended")')
    made.cells = [nbformat.v4.new_markdown_cell("# Noted"), *map(nbformat.v4.new_code_cell, cells)]
    made.cells[1].metadata.tags = ["parameters"]
    (folder / "notebooks").mkdir()
    nbformat.write(made, folder / "notebooks" / "noted.ipynb")
    os.environ[VARIABLE] = str(folder / "notebooks")
    try:
        yield "noted", folder / "noted.txt"
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _serve(store: Store, parallel: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "workbench", "schedule", "serve", "--parallel", str(parallel), "--runs", str(store.location)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _let_pass(server: "subprocess.Popen[bytes]") -> None:
    """A moment, unless the server ends in it. Raises: RuntimeError: if it ended by itself."""
    try:
        status = server.wait(WATCHED_SECONDS)
    except subprocess.TimeoutExpired:
        return
    raise RuntimeError(f"a server ended by itself with status {status}")


def _kill_a_part(run: Run, draw: random.Random) -> dict[str, str]:
    """Kill one of the processes of a run: what drives it, papermill or the kernel. Returns: the run and which it was, if any."""
    try:
        family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        place = draw.randrange(len(family))
        family[place].kill()
    except psutil.NoSuchProcess:
        return {}
    return {run.id: ("supervisor", "papermill", "kernel")[min(place, 2)]}


def _is_true(run: Run, killed: bool, noted: "Counter[str]") -> bool:
    if run.status == "done":
        return noted[f"{run.id} begun"] == noted[f"{run.id} ended"] == 1
    return killed and run.status in ("crashed", "failed")


def _left_behind(runs: set[str], seconds: float = 10.0) -> int:
    """How many processes of runs that are over still live after a while."""

    def living() -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if _of_a_run(process, runs)]

    return len(psutil.wait_procs(living(), timeout=seconds)[1])


def _of_a_run(process: psutil.Process, runs: set[str]) -> bool:
    try:
        return process.environ().get(RUN) in runs and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
