"""Policies in use: one network for many checkpoints, and how much of what was learned is applied."""

from typing import Literal

import pytest
import torch
from toy_run import toy_config

from workbench.config import RunConfig
from workbench.evaluate import load_policy, stream_images
from workbench.events import CheckpointReady, Started
from workbench.learner import Learner
from workbench.policies import Policies, choose
from workbench.rollout import drain
from workbench.store import Store
from workbench.train import make_accelerator

TIMES = (1.0, 0.5, 0.0)


def tuned(store: Store, adapter: Literal["full", "lora"], iterations: tuple[int, ...] = (3,)) -> tuple[str, RunConfig]:
    """A run whose checkpoints differ from the base."""
    config = toy_config(5, **{"adapter.kind": adapter})
    run = store.create("train", config.model_dump(mode="json"), title="tuned", origin="test")
    store.record(run, Started(0, {}))
    policy = load_policy(config)
    generator = torch.Generator().manual_seed(1)
    for iteration in iterations:
        ema = {name: p.detach() + 0.01 * torch.randn(p.shape, generator=generator) for name, p in policy.parameters.items()}
        store.record(run, CheckpointReady(iteration, {"policy": ema, "ema": ema}, {"iteration": iteration}))
    return run, config


def images(policies: Policies, run: str, iteration: int | None, scale: float = 1.0) -> torch.Tensor:
    with policies.generator(policies.choose(run, iteration=iteration), scale) as generator:
        return drain(stream_images(generator, ["a red circle"] * 2, [1, 2], times=TIMES))


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_scale_leads_from_the_base_to_the_tuned_policy(store: Store, adapter: Literal["full", "lora"]) -> None:
    run, config = tuned(store, adapter)
    policies = Policies(store)
    alone = load_policy(config, store.load_checkpoint(run))
    expected = drain(stream_images(alone.generator, ["a red circle"] * 2, [1, 2], times=TIMES))
    assert torch.equal(images(policies, run, 3), expected)
    base = images(policies, run, 0)
    assert torch.allclose(images(policies, run, 3, 0.0), base, atol=1e-6)
    half = (images(policies, run, 3, 0.5) - base).abs().mean()
    assert 0 < half < (expected - base).abs().mean()
    assert torch.equal(images(policies, run, 3), expected)  # a scale leaves nothing behind


def test_pictures_are_drawn_in_the_precision_of_their_run(store: Store) -> None:
    policies, seen = Policies(store), []
    for precision in ("no", "bf16"):
        config = toy_config(5, **{"compute.precision": precision, "compute.device": "cpu"})
        run = store.create("train", config.model_dump(mode="json"), title="base", origin="test")
        learner = Learner(config, make_accelerator(config))
        own = drain(stream_images(learner.policy.generator, ["a red circle"] * 2, [1, 2], times=TIMES))
        learner.close()
        assert torch.equal(images(policies, run, 0), own)
        seen.append(own)
    assert not torch.equal(*seen)


def test_checkpoints_of_one_model_share_its_network(store: Store) -> None:
    run, _ = tuned(store, "full", (1, 2))
    policies = Policies(store)
    first, second = images(policies, run, 1), images(policies, run, 2)
    assert not torch.equal(first, second)
    assert torch.equal(images(policies, run, None), second)
    assert len(policies._networks) == 1


def test_a_large_network_is_let_go_before_another_is_loaded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    policies = Policies(store)
    for share, kept in ((1.0, 2), (0.0, 1)):
        monkeypatch.setattr("workbench.policies.LARGE", share)
        for adapter in ("full", "lora"):
            with policies.generator(policies.choose(tuned(store, adapter)[0])):
                pass
        assert len(policies._networks) == kept
        policies._networks.clear()


def test_a_checkpoint_that_does_not_exist_is_refused_by_name(store: Store) -> None:
    run, _ = tuned(store, "full")
    with pytest.raises(ValueError, match="7"):
        Policies(store).choose(run, iteration=7)


def test_what_belongs_to_no_run_or_changes_one_is_refused(store: Store) -> None:
    run, _ = tuned(store, "full")
    with pytest.raises(ValueError, match="iteration 3 of which run"):
        choose(store, None, iteration=3)
    with pytest.raises(ValueError, match="leave out title"):
        choose(store, run, changes={"title": "other"})


def test_a_checkpoint_that_was_written_again_is_read_again(store: Store) -> None:
    run, _ = tuned(store, "full", (1,))
    policies = Policies(store)
    before = images(policies, run, 1)
    ema = {name: 0.9 * value for name, value in store.load_checkpoint(run).tensors["ema"].items()}
    store.record(run, Started(0, {}))  # resumed from before it
    store.record(run, CheckpointReady(1, {"policy": ema, "ema": ema}, {"iteration": 1}))
    assert not torch.equal(images(policies, run, 1), before)


def test_a_checkpoint_without_averaged_weights_is_told(store: Store) -> None:
    run, _ = tuned(store, "full", ())
    store.record(run, CheckpointReady(2, {"policy": {"w": torch.zeros(1)}}, {"iteration": 2}))
    with pytest.raises(ValueError, match="holds no averaged weights"):
        images(Policies(store), run, 2)
