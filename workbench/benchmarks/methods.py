"""Every method of the papers on the embedded models, at equal network evaluations and at equal wall clock, over several seeds."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from workbench.benchmarks.base import as_figures, draw, fresh_sample, measure_images
from workbench.benchmarks.counting import counted
from workbench.config import RunConfig, configure
from workbench.evaluate import HeldOut, load_policy
from workbench.events import CheckpointReady, Controls, IterationDone
from workbench.learner import Learner
from workbench.models.policy import Policy
from workbench.train import make_accelerator, train

FRACTIONS = (0.25, 0.5, 0.75)
"""Of the budget of network evaluations, at which a run is measured on its way."""

_BRANCH: Mapping[str, Any] = {"rollout.mode": "branch"}
_ALL: Mapping[str, Any] = {"rollout.mode": "all", "grpo.groups": 12, "optimizer.learning_rate": 1.5e-4}
_SAMPLES: Mapping[str, Any] = {"rollout.mode": "all", "sampler.name": "ode", "grpo.groups": 16, "optimizer.learning_rate": 8e-4}


def _kernel(name: str, **settings: Any) -> dict[str, Any]:
    return {"sampler.name": name, **{f"sampler.{key}": value for key, value in settings.items()}}


def _objective(name: str, **settings: Any) -> dict[str, Any]:
    return {**_SAMPLES, "objective.name": name, **{f"objective.{key}": value for key, value in settings.items()}}


TWO_TIME: Mapping[str, Mapping[str, Any]] = {
    "asfmc, branching": _BRANCH,
    "asfmc, branching, one jump": {**_BRANCH, "rollout.completion": "jump"},
    "asfmc, branching at every step": {  # TempFlow-GRPO, its children completed in one jump
        **_BRANCH,
        "rollout.branch_at": "every",
        "rollout.completion": "jump",
        "objective.step_weights": "noise",
        "grpo.groups": 24,
    },
    "asfmc, tree": {"rollout.mode": "tree", "grpo.groups": 32},
    "asfmc, every step": _ALL,
    "asfmc, every step, GRPO-Guard": {
        **_ALL,
        "objective.ratio_norm": True,
        "objective.step_weights": "balanced",
        "objective.clip_range": 4e-6,
    },
    "asfmc_local, every step": {**_ALL, **_kernel("asfmc_local")},
    "flow_sde, branching": {**_BRANCH, **_kernel("flow_sde")},
    "flow_sde, every step (Flow-GRPO)": {**_ALL, **_kernel("flow_sde")},
    "flow_sde, sliding window (MixGRPO)": {**_ALL, **_kernel("flow_sde"), "rollout.mode": "window"},
    "dance_sde, every step (DanceGRPO)": {**_ALL, **_kernel("dance_sde"), "rollout.shared_noise": True},
    "precise, branching": {**_BRANCH, **_kernel("precise")},
    "precise, every step": {**_ALL, **_kernel("precise")},
    "cps, branching": {**_BRANCH, **_kernel("cps")},
    "cps, every step": {**_ALL, **_kernel("cps")},
}
"""Samplers and ways of giving credit for a two-time map: settings beside the suite's preset."""

OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "nft": _objective("nft", interval_share=0),
    "awm": _objective("awm", interval_share=0),
    "reward_weighted": _objective("reward_weighted", interval_share=0),
    "dpo": {**_objective("dpo", interval_share=0), "grpo.groups": 32},
}
"""Objectives that need no likelihood, on samples of the deterministic map."""

SINGLE_TIME: Mapping[str, Mapping[str, Any]] = {
    "asfmc_endpoint, every step (Flow-Map GRPO)": _ALL,
    "asfmc_endpoint, branching, one jump": {**_BRANCH, "rollout.completion": "jump"},
    "ddim_mix, every step": {**_ALL, **_kernel("ddim_mix")},
}

VELOCITY: Mapping[str, Mapping[str, Any]] = {
    "flow_sde, every step (Flow-GRPO)": _ALL,
    "flow_sde, branching": _BRANCH,
    "precise, every step": {**_ALL, **_kernel("precise")},
    "cps, every step": {**_ALL, **_kernel("cps")},
}

WORDS: Mapping[str, Mapping[str, Any]] = {
    name: TWO_TIME[name] for name in ("asfmc, branching", "asfmc, every step", "flow_sde, branching", "precise, branching")
}


@dataclass(frozen=True)
class Suite:
    """One model and reward, and the methods that are compared on it."""

    preset: str
    methods: Mapping[str, Mapping[str, Any]]
    evaluations: int  # budget of network evaluations, in forward passes of one image
    seconds: float  # budget of wall clock, on one thread
    main: str  # the held-out figure that is compared


