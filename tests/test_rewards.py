"""Rewards of the glyphs domain that judge or can be fooled: a real recogniser, a stated rule, and a scorer taught by it."""

import builtins
import socket
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.benchmarks.judges import bench_judges
from workbench.events import CheckpointReady, Controls, Event, Finished, IterationDone
from workbench.models.embedded import save_weights
from workbench.preferences import PreferenceRecipe, pretrain_preference
from workbench.pretrain import configure_recipe, pretrain, recorded_recipe
from workbench.rewards import REWARDS
from workbench.rewards.glyphs_ocr import legibility, reader
from workbench.rewards.preference import SHIPPED, PreferenceScorer, bradley_terry
from workbench.rewards.preference_rule import HARMONIES, taste
from workbench.tasks.glyphs_scenes import HEIGHT, PALETTE, WIDTH, Scene, coverage, prompt_of, render, sample_scenes
from workbench.tasks.glyphs_words import WORDS

WEIGHTS = (0.2126, 0.7152, 0.0722)  # of linear red, green and blue in luminance
CPU = torch.device("cpu")
SHORT = PreferenceRecipe(steps=6, pairs=8, held_out_pairs=16, report_every=2, checkpoint_every=4)


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return sample_scenes([WORDS[i] for i in rng.integers(0, len(WORDS), count)], rng)


loaded = cache(lambda name: REWARDS[name]().load(CPU))


def score(name: str, images: Tensor, prompts: Sequence[str]) -> Tensor:
    return loaded(name)(images, prompts)


def rule_of(drawn: Sequence[Scene]) -> Tensor:
    ink, ground = (torch.tensor([getattr(scene, field) for scene in drawn]) for field in ("ink", "ground"))
    return taste(ink, ground, torch.from_numpy(coverage(drawn)))


DRAWN = scenes(24)
IMAGES = render(DRAWN)
PROMPTS = [prompt_of(scene.word) for scene in DRAWN]


# --- the recogniser


def test_the_recogniser_reads_what_was_drawn_and_nothing_else() -> None:
    read = reader()
    assert sum(text.upper() == scene.word for text, scene in zip(read(IMAGES), DRAWN, strict=True)) >= 22
    values = score("glyphs_ocr", IMAGES, PROMPTS)
    assert values.mean() > 0.97
    assert values.dtype == torch.float32
    others = score("glyphs_ocr", IMAGES, PROMPTS[1:] + PROMPTS[:1])
    assert others.mean() < 0.3
    assert read(IMAGES[:0]) == []


def test_the_recogniser_sees_nothing_in_an_empty_picture() -> None:
    assert score("glyphs_ocr", torch.zeros(2, 3, HEIGHT, WIDTH), PROMPTS[:2]).tolist() == [0, 0]


def test_the_recogniser_needs_no_network_and_says_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the recogniser opens a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert REWARDS["glyphs_ocr"]().load(CPU)(IMAGES[:4], PROMPTS[:4]).mean() > 0.9
    assert capfd.readouterr() == ("", "")


def test_an_image_is_read_alike_alone_and_among_others() -> None:
    together = score("glyphs_ocr", IMAGES[:8], PROMPTS[:8])
    alone = torch.cat([score("glyphs_ocr", IMAGES[i : i + 1], PROMPTS[i : i + 1]) for i in range(8)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize(
    ("text", "word", "value"),
    [
        ("CAT", "CAT", 1.0),
        ("cat", "CAT", 1.0),
        ("c a t", "CAT", 1.0),
        ("xCATy", "CAT", 1.0),  # the word is part of it
        ("CAP", "CAT", 1 - 1 / 3),
        ("BOLT", "BOAT", 0.75),
        ("", "CAT", 0.0),
        ("ZEBRAS", "CAT", 0.0),  # more edits than letters
    ],
)
def test_legibility_is_one_less_the_share_of_edits(text: str, word: str, value: float) -> None:
    assert legibility(text, word) == pytest.approx(value)


@pytest.mark.parametrize("missing", ["rapidocr", "onnxruntime", "rapidfuzz"])
def test_a_missing_recogniser_says_how_to_install_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=missing)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=rf"{missing}.*pip install flow-map-workbench\[ocr\]"):
        REWARDS["glyphs_ocr"]().load(CPU)


def test_of_the_rewards_of_words_only_the_recogniser_is_slow() -> None:
    assert [name for name, reward in REWARDS.items() if reward.background and reward.domain == "glyphs"] == ["glyphs_ocr"]


# --- the rule


def centred(ink: int, ground: int) -> Tensor:
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 8:16, 20:44] = 1
    return taste(torch.tensor([ink]), torch.tensor([ground]), mask)


