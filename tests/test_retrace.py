"""An image's way, drawn again: with the policy that drew it, exactly what was recorded."""

from typing import Any

import pytest
import torch
from toy_training import SMALL, keep

from workbench.config import configure
from workbench.evaluate import load_policy, to_uint8
from workbench.events import GroupsScored
from workbench.exact_json import fields_of, from_json, to_json
from workbench.retrace import retrace
from workbench.train import train

MODES: dict[str, dict[str, Any]] = {
    "branch": {},
    "one jump": {"rollout.completion": "jump"},
    "branch everywhere": {"rollout.branch_at": "every"},
    "every step": {"rollout.mode": "all"},
    "one initial noise": {"rollout.mode": "all", "rollout.shared_noise": True},
    "window": {"rollout.mode": "window"},
    "tree": {"rollout.mode": "tree", "grpo.group_size": 8},
    "velocity": {"model.name": "shapes_fm", "sampler.name": "flow_sde", "rollout.mode": "all"},
    "single time": {"model.name": "shapes_cm", "sampler.name": "asfmc_endpoint", "rollout.mode": "all"},
}


@pytest.mark.parametrize("mode", MODES)
def test_the_policy_that_drew_an_image_draws_it_again(mode: str) -> None:
    config = configure("shapes", {**SMALL, "rollout.steps": 4, "grpo.groups": 2, "record.groups_shown": 64, **MODES[mode]})
    first = next(event for event in train(config) if isinstance(event, GroupsScored))
    first = keep(first)  # type: ignore[assignment]
    recorded = from_json(to_json({name: value for name, value in fields_of(first).items() if name != "preview"}))
    generator = load_policy(config).generator
    for sample in (1, len(first.seeds) - 1):
        trace = retrace(generator, config, recorded, sample)
        shown = list(first.groups_shown).index(sample // first.group_size) * first.group_size + sample % first.group_size
        drawn = to_uint8(trace.states[-1:])[0].int()
        assert (drawn - first.preview.images[shown].int()).abs().max() <= 1  # a batch of one rounds otherwise
        assert trace.times[0] == 1.0
        assert trace.times[-1] == 0.0
        assert torch.equal(trace.predictions[-1], trace.states[-1])
        steps = zip(first.noise_std, first.log_probs, strict=True)
        took_part = [(std, row[sample]) for std, row in steps if row[sample] is not None]
        for (std, log_prob), (wanted_std, wanted) in zip(trace.stochastic.values(), took_part, strict=True):
            assert std == pytest.approx(wanted_std)
            assert log_prob == pytest.approx(wanted, abs=1e-4)
