"""Several processes: two ranks over gloo make the update that one process makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from workbench.config import RunConfig, configure
from workbench.events import CheckpointReady, Controls, GroupsScored, IterationDone
from workbench.train import train

# What each rank runs: it refuses a run meant for one process, then trains and leaves what it saw.
RANK = """
import json, os, sys
from safetensors.torch import save_file
from workbench.config import parse_config
from workbench.events import CheckpointReady, Controls, GroupsScored, IterationDone
from workbench.train import train

values, folder, rank = json.loads(sys.argv[1]), sys.argv[2], os.environ["RANK"]
try:
    next(train(parse_config(values | {"compute": values["compute"] | {"processes": 1}})))
    refused = ""
except ValueError as error:
    refused = str(error)
groups, metrics = [], []
controls = Controls()
for event in train(parse_config(values), controls=controls):
    controls.stop = rank == "0" and len(metrics) >= 1  # only the first rank is asked
    if isinstance(event, GroupsScored):
        groups.append([event.seeds, event.rewards, event.advantages, event.prompts])
    if isinstance(event, IterationDone):
        metrics.append(event.metrics)
    if isinstance(event, CheckpointReady):
        last = event
for stem in ("policy", "ema", "optimizer"):
    save_file({name: value.clone() for name, value in last.tensors[stem].items()}, f"{folder}/{stem}{rank}.safetensors")
json.dump({"refused": refused, "groups": groups, "metrics": metrics, "state": last.state}, open(f"{folder}/{rank}.json", "w"))
"""


def small(processes: int) -> RunConfig:
    return configure(
        "shapes",
        {
            "iterations": 3,  # of which the run is stopped after two
            "grpo.groups": 4,
            "grpo.group_size": 4,
            "grpo.advantage_std": "global",
            "rollout.steps": 3,
            "evaluation.images": 8,
            "evaluation.final_images": 8,
            "evaluation.group_size": 2,
            "evaluation.steps": "[1]",
            "guard.collapse": 0,
            "compute.processes": processes,
            "compute.device": "cpu",
            "compute.threads": 1,
        },
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """Both ranks' reports, and the folder with their tensors."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "rank.py"
    script.write_text(RANK)
    values = json.dumps(small(2).model_dump(mode="json"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*launcher, str(script), values, str(folder)], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> tuple[list[GroupsScored], list[dict[str, float]], CheckpointReady]:
    groups, metrics, last = [], [], None
    controls = Controls()
    for event in train(small(1), controls=controls):
        controls.stop = len(metrics) >= 1
        if isinstance(event, GroupsScored):
            groups.append(event)
        if isinstance(event, IterationDone):
            metrics.append(event.metrics)
        if isinstance(event, CheckpointReady):
            last = event
    assert last is not None
    return groups, metrics, last


def test_two_ranks_draw_and_score_what_one_process_would(ranks, alone) -> None:
    for iteration, event in enumerate(alone[0]):
        halves = [report["groups"][iteration] for report in ranks[1]]
        seeds, rewards, advantages, prompts = ([*first, *second] for first, second in zip(*halves, strict=True))
        assert tuple(seeds) == event.seeds
        assert tuple(prompts) == event.prompts
        assert rewards == pytest.approx(event.rewards, abs=1e-5)
        assert advantages == pytest.approx(event.advantages, abs=1e-3)  # normalised over both ranks' rewards


def test_two_ranks_make_the_update_of_one_process(ranks, alone) -> None:
    folder, _ = ranks
    last = alone[2]
    optimizer = load_file(folder / "optimizer0.safetensors")
    for name, value in last.tensors["optimizer"].items():
        assert torch.allclose(optimizer[name], value, rtol=1e-3, atol=1e-6), name
    base = configure("shapes").model.load(torch.device("cpu")).network.state_dict()
    for stem in ("policy", "ema"):
        found = load_file(folder / f"{stem}0.safetensors")
        moved = torch.cat([(value - base[name]).flatten() for name, value in last.tensors[stem].items()])
        apart = torch.cat([(found[name] - value).flatten() for name, value in last.tensors[stem].items()])
        assert moved.norm() > 0
        assert apart.norm() < 1e-2 * moved.norm()  # Adam magnifies the rounding of gradients that are nearly zero


def test_both_ranks_end_with_the_same_weights_and_figures(ranks, alone) -> None:
    folder, reports = ranks
    for stem in ("policy", "ema", "optimizer"):
        first, second = (load_file(folder / f"{stem}{rank}.safetensors") for rank in range(2))
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert reports[0]["state"] == reports[1]["state"]
    for iteration, metrics in enumerate(alone[1]):
        for report in reports:
            found = report["metrics"][iteration]
            for name in (
                "reward",
                "reward_std",
                "constant_groups",
                "kl",
                "ratio",
                "loss",
                "gradient_norm",
                "reward/shapes_dense",
            ):
                assert found[name] == pytest.approx(metrics[name], rel=1e-2, abs=1e-5), name
            assert found["ratio_deviation"] == 0


def test_a_stop_asked_of_one_rank_stops_both_after_the_same_iteration(ranks, alone) -> None:
    assert [len(report["metrics"]) for report in ranks[1]] == [len(alone[1])] * 2 == [2, 2]


def test_a_run_for_one_process_refuses_to_start_as_two(ranks) -> None:
    for report in ranks[1]:
        assert report["refused"].startswith("the run expects compute.processes = 1, but 2 started")
