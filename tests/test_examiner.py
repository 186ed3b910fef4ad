"""Held-out evaluation during a run: the steps that count, and judges that work beside the training."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from toy_training import Redness, ToyModel, assert_same_state, keep, kinds, told, toy

from workbench.config import RunConfig
from workbench.contracts import RewardFailed, RewardFunction
from workbench.events import CheckpointReady, Evaluated, Event, Finished, IterationDone, Measure, PreflightDone, Progress, Started
from workbench.flow import time_grid
from workbench.learner import Learner
from workbench.train import train

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # toy rewards are in no registry

LATE = {"evaluation__every": 1, "evaluation__steps": "[2]", "evaluation__final_images": 8}  # an evaluation is one call


class Flat(Redness):
    """The same for every image, so that no iteration but the first is ever the best."""

    name: Literal["flat"] = "flat"  # type: ignore[assignment]

    def load(self, device: torch.device) -> RewardFunction:
        return lambda images, prompts: torch.ones(len(prompts))


class Quick(Redness):
    """Redness, told at once."""

    name: Literal["quick"] = "quick"  # type: ignore[assignment]


class Patient(Redness):
    """Redness, told in the background: from its second evaluation on only once `gate` is open, or then to fail."""

    name: Literal["patient"] = "patient"  # type: ignore[assignment]

    background: ClassVar[bool] = True
    gate: ClassVar[threading.Event] = threading.Event()
    failing: ClassVar[bool] = False
    evaluations: ClassVar[int] = 0

    def load(self, device: torch.device) -> RewardFunction:
        redness = super().load(device)

        def judge(images: Tensor, prompts: Sequence[str]) -> Tensor:
            Patient.evaluations += len(prompts) > 1  # a failure is looked for in one image at a time
            if Patient.evaluations > 1:
                assert self.gate.wait(30)
                if Patient.failing:
                    raise ConnectionError("the judge is away")
            return redness(images, prompts)

        return judge


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    """The judge as it is at first; no thread of one may outlive a test."""
    Patient.gate.set()
    Patient.failing, Patient.evaluations = False, 0
    yield
    assert not judging()


def judging() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("judge")]


def evaluations(events: Sequence[Event]) -> dict[int, dict[int, dict[str, Measure]]]:
    """Measures by iteration; an iteration told twice must have been told alike."""
    found: dict[int, dict[int, dict[str, Measure]]] = {}
    for event in events:
        if isinstance(event, Evaluated):
            assert found.setdefault(event.iteration, event.measures) == event.measures
    return found


def failing(config: RunConfig, at: int) -> tuple[list[Event], Exception]:
    """The events of a run whose judge fails once iteration `at` is done, and the failure."""
    seen: list[Event] = []
    try:
        for event in train(config):
            seen.append(keep(event))
            if isinstance(event, PreflightDone):
                Patient.gate.clear()
            if isinstance(event, IterationDone) and event.iteration == at:
                Patient.failing = True
                Patient.gate.set()
    except RewardFailed as error:
        return [event for event in seen if not isinstance(event, Progress)], error
    raise AssertionError("nothing failed")


# Judges


@pytest.mark.parametrize("judge", [Quick(), Patient()], ids=lambda judge: judge.name)
def test_an_evaluation_comes_with_what_its_judges_say_and_before_any_later_checkpoint(judge: Redness) -> None:
    events = told(train(toy(judges=[judge], evaluation__judged=8)))
    found = evaluations(events)
    assert list(found) == [0, 2, 4]
    for measures in found.values():
        for figures in measures.values():
            assert figures.keys() >= {"redness", judge.name}
    assert found[2][2][judge.name] == found[2][2]["redness"]  # it scores the same eight images alike
    order = kinds(events)
    for iteration, later in ((2, ("CheckpointReady", 4)), (4, ("Finished", 4))):
        assert order.index(("IterationDone", iteration)) < order.index(("Evaluated", iteration)) < order.index(later)


def test_training_goes_on_while_a_judge_thinks_and_a_checkpoint_waits_for_what_lies_behind_it() -> None:
    seen: list[Event] = []
    Patient.evaluations = 1  # slow from the first
    Patient.gate.clear()
    for event in train(toy(Flat(), judges=[Patient()], **LATE)):
        seen.append(keep(event))
        if isinstance(event, IterationDone) and event.iteration == 2:
            assert not evaluations(seen)
            assert len(judging()) == 1
            Patient.gate.set()
    order = [item for item in kinds([event for event in seen if not isinstance(event, Progress)]) if item[0] != "GroupsScored"]
    start = [("Started", 0), ("PreflightDone", 0), ("CheckpointReady", 0), ("IterationDone", 1), ("IterationDone", 2)]
    assert order[:7] == [*start, ("Evaluated", 0), ("Evaluated", 1)]
    assert set(order[7:9]) <= {("CheckpointReady", 2), ("Evaluated", 2), ("IterationDone", 3)}
    assert order.index(("Evaluated", 3)) < order.index(("CheckpointReady", 4))
    assert order[-1] == ("Finished", 4)
    assert list(evaluations(seen)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("killed_at", [0, 2])
def test_a_killed_run_that_is_resumed_loses_no_evaluation(killed_at: int) -> None:
    """Killed after the checkpoint, before what the judge thinks of has been told."""
    config = toy(Flat(), judges=[Patient()], **LATE)
    whole = told(train(config))
    Patient.evaluations, seen = 1, []
    stream = train(config)
    Patient.gate.clear()
    for event in stream:
        seen.append(keep(event))
        if isinstance(event, IterationDone) and event.iteration == 2:
            Patient.gate.set()
        if isinstance(event, CheckpointReady) and event.iteration == killed_at:
            break
    Patient.gate.set()
    stream.close()  # type: ignore[attr-defined]
    resumed = told(train(config, resume=seen[-1]))  # type: ignore[arg-type]
    assert evaluations([*seen, *resumed]) == evaluations(whole)
    assert not set(evaluations(resumed)) & set(range(killed_at))  # what lies behind a checkpoint had been told before it
    last, expected = ([event for event in events if isinstance(event, CheckpointReady)][-1] for events in (resumed, whole))
    assert {last.state.pop("evaluated"), expected.state.pop("evaluated")} <= {-1, 4}  # as its judge was done by then or not
    assert_same_state(last, expected)


def test_a_judge_that_fails_stops_the_run_with_a_checkpoint_from_which_it_goes_on() -> None:
    config = toy(Flat(), judges=[Patient()], record__checkpoint_every=1, **LATE)
    whole = evaluations(told(train(config)))
    Patient.evaluations = 0
    events, error = failing(config, at=1)
    assert "reward 'patient' raised ConnectionError: the judge is away" in str(error)
    last = events[-1]
    assert isinstance(last, CheckpointReady)
    assert last.iteration in (1, 2)  # the failure is met at once or an iteration later
    assert set(evaluations(events)) == set(range(last.iteration))
    Patient.failing = False
    resumed = told(train(config, resume=last))
    assert isinstance(resumed[-1], Finished)
    assert evaluations(resumed) == {iteration: whole[iteration] for iteration in range(last.iteration, 5)}


def test_an_evaluation_that_lies_behind_is_told_without_the_judge_that_failed() -> None:
    """A resumed run could not make it again: its weights are gone."""
    config = toy(Flat(), judges=[Patient()], **LATE)
    events, _ = failing(config, at=2)
    found = evaluations(events)
    assert found[1][2].keys() >= {"flat", "diversity"}
    assert "patient" not in found[1][2]
    assert kinds(events)[-2:] == [("Evaluated", 1), ("CheckpointReady", 2)]
    Patient.failing = False
    assert "patient" in evaluations(told(train(config, resume=events[-1])))[2][2]  # type: ignore[arg-type]


def test_a_run_that_diverges_tells_what_its_judges_still_had_to_say() -> None:
    seen: list[Event] = []
    with pytest.raises(FloatingPointError, match=r"guard\.max_kl"):
        seen.extend(keep(event) for event in train(toy(judges=[Patient()], guard__max_kl=1e-12, **LATE)))
    assert list(evaluations(seen)) == [0, 1]
    assert all("patient" in measures[2] for measures in evaluations(seen).values())
    assert max(event.iteration for event in seen if isinstance(event, CheckpointReady)) < 2


def test_the_judges_thread_ends_with_the_run_however_it_ends() -> None:
    config = toy(judges=[Patient()])
    for stop in (Started, PreflightDone, IterationDone, CheckpointReady, Finished):
        stream = train(config)
        for event in stream:
            if isinstance(event, stop):
                break
        stream.close()  # type: ignore[attr-defined]
        assert not judging()


def test_judges_see_the_first_images_of_every_evaluation_and_are_never_trained_on() -> None:
    seen: list[int] = []

    class Counting(Quick):
        name: Literal["counting"] = "counting"  # type: ignore[assignment]

        def load(self, device: torch.device) -> RewardFunction:
            redness = super().load(device)
            return lambda images, prompts: (seen.append(len(prompts)), redness(images, prompts))[1]

    quiet, judged = (told(train(toy(judges=judges, evaluation__judged=8))) for judges in ([], [Counting()]))
    assert seen == [8, 8, 8, 8, 8]  # two numbers of steps before and after, one between
    for ours, theirs in zip(judged, quiet, strict=True):
        if isinstance(ours, CheckpointReady):
            assert_tensors_alike(ours, theirs)  # type: ignore[arg-type]


def assert_tensors_alike(one: CheckpointReady, other: CheckpointReady) -> None:
    for stem, named in one.tensors.items():
        assert all(torch.equal(value, other.tensors[stem][name]) for name, value in named.items()), stem


# The steps that count


def times_of(calls: Sequence[tuple[float, float, Tensor, bool]]) -> set[float]:
    return {t for t, _, _, _ in calls}


def test_evaluations_sample_in_the_steps_that_count_and_rollouts_in_their_own() -> None:
    config = toy(evaluation__sampling_steps=5, rollout__steps=3, rollout__mode="all", iterations=2, evaluation__every=1)
    rollout, sampling, events = time_grid(3, 4.0), time_grid(5, 4.0), []
    for event in train(config):
        calls = ToyModel.loaded[0].network.calls
        events.append(keep(event))
        if isinstance(event, CheckpointReady):
            calls.clear()
        if isinstance(event, IterationDone):
            assert times_of(calls) == set(rollout[:-1])
            calls.clear()
        if isinstance(event, Evaluated):
            assert times_of(calls) == {1.0, *sampling[:-1]}
    first, middle, last = (event for event in events if isinstance(event, Evaluated))
    assert [list(event.measures) for event in (first, middle, last)] == [[1, 5], [5], [1, 5]]
    best = max((event.measures[5]["redness"].value, -event.iteration) for event in (first, middle, last))
    state = [event for event in events if isinstance(event, CheckpointReady)][-1].state
    assert state["base_reward"] == first.measures[5]["redness"].value
    assert (state["best_reward"], state["best"]) == (best[0], -best[1])


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"rollout__grid": "linspace"}, time_grid(3, 4.0, "linspace")),
        ({"rollout__grid": "log_snr", "rollout__shift": 2}, time_grid(3, 2.0, "log_snr")),
        ({"rollout__grid": "custom", "rollout__times": "[1, 0.7, 0.2, 0]"}, (1.0, 0.7, 0.2, 0.0)),
    ],
    ids=["linspace", "log_snr", "custom"],
)
def test_a_time_grid_reaches_rollouts_updates_and_evaluations(changes: dict[str, Any], times: tuple[float, ...]) -> None:
    config = toy(rollout__steps=3, rollout__mode="all", iterations=1, evaluation__steps="[3]", **changes)
    sampled: set[float] = set()
    for event in train(config):
        calls = ToyModel.loaded[0].network.calls
        if isinstance(event, PreflightDone):
            calls.clear()
        if isinstance(event, IterationDone):
            sampled = times_of([call for call in calls if not call[3]])
            assert times_of([call for call in calls if call[3]]) == set(times[:-2])  # the last step is not trained
            calls.clear()
        if isinstance(event, Evaluated) and event.iteration == 1:
            assert times_of(calls) == sampled == set(times[:-1])


def test_a_collapsed_policy_can_still_be_evaluated() -> None:
    """Only a run gives up on it; whoever asks for figures gets them."""
    learner = Learner(toy(guard__collapse=1.0), Accelerator(cpu=True))
    learner.examiner.base_reward = 1e6
    for _ in learner.examiner.evaluate(0, 8, (1, 3)):
        pass
    (event,) = learner.examiner.told(before=1)
    assert list(event.measures) == [1, 3]
    with pytest.raises(FloatingPointError, match="the held-out reward fell to"):
        learner.examiner.weigh(0, event.measures[3])
    learner.examiner.close()
