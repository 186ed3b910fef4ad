"""A file is replaced by a whole one, or stays as it was."""

from pathlib import Path

import pytest

from workbench.whole_file import whole_file


def test_a_file_takes_its_place_once_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    place.write_text("before")
    with whole_file(place) as hidden:
        hidden.write_text("after")
        assert place.read_text() == "before"
    assert place.read_text() == "after"


def test_a_file_that_cannot_be_finished_leaves_what_was_there(tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    place.write_text("before")

    def broken() -> None:
        with whole_file(place) as hidden:
            hidden.write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        broken()
    assert place.read_text() == "before"
    assert list(tmp_path.iterdir()) == [place]
