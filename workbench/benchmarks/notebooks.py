"""What it costs that a notebook run is a run: recorded, supervised, with a kernel of its own."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import numpy as np
from scipy import stats

from workbench.experiments.executors import environment
from workbench.experiments.notebooks import VARIABLE
from workbench.experiments.work import Work, submit
from workbench.store import Store

_CELLS = ("x: int = 1  # a number", "print(x)")


class _Took(NamedTuple):
    """Seconds."""

    wall: float
    processor: float


def bench_notebook_overhead(pairs: int = 12, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Wall time of a queued run of the smallest notebook over the bare `papermill` command on the same file.

    Both are timed as a process from its start to its end: `python -m workbench execute RUN` with record, supervisor, parameters
    and provenance; and `papermill IN OUT -p x 2`. The two of a pair follow one another, in either order by turns, so that a
    change of the machine's speed strikes both. The first pair warms up and is not kept.

    Returns: for wall time and for the processor's time of all processes together, the median seconds of either, and the median
        of the pairs' differences with its 95 % interval (by ranks).
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write(folder / "smallest.ipynb")
        store = Store(folder / "runs")
        values = environment(store, None) | {VARIABLE: str(folder)}
        seconds: list[list[_Took]] = []
        for index in range(pairs + 1):
            by_turns = (_bare, _recorded) if index % 2 else (_recorded, _bare)
            took = {measure: measure(store, folder, values) for measure in by_turns}
            if index:
                seconds.append([took[_recorded], took[_bare]])
                if progress is not None:
                    told = f"{took[_recorded].wall:.2f} and {took[_bare].wall:.2f} s"
                    progress(f"notebook_overhead: pair {index} of {pairs}, {told}")
        store.close()
    return {"pairs": pairs, "wall": _figures(np.array(seconds)[..., 0]), "processor": _figures(np.array(seconds)[..., 1])}


def _write(path: Path) -> None:
    made = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}})
    made.cells = [nbformat.v4.new_code_cell(cell) for cell in _CELLS]
    made.cells[0].metadata.tags = ["parameters"]
    nbformat.write(made, path)


def _recorded(store: Store, folder: Path, values: Mapping[str, str]) -> _Took:
    """Seconds of `execute`; queueing lies before it."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder)
    try:
        config = {"notebook": "smallest", "parameters": {"x": 2}}
        run = submit(store, Work(kind="notebook", config=config), origin="bench")
    finally:
        os.environ.pop(VARIABLE)
        os.environ.update({} if before is None else {VARIABLE: before})
    seconds = _seconds([sys.executable, "-m", "workbench", "execute", run, "--runs", str(store.location), "--json"], values)
    if store.run(run).status != "done":
        raise RuntimeError(f"the measured run ended as {store.run(run).status}: {store.run(run).error}")
    return seconds


def _bare(store: Store, folder: Path, values: Mapping[str, str]) -> _Took:
    out = folder / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(folder / "smallest.ipynb"), str(out), "-p", "x", "2", "--no-progress-bar"]
    seconds = _seconds(command, values)
    if "2\n" not in json.dumps(nbformat.read(out, 4)["cells"]).replace("\\n", "\n"):
        raise RuntimeError("papermill did not execute the notebook")
    return seconds


def _seconds(command: list[str], values: Mapping[str, str]) -> _Took:
    used, began = _processor(), time.perf_counter()
    made = subprocess.run(command, env=dict(values), capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {made.stderr.strip()[-500:]}")
    return _Took(time.perf_counter() - began, _processor() - used)


def _processor() -> float:
    """The processor's time of all processes that have ended and were waited for, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _figures(seconds: "np.ndarray[Any, np.dtype[np.float64]]") -> dict[str, float]:
    """Of seconds [pairs, 2]: a recorded run and papermill."""
    apart = seconds[:, 0] - seconds[:, 1]
    low, high = _median_interval(apart)
    run, bare = np.median(seconds, 0).tolist()
    return {"run": run, "papermill": bare, "overhead": float(np.median(apart)), "overhead_low": low, "overhead_high": high}


def _median_interval(values: "np.ndarray[Any, np.dtype[np.float64]]") -> tuple[float, float]:
    """The 95 % interval of the median of independent draws, from their order alone."""
    ordered, least = np.sort(values), int(stats.binom.ppf(0.025, len(values), 0.5))
    return float(ordered[max(0, least - 1)]), float(ordered[min(len(values) - 1, len(values) - least)])
