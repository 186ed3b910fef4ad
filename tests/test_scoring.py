"""Rewards that judge beside the training: what they say, when they fail, and that they leave nothing behind."""

import threading
from concurrent.futures import CancelledError
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from workbench.contracts import Reward, RewardFailed, RewardFunction
from workbench.scoring import PORTION, Judges

CPU = torch.device("cpu")
IMAGES = torch.rand(2 * PORTION + 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
PROMPTS = [f"prompt {index}" for index in range(len(IMAGES))]


class Brightness(Reward):
    """Mean brightness, told at once."""

    name: Literal["brightness"] = "brightness"

    def load(self, device: torch.device) -> RewardFunction:
        return lambda images, prompts: images.mean((1, 2, 3))


class Patient(Brightness):
    """Mean brightness, told once `gate` is open."""

    background: ClassVar[bool] = True
    gate: ClassVar[threading.Event] = threading.Event()
    name: Literal["patient"] = "patient"  # type: ignore[assignment]

    def load(self, device: torch.device) -> RewardFunction:
        def score(images: Tensor, prompts: list[str]) -> Tensor:
            assert self.gate.wait(30)
            return images.mean((1, 2, 3))

        return score


class Faulty(Reward):
    """Raises, or gives a bad number, at one prompt."""

    background: ClassVar[bool] = True
    name: Literal["faulty"] = "faulty"
    bad: str = "prompt 40"
    value: float | None = None

    def load(self, device: torch.device) -> RewardFunction:
        def score(images: Tensor, prompts: list[str]) -> Tensor:
            if self.bad in prompts and self.value is None:
                raise KeyError("no such letter")
            return torch.tensor([float("nan") if prompt == self.bad else 0.5 for prompt in prompts])

        return score


@pytest.fixture
def gate() -> threading.Event:
    Patient.gate = threading.Event()
    return Patient.gate


def judge_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("judge")]


def test_a_slow_judge_lets_the_caller_go_on_and_then_says_the_same(gate: threading.Event) -> None:
    with Judges([Patient(), Brightness()], CPU) as judges:
        pending = judges.submit(IMAGES, PROMPTS)
        assert not pending.done()
        gate.set()
        values = pending.result()
        assert pending.done()
    assert list(values) == ["patient", "brightness"]
    torch.testing.assert_close(values["patient"], values["brightness"])
    torch.testing.assert_close(values["patient"], IMAGES.mean((1, 2, 3)))


def test_quick_judges_need_no_thread_and_are_done_at_once() -> None:
    with Judges([Brightness()], CPU) as judges:
        assert judges.submit(IMAGES, PROMPTS).done()
        assert not judge_threads()


def test_no_judges_say_nothing() -> None:
    with Judges([], CPU) as judges:
        pending = judges.submit(IMAGES, PROMPTS)
        assert pending.done()
        assert pending.result() == {}


def test_what_is_judged_is_what_was_handed_in(gate: threading.Event) -> None:
    images = IMAGES.clone()
    with Judges([Patient()], CPU) as judges:
        pending = judges.submit(images, PROMPTS)
        images.zero_()
        gate.set()
        torch.testing.assert_close(pending.result()["patient"], IMAGES.mean((1, 2, 3)))


def test_judgements_are_made_in_order_by_one_thread(gate: threading.Event) -> None:
    with Judges([Patient()], CPU) as judges:
        first, second = judges.submit(IMAGES, PROMPTS), judges.submit(1 - IMAGES, PROMPTS)
        assert len(judge_threads()) == 1
        gate.set()
        torch.testing.assert_close(first.result()["patient"] + second.result()["patient"], torch.ones(len(IMAGES)))


def test_a_failure_is_told_when_collected_with_judge_sample_and_remedy() -> None:
    with Judges([Faulty()], CPU) as judges:
        pending = judges.submit(IMAGES, PROMPTS)
        with pytest.raises(RewardFailed) as caught:
            pending.result()
    for part in ("'faulty'", "KeyError", "no such letter", "sample 40", "'prompt 40'", "resume"):
        assert part in str(caught.value)


def test_a_value_that_is_no_number_is_refused_with_its_place_in_the_whole_sample() -> None:
    with Judges([Faulty(value=1.0)], CPU) as judges, pytest.raises(RewardFailed, match=r"nan for sample 40, prompt 'prompt 40'"):
        judges.submit(IMAGES, PROMPTS).result()


def test_a_quick_judge_that_fails_says_so_at_once() -> None:
    class Quick(Faulty):
        """The same, not in the background."""

        background: ClassVar[bool] = False

    with Judges([Quick()], CPU) as judges, pytest.raises(RewardFailed, match="prompt 40"):
        judges.submit(IMAGES, PROMPTS)


def test_closing_drops_what_is_not_begun_and_ends_the_thread(gate: threading.Event) -> None:
    judges = Judges([Patient()], CPU)
    begun = threading.Event()
    inner = judges._slow["patient"]
    judges._slow["patient"] = lambda images, prompts: (begun.set(), inner(images, prompts))[1]
    pending = judges.submit(IMAGES, PROMPTS)
    assert begun.wait(30)
    opener = threading.Timer(0.05, gate.set)  # closing waits for the portion at work
    opener.start()
    judges.close()
    judges.close()
    assert not judge_threads()
    with pytest.raises(CancelledError):
        pending.result()
    with pytest.raises(RuntimeError, match="after shutdown"):
        judges.submit(IMAGES, PROMPTS)


def test_judges_that_are_forgotten_take_their_thread_with_them(gate: threading.Event) -> None:
    judges = Judges([Patient()], CPU)
    gate.set()
    judges.submit(IMAGES, PROMPTS).result()
    (thread,) = judge_threads()
    del judges
    thread.join(30)
    assert not thread.is_alive()
