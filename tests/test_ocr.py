"""Spelling anywhere in a picture: what is asked for, the order of reading, and the score against one worked out by hand."""

import builtins
import socket
from typing import Any

import font_source_serif_pro
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from toy_training import SMALL

from workbench.config import configure
from workbench.events import IterationDone
from workbench.rewards.ocr import OCR, in_reading_order, quoted
from workbench.train import train

CPU = torch.device("cpu")
FONT = next(value for name, value in vars(font_source_serif_pro).items() if name == "SourceSerifProSemibold")


def sign(*lines: tuple[str, int, int], side: int = 256, size: int = 44) -> Tensor:
    """A picture [3, side, side] with each text at its place (left, top) on a light ground."""
    image = Image.new("RGB", (side, side), (214, 208, 190))
    draw = ImageDraw.Draw(image)
    for text, left, top in lines:
        draw.text((left, top), text, font=ImageFont.truetype(FONT, size), fill=(40, 30, 60))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def score() -> Any:
    return OCR().load(CPU)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ('a sign that says "open"', "open"),
        ('"Open" on a door and "shut" on another', "Open"),  # the first, as in Flow-GRPO
        ("a banner with “New York”", "New York"),
        ("ein Schild, „offen“, im Regen", "offen"),
        ("une porte, «ouvert»", "ouvert"),
        ('an empty "" and then "this"', "this"),
        ("it's the baker's shop, \"bread\"", "bread"),  # an apostrophe is none
    ],
)
def test_what_is_in_quotation_marks_is_asked_for(prompt: str, words: str) -> None:
    assert quoted(prompt) == words


@pytest.mark.parametrize("prompt", ["a sign that says open", 'an inch: 1"', "the baker's 'bread'", '""', '" "'])
def test_a_prompt_without_words_in_quotation_marks_is_refused(prompt: str, score: Any) -> None:
    with pytest.raises(ValueError, match="has no words in quotation marks, so the reward 'ocr' has nothing to look for"):
        quoted(prompt)
    with pytest.raises(ValueError, match="has no words in quotation marks"):
        score(torch.zeros(1, 3, 64, 64), [prompt])


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def test_text_is_read_line_by_line_from_the_left() -> None:
    boxes = [box(120, 12, 200, 40), box(10, 60, 90, 88), box(10, 8, 100, 38), box(100, 64, 160, 90), box(20, 120, 60, 130)]
    assert in_reading_order(boxes, ["b", "c", "a", "d", "e"]) == ["a", "b", "c", "d", "e"]
    assert in_reading_order([], []) == []


def test_what_is_well_above_is_a_line_of_its_own_however_far_right() -> None:
    assert in_reading_order([box(10, 40, 60, 60), box(200, 10, 260, 30)], ["below", "above"]) == ["above", "below"]


def test_a_small_word_beside_a_large_one_is_in_its_line() -> None:
    assert in_reading_order([box(150, 40, 170, 50), box(10, 10, 140, 70)], ["small", "LARGE"]) == ["LARGE", "small"]


def test_a_word_is_found_wherever_it_is(score: Any) -> None:
    images = torch.stack([sign(("Lantern", 10, 15)), sign(("Lantern", 80, 190)), sign(("Lantern", 40, 100))])
    assert score(images, ['a shop sign, "lantern"'] * 3).tolist() == [1, 1, 1]


def test_several_lines_are_read_as_one_text(score: Any) -> None:
    image = sign(("COLD", 30, 40), ("RIVER", 60, 130))
    assert score(image[None], ['a poster that says "cold river"']).tolist() == [1]
    assert score(image[None], ['a poster that says "river"']).tolist() == [1]  # part of more


@pytest.mark.parametrize(
    ("shown", "asked", "value"),
    [("LANTERN", "lantern", 1.0), ("LANTERN", "lanterns", 1 - 1 / 8), ("MARKET", "basket", 1 - 2 / 6), ("OAK", "winter", 0.0)],
)
def test_the_score_is_one_less_the_share_of_edits(shown: str, asked: str, value: float, score: Any) -> None:
    found = score(sign((shown, 20, 90))[None], [f'a sign that says "{asked}"'])
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(value)


def test_a_picture_without_text_scores_nothing(score: Any) -> None:
    noise = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    flat = torch.full((1, 3, 128, 128), 0.4)
    assert score(torch.cat([noise, flat]), ['a sign that says "open"'] * 2).tolist() == [0, 0]


@pytest.mark.parametrize("side", [64, 500])
def test_pictures_of_any_size_are_read(side: int, score: Any) -> None:
    image = sign(("OPEN", side // 8, side // 4), side=side, size=side // 4)
    assert score(image[None], ['a sign that says "open"']).tolist() == [1]


def test_several_threads_read_the_same(score: Any) -> None:
    images = torch.stack([sign((word, 15, 100)) for word in ("RIVER", "CASTLE", "MARKET", "OAK", "WINTER")])
    prompts = ['"river"', '"cattle"', '"basket"', '"elm"', '"water"']
    assert torch.equal(OCR(threads=3).load(CPU)(images, prompts), score(images, prompts))


def test_it_needs_no_network_and_says_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the recogniser opens a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    images = torch.stack([sign(("RIVER", 15, 100)), torch.zeros(3, 256, 256)])
    assert OCR().load(CPU)(images, ['"river"'] * 2).tolist() == [1, 0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("missing", ["rapidocr", "onnxruntime", "rapidfuzz"])
def test_a_missing_recogniser_says_how_to_install_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=missing)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=rf"reward 'ocr' needs {missing}.*pip install flow-map-workbench\[ocr\]"):
        OCR().load(CPU)


@pytest.mark.parametrize("judges", [False, True])
def test_a_run_whose_prompts_have_nothing_to_read_ends_before_it_draws(judges: bool) -> None:
    field = "eval_rewards" if judges else "rewards"
    with pytest.raises(ValueError, match=r"'a .*' has no words in quotation marks, so the reward 'ocr' has nothing to look for"):
        list(train(configure("shapes", {f"{field}.ocr": 1})))


def test_a_run_trains_on_it() -> None:
    small = {name: value for name, value in SMALL.items() if not name.startswith("grpo")}
    changes = {**small, "rewards.ocr": 1, "iterations": 1, "grpo.groups": 2, "grpo.group_size": 2}
    told = list(train(configure("glyphs", changes)))
    (scored,) = [event for event in told if isinstance(event, IterationDone)]
    assert scored.iteration == 1
