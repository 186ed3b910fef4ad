"""Sprite sheets: many small images in one lossless file, written once and read back; and which of them to keep."""

import base64
import io
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workbench.whole_file import whole_file

_LARGEST_SIDE = 16_383  # of a WebP file, pixels


def write_sprite(folder: Path, stem: str, images: Tensor, columns: int, largest_tile: int | None = None) -> dict[str, Any]:
    """Lay images out in rows and write them as one WebP file, all of it or nothing; lossless where they keep their size.

    Args:
        images: [n, 3, H, W], uint8.
        columns: images in a row.
        largest_tile: images larger than this are thumbnailed, pixels; None keeps their size.
    Returns: {"sprite": file name or None where n = 0, "tile": [width, height], "columns": ..., "count": n}.
    Raises: OSError: if it cannot be written.
    """
    count, _, height, width = images.shape
    layout: dict[str, Any] = {"sprite": None, "tile": [width, height], "columns": columns, "count": count}
    if not count:
        return layout
    sheet, tile = _laid_out(images, columns, largest_tile)
    name = f"{stem}-{secrets.token_hex(4)}.webp"  # unique, so that a browser may keep it for ever
    with whole_file(folder / name) as hidden:
        if tile == [width, height]:
            sheet.save(hidden, "WEBP", lossless=True, quality=0, method=0)  # the quickest; slower settings save a few per cent
        else:  # no longer what was drawn, and photographs take a tenth this way
            sheet.save(hidden, "WEBP", quality=90, method=2)
    return layout | {"sprite": name, "tile": tile}


def data_sheet(images: Tensor, columns: int, largest_tile: int | None = None) -> dict[str, Any]:
    """As `write_sprite`, but as a data URL that travels inside an answer: {"data", "tile", "columns", "count"}.

    Args:
        images: [n, 3, H, W], uint8, n at least 1.
    """
    sheet, tile = _laid_out(images, columns, largest_tile)
    content = io.BytesIO()
    sheet.save(content, "WEBP", lossless=True, quality=0, method=0)
    data = "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()
    return {"data": data, "tile": tile, "columns": columns, "count": len(images)}


def read_sprite(path: Path, layout: Mapping[str, Any]) -> Tensor:
    """The images of a sheet, uint8 [n, 3, H, W], as they were written.

    Args:
        layout: as `write_sprite` returned it.
    Raises: ValueError: if the file is missing, is no picture, or is smaller than the layout says.
    """
    (width, height), columns, count = layout["tile"], layout["columns"], layout["count"]
    rows = -(-count // columns)
    try:
        with Image.open(path) as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
    except OSError as error:
        raise ValueError(f"the pictures in {path} cannot be read: {error}") from error
    if pixels.shape != (rows * height, columns * width, 3):
        raise ValueError(f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, not {columns * width} x {rows * height}")
    tiles = pixels.reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    return torch.from_numpy(tiles[:count].transpose(0, 3, 1, 2).copy())


def _laid_out(images: Tensor, columns: int, largest_tile: int | None) -> tuple[Image.Image, list[int]]:
    """Images [n, 3, H, W], uint8, in rows, and the size of a tile: [width, height]."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    limit = min(largest_tile or _LARGEST_SIDE, _LARGEST_SIDE // max(rows, columns))
    tile = [max(1, round(side * min(1.0, limit / max(width, height)))) for side in (width, height)]
    tiles = images.permute(0, 2, 3, 1).numpy()
    if tile != [width, height]:
        small = (Image.fromarray(pixels).resize((tile[0], tile[1]), Image.Resampling.LANCZOS) for pixels in tiles)
        tiles = np.stack([np.asarray(image) for image in small])
    filled = np.concatenate([tiles, np.zeros((rows * columns - count, *tiles.shape[1:]), np.uint8)])
    in_rows = filled.reshape(rows, columns, tile[1], tile[0], 3).swapaxes(1, 2)
    return Image.fromarray(in_rows.reshape(rows * tile[1], columns * tile[0], 3)), tile


def choose_to_drop(iterations: Sequence[int], kept: int) -> list[int]:
    """Indices to drop so that at most `kept` remain, evenly spread, old ones thinned first; the first and the last stay.

    Repeated as a run grows, it halves the density of the oldest stretch each time, so that what remains always covers the
    whole run.
    """
    left = list(range(len(iterations)))
    while len(left) > max(kept, 2):
        gaps = [iterations[left[place + 1]] - iterations[left[place - 1]] for place in range(1, len(left) - 1)]
        del left[1 + gaps.index(min(gaps))]
    return sorted(set(range(len(iterations))) - set(left))
