"""The page that compares, in a real browser: four views, one slider, full size, and the blind vote."""

import re
from collections.abc import Iterator
from io import BytesIO

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect
from serving_page import LOADED, Served, barriers, begin, listen, record
from toy_run import toy_config, toy_events

from workbench.config import configure
from workbench.figures.compare import curves, win_rate
from workbench.history import History, Recorded
from workbench.votes import Tally, tally

HERE = '[data-page="compare"]'
pytestmark = pytest.mark.xdist_group("page_compare")


def compare(page: Page, served: Served, query: str = "", run: str = "") -> Locator:
    page.goto(f"{served.url}?tab=compare&run={run or served.finished}{query}")
    expect(page.locator(".cmp-cell:visible").first).to_be_visible(timeout=LOADED)
    return page.locator('[data-page="compare"]')


@pytest.fixture(scope="module")
def looking(browser: Browser, served: Served) -> Iterator[Page]:
    """One page of the finished run, for all tests that only look."""
    context = browser.new_context(viewport={"width": 1440, "height": 950})
    page = context.new_page()
    found = listen(page)
    compare(page, served)
    expect(page.locator(".cmp-score b").first).to_be_visible()
    yield page
    context.close()
    assert not found


def sheet(cell: Locator, side: str) -> str:
    return cell.locator(f".cmp-pic.{side}").evaluate("node => node.style.backgroundImage")


def test_the_base_and_the_latest_evaluation_stand_side_by_side_with_their_rewards(looking: Page) -> None:
    first = looking.locator(".cmp-cell").first
    assert "evaluated-000000" in sheet(first, "a")
    assert "evaluated-000020" in sheet(first, "b")
    expect(looking.locator(".cmp-cell")).to_have_count(24)
    expect(looking.locator(HERE).locator('[data-slot="time-at"]')).to_have_text("20 of 20")
    before, after = (float(text) for text in re.findall(r"\d+\.\d+", first.locator(".cmp-score span").inner_text()))
    gain = first.locator(".cmp-score b").inner_text()
    assert ("▲" in gain) == (after - before >= 5e-3)
    expect(looking.locator(HERE).locator('[data-slot="sum"]')).to_contain_text("shapes exact")


def test_pictures_are_whole_multiples_of_their_pixels(looking: Page) -> None:
    style = looking.locator(".cmp-pic").first.evaluate("node => [node.style.width, node.style.imageRendering]")
    assert float(style[0].removesuffix("px")) % 40 == 0
    assert style[1] == "pixelated"


def test_the_wall_is_filtered_and_sorted(looking: Page) -> None:
    visible = looking.locator(".cmp-cell:visible")
    looking.locator(HERE).get_by_label("Prompt contains").fill("three red")
    expect(visible).to_have_count(2)
    looking.locator(HERE).get_by_label("Prompt contains").fill("no such words")
    expect(looking.locator(HERE).get_by_text("No prompt fits the filter")).to_be_visible()
    looking.locator(HERE).get_by_label("Prompt contains").fill("")
    looking.locator(HERE).get_by_label("Order").select_option("gain")
    gains = [text.translate(str.maketrans("−", "-", "▲▼ +")) for text in visible.locator("b").all_inner_texts()]
    found = [0.0 if text == "=" else float(text) for text in gains]
    assert found == sorted(found, reverse=True)
    assert "order=gain" in looking.url
    looking.locator(HERE).get_by_label("Order").select_option("")


def test_one_slider_drives_the_pictures_and_the_line_in_the_curve(page: Page, served: Served, errors: list[str]) -> None:
    compare(page, served)
    page.wait_for_function("document.querySelector('[data-chart=beside] .plot').layout?.shapes?.[1].x0 === 20")
    page.locator(HERE).get_by_role("slider", name="Iteration of B").press("ArrowLeft")
    expect(page.locator(HERE).locator('[data-slot="time-at"]')).to_have_text("10 of 20")
    expect(page.locator(".cmp-cell").first.locator(".b")).to_have_attribute("style", re.compile("evaluated-000010"))
    page.wait_for_function("document.querySelector('[data-chart=beside] .plot').layout.shapes[1].x0 === 10")
    assert "bi=10" in page.url
    page.locator(HERE).get_by_role("slider", name="Iteration of B").press("Home")
    expect(page.locator(".cmp-cell").first.locator(".b")).to_have_attribute("style", re.compile("evaluated-000000"))


