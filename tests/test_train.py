"""The training loop: what it yields, how it learns, stops, fails and goes on."""

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor
from toy_training import Redness, assert_same_state, keep, kinds, plain, small, told, toy

from workbench.contracts import RewardFailed, RewardFunction
from workbench.events import (
    CheckpointReady,
    Controls,
    Evaluated,
    Event,
    Finished,
    GroupsScored,
    IterationDone,
    PreflightDone,
    Progress,
    Sampled,
    Started,
)
from workbench.preflight import memory_check, noise_check, ratio_check, spread_check
from workbench.scoring import Rewards
from workbench.train import train

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # toy rewards are in no registry

FAULT: dict[str, str] = {}


class Faulty(Redness):
    """Redness, until `FAULT` says what should go wrong."""

    name: Literal["faulty"] = "faulty"  # type: ignore[assignment]

    def load(self, device: torch.device) -> RewardFunction:
        redness = super().load(device)

        def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
            values = redness(images, prompts)
            if FAULT.get("kind") == "nan" and len(values) > 2:
                values[2] = math.nan
            if FAULT.get("kind") == "raises" and FAULT["prompt"] in prompts:
                raise ConnectionError("the judge is away")
            if FAULT.get("kind") == "shape":
                return values[:, None]
            return values - 5 if FAULT.get("kind") == "bad" else values + 1

        return reward


@pytest.fixture(autouse=True)
def no_fault() -> Iterator[None]:
    FAULT.clear()
    yield
    FAULT.clear()


def until_failure(events: Iterator[Event]) -> tuple[list[Event], Exception]:
    seen: list[Event] = []
    try:
        for event in events:
            seen.append(keep(event))
            if isinstance(event, CheckpointReady) and event.iteration == 0 and FAULT.get("later"):
                FAULT["kind"] = FAULT.pop("later")
    except (FloatingPointError, RewardFailed) as error:
        return [event for event in seen if not isinstance(event, Progress)], error
    raise AssertionError("nothing failed")


# What it yields


def test_events_come_in_the_order_that_readers_rely_on() -> None:
    events = told(train(small()))
    middle = {1: [], 2: [("Evaluated", 2), ("CheckpointReady", 2)], 3: [], 4: [("Evaluated", 4), ("CheckpointReady", 4)]}
    expected = [("Started", 0), ("Evaluated", 0), ("PreflightDone", 0), ("CheckpointReady", 0)]
    for iteration in range(1, 5):
        expected += [("GroupsScored", iteration), ("IterationDone", iteration), *middle[iteration]]
    best = events[-1].summary["best_iteration"]  # type: ignore[union-attr]
    assert kinds(events) == [*expected, ("Finished", 4)]
    assert best in (0, 2, 4)
    assert events[-1].summary["stopped"] is False  # type: ignore[union-attr]


def test_every_event_says_what_it_should() -> None:
    config = small(record__groups_shown=2)
    events = told(train(config))
    groups = [event for event in events if isinstance(event, GroupsScored)]
    for event in groups:
        assert len(event.prompts) == 3
        assert len(event.seeds) == len(event.rewards) == len(event.advantages) == 12
        assert event.parts == {"redness": event.rewards}
        assert [len(row) for row in event.log_probs] == [12] * len(event.steps)
        assert all(std > 0 for std in event.noise_std)
        assert event.groups_shown == (0, 1)
        assert event.preview.images.shape == (8, 3, 40, 40)
        assert event.preview.images.dtype == torch.uint8
        for g in range(3):
            assert sum(event.advantages[4 * g : 4 * g + 4]) == pytest.approx(0, abs=1e-5)
            order = sorted(range(4 * g, 4 * g + 4), key=lambda i: event.rewards[i])
            assert order == sorted(order, key=lambda i: event.advantages[i])
    assert len({seed for event in groups for seed in event.seeds}) == 48
    done = [event for event in events if isinstance(event, IterationDone)]
    for event in done:
        assert all(math.isfinite(value) for value in event.metrics.values())
        assert event.metrics["ratio_deviation"] == 0
        assert event.metrics["reward"] == pytest.approx(sum(groups[event.iteration - 1].rewards) / 12, abs=1e-6)
        assert event.metrics["reward/redness"] == pytest.approx(event.metrics["reward"])
    first, *others = [event for event in events if isinstance(event, Evaluated)]
    assert first.images == 16
    assert list(first.measures) == [1, 2]  # the rollout's own number of steps is always measured
    assert first.measures[2]["distance_to_base"].value == 0
    assert [list(event.measures) for event in others] == [[2], [1, 2]]
    assert others[0].images == 8
    assert others[0].measures[2]["distance_to_base"].value > 0
    assert {event.seeds for event in (first, *others)} == {first.seeds}
    facts = events[0].facts  # type: ignore[union-attr]
    assert facts["device"] == "cpu"
    assert facts["trained_parameters"] > 1e6


