"""The page that tries rewards, in a real browser."""

import json
from collections.abc import Iterator
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect
from serving_page import LOADED, Served, barriers, begin, listen, plotted

from workbench.config import change, configure
from workbench.events import Started
from workbench.figures.rewards import agreement, histogram

pytestmark = pytest.mark.xdist_group("page_rewards")


def trying(page: Page, served: Served, query: str = "") -> None:
    page.goto(f"{served.url}?tab=rewards&run={served.finished}{query}")
    expect(page.locator('[data-page="rewards"] .rw-wall .wb-tile').first).to_be_visible(timeout=LOADED)


@pytest.fixture(scope="module")
def looking(browser: Browser, served: Served) -> Iterator[Page]:
    """One page of the finished run, for all tests that only look."""
    context = browser.new_context(viewport={"width": 1440, "height": 950})
    page = context.new_page()
    found = listen(page)
    trying(page, served)
    yield page
    context.close()
    assert not found


def row(page: Page, name: str) -> list[str]:
    return page.locator('[data-page="rewards"] .rw-table tr', has_text=name).locator("td").all_inner_texts()


def test_every_reward_is_told_in_figures(looking: Page) -> None:
    name, mean, lowest, highest, *_, missing, _, _, speed = row(looking, "shapes dense")
    assert name == "shapes dense"
    assert float(lowest) <= float(mean) <= float(highest)
    assert missing == "0"
    assert float(speed) > 0


