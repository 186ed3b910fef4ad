"""The rewards of a run together: every value checked, every failure told with the sample and the prompt that caused it."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from workbench.config import WeightedReward
from workbench.contracts import RewardFailed, RewardFunction

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

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The weighted sum that is trained on, [N]."""
        return torch.stack([self.weights[name] * value for name, value in parts.items()]).sum(0)


def _checked(name: str, reward: RewardFunction, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """One reward's values [N], float32, after making sure that they are one finite number per image."""
    try:
        values = reward(images, prompts)
    except Exception as error:
        told = f"reward {name!r} raised {type(error).__name__}: {error}"
        raise RewardFailed(f"{told}, {_culprit(reward, images, prompts)}; {_MEND}") from error
    if not isinstance(values, Tensor) or values.shape != (len(prompts),):
        got = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        where = f"the samples from prompt {prompts[0]!r} on"
        raise RewardFailed(f"reward {name!r} must give one number per image, [{len(prompts)}], got {got} for {where}; {_MEND}")
    values = values.detach().float().cpu()  # rewards may work on different devices; their sum does not
    wrong = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if wrong:
        first = f"{values[wrong[0]].item()} for sample {wrong[0]}, prompt {prompts[wrong[0]]!r}"
        raise RewardFailed(f"reward {name!r} gave {first} ({len(wrong)} of {len(prompts)} samples); {_MEND}")
    return values


def _culprit(reward: RewardFunction, images: Tensor, prompts: Sequence[str]) -> str:
    """Which sample makes a reward raise, found by scoring one at a time."""
    for index, prompt in enumerate(prompts):
        try:
            reward(images[index : index + 1], [prompt])
        except Exception:  # it is reported by the caller, which saw it first
            return f"for sample {index}, prompt {prompt!r}"
    return f"for a batch of {len(prompts)} samples, though for none of them alone"
