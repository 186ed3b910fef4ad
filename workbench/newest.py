"""What is kept in memory because it may be wanted again."""

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def newest(kept: OrderedDict[K, V], key: K, most: int) -> V:
    """The entry of this key, which is now the newest; the oldest beyond `most` are let go."""
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
    return kept[key]
