"""The Experiments page in a browser: notebooks are run and read, sweeps and schedules are planned, nights are looked back on."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect
from serving_page import LOADED, barriers
from toy_notebooks import TRAINS, write_notebook
from toy_run import SMALL

from workbench.benchmarks.serving import serving
from workbench.experiments.schedules import Schedules
from workbench.experiments.sweeps import begin_sweep
from workbench.panels.experiments import update
from workbench.store import Store
from workbench.studio import Studio

pytestmark = pytest.mark.xdist_group("page_experiments")

DIVIDES = (
    "by: int = 1  # what one is divided by\nwords: list[str] = ['a']  # some words\nloud: bool = False  # whether to shout",
    "import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 2]))",
    "print('<b>result</b>', 1 / by)",
)


@dataclass(frozen=True)
class Served:
    url: str
    store: Store


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("experiments")
    write_notebook(folder / "notebooks", "divides", *DIVIDES, text="# One divided\n\nBy a *number*.")
    write_notebook(folder / "notebooks", "trains", *TRAINS, text="# A small training")
    write_notebook(folder / "notebooks", "untagged", "x = 1", tagged=False)
    store = Store(folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_NOTEBOOKS", str(folder / "notebooks"))
        with serving(store.location) as url:
            yield Served(url, store)
    store.close()


def visit(page: Page, served: Served, query: str = "") -> Locator:
    page.goto(f"{served.url}?tab=experiments{query}")
    here = page.locator('[data-page="experiments"]')
    expect(here.get_by_role("heading", name="Experiments", level=1)).to_be_visible(timeout=LOADED)
    expect(here.locator('[data-slot="notebooks"] .ex-item')).to_have_count(3, timeout=LOADED)
    return here


def test_a_notebook_is_run_from_its_form_and_read_in_the_page(page: Page, served: Served, errors: list[str]) -> None:
    here = visit(page, served, "&notebook=divides")
    expect(here.get_by_text("By a number.")).to_be_visible()
    expect(here.get_by_label("by", exact=True)).to_have_value("1")
    here.get_by_label("words", exact=True).fill("a, b")
    here.get_by_role("button", name="Run", exact=True).click()
    expect(here.get_by_role("alert").filter(has_text="words = 'a, b'")).to_contain_text("list")
    assert not [run for run in served.store.runs("notebook") if run.config["notebook"] == "divides"]
    here.get_by_label("words", exact=True).fill('["b"]')
    here.get_by_label("loud", exact=True).check()
    here.get_by_role("button", name="Run", exact=True).click()
    line = here.locator('[data-slot="recent"] .ex-run').first
    expect(line).to_contain_text('words = ["b"], loud = true')
    expect(line.locator(".wb-badge")).to_have_attribute("data-status", "done", timeout=LOADED)
    assert served.store.runs("notebook")[0].config["parameters"] == {"by": 1, "words": ["b"], "loud": True}
    line.get_by_role("button", name="Output").click()
    frame = here.frame_locator('[data-slot="frame"]')
    expect(frame.get_by_text("<b>result</b> 1.0")).to_be_visible(timeout=LOADED)
    expect(frame.locator(".figure .main-svg").first).to_be_visible(timeout=LOADED)
    assert here.locator('[data-slot="frame"]').get_attribute("sandbox") == "allow-scripts"
    page.reload()
    expect(frame.get_by_text("<b>result</b> 1.0")).to_be_visible(timeout=LOADED)
    with page.expect_popup() as opened:
        here.get_by_role("link", name="Open in a tab").click()
    inside = opened.value.frame_locator("iframe")
    expect(inside.get_by_text("<b>result</b> 1.0")).to_be_visible(timeout=LOADED)
    assert inside.locator("body").evaluate("() => origin") == "null", "what a notebook shows must not reach the pages"


def test_a_failure_is_told_and_its_cell_is_found(page: Page, served: Served, errors: list[str]) -> None:
    here = visit(page, served, "&notebook=divides")
    here.get_by_label("by", exact=True).fill("0")
    here.get_by_role("button", name="Run", exact=True).click()
    line = here.locator('[data-slot="recent"] .ex-run').first
    expect(line.locator(".wb-badge")).to_have_attribute("data-status", "failed", timeout=LOADED)
    expect(line).to_contain_text("ZeroDivisionError")
    line.get_by_role("button", name="Output").click()
    here.get_by_role("button", name="Go to the failing cell").click()
    expect(here.frame_locator('[data-slot="frame"]').get_by_text("ZeroDivisionError").first).to_be_visible(timeout=LOADED)
    line.get_by_role("button", name="Again").click()
    expect(here.get_by_label("by", exact=True)).to_have_value("0")
    here.get_by_role("button", name="Defaults").click()
    expect(here.get_by_label("by", exact=True)).to_have_value("1")


def test_a_notebook_that_cannot_be_run_says_why(page: Page, served: Served, errors: list[str]) -> None:
    here = visit(page, served, "&notebook=untagged")
    expect(here.get_by_role("alert").filter(has_text="parameters")).to_be_visible()
    expect(here.get_by_role("button", name="Run", exact=True)).to_be_disabled()


def test_a_training_inside_a_notebook_is_live_on_the_page_of_trainings(page: Page, served: Served, errors: list[str]) -> None:
    here = visit(page, served, "&notebook=trains")
    here.get_by_role("button", name="Run", exact=True).click()
    line = here.locator('[data-slot="recent"] .ex-run').first
    expect(line.locator(".wb-badge")).to_have_attribute("data-status", "done", timeout=2 * LOADED)
    line.get_by_role("button", name="Curves").click()
    train = page.locator('[data-page="train"]')
    expect(train.locator(".wb-group").first).to_be_visible(timeout=LOADED)
    expect(train.locator('[data-chart="reward"] .main-svg').first).to_be_visible(timeout=LOADED)
    train.get_by_role("button", name="Output").click()
    expect(page.locator('[data-page="experiments"] [data-slot="output"]')).to_be_visible(timeout=LOADED)


def test_what_waits_can_be_taken_back(page: Page, served: Served, errors: list[str]) -> None:
    here = visit(page, served, "&notebook=trains")
    for _ in range(3):  # one begins, the others wait
        here.get_by_role("button", name="Run", exact=True).click()
        expect(page.get_by_text("Queued.")).to_be_visible()
    entries = here.locator(".ex-entry")
    last = entries.filter(has=page.get_by_role("button", name="Take back")).last
    expect(last).to_be_visible()
    last.get_by_role("button", name="Take back").click()
    expect(here.locator('[data-slot="recent"] .wb-badge[data-status="stopped"]').first).to_be_visible()
    expect(entries).to_have_count(0, timeout=2 * LOADED)


def test_a_sweep_is_sized_begun_and_shown_point_by_point(page: Page, served: Served, errors: list[str]) -> None:
    here = visit(page, served, "&view=sweeps")
    here.get_by_label("Setting that is varied").fill("sampler.nose")
    here.get_by_label("Its values").fill("0.3, 0.6")
    expect(here.get_by_role("alert").filter(has_text="sampler.nose")).to_contain_text("noise", timeout=LOADED)
    here.get_by_label("Setting that is varied").fill("sampler.noise")
    settings = SMALL | {"iterations": 1, "evaluation.steps": "[4]"}
    here.get_by_label("Fixed for all points").fill("\n".join(f"{key} = {value}" for key, value in settings.items()))
    here.get_by_label("Metric").fill("reward")
    here.get_by_label("Seeds").fill("2")
    expect(here.locator('[data-slot="size"]')).to_have_text("2 points x 2 seeds = 4 runs")
    here.get_by_role("button", name="Begin the sweep").click()
    expect(page).to_have_url(re.compile("sweep="))
    expect(here.locator('[data-slot="points"] tbody tr').first).to_be_visible(timeout=LOADED)
    expect(here.locator('[data-slot="best"]')).to_contain_text("highest reward", timeout=2 * LOADED)
    expect(here.locator('[data-slot="sweep-head"]')).to_contain_text("done", timeout=2 * LOADED)
    expect(here.locator('[data-slot="points"] tbody tr')).to_have_count(2)
    expect(here.locator('[data-slot="points"] tbody tr').first).to_contain_text("★")
    here.locator('[data-chart="points"]').scroll_into_view_if_needed()
    expect(here.locator('[data-chart="points"] .main-svg').first).to_be_visible(timeout=LOADED)
    here.get_by_role("button", name="Use these settings").click()
    expect(here.get_by_label("Its values")).to_have_value("0.3, 0.6")


def test_a_schedule_shows_its_times_before_it_is_planned_and_comes_back_when_removed(
    page: Page, served: Served, errors: list[str]
) -> None:
    here = visit(page, served, "&view=schedules")
    expect(here.get_by_text("Nothing is planned")).to_be_visible()
    here.get_by_label("Name").fill("nightly")
    here.get_by_label("What").select_option("notebook:divides")
    here.get_by_label("With").fill("by = 2")
    here.get_by_label("When").select_option("cron")
    here.get_by_label("Cron line").fill("0 25 * * *")
    expect(here.get_by_role("alert").filter(has_text="25")).to_contain_text("hour")
    here.get_by_label("Cron line").fill("30 4 * * *")
    expect(here.locator('[data-slot="times"]')).to_contain_text("04:30")
    here.get_by_role("button", name="Plan it").click()
    card = here.locator(".ex-schedule")
    expect(card).to_contain_text("notebook divides · 30 4 * * *")
    assert Schedules(served.store).get("nightly").schedule.work.config["parameters"]["by"] == 2
    card.get_by_role("button", name="Pause").click()
    expect(card).to_contain_text("paused")
    card.get_by_role("button", name="Resume").click()
    expect(card).to_contain_text("next")
    card.get_by_role("button", name="Change").click()
    expect(here.get_by_label("Cron line")).to_have_value("30 4 * * *")
    here.get_by_label("With").fill("by = 3")
    here.get_by_role("button", name="Save the change").click()
    expect(page.get_by_text("nightly is changed")).to_be_visible()
    assert Schedules(served.store).get("nightly").schedule.work.config["parameters"]["by"] == 3
    card.get_by_role("button", name="Remove").click()
    expect(here.get_by_text("Nothing is planned")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(card).to_be_visible()


def test_parameters_are_carried_into_a_schedule_and_a_sweep(page: Page, served: Served, errors: list[str]) -> None:
    here = visit(page, served, "&notebook=divides")
    here.get_by_label("by", exact=True).fill("4")
    here.get_by_role("button", name="Schedule…").click()
    expect(here.get_by_label("What")).to_have_value("notebook:divides")
    expect(here.get_by_label("With")).to_have_value("by = 4")
    page.go_back()
    here.get_by_label("by", exact=True).fill("5")
    here.get_by_role("button", name="Sweep…").click()
    expect(here.get_by_label("Of", exact=True)).to_have_value("notebook:divides")
    expect(here.get_by_label("Fixed for all points")).to_have_value("by = 5")


def test_the_digest_says_what_ran(page: Page, served: Served, errors: list[str]) -> None:
    here = visit(page, served, "&view=digest")
    frame = here.frame_locator('[data-slot="digest"]')
    expect(frame.get_by_text("Example: shapes aligned").first).to_be_visible(timeout=LOADED)


def test_a_sweep_on_the_page_of_trainings_leads_here(page: Page, served: Served, errors: list[str]) -> None:
    from workbench.experiments.space import SweepSettings

    target = {"preset": "shapes", "changes": {"iterations": 1}}
    sweep = begin_sweep(served.store, SweepSettings(target=target, space={"seed": (1,)}), origin="test")
    served.store.wish(sweep, "stop")
    page.goto(f"{served.url}?run={sweep}")
    expect(page.locator('[data-page="experiments"] [data-slot="sweep-head"]')).to_contain_text("seed", timeout=LOADED)


@pytest.mark.parametrize("view", ["notebooks", "sweeps", "schedules", "digest"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_keeps_nobody_out_and_fits_a_phone(page: Page, served: Served, errors: list[str], view: str, theme: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    visit(page, served, f"&view={view}&__theme={theme}")
    page.wait_for_timeout(1000)
    assert barriers(page, '[data-page="experiments"]') == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_folder_of_notebooks_is_the_only_one(served: Served, tmp_path: Path) -> None:
    from workbench.experiments.notebooks import notebook

    write_notebook(tmp_path, "elsewhere", "x: int = 1  # a number")
    with pytest.raises(ValueError, match="there is no notebook"):
        notebook(f"../../{tmp_path.name}/elsewhere")


def test_a_notebook_that_is_gone_leaves_its_runs_on_the_page(studio: Studio) -> None:
    config = {"notebook": "gone", "parameters": {"x": 2}}
    run = studio.store.create("notebook", config, title="Gone", origin="test")
    parts = update(studio, {"view": "notebooks", "notebook": "gone"})
    (line,) = parts["recent"][1]()
    assert (line["id"], line["own"]) == (run, {"x": 2})
    assert parts["queue"][1]()["entries"] == []
