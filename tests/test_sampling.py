"""Drawing what a request asks for: the same image everywhere, in few passes, along walks and trajectories, over grids."""

import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

from workbench import __version__
from workbench.__main__ import main
from workbench.axes import MOST_CELLS, Axis, plan_grid, read_values, varied
from workbench.config import PRESETS, configure, validated
from workbench.contracts import Generator, Sampler
from workbench.evaluate import generate, group_diversity, load_policy, to_uint8
from workbench.models.policy import Policy
from workbench.pictures import data_sheet
from workbench.png import compose, compose_grid, encode, read_made, request_of
from workbench.samplers import SAMPLERS
from workbench.sampling import DrawRequest, Shot, between, choose_sampler, draw, fitting_samplers, trajectory

PROMPT = "a red circle left of a blue square"
TIMES = PRESETS["shapes"].rollout.grid_of(4)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(configure("shapes"))


@pytest.fixture(scope="module")
def generator(policy: Policy) -> Generator:
    return policy.generator


class Counted:
    """A generator that counts its forward passes."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.passes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def bind(self, embeddings: Any) -> Any:
        counting, flow_map = self, self._generator.bind(embeddings)

        class Map:
            kind = flow_map.kind

            def __call__(self, *arguments: Any) -> torch.Tensor:
                counting.passes += 1
                return flow_map(*arguments)

            def velocity(self, *arguments: Any) -> torch.Tensor:
                counting.passes += 1
                return flow_map.velocity(*arguments)

        return Map()


@pytest.mark.parametrize("name", fitting_samplers("two_time"))
def test_the_first_sample_of_a_group_is_what_evaluations_draw(policy: Policy, name: str) -> None:
    request = DrawRequest(prompt=PROMPT, seed=5, sampler=SAMPLERS[name]())
    alone = generate(policy, [PROMPT], [5], times=TIMES, sampler=SAMPLERS[name]())
    assert torch.equal(draw(policy.generator, [request.sample(TIMES, 0)]), alone)


def test_images_drawn_together_are_those_drawn_alone_whatever_their_kernels_times_and_prompts(generator: Generator) -> None:
    shots = [
        Shot(prompt, seed, PRESETS["shapes"].rollout.grid_of(steps), SAMPLERS[name](), member)
        for name in SAMPLERS
        for prompt, seed, steps, member in ((PROMPT, 1, 4, 0), ("two green squares", 2, 1, 0), (PROMPT, 1, 3, 2))
    ]
    together = draw(generator, shots)
    alone = torch.cat([draw(generator, [shot]) for shot in shots])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_cells_of_a_plane_share_their_passes(generator: Generator) -> None:
    counted = Counted(generator)
    kernels = [SAMPLERS["asfmc"](noise=noise, anchor=anchor) for noise in (0.0, 0.5, 1.0) for anchor in (0.25, 1.0)]
    draw(counted, [Shot(PROMPT, 0, TIMES, kernel, member) for kernel in kernels for member in range(3)])
    assert counted.passes == 4  # one a step, for 18 images with 6 kernels
    counted.passes = 0
    draw(counted, [Shot(PROMPT, 0, TIMES, SAMPLERS[name]()) for name in ("asfmc_local", "flow_sde", "ode")])
    assert counted.passes <= 3 * 4  # a velocity, a jump, and a velocity at the jump's end


def test_samples_of_a_group_differ_where_there_is_noise_and_only_there(generator: Generator) -> None:
    request = DrawRequest(prompt=PROMPT, seed=3, images=4)
    assert float(group_diversity(draw(generator, request.group(TIMES)), 4)) > 0.02
    still = request.model_copy(update={"sampler": SAMPLERS["asfmc"](noise=0.0)})
    assert float(group_diversity(draw(generator, still.group(TIMES)), 4)) < 1e-6
    assert torch.equal(draw(generator, request.group(TIMES)), draw(generator, request.group(TIMES)))


def test_noise_between_two_seeds_keeps_its_norm_and_meets_both_ends() -> None:
    start, end = torch.randn(2, 3, 6, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert torch.allclose(between(start, end, torch.zeros(3)), start, atol=1e-5)
    assert torch.allclose(between(start, end, torch.ones(3)), end, atol=1e-5)
    middle = between(start, end, torch.full((3,), 0.5))
    norms = [x.flatten(1).norm(dim=1) for x in (start, middle, end)]
    assert bool((norms[1] > 0.9 * torch.minimum(norms[0], norms[2])).all())


@pytest.mark.parametrize("name", ["ode", "asfmc"])
def test_a_walk_goes_from_one_seed_to_the_other(generator: Generator, name: str) -> None:
    def at(seed: int, toward: int | None = None, share: float = 0.0) -> torch.Tensor:
        return draw(generator, [Shot(PROMPT, seed, TIMES, SAMPLERS[name](), 0, toward, share)])

    torch.testing.assert_close(at(1, 2, 0.0), at(1), atol=1e-3, rtol=0)
    torch.testing.assert_close(at(1, 2, 1.0), at(2), atol=1e-3, rtol=0)
    assert float((at(1, 2, 0.5) - at(1)).abs().max()) > 0.1
    assert torch.equal(at(1, 1, 0.5), at(1))  # nowhere to go


@pytest.mark.parametrize(("preset", "rows"), [("shapes", {"jumps", "means"}), ("shapes_cm", {"jumps"}), ("shapes_fm", {"means"})])
def test_a_trajectory_ends_at_its_image_and_predicts_what_its_map_was_trained_for(preset: str, rows: set[str]) -> None:
    config = configure(preset)
    drawing = load_policy(config).generator
    request = DrawRequest(prompt=PROMPT, seed=4, sampler=config.sampler)
    times = config.rollout.grid_of(3)
    for shot in (request.deployed(config.model.kind, times), request.sample(times, 2)):
        found = trajectory(drawing, shot)
        image = draw(drawing, [shot])[0]
        assert found.times == times
        for name in ("jumps", "means"):
            row = getattr(found, name)
            assert (row is not None) == (name in rows)
            if row is not None:
                assert row.shape == found.states.shape == (4, *image.shape)
                torch.testing.assert_close(row[-1], image, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.states[-1], image, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "kind", "settings", "told"),
    [
        ("gama", "two_time", {}, "unknown sampler 'gama'; choose from: ode, asfmc"),
        ("cps", "single_time", {}, "does not fit a single_time map; choose from: ode, asfmc_endpoint, ddim_mix"),
        ("asfmc", "two_time", {"noise": 3}, "noise = 3"),
        ("asfmc", "two_time", {"noises": 1}, "unknown setting 'noises'; choose from: name, noise, anchor"),
    ],
)
def test_a_sampler_that_cannot_be_meant_is_refused_with_the_choices(
    name: str, kind: Any, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        choose_sampler(name, kind, settings)


def test_without_a_name_the_sampler_of_evaluations_is_taken() -> None:
    assert choose_sampler(None, "single_time", {"noise": 0.5}) == SAMPLERS["asfmc_endpoint"](noise=0.5)
    assert choose_sampler(None, "two_time") == SAMPLERS["ode"]()


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("steps", "1,2, 4,8", (1, 2, 4, 8)),
        ("noise", "0..1 x5", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("noise", "0:1:0.25", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("noise", "1:0:-0.5, 0.7", (1.0, 0.5, 0.0, 0.7)),
        ("seed", "3..6", (3, 4, 5, 6)),
        ("seed", "6:2:-2", (6, 4, 2)),
        ("steps", "1..8 x3", (1, 4, 8)),
        ("steps", "2,2,2", (2,)),
        ("prompt", "a red circle, nearly | two squares", ("a red circle, nearly", "two squares")),
        ("checkpoint", "base, 25, last", (0, 25, None)),
        ("checkpoint", "all", (0, 25, 50)),
        ("sampler", "ode, asfmc", ("ode", "asfmc")),
        ("budget", "step,time", ("step", "time")),
    ],
)
def test_the_values_of_an_axis(name: str, text: str, values: tuple[Any, ...]) -> None:
    assert read_values(Axis(name=name, values=text), [50, 0, 25]) == values


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ([], "at least one axis"),
        ([("taste", "1")], "'taste': nothing of this name can vary; choose from: prompt, seed"),
        ([("seed", "1"), ("seed", "2")], "chosen twice"),
        ([("noise", "")], "'noise' has no values; write for example 0,0.5,1"),
        ([("noise", "high")], "'high' is not a number; write for example"),
        ([("steps", "2.5")], "'2.5' is not a whole number"),
        ([("noise", "0..1")], "does not say how many values; write for example 0..1 x5"),
        ([("noise", "0:1:-0.1")], "never arrives"),
        ([("noise", "0:1:0")], "never arrives"),
        ([("noise", "nan")], "'nan' is not a number"),
        ([("seed", "0:1000000000")], f"1000000001 values; at most {MOST_CELLS}"),
        ([("seed", "0..31"), ("noise", "0..1 x11")], f"32 x 11 = 352 cells, and at most {MOST_CELLS} are drawn"),
        ([("noise", "0,2")], "sampler.noise = 2.0: input should be less than or equal to 1"),
        ([("sampler", "asfmc,ode"), ("anchor", "0,1")], "sampler 'ode' has no such setting; those that have: asfmc"),
        ([("sampler", "gama")], "unknown sampler 'gama'"),
        ([("steps", "0")], "steps = 0"),
    ],
)
def test_axes_that_make_no_grid_are_refused_in_words(axes: Sequence[tuple[str, str]], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        plan_grid(DrawRequest(prompt=PROMPT), [Axis(name=name, values=values) for name, values in axes])


def test_a_grid_is_read_line_by_line_and_shows_samples_where_the_sampler_varies() -> None:
    request = DrawRequest(prompt=PROMPT, sampler=SAMPLERS["asfmc"](noise=0.3))
    axes = [Axis(name="steps", values="1,2"), Axis(name="seed", values="7,8,9"), Axis(name="scale", values="0,1")]
    grid = plan_grid(request, axes)
    assert [(c.request.steps, c.request.seed, c.request.scale) for c in grid.cells[:3]] == [(1, 7, 0), (2, 7, 0), (1, 8, 0)]
    assert (len(grid.cells), grid.labels(1), {cell.pick for cell in grid.cells}) == (12, ["7", "8", "9"], {0})
    knobs = plan_grid(request, [Axis(name="anchor", values="0,1"), Axis(name="sample", values="1..3")])
    assert [cell.pick for cell in knobs.cells] == [1, 1, 2, 2, 3, 3]
    assert {cell.request.sampler.noise for cell in knobs.cells} == {0.3}
    other = plan_grid(request, [Axis(name="sampler", values="ddim_mix,ode")])
    assert [cell.request.sampler for cell in other.cells] == [SAMPLERS["ddim_mix"](), SAMPLERS["ode"]()]


def test_everything_that_a_sampler_can_be_set_to_can_vary() -> None:
    fields = {name for sampler in SAMPLERS.values() for name in sampler.model_fields} - {"name"}
    assert fields <= set(varied())


def test_a_png_says_how_it_was_made_and_brings_its_request_back() -> None:
    images = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    request = DrawRequest(prompt=PROMPT, seed=9, toward=3, share=0.25, sampler=SAMPLERS["flow_sde"](noise=1.5), scale=0.5)
    made = {"draw": request.model_dump(), "version": __version__, "noise": 0.1 + 0.2}
    content = encode(compose(images, 2), made)
    assert request_of(read_made(content)) == request
    assert read_made(content)["noise"] == 0.1 + 0.2
    with Image.open(io.BytesIO(content)) as picture:
        pixel = to_uint8(images)[3, :, 39, 39].tolist()
        assert list(picture.getpixel((picture.width - 3, picture.height - 3))) == pixel


def test_a_grid_has_its_labels_beside_it() -> None:
    images = torch.zeros(12, 3, 40, 40)
    plain = compose(images, 2)
    labelled = compose_grid(images, ["noise", "steps", "checkpoint"], ["0", "1"], ["1", "2", "4"], ["base", "last"])
    assert labelled.width > plain.width
    assert labelled.height > plain.height
    across = labelled.crop((136, 24, labelled.width, 44)).convert("L")
    assert across.getextrema() == (0, 255), "no ink where the labels of the columns are"


def png(made: str | None) -> bytes:
    content, text = io.BytesIO(), PngImagePlugin.PngInfo()
    if made is not None:
        text.add_itxt("workbench", made)
    Image.new("RGB", (4, 4)).save(content, "PNG", pnginfo=text)
    return content.getvalue()


def jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "JPEG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not a PNG picture"),
        (b"hello", "not a PNG picture"),
        (jpeg(), "not a PNG picture"),
        (png("{}")[:40], "not a PNG picture"),
        (png(None), "does not say how it was made"),
        (png("{"), "is damaged"),
        (png("[1]"), "is damaged"),
        (b"0" * (33 * 2**20), "33 MiB"),
    ],
    ids=["nothing", "text", "jpeg", "cut short", "no note", "half a note", "a list", "too large"],
)
def test_what_is_no_picture_of_the_workbench_is_told_in_words(content: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_made(content)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({}, "'run' is missing"),
        ({"draw": {"seed": -1}}, "seed = -1"),
        ({"draw": {"sampler": {"name": "gama"}}}, "unknown sampler 'gama'"),
        ({"draw": 3}, "dictionary"),
    ],
)
def test_settings_that_cannot_be_used_again_are_named(made: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        request_of(made)


def test_the_page_and_the_command_line_draw_one_image(generator: Generator, tmp_path: Path) -> None:
    drawn = {"deployed": [], "sampled": ["--sampler", "asfmc", "--sampler-set", "noise=0.4"]}
    request = DrawRequest(prompt=PROMPT, seed=11, sampler=SAMPLERS["asfmc"](noise=0.4))
    for name, options in drawn.items():
        out = tmp_path / f"{name}.png"
        words = ["sample", "--prompt", PROMPT, "--seed", "11", "--count", "1", "--out", str(out), "--runs", str(tmp_path)]
        assert main([*words, *options]) == 0
        shot = request.deployed("two_time", TIMES) if name == "deployed" else request.sample(TIMES, 0)
        assert Image.open(out).tobytes() == compose(draw(generator, [shot]), 1).tobytes()
        restored = request_of(read_made(out.read_bytes()))
        assert (restored.prompt, restored.seed, restored.steps, restored.run, restored.preset) == (PROMPT, 11, 4, "", "shapes")
        sampler: Sampler = restored.sampler
        assert sampler == (SAMPLERS["ode"]() if name == "deployed" else request.sampler)


def test_a_request_explains_each_of_its_fields_and_refuses_what_is_out_of_range() -> None:
    assert all(info.description for info in DrawRequest.model_fields.values())
    with pytest.raises(ValueError, match="scale = 2") as refused:
        validated(DrawRequest, {"scale": 2, "steps": 0})
    assert len(str(refused.value).splitlines()) == 2


def test_a_small_sheet_travels_as_text() -> None:
    images = (torch.arange(3 * 3 * 8 * 8, dtype=torch.uint8) % 251).view(3, 3, 8, 8)
    sheet = data_sheet(images, 2)
    assert {**sheet, "data": ""} == {"data": "", "tile": [8, 8], "columns": 2, "count": 3}
    json.dumps(sheet)
    with Image.open(io.BytesIO(base64.b64decode(sheet["data"].split(",")[1]))) as picture:
        assert picture.size == (16, 16)
        assert list(picture.getpixel((8 + 3, 2))) == images[1, :, 2, 3].tolist()
