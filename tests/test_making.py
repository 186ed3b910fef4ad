"""What takes a while to make: one after another, with how far it is, and nothing left of what is not wanted any more."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workbench.events import Progress
from workbench.making import Making, Makings
from workbench.panels.runs import write, writing
from workbench.studio import Studio


@pytest.fixture
def makings() -> Iterator[Makings]:
    made = Makings()
    yield made
    made.close()


class Slow:
    """Two portions, the second only once it may go on."""

    def __init__(self, path: Path) -> None:
        self.path, self.begun, self.may, self.ended = path, threading.Event(), threading.Event(), False

    def __call__(self) -> Any:
        try:
            yield Progress("merge", 1, 2)
            self.begun.set()
            assert self.may.wait(20)
            yield Progress("merge", 2, 2)
            return self.path
        finally:
            self.ended = True


def waited(making: Making) -> Path:
    assert making.result is not None
    return making.result.result(20)


def test_it_says_how_far_it_is_and_then_where_it_is(makings: Makings, tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    making = makings.find(makings.begin("a file", slow))
    assert slow.begun.wait(20)
    assert (making.path, making.done, making.total, making.waits) == (None, 1, 2, False)
    slow.may.set()
    assert waited(making) == tmp_path
    assert (making.path, making.done) == (tmp_path, 2)


def test_a_second_one_waits_its_turn(makings: Makings, tmp_path: Path) -> None:
    first, second = Slow(tmp_path / "a"), Slow(tmp_path / "b")
    one, other = (makings.find(makings.begin(name, slow)) for name, slow in (("one", first), ("other", second)))
    assert first.begun.wait(20)
    assert other.waits
    assert not second.begun.is_set()
    first.may.set()
    second.may.set()
    assert [waited(one), waited(other)] == [tmp_path / "a", tmp_path / "b"]


def test_what_is_not_wanted_ends_at_its_next_portion(makings: Makings, tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    making = makings.find(makings.begin("the merged weights of a run", slow))
    assert slow.begun.wait(20)
    making.unwanted = True
    slow.may.set()
    with pytest.raises(ValueError, match="the merged weights of a run was cancelled; nothing of it is left"):
        waited(making)
    assert slow.ended


def test_what_its_maker_refuses_is_told_to_whoever_asks(makings: Makings) -> None:
    def refused() -> Any:
        yield Progress("merge", 1, 2)
        raise ValueError("no room")

    making = makings.find(makings.begin("a file", refused))
    with pytest.raises(ValueError, match="no room"):
        waited(making)
    with pytest.raises(ValueError, match="no room"):
        _ = making.path
    with pytest.raises(ValueError, match="make it again"):
        makings.find("unheard")


def test_a_folder_is_told_and_not_handed_out(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "weights").write_bytes(b"12345")
    slow = Slow(tmp_path / "pipeline")
    slow.may.set()
    name = studio.makings.begin("a pipeline", slow)
    waited(studio.makings.find(name))
    assert writing(studio, {"making": name}) == {"folder": str(tmp_path / "pipeline"), "name": "pipeline", "bytes": 5}
    assert str(tmp_path) not in studio.served_folders


def test_the_page_begins_it_and_does_not_wait(studio: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = Slow(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"123")
    monkeypatch.setattr("workbench.panels.runs._SLOW", {"merged": lambda *_, **__: slow()})
    monkeypatch.setattr(studio.store, "run", lambda run: SimpleNamespace(id=run, title="A run"))
    name = write(studio, {"run": "x", "what": "merged", "iteration": 3})["making"]
    assert slow.begun.wait(20)
    assert writing(studio, {"making": name}) == {"done": 1, "total": 2, "waits": False}
    slow.may.set()
    waited(studio.makings.find(name))
    assert writing(studio, {"making": name})["bytes"] == 3