def test_the_record_of_groups_can_be_thinned_without_losing_numbers() -> None:
    groups = [event for event in train(small(record__rollouts_every=2)) if isinstance(event, GroupsScored)]
    assert [len(event.groups_shown) for event in groups] == [3, 0, 3, 0]
    assert all(len(event.rewards) == 12 for event in groups)


def test_an_iteration_reports_progress_at_every_forward_pass() -> None:
    stages = {event.stage for event in train(small(iterations=1)) if isinstance(event, Progress)}
    assert {"rollout", "update", "generate"} <= stages


# Learning


def test_a_small_run_raises_its_reward() -> None:
    config = small(
        iterations=16,
        grpo__groups=8,
        grpo__group_size=8,
        optimizer__learning_rate=1e-3,
        optimizer__warmup=0,
        objective__kl_weight=0,
        evaluation__final_images=32,
        evaluation__every=100,
        record__checkpoint_every=100,
    )
    events = told(train(config))
    before, after = (event.measures[2]["redness"] for event in events if isinstance(event, Evaluated))
    assert after.low > before.high
    assert events[-1].summary["best_iteration"] == 16  # type: ignore[union-attr]


# Going on


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("shapes", {"record__checkpoint_every": 1, "evaluation__every": 3}),
        ("shapes_lora", {"adapter__rank": 4}),
        ("shapes_flow_sde", {"grpo__epochs": 2, "rollout__steps": 3, "compute__train_batch": 5}),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(preset: str, changes: dict[str, Any]) -> None:
    config = small(preset=preset, **changes)
    whole = told(train(config))
    checkpoints = [event for event in whole if isinstance(event, CheckpointReady)]
    for start in {0, 2}:
        checkpoint = next(event for event in checkpoints if event.iteration == start)
        resumed = told(train(config, resume=checkpoint))
        rest = whole[whole.index(checkpoint) + 1 :]
        assert kinds(resumed) == [("Started", start), *kinds(rest)]
        for ours, theirs in zip(resumed[1:], rest, strict=True):
            assert plain(ours) == plain(theirs)
        assert_same_state(resumed[-2], checkpoints[-1])  # type: ignore[arg-type]


def test_a_finished_run_resumes_into_its_end() -> None:
    config = small(iterations=2)
    last = [keep(event) for event in train(config)][-2]
    assert kinds(told(train(config, resume=last))) == [("Started", 2), ("Finished", 2)]  # type: ignore[arg-type]


def test_a_checkpoint_of_another_adapter_is_refused_before_anything_happens() -> None:
    last = [keep(event) for event in train(small(iterations=1))][-2]
    with pytest.raises(ValueError, match="checkpoint and policy do not match"):
        next(train(small(preset="shapes_lora"), resume=last))  # type: ignore[arg-type]


