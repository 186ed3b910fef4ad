"""Several processes: two ranks over gloo make the run that one process makes, and none goes on without the other."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_adapters import FAMILIES
from toy_training import keep

from workbench.config import RunConfig, configure
from workbench.events import CheckpointReady, Controls, Evaluated, Event, GroupsScored, IterationDone, Started
from workbench.models.sharding import shard, zero_config
from workbench.ranks import Ranks
from workbench.train import train

# What each rank runs: a run meant for one process, which is refused; runs that fail on one rank; and every case.
RANK = """
import json, os, sys, warnings
from safetensors.torch import save_file
from workbench.config import parse_config
from workbench.events import CheckpointReady, Controls, Evaluated, GroupsScored, IterationDone
from workbench.learner import Learner
from workbench.ranks import Ranks
from workbench.settings import WeightedReward
from workbench.train import make_accelerator, train
from toy_training import Redness, toy

warnings.filterwarnings("ignore", module="pydantic")  # toys are no extensions
cases, folder, rank = json.loads(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])


class Fails(Redness):
    def load(self, device):
        score, asked = super().load(device), []

        def scored(images, prompts):
            asked.append(prompts)
            if rank == 1 and len(asked) == self.at:
                raise OSError("the judge has gone home")
            return score(images, prompts)

        return scored


class FailsInTraining(Fails):
    at: int = 5  # the evaluation asks twice of the reward, the preflight likewise


class FailsInEvaluation(Fails):
    at: int = 1


class FailsInPreflight(Fails):
    at: int = 2  # after one evaluation with one number of steps


class Short(Learner):
    def decode(self, latents):
        if rank == 1 and self.iteration == 1:
            raise MemoryError
        return super().decode(latents)


class ShortInUpdate(Learner):
    def learning_rate(self):
        if rank == 1 and self.iteration == 1:
            self.accelerator.backward = short
        return super().learning_rate()


def short(loss):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")


def failing(config, kind=Learner):
    kinds, error = [], ""
    try:
        for event in train(config, learner=kind(config, make_accelerator(config))):
            kinds.append([type(event).__name__, event.iteration if hasattr(event, "iteration") else 0])
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    return [kinds[-1], error]


def seen(config):
    controls, told = Controls(), {"groups": [], "metrics": [], "measures": []}
    learner = Learner(config, make_accelerator(config))
    weights = learner.policy.generator.network.parameters()
    weights = [getattr(weight, "ds_tensor", getattr(weight, "_local_tensor", weight)) for weight in weights]
    told["held"] = sum(weight.numel() for weight in weights)
    for event in train(config, controls=controls, learner=learner):
        if isinstance(event, GroupsScored):
            told["groups"].append([event.seeds, event.rewards, event.advantages, event.prompts, event.log_probs])
            told["groups"][-1] += [event.groups_shown, event.preview.images.float().mean((1, 2, 3)).tolist()]
        if isinstance(event, IterationDone):
            told["metrics"].append(event.metrics)
            controls.stop = rank == 1 and config.title == "stopped"  # any rank may be asked
        if isinstance(event, Evaluated):
            told["measures"].append({s: {n: m.value for n, m in each.items()} for s, each in event.measures.items()})
        if isinstance(event, CheckpointReady):
            last = event
    tensors = {f"{stem}/{name}": value.clone() for stem, named in last.tensors.items() for name, value in named.items()}
    return told | {"state": last.state}, tensors


report = {}
try:
    next(train(parse_config(cases["shapes"] | {"compute": cases["shapes"]["compute"] | {"processes": 1}})))
except ValueError as error:
    report["refused"] = str(error)
quick = {"grpo__groups": 4, "compute__processes": 2, "compute__device": "cpu"}
report["failing"] = [failing(toy(reward, **quick)) for reward in (FailsInTraining(), FailsInEvaluation())]
report["short"] = [failing(toy(**quick), kind) for kind in (Short, ShortInUpdate)]
rewards = (WeightedReward.model_construct(reward=FailsInPreflight(), weight=1.0),)
report["failing"].append(failing(parse_config(cases["fsdp2"]).model_copy(update={"rewards": rewards})))
report["heard"] = Ranks(rank, 2).exchange({"from": rank, "long": "x" * 1000 * rank})
for name, values in cases.items():
    report[name], tensors = seen(parse_config(values))
    save_file(tensors, f"{folder}/{name}{rank}.safetensors")