def test_groups_are_pushed_up_and_down_and_pictures_are_ranked(looking: Page) -> None:
    root = looking.locator('[data-page="rewards"]')
    expect(root.locator(".wb-group")).to_have_count(8)
    first = root.locator(".wb-group").first.locator(".wb-tile")
    sums = [float(text) for text in first.locator(".rew").all_inner_texts()]
    assert sums == sorted(sums, reverse=True)
    ranked = root.locator(".rw-wall .wb-tile")
    expect(ranked).to_have_count(64)
    values = [float(text) for text in ranked.locator(".rew").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    root.locator('[data-slot="by"]').select_option("shapes_exact")
    expect(ranked.first.locator(".adv")).to_contain_text("=1")
    expect(root.get_by_text("share their place with another")).to_be_visible()
    root.locator('[data-slot="by"]').select_option("")


def test_charts_show_how_values_are_spread_and_which_rewards_agree(looking: Page) -> None:
    for name in ("values", "agreement"):
        expect(plotted(looking, name)).to_be_visible()


def test_a_weight_changes_the_groups_and_the_address_and_goes_to_a_new_run(page: Page, served: Served, errors: list[str]) -> None:
    trying(page, served)
    root = page.locator('[data-page="rewards"]')
    before = root.locator(".wb-group .rew").all_inner_texts()
    root.get_by_role("slider", name="shapes exact").fill("0")
    root.get_by_role("slider", name="shapes dense").fill("0")
    expect(root.locator(".wb-group .rew").first).not_to_have_text(before[0])
    page.reload()
    expect(root.get_by_role("slider", name="shapes exact")).to_have_value("0", timeout=LOADED)
    root.locator('[name="rewards.shapes_fidelity.use"]').uncheck()
    expect(root.get_by_role("slider")).to_have_count(2)
    root.get_by_role("slider", name="shapes dense").fill("1.5")
    root.get_by_role("button", name="Train with these weights").click()
    query = parse_qs(urlsplit(page.url).query)
    assert query["new"] == ["yes"]
    assert json.loads(query["with"][0]) == {
        "rewards.shapes_dense": 1.5,
        "rewards.shapes_exact": 0,
        "rewards.shapes_fidelity": 0,
        "grpo.combine": "sum",
    }


def test_pictures_may_be_drawn_by_the_task_or_the_base(page: Page, served: Served, errors: list[str]) -> None:
    trying(page, served, "&kind=renderings&prompts=2&each=4")
    root = page.locator('[data-page="rewards"]')
    expect(root.locator(".rw-wall .wb-tile")).to_have_count(8)
    assert row(page, "shapes exact")[1:4] == ["1", "1", "1"]
    expect(root.get_by_text("2 of 2 groups without gradient")).to_be_visible()
    root.locator('[data-slot="kind"]').select_option("base")
    expect(root.locator('[data-slot="title"]')).to_contain_text("the base model 'shapes': 8 pictures")
    root.locator('[data-slot="kind"]').select_option("evaluation")
    expect(root.get_by_text("they cannot compete")).to_be_visible()
    expect(root.locator('[data-slot="by"]')).to_have_value("shapes_dense")
    expect(root.locator(".rw-wall .wb-tile")).to_have_count(24)


def test_a_refusal_is_shown_and_the_page_stays_alive(page: Page, served: Served, errors: list[str]) -> None:
    trying(page, served)
    root = page.locator('[data-page="rewards"]')
    root.locator('[name="rewards.shapes_fidelity.reward.worst"]').fill("7")
    expect(root.locator('[data-slot="errors"]')).to_contain_text("worst")
    root.locator('[name="rewards.shapes_fidelity.reward.worst"]').fill("0.2")
    expect(root.locator('[data-slot="errors"]')).to_be_hidden()
    for name in ("dense", "exact", "fidelity"):
        root.locator(f'[name="rewards.shapes_{name}.use"]').uncheck()
    expect(root.locator('[data-slot="errors"]')).not_to_be_empty()
    root.locator('[name="rewards.shapes_dense.use"]').check()
    expect(root.get_by_role("slider")).to_have_count(1)


def test_a_reward_that_fails_is_a_sentence_and_not_a_zero(page: Page, served: Served, errors: list[str]) -> None:
    config = configure("glyphs", {"title": "Words"})
    run = begin(served.store, config)
    served.store.record(run, Started(0, {"device": "cpu"}))
    served.store.set_status(run, "stopped")
    broken = {"rewards.glyphs_preference.use": True, "rewards.glyphs_preference.reward.weights": "nowhere.safetensors"}
    query = urlencode({"tab": "rewards", "run": run, "kind": "renderings", "prompts": 2, "each": 4, "form": json.dumps(broken)})
    page.goto(f"{served.url}?{query}")
    root = page.locator('[data-page="rewards"]')
    expect(root.locator(".rw-failed")).to_contain_text("glyphs preference raised ValueError: no scorer at", timeout=LOADED)
    assert not row(page, "glyphs preference")
    assert row(page, "glyphs exact")[1] == "1"
    expect(root.locator('[data-slot="quiet"]')).to_contain_text("without glyphs preference, which failed")
    expect(root.get_by_role("slider", name="glyphs preference")).to_be_disabled()
    assert "glyphs_preference" not in root.locator('[data-slot="by"]').inner_html()
    root.locator('[name="rewards.glyphs_rule.use"]').check()  # in this run it only judges
    expect(root.get_by_role("slider", name="glyphs rule")).to_be_enabled()
    root.get_by_role("button", name="Train with these weights").click()
    changes = json.loads(parse_qs(urlsplit(page.url).query)["with"][0])
    names = {weighted.reward.name for weighted in change(config, changes).rewards}
    assert names == {"glyphs_dense", "glyphs_exact", "glyphs_rule"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_accessible_and_fits_a_phone(browser: Browser, served: Served, theme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    trying(page, served, f"&__theme={theme}")
    page.wait_for_timeout(500)  # until nothing fades any more
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not barriers(page, '[data-page="rewards"]')
    context.close()


def test_the_histogram_counts_every_finite_value() -> None:
    (bars,) = histogram("toy", [0.0, 0.5, 0.5, 1.0, float("nan")]).data
    assert sum(bars.y) == 4
    assert not histogram("toy", [float("nan")]).data


def test_the_agreement_leaves_a_dash_where_there_is_none() -> None:
    (map_,) = agreement(["one", "two"], np.array([[1.0, np.nan], [np.nan, 1.0]])).data
    assert map_.text[0][1] == "–"
    assert map_.z[0][1] is None
    assert not agreement([], np.zeros((0, 0))).data
