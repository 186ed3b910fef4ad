"""How soon a move of the Playground's noise or anchor slider is on screen, with the example run."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from workbench.benchmarks.serving import CHROMIUM_FLAGS, chromium, serving

MOVES = 30

# from a slider's event to the samples repainted, as the browser sees it
WATCH = """() => {
  window.move = (name, value) => new Promise((done) => {
    const slider = document.querySelector(`input[type=range][data-knob=${name}]`);
    const tile = document.querySelector(".pg-tiles .pg-pick .pic"), before = tile.style.backgroundImage;
    const began = performance.now();
    const observer = new MutationObserver(() => {
      if (tile.style.backgroundImage === before) return;
      observer.disconnect();
      requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
    });
    observer.observe(tile, { attributes: true, attributeFilter: ["style"] });
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  });
}"""


def bench_playground(moves: int = MOVES) -> dict[str, Any]:
    """Moves of each slider, one after another, the browser sharing the machine.

    Returns: for noise and anchor the median, the 95th percentile and the largest, in seconds.
    """
    from playwright.sync_api import sync_playwright

    found: dict[str, Any] = {"moves": moves}
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_FLAGS))
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.goto(f"{url}?tab=playground")
        page.wait_for_selector(".pg-cell")
        page.wait_for_timeout(1500)
        page.evaluate(WATCH)
        for name in ("noise", "anchor"):
            seconds = []
            for place in range(moves):
                value = 0.15 + 0.8 * ((7 * place) % moves) / moves  # each different, and far from the last
                seconds.append(page.evaluate("([name, value]) => window.move(name, value)", [name, value]) / 1000)
                page.wait_for_timeout(300)
            percentiles = statistics.quantiles(seconds, n=20)
            found[name] = {"median": round(percentiles[9], 3), "p95": round(percentiles[18], 3), "worst": round(max(seconds), 3)}
        browser.close()
    return found
