"""The Path lab in a real browser: particles under any kernel, drawn data, and a policy that follows a dragged reward."""

import json
import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
import torch
from playwright.sync_api import Browser, Page, expect
from serving_page import LOADED, Served, barriers, listen, plotted

from workbench.figures.pathlab import accuracy_by_steps, p_values_by_time, plane_kl, plane_reward
from workbench.panels import pathlab
from workbench.pathlab import Accuracy, WalkRequest, walk
from workbench.plane import Progressed
from workbench.samplers import SAMPLERS
from workbench.studio import Studio

pytestmark = pytest.mark.xdist_group("page_pathlab")

LAB = '[data-page="pathlab"] '
UPDATES = "document.querySelector('[data-page=pathlab] [data-fact=updates]').textContent"
WALK, LEVER = LAB + '[data-slot="walk"] ', LAB + '[data-slot="lever"] '


@pytest.fixture(scope="module")
def lab(browser: Browser, served: Served) -> Iterator[Page]:
    """One visit, for all tests that leave it as they found it."""
    context = browser.new_context(viewport={"width": 1440, "height": 950}, reduced_motion="reduce")
    page = context.new_page()
    found = listen(page)
    visit(page, served)
    yield page
    context.close()
    assert not found


def visit(page: Page, served: Served, lab: object = None) -> None:
    page.goto(f"{served.url}?tab=pathlab" + (f"&lab={quote(json.dumps(lab))}" if lab else ""))
    expect(page.locator(LAB + '[data-slot="verdict"]')).to_have_class(re.compile("green|red"), timeout=LOADED)


def fact(page: Page, name: str) -> str:
    return page.locator(f'{LAB}[data-fact="{name}"]').inner_text()


def ink(page: Page, slot: str) -> int:
    """How many pixels of a canvas are painted."""
    return page.evaluate(
        """(slot) => {
          const canvas = document.querySelector(`[data-page="pathlab"] [data-slot="${slot}"] canvas`);
          const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          let count = 0;
          for (let i = 3; i < pixels.length; i += 4) count += pixels[i] > 0;
          return count;
        }""",
        slot,
    )


def test_the_default_kernel_is_right_and_everything_is_drawn(lab: Page) -> None:
    expect(lab.locator(LAB + '[data-slot="verdict"]')).to_contain_text("Right, as far as can be told")
    for slot in ("plane", "histogram", "field"):
        assert ink(lab, slot) > 500
    for name in ("p_values", "accuracy"):
        expect(plotted(lab, name)).to_be_visible(timeout=LOADED)
    expect(lab.locator(LAB + '[data-slot="why"]')).to_contain_text("the marginals are exact for every anchor and noise")
    expect(lab.locator('[data-slot="picker"]')).to_be_hidden()


def test_a_biased_kernel_is_told_apart_and_explained(lab: Page) -> None:
    lab.locator(WALK + '[name="sampler.name"]').select_option("cps")
    lab.locator(WALK + '[name="steps"]').fill("8")
    lab.keyboard.press("Tab")
    verdict = lab.locator(LAB + '[data-slot="verdict"]')
    expect(verdict).to_contain_text("the samples are wrong")
    expect(lab.locator(LAB + '[data-slot="why"]')).to_contain_text("wrong at any number of steps")
    assert float(fact(lab, "mass").split()[0]) < 0.45
    assert "lab" in lab.url
    lab.locator(LAB + '[data-act="defaults"]').click()
    expect(verdict).to_contain_text("Right")
    expect(lab).to_have_url(re.compile("tab=pathlab$"))


def test_a_slider_sets_its_number_and_the_particles_follow(lab: Page) -> None:
    before = lab.evaluate("(slot) => document.querySelector(slot).toDataURL()", LAB + '[data-slot="plane"] canvas')
    slider = lab.get_by_role("slider", name="Steps, slider")
    slider.focus()
    lab.keyboard.press("ArrowRight")
    expect(lab.locator(WALK + '[name="steps"]')).to_have_value("5")
    expect(lab.locator(LAB + '[data-fact="nodes"]')).to_have_text("6 of 6")
    moved = "([slot, before]) => document.querySelector(slot).toDataURL() !== before"
    lab.wait_for_function(moved, arg=[LAB + '[data-slot="plane"] canvas', before])
    lab.locator(LAB + '[data-act="defaults"]').click()
    expect(lab.locator(LAB + '[data-fact="nodes"]')).to_have_text("5 of 5")