def test_watching_and_saving_more_changes_no_number() -> None:
    quiet = [plain(event) for event in train(small(record__groups_shown=0)) if isinstance(event, IterationDone)]
    controls, loud = Controls(save=True, sample=True), []
    for event in train(small(record__checkpoint_every=1, evaluation__every=1), controls=controls):
        if isinstance(event, IterationDone):
            controls.sample = controls.save = True
            loud.append(plain(event))
    assert quiet == loud


# Controls


def test_stopping_ends_after_the_iteration_with_a_checkpoint() -> None:
    controls, seen = Controls(), []
    for event in train(small(), controls=controls):
        seen.append(event)
        if isinstance(event, GroupsScored):
            controls.stop = True
    ends = told(iter(seen))[-4:]
    assert kinds(ends) == [("GroupsScored", 1), ("IterationDone", 1), ("CheckpointReady", 1), ("Finished", 1)]
    assert ends[-1].summary["stopped"] is True  # type: ignore[union-attr]


def test_stopping_before_the_first_iteration_leaves_the_first_checkpoint() -> None:
    events = told(train(small(), controls=Controls(stop=True)))
    assert kinds(events)[-2:] == [("CheckpointReady", 0), ("Finished", 0)]


def test_saving_and_sampling_happen_at_the_next_boundary_and_only_once() -> None:
    controls, seen = Controls(), []
    for event in train(small(iterations=3, evaluation__every=9, record__checkpoint_every=9), controls=controls):
        seen.append(event)
        if isinstance(event, CheckpointReady) and event.iteration == 0:
            controls.save = controls.sample = True
    extra = [item for item in kinds(told(iter(seen))) if item[1] in (1, 2) and item[0] not in ("GroupsScored", "IterationDone")]
    assert extra == [("Sampled", 1), ("CheckpointReady", 1)]
    assert not controls.save
    assert not controls.sample
    sampled = next(event for event in seen if isinstance(event, Sampled))
    assert len(sampled.prompts) == len(sampled.seeds) == len(sampled.preview.images) == 4


# Failing


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", ["gave nan for sample 2, prompt '", "(1 of 12 samples)"]),
        ("shape", ["one number per image, [12]", "shape [12, 1]", "prompt '"]),
        ("raises", ["raised ConnectionError: the judge is away", "for sample 4, prompt '"]),
    ],
)
def test_a_reward_that_fails_is_named_with_its_sample_and_nothing_is_lost(kind: str, words: list[str]) -> None:
    config = small(Faulty())
    whole = told(train(config))
    FAULT["prompt"] = next(event for event in whole if isinstance(event, GroupsScored)).prompts[1]
    FAULT["later"] = kind
    events, error = until_failure(train(config))
    assert isinstance(error, RewardFailed)
    for word in ("reward 'faulty'", *words, "mend it, then resume the run"):
        assert word in str(error)
    assert kinds(events)[-2:] == [("CheckpointReady", 0), ("CheckpointReady", 0)]
    last = events[-1]
    assert isinstance(last, CheckpointReady)
    FAULT.clear()
    resumed = told(train(config, resume=last))
    rest = [event for event in whole if event.iteration > 0]  # type: ignore[union-attr]
    assert kinds(resumed) == [("Started", 0), *kinds(rest)]
    assert_same_state(resumed[-2], rest[-2])  # type: ignore[arg-type]


def test_a_reward_that_fails_from_the_first_is_told_before_anything_else_and_can_be_mended() -> None:
    FAULT["kind"] = "shape"
    config = small(Faulty(), iterations=1)
    events, error = until_failure(train(config))
    assert isinstance(error, RewardFailed)
    assert kinds(events) == [("Started", 0), ("CheckpointReady", 0)]
    FAULT.clear()
    resumed = told(train(config, resume=events[-1]))  # type: ignore[arg-type]
    assert [name for name, _ in kinds(resumed)][:4] == ["Started", "Evaluated", "PreflightDone", "CheckpointReady"]
    assert isinstance(resumed[-1], Finished)


