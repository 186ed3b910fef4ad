"""Blind votes: what a voter sees, what the count proves, and what the store keeps."""

from pathlib import Path

import pytest
from scipy.stats import beta

from workbench.records import Vote
from workbench.store import Store
from workbench.votes import Tally, ballot, tally


def a_vote(choice: str = "b", *, voter: str = "ada", seed: int = 1, swapped: bool = False) -> Vote:
    first, second = ("tuned", 40), ("base", 0)
    (run_a, at_a), (run_b, at_b) = (first, second) if swapped else (second, first)
    return Vote(voter, run_a, at_a, run_b, at_b, "two red circles", seed, choice)


def test_a_ballot_shows_every_pair_once_and_each_policy_half_the_time_on_each_side() -> None:
    for seed in range(20):
        order = ballot(seed, 24)
        assert sorted(index for index, _ in order) == list(range(24))
        assert sum(swapped for _, swapped in order) == 12


def test_a_ballot_depends_on_its_session_alone() -> None:
    assert ballot(5, 24) == ballot(5, 24)
    assert len({tuple(ballot(seed, 24)) for seed in range(50)}) == 50


def test_the_order_does_not_tell_the_side() -> None:
    early = sum(swapped for seed in range(400) for _, swapped in ballot(seed, 8)[:1])
    assert 150 < early < 250  # five standard deviations of a fair coin
    first = sum(dict(ballot(seed, 9))[0] for seed in range(400))
    assert 150 < first < 250


def test_a_tally_agrees_with_the_closed_form() -> None:
    counted = tally([(pair, "b") for pair in range(8)] + [(8, "a"), (9, "a"), (10, "tie")])
    assert (counted.pairs, counted.a, counted.b, counted.ties) == (11, 2, 8, 1)
    assert counted.rate == 0.8
    assert counted.low == pytest.approx(beta.ppf(0.025, 8, 3))
    assert counted.high == pytest.approx(beta.ppf(0.975, 9, 2))
    assert counted.p == pytest.approx(2 * (1 + 10 + 45) / 1024)  # at most 2 of 10 by a fair coin, both ways


def test_many_votes_on_one_pair_are_one_observation() -> None:
    assert tally([("x", "b")] * 100) == tally([("x", "b")])
    assert tally([("x", "b"), ("x", "b"), ("x", "a")]).b == 1
    assert tally([("x", "b"), ("x", "a")]).ties == 1


def test_without_a_decided_pair_there_is_no_rate() -> None:
    assert tally([]) == Tally(0, 0, 0, 0)
    assert tally([("x", "tie")]) == Tally(1, 0, 0, 1)


def test_votes_outlive_the_process_and_can_be_taken_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept, regretted = store.vote(a_vote()), store.vote(a_vote("tie", seed=2))
    store.retract_vote(regretted)
    store.close()
    (vote,) = Store(tmp_path).votes(("base", 0), ("tuned", 40))
    assert (vote.id, vote.choice, vote.voter) == (kept, "b", "ada")
    assert vote.time > 0
    with pytest.raises(ValueError, match=f"no vote {regretted}"):
        store.retract_vote(regretted)


def test_a_vote_with_the_sides_exchanged_counts_for_the_same_policy(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.vote(a_vote("b"))
    store.vote(a_vote("a", seed=2, swapped=True))
    assert [vote.choice for vote in store.votes(("base", 0), ("tuned", 40))] == ["b", "b"]
    assert [vote.choice for vote in store.votes(("tuned", 40), ("base", 0))] == ["a", "a"]
    assert not store.votes(("base", 0), ("tuned", 20))


def test_a_choice_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a', 'b' or 'tie', not 'left'"):
        Store(tmp_path).vote(a_vote("left"))