def test_the_rule_in_closed_form() -> None:
    dark, light = HARMONIES[0]
    luminance = [
        sum(w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip(WEIGHTS, rgb, strict=True))
        for rgb in PALETTE[[dark, light]].tolist()
    ]
    contrast = (luminance[1] + 0.05) / (luminance[0] + 0.05) / 21
    assert centred(dark, light).item() == pytest.approx((contrast + 1 + 1) / 3, abs=1e-5)
    assert centred(light, dark).item() == pytest.approx((contrast + 1 + 1) / 3, abs=1e-5)


def test_harmony_and_centring_are_a_third_each() -> None:
    (dark, light), (other, _) = HARMONIES[:2]
    contrasts = {pair: 3 * centred(*pair).item() - 1 for pair in ((dark, light), (other, light))}
    assert 0 < contrasts[other, light] < 1 < contrasts[dark, light] < 2
    aside = torch.zeros(1, HEIGHT, WIDTH)
    aside[:, 8:16, 40:64] = 1  # its middle is 20 columns off the picture's: not centred at all
    assert taste(torch.tensor([dark]), torch.tensor([light]), aside).item() == pytest.approx(
        centred(dark, light).item() - 1 / 3, abs=1e-5
    )


def test_no_ink_pleases_nobody() -> None:
    assert taste(torch.tensor([0]), torch.tensor([5]), torch.zeros(1, HEIGHT, WIDTH)).item() == 0
    assert score("glyphs_rule", torch.full((1, 3, HEIGHT, WIDTH), 0.4), PROMPTS[:1]).item() == pytest.approx(0, abs=0.2)


def test_the_rule_reads_the_same_from_a_picture_as_from_its_scene() -> None:
    torch.testing.assert_close(score("glyphs_rule", IMAGES, PROMPTS), rule_of(DRAWN), atol=0.01, rtol=0)


def test_colours_off_the_palette_do_not_count_for_the_rule() -> None:
    shifted = (IMAGES + torch.tensor([0.08, -0.08, 0.08])[:, None, None]).clamp(0, 1)
    assert (score("glyphs_rule", shifted, PROMPTS) < score("glyphs_rule", IMAGES, PROMPTS)).all()
    strange = torch.lerp(
        torch.tensor([1.0, 0.0, 1.0])[:, None, None], torch.tensor([0.0, 1.0, 0.0])[:, None, None], IMAGES[:, :1]
    )
    assert score("glyphs_rule", strange, PROMPTS).max() == 0


# --- the scorer


@pytest.mark.parametrize("name", ["glyphs_preference", "glyphs_rule", "glyphs_ocr"])
def test_values_are_one_number_in_the_unit_interval_for_each_image(name: str) -> None:
    values = score(name, torch.cat([IMAGES[:6], torch.rand(6, 3, HEIGHT, WIDTH)]), PROMPTS[:12])
    assert values.shape == (12,)
    assert values.dtype == torch.float32
    assert ((values >= 0) & (values <= 1)).all()


def test_the_shipped_scorer_sides_with_the_rule_on_pairs_it_has_not_seen() -> None:
    drawn = scenes(512, seed=77)
    liking, opinion = rule_of(drawn).view(2, -1), score("glyphs_preference", render(drawn), [""] * 512).view(2, -1)
    agrees = ((opinion[0] > opinion[1]) == (liking[0] > liking[1])).float()
    assert agrees.mean() > 0.88
    clear = (liking[0] - liking[1]).abs() > 0.3
    assert agrees[clear].mean() > 0.98
    assert 0.4 < opinion.mean() < 0.6
    assert SHIPPED.stat().st_size < 1 << 20


def test_the_shipped_scorer_can_be_fooled_where_the_rule_cannot() -> None:
    best = score("glyphs_preference", render(scenes(512, seed=3)), [""] * 512).max()
    scorer = loaded("glyphs_preference")
    images = IMAGES[:8].clone()
    for _ in range(40):
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(scorer(images, PROMPTS[:8]).logit().sum(), images)
        images = (images + 0.02 * gradient.sign()).clamp(0, 1).detach()
    assert scorer(images, PROMPTS[:8]).mean() > best
    assert score("glyphs_rule", images, PROMPTS[:8]).max() < 0.1


def test_an_opinion_is_half_at_the_centre_and_does_not_depend_on_the_batch() -> None:
    scorer = PreferenceScorer()
    raw = scorer(IMAGES)
    scorer.centre.copy_(raw[0])
    assert scorer.opinion(IMAGES)[0].item() == pytest.approx(0.5)
    torch.testing.assert_close(scorer(IMAGES[:1]), raw[:1])