def test_time_runs_from_noise_to_data(lab: Page) -> None:
    scrub, when = lab.locator(LAB + '[data-slot="scrub"]'), lab.locator(LAB + '[data-slot="when"]')
    scrub.fill("0")
    expect(when).to_have_text("at t = 1.00, after step 0 of 4")
    lab.locator(LAB + '[data-act="play"]').click()
    expect(when).to_have_text("at t = 0.00, after step 4 of 4")
    expect(lab.locator(LAB + '[data-act="play"]')).to_contain_text("Play")


def test_what_cannot_be_walked_is_refused_with_a_sentence(lab: Page) -> None:
    errors = lab.locator(LAB + '[data-slot="errors"]')
    lab.locator(WALK + '[name="map"]').select_option("velocity")
    expect(errors).to_contain_text("needs a two_time map, and this is a velocity map")
    lab.locator(WALK + '[name="map"]').select_option("two_time")
    expect(errors).to_be_hidden()
    lab.locator(WALK + '[name="sampler.asfmc.anchor"]').fill("3")
    lab.keyboard.press("Tab")
    expect(errors).to_contain_text("sampler.anchor")
    lab.locator(LAB + '[data-act="defaults"]').click()
    expect(errors).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier_in_light_and_dark(lab: Page, scheme: str) -> None:
    lab.evaluate(f"document.body.classList.toggle('dark', {'true' if scheme == 'dark' else 'false'})")
    found = barriers(lab, '[data-page="pathlab"]')
    lab.evaluate("document.body.classList.remove('dark')")
    assert not found


def test_a_drawing_becomes_the_data_and_stays_in_the_address(page: Page, served: Served, errors: list[str]) -> None:
    visit(page, served)
    page.get_by_role("radio", name="Draw your own").check()
    expect(page.locator(LAB + '[data-slot="empty"]')).to_be_visible()
    frame = page.locator(LAB + '[data-slot="plane"]').bounding_box()
    assert frame is not None
    for line in (((0.2, 0.3), (0.8, 0.3)), ((0.2, 0.7), (0.8, 0.7))):
        (x, y), (a, b) = line
        page.mouse.move(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"])
        page.mouse.down()
        page.mouse.move(frame["x"] + a * frame["width"], frame["y"] + b * frame["height"], steps=12)
        page.mouse.up()
    expect(page.locator(LAB + '[data-slot="verdict"]')).to_contain_text("Right")
    expect(page.locator(LAB + '[data-slot="histogram-told"]')).to_contain_text("horizontal axis")
    expect(page).to_have_url(re.compile("strokes"))
    page.reload()
    expect(page.get_by_role("radio", name="Draw your own")).to_be_checked(timeout=LOADED)
    expect(page.locator(LAB + '[data-fact="p"]')).not_to_have_text("–", timeout=LOADED)
    page.locator(LAB + '[data-act="clear"]').click()
    expect(page.locator(LAB + '[data-slot="empty"]')).to_be_visible()
    page.locator('[data-slot="toast"]').get_by_role("button", name="Undo").click()
    expect(page.locator(LAB + '[data-slot="empty"]')).to_be_hidden()


def test_a_policy_follows_the_reward_and_rests_when_the_page_is_left(page: Page, served: Served, errors: list[str]) -> None:
    visit(page, served, {"lever": {"kl_weight": "0.1"}})
    expect(page.locator(LEVER + '[name="kl_weight"]')).to_have_value("0.1")
    page.locator(LAB + '[data-act="learn"]').click()
    page.wait_for_function(f"{UPDATES}.replace(/\\D/g, '') > 100", timeout=LOADED)
    assert float(fact(page, "reward")) > 0.3
    expect(plotted(page, "plane_reward")).to_be_visible()
    handle = page.locator(LAB + '[data-slot="handle"]')
    box, frame = handle.bounding_box(), page.locator(LAB + '[data-slot="field"]').bounding_box()
    assert box is not None
    assert frame is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.875 * frame["width"], frame["y"] + 0.5 * frame["height"], steps=6)
    page.mouse.up()
    assert abs(float(page.locator(LEVER + '[name="x"]').input_value()) - 3) < 0.1
    handle.focus()
    page.keyboard.press("ArrowUp")
    assert 0.05 < float(page.locator(LEVER + '[name="y"]').input_value()) < 0.2
    page.get_by_role("link", name="Train").click()
    expect(page.locator('[data-slot="picker"]')).to_be_visible()
    still = f"() => new Promise((done) => {{ const at = {UPDATES}; setTimeout(() => done(at === {UPDATES}), 700); }})"
    page.wait_for_function(still)
    page.get_by_role("link", name="Path lab").click()
    page.locator(LAB + '[data-act="learn"]').click()
    expect(page.locator(LAB + '[data-fact="speed"]')).to_have_text("resting")
    page.locator(LAB + '[data-act="anew"]').click()
    expect(page.locator(LAB + '[data-fact="updates"]')).to_have_text("0")


