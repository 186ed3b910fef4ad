"""How long the page of all runs takes to open, and what it is sent, with a store as it is after months."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.benchmarks.serving import CHROMIUM_FLAGS, chromium, serving
from workbench.config import RunConfig, configure
from workbench.events import Evaluated, IterationDone, Measure, Preview, Started
from workbench.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Page

RUNS, ITERATIONS, LONG = 200, 50, 5000
ROUNDS = 5

NOTE_SIZES = """() => { window.sizes = []; const old = window.workbench.receive;
    window.workbench.receive = (news) => { window.sizes.push(JSON.stringify(news || 0).length); old(news); }; }"""


def bench_runs(runs: int = RUNS, long: int = LONG) -> dict[str, Any]:
    """A store of many runs, one of them long, seen by a browser on the same machine.

    Returns: `open_seconds` from the click on the navigation to the last line of the list, the median and the worst of several
        fresh visits; `tick_bytes_max`, the largest answer of the timer while one run goes on; `overlay_seconds` from choosing
        the long run and another to their curves.
    """
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        ids = [_record(store, long if index == 0 else ITERATIONS) for index in range(runs)]
        opened = []
        with serving(Path(folder)) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_FLAGS))
            for _ in range(ROUNDS):
                page = browser.new_page()
                page.goto(url)
                page.wait_for_selector("[data-slot=runs] option[value^='2']", state="attached")  # ids begin with their year
                opened.append(_timed(page, "document.querySelector('[data-go=runs]').click()", _LISTED, runs))
                if len(opened) < ROUNDS:
                    page.close()
            page.evaluate(NOTE_SIZES)
            going = _begin(store, configure("shapes"))
            for iteration in range(1, 41):
                store.record(going, IterationDone(iteration, {"reward": 0.5}, 0.1))
                page.wait_for_timeout(100)
            sizes = page.evaluate("window.sizes")
            choose = "(ids) => { for (const id of ids) document.querySelector(`[data-pick='${id}']`).click(); }"
            overlay = _timed(page, f"({choose})({ids[:2]!r})", _DRAWN, 2)
            browser.close()
        store.close()
    return {
        "runs": runs,
        "longest_run_iterations": long,
        "open_seconds_median": round(sorted(opened)[ROUNDS // 2], 3),
        "open_seconds_worst": round(max(opened), 3),
        "tick_bytes_max": max(sizes),
        "overlay_seconds": round(overlay, 3),
    }


_LISTED = "(count) => document.querySelectorAll('.runs-row:not([hidden])').length >= count"
_DRAWN = "(count) => (document.querySelector('[data-chart=overlay] .plot').data || []).length >= count"


def _timed(page: "Page", act: str, reached: str, count: int) -> float:
    """Seconds from an act in the browser until something is reached there."""
    begun = time.perf_counter()
    page.evaluate(f"() => {{ {act} }}")
    page.wait_for_function(reached, arg=count)
    return time.perf_counter() - begun


def _begin(store: Store, config: RunConfig) -> str:
    run = store.create("train", config.model_dump(mode="json"), title=config.title, origin="benchmark")
    store.claim(run)
    store.set_status(run, "running")
    return run


def _record(store: Store, iterations: int) -> str:
    """A finished run with as many rows as a real one, but for the rollouts, which this page does not read."""
    config = configure("shapes", {"iterations": iterations})
    run = _begin(store, config)
    names = ("shapes_dense", "shapes_exact", "shapes_fidelity", "palette_distance", "diversity", "layouts", "saturation")
    images = torch.randint(0, 256, (24, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    store.record(run, Started(0, {"device": "cpu"}))
    for iteration in range(iterations + 1):
        if iteration:
            store.record(run, IterationDone(iteration, dict.fromkeys(("reward", "kl", "ratio"), 0.01 * iteration), 0.5))
        if iteration % 10 == 0:
            measures = {4: {name: Measure(0.3 + 0.4 * iteration / iterations, 0.2, 0.9) for name in names}}
            shown = images if iteration in (0, iterations) else images[:0]
            prompts, seeds = ("two red circles",) * len(shown), tuple(range(len(shown)))
            store.record(run, Evaluated(iteration, measures, 256, prompts, seeds, Preview(shown)))
    store.set_status(run, "done")
    return run
