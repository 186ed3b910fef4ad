"""Small runs for tests of the training loop, with a generator of six numbers that trains in milliseconds."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from workbench.config import RunConfig, configure
from workbench.contracts import FlowMapKind, Model, Reward, RewardFunction
from workbench.events import CheckpointReady, Evaluated, Event, GroupsScored, IterationDone, Progress, Sampled
from workbench.exact_json import from_json, to_json
from workbench.settings import EvalReward, WeightedReward

SMALL: dict[str, Any] = {
    "iterations": 4,
    "grpo.groups": 3,
    "grpo.group_size": 4,
    "rollout.steps": 2,
    "evaluation.every": 2,
    "evaluation.images": 8,
    "evaluation.final_images": 16,
    "evaluation.group_size": 4,
    "evaluation.steps": "[1]",
    "evaluation.preview": 4,
    "record.checkpoint_every": 2,
    "guard.collapse": 0,
}
TIMES = ("images_per_second", "rollout_seconds", "reward_seconds", "update_seconds")


class Redness(Reward):
    """Mean red minus mean blue."""

    name: Literal["redness"] = "redness"

    def load(self, device: torch.device) -> RewardFunction:
        return lambda images, prompts: images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


class ToyNetwork(nn.Module):
    """What every sample is pulled toward, by channel and by time; remembers how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.pull = nn.Parameter(torch.tensor([[0.3, -0.2, 0.1], [0.1, 0.2, 0.3]]))
        self.calls: list[tuple[float, float, Tensor, bool]] = []  # t, s, the weights, whether a gradient is wanted

    def forward(self, t: float, s: float) -> Tensor:
        self.calls.append((t, s, self.pull.detach().clone(), torch.is_grad_enabled()))
        return (self.pull[0] + t * self.pull[1])[:, None, None]


class ToyMap:
    """psi(x, t, s) = x (1 + s) / (1 + t) + (c + pull) (t - s), where c is a number read off the prompt."""

    kind: FlowMapKind = "two_time"

    def __init__(self, network: ToyNetwork, embeddings: Tensor) -> None:
        self.network, self.embeddings = network, embeddings

    def __call__(self, x: Tensor, t: float, s: float) -> Tensor:
        return x * ((1 + s) / (1 + t)) + (self.embeddings + self.network(t, s)) * (t - s)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        return x / (1 + t) - self.embeddings - self.network(t, t)


class ToyGenerator:
    latent_shape: tuple[int, ...] = (3, 2, 2)
    kind: FlowMapKind = "two_time"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.network: Any = ToyNetwork()

    def embed(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([sum(map(ord, prompt)) % 97 / 97 for prompt in prompts]).view(-1, 1, 1, 1)

    def bind(self, embeddings: Tensor) -> ToyMap:
        return ToyMap(self.network, embeddings)

    def encode(self, images: Tensor) -> Tensor:
        return images[:, :, ::20, ::20].logit(1e-3)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.sigmoid().repeat_interleave(20, 2).repeat_interleave(20, 3)


class ToyModel(Model):
    """The generator above; `loaded` is the last one that was made."""

    name: Literal["toy"] = "toy"

    kind: ClassVar[FlowMapKind] = "two_time"
    loaded: ClassVar[list[ToyGenerator]] = []

    def load(self, device: torch.device) -> ToyGenerator:
        generator = ToyGenerator()
        self.loaded[:] = [generator]
        return generator


def small(reward: Reward | None = None, preset: str = "shapes", **changes: Any) -> RunConfig:
    """A run of the embedded generator that takes seconds; `a__b=1` sets a.b."""
    config = configure(preset, SMALL | {key.replace("__", "."): value for key, value in changes.items()})
    return config.model_copy(update={"rewards": (WeightedReward.model_construct(reward=reward or Redness(), weight=1.0),)})


def toy(reward: Reward | None = None, *, judges: Sequence[Reward] = (), **changes: Any) -> RunConfig:
    """The same of the toy generator; `judges` are its eval_rewards."""
    entries = tuple(EvalReward.model_construct(reward=judge) for judge in judges)
    return small(reward, **changes).model_copy(update={"model": ToyModel(), "eval_rewards": entries})


def told(events: Iterator[Event]) -> list[Event]:
    """All that is worth recording."""
    return [keep(event) for event in events if not isinstance(event, Progress)]


def keep(event: Event) -> Event:
    """A checkpoint as a disk would give it back: its tensors copied, its state through JSON."""
    if not isinstance(event, CheckpointReady):
        return event
    tensors = {stem: {name: value.clone() for name, value in named.items()} for stem, named in event.tensors.items()}
    return CheckpointReady(event.iteration, tensors, from_json(to_json(event.state)))


def kinds(events: Sequence[Event]) -> list[tuple[str, int]]:
    return [(type(event).__name__, event.iteration) for event in events]  # type: ignore[union-attr]


def assert_same_state(one: CheckpointReady, other: CheckpointReady) -> None:
    assert one.state == other.state
    assert one.tensors.keys() == other.tensors.keys()
    for stem, named in one.tensors.items():
        assert named.keys() == other.tensors[stem].keys()
        assert all(torch.equal(value, other.tensors[stem][name]) for name, value in named.items()), stem


def plain(event: Event) -> Any:
    """What must repeat exactly: everything but clocks."""
    if isinstance(event, IterationDone):
        return {name: value for name, value in event.metrics.items() if name not in TIMES}
    if isinstance(event, GroupsScored | Evaluated | Sampled):
        fields = {name: value for name, value in vars(event).items() if name != "preview"}
        return fields, event.preview.images.tolist()
    return None
