"""What is kept in memory: the entries that were asked for last."""

from collections import OrderedDict

from workbench.newest import newest


def test_the_entry_that_was_not_asked_for_longest_goes_first() -> None:
    kept = OrderedDict({"a": 1, "b": 2, "c": 3})
    assert newest(kept, "a", 3) == 1
    kept["d"] = 4
    assert newest(kept, "d", 3) == 4
    assert list(kept) == ["c", "a", "d"]
