"""What a run says and keeps where memory runs out, and how much it is told to take beforehand."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from toy_training import SMALL, assert_same_state, keep, kinds, plain, told, toy

from workbench.config import change_live, configure
from workbench.contracts import OutOfMemory, Reward, RewardFunction
from workbench.events import CheckpointReady, Event, IterationDone, Progress
from workbench.jobs import Job
from workbench.learner import Learner
from workbench.memory import remedies
from workbench.out_of_memory import out_of_memory, what_to_lower
from workbench.store import Store
from workbench.train import make_accelerator, train

SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


class ShortLearner(Learner):
    """Has too little memory for one thing in one iteration, once."""

    error: BaseException = SHORT[0]
    fails: tuple[str, int] = ("backward", 2)

    def _fail(self, what: str) -> None:
        if self.fails == (what, self.iteration):
            self.fails = ("nothing", 0)
            raise self.error

    def apply_gradients(self) -> Tensor:
        self._fail("backward")
        if self.fails == ("step", self.iteration):
            self.optimizer.step = lambda: self._fail("step")  # type: ignore[method-assign]
        return super().apply_gradients()

    def decode(self, latents: Tensor) -> Any:
        self._fail("decode")
        return super().decode(latents)


def short(config: Any, error: BaseException, *fails: Any) -> tuple[list[Event], BaseException]:
    """The events of a run that falls short of memory, and what it says."""
    learner = ShortLearner(config, make_accelerator(config))
    learner.error, learner.fails = error, fails
    seen: list[Event] = []
    with pytest.raises(OutOfMemory) as raised:
        seen.extend(keep(event) for event in train(config, learner=learner) if not isinstance(event, Progress))
    assert all(parameter.grad is None for parameter in learner.policy.parameters.values())
    return seen, raised.value


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("what", ["decode", "backward"])
def test_a_run_that_falls_short_of_memory_keeps_what_it_has_and_goes_on_from_there(error: BaseException, what: str) -> None:
    config = toy()
    events, told_error = short(config, error, what, 2)
    assert "out of memory in iteration 3" in str(told_error)
    assert "compute.train_batch=32" in str(told_error)
    assert "\n" not in str(told_error)
    last = events[-1]
    assert isinstance(last, CheckpointReady)
    assert last.iteration == 2
    resumed, whole = told(train(config, resume=last)), told(train(config))
    checkpoints = [[event for event in run if isinstance(event, CheckpointReady)][-1] for run in (resumed, whole)]
    assert_same_state(*checkpoints)


def test_a_step_that_broke_off_in_its_middle_is_not_kept() -> None:
    events, _ = short(toy(), SHORT[0], "step", 3)
    assert kinds(events)[-1] == ("GroupsScored", 4)
    assert [event.iteration for event in events if isinstance(event, CheckpointReady)][-1] == 2


def test_with_several_epochs_the_whole_iteration_is_taken_back() -> None:
    config = toy(grpo__epochs=2)
    events, _ = short(config, SHORT[0], "step", 3)
    last = events[-1]
    assert isinstance(last, CheckpointReady)
    assert last.iteration == 3
    whole = [plain(event) for event in told(train(config)) if isinstance(event, IterationDone) and event.iteration > 3]
    assert [plain(event) for event in told(train(config, resume=last)) if isinstance(event, IterationDone)] == whole


def test_other_errors_of_torch_are_not_taken_for_it() -> None:
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


class Hungry(Reward):
    """Wants more memory than there is when it is loaded."""

    name: Literal["hungry"] = "hungry"

    def load(self, device: torch.device) -> RewardFunction:
        raise MemoryError


def test_loading_that_falls_short_says_so_too() -> None:
    with pytest.raises(OutOfMemory, match="out of memory in loading the model"):
        next(train(toy(Hungry())))


def test_the_record_says_failed_and_what_to_lower(store: Store) -> None:
    config = toy()
    run = store.create("train", config.model_dump(mode="json"), title="", origin="test", command="")

    def start(resume: CheckpointReady | None, controls: Any) -> Iterator[Event]:
        learner = ShortLearner(config, make_accelerator(config))
        learner.fails = ("decode", 2)
        return train(config, learner=learner, resume=resume, controls=controls)

    job = Job(store, run, start)
    while not job.over:
        job.advance()
    found = store.run(run)
    assert found.status == "failed"
    assert found.error is not None
    assert found.error.startswith("out of memory in iteration 3 (CUDA out of memory. Tried to allocate 2.00 GiB.)")
    assert store.load_checkpoint(run).iteration == 2


def test_remedies_leave_out_what_is_as_low_as_it_can_be() -> None:
    config = configure("shapes", SMALL | {"compute.train_batch": 1, "compute.sample_batch": 1, "adapter.kind": "lora"})
    assert remedies(config) == []
    assert "nothing is left to lower" in what_to_lower(config, "iteration 1", MemoryError())


def test_portions_may_be_lowered_when_a_run_goes_on() -> None:
    config = configure("shapes", SMALL)
    assert change_live(config, {"compute.train_batch": "1"}).compute.train_batch == 1
