"""The page in a real browser, served by the app in a process of its own and fed through the store, as any run is."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect
from serving_page import LOADED, Served, barriers, plotted, record, run_app, show

from workbench.benchmarks.serving import serving
from workbench.events import Changed, Event
from workbench.records import Wish

pytestmark = pytest.mark.xdist_group("page")  # one app for all of them


def test_groups_are_shown_from_the_best_to_the_worst_with_sign_and_reward(finished: Page) -> None:
    expect(finished.locator(".wb-group")).to_have_count(8)
    first = finished.locator(".wb-group").first.locator(".wb-tile")
    rewards = [float(text) for text in first.locator(".rew").all_inner_texts()]
    assert rewards == sorted(rewards, reverse=True)
    assert first.first.get_attribute("data-way") == "up"
    assert "▲" in first.first.inner_text()
    assert "▼" in first.last.inner_text()
    expect(finished.locator(".wb-group").nth(1).get_by_text("no gradient", exact=True)).to_be_visible()


def test_pictures_are_tiles_of_one_sheet_and_stay_pixelated(finished: Page) -> None:
    tile = finished.locator(".wb-tile .pic").first
    style = tile.evaluate(
        "node => ({...['backgroundImage', 'imageRendering'].reduce((all, key) => ({...all, [key]: node.style[key]}), {})})"
    )
    assert "groupsscored" in style["backgroundImage"]
    assert style["imageRendering"] == "pixelated"
    url = re.search(r'url\("(.+)"\)', style["backgroundImage"])
    assert url is not None
    assert finished.request.get(url.group(1)).ok


def test_an_image_opens_with_its_seed_parts_and_steps(finished: Page) -> None:
    finished.locator(".wb-group").nth(2).locator(".wb-tile").nth(3).click()
    detail = finished.locator(".wb-detail")
    expect(detail.get_by_text("rank 4 of 8")).to_be_visible()
    for text in ("Seed", "shapes exact", "log-probability", "noise std"):
        expect(detail.get_by_text(text).first).to_be_visible()
    finished.keyboard.press("ArrowRight")
    finished.keyboard.press("Enter")
    expect(detail.get_by_text("rank 5 of 8")).to_be_visible()


def test_charts_draw_and_say_what_healthy_looks_like(finished: Page) -> None:
    for name in ("reward", "advantages", "steps", "kl", "throughput"):
        expect(plotted(finished, name)).to_be_visible()
        expect(finished.locator(f'[data-chart="{name}"] .wb-hint')).not_to_be_empty()


def test_zoom_and_selection_survive_new_iterations(
    page: Page, served: Served, live: tuple[str, Iterator[Event]], errors: list[str]
) -> None:
    run, events = live
    show(page, served, run)
    expect(plotted(page, "reward")).to_be_visible()
    page.evaluate("() => Plotly.relayout(document.querySelector('[data-chart=reward] .plot'), {'xaxis.range': [2, 7]})")
    page.locator(".wb-tile").nth(5).click()
    chosen = page.locator(".wb-detail .seed").inner_text()
    nodes = page.evaluate(
        "() => { window.kept = document.querySelector('.wb-tile'); return document.querySelectorAll('.wb-tile').length }"
    )
    record(served.store, run, events, until=15)
    expect(page.locator('[data-fact="iteration"]')).to_have_text("15 of 30")
    expect(page.locator('[data-page="train"] [data-slot="groups-at"]')).to_have_text("at iteration 15")
    page.wait_for_function("document.querySelector('[data-chart=reward] .plot').calcdata[1].length === 15")
    assert page.evaluate("document.querySelector('[data-chart=reward] .plot').layout.xaxis.range") == [2, 7]
    assert page.locator(".wb-detail .seed").inner_text() == chosen
    assert page.evaluate("window.kept.isConnected && document.querySelectorAll('.wb-tile').length") == nodes


def test_a_reload_and_a_second_visitor_attach_to_the_run_in_the_address(
    page: Page, browser: Browser, served: Served, live: tuple[str, Iterator[Event]], errors: list[str]
) -> None:
    run, events = live
    show(page, served, run)
    page.reload()
    other = browser.new_context().new_page()
    other.goto(served.url)  # without a choice, the run that is going on
    for viewer in (page, other):
        expect(viewer.locator('[data-page="train"] [data-slot="title"]')).to_have_text("Live toy", timeout=LOADED)
    assert other.url.endswith(run)
    record(served.store, run, events, until=14)
    for viewer in (page, other):
        expect(viewer.locator('[data-fact="iteration"]')).to_have_text("14 of 30")
    other.context.close()


def test_controls_write_wishes_and_show_what_became_of_them(
    page: Page, served: Served, live: tuple[str, Iterator[Event]], errors: list[str]
) -> None:
    run, _ = live
    show(page, served, run)
    expect(page.locator('[data-wish="resume"]')).to_be_hidden()
    page.locator('[data-wish="pause"]').click()
    expect(page.locator('[data-page="train"] [data-slot="badge"]')).to_contain_text("pausing")
    assert [wish.wanted for wish in served.store.take_wishes(run)] == ["pause"]
    served.store.set_status(run, "paused")
    expect(page.locator('[data-page="train"] [data-slot="badge"]')).to_contain_text("paused")
    page.locator('[data-wish="resume"]').click()
    found: list[Wish] = []
    while not found:  # the test's own time limit ends it
        found = served.store.take_wishes(run)
        page.wait_for_timeout(50)
    assert [wish.wanted for wish in found] == ["run"]


def test_controls_of_a_finished_run_are_off(finished: Page) -> None:
    for wish in ("pause", "stop", "save", "sample"):
        expect(finished.locator(f'[data-wish="{wish}"]')).to_be_disabled()


def test_before_and_now_stand_side_by_side(finished: Page) -> None:
    pair = finished.locator(".wb-pair").first
    before, now = (
        pair.locator(f'[data-side="{side}"]').evaluate("node => node.style.backgroundImage") for side in ("before", "now")
    )
    assert "evaluated-000000" in before
    assert "evaluated-000020" in now


def test_a_refused_form_points_at_the_field(finished: Page) -> None:
    finished.locator('.wb-top [data-act="new"]').click()
    finished.locator('[data-page="train"] [name="sampler.asfmc.noise"]').fill("7")
    finished.locator('[data-act="start"]').click()
    expect(finished.locator('[data-page="train"] [data-slot="errors"]')).to_contain_text("sampler.noise = '7'")
    expect(finished.locator(".wrong")).to_have_count(1)
    finished.locator('[data-page="train"] [data-slot="preset"]').select_option("shapes_flow_sde")
    expect(finished.locator('[data-page="train"] [name="sampler.name"]')).to_have_value("flow_sde")
    expect(finished.locator('[data-page="train"] [data-slot="errors"]')).to_be_hidden()


def test_the_form_offers_what_fits_and_says_what_its_noise_is(finished: Page) -> None:
    if finished.locator('[data-page="train"] [data-slot="new"]').is_hidden():
        finished.locator('.wb-top [data-act="new"]').click()
    form = finished.locator('[data-page="train"] [data-slot="form"]')
    form.locator("details").evaluate_all("folds => folds.forEach((fold) => fold.open = true)")
    form.locator('[name="rollout.mode"]').select_option("window")
    expect(form.locator('[name="rollout.window"]')).to_be_visible()
    expect(form.locator('[name="rollout.branch_at"]')).to_be_hidden()
    form.locator('[name="rollout.mode"]').select_option("branch")
    expect(form.locator('[name="rollout.window"]')).to_be_hidden()
    expect(form.locator('[name="rollout.branch_at"]')).to_be_visible()
    form.locator('[name="sampler.name"]').select_option("ode")
    expect(finished.locator('[data-page="train"] [data-slot="errors"]')).to_contain_text("sampler")
    form.locator('[name="sampler.name"]').select_option("asfmc")
    expect(form.locator(".wb-noise tbody tr")).to_have_count(3)  # four steps, and the last is never stochastic
    form.locator('[name="task.name"]').select_option("glyphs")
    expect(form.locator('[name="model.name"]')).to_have_value("glyphs")
    expect(form.locator('[name="rewards.shapes_exact.use"]')).to_be_hidden()
    finished.locator('[data-page="train"] [data-slot="preset"]').select_option("shapes")
    expect(form.locator('[name="model.name"]')).to_have_value("shapes")


def test_a_link_fills_the_form_and_a_branch_says_where_it_begins(page: Page, served: Served, errors: list[str]) -> None:
    wanted = quote(json.dumps({"sampler.noise": 0.35, "rollout.steps": 6}))
    page.goto(f"{served.url}?run={served.finished}&new=yes&with={wanted}")
    expect(page.locator('[data-page="train"] [name="sampler.asfmc.noise"]')).to_have_value("0.35", timeout=LOADED)
    expect(page.locator('[data-page="train"] [name="rollout.steps"]')).to_have_value("6")
    expect(page.locator('[data-page="train"] [name="title"]')).to_have_value("Finished toy")
    branch = quote(json.dumps({"parent": served.finished, "iteration": 20, "objective.kl_weight": 0.5}))
    page.goto(f"{served.url}?run={served.finished}&new=yes&with={branch}")
    expect(page.locator('[data-page="train"] [data-slot="branch"]')).to_contain_text("after iteration 20", timeout=LOADED)
    expect(page.locator('[data-page="train"] [name="objective.grpo.kl_weight"]')).to_have_value("0.5")
    expect(page.locator('[data-page="train"] [name="title"]')).to_have_value("Finished toy from 20")


SMALL = {
    "iterations": "2",
    "grpo.groups": "4",
    "grpo.group_size": "4",
    "evaluation.images": "8",
    "evaluation.final_images": "16",
    "evaluation.preview": "4",
}


def test_a_run_goes_from_the_form_to_its_end_and_a_branch_goes_on_from_there(
    page: Page, served: Served, errors: list[str]
) -> None:
    def start(title: str, query: str, settings: dict[str, str]) -> str:
        page.goto(f"{served.url}?new=yes{query}")
        form = page.locator('[data-page="train"] [data-slot="form"]')
        expect(form.locator('[name="iterations"]')).to_be_visible(timeout=LOADED)
        form.locator("details").evaluate_all("folds => folds.forEach((fold) => fold.open = true)")
        for name, value in settings.items():
            form.locator(f'[name="{name}"]').fill(value)
        page.locator('[data-page="train"] .wb-new [data-act="start"]').click()
        page.wait_for_url(lambda url: "new=" not in url and "run=" in url)
        expect(page.locator('[data-page="train"] [data-slot="title"]')).to_have_text(title)
        expect(page.locator('[data-page="train"] [data-slot="badge"]')).to_contain_text("done", timeout=LOADED)
        return parse_qs(urlsplit(page.url).query)["run"][0]

    run = start("From the form", "", SMALL | {"title": "From the form"})
    found = served.store.run(run)
    assert (found.status, found.iteration, found.origin) == ("done", 2, "app")
    expect(page.locator(".wb-group")).to_have_count(4)
    wanted = quote(json.dumps({"parent": run, "iteration": 2, "sampler.noise": 0.5}))
    branch = served.store.run(start("From the form from 2", f"&run={run}&with={wanted}", {}))
    assert (branch.parent, branch.title, branch.iteration) == (run, "From the form from 2", 4)
    assert branch.config["sampler"]["noise"] == 0.5


def test_knobs_are_turned_while_a_run_goes_on(page: Page, served: Served, live: tuple[str, Iterator[Event]]) -> None:
    run, events = live
    show(page, served, run)
    page.locator('[data-page="train"] [data-slot="knobs"] summary').click()
    noise = page.locator('[data-page="train"] [data-slot="knob-fields"] [name="sampler.noise"]')
    noise.fill("7")
    noise.press("Tab")
    expect(page.locator('[data-page="train"] [data-slot="knob-errors"]')).to_contain_text("sampler.noise = '7'")
    noise.fill("0.25")
    noise.press("Tab")
    expect(page.locator('[data-slot="toast"]')).to_contain_text("0.25 from the next iteration on")
    assert [tuple(wish) for wish in served.store.take_wishes(run)] == [("change", {"sampler.noise": 0.25})]
    served.store.record(run, Changed(12, {"sampler.noise": 0.25}))
    record(served.store, run, events, until=14)
    told = page.locator('[data-page="train"] [data-slot="knob-changes"]')
    expect(told).to_contain_text("after iteration 12: sampler.noise = 0.25")


def test_charts_follow_the_theme_at_once(finished: Page) -> None:
    colour = "document.querySelector('[data-chart=reward] .plot').layout.font.color"
    expect(plotted(finished, "reward")).to_be_visible()
    light = finished.evaluate(colour)
    finished.evaluate("document.body.classList.add('dark')")
    finished.wait_for_function(f"{colour} !== '{light}'")
    finished.evaluate("document.body.classList.remove('dark')")
    finished.wait_for_function(f"{colour} === '{light}'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier_in_light_and_dark(finished: Page, scheme: str) -> None:
    finished.emulate_media(reduced_motion="reduce")  # a colour in transition has no contrast of its own
    finished.evaluate(f"document.body.classList.toggle('dark', {'true' if scheme == 'dark' else 'false'})")
    found = barriers(finished, '[data-page="train"]')
    finished.evaluate("document.body.classList.remove('dark')")
    assert not found


def test_a_link_to_a_lost_run_the_picker_and_the_back_button(page: Page, served: Served, errors: list[str]) -> None:
    page.goto(f"{served.url}?run=20200101-gone")
    expect(page.get_by_role("alert").first).to_contain_text("unknown run '20200101-gone'", timeout=LOADED)
    page.locator('[data-slot="runs"]').select_option(served.finished)
    expect(page.locator('[data-page="train"] [data-slot="title"]')).to_have_text("Finished toy")
    page.locator('[data-slot="runs"]').select_option(served.hacked)
    expect(page.locator('[data-page="train"] [data-slot="title"]')).to_have_text("Hacked toy")
    assert page.url.endswith(served.hacked)
    expect(page.locator(".wb-verdict.red")).to_contain_text("Reward hacking suspected")
    expect(page.locator(".wb-verdict.red")).to_contain_text("What to do")
    page.go_back()
    expect(page.locator('[data-page="train"] [data-slot="title"]')).to_have_text("Finished toy")


def test_a_telephone_in_the_dark_shows_everything_without_scrolling_sideways(browser: Browser, served: Served) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    show(page, served, served.finished)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 16, 21)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".wb-tile").first.click()
    expect(page.locator(".wb-detail")).to_be_in_viewport()
    page.locator(".wb-detail .wb-close").click()
    page.locator('.wb-top [data-act="new"]').click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_a_first_visit_finds_a_finished_example_and_one_button(page: Page, tmp_path: Path) -> None:
    with serving(tmp_path / "runs") as url:
        page.goto(url)
        expect(page.get_by_role("button", name="Start a run of your own")).to_be_visible(timeout=LOADED)
        expect(page.locator(".wb-group").first).to_be_visible(timeout=LOADED)
        expect(page.locator('[data-page="train"] [data-slot="below"]')).to_be_visible()


def test_a_port_in_use_is_named_with_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        app = run_app("--port", str(port))
        _, complaint = app.communicate(timeout=60)
    assert app.returncode == 2
    assert re.search(rf"port {port} is in use; port \d+ is free", complaint)
    assert "Traceback" not in complaint


def test_an_open_address_without_a_password_is_refused() -> None:
    app = run_app("--host", "0.0.0.0")
    _, complaint = app.communicate(timeout=60)
    assert app.returncode == 2
    assert "give --auth USER:PASSWORD" in complaint
    assert len(complaint.splitlines()) == 1
