"""Pictures that say how they were made: PNG files with the settings in the text chunk 'workbench', written and read."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from workbench import __version__
from workbench.config import validated
from workbench.exact_json import to_json
from workbench.sampling import DrawRequest

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.contracts import Sampler
    from workbench.policies import Chosen

CHUNK = "workbench"
LARGEST_FILE = 32 * 2**20
"""Bytes of a picture that is read."""

_TILE = 128  # pixels; smaller images are enlarged by a whole factor, so that each pixel stays itself
_GAP = 2  # pixels of white around each image
_FONT = 14  # pixels


def describe(
    chosen: "Chosen",
    preset: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    times: Sequence[float],
    sampler: "Sampler",
) -> dict[str, Any]:
    """How images were made: what it takes to draw them again.

    Args:
        preset: whose base drew, where the policy is of no run.
    """
    made: dict[str, Any] = {"run": chosen.run, "iteration": chosen.iteration, "preset": None if chosen.run else preset}
    if chosen.config.adapter.start and not chosen.run:
        made["adapter"] = chosen.config.adapter.model_dump()
    made |= {"prompts": list(prompts), "seeds": list(seeds), "steps": len(times) - 1, "times": list(times)}
    return made | {"sampler": sampler.model_dump(), "model": chosen.config.model.model_dump(), "version": __version__}


def compose(images: "Tensor", columns: int) -> Image.Image:
    """Images [N, 3, H, W] in [0, 1] in rows of `columns`, small ones enlarged."""
    from workbench.evaluate import to_uint8

    pixels = to_uint8(images).permute(0, 2, 3, 1).numpy()
    factor = max(1, _TILE // max(pixels.shape[1:3]))
    tiles = np.pad(pixels.repeat(factor, 1).repeat(factor, 2), ((0, 0), (_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=255)
    count, height, width, _ = tiles.shape
    grid = tiles.reshape(count // columns, columns, height, width, 3).swapaxes(1, 2).reshape(-1, columns * width, 3)
    return Image.fromarray(grid)


def compose_grid(
    images: "Tensor", names: Sequence[str], across: Sequence[str], down: Sequence[str], panels: Sequence[str]
) -> Image.Image:
    """A grid with its axes labelled: panels below one another, in each a row for every label of `down`.

    Args:
        images: [panels * down * across, 3, H, W] in [0, 1], in the order of reading.
        names: what varies across, down and from panel to panel; as many as there are axes.
    """
    per_panel = len(across) * len(down)
    drawn = [compose(images[start : start + per_panel], len(across)) for start in range(0, len(images), per_panel)]
    font = ImageFont.load_default(_FONT)
    titles = [f"{name}: " for name in names] + [""] * (3 - len(names))
    width, height = drawn[0].size
    cell_width, cell_height = width // len(across), height // len(down)
    columns = [_wrapped(titles[0] + text if i == 0 else text, font, cell_width - 2 * _GAP) for i, text in enumerate(across)]
    rows = [_wrapped(titles[1] + text if i == 0 else text, font, _TILE) for i, text in enumerate(down)]
    head = 6 + (_FONT + 3) * max(text.count("\n") + 1 for text in columns)
    side = _TILE + 8 if len(names) > 1 else 0
    above = _FONT + 10 if len(names) > 2 else 0
    sheet = Image.new("RGB", (side + width, len(drawn) * (above + head + height)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (panel, text) in enumerate(zip(drawn, panels, strict=True)):
        top = place * (above + head + height)
        pen.text((side + 2, top + 5), titles[2] + text, "black", font)
        for i, column in enumerate(columns):
            pen.multiline_text((side + i * cell_width + 2, top + above + 3), column, "black", font, spacing=3)
        for i, row in enumerate(rows):
            pen.multiline_text((4, top + above + head + i * cell_height + 4), row, "black", font, spacing=3)
        sheet.paste(panel, (side, top + above + head))
    return sheet


def encode(picture: Image.Image, made: Mapping[str, Any]) -> bytes:
    """The picture as a PNG that says how it was made."""
    text, content = PngInfo(), io.BytesIO()
    text.add_itxt(CHUNK, to_json(made))
    picture.save(content, "PNG", pnginfo=text)
    return content.getvalue()


def write(path: Path, picture: Image.Image, made: Mapping[str, Any]) -> None:
    """Write `encode`'s PNG, with the folders above it. Raises: OSError: if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(picture, made))


def read_made(content: bytes) -> dict[str, Any]:
    """How a picture was made, as it says itself.

    Raises: ValueError: if this is no PNG, or it says nothing that can be understood.
    """
    if len(content) > LARGEST_FILE:
        raise ValueError(f"this file has {len(content) / 2**20:.0f} MiB; pictures of the workbench are far smaller")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            text = picture.info.get(CHUNK)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ValueError("this file is not a PNG picture; choose one that the workbench wrote") from None
    if not isinstance(text, str):
        raise ValueError(
            "this PNG does not say how it was made: choose one that was downloaded here or written by the command `sample`; "
            "programs that edit or send pictures often take such notes out"
        )
    try:
        made = json.loads(text)
    except json.JSONDecodeError:
        made = None
    if not isinstance(made, dict):
        raise ValueError("what this PNG says of how it was made is damaged; choose another")
    return made


def request_of(made: Mapping[str, Any]) -> DrawRequest:
    """The request that a picture was drawn from, whether a page or the command line wrote it.

    Raises: ValueError: names what is missing or cannot be used.
    """
    if "draw" in made:
        return validated(DrawRequest, made["draw"])
    try:
        values = {
            "run": made["run"] or "",
            "checkpoint": made["iteration"] if made["run"] else None,
            "preset": made["preset"] or "shapes",
            "prompt": made["prompts"][0],
            "seed": made["seeds"][0],
            "steps": made["steps"],
            "sampler": made["sampler"],
        }
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"this PNG does not say enough of how it was made ({error} is missing); choose another") from None
    return validated(DrawRequest, values)


def _wrapped(text: str, font: Any, width: int) -> str:
    """Text broken into lines that are at most so many pixels wide."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
