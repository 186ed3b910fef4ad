"""The glyphs domain: its prompts, its scenes, a reader that must agree with the renderer, and the generator of words."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.benchmarks.reader import bench_reader
from workbench.evaluate import held_out
from workbench.flow import seeded_noise, time_grid
from workbench.models.glyphs import LATENT_SHAPE, GlyphsModel, StripAutoencoder
from workbench.models.transformer import ConditionalTransformer
from workbench.recipes.glyphs import GLYPHS, GlyphsRecipe
from workbench.rewards import REWARDS
from workbench.tasks.glyphs import GlyphsTask
from workbench.tasks.glyphs_reader import edit_distance, read, score
from workbench.tasks.glyphs_scenes import (
    DARK,
    FONTS,
    GAP,
    HEIGHT,
    LETTERS,
    MARGIN,
    PALETTE,
    SIZES,
    SLOT_SIZES,
    WIDTH,
    Scene,
    coverage,
    parse,
    prompt_of,
    render,
    sample_scenes,
    width,
)
from workbench.tasks.glyphs_words import WORDS

CPU = torch.device("cpu")
TASK = GlyphsTask()
PROMPTS = {split: tuple(TASK.prompts(split)) for split in ("train", "held_out")}
CAT = Scene("CAT", "manrope", 13, x=10, y=7, ink=0, ground=4)


def strings(count: int, seed: int = 0) -> list[str]:
    """Letters at random, three or four of them."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(LETTERS), rng.integers(3, 5))) for _ in range(count)]


def shot(scene: Scene) -> Tensor:
    return render([scene])


def dense(image: Tensor, word: str) -> float:
    return float(score(image, [prompt_of(word)]).dense)


def test_every_word_has_its_prompt_on_one_side_and_a_fifth_of_each_length_is_held_out() -> None:
    words = {split: {parse(prompt).word for prompt in prompts} for split, prompts in PROMPTS.items()}
    assert not words["train"] & words["held_out"]
    assert words["train"] | words["held_out"] == set(WORDS)
    assert len(WORDS) == len(set(WORDS)) > 400
    for length in (3, 4):
        held_out = sum(len(word) == length for word in words["held_out"])
        assert held_out == sum(len(word) == length for word in WORDS) // 5
    for prompts in PROMPTS.values():
        assert [TASK.skill(prompt) for prompt in prompts[:4]] == ["3 letters", "4 letters"] * 2


@pytest.mark.parametrize("prompt", ['the word "CAT"', 'The word "cat".', "the word “Cat”", "the word CAT", '  the word  "CAT" '])
def test_a_prompt_may_be_written_a_little_differently(prompt: str) -> None:
    TASK.check(prompt)
    assert parse(prompt).slots == (3, 1, 20, 0)


def test_letters_that_make_no_word_are_a_prompt_too() -> None:
    assert parse(prompt_of("QZX")).word == "QZX"


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ('the word "C4T"', "'4'"),
        ('the word "CA T"', "' '"),
        ('the word "CAFÉ"', "'É'"),
        ('the word "AT"', "'AT' has 2"),
        ('the word "HOUSE"', "'HOUSE' has 5"),
        ('the word ""', "'' has 0"),
        ('"CAT"', "the known form: 'the word \"CAT\"'"),
        ("a red circle", "the known form"),
        ("", "the known form"),
    ],
)
def test_a_prompt_that_is_none_is_refused_with_what_is_wrong(prompt: str, named: str) -> None:
    with pytest.raises(ValueError, match="prompt ") as caught:
        TASK.check(prompt)
    assert named in str(caught.value)


def test_scenes_follow_their_seed_and_keep_inside_the_picture() -> None:
    words = strings(400)
    scenes = sample_scenes(words, np.random.default_rng(3))
    assert scenes == sample_scenes(words, np.random.default_rng(3))
    assert scenes != sample_scenes(words, np.random.default_rng(4))
    assert {scene.font for scene in scenes} == set(FONTS)
    assert {scene.size for scene in scenes} == set(SIZES)
    assert {(scene.ink, scene.ground) for scene in scenes} == {
        pair for a in range(4) for b in range(4, 8) for pair in ((a, b), (b, a))
    }
    for scene in scenes:
        assert scene.x >= MARGIN
        assert scene.x + width(scene.word, scene.font, scene.size) <= WIDTH - MARGIN


