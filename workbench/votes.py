"""Blind votes between two policies: who sees what on which side, and what the votes prove. Knows neither storage nor screen."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from workbench.records import Choice


@dataclass(frozen=True)
class Tally:
    """What people preferred, pair by pair.

    `rate` is the share of decided pairs that B won, ties excluded, with its 95 % Clopper-Pearson interval; `p` is of the
    two-sided exact sign test that A and B are preferred equally often. All None while no pair is decided.
    """

    pairs: int
    a: int
    b: int
    ties: int
    rate: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def ballot(seed: int, pairs: int) -> list[tuple[int, bool]]:
    """In which order a voter sees the pairs, and whether B is then on the left.

    Both are random, and the same for the same seed. B is on the left in half of the pairs, so that whoever prefers a side
    prefers nobody.
    """
    draw = np.random.default_rng(seed)
    swapped = draw.permutation(np.arange(pairs) % 2 == draw.integers(2))
    return [(int(index), bool(swap)) for index, swap in zip(draw.permutation(pairs), swapped, strict=True)]


def tally(votes: Iterable[tuple[Hashable, Choice]]) -> Tally:
    """Count votes, each with the pair of pictures that it is about.

    Votes on one pair are not independent of one another, so that a pair counts once however many voted on it: for the side
    with more votes, or as a tie. The interval and the test then hold for pairs drawn at random from all that could be shown.

    Source: C. J. Clopper and E. S. Pearson, Biometrika 26 (1934); the interval and the test are each other's inversion.
    """
    balance: dict[Hashable, int] = {}
    for pair, choice in votes:
        balance[pair] = balance.get(pair, 0) + {"a": -1, "tie": 0, "b": 1}[choice]
    a, b = sum(lead < 0 for lead in balance.values()), sum(lead > 0 for lead in balance.values())
    if not a + b:
        return Tally(len(balance), 0, 0, len(balance))
    test = binomtest(b, a + b)
    interval = test.proportion_ci(0.95, method="exact")
    ties = len(balance) - a - b
    return Tally(len(balance), a, b, ties, b / (a + b), float(interval.low), float(interval.high), float(test.pvalue))
