"""Pictures with captions on disk: a folder where each has a text file beside it, or a JSONL that names them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")

LIST = "metadata.jsonl"
"""The list of a folder, as Hugging Face's image folders name it."""

_FILE, _CAPTION = ("file_name", "image", "path"), ("text", "caption", "prompt")


@dataclass(frozen=True)
class Captioned:
    """A picture and what it shows, in words."""

    path: Path
    caption: str


def captioned(source: str) -> tuple[Captioned, ...]:
    """The pictures of a folder or of a JSONL, in the order of their names or lines.

    A line is an object with the picture's path, relative to the JSONL, as `file_name`, and its caption as `text`. A folder holds
    `metadata.jsonl`, or for each picture NAME.png a NAME.txt.
    Raises: ValueError: if there is none, or one without a caption; names the file and what is missing.
    """
    path = Path(source).expanduser()
    if path.is_dir() and (path / LIST).is_file():
        path = path / LIST
    if not path.exists():
        raise ValueError(f"pictures = {source!r} is neither a folder nor a JSONL; name one with pictures and their captions")
    found = tuple(_listed(path) if path.is_file() else _beside(path))
    if not found:
        raise ValueError(f"{path} holds no pictures; they end in {', '.join(ENDINGS)}")
    return found


def read_picture(path: Path, side: int) -> Tensor:
    """The middle square of a picture as it is shown, upright and on white, [3, side, side] in [0, 1].

    Raises: ValueError: if it is no picture, a damaged one, or one of more pixels than Pillow holds to be safe.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.fit(_in_colour(ImageOps.exif_transpose(opened)), (side, side), Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's words for damage are many
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def _in_colour(image: Any) -> Any:
    """A picture in 8 bits of red, green and blue; what is transparent lets white through."""
    from PIL import Image

    if image.mode.startswith("I"):  # grey in 16 bits, which Pillow would clip instead of scale
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _beside(folder: Path) -> Iterator[Captioned]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in ENDINGS:
            words = path.with_suffix(".txt")
            if not words.is_file():
                raise ValueError(f"{path} has no caption: write it into {words.name} beside it, or list all in {LIST}")
            yield Captioned(path, _said(_text(words), str(words)))


def _listed(file: Path) -> Iterator[Captioned]:
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {file}"
        try:
            told = json.loads(line)
            name, caption = (next(told[key] for key in keys if isinstance(told.get(key), str)) for keys in (_FILE, _CAPTION))
        except (ValueError, AttributeError, RuntimeError) as error:
            wanted = f'{{"{_FILE[0]}": "a.png", "{_CAPTION[0]}": "what it shows"}}'
            raise ValueError(f"{where} is not an object such as {wanted}") from error
        path = file.parent / name
        if not path.is_file():
            raise ValueError(f"{where} names {path}, which is not there")
        yield Captioned(path, _said(caption, where))


def _text(file: Path) -> str:
    """What a file says, with or without the mark that some editors begin with. Raises: ValueError: if it is not readable."""
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ValueError(f"{file} cannot be read: {told}; save it as UTF-8") from error


def _said(caption: str, where: str) -> str:
    if not (words := " ".join(caption.split())):
        raise ValueError(f"{where} has an empty caption")
    return words
