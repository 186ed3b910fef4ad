"""How long people wait: for the library, for the command line's help, for the page."""

import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from workbench.benchmarks.serving import ROOT, serving

REPEATS = 3


def bench_startup() -> dict[str, float]:
    """Median seconds of three fresh processes each; the first of them may also pay for a cold disk."""
    return {
        "import_seconds": _median(lambda: _run("-c", "import workbench")),
        "help_seconds": _median(lambda: _run("-m", "workbench", "--help")),
        "page_seconds": _median(_page),
    }


def _median(measure: Callable[[], float]) -> float:
    return round(statistics.median(measure() for _ in range(REPEATS)), 2)


def _run(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - began


def _page() -> float:
    """From the command to the first answer with the page in it."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with serving(Path(folder)) as url, urllib.request.urlopen(url) as answer:
            answer.read()
            return time.perf_counter() - began
