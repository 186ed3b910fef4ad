"""What the framework costs: one training iteration against the bare passes through the networks that it cannot do without."""

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from workbench.benchmarks.serving import CHROMIUM_FLAGS, ROOT, chromium, serving
from workbench.config import RunConfig, configure
from workbench.events import CheckpointReady, Event, IterationDone
from workbench.jobs import Job
from workbench.lesson import portions
from workbench.models.policy import Policy
from workbench.samplers.ode import deterministic_step
from workbench.store import Store
from workbench.train import train

ENDLESS = 1_000_000  # iterations


@dataclass
class Timings:
    """Seconds of each measured pair: an iteration and the bare work that it holds."""

    iteration: list[float] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)  # scoring inside the iteration
    bare: list[float] = field(default_factory=list)  # network passes and decoding
    bare_reward: list[float] = field(default_factory=list)  # scoring with nothing around it
    parts: dict[str, list[float]] = field(default_factory=dict)  # as the iteration reports them


class Bare:
    """The passes of one branching iteration, on a network of its own: same batches, no log-probabilities, no optimizer."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.policy = Policy(config.model, torch.device("cpu"), adapter=config.adapter.kind)
        self.rewards = [weighted.reward.load(torch.device("cpu")) for weighted in config.rewards]
        self.times = config.times
        groups, size, shape = config.grpo.groups, config.grpo.group_size, self.policy.generator.latent_shape
        prompts = config.task.prompts("train")
        chosen = [prompts[i % len(prompts)] for i in range(groups)]
        self.prompts = [prompt for prompt in chosen for _ in range(size)]
        self.states = self.policy.generator.embed(chosen)
        self.children = self.states.repeat_interleave(size, 0)
        self.start = torch.randn(groups, *shape)
        self.noise = torch.randn(groups * size, *shape)
        self.direction = torch.randn(groups, *shape)  # stands for the gradient that the loss would send back

    def seconds(self, step: int) -> tuple[float, float]:
        """Time of the networks' passes with the stochastic step at `step`, and of the reward."""
        began = time.perf_counter()
        x, images = self._rollout(step)
        self._update(x, step)
        passed = time.perf_counter()
        for reward in self.rewards:
            reward(images, self.prompts)
        scored = time.perf_counter()
        self.policy.generator.network.zero_grad(set_to_none=True)
        return passed - began, scored - passed

    @torch.no_grad()
    def _rollout(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Trunk, shared means, children completed in one jump, pictures."""
        generator, compute, times = self.policy.generator, self.config.compute, self.times
        x, size = self.start, self.config.grpo.group_size
        for t, s in pairwise(times[: step + 1]):
            x = torch.cat([deterministic_step(generator.bind(self.states[p]), x[p], t, s) for p in self._sampled(len(x))])
        transitions = [self._transition(x, p, step) for p in portions(len(x), compute.train_batch)]
        means = torch.cat([transition.mean for transition in transitions])
        final = means.repeat_interleave(size, 0) + transitions[0].std * self.noise
        rest = (times[step + 1], 0.0) if self.config.rollout.completion == "jump" else times[step + 1 :]
        images = []
        for rows in self._sampled(len(final)):
            part, flow_map = final[rows], generator.bind(self.children[rows])
            for t, s in pairwise(rest):
                part = deterministic_step(flow_map, part, t, s)
            images.append(generator.decode(part))
        return x, torch.cat(images)

    def _update(self, x: torch.Tensor, step: int) -> None:
        """A forward and backward pass for each state, and the reference's forward pass where the KL has weight."""
        for rows in portions(len(x), self.config.compute.train_batch):
            if self.config.objective.wants_reference:
                with self.policy.reference():
                    self._transition(x, rows, step)
            self._transition(x, rows, step).mean.backward(self.direction[rows])

    def _transition(self, x: torch.Tensor, rows: slice, step: int) -> Any:
        flow_map = self.policy.generator.bind(self.states[rows])
        return self.config.sampler.step(flow_map, x[rows], self.times[step], self.times[step + 1])

    def _sampled(self, count: int) -> list[slice]:
        return portions(count, self.config.compute.sample_batch)


def bench_overhead(
    pairs: int = 40, changes: Mapping[str, Any] | None = None, page: bool = True, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Wall time of an iteration over the bare passes it holds: plain loop, with the store, with a live page in a browser.

    Pairs of an iteration and its bare work alternate in one process, so that a change of the machine's speed strikes both;
    ratios are medians over pairs. "networks" counts only the networks' passes as needed, "networks_and_reward" the scoring of
    the images too, the iteration's own scoring left out of the first. Evaluations and checkpoints lie between iterations; what
    a checkpoint adds is told apart.
    """
    quiet = {"iterations": ENDLESS, "evaluation.every": ENDLESS, "evaluation.final_images": 8, "evaluation.steps": (4,)}
    config = configure("shapes", {**quiet, **(changes or {})})
    bare = Bare(config)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        alone = _measure(train(config), bare, pairs)
        _say(progress, "overhead: plain loop measured")
        recorded, checkpoints = _measure_recorded(store, config, bare, pairs)
        _say(progress, "overhead: with the store measured")
        watched = None
        if page and (ROOT / "app.py").is_file() and find_spec("playwright") is not None:
            watched, _ = _measure_recorded(store, config, bare, pairs, page=True)
            _say(progress, "overhead: with a live page measured")
        store.close()
    every = config.record.checkpoint_every
    return {
        "pairs": pairs,
        "threads": torch.get_num_threads(),
        "alone": _summary(alone),
        "with_store": _summary(recorded) | _with_checkpoints(recorded, checkpoints, every),
        "with_store_and_page": None if watched is None else _summary(watched) | _against(watched, alone),
    }


def _measure(events: Iterator[Event | None], bare: Bare, pairs: int) -> Timings:
    """Alternate iterations and bare work; the first three pairs warm up and are not kept."""
    timings = Timings()
    for event in events:
        if isinstance(event, CheckpointReady) and event.iteration == 0:
            break
    for index in range(pairs + 3):
        seconds, done = _one_iteration(events)
        passes, scoring = bare.seconds(int(done.metrics["branch_step"]))
        if index < 3:
            continue
        timings.iteration.append(seconds)
        timings.reward.append(done.metrics["reward_seconds"])
        timings.bare.append(passes)
        timings.bare_reward.append(scoring)
        for name in ("rollout_seconds", "reward_seconds", "update_seconds"):
            timings.parts.setdefault(name, []).append(done.metrics[name])
    return timings


def _one_iteration(events: Iterator[Event | None]) -> tuple[float, IterationDone]:
    """Seconds until the next update is finished, without a checkpoint that comes first."""
    began = time.perf_counter()
    for event in events:
        if isinstance(event, CheckpointReady):
            began = time.perf_counter()
        if isinstance(event, IterationDone):
            return time.perf_counter() - began, event
    raise RuntimeError("the run ended before it was measured")


def _measure_recorded(
    store: Store, config: RunConfig, bare: Bare, pairs: int, page: bool = False
) -> tuple[Timings, list[float]]:
    """The same through a job that records every event, watched by a page if wanted; also the seconds of each checkpoint."""
    run = store.create("train", config.model_dump(mode="json"), title=config.title, origin="bench")
    job = Job(store, run, lambda resume, controls: train(config, resume=resume, controls=controls))
    checkpoints: list[float] = []
    with _live_page(store.location, run) if page else nullcontext() as seen:
        timings = _measure(_drive(job, checkpoints), bare, pairs)
        if seen is not None and seen() < pairs:
            raise RuntimeError(f"the page did not follow the run: it shows iteration {seen()} of {pairs} and more")
    job.ask("stop")
    while not job.over:
        job.advance()
    return timings, checkpoints


def _drive(job: Job, checkpoints: list[float]) -> Iterator[Event | None]:
    """The job's events until it is over. Raises: RuntimeError: if the run failed."""
    while not job.over:
        began = time.perf_counter()
        event = job.advance()
        if isinstance(event, CheckpointReady):
            checkpoints.append(time.perf_counter() - began)
        yield event
    raise RuntimeError(f"the measured run ended early: {job.error}")


@contextmanager
def _live_page(folder: Path, run: str) -> Iterator[Callable[[], int]]:
    """The dashboard in a process of its own, open on a run in a browser; yields what tells the iteration that it shows."""
    from playwright.sync_api import sync_playwright

    with serving(folder) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_FLAGS))
        page = browser.new_page()
        page.goto(f"{url}?run={run}")
        fact = page.locator('[data-fact="iteration"]')
        yield lambda: max(int(number) for number in ["-1", *re.findall("^[0-9]+", fact.inner_text())])


