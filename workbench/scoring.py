"""The rewards of a run together: every value checked, every failure told with the sample and the prompt that caused it.

`Rewards` are what a run trains on; they work in threads beside the one that draws, so that a portion is scored while the next is
drawn. `Judges` only judge: they are never trained on, and the slow ones work in a thread beside the training.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as Stream
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from workbench.contracts import Reward, RewardFailed, RewardFunction
from workbench.events import Progress
from workbench.first_line import first_line
from workbench.out_of_memory import out_of_memory
from workbench.settings import WeightedReward

PORTION = 32
"""Images that a judge in the background scores at a time: as long as closing may have to wait."""
HASTE = 20.0
"""Seconds that an answer from elsewhere may take while a page waits for it."""
TICK = 0.2
"""Seconds between two signs of life while rewards are waited for."""

_MEND = "mend it, then resume the run"
_LESS = (
    "resume the run with a lower compute.sample_batch; or, in a new run, lower the reward's batch, use dtype bf16 for it, or "
    "give it a device of its own with serve-reward"
)


class Rewards:
    """Named rewards with their weights, loaded.

    One thread works out those that compute here, one after the other, so that they may share what they see in a picture; each
    that waits for others has a thread of its own. None is begun before it is needed. Close them, so that none is left behind.
    """

    def __init__(self, rewards: Sequence[WeightedReward], device: torch.device) -> None:
        self.weights: dict[str, float] = {weighted.reward.name: weighted.weight for weighted in rewards}
        loaded = {weighted.reward.name: weighted.reward.load(device) for weighted in rewards}
        self.functions: dict[str, Callable[..., Tensor]] = {name: partial(_checked, name, each) for name, each in loaded.items()}
        self._loaded = tuple(loaded.values())
        waiting = [weighted.reward.name for weighted in rewards if weighted.reward.waits]
        computing = [name for name in loaded if name not in waiting]
        self._lanes = tuple(
            _Lane({name: self.functions[name] for name in names}, gathers=names is not computing)
            for names in (computing, *([name] for name in waiting))
            if names
        )

    @property
    def main(self) -> str:
        """The reward that says whether a prompt was followed: the exact one, or else the weightiest."""
        return max(self.weights, key=lambda name: ("exact" in name, self.weights[name]))

    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Every reward by name, [N], float32, worked out in this thread.

        Raises: RewardFailed: naming the reward, the prompt and what came back.
        """
        return {name: reward(images, prompts) for name, reward in self.functions.items()}

    def begin(self) -> "Scores":
        """A batch that is about to be drawn, to be scored beside that."""
        return Scores(self._lanes, tuple(self.functions))

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum that is trained on, [N]."""
        return torch.stack([self.weights[name] * value for name, value in parts.items()]).sum(0)

    def close(self) -> None:
        """Drop what is not begun, break off what waits for others, and end the threads; more than once does no harm."""
        for lane in self._lanes:
            lane.thread.shutdown(wait=False, cancel_futures=True)
        _break_off(self._loaded)
        for lane in self._lanes:
            lane.thread.shutdown()


class Scores:
    """The rewards of one batch, worked out portion by portion while the rest of it is drawn."""

    def __init__(self, lanes: Sequence["_Lane"], names: tuple[str, ...]) -> None:
        self._work, self._names, self._count = [_Work(lane) for lane in lanes], names, 0

    def add(self, images: Tensor, prompts: Sequence[str]) -> None:
        """The batch's next images [n, 3, H, W] in [0, 1], which must not change afterwards; returns at once.

        A failure is told by `collect` alone: whoever draws may not stop while other processes draw with it.

        Raises: RuntimeError: if the rewards are closed.
        """
        drawn = None
        if images.is_cuda:  # a thread has a stream of its own, which starts where this one has come to
            drawn = torch.cuda.current_stream(images.device).record_event()
        portion = _Portion(images.detach(), tuple(prompts), self._count, drawn)
        self._count += len(portion.prompts)
        for work in self._work:
            work.add(portion)

    def collect(self) -> Stream[Progress, None, dict[str, Tensor]]:
        """Every reward by name, [N], float32, on the CPU, in the order in which images were added; yields while it waits.

        Raises: RewardFailed: naming the reward, the prompt and what came back.
        """
        pending = {turn for work in self._work for turn in work.turns}
        while pending:
            done, pending = wait(pending, TICK, FIRST_EXCEPTION)
            for turn in done:
                turn.result()
            if pending:
                yield Progress("score", min(work.scored for work in self._work), self._count)
        values = {name: value for work in self._work for name, value in work.values().items()}
        return {name: values[name] for name in self._names}


class _Lane:
    """A thread for some rewards, which works out one portion after the other; none is begun before there is one.

    Where it `gathers`, it takes all portions at once that have come by then: those who answer it may answer several at a time.
    """

    def __init__(self, rewards: Mapping[str, Callable[..., Tensor]], *, gathers: bool) -> None:
        self.rewards, self.gathers = rewards, gathers
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"reward {' '.join(rewards)}")
        self._stream: torch.cuda.Stream | None = None

    def score(self, portions: Sequence["_Portion"]) -> dict[str, Tensor]:
        """Every reward of the portions together. Raises: RewardFailed."""
        prompts = [prompt for portion in portions for prompt in portion.prompts]
        with self._beside(portions[-1]), torch.no_grad():
            images = torch.cat([portion.images for portion in portions]) if len(portions) > 1 else portions[0].images
            return {name: reward(images, prompts, portions[0].first) for name, reward in self.rewards.items()}

    @contextmanager
    def _beside(self, last: "_Portion") -> Iterator[None]:
        """On a GPU its work is not queued behind that of whoever draws, only behind the images themselves."""
        if last.drawn is None:
            yield
            return
        self._stream = self._stream or torch.cuda.Stream(last.images.device)
        self._stream.wait_event(last.drawn)
        with torch.cuda.stream(self._stream):
            yield


@dataclass(frozen=True)
class _Portion:
    """Consecutive images of a batch."""

    images: Tensor
    prompts: tuple[str, ...]
    first: int  # place of its first image in the batch
    drawn: "torch.cuda.Event | None"  # when they are there, on a GPU


class _Work:
    """What one lane has to do for a batch."""

    def __init__(self, lane: _Lane) -> None:
        self.lane, self.scored = lane, 0
        self.turns: list[Future[dict[str, Tensor]]] = []  # one for each portion, though one may do the work of several
        self._waiting: deque[_Portion] = deque()

    def add(self, portion: _Portion) -> None:
        self._waiting.append(portion)
        self.turns.append(self.lane.thread.submit(self._take))

    def values(self) -> dict[str, Tensor]:
        """Every reward, [N]; all turns are over."""
        parts = [turn.result() for turn in self.turns]
        return {name: torch.cat([part[name] for part in parts if part]) for name in self.lane.rewards}

    def _take(self) -> dict[str, Tensor]:
        """One turn: the rewards of the portion that waits longest, or of all; none where an earlier turn took them or failed."""
        count = len(self._waiting) if self.lane.gathers else min(1, len(self._waiting))
        portions = [self._waiting.popleft() for _ in range(count)]
        if not portions:
            return {}
        try:
            values = self.lane.score(portions)
        except Exception:
            self._waiting.clear()
            raise
        self.scored += sum(len(portion.prompts) for portion in portions)
        return values


@dataclass(frozen=True)
class Judgement:
    """Scores of one set of images, some of them still being worked out."""

    names: tuple[str, ...]
    quick: Mapping[str, Tensor]
    slow: Mapping[str, Sequence[Future[Tensor]]]  # portions in the order of the images

    def done(self) -> bool:
        """Whether `result` would answer at once, be it with a failure."""
        return all(future.done() for futures in self.slow.values() for future in futures)

    def result(self) -> dict[str, Tensor]:
        """Every judge's values by name, [N], float32, on the CPU, in the order of the rewards; waits for them.

        Raises:
            RewardFailed: naming the judge, the prompt and what came back.
            concurrent.futures.CancelledError: if the judges were closed before.
        """
        slow = {name: torch.cat([future.result() for future in futures]) for name, futures in self.slow.items()}
        values = {**self.quick, **slow}
        return {name: values[name] for name in self.names}


class Judges:
    """Rewards that only judge; those marked `background` do so one after the other in a single thread of their own.

    Meanwhile the caller goes on: a recogniser outside PyTorch holds Python's lock only between its own computations. Close
    them, or use them as a context, so that no thread is left behind.
    """

    def __init__(self, rewards: Sequence[Reward], device: torch.device) -> None:
        self.names = tuple(reward.name for reward in rewards)  # type: ignore[attr-defined]
        loaded = [(reward.background, reward.load(device)) for reward in rewards]
        self._loaded = tuple(judge for _, judge in loaded)
        self._quick = {name: judge for name, (slow, judge) in zip(self.names, loaded, strict=True) if not slow}
        self._slow = {name: judge for name, (slow, judge) in zip(self.names, loaded, strict=True) if slow}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge")

    def submit(self, images: Tensor, prompts: Sequence[str]) -> Judgement:
        """Have images [N, 3, H, W] in [0, 1] judged; returns as soon as the quick judges are done.

        What the thread works on is a copy on the CPU, so the caller may change or free the images.

        Raises:
            RewardFailed: from a quick judge; a failure in the background is told by the result.
            RuntimeError: if the judges are closed.
        """
        quick = {name: _checked(name, judge, images, prompts) for name, judge in self._quick.items()}
        copy = images.detach().to("cpu", copy=True) if self._slow else images
        portions = [slice(start, start + PORTION) for start in range(0, len(prompts), PORTION)]
        slow = {
            name: [self._thread.submit(_checked, name, judge, copy[part], prompts[part], part.start) for part in portions]
            for name, judge in self._slow.items()
        }
        return Judgement(self.names, quick, slow)

    def close(self) -> None:
        """Drop what is not begun, wait for the portion at work and end the thread; more than once does no harm.

        A judge that waits for others is broken off.
        """
        self._thread.shutdown(wait=False, cancel_futures=True)
        _break_off(self._loaded)
        self._thread.shutdown()

    def __enter__(self) -> "Judges":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def impatient(reward: Reward) -> Reward:
    """The reward for a page: one that waits for others asks once and not for long, since the device's other work waits too."""
    if not reward.waits:
        return reward
    return reward.model_copy(update={"retries": 0, "timeout": min(HASTE, getattr(reward, "timeout", HASTE))})


