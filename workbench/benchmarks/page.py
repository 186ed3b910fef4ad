"""How live the page is while training runs in the same process on the same cores, and what it costs the training."""

import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.benchmarks.serving import CHROMIUM_FLAGS, chromium, serving
from workbench.config import configure
from workbench.records import Row
from workbench.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WINDOW_SECONDS = 15.0
ROUNDS = 4

# notes the first moment at which the page shows each iteration, by the clock that the store uses too
WATCH = """() => {
    window.shown = {};
    const fact = document.querySelector('[data-fact="iteration"]');
    const note = () => { const at = parseInt(fact.textContent); window.shown[at] = window.shown[at] || Date.now() / 1000; };
    new MutationObserver(note).observe(fact, { childList: true, characterData: true, subtree: true });
}"""


def bench_page() -> dict[str, Any]:
    """One run, watched and unwatched by turns; the browser shares the machine, as it does on a laptop.

    Returns: `latency_p95_seconds` from an iteration's row in the store to its number on the page, and the iterations per second
        with and without an open page, with the share that the page costs (negative within noise).
    """
    from playwright.sync_api import sync_playwright

    watched: list[float] = []
    alone: list[float] = []
    delays: list[float] = []
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as url, sync_playwright() as playwright:
        store = Store(folder)
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_FLAGS))
        clock = browser.new_page()
        run = start_long_run(browser, url)
        until_training(store, run, clock)
        for _ in range(ROUNDS):
            page = browser.new_page()
            page.goto(f"{url}?run={run}")
            page.wait_for_selector(".wb-group")
            page.evaluate(WATCH)
            rows = _window(store, run, clock)
            watched.append(_pace(rows))
            delays += _delays(rows, page)
            page.close()
            alone.append(_pace(_window(store, run, clock)))
        store.wish(run, "stop")
        browser.close()
        store.close()
    with_page, without = statistics.median(watched), statistics.median(alone)
    return {
        "latency_p95_seconds": round(statistics.quantiles(delays, n=20)[-1], 3),
        "latency_median_seconds": round(statistics.median(delays), 3),
        "iterations_seen": len(delays),
        "iterations_per_second_with_page": round(with_page, 3),
        "iterations_per_second_without": round(without, 3),
        "throughput_cost": round(1 - with_page / without, 3),
    }


def start_long_run(browser: "Browser", url: str) -> str:
    """Start a long run by the page's own button, evaluated only at its beginning; returns its id."""
    long = configure("shapes", {"iterations": 100_000, "evaluation.every": 100_000, "record.checkpoint_every": 100_000})
    page = browser.new_page()
    page.goto(url)
    page.locator('.wb-top [data-act="new"]').click()
    for name, value in (
        ("iterations", long.iterations),
        ("evaluation.every", long.evaluation.every),
        ("record.checkpoint_every", long.record.checkpoint_every),
    ):
        page.evaluate("([name, value]) => { document.querySelector(`[name='${name}']`).value = value }", [name, str(value)])
    page.locator('.wb-new [data-act="start"]').click()
    page.wait_for_url("**/?run=*")
    run = page.url.split("run=")[1]
    page.close()
    return run


def until_training(store: Store, run: str, clock: "Page") -> None:
    """Past the first evaluation and the slow first iterations."""
    while len(store.events(run, kinds=("IterationDone",), limit=8)) < 8:
        clock.wait_for_timeout(500)


def _window(store: Store, run: str, clock: "Page") -> list[Row]:
    """The iterations done in the next stretch of time."""
    cursor = store.cursor(run)
    clock.wait_for_timeout(1000 * WINDOW_SECONDS)
    return store.events(run, after=cursor, kinds=("IterationDone",))


def _pace(rows: list[Row]) -> float:
    """Iterations per second by the median time between two, which one hiccup of the machine does not move."""
    return 1 / statistics.median(later.time - earlier.time for earlier, later in pairwise(rows))


def _delays(rows: list[Row], page: "Page") -> list[float]:
    """Seconds from each row to the first number on the page that is at least as high: several may arrive in one tick."""
    page.wait_for_timeout(1500)
    shown = sorted((int(at), moment) for at, moment in page.evaluate("window.shown").items())
    return [next(moment for at, moment in shown if at >= row.iteration) - row.time for row in rows]