def test_a_lever_out_of_range_is_refused_and_learning_stops(page: Page, served: Served, errors: list[str]) -> None:
    visit(page, served, {"lever": {"anchor": "7"}})
    page.locator(LAB + '[data-act="learn"]').click()
    expect(page.locator(LAB + '[data-slot="refused"]')).to_contain_text("anchor = '7'")
    expect(page.locator(LAB + '[data-act="learn"]')).to_have_text("Start")


def test_a_telephone_shows_everything_without_scrolling_sideways(browser: Browser, served: Served) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    visit(page, served)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_learning_goes_on_where_it_was_and_records_nothing(studio: Studio) -> None:
    asked = {"visitor": "one", "data": {"name": "double_ring"}, "lever": {"x": "3", "y": "0"}, "learn": True, "charts": True}
    first, again = pathlab.learn(studio, asked), pathlab.learn(studio, asked | {"base": True})
    assert again["updates"] > first["updates"] > 0
    assert first["base"] is None
    assert again["base"] != again["particles"]
    assert set(again["charts"]) == {"plane_reward", "plane_kl"}
    rested = pathlab.learn(studio, asked | {"learn": False})
    assert (rested["updates"], rested["particles"]) == (again["updates"], again["particles"])
    assert pathlab.learn(studio, asked | {"visitor": "two", "learn": False})["updates"] == 0
    assert studio.runs() == []


def test_what_cannot_be_learned_is_refused_with_a_sentence(studio: Studio) -> None:
    asked = {"visitor": "one", "data": {"name": "drawn"}, "lever": {}}
    with pytest.raises(ValueError, match="nothing is drawn yet"):
        pathlab.learn(studio, asked)
    with pytest.raises(ValueError, match="noise = '5'"):
        pathlab.learn(studio, asked | {"data": {"name": "grid"}, "lever": {"noise": "5"}})


def test_marginals_travel_once_and_threads_are_given_back(studio: Studio) -> None:
    threads = studio.on_device(torch.get_num_threads)
    asked = {"form": {"steps": "3", "particles": "200"}, "data": {"name": "grid"}}
    first = pathlab.follow(studio, asked)
    assert len(first["profiles"]) == len(first["times"]) == 4
    assert "density" not in pathlab.follow(studio, asked | {"holds": first["key"]})
    assert studio.on_device(torch.get_num_threads) == threads


def test_a_verdict_says_how_many_tests_and_where() -> None:
    right, wrong = (walk(WalkRequest(sampler=SAMPLERS[name](), steps=8, particles=1000)) for name in ("asfmc", "cps"))
    assert pathlab.verdict(right) == {
        "level": "green",
        "title": "Right, as far as can be told",
        "sentence": "None of 9 tests tells the particles from exact samples: not at t = 0, and at no time on the way.",
    }
    told = pathlab.verdict(wrong)
    assert told["level"] == "red"
    assert re.search(r"[1-8] of 9 tests tell .* first at t = 0\.\d\d", told["sentence"])


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_kernel_is_explained_without_its_sources(name: str) -> None:
    told = " ".join(pathlab.why(SAMPLERS[name]()))
    assert len(told) > 40
    assert "arXiv" not in told
    assert "`" not in told


def test_the_figures_hold_what_was_measured() -> None:
    chart = p_values_by_time((1.0, 0.5, 0.0), (0.6, 1e-20, 0.3), (1,))
    assert list(chart.data[0].x) == [1.0, 0.5, 0.0]
    assert list(chart.data[0].y) == [0.6, 1e-12, 0.3]
    assert list(chart.data[0].marker.symbol) == ["circle", "x", "circle"]
    rings = accuracy_by_steps([Accuracy(1, 0.02, 0.004, 0.4, 0.01), Accuracy(4, 0.01, 0.004, 0.5, 0.01)], steps=4)
    assert list(rings.data[0].y) == [0.4, 0.5]
    assert list(rings.data[0].error_y.array) == pytest.approx([0.0196, 0.0196])
    other = accuracy_by_steps([Accuracy(2, 0.02, 0.004, None, None)])
    assert list(other.data[0].y) == [0.02]
    assert other.data[0].error_y.array is None
    history = [Progressed(number, 0.1 * number, 0.01, 0.0) for number in (1, 2, 3)]
    assert list(plane_reward(history).data[0].y) == pytest.approx([0.1, 0.2, 0.3])
    assert list(plane_kl(history).data[0].x) == [1, 2, 3]
    for empty in (p_values_by_time(), accuracy_by_steps(), plane_reward(), plane_kl()):
        assert empty.layout.title.text
        assert empty.layout.meta["healthy"]