def test_bradley_terry_in_closed_form() -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    wanted = -(torch.tensor([1.0, 2.0]).sigmoid().log()).mean()
    assert bradley_terry(first, second, torch.tensor([1.0, 0.0])) == pytest.approx(wanted.item())
    assert bradley_terry(first, first, torch.tensor([1.0, 0.0])).item() == pytest.approx(np.log(2))


def test_weights_that_are_missing_or_another_networks_are_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="python -m workbench pretrain preference"):
        REWARDS["glyphs_preference"](weights=str(tmp_path / "none.safetensors")).load(CPU)
    save_weights(tmp_path / "other.safetensors", {"other": torch.nn.Linear(2, 2)}, {})
    with pytest.raises(ValueError, match="does not hold the weights"):
        REWARDS["glyphs_preference"](weights=str(tmp_path / "other.safetensors")).load(CPU)


# --- teaching it


def kept(events: Sequence[Event]) -> list[CheckpointReady]:
    return [event for event in events if isinstance(event, CheckpointReady)]


def taught(recipe: PreferenceRecipe, **options: Any) -> list[Event]:
    """All events; checkpoints as copies, since their tensors are live."""
    told: list[Event] = []
    for event in pretrain_preference(recipe, **options):
        if isinstance(event, CheckpointReady):
            tensors = {stem: {name: value.clone() for name, value in named.items()} for stem, named in event.tensors.items()}
            event = CheckpointReady(event.iteration, tensors, event.state)
        told.append(event)
    return told


def test_a_seed_means_one_scorer_and_resuming_changes_nothing() -> None:
    whole = kept(taught(SHORT))
    assert [checkpoint.iteration for checkpoint in whole] == [4, 6]
    resumed = kept(taught(SHORT, resume=whole[0]))
    again = kept(taught(SHORT))
    for other in (resumed[-1], again[-1]):
        assert all(torch.equal(value, other.tensors["scorer"][name]) for name, value in whole[-1].tensors["scorer"].items())
    different = kept(taught(SHORT.model_copy(update={"seed": 1})))
    assert not torch.equal(whole[-1].tensors["scorer"]["judge.0.weight"], different[-1].tensors["scorer"]["judge.0.weight"])


def test_a_stopped_lesson_keeps_where_it_was() -> None:
    controls = Controls()
    told = []
    for event in pretrain_preference(SHORT, controls=controls):
        controls.stop |= isinstance(event, IterationDone)
        told.append(event)
    assert [checkpoint.iteration for checkpoint in kept(told)] == [2]
    assert isinstance(told[-1], Finished)
    assert told[-1].summary["stopped"] is True


def test_a_finished_lesson_reports_its_accuracy_and_scales_its_opinions() -> None:
    told = taught(SHORT)
    figures = told[-1].summary
    assert set(figures) == {"stopped", "pair_accuracy", "pair_accuracy_clear", "correlation"}
    scorer = SHORT.modules(kept(told)[-1])["scorer"]
    raw = scorer(render(scenes(64))).detach()
    assert abs(float(raw.mean() - scorer.centre)) < 2 * float(scorer.spread)
    assert float(scorer.spread) > 0


def test_a_loss_that_is_not_finite_ends_the_lesson() -> None:
    (first, *_) = kept(taught(SHORT))
    first.tensors["scorer"]["judge.2.weight"].fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="nan at step 4; use a smaller learning_rate"):
        taught(SHORT, resume=first)


def test_the_command_s_recipe_is_found_by_name_and_read_back_from_a_record() -> None:
    recipe = configure_recipe("preference", {"steps": "3", "pairs": 8, "held_out_pairs": 8})
    assert recorded_recipe(recipe.model_dump(mode="json")) == recipe
    assert [type(event) for event in pretrain(recipe)] == [type(event) for event in pretrain_preference(recipe)]
    with pytest.raises(ValueError, match=r"'flow_steps'; choose from: .*sharpness"):
        configure_recipe("preference", {"flow_steps": 3})


def test_the_benchmark_of_judges_tells_what_they_read_what_fools_the_scorer_and_what_they_cost() -> None:
    figures = bench_judges(images=12, pairs=32, turns=1, threads=(1,))
    for reading in (kind for kinds in figures["readers"].values() for kind in kinds.values()):
        assert reading["exact"] > 0.8
        assert reading["mean_for_another_prompt"] < 0.4
        assert reading["milliseconds_per_image"] > 0
    fooled = figures["scorer"]
    assert fooled["pair_accuracy_of_the_clearer_half"] > 0.9
    assert fooled["climbed"] > fooled["rendered_best"]
    assert fooled["climbed_by_the_rule"] < 0.1
    assert all(value > 0 for value in figures["beside"]["1 threads"].values())
