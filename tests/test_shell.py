"""The frame of the pages without a browser: what an action or a part that fails becomes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.config import configure
from workbench.jobs import Worker
from workbench.panels import form
from workbench.panels.page import Page, value
from workbench.panels.shell import answer, update
from workbench.store import Store, StoreError
from workbench.studio import Studio


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    studio = Studio(Store(tmp_path / "runs"), Worker())
    yield studio
    studio.worker.close(10)


def raising(error: Exception) -> Any:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def page(**values: Any) -> dict[str, Page]:
    return {"toy": Page("toy", "Toy", str, (), **values)}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("first\nsecond"), ["first", "second"]),
        (StoreError("the disk is full"), ["the disk is full"]),
        (KeyError("ema"), ["that did not work: KeyError: 'ema'"]),
        (RuntimeError("out of memory"), ["that did not work: RuntimeError: out of memory"]),
    ],
)
def test_whatever_an_action_raises_is_told(studio: Studio, error: Exception, told: list[str]) -> None:
    pages = page(actions={"act": raising(error)})
    assert answer(studio, pages, {"page": "toy", "name": "act", "value": {}}) == {"errors": told}


def test_a_part_that_cannot_be_made_leaves_the_others_and_is_tried_again_until_it_can(studio: Studio) -> None:
    trouble = [StoreError("locked")]

    def made() -> str:
        if trouble:
            raise trouble[0]
        return "here"

    pages = page(update=lambda studio, asked: {"good": value(1), "bad": ("1", made)})
    seen: dict[str, str] = {}

    def look() -> dict[str, Any] | None:
        news = update(studio, pages, {"page": "toy", "seen": seen})
        seen.update(news["versions"] if news else {})
        return news and news["parts"]

    assert look() == {"runs": [], "good": 1, "problem": "locked"}
    assert look() is None
    trouble.clear()
    assert look() == {"bad": "here", "problem": ""}
    assert look() is None


def test_a_page_whose_update_fails_still_lists_the_runs(studio: Studio) -> None:
    news = update(studio, page(update=raising(ValueError("no such run"))), {"page": "toy"})
    assert news is not None
    assert news["parts"] == {"runs": [], "problem": "no such run"}


def test_quotes_in_a_list_of_the_form_are_no_end_of_it() -> None:
    config = configure("glyphs", {"prompts": ['the word "ELK"']})
    assert "the word &quot;ELK&quot;" in form.render(config)
