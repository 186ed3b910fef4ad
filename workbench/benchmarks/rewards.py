"""What scoring beside the drawing saves where a reward is slow: seconds of rollout and reward, at once and portion by portion."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Stream
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.config import configure
from workbench.contracts import Reward
from workbench.events import Event, IterationDone, Progress
from workbench.learner import Learner
from workbench.places import REWARDS
from workbench.rewards.function import Function
from workbench.rewards.remote import Remote
from workbench.scoring import Rewards, Scores
from workbench.settings import RunConfig, WeightedReward
from workbench.train import make_accelerator, train

SLOW = """
import os, time

def slow(images, prompts):
    time.sleep(float(os.environ["SLOW_SECONDS"]) * len(prompts))
    return images.mean((1, 2, 3))
"""
"""A reward that takes its time without needing the processor, as one on another device or machine does."""

ENDLESS = 200  # iterations; every prompt of all of them is read beforehand
STRUCTURES: dict[str, dict[str, Any]] = {
    "branch": {"rollout.branch_at": "chosen", "rollout.chosen_steps": (0,)},  # children are finished portion by portion
    "trajectories": {"rollout.mode": "all"},  # every step but the last is taken by the whole batch first
}


def bench_rewards(
    pairs: int = 8,
    kinds: Sequence[str] = ("function", "remote"),
    structures: Sequence[str] = tuple(STRUCTURES),
    changes: dict[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Rollout and reward of one iteration, with a reward as slow as the rollout, in this process and behind `serve-reward`.

    `at_once` scores the batch when all of it is drawn, `beside` while it is drawn; both alternate in one process, and the
    figures are medians. `saved` is the share of the seconds of rollout and reward together; at most about half could be.

    Args:
        kinds: function, in this process; remote, asked of another.
        structures: how rollouts are drawn.
    """
    say = progress or (lambda text: None)
    rewards: dict[str, Reward] = {"function": Function(function="slow.py:slow"), "remote": Remote(concurrency=1)}
    figures: dict[str, Any] = {"pairs": pairs, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder, _environment({REWARDS: folder, "SLOW_SECONDS": "0"}):
        (Path(folder) / "slow.py").write_text(SLOW)
        for structure in structures:
            settings = STRUCTURES[structure]
            drawing = _measured(_config(rewards["function"], settings | (changes or {})), 2, (False,))
            images = drawing["images"]
            os.environ["SLOW_SECONDS"] = str(drawing["at_once"]["rollout_seconds"] / images)
            figures[structure] = {"images": images, "reward_milliseconds_per_image": 1000 * float(os.environ["SLOW_SECONDS"])}
            for name in kinds:
                with _server() if name == "remote" else nullcontext() as address:
                    reward = rewards[name].model_copy(update={"addresses": (address,)} if address else {})
                    found = _measured(_config(reward, settings | (changes or {})), pairs, (False, True))
                figures[structure][name] = {way: found[way] for way in ("at_once", "beside", "saved")}
                say(f"rewards: {structure}, {name} measured")
            os.environ["SLOW_SECONDS"] = "0"
    return figures


class _AtOnce(Scores):
    """A batch that is scored when all of it is drawn, by whoever drew it."""

    def __init__(self, rewards: Rewards) -> None:
        self.rewards, self.images, self.prompts = rewards, list[Tensor](), list[str]()

    def add(self, images: Tensor, prompts: Sequence[str]) -> None:
        self.images.append(images)
        self.prompts.extend(prompts)

    def collect(self) -> Stream[Progress, None, dict[str, Tensor]]:
        yield from ()
        return self.rewards.score(torch.cat(self.images), self.prompts)


def _config(reward: Reward, settings: dict[str, Any]) -> RunConfig:
    quiet: dict[str, Any] = {
        "iterations": ENDLESS,
        "evaluation.every": ENDLESS,
        "evaluation.images": 8,
        "evaluation.final_images": 8,
    }
    quiet |= {"evaluation.steps": (4,)}
    quiet |= {"record.checkpoint_every": ENDLESS, "guard.collapse": 0}
    quiet |= {"grpo.groups": 16, "compute.sample_batch": 16}
    config = configure("shapes", quiet | settings)
    return config.model_copy(update={"rewards": (WeightedReward(reward=reward),)})


def _measured(config: RunConfig, pairs: int, ways: tuple[bool, ...]) -> dict[str, Any]:
    """Median seconds of rollout and reward, each way; the first pair warms up."""
    learner = Learner(config, make_accelerator(config))
    beside = learner.rewards.begin
    seconds: dict[str, dict[str, list[float]]] = {}
    events = train(config, learner=learner)
    images = 0
    for pair in range(pairs + 1):
        for way in ways:
            learner.rewards.begin = beside if way else lambda: _AtOnce(learner.rewards)  # type: ignore[method-assign]
            done = _next_iteration(events)
            images = config.grpo.groups * config.grpo.group_size
            for name in ("rollout_seconds", "reward_seconds") if pair else ():
                found = seconds.setdefault("beside" if way else "at_once", {})
                found.setdefault(name, []).append(done.metrics[name])
    events.close()  # type: ignore[attr-defined]
    figures: dict[str, Any] = {
        way: {name: statistics.median(each) for name, each in found.items()} for way, found in seconds.items()
    }
    if len(ways) == 2:
        before, after = ([sum(both) for both in zip(*seconds[way].values(), strict=True)] for way in ("at_once", "beside"))
        figures["saved"] = statistics.median(1 - late / early for early, late in zip(before, after, strict=True))
    return {"images": images, **figures}


def _next_iteration(events: Iterator[Event]) -> IterationDone:
    return next(event for event in events if isinstance(event, IterationDone))


@contextmanager
def _server() -> Iterator[str]:
    """The slow reward in a process of its own; its address."""
    command = [sys.executable, "-m", "workbench", "serve-reward", "function", "--set", "function=slow.py:slow"]
    with subprocess.Popen([*command, "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["address"]
        finally:
            process.terminate()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
