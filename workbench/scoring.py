"""The rewards of a run together: every value checked, every failure told with the sample and the prompt that caused it.

`Rewards` are what a run trains on. `Judges` only judge: they are never trained on, and the slow ones work in a thread beside
the training.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import torch
from torch import Tensor

from workbench.contracts import Reward, RewardFailed, RewardFunction
from workbench.settings import WeightedReward

PORTION = 32
"""Images that a judge in the background scores at a time: as long as closing may have to wait."""

_MEND = "mend it, then resume the run"


class Rewards:
    """Named rewards with their weights, loaded."""

    def __init__(self, rewards: Sequence[WeightedReward], device: torch.device) -> None:
        self.weights: dict[str, float] = {weighted.reward.name: weighted.weight for weighted in rewards}
        self.functions: dict[str, RewardFunction] = {
            weighted.reward.name: partial(_checked, weighted.reward.name, weighted.reward.load(device)) for weighted in rewards
        }

    @property
    def main(self) -> str:
        """The reward that says whether a prompt was followed: the exact one, or else the weightiest."""
        return max(self.weights, key=lambda name: ("exact" in name, self.weights[name]))

    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Every reward by name, [N], float32.

        Raises: RewardFailed: naming the reward, the prompt and what came back.
        """
        return {name: reward(images, prompts) for name, reward in self.functions.items()}

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum that is trained on, [N]."""
        return torch.stack([self.weights[name] * value for name, value in parts.items()]).sum(0)


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
        """Drop what is not begun, wait for the portion at work and end the thread; more than once does no harm."""
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> "Judges":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _checked(name: str, reward: RewardFunction, images: Tensor, prompts: Sequence[str], first: int = 0) -> Tensor:
    """One reward's values [N], float32, after making sure that they are one finite number per image.

    `first` is the place of the first image in the whole sample, for messages.
    """
    try:
        values = reward(images, prompts)
    except Exception as error:
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