def test_a_link_restores_what_is_compared_and_how(page: Page, served: Served, errors: list[str]) -> None:
    root = compare(page, served, f"&b={served.hacked}&bi=10&view=diff&order=apart&find=red")
    expect(root).to_have_attribute("data-view", "diff")
    expect(page.locator(HERE).locator('[data-slot="b-run"]')).to_have_value(served.hacked)
    expect(page.locator(HERE).locator('[data-slot="b-at"]')).to_have_value("10")
    expect(page.locator(HERE).get_by_label("Order")).to_have_value("apart")
    expect(page.locator(".cmp-cell:visible")).to_have_count(6)
    assert "evaluated-000010" in sheet(page.locator(".cmp-cell").first, "b")


def test_the_line_follows_the_pointer_and_the_arrow_keys(page: Page, served: Served, errors: list[str]) -> None:
    root = compare(page, served, "&view=wipe")
    both = page.locator(".cmp-both").first
    area = both.bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + area["width"] / 4, area["y"] + 20)
    assert abs(float(root.evaluate("node => parseFloat(node.style.getPropertyValue('--cut'))")) - 25) < 2
    page.locator(".cmp-pair").first.focus()
    page.keyboard.press("ArrowRight")
    assert abs(float(root.evaluate("node => parseFloat(node.style.getPropertyValue('--cut'))")) - 30) < 2


def test_a_visitor_who_wants_less_motion_flickers_by_hand(browser: Browser, served: Served) -> None:
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    root = compare(page, served, "&view=flicker")
    expect(root).to_have_attribute("data-flip", "b")
    expect(page.locator(HERE).get_by_label("Alternate")).to_have_value("0")
    expect(page.locator(HERE).get_by_text("nothing moves by itself")).to_be_visible()
    page.locator(".cmp-pair").first.focus()
    page.keyboard.press(" ")
    expect(root).to_have_attribute("data-flip", "a")
    expect(page.locator(".cmp-both .b").first).to_be_hidden()
    expect(page.locator(HERE).locator('[data-slot="zoom"]')).to_be_hidden()
    context.close()


def test_flicker_alternates_by_itself_and_stops_with_the_view(page: Page, served: Served, errors: list[str]) -> None:
    root = compare(page, served, "&view=flicker")
    expect(root).to_have_attribute("data-flip", "a")
    expect(root).to_have_attribute("data-flip", "b")
    page.keyboard.press("1")
    page.locator(".cmp-pair").first.focus()
    page.keyboard.press("1")
    expect(root).to_have_attribute("data-view", "side")
    expect(page.locator(".cmp-both .b").first).to_be_visible()


def test_the_difference_of_a_policy_to_itself_is_black(page: Page, served: Served, errors: list[str]) -> None:
    compare(page, served, "&view=diff&bi=0")
    style = page.locator(".cmp-both").first.evaluate("node => getComputedStyle(node).filter")
    assert style == "brightness(2)"
    page.locator(HERE).get_by_label("Amplified").select_option("8")
    assert page.locator(".cmp-both").first.evaluate("node => getComputedStyle(node).filter") == "brightness(8)"
    shot = Image.open(BytesIO(page.locator(".cmp-both").first.screenshot())).convert("RGB")
    inner = shot.crop((12, 12, shot.width - 12, shot.height - 12))
    assert max(high for _, high in inner.getextrema()) <= 3


def test_a_pair_opens_in_full_size_and_arrows_walk(page: Page, served: Served, errors: list[str]) -> None:
    compare(page, served)
    page.locator(".cmp-pair").nth(2).click()
    box = page.locator(HERE).get_by_role("dialog", name="One pair in full size")
    expect(box.get_by_text("pair 3 of 24, seed 20002, 4 steps")).to_be_visible()
    expect(box.get_by_role("cell", name="shapes exact")).to_be_visible()
    width = box.locator(".cmp-pic").first.evaluate("node => parseFloat(node.style.width)")
    assert width % 40 == 0
    assert width >= 320
    page.keyboard.press("ArrowRight")
    expect(box.get_by_text("pair 4 of 24")).to_be_visible()
    page.keyboard.press("Escape")
    expect(box).to_be_hidden()
    assert page.evaluate("document.activeElement.className") == "cmp-pair"


