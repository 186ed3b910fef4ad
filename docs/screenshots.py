"""Pictures of every page, wide and narrow, light and dark: `make screenshots` writes them to docs/screenshots."""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from workbench.benchmarks.serving import CHROMIUM_FLAGS, chromium, serving
from workbench.panels import PAGES

WIDTHS = (1440, 390)
SETTLED = 6_000  # milliseconds until pictures and charts are there


def main(folder: Path) -> None:
    """Open a fresh dashboard, which greets with its example run, and photograph it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as runs, serving(Path(runs)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_FLAGS))
        for scheme in ("light", "dark"):
            for width in WIDTHS:
                context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme)
                page = context.new_page()
                for name in [one.name for one in PAGES]:
                    photograph(page, f"{url}?tab={name}&__theme={scheme}", folder / f"{name}-{scheme}-{width}.png")
                context.close()
        browser.close()


def photograph(page: Page, address: str, path: Path) -> None:
    """One page in its full height, scrolled through once so that every chart is drawn."""
    page.goto(address)
    page.wait_for_selector(".wb-top")
    page.wait_for_timeout(SETTLED)
    height = page.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height, 800):
        page.evaluate(f"window.scrollTo(0, {top})")
        page.wait_for_timeout(400)
    page.wait_for_timeout(2_500)
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=path, full_page=True)
    print(f"{path}: {page.evaluate('document.documentElement.scrollWidth')} px wide")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/screenshots"))
