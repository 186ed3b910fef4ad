"""Rewards on pictures before training: ranks, ties, failures, groups, agreement, and what several of them make together."""

import math
import threading
from typing import Literal

import pytest
import torch
from answering import Answer, answering, free_address
from scipy import stats
from toy_run import toy_config, toy_events, toy_images

from workbench.config import configure
from workbench.contracts import Reward, RewardFunction
from workbench.events import CheckpointReady, Progress
from workbench.galleries import Galleries
from workbench.grpo import gdpo_advantages, group_advantages
from workbench.policies import Policies
from workbench.rewards.remote import Remote
from workbench.rewards.shapes_dense import ShapesDense
from workbench.rewards.shapes_exact import ShapesExact
from workbench.settings import GRPOConfig
from workbench.store import Store
from workbench.trying import Collection, CollectRequest, collect, combine, correlation, examine, ranks, summarise

PROMPTS = ("two red circles",) * 4 + ("a blue square",) * 4


class Brightness(Reward):
    name: Literal["brightness"] = "brightness"

    def load(self, device: torch.device) -> RewardFunction:
        return lambda images, prompts: images.mean((1, 2, 3))


class Broken(Reward):
    name: Literal["broken"] = "broken"
    way: str = "raises"

    def load(self, device: torch.device) -> RewardFunction:
        if self.way == "load":
            raise FileNotFoundError("no weights at scorer.safetensors")

        def score(images: torch.Tensor, prompts: object) -> torch.Tensor:
            if self.way == "raises":
                raise RuntimeError("out of luck")
            values = images.mean((1, 2, 3))
            return values[:1].expand(3) if self.way == "shape" else torch.where(torch.arange(len(values)) == 2, torch.nan, values)

        return score


def a_run(store: Store, until: int = 20) -> str:
    config = toy_config(20)
    run = store.create("train", config.model_dump(mode="json"), title="Toy", origin="test")
    for event in toy_events(config):
        if not isinstance(event, CheckpointReady | Progress) and event.iteration <= until:
            store.record(run, event)
    return run


def pictures(store: Store, **wanted: object) -> Collection:
    return collect(store, Galleries(store, Policies(store)), CollectRequest(**wanted))


def test_ranks_share_the_better_place_and_nan_has_none() -> None:
    places, shared = ranks(torch.tensor([0.5, 1.0, math.nan, 0.5, 0.2]))
    assert places == [2, 1, None, 2, 4]
    assert shared == [True, False, False, True, False]
    places, shared = ranks(torch.tensor([math.nan, math.nan]))
    assert places == [None, None]
    assert shared == [False, False]


def test_figures_of_a_reward_by_hand() -> None:
    values = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5, 0.5, 0.5, math.nan])
    said = summarise(values, PROMPTS)
    assert (said.mean, said.low, said.high) == (pytest.approx(3.5 / 7), 0, 1)
    assert (said.distinct, said.tied, said.missing) == (3, 7, 1)
    assert said.within == pytest.approx(0.25)  # one half in the first prompt, none in the second
    assert said.quiet == 0.5


def test_a_prompt_with_one_picture_has_no_spread() -> None:
    said = summarise(torch.tensor([0.1, 0.2]), ("one", "two"))
    assert said.within is None
    assert said.quiet is None
    nothing = summarise(torch.tensor([math.nan]), ("one",))
    assert nothing.mean is None
    assert nothing.missing == 1


def test_agreement_is_spearmans_and_a_constant_agrees_with_nobody() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(50, generator=draw), torch.rand(50, generator=draw)
    matrix = correlation([x, x.exp(), -x, y, torch.ones(50)])
    assert matrix[0, 1] == pytest.approx(1)
    assert matrix[0, 2] == pytest.approx(-1)
    assert matrix[0, 3] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert matrix[3, 0] == matrix[0, 3]
    assert all(math.isnan(value) for value in matrix[4])


def test_agreement_leaves_out_what_one_did_not_score() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert correlation([x, torch.tensor([1.0, math.nan, 3.0, 4.0])])[0, 1] == pytest.approx(1)


def test_a_reward_that_fails_says_so_and_leaves_the_others_standing() -> None:
    images = toy_images(8, 0).float() / 255
    rewards = [Broken(), Broken(way="load"), Broken(way="shape"), Broken(way="nan"), Brightness()]
    raised, unloaded, shape, missing, sound = examine(rewards, images, PROMPTS)
    assert raised.values is None
    assert raised.failure == "raised RuntimeError: out of luck"
    assert "FileNotFoundError: no weights at scorer.safetensors" in unloaded.failure
    assert "one number per image, [8], and gave shape [3]" in shape.failure
    assert missing.values is not None
    assert missing.values.isnan().nonzero().flatten().tolist() == [2]
    assert "gave nan for 1 of 8 images, first for prompt 'two red circles'" in missing.failure
    assert sound.failure == ""
    assert sound.milliseconds is not None
    assert torch.equal(sound.values, images.mean((1, 2, 3)))