def test_an_evaluation_in_which_a_reward_failed_is_made_up_for() -> None:
    config, seen = small(Faulty(), iterations=2), []
    try:
        for event in train(config):
            seen.append(keep(event))
            if isinstance(event, IterationDone) and event.iteration == 2:
                FAULT["kind"] = "nan"
    except RewardFailed:
        FAULT.clear()
    last = seen[-1]
    assert isinstance(last, CheckpointReady)
    assert last.iteration == 2
    names = [name for name, _ in kinds(told(train(config, resume=last)))]
    assert names[:2] == ["Started", "Evaluated"]
    assert names[-2:] == ["CheckpointReady", "Finished"]


def test_a_policy_that_runs_from_its_reference_pauses_the_run_without_keeping_that_state() -> None:
    events, error = until_failure(train(small(guard__max_kl=1e-12)))
    assert isinstance(error, FloatingPointError)
    assert "iteration 2: the KL to the reference is" in str(error)
    assert "guard.max_kl = 1e-12; resume from an earlier checkpoint" in str(error)
    assert "\n" not in str(error)
    assert max(event.iteration for event in events if isinstance(event, CheckpointReady)) < 2


def test_a_held_out_reward_that_collapses_pauses_the_run_and_says_by_how_much() -> None:
    FAULT["later"] = "bad"
    events, error = until_failure(train(small(Faulty(), guard__collapse=0.2)))
    assert isinstance(error, FloatingPointError)
    assert "iteration 2: the held-out reward fell to -" in str(error)
    assert "below 20% of the base's" in str(error)
    assert isinstance(events[-1], Evaluated)  # the figure that shows it is told first
    assert max(event.iteration for event in events if isinstance(event, CheckpointReady)) < 2


def test_weights_that_blow_up_are_blamed_on_the_policy_and_not_on_the_reward() -> None:
    config = small(optimizer__warmup=0, objective__kl_weight=0, iterations=12, evaluation__every=100)
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 1e30})})
    _, error = until_failure(train(config))
    assert isinstance(error, FloatingPointError)
    assert "samples are not finite" in str(error)


def test_a_run_for_several_processes_refuses_to_start_as_one() -> None:
    with pytest.raises(ValueError, match=r"compute\.processes = 2, but 1 started"):
        next(train(small(grpo__groups=4, compute__processes=2)))


def test_runs_of_different_precision_follow_one_another_in_a_process() -> None:
    for precision in ("no", "bf16", "no"):
        done = [event for event in train(small(iterations=2, compute__precision=precision)) if isinstance(event, IterationDone)]
        assert done[0].metrics["ratio_deviation"] == 0
        assert done[0].metrics["kl"] == 0
        assert done[1].metrics["kl"] > 0


# Preflight


def test_preflight_answers_five_questions_in_sentences() -> None:
    done = next(event for event in train(small()) if isinstance(event, PreflightDone))
    assert [check.name for check in done.checks] == ["ratio", "reward spread", "noise", "noise scale", "memory"]
    assert done.checks[0].level == "green"
    assert done.checks[0].value == 0
    assert all(check.sentence.endswith(".") for check in done.checks)


def test_preflight_is_red_where_there_is_nothing_to_learn_from() -> None:
    flat, some, rich = torch.ones(40), torch.ones(40), torch.arange(40.0)
    some[:8] = torch.arange(8.0)
    assert [spread_check(rewards, 4).level for rewards in (rich, some, flat)] == ["green", "amber", "red"]
    assert spread_check(rich, 4).value == pytest.approx(math.sqrt(5) / 2)
    assert "80% of the groups are constant" in spread_check(some, 4).sentence


def test_preflight_sees_ratios_that_are_not_one() -> None:
    levels = [ratio_check(torch.tensor([1.0, 1.0 + off])).level for off in (0.0, 2e-6, 1e-3)]
    assert levels == ["green", "amber", "red"]


def test_preflight_compares_noisy_samples_with_deterministic_ones() -> None:
    plain_rewards = torch.tensor([0.0, 1.0])
    assert [noise_check(plain_rewards - lost, plain_rewards).level for lost in (0.0, 0.4, 2.0)] == ["green", "amber", "red"]


