"""Four tabs open on a run for a long while: whether all stay live, and whether the server's memory stays flat."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.benchmarks.page import start_long_run, until_training
from workbench.benchmarks.serving import CHROMIUM_FLAGS, chromium, serving
from workbench.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Page

TABS = ("train", "train", "runs", "playground")
WARM_UP = 60.0
EVERY = 10.0


def bench_tabs(seconds: float = 3600.0) -> dict[str, Any]:
    """A run that does not end, watched by two visitors with two tabs each, after a minute of warming up.

    Returns: resident memory of the server at the start and at the end, as medians of a tenth of the samples each, MiB, and its
        slope over all, MiB an hour; and how far the slowest Train tab was behind the record at the end, in iterations.
    """
    import psutil
    from playwright.sync_api import sync_playwright
    from scipy import stats

    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as url, sync_playwright() as playwright:
        store = Store(folder)
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_FLAGS))
        server = next(child for child in psutil.Process().children() if "app.py" in " ".join(child.cmdline()))
        run = start_long_run(browser, url)
        visitors = [browser.new_context(), browser.new_context()]
        tabs = [visitors[place % 2].new_page() for place in range(len(TABS))]
        for page, name in zip(tabs, TABS, strict=True):
            page.goto(f"{url}?run={run}&tab={name}")
        until_training(store, run, tabs[0])
        tabs[0].wait_for_timeout(1000 * WARM_UP)
        began, times, memory = time.monotonic(), [], []
        while time.monotonic() - began < seconds:
            tabs[0].wait_for_timeout(1000 * EVERY)
            times.append(time.monotonic() - began)
            memory.append(server.memory_info().rss / 2**20)
        behind = max(store.run(run).iteration - _shown(page) for page, name in zip(tabs, TABS, strict=True) if name == "train")
        store.wish(run, "stop")
        browser.close()
        store.close()
    part = max(1, len(memory) // 10)
    return {
        "seconds": round(times[-1]),
        "start_mib": round(statistics.median(memory[:part]), 1),
        "end_mib": round(statistics.median(memory[-part:]), 1),
        "slope_mib_per_hour": round(3600 * float(stats.linregress(times, memory).slope), 1),
        "iterations_behind": behind,
    }


def _shown(page: "Page") -> int:
    """The iteration that a tab shows."""
    return int(page.locator('[data-fact="iteration"]').inner_text().split()[0])