def test_a_blind_vote_is_kept_undone_and_counted(page: Page, served: Served, errors: list[str]) -> None:
    compare(page, served, "&bi=10")
    page.locator(HERE).get_by_label("Your name").fill("ada")
    page.locator(HERE).get_by_label("Your name").blur()
    page.locator(HERE).get_by_role("button", name="Vote blind").click()
    booth = page.locator(HERE).get_by_role("dialog", name="Blind vote")
    expect(booth.get_by_text("pair 1 of 24")).to_be_visible()
    for turn, key in enumerate(("ArrowLeft", "ArrowRight", "ArrowDown", "ArrowLeft"), 2):
        page.keyboard.press(key)
        expect(booth.get_by_text(f"pair {turn} of 24")).to_be_visible()
    page.keyboard.press("u")
    expect(booth.get_by_text("pair 4 of 24")).to_be_visible()
    assert not booth.get_by_text("won").count(), "nothing is revealed before the end"
    booth.get_by_role("button", name="End and reveal").click()
    expect(page.locator(HERE).locator('[data-slot="result"]')).to_contain_text("3 votes by 1 person on 3 pairs")
    expect(page.locator(HERE).locator('[data-slot="result"]')).to_contain_text("1 tie")
    votes = served.store.votes((served.finished, 0), (served.finished, 10))
    assert len(votes) == 3
    assert votes[2].choice == "tie"
    page.reload()
    expect(page.locator(".cmp-cell").first).to_be_visible(timeout=LOADED)
    assert page.locator(HERE).get_by_label("Your name").input_value() == "ada"
    page.locator(HERE).get_by_role("button", name="Vote blind").click()
    expect(booth.get_by_text("pair 4 of 24")).to_be_visible()  # what was voted on does not come again
    page.keyboard.press("Escape")
    expect(page.locator('[data-chart="votes"] .main-svg').first).to_be_visible()


def test_a_vote_goes_to_the_policy_whose_picture_was_chosen(page: Page, served: Served, errors: list[str]) -> None:
    compare(page, served)
    page.locator(HERE).get_by_label("Your name").fill("grace")
    page.locator(HERE).get_by_role("button", name="Vote blind").click()
    chosen = {}
    for _ in range(6):
        picture = page.locator(".cmp-choice .cmp-pic").first
        prompt = page.locator(HERE).locator('[data-slot="booth"] .cmp-prompt').inner_text()
        style = picture.evaluate("node => [node.style.backgroundImage, node.style.backgroundPosition]")
        chosen[prompt, style[1]] = "a" if "evaluated-000000" in style[0] else "b"
        count = page.locator(".cmp-count").inner_text()
        page.keyboard.press("ArrowLeft")
        expect(page.locator(".cmp-count")).not_to_have_text(count)
    given = [vote for vote in served.store.votes((served.finished, 0), (served.finished, 20)) if vote.voter == "grace"]
    assert [vote.choice for vote in given] == list(chosen.values())
    assert {vote.choice for vote in given} == {"a", "b"}  # sides change; all six alike happens once in 40 ballots of fair coins


def test_other_prompts_are_drawn_on_request_by_the_base(page: Page, served: Served, errors: list[str]) -> None:
    refused = compare(page, served, "&bi=0").locator('[data-slot="errors"]')
    page.locator(HERE).get_by_text("Other prompts").click()
    page.locator(HERE).get_by_label("Prompts, one a line").fill("a purple square")
    page.locator(HERE).get_by_role("button", name="Draw").click()
    expect(refused).to_contain_text("unknown word 'purple'")
    page.locator(HERE).get_by_label("Prompts, one a line").fill("two red circles\na blue square")
    page.locator(HERE).get_by_label("Pictures of each").fill("2")
    page.locator(HERE).get_by_role("button", name="Draw").click()
    expect(page.locator(".cmp-cell")).to_have_count(4)
    expect(refused).to_be_hidden()
    assert "data:image/webp" in sheet(page.locator(".cmp-cell").first, "a")
    page.locator(HERE).get_by_role("button", name="Back to the held-out prompts").click()
    expect(page.locator(".cmp-cell")).to_have_count(24)


