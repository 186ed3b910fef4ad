"""What an error says, as part of a sentence."""

import pytest

from workbench.first_line import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such folder\nlook elsewhere"), "no such folder"),
        (OSError("\n  the disk is full\n"), "the disk is full"),
        (RuntimeError(), "RuntimeError"),
        (AssertionError(" \n"), "AssertionError"),
    ],
)
def test_an_error_is_told_in_one_line_even_where_it_says_nothing(error: Exception, line: str) -> None:
    assert first_line(error) == line
