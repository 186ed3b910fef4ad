"""Whether a text recogniser reads the word that a prompt asks for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.contracts import Reward, RewardFunction


class GlyphsOCR(Reward):
    """1 - edit distance / length between the word asked for and what RapidOCR reads, 1 where it contains the word; in [0, 1].

    Letters count alike in both cases and spaces do not count. The recogniser was made by others from real photographs, so no
    policy here has seen it. Recognition only, without detection: a picture is one line of text. Case, spaces and substring as in
    Flow-GRPO (arXiv:2505.05470).
    """

    name: Literal["glyphs_ocr"] = "glyphs_ocr"

    domain = "glyphs"
    background = True

    def load(self, device: torch.device) -> RewardFunction:
        """Raises: ModuleNotFoundError: if the recogniser is not installed, saying how to install it."""
        from workbench.tasks.glyphs_scenes import parse

        read = reader()

        def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
            words = [parse(prompt).word for prompt in prompts]
            return torch.tensor([legibility(text, word) for text, word in zip(read(images), words, strict=True)])

        return score


def legibility(text: str, word: str) -> float:
    """How well `text`, as read, agrees with `word`; in [0, 1]."""
    from rapidfuzz.distance import Levenshtein

    text, word = text.lower().replace(" ", ""), word.lower()
    return 1.0 if word in text else max(0.0, 1 - Levenshtein.distance(text, word) / len(word))


def reader() -> Callable[[Tensor], list[str]]:
    """A recogniser of images [N, 3, H, W] in [0, 1], each one line of text; the text of each, empty where it sees none.

    Its weights come with the package `rapidocr`. On one core it takes about 7 ms for an image of 24 x 64 pixels; one image at a
    time, in a network input as wide as the image, is the quickest way on a CPU.

    Raises: ModuleNotFoundError: if it is not installed, saying how to install it.
    """
    recogniser = engine(
        "glyphs_ocr",
        {"Rec.rec_batch_num": 1, "Rec.rec_img_shape": [3, 48, 48]},  # the least width; wider images are not squeezed
    )

    def read(images: Tensor) -> list[str]:
        pixels = (images.detach().cpu().clamp(0, 1) * 255).round().byte().flip(1).permute(0, 2, 3, 1).contiguous().numpy()
        return list(recogniser.recognize_txt(list(pixels)).txts or ()) if len(pixels) else []  # it takes BGR

    return read


def engine(reward: str, settings: Mapping[str, Any]) -> Any:
    """RapidOCR on one core for each call, without a word on the screen.

    Raises: ModuleNotFoundError: if it is not installed, saying which reward needs it and how to install it.
    """
    try:
        import onnxruntime  # noqa: F401  # rapidocr itself comes without the engine that it runs on
        import rapidfuzz  # noqa: F401
        from rapidocr import RapidOCR
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the reward {reward!r} needs {error.name}, which is not installed: pip install flow-map-workbench[ocr]",
            name=error.name,
        ) from error
    return RapidOCR(
        params={
            "Global.log_level": "error",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            **settings,
        }
    )