def test_preflight_measures_memory() -> None:
    for check in (memory_check(torch.device("cpu")), memory_check(torch.device("cpu"), small())):
        assert check.value is not None
        assert 0 < check.value < 1
        assert "GiB" in check.sentence
    assert "expected at most" in check.sentence


def test_started_is_the_first_thing_told() -> None:
    assert isinstance(next(train(small())), Started)


# --- rewards beside the drawing


class Gated(Redness):
    """Redness, told once its gate is open; says when it has begun."""

    name: Literal["gated"] = "gated"  # type: ignore[assignment]
    gate: ClassVar[threading.Event] = threading.Event()
    begun: ClassVar[threading.Event] = threading.Event()

    def load(self, device: torch.device) -> RewardFunction:
        redness = super().load(device)

        def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
            self.begun.set()
            assert self.gate.wait(60), "nobody drew on while this portion was scored"
            return redness(images, prompts)

        return reward


@pytest.mark.parametrize(
    "changes",
    [{}, {"rollout__branch_at": "every"}, {"rollout__mode": "all"}, {"rollout__mode": "tree"}],
    ids=["one step", "every step", "trajectories", "tree"],
)
def test_a_portion_is_scored_while_the_next_is_drawn_and_a_slow_reward_leaves_signs_of_life(changes: dict[str, Any]) -> None:
    Gated.gate.set()
    events = train(toy(Gated(), iterations=1, compute__sample_batch=4, rollout__steps=3, **changes))
    while not isinstance(next(events), PreflightDone):
        pass
    Gated.gate.clear()
    Gated.begun.clear()
    drawn_on, waited = 0, 0
    for event in events:
        if isinstance(event, Progress) and event.stage == "rollout":
            drawn_on += Gated.begun.wait(0 if drawn_on else 0.2)  # the reward has begun, and the rollout goes on
        if isinstance(event, Progress) and event.stage == "score":
            waited += 1
            assert event.done < event.total
            if waited == 2:
                Gated.gate.set()
        if isinstance(event, GroupsScored):
            break
    assert drawn_on
    assert waited >= 2
    assert isinstance(list(events)[-1], Finished)


class AtOnce:
    """The whole batch scored at its end, in the thread that drew it."""

    def __init__(self, rewards: Rewards) -> None:
        self.rewards, self.images, self.prompts = rewards, list[Tensor](), list[str]()

    def add(self, images: Tensor, prompts: Sequence[str]) -> None:
        self.images.append(images)
        self.prompts.extend(prompts)

    def collect(self) -> Iterator[Progress]:
        yield Progress("score", 0, len(self.prompts))
        return self.rewards.score(torch.cat(self.images), self.prompts)


@pytest.mark.parametrize("preset", ["shapes", "shapes_jump"])
def test_scores_by_portions_are_bit_for_bit_those_of_the_whole_batch(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy(preset=preset, compute__sample_batch=5)
    by_portions = told(train(config))
    monkeypatch.setattr(Rewards, "begin", lambda rewards: AtOnce(rewards))
    at_once = told(train(config))
    assert [plain(event) for event in by_portions] == [plain(event) for event in at_once]


def test_a_run_that_is_left_alone_breaks_off_its_rewards_and_leaves_no_thread() -> None:
    class Hung:
        def __init__(self) -> None:
            self.broken_off = threading.Event()

        def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            assert self.broken_off.wait(60)
            raise RewardFailed("broken off")

        def close(self) -> None:
            self.broken_off.set()

    class Hanging(Redness):
        """Waits for others until it is closed."""

        waits: ClassVar[bool] = True

        def load(self, device: torch.device) -> RewardFunction:
            return Hung()

    events = train(toy(Hanging()))
    while not (isinstance(event := next(events), Progress) and event.stage == "score"):
        pass
    events.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("reward", "judge"))]
