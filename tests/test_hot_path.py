"""What would make an accelerator wait for the CPU: it happens a fixed number of times an update, however many portions it has."""

from pathlib import Path

import pytest
import torch
from test_adapters import FAMILIES
from tiny_family import Family
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.learner import Learner
from workbench.rollout import drain, stream_rollout
from workbench.train import make_accelerator
from workbench.update import update_policy


class _Waits(TorchDispatchMode):
    """Counts numbers that are read out of tensors, and numbers of Python that become tensors on the CPU and have to be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default, torch.ops.aten.equal.default)
        self.count += function in waits
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


OWN = [name for name, family in FAMILIES.items() if family.name != "flow_match"]
"""Those that are asked by our own code; a pipeline that is driven by its own call waits where that does."""


@pytest.mark.parametrize("name", OWN)
def test_waits_do_not_grow_with_the_number_of_portions(name: str, tmp_path: Path) -> None:
    family: Family = FAMILIES[name]
    folder = family.make(tmp_path / name)
    counts = []
    for batch in (8, 1):
        config = family.run(folder, rollout__mode="all", compute__train_batch=batch, objective__kl_weight=0.1)
        learner = Learner(config, make_accelerator(config))
        prompts, _ = learner.draw_prompts()
        generator = learner.policy.generator
        rollout = drain(stream_rollout(generator, config.sampler, prompts, learner.plan(), key=(0, 0)))
        parts = {"jpeg_size": torch.linspace(0, 1, len(rollout.prompts))}
        lesson = learner.lesson(rollout, parts)
        with _Waits() as counted:
            drain(update_policy(learner, lesson))
        counts.append(counted.count)
        learner.examiner.close()
    assert counts[0] == counts[1] > 0