def test_what_is_not_there_is_said_and_the_page_stays_alive(page: Page, served: Served, errors: list[str]) -> None:
    compare(page, served)
    page.goto(f"{served.url}?tab=compare&run={served.finished}&bi=7")
    expect(page.locator('[data-page="compare"] [data-slot="errors"]')).to_contain_text(
        "no complete checkpoint after iteration 7", timeout=LOADED
    )
    page.locator(HERE).locator('[data-slot="b-at"]').select_option("10")
    expect(page.locator(".cmp-cell").first).to_be_visible()
    page.goto(f"{served.url}?tab=compare&run={served.finished}&b=gone")
    expect(page.locator('[data-page="compare"] [data-slot="problem"]')).to_contain_text("unknown run", timeout=LOADED)
    weights = served.store.create("pretrain", {}, title="Pretraining", origin="command line")
    served.store.set_status(weights, "stopped")
    page.goto(f"{served.url}?tab=compare&run={weights}")
    expect(page.locator('[data-page="compare"] [data-slot="problem"]')).to_contain_text(
        "choose a run that aligns", timeout=LOADED
    )
    words = begin(served.store, configure("glyphs", {"title": "Words"}))
    served.store.set_status(words, "stopped")
    page.goto(f"{served.url}?tab=compare&run={served.finished}&b={words}")
    expect(page.locator('[data-page="compare"] [data-slot="errors"]')).to_contain_text("no prompt suits both", timeout=LOADED)


def test_a_new_evaluation_appears_by_itself(page: Page, served: Served, errors: list[str]) -> None:
    config = toy_config(30, title="Growing toy")
    run, events = begin(served.store, config), toy_events(config)
    record(served.store, run, events, until=10)
    compare(page, served, run=run)
    expect(page.locator(".cmp-cell").first.locator(".b")).to_have_attribute("style", re.compile("evaluated-000000"))
    record(served.store, run, events, until=12)
    expect(page.locator(".cmp-cell").first.locator(".b")).to_have_attribute("style", re.compile("evaluated-000010"))
    served.store.set_status(run, "stopped")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_accessible_and_fits_a_phone(browser: Browser, served: Served, theme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    compare(page, served, f"&__theme={theme}")
    expect(page.locator(".cmp-score b").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not barriers(page, '[data-page="compare"]')
    page.locator(".cmp-pair").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not barriers(page, '[data-slot="zoom"]')
    context.close()


def test_the_curve_of_each_run_has_its_band() -> None:
    measured = {"measures": {"4": {"reward": {"value": 0.5, "low": 0.4, "high": 0.7}}}}
    history, config = History(evaluations=(Recorded(1, 0, measured), Recorded(2, 10, measured))), {"rollout": {"steps": 4}}
    drawn = curves([("one", history, config), ("two", history, config)]).data
    assert [trace.legendgroup for trace in drawn] == ["one", "one", "two", "two"]
    for band, line in zip(drawn[::2], drawn[1::2], strict=True):
        assert (band.x, band.y) == ((0, 10, 10, 0), (0.7, 0.7, 0.4, 0.4))
        assert (line.x, line.y) == ((0, 10), (0.5, 0.5))
    assert not curves([("one", History(), {})]).data


def test_the_win_rate_is_drawn_with_its_interval() -> None:
    assert not win_rate(Tally(0, 0, 0, 0)).data
    counted = tally([(pair, "b") for pair in range(8)] + [(8, "a"), (9, "a")])
    (point,) = win_rate(counted).data
    assert point.x == (0.8,)
    assert point.x[0] + point.error_x.array[0] == pytest.approx(counted.high)
    assert point.x[0] - point.error_x.arrayminus[0] == pytest.approx(counted.low)
