"""How far alignment gets in 90 and 180 seconds of wall time, on prompts and noise that training never saw."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.benchmarks.base import as_figures, draw, fresh_sample, measure_images
from workbench.config import RunConfig, configure
from workbench.evaluate import HeldOut, load_policy
from workbench.events import CheckpointReady, Controls, Evaluated, Event, IterationDone, Measure
from workbench.health import verdicts
from workbench.history import History
from workbench.jobs import Job
from workbench.store import Store

OTHERS = ("shapes_jump", "shapes_all_steps", "shapes_flow_sde", "shapes_hacked")
"""Run once each, beside the preset that is promised."""

CLOSE_SECONDS = 4.0  # before a budget ends, from when on every iteration is saved


@dataclass
class Trace:
    """What is kept of a run while it goes on."""

    began: float  # time.perf_counter(), moved back by what starting the command costs
    iteration: int = 0
    seconds: float = 0.0  # when the last iteration had ended
    curve: list[dict[str, float]] = field(default_factory=list)  # the run's own evaluations
    weights: dict[float, tuple[int, float, dict[str, Tensor]]] = field(default_factory=dict)
    """By budget: iteration, seconds, averaged weights."""

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began


def bench_align(
    seeds: Sequence[int] = (0, 1, 2),
    budgets: Sequence[float] = (90.0, 180.0),
    preset: str = "shapes",
    others: Sequence[str] = OTHERS,
    prompts: int = 512,
    per_prompt: int = 4,
    changes: Mapping[str, Any] | None = None,
    start_seconds: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Held-out exact match of averaged weights within wall-clock budgets: `preset` with each seed, `others` with the first.

    Each run is the preset's own; one that finishes before a budget ends is measured as it finished.

    The clock runs over everything that the command does: imports, loading, the base's evaluation, preflight, recording, the
    evaluations on the way. Weights are those of the last iteration that ended within the budget. The figures are measured
    afterwards: deterministic sampler, fresh noise, 95 % intervals over prompts.

    Args:
        budgets: seconds, ascending.
        changes: dotted settings for all runs, as `configure` takes them.
        start_seconds: what the clock shows when a run begins; measured in a fresh interpreter where not given.
    """
    config = configure(preset, changes)
    sample = fresh_sample(config, prompts, per_prompt)
    base = measure_images(draw(load_policy(config), sample, config, config.rollout.steps), sample, config)
    start_seconds = _start_seconds() if start_seconds is None else start_seconds
    runs: dict[str, dict[str, Any]] = {}
    for name, seed in [(preset, seed) for seed in seeds] + [(other, seeds[0]) for other in others]:
        own = configure(name, {**(changes or {}), "seed": seed})
        label = f"{name}, seed {seed}"
        runs[label] = _run(own, budgets, sample, base, start_seconds)
        if progress is not None:
            progress(f"align: {label} done after {runs[label]['iterations']} iterations")
    promised = [runs[f"{preset}, seed {seed}"] for seed in seeds]
    return {
        "held_out_prompts": prompts,
        "images": len(sample.prompts),
        "steps": config.rollout.steps,
        "threads": torch.get_num_threads(),
        "start_seconds": start_seconds,
        "base": as_figures(base),
        "median": {f"{budget:g} s": _median(promised, f"{budget:g} s") for budget in budgets},
        "runs": runs,
    }


def _run(
    config: RunConfig, budgets: Sequence[float], sample: HeldOut, base: Mapping[str, Measure], start_seconds: float
) -> dict[str, Any]:
    """Train until the last budget ends, through a job and a store as the command does; then measure."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        run = store.create("train", config.model_dump(mode="json"), title=config.title, origin="bench")
        trace = Trace(time.perf_counter() - start_seconds)
        job = Job(store, run, lambda resume, controls: _start(config, resume, controls))
        while not job.over:
            event = job.advance()
            _note(trace, event, budgets)
            if trace.elapsed > budgets[-1]:
                job.ask("stop")
            elif isinstance(event, IterationDone) and _is_close(trace, budgets):
                job.ask("save")
        history = History().extended(store.events(run))
        told = verdicts(history, config.model_dump(mode="json"), store.run(run).status, job.error)
        store.close()
    return {
        "iterations": trace.iteration,
        "error": job.error,
        "at": {f"{budget:g} s": _figures(config, trace.weights[budget], sample, base) for budget in trace.weights},
        "curve": trace.curve,
        "verdicts": {verdict.title: verdict.sentence for verdict in told},
        "hacking_suspected": any("hacking" in verdict.title.lower() for verdict in told),
    }


def _start(config: RunConfig, resume: CheckpointReady | None, controls: Controls) -> Any:
    from workbench.train import train

    return train(config, resume=resume, controls=controls)


def _note(trace: Trace, event: Event | None, budgets: Sequence[float]) -> None:
    """Follow the run: curve, time, and the average's weights for each budget that the iteration still kept."""
    if isinstance(event, IterationDone):
        trace.iteration, trace.seconds = event.iteration, trace.elapsed
    elif isinstance(event, Evaluated):
        exact = {steps: values["shapes_exact"].value for steps, values in event.measures.items() if "shapes_exact" in values}
        point = {f"exact@{steps}": value for steps, value in exact.items()}
        trace.curve.append({"iteration": event.iteration, "seconds": trace.elapsed, **point})
    elif isinstance(event, CheckpointReady) and event.iteration:
        copy = {name: tensor.clone() for name, tensor in event.tensors["ema"].items()}
        trace.weights |= {budget: (event.iteration, trace.seconds, copy) for budget in budgets if trace.seconds <= budget}


def _is_close(trace: Trace, budgets: Sequence[float]) -> bool:
    """Whether a budget ends soon, so that this iteration may be the last within it."""
    return any(0 <= budget - trace.seconds <= CLOSE_SECONDS for budget in budgets)


def _figures(
    config: RunConfig, weights: tuple[int, float, dict[str, Tensor]], sample: HeldOut, base: Mapping[str, Measure]
) -> dict[str, Any]:
    """The figures of averaged weights, with their distance from the base's."""
    iteration, seconds, average = weights
    policy = load_policy(config, CheckpointReady(iteration, {"ema": average}, {}))
    measures = measure_images(draw(policy, sample, config, config.rollout.steps), sample, config)
    return {
        "iteration": iteration,
        "seconds": seconds,
        "gain": measures["shapes_exact"].value - base["shapes_exact"].value,
        "palette_distance_ratio": measures["palette_distance"].value / base["palette_distance"].value,
        "layouts_ratio": measures["layouts"].value / base["layouts"].value,
        "diversity_ratio": measures["diversity"].value / base["diversity"].value,
        **as_figures(measures),
    }


def _median(runs: Sequence[Mapping[str, Any]], budget: str) -> dict[str, float | None]:
    """Medians over the seeds; null where a run has nothing to show at that time."""
    names = ("gain", "palette_distance_ratio", "layouts_ratio", "diversity_ratio", "iteration")
    found = [run["at"].get(budget) for run in runs]
    medians: dict[str, float | None] = dict.fromkeys(("exact", *names))
    if all(found):
        medians = {name: statistics.median(figures[name] for figures in found) for name in names}
        medians["exact"] = statistics.median(figures["shapes_exact"]["value"] for figures in found)
    return medians


def _start_seconds() -> float:
    """How long a fresh interpreter takes to load what the command loads before its first event."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import accelerate, workbench.cli.train, workbench.jobs, workbench.train"], check=True)
    return time.perf_counter() - began
