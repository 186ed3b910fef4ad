"""GRPO in the plane: the exact flow map of a distribution, a small network that may bend it, and a reward that can be moved.

Rollouts, advantages, objective and update are those of every run; only the generator is two numbers wide. Nothing is recorded.
"""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.contracts import FlowMap, FlowMapKind, Generator, Model
from workbench.flow import seed_stream, seeded_noise, seeded_uniform, time_grid
from workbench.grpo import constant_groups, group_advantages
from workbench.lab import exact_flow_map
from workbench.lesson import Lesson
from workbench.models.policy import Policy
from workbench.newest import newest
from workbench.objectives.grpo import GRPOObjective
from workbench.optim import AveragedWeights, set_learning_rate
from workbench.pathlab import VIEW, Data, distribution
from workbench.planning import kernel_stds
from workbench.ranks import Ranks
from workbench.rollout import Plan, drain, sample_rollout
from workbench.samplers.asfmc import AnchoredSampler
from workbench.samplers.ode import deterministic_step
from workbench.sampling import LARGEST_SEED
from workbench.settings import Settings
from workbench.update import update_policy

KEPT = 8
"""Most learners at once, one for each open page; the one that was asked least recently makes room."""

REMEMBERED = 4000
"""Most updates whose figures are kept."""

GROUPS, GROUP_SIZE, PARTICLES = 16, 16, 500


class Lever(Settings):
    """What may change while it learns."""

    x: float = Field(0.0, ge=-VIEW, le=VIEW, description="centre of the reward, across")
    y: float = Field(3.0, ge=-VIEW, le=VIEW, description="centre of the reward, upward")
    width: float = Field(0.8, ge=0.1, le=3, description="width of the reward: its standard deviation")
    noise: float = Field(0.7, ge=0.05, le=1, description="share of the noise drawn afresh where a group branches (lambda)")
    anchor: float = Field(1.0, ge=0.05, le=1, description="how far past the target the map runs before noise is added")
    learning_rate: float = Field(3e-3, gt=0, le=0.1, description="size of an update (AdamW)")
    kl_weight: float = Field(0.3, ge=0, le=100, description="pull back to the exact map; 0 lets the reward decide alone")


class PlaneSettings(Settings):
    """What a learner in the plane is made of; changing it begins anew."""

    data: Data = Field(default_factory=Data, description="distribution whose exact map is the base")
    steps: int = Field(4, ge=2, le=8, description="steps from noise to data")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="names all randomness")


class Correction(nn.Module):
    """What is added to the velocity that a jump induces; [N, 2] points at t, bound for s. Zero until it is trained."""

    def __init__(self, seed: int, width: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(abs(seed_stream("plane", seed)) % 2**63)
            self.layers = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, t: float, s: float) -> Tensor:
        waves = x * (math.pi / VIEW)
        times = x.new_tensor([t, s]).expand(len(x), 2)
        return self.layers(torch.cat([x / VIEW, waves.sin(), waves.cos(), times], 1))


class PlaneMap:
    """psi(x, t, s) = base(x, t, s) + (s - t) correction(x, t, s)."""

    kind: FlowMapKind = "two_time"

    def __init__(self, base: FlowMap, network: Any) -> None:
        self.base, self.network = base, network

    def __call__(self, x: Tensor, t: float, s: float) -> Tensor:
        return self.base(x, t, s) + (s - t) * self.network(x, t, s)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        return self.base.velocity(x, t) + self.network(x, t, t)


@dataclass
class Remembered:
    """A fixed flow map that keeps its last jumps: rollout, update and reference ask for the same ones."""

    flow_map: FlowMap
    kind: FlowMapKind = "two_time"
    jumps: OrderedDict[tuple[float, float, bytes], Tensor] = field(default_factory=OrderedDict)

    def __call__(self, x: Tensor, t: float, s: float) -> Tensor:
        key = (t, s, x.numpy().tobytes())
        if key not in self.jumps:
            self.jumps[key] = self.flow_map(x, t, s)
        return newest(self.jumps, key, 8)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        return self.flow_map.velocity(x, t)


class PlaneGenerator:
    """A generator whose samples are points; there is one prompt, the empty one, and a point is its own picture."""

    latent_shape: tuple[int, ...] = (2,)
    kind: FlowMapKind = "two_time"
    device = torch.device("cpu")

    def __init__(self, data: Data, seed: int) -> None:
        self.base = Remembered(exact_flow_map(distribution(data)))
        self.network: Any = Correction(seed)

    def embed(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 1)

    def bind(self, embeddings: Tensor) -> PlaneMap:
        return PlaneMap(self.base, self.network)

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class PlaneModel(Model):
    """The exact map of a distribution of the plane, with a correction that has learned nothing."""

    name: Literal["plane"] = "plane"
    data: Data = Field(default_factory=Data, description="distribution whose exact map is the base")
    seed: int = Field(0, description="of the correction's weights")

    kind = "two_time"

    def load(self, device: torch.device) -> Generator:
        return PlaneGenerator(self.data, self.seed)


def bump(points: Tensor, lever: Lever) -> Tensor:
    """The reward of points [N, 2]: 1 at the centre, exp(-1/2) at one width from it; [N]."""
    away = (points - points.new_tensor([lever.x, lever.y])).square().sum(1)
    return torch.exp(-0.5 * away / lever.width**2)


