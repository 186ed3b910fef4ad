"""What the tests of pages share: an app in a process of its own, a store with two runs, and ways to look at its page."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect
from toy_run import toy_config, toy_events

from workbench.benchmarks.serving import ROOT, serving
from workbench.config import RunConfig
from workbench.events import Event, IterationDone
from workbench.store import Store

LOADED = 60_000  # milliseconds; a busy machine takes long to load a page
expect.set_options(timeout=20_000)


@dataclass(frozen=True)
class Served:
    """The app, and the store that it looks at."""

    url: str
    store: Store
    finished: str  # a run that is done
    hacked: str  # one whose pictures drifted


def run_app(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "app.py"), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}
    )


def begin(store: Store, config: RunConfig) -> str:
    """A run that this process drives."""
    run = store.create("train", config.model_dump(mode="json"), title=config.title, origin="command line")
    store.claim(run)
    store.set_status(run, "running")
    return run


def record(store: Store, run: str, events: Iterator[Event], until: int | None = None) -> None:
    for event in events:
        store.record(run, event)
        if until is not None and isinstance(event, IterationDone) and event.iteration == until:
            return


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    store = Store(folder / "runs")
    hacked = begin(store, toy_config(30, title="Hacked toy"))
    record(store, hacked, toy_events(toy_config(30), drift=5.0))
    finished = begin(store, toy_config(20, title="Finished toy"))
    record(store, finished, toy_events(toy_config(20)))
    for run in (hacked, finished):
        store.set_status(run, "done")
    with serving(store.location) as url:
        yield Served(url, store, finished, hacked)
    store.close()


def barriers(page: Page, within: str = "body") -> list[tuple[str, list[str], str]]:
    """What axe finds that keeps people out: the rule, the first place, and why."""
    found = Axe().run(page, context=within).response["violations"]
    return [(item["id"], item["nodes"][0]["target"], item["nodes"][0].get("failureSummary")) for item in found]


def listen(page: Page) -> list[str]:
    """What the browser complains of from now on."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    return found


@pytest.fixture
def errors(page: Page) -> Iterator[list[str]]:
    """What the browser complained of; nothing, at the end of a test."""
    found = listen(page)
    yield found
    assert not found


@pytest.fixture(scope="module")
def finished(browser: Browser, served: Served) -> Iterator[Page]:
    """One page of the finished run, for all tests that only look."""
    context = browser.new_context(viewport={"width": 1440, "height": 950})
    page = context.new_page()
    found = listen(page)
    show(page, served, served.finished)
    yield page
    context.close()
    assert not found


@pytest.fixture
def live(served: Served) -> Iterator[tuple[str, Iterator[Event]]]:
    """A run in the middle of its twelfth iteration, and the events that are still to come."""
    config = toy_config(30, title="Live toy")
    run, events = begin(served.store, config), toy_events(config)
    record(served.store, run, events, until=12)
    yield run, events
    served.store.set_status(run, "stopped")


def show(page: Page, served: Served, run: str, query: str = "") -> Locator:
    page.goto(f"{served.url}?run={run}{query}")
    expect(page.locator(".wb-group").first).to_be_visible(timeout=LOADED)
    return page.locator(".wb")


def plotted(page: Page, name: str) -> Locator:
    """A chart's drawing; a chart is drawn only once its card is in view."""
    page.locator(f'[data-chart="{name}"]').scroll_into_view_if_needed()
    return page.locator(f'[data-chart="{name}"] .main-svg').first
