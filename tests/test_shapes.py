"""The shapes domain: its grammar, its scenes, and a detector that must agree with the renderer."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.rewards import REWARDS
from workbench.tasks.shapes import ShapesTask
from workbench.tasks.shapes_detector import MAX_OBJECTS, detect, palette_distance, score
from workbench.tasks.shapes_scenes import (
    CELL,
    COLOURS,
    GRID,
    PALETTE,
    RELATIONS,
    SHAPES,
    SIDE,
    SIZES,
    SKILLS,
    SLOT_SIZES,
    parse,
    patches,
    placements,
    render,
    sample_scenes,
)

TASK = ShapesTask()
PROMPTS = {split: tuple(TASK.prompts(split)) for split in ("train", "held_out")}


def pictures(prompts: list[str], seed: int = 0) -> Tensor:
    return render(sample_scenes([parse(prompt) for prompt in prompts], np.random.default_rng(seed)))


def scene(*objects: tuple[str, str, int, int]) -> Tensor:
    """One picture [1, 3, SIDE, SIDE] of (colour, shape, row, column), each of middle size in the middle of its cell."""
    cells = np.zeros((1, GRID * GRID), np.int64)
    middle = int(np.flatnonzero((placements() == (1, 1, 1)).all(1))[0])
    for colour, shape, row, column in objects:
        kind = SHAPES.index(shape) * len(COLOURS) + COLOURS.index(colour)
        cells[0, row * GRID + column] = 1 + kind * len(placements()) + middle
    return render(cells)


def words_of(prompt: str) -> str:
    """The prompt said again from what was understood of it."""
    request = parse(prompt)
    names = [" ".join(filter(None, (COLOURS[colour] if colour >= 0 else "", SHAPES[shape]))) for shape, colour in request.kinds]
    if request.count > 1:
        return f"{('two', 'three', 'four')[request.count - 2]} {names[0]}s"
    joint = f" {RELATIONS[request.relation]} " if request.relation >= 0 else " and "
    return joint.join(f"a {name}" for name in names)


def test_every_prompt_says_again_what_was_understood_of_it() -> None:
    for prompt in {*PROMPTS["train"], *PROMPTS["held_out"]}:
        assert words_of(prompt) == prompt
        assert all(0 <= slot < size for slot, size in zip(parse(prompt).slots, SLOT_SIZES, strict=True))


def test_different_prompts_are_different_slots() -> None:
    everything = {*PROMPTS["train"], *PROMPTS["held_out"]}
    assert len({parse(prompt).slots for prompt in everything}) == len(everything)


def test_held_out_prompts_are_never_trained_on() -> None:
    assert not set(PROMPTS["train"]) & set(PROMPTS["held_out"])
    for skill in SKILLS:
        train, held_out = (len({p for p in PROMPTS[split] if TASK.skill(p) == skill}) for split in ("train", "held_out"))
        assert held_out == max(1, round((train + held_out) / 5))


@pytest.mark.parametrize("split", PROMPTS)
def test_any_stretch_of_prompts_is_balanced_over_the_skills(split: str) -> None:
    for start in (0, 6, 60):
        assert set(Counter(TASK.skill(p) for p in PROMPTS[split][start : start + 60]).values()) == {10}


def test_an_unknown_word_is_named_and_the_vocabulary_listed() -> None:
    with pytest.raises(ValueError, match="unknown word 'purple'") as caught:
        TASK.check("a purple circle")
    for word in (*COLOURS, *SHAPES, *RELATIONS, "two", "three", "four", "and"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "prompt", ["", "circle", "two red circle", "a red circles", "a red circle and", "red a circle", "two circles and a square"]
)
def test_a_prompt_of_known_words_without_a_known_form_shows_the_forms(prompt: str) -> None:
    with pytest.raises(ValueError, match="known forms: 'a circle'"):
        TASK.check(prompt)


def test_case_articles_and_punctuation_do_not_matter() -> None:
    assert parse("A Red Circle, and one blue square.") == parse("a red circle and a blue square")


def test_the_palette_fills_what_patches_claim() -> None:
    bank = patches()
    assert bank.shape == (1 + len(SHAPES) * len(COLOURS) * len(placements()), 3, CELL, CELL)
    assert len(np.unique(bank.reshape(len(bank), -1), axis=0)) == len(bank)
    assert {tuple(pixel) for pixel in bank.transpose(0, 2, 3, 1).reshape(-1, 3)} == {tuple(colour) for colour in PALETTE}


def test_objects_of_neighbouring_cells_never_touch() -> None:
    drawn = (patches() != PALETTE[0][:, None, None]).any(1)
    assert not drawn[:, -1].any()
    assert not drawn[:, :, -1].any()
    assert max(SIZES) == CELL - 1


@pytest.mark.parametrize("skill", SKILLS)
def test_the_detector_agrees_with_the_renderer(skill: str) -> None:
    """2,000 pictures of each skill; at least 99 % must be called right."""
    known = [p for p in (*PROMPTS["train"], *PROMPTS["held_out"]) if TASK.skill(p) == skill]
    prompts = [known[i % len(known)] for i in range(2000)]
    found = score(pictures(prompts), prompts)
    assert found.exact.mean() >= 0.99
    assert (found.dense[found.exact == 1] == 1).all()
    assert ((found.dense >= 0) & (found.dense <= 1)).all()


def test_a_scene_holds_exactly_what_was_asked() -> None:
    prompts = list(PROMPTS["train"][:600])
    scenes = sample_scenes([parse(p) for p in prompts], np.random.default_rng(1))
    kinds = (scenes - 1) // len(placements())
    for prompt, cells, kind in zip(prompts, scenes, kinds, strict=True):
        request, (at,) = parse(prompt), np.nonzero(cells)
        assert len(at) == (request.count if len(request.kinds) == 1 else 2)
        shown = Counter((k // len(COLOURS), k % len(COLOURS)) for k in kind[at].tolist())
        for shape, colour in request.kinds:
            assert sum(n for (s, c), n in shown.items() if s == shape and colour in (c, -1)) >= 1


def test_sizes_and_positions_are_free() -> None:
    scenes = sample_scenes([parse("a red circle")] * 4000, np.random.default_rng(2))
    assert len(np.unique(scenes.max(1))) == len(placements())
    assert len(np.unique(scenes.argmax(1))) == GRID * GRID


@pytest.mark.parametrize(
    ("picture", "prompt", "dense"),
    [
        (scene(("red", "circle", 0, 0)), "a red circle", 1.0),
        (scene(("red", "circle", 0, 0)), "a circle", 1.0),
        (scene(("blue", "circle", 0, 0)), "a red circle", 0.5),
        (scene(("red", "square", 0, 0)), "a red circle", 0.5),
        (scene(("blue", "square", 0, 0)), "a red circle", 0.0),
        (scene(("red", "circle", 0, 0), ("red", "circle", 2, 2)), "a red circle", 0.5),
        (scene(("red", "circle", 0, 0), ("red", "circle", 2, 2)), "three red circles", 2 / 3),
        (scene(("red", "circle", 0, 0)), "a red circle and a blue square", 0.5),
        (scene(("red", "square", 0, 0), ("blue", "circle", 2, 2)), "a red circle and a blue square", 0.5),
        (scene(), "a red circle", 0.0),
        (scene(("red", "circle", 1, 3), ("blue", "square", 1, 0)), "a red circle left of a blue square", 0.75),
        (scene(("red", "circle", 1, 0), ("blue", "square", 1, 3)), "a red circle left of a blue square", 1.0),
    ],
)
def test_partial_credit_is_what_a_hand_would_give(picture: Tensor, prompt: str, dense: float) -> None:
    found = score(picture, [prompt])
    assert found.dense[0] == pytest.approx(dense)
    assert found.exact[0] == float(dense == 1.0)


@pytest.mark.parametrize(
    ("relation", "holds"), [("left of", (0, 1)), ("right of", (0, -1)), ("above", (1, 0)), ("below", (-1, 0))]
)
def test_relations_read_as_people_read_them(relation: str, holds: tuple[int, int]) -> None:
    prompt = f"a red circle {relation} a blue square"
    for down, across in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        picture = scene(("red", "circle", 1, 1), ("blue", "square", 1 + down, 1 + across))
        assert score(picture, [prompt]).exact[0] == float((down, across) == holds)


def test_fidelity_sees_ghosts_tints_and_wrong_colours_that_exact_match_forgives() -> None:
    clean = scene(("red", "circle", 0, 0))
    ghost, tinted, faded = clean.clone(), clean.clone(), clean.clone()
    ghost[:, :, 25:27, 25:27] = 0.8  # too small to be an object
    tinted[:, 2] += 0.05
    faded[:, 0] *= 0.9
    exact, fidelity = (REWARDS[name]().load(torch.device("cpu")) for name in ("shapes_exact", "shapes_fidelity"))
    assert fidelity(clean, ["a red circle"]).item() == pytest.approx(1.0)
    for spoilt in (ghost, tinted, faded):
        assert exact(spoilt, ["a red circle"]).item() == 1
        assert fidelity(spoilt, ["a red circle"]).item() < 0.99


def test_palette_distance_is_the_mean_over_pixels() -> None:
    grey = torch.from_numpy(PALETTE[0])[None, :, None, None].expand(1, 3, SIDE, SIDE).clone()
    grey[:, 0] += 0.1
    assert palette_distance(grey).item() == pytest.approx(0.1, abs=1e-4)
    assert REWARDS["shapes_fidelity"](worst=0.2).load(torch.device("cpu"))(grey, ["a circle"]).item() == pytest.approx(
        0.5, abs=1e-3
    )
    assert REWARDS["shapes_fidelity"](worst=0.05).load(torch.device("cpu"))(grey, ["a circle"]).item() == 0


def test_empty_and_overcrowded_pictures_score_nothing_and_break_nothing() -> None:
    empty = torch.zeros(3, 3, SIDE, SIDE)
    assert detect(empty).count.tolist() == [0, 0, 0]
    assert score(empty, ["a circle", "two red squares", "a red circle above a blue square"]).dense.tolist() == [0, 0, 0]
    crowd = scene(*[("red", "circle", row, column) for row in range(GRID) for column in range(GRID)])
    assert detect(crowd).count.tolist() == [GRID * GRID]
    assert (detect(crowd).shape >= 0).sum() == MAX_OBJECTS
    noise = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert score(noise, ["a circle"] * 4).exact.tolist() == [0, 0, 0, 0]
    white = torch.ones(1, 3, SIDE, SIDE)
    assert score(white, ["a yellow square"]).exact.tolist() == [0]


def test_an_image_is_judged_alike_in_any_company() -> None:
    prompts = list(PROMPTS["train"][:60])
    images = pictures(prompts)
    images = (images + 0.15 * torch.randn(images.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    together = score(images, prompts)
    for i in (0, 7, 31, 59):
        alone = score(images[i : i + 1].clone(), prompts[i : i + 1])
        assert (alone.dense[0], alone.exact[0]) == (together.dense[i], together.exact[i])
    order = list(reversed(range(60)))
    assert (score(images[order], [prompts[i] for i in order]).dense[::-1] == together.dense).all()


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[N, 3, 40, 40\], got \[2, 3, 24, 24\]"):
        detect(torch.zeros(2, 3, 24, 24))


def test_layouts_are_the_occupied_cells() -> None:
    images = torch.cat(
        [
            scene(("red", "circle", 0, 0)),
            scene(("blue", "square", 0, 0)),
            scene(("red", "circle", 0, 0), ("red", "circle", 3, 2)),
            scene(),
        ]
    )
    assert TASK.layouts(images) == [(0,), (0,), (0, 14), ()]


@pytest.mark.parametrize("name", [name for name, reward in REWARDS.items() if reward.domain == TASK.domain])
def test_a_reward_is_one_number_in_the_unit_interval_for_each_image(name: str) -> None:
    prompts = list(PROMPTS["held_out"][:12])
    images = pictures(prompts)
    values = REWARDS[name]().load(torch.device("cpu"))(images, prompts)
    assert values.shape == (12,)
    assert values.dtype == torch.float32
    assert ((values >= 0) & (values <= 1)).all()
