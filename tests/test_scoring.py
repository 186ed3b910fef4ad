"""Rewards beside the one who draws, and those that only judge: what they say, how they fail, and that nothing is left behind."""

import threading
from concurrent.futures import CancelledError
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from workbench.contracts import Reward, RewardFailed, RewardFunction
from workbench.events import Progress
from workbench.rollout import drain
from workbench.scoring import PORTION, Judges, Rewards, Scores
from workbench.settings import WeightedReward

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


# --- rewards that are trained on


class Called(Brightness):
    """Mean brightness; remembers of each call how many images it saw, in which thread, and whether gradients were kept."""

    calls: ClassVar[list[tuple[int, str, bool]]] = []
    gate: ClassVar[threading.Event] = threading.Event()
    begun: ClassVar[threading.Event] = threading.Event()

    def load(self, device: torch.device) -> RewardFunction:
        def score(images: Tensor, prompts: list[str]) -> Tensor:
            self.calls.append((len(images), threading.current_thread().name, torch.is_grad_enabled()))
            self.begun.set()
            assert self.gate.wait(30)
            return images.mean((1, 2, 3))

        return score


class Elsewhere(Called):
    """The same, worked out by others."""

    name: Literal["elsewhere"] = "elsewhere"  # type: ignore[assignment]
    waits: ClassVar[bool] = True


class Lengths(Brightness):
    """The number that ends each prompt."""

    name: Literal["lengths"] = "lengths"  # type: ignore[assignment]

    def load(self, device: torch.device) -> RewardFunction:
        return lambda images, prompts: torch.tensor([float(prompt.split()[-1]) for prompt in prompts])


@pytest.fixture
def called() -> type[Called]:
    Called.calls.clear()
    Called.gate.set()
    Called.begun.clear()
    return Called


def rewards(*chosen: Reward) -> Rewards:
    return Rewards([WeightedReward.model_construct(reward=reward, weight=1.0) for reward in chosen], CPU)


def add_all(scores: Scores, size: int = 10) -> None:
    for start in range(0, len(IMAGES), size):
        scores.add(IMAGES[start : start + size], PROMPTS[start : start + size])


def reward_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reward")]


def test_scores_by_portions_are_those_of_the_whole_batch_in_its_order(called: type[Called]) -> None:
    ours = rewards(Elsewhere(), Lengths(), Called())
    whole = ours.score(IMAGES, PROMPTS)
    assert not reward_threads()  # none is begun before it is needed
    scores = ours.begin()
    add_all(scores)
    parts = drain(scores.collect())
    assert list(parts) == ["elsewhere", "lengths", "brightness"]
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert torch.equal(ours.total(parts), ours.total(whole))
    ours.close()
    assert not reward_threads()


def test_those_that_compute_share_a_thread_and_each_that_waits_has_its_own(called: type[Called]) -> None:
    ours = rewards(Called(), Elsewhere(), Lengths())
    scores = ours.begin()
    add_all(scores)
    assert len(reward_threads()) == 2
    drain(scores.collect())
    ours.close()
    assert len({name for _, name, _ in called.calls}) == 2
    assert not any(kept for _, _, kept in called.calls)  # no gradients


def test_a_portion_is_scored_while_the_next_is_drawn_and_waiting_gives_signs_of_life(called: type[Called]) -> None:
    called.gate.clear()
    ours = rewards(Called())
    scores = ours.begin()
    scores.add(IMAGES[:3], PROMPTS[:3])
    assert called.begun.wait(30)  # though the batch goes on
    scores.add(IMAGES[3:8], PROMPTS[3:8])
    stream = scores.collect()
    assert [next(stream), next(stream)] == [Progress("score", 0, 8)] * 2
    called.gate.set()
    assert torch.equal(drain(stream)["brightness"], IMAGES[:8].mean((1, 2, 3)))
    assert [count for count, _, _ in called.calls] == [3, 5]
    ours.close()


def test_one_that_waits_takes_all_that_has_come_meanwhile_at_once(called: type[Called]) -> None:
    called.gate.clear()
    ours = rewards(Elsewhere())
    scores = ours.begin()
    scores.add(IMAGES[:10], PROMPTS[:10])
    assert called.begun.wait(30)
    for start in range(10, len(IMAGES), 10):
        scores.add(IMAGES[start : start + 10], PROMPTS[start : start + 10])
    called.gate.set()
    values = drain(scores.collect())["elsewhere"]
    assert torch.equal(values, IMAGES.mean((1, 2, 3)))
    assert [count for count, _, _ in called.calls] == [10, len(IMAGES) - 10]
    ours.close()


def test_a_failure_is_told_with_its_place_in_the_batch() -> None:
    ours = rewards(Lengths(), Faulty())
    scores = ours.begin()
    add_all(scores, 20)
    with pytest.raises(RewardFailed, match=r"reward 'faulty' raised KeyError.* for sample 40, prompt 'prompt 40'; .*resume"):
        drain(scores.collect())
    again = ours.begin()  # the next batch is another matter
    again.add(IMAGES[:3], PROMPTS[:3])
    assert drain(again.collect())["faulty"].shape == (3,)
    ours.close()


def test_what_a_reward_says_of_its_own_failure_is_passed_on_without_a_search() -> None:
    asked = []

    class Knows(Brightness):
        """Names the cause itself."""

        def load(self, device: torch.device) -> RewardFunction:
            def score(images: Tensor, prompts: list[str]) -> Tensor:
                asked.append(len(images))
                raise RewardFailed("http://host is down, for prompt 'a'")

            return score

    ours = rewards(Knows())
    with pytest.raises(RewardFailed, match=r"reward 'brightness': http://host is down, for prompt 'a'; mend it, then resume"):
        ours.score(IMAGES, PROMPTS)
    assert asked == [len(IMAGES)]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
    ],
)
def test_a_reward_that_runs_out_of_memory_is_asked_once_and_says_what_takes_less(error: Exception) -> None:
    asked = []

    class Large(Brightness):
        """Takes more than there is."""

        def load(self, device: torch.device) -> RewardFunction:
            def score(images: Tensor, prompts: list[str]) -> Tensor:
                asked.append(len(images))
                raise error

            return score

    with pytest.raises(RewardFailed) as caught:
        rewards(Large()).score(IMAGES, PROMPTS)
    first = str(error).splitlines()[0]
    assert f"reward 'brightness' ran out of memory ({first}) at {len(IMAGES)} samples; " in str(caught.value)
    for way in ("compute.sample_batch", "lower the reward's batch", "bf16", "serve-reward"):
        assert way in str(caught.value)
    assert asked == [len(IMAGES)]


def test_closing_breaks_off_what_waits_for_others_and_leaves_no_thread() -> None:
    class Hanging(Brightness):
        """Waits until it is closed."""

        waits: ClassVar[bool] = True

        def load(self, device: torch.device) -> RewardFunction:
            return Hung()

    class Hung:
        def __init__(self) -> None:
            self.begun, self.broken_off = threading.Event(), threading.Event()

        def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
            self.begun.set()
            assert self.broken_off.wait(30)
            raise RewardFailed("broken off")

        def close(self) -> None:
            self.broken_off.set()

    ours = rewards(Hanging())
    scores = ours.begin()
    add_all(scores)
    (hung,) = ours._loaded
    assert hung.begun.wait(30)
    ours.close()
    ours.close()
    assert not reward_threads()
    with pytest.raises(RuntimeError, match="after shutdown"):
        ours.begin().add(IMAGES, PROMPTS)