json.dump(report, open(f"{folder}/{rank}.json", "w"))
"""

TWO = {"compute.processes": 2, "compute.device": "cpu", "compute.threads": 1}
SHAPES: dict[str, Any] = {
    "iterations": 2,
    "grpo.groups": 4,
    "grpo.group_size": 4,
    "grpo.advantage_std": "global",
    "rollout.steps": 3,
    "evaluation.images": 10,  # in groups of two, which two ranks cannot share evenly
    "evaluation.final_images": 10,
    "evaluation.group_size": 2,
    "evaluation.steps": "[1]",
    "guard.collapse": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "shapes": {},
    "stopped": {"title": "stopped", "iterations": 3},
    "every": {"rollout.branch_at": "every", "grpo.combine": "gdpo", "grpo.epochs": 2},
    "nft": {"objective.name": "nft", "sampler.name": "ode", "rollout.mode": "all"},
}
SHARDED = {"objective__kl_weight": 0.01, "model__gradient_checkpointing": True}
SHARDINGS = ["fsdp2", *(["deepspeed"] if find_spec("deepspeed") else [])]
CASES = [*VARIANTS, *FAMILIES, *SHARDINGS]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of this file's own, so that nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """Runs for two processes."""
    found = {name: configure("shapes", SHAPES | changes | TWO) for name, changes in VARIANTS.items()}
    for name, family in FAMILIES.items():
        folder = family.make(tmp_path_factory.mktemp("models") / name)
        changes = {key.replace(".", "__"): value for key, value in TWO.items()}
        found[name] = family.run(folder, iterations=1, **changes)
        if name == "flux":
            for sharding in SHARDINGS:
                found[sharding] = family.run(folder, iterations=2, compute__sharding=sharding, **changes, **SHARDED)
    return found


@pytest.fixture(scope="module")
def ranks(configs: dict[str, RunConfig], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Both ranks' reports, and the folder with their tensors."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "rank.py"
    script.write_text(RANK)
    values = json.dumps({name: config.model_dump(mode="json") for name, config in configs.items()})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [*launcher, str(script), values, str(folder)], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[:3000] + done.stderr[-1000:]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(configs: dict[str, RunConfig]) -> dict[str, list[Event]]:
    """What one process does."""
    found = {}
    for name, config in configs.items():
        controls, events = Controls(), []
        one = config.model_copy(update={"compute": config.compute.model_copy(update={"processes": 1})})
        for event in train(one, controls=controls):
            events.append(keep(event))
            controls.stop |= name == "stopped" and isinstance(event, IterationDone)
        found[name] = events
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_draw_and_score_what_one_process_would(ranks, alone, case: str) -> None:
    groups = [event for event in alone[case] if isinstance(event, GroupsScored)]
    assert groups
    for report in ranks[1]:
        for event, found in zip(groups, report[case]["groups"], strict=True):
            seeds, rewards, advantages, prompts, log_probs, shown, pictures = found
            assert tuple(seeds) == event.seeds
            assert tuple(prompts) == event.prompts
            assert rewards == pytest.approx(event.rewards, abs=1e-5)
            assert advantages == pytest.approx(event.advantages, abs=1e-3)  # normalised over both ranks' rewards
            for own, whole in zip(log_probs, event.log_probs, strict=True):
                assert [v is None for v in own] == [v is None for v in whole]
                assert [v or 0.0 for v in own] == pytest.approx([v or 0.0 for v in whole], abs=1e-4)
            assert tuple(shown) == event.groups_shown
            assert pictures == pytest.approx(event.preview.images.float().mean((1, 2, 3)).tolist(), abs=0.1)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_make_the_updates_of_one_process(ranks, alone, case: str) -> None:
    """The order of a sum over gradients is all that differs; Adam magnifies it where a gradient is nearly zero."""
    first, *_, last = (event for event in alone[case] if isinstance(event, CheckpointReady))
    found = load_file(ranks[0] / f"{case}0.safetensors")
    for stem, named in last.tensors.items():
        start = first.tensors.get(stem, {})
        moved = torch.cat([(value - start.get(name, torch.zeros(()))).flatten() for name, value in named.items()])
        apart = torch.cat([(found[f"{stem}/{name}"] - value).flatten() for name, value in named.items()])
        assert moved.norm() > 0
        assert apart.norm() < 1e-2 * moved.norm()
        assert apart.abs().median() < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_end_with_the_same_weights_and_figures(ranks, alone, case: str) -> None:
    folder, reports = ranks
    first, second = (load_file(folder / f"{case}{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert reports[0][case]["state"] == reports[1][case]["state"]
    done = [event for event in alone[case] if isinstance(event, IterationDone)]
    for report in reports:
        for event, found in zip(done, report[case]["metrics"], strict=True):
            for name in ("reward", "reward_std", "constant_groups", "loss", "gradient_norm"):
                assert found[name] == pytest.approx(event.metrics[name], rel=1e-2, abs=1e-5), name
            if len(done) == 1 and "ratio_deviation" in found:
                assert found["ratio_deviation"] == 0


@pytest.mark.parametrize("case", CASES)
def test_an_evaluation_is_shared_among_the_ranks_and_says_the_same(ranks, alone, case: str) -> None:
    evaluations = [event for event in alone[case] if isinstance(event, Evaluated)]
    for report in ranks[1]:
        for event, found in zip(evaluations, report[case]["measures"], strict=True):
            for steps, measures in event.measures.items():
                assert found[str(steps)].keys() == measures.keys()
                for name, measure in measures.items():
                    assert found[str(steps)][name] == pytest.approx(measure.value, rel=2e-2, abs=1e-3), (steps, name)


def test_ranks_that_share_the_frozen_weights_keep_half_of_them_and_all_that_is_trained(ranks, alone) -> None:
    trained = next(event for event in alone["flux"] if isinstance(event, Started)).facts["trained_parameters"]
    for report in ranks[1]:
        for sharding in SHARDINGS:
            frozen, own = report["flux"]["held"] - trained, report[sharding]["held"] - trained
            assert frozen / 2 <= own < 0.55 * frozen  # what does not divide is padded
    with pytest.raises(ValueError, match=r"compute\.sharding = 'fsdp2' divides frozen weights, and adapter\.kind = 'full'"):
        configure("shapes", SHAPES | TWO | {"compute.sharding": "fsdp2"})


def test_deepspeed_is_told_the_numbers_of_the_base_and_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(8, 8).bfloat16(), torch.nn.Linear(2, 2))
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    told = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    assert zero_config(network) == told | {"bf16": {"enabled": True}}
    assert zero_config(network.float()) == told
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(ModuleNotFoundError, match=r"pip install flow-map-workbench\[deepspeed\]; or use 'fsdp2'"):
        shard(network, [], torch.device("cpu"), "deepspeed")


def test_a_stop_asked_of_one_rank_stops_both_after_the_same_iteration(ranks) -> None:
    assert [len(report["stopped"]["metrics"]) for report in ranks[1]] == [1, 1]


def test_a_run_for_one_process_refuses_to_start_as_two(ranks) -> None:
    for report in ranks[1]:
        assert report["refused"].startswith("the run expects compute.processes = 1, but 2 started")


def test_a_reward_that_fails_on_one_rank_ends_both_with_a_checkpoint(ranks) -> None:
    (own_training, *others), (training, *their) = ranks[1][0]["failing"], ranks[1][1]["failing"]
    for kind, error in (own_training, training, *others, *their):  # in an evaluation, and between two passes of divided weights
        assert kind[0] == "CheckpointReady"
        assert "RewardFailed" in error
        assert "the judge has gone home" in error
    assert own_training[1].startswith("RewardFailed: process 1 of 2: reward 'redness' raised OSError")
    assert training[1].startswith("RewardFailed: reward 'redness' raised OSError")
    assert own_training[0] == training[0]


def test_memory_that_runs_out_on_one_rank_ends_both_with_a_checkpoint_and_a_remedy(ranks) -> None:
    for report in ranks[1]:
        drawing, updating = report["short"]
        assert drawing[0] == updating[0] == ["CheckpointReady", 1]
        for error, cause in ((drawing[1], "MemoryError"), (updating[1], "CUDA out of memory. Tried to allocate 2 GiB")):
            assert error.startswith(f"OutOfMemory: out of memory in iteration 2 (process 1 of 2: {cause}); go on with train")


def test_what_ranks_tell_each_other_may_be_of_any_length(ranks) -> None:
    for report in ranks[1]:
        assert report["heard"] == [{"from": 0, "long": ""}, {"from": 1, "long": "x" * 1000}]


class _Rank(Ranks):
    """One of three, without the others."""

    def __init__(self, index: int) -> None:
        self.index, self.count = index, 3


def test_work_is_shared_evenly_so_that_no_rank_waits() -> None:
    for count in (1, 4, 5, 7):
        shares = [Ranks().share(count), *(_Rank(index).share(count) for index in range(3))]
        assert shares[0] == list(range(count))
        assert len({len(share) for share in shares[1:]}) == 1
        assert [place for share in shares[1:] for place in share][:count] == list(range(count))

