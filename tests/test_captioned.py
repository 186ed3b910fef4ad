"""Pictures and captions as people have them: turned, transparent, deep, damaged, and in other encodings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.captioned import captioned, read_picture

SIDE = 8


def test_a_turned_photograph_is_read_upright(tmp_path: Path) -> None:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[: SIDE // 2] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x112] = 3  # shown turned by half
    image.save(tmp_path / "a.png", exif=exif)
    read = read_picture(tmp_path / "a.png", SIDE)
    assert (float(read[:, : SIDE // 2].mean()), float(read[:, SIDE // 2 :].mean())) == (0, 1)


@pytest.mark.parametrize("kind", ["RGBA", "P"])
def test_what_is_transparent_lets_white_through(tmp_path: Path, kind: str) -> None:
    image = Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, SIDE, SIDE // 2))
    image.convert(kind).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png", SIDE)
    assert read[:, 0, 0].tolist() == [0, 0, 1]
    assert read[:, -1, -1].tolist() == [1, 1, 1]


def test_grey_in_16_bits_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((SIDE, SIDE), 40_000, np.uint16)).save(tmp_path / "a.png")
    assert torch.allclose(read_picture(tmp_path / "a.png", SIDE), torch.tensor(40_000 / 65_535), atol=1 / 255)


def test_a_picture_too_large_to_be_safe_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture: Image size \(64 pixels\) exceeds limit"):
        read_picture(tmp_path / "a.png", SIDE)


def test_a_caption_in_another_encoding_is_named_and_a_mark_at_the_beginning_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    words = tmp_path / "a.txt"
    words.write_bytes("un café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt cannot be read: it is not text in UTF-8"):
        captioned(str(tmp_path))
    words.write_text("un café", "utf-8-sig")
    assert [each.caption for each in captioned(str(tmp_path))] == ["un café"]
    line = json.dumps({"file_name": "a.png", "text": "un café\u2028au lait"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(line, "utf-8-sig")
    assert [each.caption for each in captioned(str(tmp_path))] == ["un café au lait"]


@pytest.mark.parametrize("told", [{"file_name": "a.png", "text": None}, {"file_name": 3, "text": "x"}, "text", ["a.png", "x"]])
def test_a_caption_is_text(tmp_path: Path, told: object) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"line 1 of .*metadata\.jsonl is not an object such as"):
        captioned(str(tmp_path))
