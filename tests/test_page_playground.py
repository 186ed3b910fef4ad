"""The Playground in a real browser: knobs with their effect, links and PNGs that restore it, and what it says when it cannot."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect
from serving_page import LOADED, Served, barriers, begin, listen
from toy_run import toy_config

from workbench.config import PRESETS
from workbench.evaluate import load_policy
from workbench.events import CheckpointReady, Started
from workbench.panels import drawing, playground
from workbench.png import compose, encode, read_made
from workbench.sampling import DrawRequest, draw
from workbench.store import Store
from workbench.studio import Studio

pytestmark = pytest.mark.xdist_group("page_playground")
PROMPT = "two red circles"
START = (
    f"&policy=preset:shapes&prompt={PROMPT}&seed=0&seeds=lock&steps=4&images=8&pick=0&step=2"
    "&sampler=asfmc&k.noise=0.7&k.anchor=1&k.budget=step"
)


def tuned(store: Store, iterations: tuple[int, ...] = (2, 4), title: str = "Tuned toy") -> str:
    """A run whose checkpoints differ from the base."""
    run = begin(store, toy_config(5, title=title))
    store.record(run, Started(0, {}))
    checkpoint(store, run, iterations)
    return run


def checkpoint(store: Store, run: str, iterations: tuple[int, ...]) -> None:
    policy = load_policy(toy_config(5))
    for iteration in iterations:
        generator = torch.Generator().manual_seed(iteration)
        ema = {name: p.detach() + 0.02 * torch.randn(p.shape, generator=generator) for name, p in policy.parameters.items()}
        store.record(run, CheckpointReady(iteration, {"policy": ema, "ema": ema}, {"iteration": iteration}))


@pytest.fixture(scope="module")
def run(served: Served) -> str:
    run = tuned(served.store)
    served.store.set_status(run, "done")
    return run


def play(page: Page, served: Served, query: str = "") -> Locator:
    """The Playground with its first images."""
    page.goto(f"{served.url}?tab=playground{query}")
    expect(page.locator(".pg-tiles .pg-pick").first).to_be_visible(timeout=LOADED)
    return page.locator(".pg")


def settled(page: Page) -> None:
    """Until nothing is being drawn any more, the plane included."""
    expect(page.locator(".pg-cell").first).to_be_visible(timeout=LOADED)
    expect(page.locator('.pg [data-slot="result"]')).to_have_attribute("data-busy", "false")


def painted(locator: Locator) -> str:
    return str(locator.evaluate("node => node.style.backgroundImage + node.style.backgroundPosition"))


@pytest.fixture(scope="module")
def opened(browser: Browser, served: Served) -> Iterator[tuple[Page, list[str]]]:
    """One page for all tests that begin with the base of `shapes`, and what it complained of."""
    page = browser.new_context(viewport={"width": 1440, "height": 950}).new_page()
    found = listen(page)
    play(page, served, START)
    yield page, found
    page.context.close()


@pytest.fixture
def base(opened: tuple[Page, list[str]]) -> Iterator[Page]:
    """That page as it begins; at the end nothing was complained of."""
    page, found = opened
    page.evaluate(
        "link => { history.replaceState(null, '', link); window.workbench.go('playground', {}, false); }",
        "?tab=playground" + START,
    )
    expect(page.locator('.pg [data-slot="noise"] tbody tr').first.locator("td").nth(2)).to_have_text("49 %", timeout=LOADED)
    expect(page.locator('.pg [data-slot="title"]')).to_contain_text(PROMPT)
    yield page
    assert not found


# what the page asks, without a browser


def test_without_any_run_the_base_of_shapes_draws(studio: Studio) -> None:
    form = playground.form(studio, {"run": ""})
    assert (form["run"], form["preset"], form["task"]) == ("", "shapes", "shapes")
    asked = {"prompt": form["defaults"]["prompt"], "sampler": form["defaults"]["sampler"], "steps": form["defaults"]["steps"]}
    drawn = drawing.group(studio, asked)
    assert drawn["sheet"]["count"] == 9
    assert drawn["title"] == "the base model 'shapes'"
    assert drawn["split"] == "held_out"
    assert len(drawn["noise"]) == form["defaults"]["steps"] - 1
    assert drawn["std"] > 0


@pytest.mark.parametrize("preset", ["shapes", "shapes_cm", "shapes_fm", "glyphs"])
def test_every_model_can_be_drawn_with_every_sampler_that_it_offers(studio: Studio, preset: str) -> None:
    form = playground.form(studio, {"run": "", "preset": preset})
    asked = {"preset": preset, "prompt": form["defaults"]["prompt"], "steps": 2, "images": 2}
    for sampler in form["samplers"]:
        settings = {field["name"]: field["value"] for field in sampler["fields"]}
        drawn = drawing.group(studio, {**asked, "sampler": {"name": sampler["name"], **settings}})
        assert drawn["sheet"]["count"] == 3
        assert all(field["help"] and field["label"] for field in sampler["fields"])


def test_knobs_of_the_plane_keep_to_their_ranges(studio: Studio) -> None:
    asked = {"prompt": PROMPT, "sampler": {"name": "asfmc_local"}, "steps": 2}
    told = drawing.plane(studio, asked)
    assert [knob["name"] for knob in told["knobs"]] == ["distance", "noise"]
    assert (len(told["cells"]), told["sheet"]["count"]) == (25, 100)
    assert told["cells"][0]["set"] == {"noise": 1.0, "distance": 0.01}  # from the top: the first knob grows upward
    still = next(cell for cell in told["cells"] if cell["set"]["noise"] == 0)
    assert still["diversity"] == pytest.approx(0, abs=1e-6)
    assert drawing.plane(studio, {"prompt": PROMPT, "sampler": {"name": "ode"}})["knobs"] == []


def test_a_grid_comes_in_portions_that_make_the_whole(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "PORTION", 15)
    asked = {
        "request": {"prompt": PROMPT, "sampler": {"name": "asfmc"}, "steps": 2},
        "axes": [{"name": "seed", "values": "0..8"}, {"name": "scale", "values": "0,1"}],
    }
    start, rewards, portions = 0, [], 0
    while start is not None:
        part = drawing.grid(studio, {**asked, "start": start})
        assert part["start"] == start == len(rewards)
        assert part["sheet"]["count"] == len(part["rewards"])
        rewards += part["rewards"]
        portions += 1
        start = part["next"]
    assert (len(rewards), part["total"], portions) == (18, 18, 3)
    assert rewards[:9] == rewards[9:]  # a base has no scale


def test_a_grid_over_checkpoints_draws_each_with_its_own_weights(studio: Studio) -> None:
    run = tuned(studio.store)
    asked = {"run": run, "prompt": PROMPT, "seed": 3, "steps": 2}
    axes = [{"name": "checkpoint", "values": "base,2,4,last"}]
    made = drawing.picture(studio, {"request": asked, "axes": axes})
    picture = Image.open(io.BytesIO(base64.b64decode(made["data"].split(",")[1])))
    side = picture.width // 4
    tiles = [picture.crop((i * side, picture.height - side, (i + 1) * side, picture.height)).tobytes() for i in range(4)]
    assert tiles[2] == tiles[3]
    assert len({*tiles}) == 3
    back = playground.restore(studio, made)
    assert (back["axes"], back["request"]["run"], back["notes"]) == (axes, run, [])


def test_the_downloaded_image_is_the_one_on_screen_and_of_the_command_line(studio: Studio) -> None:
    request = DrawRequest(prompt=PROMPT, seed=2)
    times = PRESETS["shapes"].rollout.grid_of(request.steps)
    generator = load_policy(PRESETS["shapes"]).generator
    for pick, shot in ((0, request.deployed("two_time", times)), (1, request.sample(times, 0)), (3, request.sample(times, 2))):
        made = drawing.picture(studio, {"request": request.model_dump(), "pick": pick})
        picture = Image.open(io.BytesIO(base64.b64decode(made["data"].split(",")[1])))
        assert picture.tobytes() == compose(draw(generator, [shot]), 1).tobytes()
    with pytest.raises(ValueError, match="no image 9"):
        drawing.picture(studio, {"request": request.model_dump(), "pick": 9})


def as_file(made: dict[str, object]) -> dict[str, str]:
    content = encode(Image.new("RGB", (4, 4)), made)
    return {"data": "data:image/png;base64," + base64.b64encode(content).decode()}


def test_a_picture_of_elsewhere_is_restored_as_far_as_it_goes(studio: Studio) -> None:
    lost = DrawRequest(run="20200101-gone", checkpoint=7, prompt=PROMPT, seed=5, toward=8, share=0.5).model_dump()
    back = playground.restore(studio, as_file({"draw": lost, "version": "0.0.1", "pick": 2, "seeds_mode": "walk"}))
    assert back["request"] == {**lost, "run": "", "checkpoint": None}
    assert (back["pick"], back["mode"]) == (2, "walk")
    assert "version 0.0.1" in back["notes"][0]
    assert "20200101-gone is not among the runs here" in back["notes"][1]
    run = tuned(studio.store)
    back = playground.restore(studio, as_file({"draw": {**lost, "run": run}, "version": "0.0.1"}))
    assert (back["request"]["run"], back["request"]["checkpoint"]) == (run, None)
    assert "does not keep its checkpoint after 7 iterations" in back["notes"][1]
    with pytest.raises(ValueError, match="not a PNG"):
        playground.restore(studio, {"data": "data:image/png;base64,%%%"})


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"prompt": "a purple circle"}, "unknown word 'purple'; the vocabulary is"),
        ({"prompt": PROMPT, "seed": "seven"}, "seed = 'seven'"),
        ({"prompt": PROMPT, "preset": "shapes_cm", "sampler": {"name": "cps"}}, "does not fit a single_time map; choose from"),
        ({"prompt": PROMPT, "run": "20200101-gone"}, "unknown run '20200101-gone'"),
        ({"prompt": PROMPT, "preset": "faces"}, "unknown preset 'faces'"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_words(studio: Studio, asked: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        drawing.group(studio, asked)


def test_a_run_without_a_checkpoint_shows_its_base_and_says_so(studio: Studio) -> None:
    run = begin(studio.store, toy_config(5))
    drawn = drawing.group(studio, {"run": run, "prompt": PROMPT})
    assert "no checkpoint yet" in drawn["note"]
    assert drawn["sheet"] == drawing.group(studio, {"prompt": PROMPT})["sheet"]


def test_a_run_that_trains_no_policy_is_told_apart(studio: Studio) -> None:
    run = studio.store.create("pretrain", {}, title="From nothing", origin="test")
    form = playground.form(studio, {"run": run})
    assert form["run"] == ""
    assert "no policy to draw with" in form["note"]


# the page


def test_images_are_there_at_once_with_their_rewards_and_noise(page: Page, served: Served, run: str, errors: list[str]) -> None:
    root = play(page, served, f"&run={run}")
    expect(root.locator(".pg-tiles .pg-pick")).to_have_count(8)
    assert painted(root.locator(".pg-deployed .pic")).startswith('url("data:image/webp')
    expect(root.locator('[data-slot="facts"]')).to_contain_text("±")
    expect(root.locator('[data-slot="noise"] tbody tr')).to_have_count(3)
    expect(root.locator('[data-slot="policy"]')).to_have_value("")
    expect(root.locator('[data-slot="said"]')).to_contain_text("after 4 iterations")
    expect(root.locator('[data-slot="split"]')).to_contain_text("Held out")
    settled(page)


def test_a_knob_changes_the_samples_and_not_the_deployed_image(base: Page) -> None:
    root = base.locator(".pg")
    settled(base)
    sample, deployed = root.locator(".pg-tiles .pic").first, root.locator(".pg-deployed .pic")
    before = painted(sample)
    share = root.locator('[data-slot="noise"] tbody tr').first.locator("td").nth(2)
    expect(share).to_have_text("49 %")
    root.locator('input[type="range"][data-knob="noise"]').fill("0.2")
    expect(share).to_have_text("4 %")
    assert painted(sample) != before
    assert root.locator('input[type="number"][data-knob="noise"]').input_value() == "0.2"
    still = deployed.evaluate("node => node.style.backgroundPosition")
    root.locator('input[type="range"][data-knob="noise"]').fill("0")
    expect(root.locator('[data-slot="noise"]')).to_contain_text("draws no noise")
    assert deployed.evaluate("node => node.style.backgroundPosition") == still


def test_dragging_never_piles_up_and_the_last_value_wins(base: Page) -> None:
    root = base.locator(".pg")
    settled(base)
    asked: list[str] = []
    base.on("request", lambda request: asked.append(request.url) if "component_server" in request.url else None)
    base.evaluate("""async () => {
        const knob = document.querySelector('input[type="range"][data-knob="noise"]');
        for (let i = 0; i <= 60; i++) {
            knob.value = i / 100;
            knob.dispatchEvent(new Event("input", { bubbles: true }));
            await new Promise((done) => setTimeout(done, 5));
        }
    }""")
    expect(root.locator('[data-slot="noise"] tbody tr').first.locator("td").nth(2)).to_have_text("36 %")
    base.wait_for_url(re.compile(r"k\.noise=0\.6(&|$)"))
    assert 1 <= len(asked) < 40


def test_another_sampler_brings_its_own_knobs_and_remembers_those_of_the_last(base: Page) -> None:
    root = base.locator(".pg")
    root.locator('input[type="number"][data-knob="anchor"]').fill("0.5")
    root.locator('input[type="number"][data-knob="anchor"]').press("Tab")
    root.locator('[data-slot="sampler"]').select_option("flow_sde")
    expect(root.locator('input[type="range"][data-knob="anchor"]')).to_have_count(0)
    expect(root.locator('input[type="range"][data-knob="noise"]')).to_have_attribute("max", "2")
    expect(root.locator('[data-slot="plane-title"]')).to_have_text("Noise")
    root.locator('[data-slot="sampler"]').select_option("ode")
    expect(root.locator('[data-slot="noise"]')).to_contain_text("draws no noise")
    expect(root.locator('[data-slot="plane"]')).to_be_hidden()
    root.locator('[data-slot="sampler"]').select_option("asfmc")
    expect(root.locator('input[type="number"][data-knob="anchor"]')).to_have_value("0.5")
    expect(root.locator('[data-slot="plane"]')).to_be_visible()


def test_a_prompt_that_is_not_understood_is_explained_and_a_suggestion_mends_it(base: Page) -> None:
    root = base.locator(".pg")
    root.get_by_label("Prompt", exact=True).fill("a purple circle")
    expect(root.locator('[data-slot="errors"]')).to_contain_text("unknown word 'purple'; the vocabulary is")
    expect(root.locator('[data-slot="result"]')).to_have_attribute("data-stale", "true")
    root.locator('[data-slot="suggested"] button').nth(1).click()
    expect(root.locator('[data-slot="errors"]')).to_be_hidden()
    expect(root.locator('[data-slot="result"]')).to_have_attribute("data-stale", "false")
    expect(root.locator('[data-slot="title"]')).to_contain_text(root.get_by_label("Prompt", exact=True).input_value())


def test_a_walk_shows_its_strip_and_stays_where_one_chooses(base: Page) -> None:
    root = base.locator(".pg")
    root.get_by_role("button", name="Walk").click()
    steps = root.locator('[data-slot="walk-strip"] .pg-step')
    expect(steps).to_have_count(9)
    steps.nth(2).click()
    expect(steps.nth(2)).to_have_attribute("aria-pressed", "true")
    base.wait_for_url(re.compile("share=0.25"))
    root.get_by_role("button", name="Random").click()
    expect(root.locator('[data-slot="walk"]')).to_be_hidden()
    seed = root.get_by_label("Seed", exact=True).input_value()
    root.get_by_label("Prompt", exact=True).fill("a square")
    expect(root.locator('[data-slot="title"]')).to_contain_text("a square")
    assert root.get_by_label("Seed", exact=True).input_value() != seed


def test_the_trajectory_of_a_chosen_image_is_walked_with_keys(base: Page) -> None:
    root = base.locator(".pg")
    expect(root.locator(".pg-film .pg-step")).to_have_count(5)
    root.locator(".pg-tiles .pg-pick").nth(2).click()
    expect(root.locator('[data-slot="path-of"]')).to_have_text("sample 3")
    base.keyboard.press("ArrowRight")
    expect(root.locator('[data-slot="path-of"]')).to_have_text("sample 4")
    slider = root.get_by_role("slider", name="Step of the trajectory")
    slider.press("Home")
    expect(root.locator('[data-slot="path-at"]')).to_contain_text("pure noise, t = 1")
    slider.press("End")
    expect(root.locator('[data-slot="path-at"]')).to_contain_text("the image, t = 0")
    expect(root.locator(".pg-now .pic")).to_have_count(3)
    root.locator(".pg-film").press("ArrowLeft")
    expect(root.locator(".pg-film .pg-step").nth(3)).to_have_attribute("aria-pressed", "true")


def test_a_cell_of_the_plane_gives_its_values(base: Page) -> None:
    root = base.locator(".pg")
    settled(base)
    expect(root.locator(".pg-cell")).to_have_count(25)
    cell = root.get_by_role("button", name=re.compile("^noise 0.5, anchor 0.25: reward"))
    cell.click()
    expect(root.locator('input[type="number"][data-knob="noise"]')).to_have_value("0.5")
    expect(root.locator('input[type="number"][data-knob="anchor"]')).to_have_value("0.25")
    expect(cell).to_have_attribute("aria-pressed", "true")


def test_a_grid_is_drawn_labelled_refused_and_downloaded(base: Page, tmp_path: Path) -> None:
    root = base.locator(".pg")
    root.locator('[data-slot="gx"]').select_option("noise")
    root.locator('[data-slot="gxv"]').fill("0..1 x3")
    root.locator('[data-slot="gy"]').select_option("steps")
    root.locator('[data-slot="gyv"]').fill("1,2")
    root.get_by_role("button", name="Draw the grid").click()
    expect(root.locator('[data-slot="grid"] td')).to_have_count(6)
    expect(root.locator('[data-slot="grid-note"]')).to_contain_text("6 cells")
    expect(root.locator('[data-slot="grid"] thead th').last).to_have_text("noise 1")
    with base.expect_download() as download:
        root.get_by_role("button", name="Download as one PNG").click()
    download.value.save_as(tmp_path / "grid.png")
    assert [axis["name"] for axis in read_made((tmp_path / "grid.png").read_bytes())["axes"]] == ["noise", "steps"]
    root.locator('[data-slot="gxv"]').fill("0..1 x300")
    root.get_by_role("button", name="Draw the grid").click()
    expect(root.locator('[data-slot="grid-errors"]')).to_contain_text("at most 256")
    expect(root.locator('[data-slot="grid"] td')).to_have_count(6)


def test_a_picture_that_is_opened_restores_the_form(
    page: Page, served: Served, run: str, errors: list[str], tmp_path: Path
) -> None:
    link = f"&run={run}&policy=2&scale=0.5&prompt={PROMPT}&seed=42&steps=3&sampler=flow_sde&k.noise=1.2&images=4&pick=2"
    root = play(page, served, link)
    expect(root.locator('[data-slot="said"]')).to_contain_text("after 2 iterations")
    shown = painted(root.locator(".pg-tiles .pic").nth(1))
    with page.expect_download() as download:
        root.get_by_role("button", name="Download the chosen image").click()
    download.value.save_as(tmp_path / "image.png")
    root = play(page, served, f"&run={served.finished}&policy=preset:shapes")
    root.locator('[data-slot="file"]').set_input_files(tmp_path / "image.png")
    expect(root.locator('[data-slot="said"]')).to_contain_text("after 2 iterations")
    expect(root.locator('[data-slot="policy"]')).to_have_value("2")
    expect(root.locator(".pg-tiles .pg-pick")).to_have_count(4)
    assert painted(root.locator(".pg-tiles .pic").nth(1)) == shown
    expect(root.locator(".pg-tiles .pg-pick").nth(1)).to_have_attribute("aria-pressed", "true")
    expect(root.locator('input[type="number"][data-knob="noise"]')).to_have_value("1.2")
    expect(root.get_by_label("Seed", exact=True)).to_have_value("42")
    assert f"run={run}" in page.url
    page.reload()
    expect(root.locator(".pg-tiles .pg-pick")).to_have_count(4, timeout=LOADED)
    assert painted(root.locator(".pg-tiles .pic").nth(1)) == shown


def test_a_file_that_is_no_picture_is_told_and_the_page_lives_on(base: Page, tmp_path: Path) -> None:
    root = base.locator(".pg")
    (tmp_path / "notes.png").write_text("hello")
    root.locator('[data-slot="file"]').set_input_files(tmp_path / "notes.png")
    expect(root.locator('[data-slot="notes"]')).to_contain_text("notes.png: this file is not a PNG picture")
    root.get_by_role("button", name="New seed").first.click()
    expect(root.locator('[data-slot="said"]')).not_to_contain_text("seed 0")


def test_a_new_checkpoint_of_the_run_is_drawn_by_itself(page: Page, served: Served, errors: list[str]) -> None:
    own = tuned(served.store, (2,), "Going toy")
    root = play(page, served, f"&run={own}")
    expect(root.locator('[data-slot="said"]')).to_contain_text("after 2 iterations")
    checkpoint(served.store, own, (5,))
    expect(root.locator('[data-slot="said"]')).to_contain_text("after 5 iterations")
    expect(root.locator('[data-slot="policy"] option').first).to_contain_text("after 5 iterations")
    served.store.set_status(own, "done")


def test_another_run_and_another_page_keep_what_was_set(page: Page, served: Served, run: str, errors: list[str]) -> None:
    root = play(page, served, f"&run={run}&prompt={PROMPT}&seed=9")
    page.locator(".wb-nav [data-go=train]").click()
    page.locator(".wb-nav [data-go=playground]").click()
    expect(root.locator('[data-slot="said"]')).to_contain_text("seed 9")
    expect(root.locator('[data-slot="title"]')).to_contain_text(PROMPT)
    page.wait_for_url(re.compile("seed=9"))


def test_a_link_to_a_lost_run_says_so_once_and_draws_all_the_same(page: Page, served: Served) -> None:
    root = play(page, served, "&run=20200101-gone")
    expect(page.locator('[data-page="playground"] [data-slot="problem"]')).to_contain_text("unknown run '20200101-gone'")
    expect(root.locator('[data-slot="notes"]')).to_have_text("Meanwhile the base of ‘shapes’ draws.")
    page.locator('[data-slot="runs"]').select_option(served.finished)
    expect(root.locator('[data-slot="notes"]')).to_be_hidden()


def test_train_takes_the_sampler_and_the_steps_along(base: Page) -> None:
    root = base.locator(".pg")
    root.locator('input[type="number"][data-knob="anchor"]').fill("0.5")
    root.locator('input[type="number"][data-knob="anchor"]').press("Tab")
    root.get_by_role("button", name="Train with these settings").click()
    base.wait_for_function("!location.search.includes('tab=playground')")
    expect(base.locator("#wb-new")).to_be_visible()
    expect(base.locator('#wb-new [name="sampler.asfmc.anchor"]')).to_have_value("0.5")
    expect(base.locator('#wb-new [name="rollout.steps"]')).to_have_value("4")


def test_a_telephone_shows_everything_without_scrolling_sideways(browser: Browser, served: Served) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    root = play(page, served, "&policy=preset:shapes")
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    images, knob = root.locator(".pg-tiles").bounding_box(), root.locator('input[type="range"][data-knob="noise"]').bounding_box()
    assert images is not None
    assert knob is not None
    assert knob["y"] - images["y"] < 700  # the knob and what it changes are on one screen
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier_in_light_and_dark(page: Page, served: Served, run: str, scheme: str, errors: list[str]) -> None:
    page.emulate_media(reduced_motion="reduce", color_scheme=scheme)
    play(page, served, f"&run={run}&seeds=walk&toward=3&share=0.5&gx=seed&gxv=1,2&__theme={scheme}")
    settled(page)
    expect(page.locator('[data-slot="grid"] td')).to_have_count(2)
    assert not barriers(page, '[data-page="playground"]')
