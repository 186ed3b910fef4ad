"""What a run carries from one iteration to the next: what it learns from, and the weights that sample."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor
from toy_training import Redness, ToyModel, assert_same_state, keep, kinds, plain, told, toy

from workbench.config import RunConfig, configure
from workbench.events import CheckpointReady, Event, GroupsScored, IterationDone
from workbench.grpo import gdpo_advantages, group_advantages
from workbench.learner import Learner, prompts_of
from workbench.lesson import Lesson
from workbench.objectives.grpo import GRPOObjective
from workbench.rollout import Rollout, drain, sample_rollout
from workbench.settings import WeightedReward
from workbench.train import train
from workbench.update import update_policy

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # toy rewards are in no registry

CHAIN = {"rollout__mode": "all"}
BRANCHES = {"rollout__mode": "branch", "rollout__branch_at": "every"}
TREE = {"rollout__mode": "tree", "rollout__chosen_steps": "[0, 2]"}
WINDOW = {"rollout__mode": "window", "rollout__window_every": 2}


class Greenness(Redness):
    """A second reward, so that there are two to combine."""

    name: Literal["greenness"] = "greenness"  # type: ignore[assignment]


class Lagging(GRPOObjective):
    """GRPO on samples of a slow average of the policy; remembers what it is given of the one that sampled."""

    decay: float = 0.8
    given: list[Any] = Field(default_factory=list)

    @property
    def wants_old(self) -> bool:
        return True

    def behaviour_decay(self, updates: int) -> float | None:
        return self.decay or None

    def loss(
        self, portion: Any, prediction: Tensor, *, reference: Tensor | None = None, old: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.given.append((prediction.detach(), old))
        return super().loss(portion, prediction, reference=reference, old=old)


def learner_of(config: RunConfig) -> Learner:
    return Learner(config, Accelerator(cpu=True))


def test_every_prompt_is_known_beforehand_and_what_is_left_of_a_run_that_changed() -> None:
    config = configure("shapes", {"iterations": 3, "grpo.groups": 2, "evaluation.images": 8, "evaluation.final_images": 8})
    learner, drawn = learner_of(config), set[str]()
    for learner.iteration in range(config.iterations):
        drawn.update(learner.draw_prompts()[0])
    shown = set(config.task.prompts("held_out"))
    assert drawn <= set(prompts_of(config)) <= drawn | shown
    assert len(prompts_of(config)) == len(set(prompts_of(config)))
    (chosen,) = config.task.prompts("train")[:1]
    changed = CheckpointReady(config.iterations - 1, {}, {"changes": {"prompts": [chosen]}})
    assert chosen in prompts_of(config, changed)
    assert set(prompts_of(config, changed)) <= {chosen} | shown
    assert not drawn <= {chosen} | shown


def lesson_of(parts: Mapping[str, Tensor] | None = None, **changes: Any) -> tuple[Learner, Rollout, Lesson, Tensor]:
    """A lesson of three prompts with four samples each, and the rewards [N] that it was made of."""
    config = toy(rollout__steps=4, **changes)
    if parts:
        both = ((Redness(), 1.0), (Greenness(), 0.5))
        weighted = tuple(WeightedReward.model_construct(reward=reward, weight=weight) for reward, weight in both)
        config = config.model_copy(update={"rewards": weighted})
    learner = learner_of(config)
    prompts, first = learner.draw_prompts()
    rollout = sample_rollout(learner.policy.generator, config.sampler, prompts, learner.plan(), key=(0, 0), first_prompt=first)
    rewards = torch.randn(len(rollout.prompts), generator=torch.Generator().manual_seed(4))
    return learner, rollout, learner.lesson(rollout, parts or {"redness": rewards}), rewards


def scored(values: Tensor) -> Tensor:
    """z-scores [P, n] of the nodes of each prompt, as the preset makes them."""
    centred = values - values.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True).sqrt() + 0.05)


# Credit


@pytest.mark.parametrize("structure", [CHAIN, BRANCHES, TREE], ids=["chain", "branches", "tree"])
def test_a_lesson_compares_samples_in_their_groups(structure: dict[str, Any]) -> None:
    learner, rollout, lesson, rewards = lesson_of(**structure)
    torch.testing.assert_close(lesson.advantages, group_advantages(rewards, 4, std_floor=0.05))
    assert len(lesson.credits) == len(rollout.transitions)
    for credit, transition in zip(lesson.credits, rollout.transitions, strict=True):
        assert credit.shape == transition.log_probs.shape
        assert float(credit.view(3, -1).sum(1).abs().max()) < 1e-5
    assert lesson.stds == learner.stds
    assert (lesson.key, lesson.portion, lesson.sampler) == ((0, 0), 64, learner.config.sampler)


def test_every_step_of_a_trajectory_is_credited_with_its_samples_advantage() -> None:
    _, _, lesson, _ = lesson_of(**CHAIN)
    assert len(lesson.credits) == 3
    assert all(torch.equal(credit[:, 0], lesson.advantages) for credit in lesson.credits)


def test_a_branch_is_credited_with_the_difference_that_its_step_made() -> None:
    _, rollout, lesson, rewards = lesson_of(**BRANCHES)
    assert len(rewards) == 3 * 4 * 3
    for turn, credit in enumerate(lesson.credits):
        torch.testing.assert_close(credit, scored(rewards[12 * turn : 12 * turn + 12].view(3, 4)))
        assert torch.equal(credit.flatten(), lesson.advantages[rollout.transitions[turn].leaves.flatten()])


def test_a_node_of_a_tree_is_worth_the_mean_of_its_leaves_among_the_nodes_of_its_depth() -> None:
    _, _, lesson, rewards = lesson_of(**TREE)
    first, second = lesson.credits
    torch.testing.assert_close(first, scored(rewards.view(3, 2, 2).mean(2)))
    torch.testing.assert_close(second, scored(rewards.view(3, 4)).view(6, 2))


@pytest.mark.parametrize("structure", [CHAIN, BRANCHES, TREE], ids=["chain", "branches", "tree"])
def test_several_rewards_are_summed_and_compared_or_compared_and_summed(structure: dict[str, Any]) -> None:
    count = 36 if structure is BRANCHES else 12
    both = torch.randn(2, count, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1.0], [30.0]])
    parts = {"redness": both[0], "greenness": both[1]}
    summed = lesson_of(parts, **structure)[2]
    apart = lesson_of(parts, grpo__combine="gdpo", **structure)[2]
    torch.testing.assert_close(summed.advantages, group_advantages(both[0] + 0.5 * both[1], 4, std_floor=0.05))
    torch.testing.assert_close(apart.advantages, gdpo_advantages(both, [1.0, 0.5], 4, std_floor=0.05))
    for number, transition in enumerate(apart.rollout.transitions):
        nodes = both[:, transition.leaves].mean(-1).flatten(1)
        size = nodes.shape[1] // 3
        found = gdpo_advantages(nodes, [1.0, 0.5], size, std_floor=0.05)
        torch.testing.assert_close(apart.credits[number].flatten(), found)


def test_step_weights_are_those_of_the_steps_that_draw_noise() -> None:
    _, rollout, lesson, _ = lesson_of(**CHAIN)
    late = replace(lesson, rollout=replace(rollout, transitions=rollout.transitions[1:]), credits=lesson.credits[1:])
    portions = GRPOObjective(step_weights="noise").portions(replace(late, stds=(0.0, 0.2, 0.6)))
    assert [portion.share for portion in portions] == pytest.approx([0.5 / (2 * 12), 1.5 / (2 * 12)])


def test_the_spread_of_rewards_is_learned_where_they_branched() -> None:
    learner, _, lesson, rewards = lesson_of(rollout__branch_at="chosen", rollout__chosen_steps="[0, 2]")
    learner.learn_spreads(lesson, rewards)
    spread = [rewards[part].view(3, 4).std(1, correction=0).mean().item() for part in (slice(0, 12), slice(12, 24))]
    assert learner.spreads == pytest.approx([0.8 + 0.2 * spread[0], 1.0, 0.8 + 0.2 * spread[1]])
    tree, _, lesson, rewards = lesson_of(**TREE)
    tree.learn_spreads(lesson, rewards)
    assert tree.spreads == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("structure", [CHAIN, BRANCHES, TREE, WINDOW], ids=["chain", "branches", "tree", "window"])
def test_every_structure_trains_and_goes_on_bit_for_bit(structure: dict[str, Any]) -> None:
    config = toy(rollout__steps=4, **structure)
    whole = told(train(config))
    checkpoint = next(event for event in whole if isinstance(event, CheckpointReady) and event.iteration == 2)
    resumed = told(train(config, resume=checkpoint))
    rest = whole[whole.index(checkpoint) + 1 :]
    assert kinds(resumed) == [("Started", 2), *kinds(rest)]
    assert [plain(event) for event in resumed[1:]] == [plain(event) for event in rest]
    assert_same_state(resumed[-2], whole[-2])  # type: ignore[arg-type]
    for event in whole:
        if isinstance(event, IterationDone):
            assert event.metrics["ratio_deviation"] == 0
            assert event.metrics["gradient_norm"] > 0
            assert "branch_step" not in event.metrics
        if isinstance(event, GroupsScored):
            size = 12 * (3 if structure is BRANCHES else 1)
            assert len(event.prompts) * event.group_size == size
            assert len(event.seeds) == len(event.rewards) == len(event.advantages) == size
            assert [len(row) for row in event.log_probs] == [size] * len(event.steps)
            absent = [sum(value is None for value in row) for row in event.log_probs]
            assert absent == [size - 12] * len(event.steps)
            assert len(event.preview.images) == 4 * len(event.groups_shown)


# The weights that sample


def lagging(decay: float = 0.8, **changes: Any) -> RunConfig:
    config = toy(iterations=3, optimizer__learning_rate=0.05, optimizer__warmup=0, record__checkpoint_every=1, **changes)
    return config.model_copy(update={"objective": Lagging.model_construct(decay=decay, given=[])})


def test_rollouts_come_from_the_averaged_weights_and_updates_from_the_policy() -> None:
    checkpoints: list[CheckpointReady] = []
    for event in train(lagging(evaluation__every=9)):
        calls = ToyModel.loaded[0].network.calls
        if isinstance(event, CheckpointReady):
            checkpoints.append(keep(event))  # type: ignore[arg-type]
            calls.clear()
        if isinstance(event, GroupsScored | IterationDone):
            policy, behaviour = (checkpoints[-1].tensors[stem]["pull"] for stem in ("policy", "behaviour"))
            graded, others = ([weights for _, _, weights, flag in calls if flag is wanted] for wanted in (True, False))
        if isinstance(event, GroupsScored):
            assert not graded
            assert len(others) > 1
            assert all(torch.equal(weights, behaviour) for weights in others)
            calls.clear()
        if isinstance(event, IterationDone):
            assert len(graded) == 1
            assert torch.equal(graded[0], policy)
            (old,) = others  # the reference is a network of its own
            assert torch.equal(old, behaviour)
    policy, behaviour = ([checkpoint.tensors[stem]["pull"] for checkpoint in checkpoints] for stem in ("policy", "behaviour"))
    assert len(checkpoints) == 4
    assert torch.equal(policy[0], behaviour[0])
    for number in (1, 2, 3):
        assert not torch.equal(policy[number], policy[number - 1])
        assert torch.equal(behaviour[number], torch.lerp(behaviour[number - 1], policy[number], 1 - 0.8))


def test_the_ratio_is_one_until_policy_and_sampler_part() -> None:
    done = [event for event in train(lagging()) if isinstance(event, IterationDone)]
    assert done[0].metrics["ratio_deviation"] == 0
    assert all(event.metrics["ratio_deviation"] > 0 for event in done[1:])


def test_the_objective_is_given_the_prediction_of_the_policy_that_sampled() -> None:
    """Nothing where that is the policy itself; then the prediction is its own."""
    plain_config, slow = lagging(decay=0.0), lagging()
    for _ in train(plain_config):
        pass
    assert all(old is None for _, old in plain_config.objective.given)
    learner = learner_of(slow)
    with torch.no_grad():
        learner.policy.parameters["pull"].add_(0.1)
    prompts, first = learner.draw_prompts()
    with learner.sampling() as generator:
        rollout = sample_rollout(generator, slow.sampler, prompts, learner.plan(), key=(0, 0), first_prompt=first)
    lesson = learner.lesson(rollout, {"redness": torch.arange(12.0)})
    drain(update_policy(learner, lesson))
    ((prediction, old),) = slow.objective.given
    assert torch.equal(old, rollout.transitions[0].means)
    assert not torch.equal(prediction, old)


def test_weights_that_sample_are_kept_and_a_resumed_run_goes_on_with_them_bit_for_bit() -> None:
    config = lagging()
    whole = told(train(config))
    for start in (0, 1, 2):
        checkpoint = next(event for event in whole if isinstance(event, CheckpointReady) and event.iteration == start)
        resumed: list[Event] = told(train(config, resume=checkpoint))
        rest = whole[whole.index(checkpoint) + 1 :]
        assert [plain(event) for event in resumed[1:]] == [plain(event) for event in rest]
        assert_same_state(resumed[-2], whole[-2])  # type: ignore[arg-type]
    assert "behaviour" not in told(train(toy(iterations=1)))[-2].tensors  # type: ignore[union-attr]