def test_the_widest_words_fit() -> None:
    for scene in sample_scenes(["WWWW", "MWQW"] * 50, np.random.default_rng(0)):
        inked = coverage([scene])[0].max(0) > 0
        columns = np.flatnonzero(inked)
        assert columns[0] == scene.x
        assert columns[-1] == scene.x + width(scene.word, scene.font, scene.size) - 1


def test_a_rendered_word_is_a_mix_of_its_two_colours_and_its_letters_do_not_touch() -> None:
    image = shot(CAT)
    assert image.shape == (1, 3, HEIGHT, WIDTH)
    mask = torch.from_numpy(coverage([CAT]))
    ground, ink = (torch.from_numpy(PALETTE[i])[None, :, None, None] for i in (CAT.ground, CAT.ink))
    assert torch.allclose(image, torch.lerp(ground, ink, mask[:, None]), atol=1e-6)
    blank = (mask[0].amax(0) == 0)[CAT.x : CAT.x + width("CAT", CAT.font, CAT.size)]
    assert int(blank.sum()) == 2 * GAP


def test_every_pair_of_colours_has_the_contrast_of_legible_text() -> None:
    linear = np.where(PALETTE <= 0.04045, PALETTE / 12.92, ((PALETTE + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    darkest, lightest = luminance[: len(DARK)].max() + 0.05, luminance[len(DARK) :].min() + 0.05
    assert lightest / darkest > 4.5  # WCAG 2, level AA


def test_the_reader_reads_what_the_renderer_draws() -> None:
    words = strings(2000, seed=1)
    scenes = sample_scenes(words, np.random.default_rng(1))
    reading = read(render(scenes))
    wrong = [(word, text) for word, text in zip(words, reading.text, strict=True) if word != text]
    assert len(wrong) <= 2, wrong  # agreement of at least .999
    assert reading.ink == tuple(scene.ink for scene in scenes)
    assert reading.ground == tuple(scene.ground for scene in scenes)
    assert np.mean([list(FONTS)[font] == scene.font for font, scene in zip(reading.font, scenes, strict=True)]) > 0.99
    assert max(abs(left - scene.x) for left, scene in zip(reading.left, scenes, strict=True)) <= 1
    assert float(reading.palette_distance.max()) < 1e-3


@pytest.mark.parametrize("font", FONTS)
@pytest.mark.parametrize("size", SIZES)
def test_every_letter_is_told_from_every_other(font: str, size: int) -> None:
    scenes = [replace(CAT, word=letter * 3, font=font, size=size, x=2) for letter in LETTERS]
    assert list(read(render(scenes)).text) == [scene.word for scene in scenes]


def test_reading_does_not_depend_on_the_batch() -> None:
    images = render(sample_scenes(strings(8), np.random.default_rng(0)))
    assert [read(image[None].clone()).text[0] for image in images] == list(read(images).text)


def test_mild_noise_is_read_through() -> None:
    words = strings(200)
    images = render(sample_scenes(words, np.random.default_rng(0)))
    noisy = images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert np.mean([a == b for a, b in zip(read(noisy.clamp(0, 1)).text, words, strict=True)]) > 0.98


def test_blank_and_garbage_pictures_say_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    blank = torch.rand(8, 3, 1, 1, generator=draw).expand(8, 3, HEIGHT, WIDTH)
    faint = torch.lerp(shot(CAT).mean((2, 3), keepdim=True), shot(CAT), 0.1)
    assert read(blank).text == ("",) * 8
    assert read(faint).text == ("",)
    assert float(read(faint).coverage.sum()) == 0
    garbage = [
        torch.rand(100, 3, HEIGHT, WIDTH, generator=draw),
        torch.nn.functional.interpolate(torch.rand(100, 3, 6, 16, generator=draw), size=(HEIGHT, WIDTH), mode="bilinear"),
    ]
    letters = [letter for images in garbage for text in read(images).text for letter in text]
    assert sum(letter in LETTERS for letter in letters) < 0.03 * len(letters)


def test_letters_that_run_together_are_one_mark_that_is_no_letter() -> None:
    image = shot(CAT)
    column = CAT.x + int(np.flatnonzero(coverage([CAT])[0].max(0)[CAT.x :] == 0)[0])
    image[:, :, 10, column : column + GAP] = torch.from_numpy(PALETTE[CAT.ink])[:, None]
    assert read(image).text == ("?T",)


def test_a_speck_is_overlooked_by_the_reader_and_seen_by_the_statistics() -> None:
    image, speck = shot(CAT), shot(CAT)
    speck[:, :, 2, 60] = torch.tensor([1.0, 0.0, 0.0])
    assert read(speck).text == ("CAT",)
    before, after = TASK.statistics(image), TASK.statistics(speck)
    assert after["palette_distance"] > before["palette_distance"] + 1e-4


def test_statistics_tell_how_a_word_is_set() -> None:
    bold, thin = shot(replace(CAT, font="fredoka")), shot(CAT)
    statistics = TASK.statistics(torch.cat([bold, thin]))
    distance = float(np.linalg.norm(PALETTE[CAT.ink] - PALETTE[CAT.ground]))
    assert statistics["contrast"].tolist() == pytest.approx([distance] * 2, abs=0.05)
    assert statistics["ink_share"][0] > statistics["ink_share"][1] > 0
    assert float(statistics["palette_distance"].max()) < 1e-3
    pale = torch.lerp(torch.ones(()), thin, 0.6)
    assert read(pale).text == ("CAT",)
    assert TASK.statistics(pale)["palette_distance"] > 0.05


def test_layouts_are_equal_where_font_colours_and_place_are() -> None:
    scenes = [CAT, replace(CAT, word="DOG"), replace(CAT, font="serif"), replace(CAT, ink=1), replace(CAT, x=26)]
    layouts = TASK.layouts(render(scenes))
    assert layouts is not None
    assert layouts[0] == layouts[1]
    assert len(set(layouts)) == 4


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [("CAT", "CAT", 0), ("CAT", "CUT", 1), ("CAT", "AT", 1), ("", "CAT", 3), ("KITTEN", "SITTING", 3)],
)
def test_edit_distance(first: str, second: str, edits: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == edits


def test_scores_are_the_share_of_letters_that_need_no_edit() -> None:
    image = shot(CAT)
    assert dense(image, "CAT") == 1
    assert dense(image, "CUT") == pytest.approx(2 / 3)
    assert dense(image, "COIN") == pytest.approx(1 / 4)
    assert dense(image, "DOG") == 0
    longer = shot(replace(CAT, word="CATS"))
    assert dense(longer, "CAT") == 1, "a word within a longer one counts in full"
    assert float(score(longer, [prompt_of("CAT")]).exact) == 0
    assert dense(torch.zeros(1, 3, HEIGHT, WIDTH), "CAT") == 0


def test_the_rewards_are_those_scores() -> None:
    words = strings(20)
    images = render(sample_scenes(words, np.random.default_rng(0)))
    asked = [prompt_of(word) for word in words[:10] + words[10:][::-1]]
    expected = score(images, asked)
    for name, values in (("glyphs_dense", expected.dense), ("glyphs_exact", expected.exact)):
        rewards = REWARDS[name]().load(CPU)(images, asked)
        assert torch.equal(rewards, values)
        assert rewards[:10].eq(1).all()
        assert rewards[10:].sum() < 10
        assert REWARDS[name].domain == TASK.domain


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reads images \[N, 3, 24, 64\], got \[2, 3, 40, 40\]"):
        read(torch.zeros(2, 3, 40, 40))


def test_the_benchmark_finds_the_reader_right_and_hard_to_fool() -> None:
    said: list[str] = []
    figures = bench_reader(images=256, progress=said.append)
    assert said == ["reader: 128 of 256 images", "reader: 256 of 256 images"]
    assert figures["agreement"]["value"] == 1
    assert set(figures["agreement_by_font_and_size"]) == {f"{font} {size}" for font in FONTS for size in SIZES}
    assert figures["disturbed"]["noise 0.05"] > figures["disturbed"]["noise 0.15"]
    assert figures["meaningless"]["one colour"] == 0
    assert max(figures["meaningless"].values()) < 0.1


def test_the_autoencoder_knows_two_colours_and_the_transformer_every_letter() -> None:
    torch.manual_seed(0)
    network, autoencoder = GlyphsModel.networks()
    images = render(sample_scenes(strings(4), np.random.default_rng(0)))
    mean, log_variance = autoencoder.encode(images)
    assert mean.shape == log_variance.shape == (4, *LATENT_SHAPE)
    decoded = autoencoder.decode(mean)
    assert decoded.shape == images.shape
    flat = decoded.flatten(2) - decoded.flatten(2).mean(2, keepdim=True)
    assert torch.linalg.matrix_rank(flat, rtol=1e-3).tolist() == [1] * 4, "pixels lie on the line from ground to ink"
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    x, t = torch.randn(1, *LATENT_SHAPE), torch.ones(1)
    words = ("CAT", "CAR", "ACT", "CATS")
    drawn = [network(x, t, t, torch.tensor([parse(prompt_of(word)).slots])) for word in words]
    assert all(image.shape == x.shape for image in drawn)
    assert all(not torch.allclose(drawn[i], drawn[j]) for i in range(4) for j in range(i))


def test_the_letters_are_tokens_of_their_own() -> None:
    network = GlyphsModel.networks().network
    assert isinstance(network, ConditionalTransformer)
    slots = torch.tensor([parse(prompt_of("CAT")).slots])
    cells = math.prod(LATENT_SHAPE[1:])
    tokens = network.tokens(torch.zeros(1, *LATENT_SHAPE), slots)
    changed = network.tokens(torch.zeros(1, *LATENT_SHAPE), torch.tensor([parse(prompt_of("CUT")).slots]))
    assert tokens.shape[1] == cells + len(SLOT_SIZES)
    differs = (tokens != changed).any(2)[0]
    assert differs.nonzero().flatten().tolist() == [cells + 1]


def test_the_recipe_shows_strings_beside_words_but_no_held_out_word() -> None:
    captions = GLYPHS.task.prompts("train")
    assert set(PROMPTS["train"]) <= set(captions)
    assert not set(PROMPTS["held_out"]) & set(captions)
    assert len(set(captions)) > 10_000
    assert tuple(GLYPHS.task.prompts("held_out")) == PROMPTS["held_out"]
    images = GLYPHS.draw(captions[-8:], np.random.default_rng(0))
    assert list(read(images).text) == [parse(caption).word for caption in captions[-8:]]
    support, weights = GLYPHS.support()
    assert float(weights.sum()) == pytest.approx(1)
    assert support.shape[1:] == GLYPHS.patches(torch.Generator().manual_seed(0)).shape[1:] == (3, HEIGHT, WIDTH)
    assert GlyphsRecipe().stages()[0].name == "autoencoder"


def test_what_ships_writes_the_words_asked_for_with_mistakes_and_on_the_palette() -> None:
    generator = GlyphsModel().load(CPU)
    sample = held_out(TASK, 192, 2, seed=7)
    flow_map = generator.bind(generator.embed(sample.prompts))
    x = seeded_noise(sample.seeds, generator.latent_shape)
    with torch.no_grad():
        for t, s in pairwise(time_grid(4, 4.0)):
            x = flow_map(x, t, s)
        images = generator.decode(x)
    scores = score(images, sample.prompts)
    assert scores.dense.mean() > 0.35
    assert scores.dense.mean() > 2 * score(images, sample.prompts[2:] + sample.prompts[:2]).dense.mean(), "the prompt counts"
    assert 0.05 < scores.exact.mean() < 0.35
    assert read(images).palette_distance.mean() < 0.05
    layouts = TASK.layouts(images)
    assert layouts is not None
    assert len(set(layouts)) > 120
    assert {font for font, *_ in layouts} >= {0, 1, 2}


def test_the_autoencoder_keeps_words_legible() -> None:
    generator = GlyphsModel().load(CPU)
    words = strings(128)
    images = render(sample_scenes(words, np.random.default_rng(0)))
    with torch.no_grad():
        back = generator.decode(generator.encode(images))
    assert np.mean([a == b for a, b in zip(read(back).text, words, strict=True)]) > 0.95


def test_a_few_steps_teach_the_autoencoder_the_colours() -> None:
    torch.manual_seed(0)
    autoencoder = StripAutoencoder(hidden=64)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=5e-3)
    images = GLYPHS.patches(torch.Generator().manual_seed(0))
    errors = []
    for _ in range(40):
        error = (autoencoder.decode(autoencoder.encode(images)[0]) - images).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.6 * errors[0]
