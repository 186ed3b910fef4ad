"""Drawing images for people: one request says everything that an image depends on, and many images share their forward passes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union

import torch
from pydantic import Field
from torch import Tensor

from workbench.config import validated
from workbench.contracts import FlowMap, FlowMapKind, Generator, Sampler, Time
from workbench.evaluate import deployed_sampler, image_noise
from workbench.flow import Gaussian, seed_stream, seeded_noise
from workbench.samplers import SAMPLERS
from workbench.settings import Settings

BATCH = 512
"""Most images of one forward pass."""

LARGEST_SEED = 2**53 - 1
"""The largest whole number that a browser holds exactly."""

if TYPE_CHECKING:
    AnySampler = Any
else:
    AnySampler = Annotated[Union[tuple(SAMPLERS.values())], Field(discriminator="name")]  # noqa: UP007


class DrawRequest(Settings):
    """What a person asks to see: a policy, a prompt, a seed, and how samples are drawn. The pages, the command line and the
    pictures that say how they were made all speak of it."""

    run: str = Field("", max_length=120, description="run whose policy draws; without one, the base of the preset")
    checkpoint: int | None = Field(None, ge=0, description="iteration after which it was kept; without one, the last")
    preset: str = Field("shapes", max_length=80, description="ready-made configuration whose base draws, where there is no run")
    scale: float = Field(1.0, ge=0, le=1.5, description="how much of what was learned is applied: 0 is the base, 1 the tuned one")
    prompt: str = Field("", max_length=200, description="what to draw")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="names the initial noise; the same everywhere in the workbench")
    toward: int | None = Field(None, ge=0, le=LARGEST_SEED, description="second seed, at the other end of a walk")
    share: float = Field(0.0, ge=0, le=1, description="place on the walk between the two seeds")
    steps: int = Field(4, ge=1, le=128, description="steps from noise to image")
    sampler: AnySampler = Field(default_factory=SAMPLERS["asfmc"], description="transition kernel of the group's samples")
    images: int = Field(8, ge=2, le=32, description="samples of the group; all start from the same initial noise")

    def group(self, times: Sequence[float]) -> list["Shot"]:
        """The samples of the group, on this grid of times."""
        return [self.sample(times, member) for member in range(self.images)]

    def sample(self, times: Sequence[float], member: int) -> "Shot":
        """One sample of the group; the first draws what every other page and command draws at this seed."""
        return self._shot(times, self.sampler, member)

    def deployed(self, kind: FlowMapKind, times: Sequence[float]) -> "Shot":
        """The image of this seed as finished images are drawn."""
        return self._shot(times, deployed_sampler(kind), 0)

    def _shot(self, times: Sequence[float], sampler: Sampler, member: int) -> "Shot":
        return Shot(self.prompt, self.seed, tuple(times), sampler, member, self.toward, self.share)


@dataclass(frozen=True)
class Shot:
    """One image; it depends on this and on the policy alone.

    Args:
        member: of a group that shares its initial noise; the first draws what every other page and command draws at this seed.
        toward: second seed; all noise then lies `share` of the way to that of this seed, on the sphere.
    """

    prompt: str
    seed: int
    times: tuple[float, ...]  # from 1 down to 0
    sampler: Sampler
    member: int = 0
    toward: int | None = None
    share: float = 0.0

    def noise(self, name: Literal["initial", "step"], step: int = 0) -> tuple[int, int]:
        """The streams of a draw at both ends of the walk, for `seeded_noise`; `image_noise` has hashed the initial ones."""
        ends = (self.seed, self.seed if self.toward is None else self.toward)
        if name == "initial":
            return ends
        own = () if self.member == 0 else (self.member,)
        return tuple(seed_stream("image", end, step, *own) for end in ends)  # type: ignore[return-value]


@dataclass(frozen=True)
class Trajectory:
    """How an image comes about, a picture for every time of its grid: each [steps + 1, 3, H, W] in [0, 1].

    `states` are x_t as they are. `jumps` are where one jump of the map to the data would land, and `means` the average of all
    images that x_t may become, which is what its velocity points to; None where the map was not trained for it.
    """

    times: tuple[float, ...]
    states: Tensor
    jumps: Tensor | None
    means: Tensor | None


def choose_sampler(name: str | None, kind: FlowMapKind, settings: Mapping[str, Any] | None = None) -> Sampler:
    """A kernel with its own defaults, changed by `settings`; without a name the one that evaluations of such a map use.

    Raises: ValueError: lists the names, if there is no such kernel or it asks of the map what it was not trained for; or names
        the setting, the value and the rule.
    """
    if name is None:
        sampler = deployed_sampler(kind)
        return validated(type(sampler), {**sampler.model_dump(), **settings}) if settings else sampler
    if name not in SAMPLERS or kind not in SAMPLERS[name].needs:
        told = f"sampler {name!r} does not fit a {kind} map" if name in SAMPLERS else f"unknown sampler {name!r}"
        raise ValueError(f"{told}; choose from: {', '.join(fitting_samplers(kind))}")
    return validated(SAMPLERS[name], settings or {})


def fitting_samplers(kind: FlowMapKind) -> list[str]:
    """Names of the kernels that ask of a map only what one of this kind was trained for."""
    return [name for name, sampler in SAMPLERS.items() if kind in sampler.needs]


@torch.no_grad()
def draw(generator: Generator, shots: Sequence[Shot]) -> Tensor:
    """Images [N, 3, H, W] in [0, 1], on the CPU; whatever their prompts, times and kernels, they share their forward passes."""
    parts = [shots[start : start + BATCH] for start in range(0, len(shots), BATCH)]
    return torch.cat([generator.decode(_latents(generator, part)[-1]).cpu() for part in parts])


@torch.no_grad()
def trajectory(generator: Generator, shot: Shot) -> Trajectory:
    """An image with all that led to it; its predictions at all times are one more forward pass of each sort."""
    latents = torch.cat(_latents(generator, [shot]))
    x, last = latents[:-1], latents[-1:]
    t = torch.tensor(shot.times[:-1], dtype=torch.float64, device=x.device)
    flow_map = generator.bind(_embed(generator, [shot.prompt] * len(x)))
    sorts: dict[str, Tensor | None] = {"states": latents, "jumps": None, "means": None}
    if flow_map.kind != "velocity":
        sorts["jumps"] = torch.cat([flow_map(x, t, torch.zeros_like(t)), last])
    if flow_map.kind != "single_time":
        sorts["means"] = torch.cat([x - t.to(x).view(-1, *[1] * (x.dim() - 1)) * flow_map.velocity(x, t), last])
    decoded = {name: None if sort is None else generator.decode(sort).cpu() for name, sort in sorts.items()}
    return Trajectory(shot.times, **decoded)  # type: ignore[arg-type]


def between(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Spherical interpolation of noise, which keeps its norm where a straight line would fall short of it.

    Args:
        start, end: [N, ...], of which no two rows are parallel.
        share: [N], 0 gives `start`, 1 gives `end`.
    """
    a, b = start.flatten(1), end.flatten(1)
    angle = torch.arccos((torch.nn.functional.cosine_similarity(a, b)).clamp(-1, 1))[:, None]
    w = share.to(a)[:, None]
    mixed = (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / torch.sin(angle)
    return mixed.view_as(start)


def _latents(generator: Generator, shots: Sequence[Shot]) -> list[Tensor]:
    """x at every time, [N, *latent_shape] each; one whose grid has ended stays at its data."""
    embeddings, shape = _embed(generator, [shot.prompt for shot in shots]), generator.latent_shape
    ends = [shot.noise("initial") for shot in shots]
    start, end = (image_noise(seeds, shape, generator.device) for seeds in zip(*ends, strict=True))
    path = [_walked(shots, start, end)]
    for step in range(max(len(shot.times) for shot in shots) - 1):
        x = path[-1].clone()
        going = [row for row, shot in enumerate(shots) if step < len(shot.times) - 1]
        for rows, transition in _advance(generator, embeddings, path[-1], shots, going, step):
            drawn = [shots[row] for row in rows]
            x[rows] = transition.sample(_step_noise(generator, drawn, step)) if transition.std else transition.mean
        path.append(x)
    return path


def _step_noise(generator: Generator, shots: Sequence[Shot], step: int) -> Tensor:
    streams = [shot.noise("step", step) for shot in shots]
    start, end = (seeded_noise(list(own), generator.latent_shape, generator.device) for own in zip(*streams, strict=True))
    return _walked(shots, start, end)


def _walked(shots: Sequence[Shot], start: Tensor, end: Tensor) -> Tensor:
    """Each row's place on its walk; rows that do not walk stay as they are."""
    rows = [row for row, shot in enumerate(shots) if shot.toward not in (None, shot.seed)]
    if rows:
        start = start.clone()
        start[rows] = between(start[rows], end[rows], torch.tensor([shots[row].share for row in rows]))
    return start


def _embed(generator: Generator, prompts: Sequence[str]) -> Any:
    """Embeddings row for row, each prompt embedded once."""
    place = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    return generator.embed(list(place))[torch.tensor([place[prompt] for prompt in prompts], device=generator.device)]


class _Question(NamedTuple):
    """A call of the flow map that a kernel waits for."""

    jump: bool  # or the velocity at t
    x: Tensor
    t: Time
    s: Time


class _Unanswered(Exception):
    """Carries a kernel's next question out of its step."""

    def __init__(self, question: _Question) -> None:
        self.question = question


@dataclass
class _Replay:
    """A flow map for one kernel: it gives the answers that are there, and stops the kernel at its next question.

    Kernels are pure functions of what the map says. So a step can be run again from its beginning once a question is answered,
    and the questions of many kernels with different settings become one forward pass.
    """

    kind: FlowMapKind
    answers: list[Tensor] = field(default_factory=list)
    place: int = 0

    def __call__(self, x: Tensor, t: Time, s: Time) -> Tensor:
        return self._next(_Question(True, x, t, s))

    def velocity(self, x: Tensor, t: Time) -> Tensor:
        return self._next(_Question(False, x, t, t))

    def _next(self, question: _Question) -> Tensor:
        if self.place == len(self.answers):
            raise _Unanswered(question)
        self.place += 1
        return self.answers[self.place - 1]


def _advance(
    generator: Generator, embeddings: Any, x: Tensor, shots: Sequence[Shot], going: Sequence[int], step: int
) -> Iterator[tuple[list[int], Gaussian]]:
    """The transition of every row that goes on, for each set of rows with the same kernel and times."""

    def key(row: int) -> tuple[Sampler, float, float]:
        return shots[row].sampler, shots[row].times[step], shots[row].times[step + 1]

    order = {name: place for place, name in enumerate(dict.fromkeys(key(row) for row in going))}
    sets = [list(rows) for _, rows in groupby(sorted(going, key=lambda row: order[key(row)]), key)]
    waiting = [(rows, _Replay(generator.kind)) for rows in sets]
    while waiting:
        asked: list[tuple[list[int], _Replay, _Question]] = []
        for rows, replay in waiting:
            sampler, t, s = key(rows[0])
            replay.place = 0
            try:
                transition = sampler.step(replay, x[rows], t, s)
            except _Unanswered as unanswered:
                asked.append((rows, replay, unanswered.question))
            else:
                yield rows, transition
        for jump in (True, False):
            alike = [item for item in asked if item[2].jump == jump]
            if alike:
                rows = [row for own, _, _ in alike for row in own]
                flow_map = generator.bind(embeddings[torch.tensor(rows, device=generator.device)])
                answers = _answer(flow_map, [question for _, _, question in alike])
                for (_, replay, _), answer in zip(alike, answers, strict=True):
                    replay.answers.append(answer)
        waiting = [(rows, replay) for rows, replay, _ in asked]


def _answer(flow_map: FlowMap, questions: Sequence[_Question]) -> Sequence[Tensor]:
    """One forward pass for questions of one sort. Times that all agree stay numbers, as in every other sampler's calls."""
    x, sizes = torch.cat([question.x for question in questions]), [len(question.x) for question in questions]
    times = [(question.t, question.s) for question in questions]
    if len(set(times)) == 1:
        t, s = times[0]
    else:
        rows = torch.tensor(times, dtype=torch.float64).repeat_interleave(torch.tensor(sizes), 0)
        t, s = rows.to(x.device).unbind(1)
    answer = flow_map(x, t, s) if questions[0].jump else flow_map.velocity(x, t)
    return answer.split(sizes)
