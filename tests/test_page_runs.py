"""The page of all runs in a real browser: find, annotate, compare, branch, export, import, delete and bring back."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Locator, Page, expect
from serving_page import LOADED, Served, barriers, begin, plotted, record
from toy_run import toy_config, toy_events

from workbench.config import configure, parse_config
from workbench.evaluate import load_policy
from workbench.events import CheckpointReady, Event
from workbench.export import write_weights

pytestmark = pytest.mark.xdist_group("page_runs")  # one app for all of them
TINY = {"grpo.groups": 2, "evaluation.images": 8, "evaluation.final_images": 8, "evaluation.preview": 4, "evaluation.steps": (4,)}


@pytest.fixture
def listed(page: Page, served: Served, errors: list[str]) -> Page:
    """The page with the list in it."""
    look(page, served)
    return page


def look(page: Page, served: Served, query: str = "") -> None:
    page.goto(f"{served.url}?tab=runs{query}")
    expect(page.locator(".runs-row").first).to_be_visible(timeout=LOADED)


def row(page: Page, run: str) -> Locator:
    return page.locator(f'.runs-row[data-id="{run}"]')


def opened(page: Page, run: str) -> Locator:
    row(page, run).get_by_role("button", name="Details").click()
    return row(page, run)


def recorded(served: Served, title: str, iterations: int = 4, status: str = "done", **changes: object) -> str:
    """A run whose checkpoint is one of the real model, with weights of its base."""
    config = toy_config(iterations, title=title, **{**TINY, **changes})
    run = begin(served.store, config)
    for event in toy_events(config):
        if not isinstance(event, CheckpointReady):
            served.store.record(run, event)
    weights = {name: value.detach() for name, value in load_policy(config, None, "cpu").parameters.items()}
    state = {"checked": True, "evaluated": iterations, "spreads": [1.0] * 3, "updates": iterations, "changes": {}}
    judged = {"base_reward": 0.4, "best": iterations, "best_reward": 0.5, "config": config.model_dump(mode="json")}
    empty: dict[str, torch.Tensor] = {}
    served.store.record(run, CheckpointReady(iterations, {"policy": weights, "ema": weights, "optimizer": empty}, state | judged))
    served.store.set_status(run, status)
    return run


def test_every_run_is_listed_with_status_progress_and_what_became_of_its_reward(listed: Page, served: Served) -> None:
    line = row(listed, served.finished)
    expect(line).to_contain_text("Finished toy")
    expect(line).to_contain_text("✓ done")
    expect(line).to_contain_text("20 of 20")
    expect(line.locator(".runs-reward")).to_contain_text(re.compile(r"0\.\d+ → 0\.\d+best 0\.\d+ at 20"))
    expect(line.locator(".runs-spark polyline")).to_have_count(1)
    expect(line.locator(".runs-thumbs .pic").first).to_be_visible()


def test_the_list_follows_runs_of_other_processes_and_sends_only_the_lines_that_changed(
    listed: Page, served: Served, live: tuple[str, Iterator[Event]]
) -> None:
    run, events = live
    expect(row(listed, run)).to_contain_text("12 of 30")
    listed.evaluate(
        """() => { window.sent = []; const old = window.workbench.receive;
        window.workbench.receive = (news) => { window.sent.push(news); old(news); }; }"""
    )
    kept = row(listed, served.finished).element_handle()
    record(served.store, run, events, until=14)
    expect(row(listed, run)).to_contain_text("14 of 30")
    told = listed.evaluate(
        "window.sent.filter((news) => news && news.parts && news.parts.rows).flatMap((news) => news.parts.rows.rows)"
    )
    assert {line["id"] for line in told} == {run}
    assert listed.evaluate("Math.max(...window.sent.map((news) => JSON.stringify(news).length))") < 50_000
    assert kept is not None
    assert kept.evaluate("node => node.isConnected")


def test_searching_filtering_and_sorting_are_in_the_address(listed: Page, served: Served) -> None:
    served.store.annotate(served.hacked, tags=["spoiled"], note="palette ran away")
    expect(row(listed, served.hacked).locator(".runs-tag")).to_have_text("spoiled")
    listed.locator("#runs-q").fill("PALETTE toy")
    expect(row(listed, served.finished)).to_be_hidden()
    expect(row(listed, served.hacked)).to_be_visible()
    assert "q=PALETTE" in listed.url
    listed.reload()
    expect(row(listed, served.hacked)).to_be_visible(timeout=LOADED)
    expect(row(listed, served.finished)).to_be_hidden()
    listed.locator("#runs-q").fill("nothing like it")
    listed.get_by_role("button", name="Clear the search").click()
    expect(row(listed, served.finished)).to_be_visible()
    row(listed, served.hacked).locator(".runs-tag").click()
    expect(row(listed, served.finished)).to_be_hidden()
    expect(listed.locator("#runs-tag")).to_have_value("spoiled")
    listed.locator("#runs-tag").select_option("")
    listed.locator("#runs-sort").select_option("iteration")
    expect(listed.locator(".runs-row").first).to_have_attribute("data-id", served.hacked)


def test_what_is_written_about_a_run_is_saved_on_leaving_the_field(listed: Page, served: Served) -> None:
    line = opened(listed, served.finished)
    line.get_by_label("Title").fill("Another name")
    line.get_by_label("Tags").fill("good, kept")
    line.get_by_label("Note").fill("Four steps are enough.")
    line.get_by_label("Title").focus()
    expect(line.get_by_role("status")).to_contain_text("note saved")
    found = served.store.run(served.finished)
    assert (found.title, found.tags, found.note) == ("Another name", ("good", "kept"), "Four steps are enough.")
    expect(line.get_by_role("link")).to_have_text("Another name")
    line.get_by_label("Title").fill(" ")
    line.get_by_label("Note").focus()
    expect(line.get_by_role("alert")).to_contain_text("a run needs a name")
    served.store.annotate(served.finished, title="Finished toy", tags=[], note="")


def test_chosen_runs_lie_over_each_other_and_tell_what_differs(listed: Page, served: Served) -> None:
    for run in (served.finished, served.hacked):
        row(listed, run).get_by_role("checkbox").check()
    expect(plotted(listed, "overlay")).to_be_visible()
    names = "document.querySelector('[data-chart=overlay] .plot').data.map((trace) => trace.name)"
    listed.wait_for_function(f"{names}.length === 2")
    table = listed.locator('[data-slot="differences"]')
    expect(table.get_by_role("row", name=re.compile("iterations"))).to_contain_text("20")
    expect(table).not_to_contain_text("group_size")
    listed.locator('[data-filter="metric"]').select_option("kl")
    listed.wait_for_function(f"{names}.length === 4")  # each raw and smooth
    listed.locator('[data-filter="by"]').select_option("time")
    listed.wait_for_function("document.querySelector('[data-chart=overlay] .plot').layout.xaxis.title.text.includes('minutes')")
    listed.reload()
    expect(row(listed, served.hacked).get_by_role("checkbox")).to_be_checked(timeout=LOADED)
    expect(listed.locator('[data-filter="metric"]')).to_have_value("kl")
    listed.get_by_role("button", name="Choose none").click()
    expect(listed.locator(".runs-chosen")).to_be_hidden()


def test_a_deleted_run_is_gone_at_once_and_comes_back(listed: Page, served: Served) -> None:
    run = recorded(served, "Short-lived")
    expect(row(listed, run)).to_be_visible()
    opened(listed, run).get_by_role("button", name="Delete").click()
    expect(row(listed, run)).to_have_count(0)
    other = listed.context.new_page()
    other.goto(f"{served.url}?run={run}")
    expect(other.get_by_role("alert").first).to_contain_text(f"run {run} was deleted", timeout=LOADED)
    other.close()
    listed.get_by_role("button", name="Undo").click()
    expect(row(listed, run)).to_be_visible()
    assert not served.store.trash()
    served.store.delete(run)
    listed.reload()
    listed.get_by_role("button", name="Trash (1)").click(timeout=LOADED)
    listed.get_by_role("button", name="Empty the trash now").click()
    expect(listed.get_by_text("The trash is empty.")).to_be_visible()
    assert not served.store.folder(run).exists()


def test_a_run_that_goes_on_is_not_deleted(listed: Page, served: Served, live: tuple[str, Iterator[Event]]) -> None:
    opened(listed, live[0]).get_by_role("button", name="Delete").click()
    expect(listed.locator('.runs-head [data-slot="errors"]')).to_contain_text(
        f"run {live[0]} is running; stop it before you delete it"
    )
    expect(row(listed, live[0])).to_be_visible()


def test_a_branch_begins_with_changed_settings_and_stands_below_its_parent(listed: Page, served: Served) -> None:
    run = recorded(served, "Parent")
    opened(listed, run).get_by_role("button", name="Branch from a checkpoint").click()
    dialog = listed.get_by_role("dialog")
    expect(dialog.get_by_label("From the checkpoint")).to_have_value("4")
    dialog.get_by_label("Changed settings").fill("adapter.kind = lora")
    dialog.get_by_role("button", name="Begin the branch").click()
    expect(dialog.get_by_role("alert")).to_contain_text("adapter.kind = 'lora': the checkpoint was made with 'full'")
    dialog.get_by_label("Changed settings").fill("iterations = 5\noptimizer.learning_rate = 0.0002")
    dialog.get_by_role("button", name="Begin the branch").click()
    expect(dialog).to_be_hidden()
    (branch,) = [found for found in served.store.runs() if found.parent == run]
    assert (branch.branched, parse_config(branch.config).optimizer.learning_rate) == (4, 0.0002)
    line = row(listed, branch.id)
    expect(line).to_contain_text("from iteration 4 of Parent: iterations: 4 → 5, optimizer.learning_rate")
    expect(line).to_contain_text("5 of 5", timeout=LOADED)
    expect(line).to_contain_text("done", timeout=LOADED)
    listed.locator("#runs-sort").select_option("tree")
    expect(line).to_have_attribute("data-depth", "1")
    found = listed.locator(".runs-row").evaluate_all("rows => rows.map((row) => row.dataset.id)")
    assert found.index(branch.id) == found.index(run) + 1


def test_a_branch_may_be_set_up_in_the_form(listed: Page, served: Served) -> None:
    run = recorded(served, "Form parent")
    opened(listed, run).get_by_role("button", name="Branch from a checkpoint").click()
    listed.get_by_label("Changed settings").fill("grpo.group_size = 16")
    listed.get_by_role("button", name="Choose in the form").click()
    expect(listed.locator('[data-page="train"]')).to_be_visible()
    given = listed.evaluate("JSON.parse(new URLSearchParams(location.search).get('with') || 'null')")
    assert given == {"parent": run, "iteration": 4, "grpo.group_size": "16"}
    expect(listed.locator('#wb-new [name="grpo.group_size"]')).to_have_value("16")


def test_a_crashed_run_offers_to_resume(listed: Page, served: Served) -> None:
    run = recorded(served, "Broken", iterations=4, status="crashed")
    expect(row(listed, run).get_by_role("button", name="Resume")).to_be_visible()
    expect(row(listed, served.finished).get_by_role("button", name="Resume")).to_be_hidden()


def test_a_report_opens_offline_with_its_curves_and_pictures(
    listed: Page, served: Served, browser: Browser, tmp_path: Path
) -> None:
    line = opened(listed, served.finished)
    with listed.expect_download() as download:
        line.get_by_role("button", name="Report").click()
    path = tmp_path / "report.html"
    download.value.save_as(path)
    assert path.stat().st_size < 6_000_000
    context = browser.new_context(offline=True)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    expect(page.locator("#figure-reward .main-svg").first).to_be_visible(timeout=LOADED)
    expect(page.get_by_role("heading", level=1)).to_have_text("Finished toy")
    assert page.locator(".pic.sheet0").count() == page.locator(".pic.sheet1").count() > 8
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert not complaints
    assert not barriers(page)
    context.close()


def test_a_report_shows_what_people_wrote_as_text(listed: Page, served: Served, browser: Browser, tmp_path: Path) -> None:
    run = recorded(served, "<script>document.title='taken'</script><!-- data -->")
    with listed.expect_download() as download:
        opened(listed, run).get_by_role("button", name="Report").click()
    download.value.save_as(tmp_path / "report.html")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    expect(page.get_by_role("heading", level=1)).to_have_text("<script>document.title='taken'</script><!-- data -->")
    assert page.title() != "taken"
    page.close()


def test_an_archive_is_downloaded_and_taken_in_again(listed: Page, served: Served, tmp_path: Path) -> None:
    run = recorded(served, "Traveller")
    with listed.expect_download() as download:
        opened(listed, run).get_by_role("button", name="Archive").click()
    download.value.save_as(tmp_path / "run.zip")
    before = {found.id for found in served.store.runs()}
    listed.locator('.runs-head [data-slot="file"]').set_input_files(tmp_path / "run.zip")
    expect(listed.locator('[data-slot="toast"], .wb-toast')).to_contain_text("run.zip was taken in", timeout=LOADED)
    (copy,) = {found.id for found in served.store.runs()} - before
    expect(row(listed, copy)).to_contain_text("Traveller")
    assert served.store.load_checkpoint(copy).iteration == 4
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../evil.txt", "x")
    listed.locator('.runs-head [data-slot="file"]').set_input_files(tmp_path / "bad.zip")
    expect(listed.locator('.runs-head [data-slot="errors"]')).to_contain_text("'../evil.txt', which is no part of a run")


def test_merged_weights_and_a_model_card_are_made_beside_the_page_and_downloaded(
    page: Page, served: Served, errors: list[str], tmp_path: Path
) -> None:
    run = recorded(served, "To give away", 10, **{"adapter.kind": "lora"})
    look(page, served, f"&open={run}")
    line = row(page, run)
    expect(line.get_by_label("whole pipeline")).to_be_hidden()  # its model is in none
    for label, ending in (("Merged", ".safetensors"), ("Model card", "-card.zip")):
        with page.expect_download() as download:
            line.get_by_role("button", name=label, exact=True).click()
        assert download.value.suggested_filename.endswith(ending)
        download.value.save_as(tmp_path / ending)
        expect(line.get_by_role("status")).to_contain_text(f"{ending},")
        expect(line.get_by_label("How far it is")).to_be_hidden()
    again = configure("shapes", {"model.weights": str(tmp_path / ".safetensors")})
    assert load_policy(again).parameters.keys() == load_policy(configure("shapes")).parameters.keys()
    with zipfile.ZipFile(tmp_path / "-card.zip") as archive:
        assert {"README.md", "adapter_model.safetensors", "curves/reward.png", "images/01-after.webp"} <= set(archive.namelist())


def test_a_lora_is_taken_in_as_a_run(listed: Page, served: Served, tmp_path: Path) -> None:
    run = recorded(served, "Given", 10, **{"adapter.kind": "lora"})
    before = {found.id for found in served.store.runs()}
    listed.locator('.runs-head [data-slot="file"]').set_input_files(write_weights(served.store, run))
    expect(listed.locator('[data-slot="toast"], .wb-toast')).to_contain_text("was taken in", timeout=LOADED)
    (taken,) = {found.id for found in served.store.runs()} - before
    expect(row(listed, taken)).to_contain_text("LoRA Given")
    expect(listed.locator('.runs-head [data-slot="errors"]')).to_be_hidden()  # its base ships with the workbench
    assert served.store.load_checkpoint(taken).tensors["ema"].keys() == served.store.load_checkpoint(run).tensors["ema"].keys()


def test_weights_without_a_checkpoint_are_not_offered(listed: Page, served: Served) -> None:
    config = toy_config(3, title="Bare")
    run = begin(served.store, config)
    served.store.set_status(run, "stopped")
    expect(row(listed, run)).to_contain_text("not evaluated")
    line = opened(listed, run)
    expect(line.get_by_role("button", name="Weights")).to_be_disabled()
    expect(line.get_by_role("button", name="Branch from a checkpoint")).to_be_disabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barrier_and_no_scrolling_sideways(browser: Browser, served: Served, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    look(page, served, f"&open={served.finished}&chosen={served.finished},{served.hacked}")
    expect(page.locator(".runs-more").first).to_be_visible()
    expect(page.locator('[data-slot="differences"] table')).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not barriers(page, '[data-page="runs"]')
    context.close()