SUITES: dict[str, Suite] = {
    "shapes": Suite("shapes", {**TWO_TIME, **OBJECTIVES}, 80_000, 32.0, "shapes_exact"),
    "shapes_cm": Suite("shapes_cm", SINGLE_TIME, 80_000, 32.0, "shapes_exact"),
    "shapes_fm": Suite("shapes_fm", VELOCITY, 120_000, 48.0, "shapes_exact"),
    "glyphs": Suite("glyphs", WORDS, 80_000, 48.0, "glyphs_exact"),
    "preference": Suite("glyphs_preference", WORDS, 80_000, 48.0, "glyphs_preference"),
}
"""What is compared, by name."""


@dataclass
class _Run:
    """One training run being watched."""

    config: RunConfig
    suite: Suite
    began: float = 0.0
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    marks: dict[str, dict[str, float]] = field(default_factory=dict)


def bench_methods(
    suites: Sequence[str] = tuple(SUITES),
    seeds: Sequence[int] = (0, 1, 2),
    only: Sequence[str] = (),
    evaluations: int | None = None,
    seconds: float | None = None,
    jobs: int = 2,
    prompts: int = 128,
    per_prompt: int = 4,
    steps: Sequence[int] = (1, 2, 4, 8),
    record: str = "",
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Held-out figures of every method before training, at equal network evaluations and at equal wall clock.

    Each run is a process of its own with one thread; `jobs` of them run side by side. The clock and the count begin after the
    base's evaluation and the preflight, and a run goes on until both budgets are spent; the weights measured are the averaged
    ones after the last iteration within the budget. The learning rate stays constant, so that no method's schedule fits a
    budget better.

    Args:
        only: methods to run; empty for all.
        evaluations: instead of the suite's budget: forward passes of one image, a backward pass counting two.
        seconds: instead of the suite's.
        prompts, per_prompt: held-out prompts and images of each, with noise that no run has seen.
        steps: of the deterministic sampler.
        record: a file to which every run is added as a line of JSON when it ends, and whose runs are not made again.
    """
    told = [json.loads(line) for line in Path(record).read_text().splitlines()] if record and Path(record).exists() else []
    rows = [row for row in told if row["suite"] in suites and row["seed"] in seeds and (not only or row["method"] in only)]
    made = {(row["suite"], row["method"], row["seed"]) for row in rows}
    wanted = [
        {
            "suite": suite, "method": method, "seed": seed, "prompts": prompts, "per_prompt": per_prompt, "steps": list(steps),
            "evaluations": evaluations or SUITES[suite].evaluations, "seconds": seconds or SUITES[suite].seconds,
        }
        for suite in suites
        for seed in seeds
        for method in SUITES[suite].methods
        if (not only or method in only) and (suite, method, seed) not in made
    ]
    total = len(rows) + len(wanted)
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(_in_a_process, wanted):
            rows.append(row)
            if record:
                with open(record, "a") as file:
                    file.write(json.dumps(row) + "\n")
            if progress is not None:
                progress(f"methods: {len(rows)} of {total}: {row['suite']}, {row['method']}, seed {row['seed']}")
    return {
        "threads_per_run": 1,
        "side_by_side": jobs,
        "suites": {suite: _summary(suite, rows, prompts, per_prompt) for suite in suites},
        "runs": rows,
    }


def table(
    suite: Mapping[str, Any], label: str = "equal evaluations", steps: Sequence[int] = (1, 2, 4, 8)
) -> list[dict[str, Any]]:
    """One row a method, the base first and then the best first: its held-out figures, what it cost, and its intervals over seeds.

    Args:
        suite: of the figures of `bench_methods`.
        label: "equal evaluations" or "equal seconds".
    """
    main, own = suite["main"], str(suite["sampling_steps"])
    found = {name: entry[label] for name, entry in suite["methods"].items() if label in entry}
    order = sorted(found, key=lambda name: -found[name]["steps"][own][main]["value"])
    costs = {"iterations": "iteration", "evaluations": "evaluations", "seconds": "seconds"}

    def row(name: str, figures: Mapping[str, Any], cost: Mapping[str, float]) -> dict[str, Any]:
        at = figures[own]
        others = {key: at[key]["value"] for key in at if key not in (main, "saturation")}
        by_steps = {f"{main}, {count} steps": figures[str(count)][main]["value"] for count in steps if str(count) in figures}
        interval = {main: at[main]["value"], "low": at[main]["low"], "high": at[main]["high"]}
        return {"method": name, **interval, **by_steps, **others, **{told: cost.get(key, 0.0) for told, key in costs.items()}}

    return [row("base", suite["base"], {}), *(row(name, found[name]["steps"], found[name]) for name in order)]


def run_method(
    suite: str,
    method: str,
    seed: int,
    *,
    evaluations: int,
    seconds: float,
    prompts: int = 128,
    per_prompt: int = 4,
    steps: Sequence[int] = (1, 2, 4, 8),
) -> dict[str, Any]:
    """Train one method with one seed until both budgets are spent, then measure it; see `bench_methods`."""
    chosen = SUITES[suite]
    config = method_config(chosen, method, seed)
    run = _Run(config, chosen)
    learner = Learner(config, make_accelerator(config))
    frozen = learner.policy.frozen
    error = None
    with counted(learner.policy.generator.network, frozen) as spent:
        controls = Controls()
        try:
            for event in train(config, controls=controls, learner=learner):
                if isinstance(event, CheckpointReady) and not run.began:
                    spent.reset()
                    run.began = time.perf_counter()
                elif isinstance(event, IterationDone):
                    _note(run, event, learner, spent.total, evaluations, seconds)
                    controls.stop = spent.total >= evaluations and time.perf_counter() - run.began >= seconds
        except FloatingPointError as stopped:
            error = str(stopped)
    sample = fresh_sample(config, prompts, per_prompt)
    own_steps = config.sampling_steps
    found: dict[str, Any] = {}
    for label, weights in run.weights.items():
        policy = load_policy(config, CheckpointReady(0, {"ema": weights}, {}))
        counts = sorted({*steps, own_steps}) if label in ("equal evaluations", "equal seconds") else [own_steps]
        found[label] = run.marks[label] | {"steps": _figures(policy, sample, config, counts)}
    return {"suite": suite, "method": method, "seed": seed, "config": config.model_dump(mode="json"), "error": error, "at": found}


def method_config(suite: Suite, method: str, seed: int) -> RunConfig:
    """The configuration of one run: the suite's preset, the method's own settings, and a schedule that knows no end."""
    quiet = {
        "iterations": 1_000_000, "optimizer.final_share": 1.0, "evaluation.every": 1_000_000, "evaluation.final_images": 16,
        "evaluation.images": 16, "evaluation.steps": [4], "record.checkpoint_every": 1_000_000, "record.groups_shown": 0,
        "compute.threads": 1, "seed": seed,
    }
    return configure(suite.preset, {**suite.methods[method], **quiet})


def _note(run: _Run, event: IterationDone, learner: Learner, spent: int, evaluations: int, seconds: float) -> None:
    """Keep the averaged weights of the last iteration within each budget, and at each fraction of the first."""
    elapsed = time.perf_counter() - run.began
    mark = {"iteration": event.iteration, "evaluations": spent, "seconds": elapsed}
    labels = [f"{fraction:.0%} of the evaluations" for fraction in FRACTIONS if spent <= fraction * evaluations]
    labels += ["equal evaluations"] * (spent <= evaluations) + ["equal seconds"] * (elapsed <= seconds)
    copy = {name: tensor.clone() for name, tensor in learner.average.average.items()} if labels else {}
    for label in labels:
        run.weights[label], run.marks[label] = copy, mark


def _in_a_process(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """One run in a fresh interpreter, with one thread of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(wanted)], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{wanted['suite']}, {wanted['method']}, seed {wanted['seed']} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _summary(suite: str, rows: Sequence[Mapping[str, Any]], prompts: int, per_prompt: int) -> dict[str, Any]:
    """For each method the means over seeds with 95 % Student intervals, and the base beside them."""
    chosen = SUITES[suite]
    methods: dict[str, Any] = {}
    for name in chosen.methods:
        own = [row for row in rows if (row["suite"], row["method"]) == (suite, name)]
        if own:
            labels = [label for label in own[0]["at"] if all(label in row["at"] for row in own)]
            methods[name] = {label: _over_seeds([row["at"][label] for row in own]) for label in labels}
            methods[name]["failed"] = [row["error"] for row in own if row["error"]]
    config = method_config(chosen, next(iter(chosen.methods)), 0)
    sample, policy = fresh_sample(config, prompts, per_prompt), load_policy(config)
    base = _figures(policy, sample, config, sorted({1, 2, 4, 8, config.sampling_steps}))
    return {"main": chosen.main, "sampling_steps": config.sampling_steps, "base": base, "methods": methods}


def _figures(policy: Policy, sample: HeldOut, config: RunConfig, counts: Sequence[int]) -> dict[str, Any]:
    """Held-out figures by number of steps."""
    drawn = {count: draw(policy, sample, config, count) for count in counts}
    return {str(count): as_figures(measure_images(images, sample, config)) for count, images in drawn.items()}


def _over_seeds(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    costs = {key: statistics.fmean(entry[key] for entry in found) for key in ("iteration", "evaluations", "seconds")}
    measured = {
        count: {name: _interval([entry["steps"][count][name]["value"] for entry in found]) for name in figures}
        for count, figures in found[0]["steps"].items()
    }
    return costs | {"steps": measured}


def _interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean of the seeds' values, its 95 % Student interval, and the values themselves."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"value": mean, "low": mean, "high": mean, "seeds": list(values)}
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return {"value": mean, "low": mean - half, "high": mean + half, "seeds": list(values)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = json.loads(sys.argv[1])
    print(json.dumps(run_method(asked.pop("suite"), asked.pop("method"), asked.pop("seed"), **asked)))
