"""Whether a picture shows the words that its prompt puts in quotation marks."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from workbench.contracts import Reward, RewardFunction
from workbench.rewards.glyphs_ocr import engine, legibility
from workbench.rewards.views import as_bytes

_QUOTED = re.compile(r'"([^"]*)"|“([^“”]*)”|„([^„“”]*)[“”]|«([^«»]*)»')

_PAGE = {
    "Global.use_cls": False,  # which says whether text stands on its head
    "Det.limit_type": "max",  # only larger pictures are shrunk to find text; as PaddleOCR does by default
    "Det.limit_side_len": 960,
}

Box = Sequence[Sequence[float]]
"""The corners of a piece of text, (x, y) in pixels, clockwise from its upper left."""


class OCR(Reward):
    """Spelling: 1 - edits / letters between the words a prompt puts in quotation marks and what RapidOCR reads; in [0, 1].

    1 where the picture contains them; capitals and spaces do not count. Text is found anywhere in a picture and read line by
    line. A prompt needs quotation marks, as in: a sign that says "open". It runs on the CPU, three pictures of 512 x 512 a second
    on a core.

    Source: the text rendering reward of Flow-GRPO (arXiv:2505.05470), there with PaddleOCR.
    """

    name: Literal["ocr"] = "ocr"
    threads: int = Field(1, ge=1, le=64, description="pictures that are read at the same time, each by one core")

    background = True

    def load(self, device: torch.device) -> RewardFunction:
        """Raises: ModuleNotFoundError: if the recogniser is not installed, saying how to install it."""
        read = page_reader()

        def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
            words = [quoted(prompt).replace(" ", "") for prompt in prompts]
            pixels = as_bytes(images).numpy()
            with ThreadPoolExecutor(self.threads) as pool:
                texts = list(pool.map(read, pixels))
            return torch.tensor([legibility(text, word) for text, word in zip(texts, words, strict=True)])

        return score

    def check(self, prompt: str) -> None:
        quoted(prompt)


def quoted(prompt: str) -> str:
    """The first words of a prompt that are in quotation marks. Raises: ValueError: if there are none."""
    found = next((words for match in _QUOTED.finditer(prompt) if (words := "".join(filter(None, match.groups()))).strip()), None)
    if found is None:
        raise ValueError(
            f"prompt {prompt!r} has no words in quotation marks, so the reward 'ocr' has nothing to look for; write it as in: "
            'a sign that says "open"'
        )
    return found


def page_reader() -> Callable[[Any], str]:
    """A recogniser of whole pictures [H, W, 3], uint8: all text that it finds, line by line; empty where it finds none.

    Its weights come with the package `rapidocr`.

    Raises: ModuleNotFoundError: if it is not installed, saying how to install it.
    """
    read = engine("ocr", _PAGE)

    def text(pixels: Any) -> str:
        found = read(pixels[..., ::-1])  # it takes BGR
        if found.txts is None:
            return ""
        return " ".join(in_reading_order([box.tolist() for box in found.boxes], found.txts))

    return text


def in_reading_order(boxes: Sequence[Box], texts: Sequence[str]) -> list[str]:
    """Texts line by line from the top, each line from the left; a text whose middle is within another's line belongs to it."""
    places = []
    for box, text in zip(boxes, texts, strict=True):
        columns, rows = zip(*box, strict=True)
        places.append(((min(rows) + max(rows)) / 2, max(rows) - min(rows), min(columns), text))
    lines: list[list[tuple[float, float, float, str]]] = []
    for place in sorted(places):
        middle, height = place[:2]
        line = lines[-1] if lines else None
        if line is not None and middle - line[0][0] < max(height, line[0][1]) / 2:
            line.append(place)
        else:
            lines.append([place])
    return [text for line in lines for *_, text in sorted(line, key=lambda place: place[2])]