def _summary(timings: Timings) -> dict[str, Any]:
    """Median ratios over the pairs, and median seconds of each part."""
    together = zip(timings.iteration, timings.reward, timings.bare, timings.bare_reward, strict=True)
    ratios = [(whole / (bare + scoring), (whole - reward) / bare) for whole, reward, bare, scoring in together]
    return {
        "ratio_networks_and_reward": statistics.median(first for first, _ in ratios),
        "ratio_networks": statistics.median(second for _, second in ratios),
        "iteration_seconds": statistics.median(timings.iteration),
        "bare_networks_seconds": statistics.median(timings.bare),
        "bare_reward_seconds": statistics.median(timings.bare_reward),
        **{name: statistics.median(values) for name, values in timings.parts.items()},
    }


def _with_checkpoints(timings: Timings, checkpoints: list[float], every: int) -> dict[str, float | None]:
    """What saving adds when its cost is spread over the iterations between two checkpoints."""
    if not checkpoints:
        return {"checkpoint_seconds": None, "checkpoints_add": None}
    seconds = statistics.median(checkpoints)
    needed = statistics.median(timings.bare) + statistics.median(timings.bare_reward)
    return {"checkpoint_seconds": seconds, "checkpoints_add": seconds / every / needed}


def _against(watched: Timings, alone: Timings) -> dict[str, float]:
    """Iterations with the page open against bare work that nothing disturbed."""
    needed = statistics.median(alone.bare) + statistics.median(alone.bare_reward)
    return {"ratio_to_undisturbed": statistics.median(watched.iteration) / needed}


def _say(progress: Callable[[str], None] | None, sentence: str) -> None:
    if progress is not None:
        progress(sentence)