@dataclass(frozen=True)
class Progressed:
    """The figures of one update."""

    update: int
    reward: float  # mean over the rollout's samples
    kl: float  # to the exact map, a mean over dimensions; 0 where it has no weight and is not measured
    silent: float  # share of groups whose samples all scored the same


class PlaneLearner:
    """A policy in the plane that learns as long as it is asked to. One thread owns it.

    It offers what `update_policy` wants, without the optimizer's schedule, checkpoints and processes of a run.
    """

    behaviour: AveragedWeights | None = None  # the policy samples
    ranks = Ranks()

    def __init__(self, settings: PlaneSettings, lever: Lever) -> None:
        self.settings, self.lever = settings, lever
        self.policy = Policy(PlaneModel(data=settings.data, seed=settings.seed), torch.device("cpu"))
        self.optimizer = torch.optim.AdamW(self.policy.parameters.values(), lr=lever.learning_rate, weight_decay=0.0)
        self.times = time_grid(settings.steps)
        self.updates = 0
        self.history: deque[Progressed] = deque(maxlen=REMEMBERED)
        self.accelerator = SimpleNamespace(backward=torch.Tensor.backward)
        self._start = _initial(settings.seed)

    @property
    def config(self) -> Any:
        return SimpleNamespace(objective=GRPOObjective(kl_weight=self.lever.kl_weight), grpo=SimpleNamespace(epochs=1))

    @property
    def sampler(self) -> AnchoredSampler:
        return AnchoredSampler(noise=self.lever.noise, anchor=self.lever.anchor)

    @contextmanager
    def sampling(self) -> Iterator[Generator]:
        yield self.policy.generator

    def lesson(self) -> Lesson:
        """Groups that branch at one step, drawn evenly, completed as in deployment, and compared."""
        key = ("plane", self.settings.seed, self.updates)
        step = int(seeded_uniform(*key, "step") * (len(self.times) - 2))
        plan = Plan(self.times, GROUP_SIZE, "branch", (step,), "compose", sample_batch=4096, train_batch=GROUPS)
        rollout = sample_rollout(self.policy.generator, self.sampler, [""] * GROUPS, plan, key=key)
        rewards = bump(rollout.final, self.lever)
        advantages = group_advantages(rewards, GROUP_SIZE)
        (transition,) = rollout.transitions
        credit = advantages[transition.leaves[..., 0]]  # a child has one leaf, so its credit is that leaf's advantage
        stds = kernel_stds(self.sampler, "two_time", self.times)
        return Lesson(rollout, self.sampler, advantages, (credit,), stds, GROUPS, key)

    def learn(self) -> Progressed:
        """One update.

        Raises: FloatingPointError: before anything is changed, if the gradient is not finite.
        """
        lesson = self.lesson()
        rewards = bump(lesson.rollout.final, self.lever)
        told, _ = drain(update_policy(self, lesson))
        self.updates += 1
        silent = float(constant_groups(rewards, GROUP_SIZE).float().mean())
        self.history.append(Progressed(self.updates, float(rewards.mean()), told.get("kl", 0.0), silent))
        return self.history[-1]

    def learn_for(self, seconds: float) -> int:
        """Updates until the time is over, at least one; how many."""
        end, before = time.perf_counter() + seconds, self.updates
        while self.updates == before or time.perf_counter() < end:
            self.learn()
        return self.updates - before

    @torch.no_grad()
    def particles(self) -> Tensor:
        """What the policy makes of the same noise, as deployed: by deterministic composition; [PARTICLES, 2]."""
        return self._deployed(self.policy.generator)

    def base_particles(self) -> Tensor:
        """What the exact map makes of that noise; [PARTICLES, 2]."""
        with self.policy.reference() as generator:
            return self._deployed(generator)

    def _deployed(self, generator: Generator) -> Tensor:
        x, flow_map = self._start, generator.bind(torch.zeros(PARTICLES, 1))
        for t, s in pairwise(self.times):
            x = deterministic_step(flow_map, x, t, s)
        return x

    def apply_gradients(self) -> Tensor:
        parameters = list(self.policy.parameters.values())
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad()
            told = f"update {self.updates}: the gradient norm is {float(norm)}"
            raise FloatingPointError(f"{told}; lower the learning rate and begin anew")
        set_learning_rate(self.optimizer, self.lever.learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def snapshot(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.policy.parameters.items()}

    def undo(self, snapshot: dict[str, Tensor]) -> None:
        self.policy.load(snapshot)

    def gather(self, values: Tensor) -> Tensor:
        return values


class PlaneLearners:
    """The learners of the pages that are open, by visitor; for the worker's thread alone."""

    def __init__(self) -> None:
        self._learners: OrderedDict[str, PlaneLearner] = OrderedDict()

    def open(self, visitor: str, settings: PlaneSettings, lever: Lever, *, anew: bool = False) -> PlaneLearner:
        """The visitor's learner with these levers; a new one where there is none, or it was made of something else."""
        known = self._learners.get(visitor)
        if known is None or anew or known.settings != settings:
            self._learners[visitor] = PlaneLearner(settings, lever)
        learner = newest(self._learners, visitor, KEPT)
        learner.lever = lever
        return learner


def _initial(seed: int) -> Tensor:
    return seeded_noise([seed_stream("plane particles", seed, number) for number in range(PARTICLES)], (2,))