def test_weighted_rewards_are_compared_as_a_run_would() -> None:
    draw = torch.Generator().manual_seed(0)
    values = {"one": torch.rand(16, generator=draw), "two": torch.rand(16, generator=draw)}
    lists, weights = {name: each.tolist() for name, each in values.items()}, {"one": 0.5, "two": 2.0}
    total, advantages = combine(lists, weights, 4, GRPOConfig())
    torch.testing.assert_close(total, 0.5 * values["one"] + 2 * values["two"])
    torch.testing.assert_close(advantages, group_advantages(total, 4))
    _, apart = combine(lists, weights, 4, GRPOConfig(combine="gdpo", std_floor=0.05))
    torch.testing.assert_close(apart, gdpo_advantages(torch.stack(list(values.values())), [0.5, 2.0], 4, std_floor=0.05))


@pytest.mark.parametrize(
    ("values", "weights", "size", "told"),
    [
        ({"one": [1.0, 2.0]}, {"one": 1.0}, 0, "not in groups of one size"),
        ({"one": [1.0, 2.0]}, {"two": 1.0}, 2, "got weights for two of one"),
        ({"one": [1.0, 2.0]}, {"one": math.inf}, 2, "weights must be finite"),
        ({"one": [1.0, math.nan]}, {"one": 1.0}, 2, "rewards must be finite"),
        ({}, {}, 2, "got weights for none of none"),
    ],
)
def test_what_cannot_be_weighed_says_why(values: dict, weights: dict, size: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        combine(values, weights, size, GRPOConfig())


def test_the_latest_rollout_is_read_back_with_its_groups(store: Store) -> None:
    found = pictures(store, run=a_run(store))
    assert found.title == "the rollout of iteration 20"
    assert found.group_size == 8
    assert len(found.prompts) == 64
    assert torch.equal(found.images, toy_images(64, 20))
    assert found.seeds[:2] == (20_000, 20_001)


def test_an_evaluation_keeps_pictures_of_a_prompt_together(store: Store) -> None:
    found = pictures(store, run=a_run(store), kind="evaluation", at=0)
    images = toy_images(24, 7)
    assert found.prompts[:2] == ("two red squares",) * 2
    assert torch.equal(found.images[:2], images[[0, 16]])
    assert found.seeds[:2] == (20_000, 20_016)
    assert found.group_size == 0  # half of the prompts were drawn once


def test_the_base_and_renderings_are_drawn_in_groups_at_training_prompts(store: Store) -> None:
    run = a_run(store, until=0)
    base = pictures(store, run=run, kind="base", prompts=2, each=3)
    ideal = pictures(store, run=run, kind="renderings", prompts=6, each=4)
    assert base.group_size == 3
    assert base.images.shape == (6, 3, 40, 40)
    assert base.seeds == (0, 1, 2) * 2
    exact, dense = examine([ShapesExact(), ShapesDense()], ideal.images.float() / 255, ideal.prompts)
    assert exact.values.tolist() == [1.0] * 24
    assert dense.values.tolist() == [1.0] * 24
    assert set(ideal.prompts) <= set(configure("shapes", {}).task.prompts("train"))


def test_pictures_that_are_not_there_are_refused_with_what_is(store: Store) -> None:
    run, young = a_run(store), a_run(store, until=0)
    with pytest.raises(ValueError, match="not evaluated at iteration 7; choose from: 0, 10, 20"):
        pictures(store, run=run, kind="evaluation", at=7)
    with pytest.raises(ValueError, match="recorded no rollouts yet; choose the base"):
        pictures(store, run=young)
    with pytest.raises(ValueError, match="row 1 of run"):
        pictures(store, run=run, at=1)


def test_what_waits_for_others_is_asked_once_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.scoring.HASTE", 0.3)
    gate, images = threading.Event(), torch.rand(8, 3, 8, 8)
    with answering(lambda path, body: Answer({}, wait=gate)) as server:
        slow = Remote(addresses=(server.address,))
        down, slow_too = examine([Remote(addresses=(free_address(),)), slow], images, PROMPTS)
        gate.set()
    assert "cannot be reached" in down.failure
    assert "did not answer within 0.3 s" in slow_too.failure
    assert len(server.asked) == 1
    assert (down.values, slow_too.values) == (None, None)