@runtime_checkable
class _Closes(Protocol):
    """A reward that may wait for long and can be broken off."""

    def close(self) -> None: ...


def _break_off(rewards: Sequence[RewardFunction]) -> None:
    for reward in rewards:
        if isinstance(reward, _Closes):
            reward.close()


def _checked(name: str, reward: RewardFunction, images: Tensor, prompts: Sequence[str], first: int = 0) -> Tensor:
    """One reward's values [N], float32, after making sure that they are one finite number per image.

    `first` is the place of the first image in the whole sample, for messages.
    """
    try:
        values = reward(images, prompts)
    except RewardFailed as error:  # it knows itself what went wrong
        raise RewardFailed(f"reward {name!r}: {error}; {_MEND}") from error
    except Exception as error:
        if out_of_memory(error):  # whichever sample it is, and each of them would be scored again to find out
            told = f"reward {name!r} ran out of memory ({first_line(error)}) at {len(prompts)} samples"
            raise RewardFailed(f"{told}; {_LESS}") from error
        told = f"reward {name!r} raised {type(error).__name__}: {error}"
        raise RewardFailed(f"{told}, {_culprit(reward, images, prompts, first)}; {_MEND}") from error
    if not isinstance(values, Tensor) or values.shape != (len(prompts),):
        got = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        where = f"the samples from prompt {prompts[0]!r} on"
        raise RewardFailed(f"reward {name!r} must give one number per image, [{len(prompts)}], got {got} for {where}; {_MEND}")
    values = values.detach().float().cpu()  # rewards may work on different devices; their sum does not
    wrong = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if wrong:
        told = f"{values[wrong[0]].item()} for sample {first + wrong[0]}, prompt {prompts[wrong[0]]!r}"
        raise RewardFailed(f"reward {name!r} gave {told} ({len(wrong)} of {len(prompts)} samples); {_MEND}")
    return values


def _culprit(reward: RewardFunction, images: Tensor, prompts: Sequence[str], first: int) -> str:
    """Which sample makes a reward raise, found by scoring one at a time."""
    for index, prompt in enumerate(prompts):
        try:
            reward(images[index : index + 1], [prompt])
        except Exception:  # it is reported by the caller, which saw it first
            return f"for sample {first + index}, prompt {prompt!r}"
    return f"for a batch of {len(prompts)} samples, though for none of them alone"
