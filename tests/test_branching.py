"""Runs that begin from a checkpoint of another: what carries over, what is refused, and how settings differ."""


import pytest
import torch
from toy_run import SMALL, toy_config

from workbench.branching import branch_state, branched_config, compared, differences, flat
from workbench.config import configure
from workbench.events import CheckpointReady, Started
from workbench.studio import Studio


def finish(studio: Studio, run: str) -> None:
    while not studio.store.run(run).over:
        studio.worker.call(lambda: None).result(timeout=60)
    assert studio.store.run(run).error is None


def state(iteration: int = 5) -> CheckpointReady:
    tensors = {name: {"w": torch.ones(2)} for name in ("policy", "ema", "optimizer")}
    learned = {"iteration": iteration, "checked": True, "evaluated": iteration, "spreads": [0.3, 0.2, 0.1], "updates": iteration}
    judged = {"base_reward": 0.4, "best": 3, "best_reward": 0.6}
    return CheckpointReady(iteration, tensors, learned | judged)


def test_a_branch_goes_on_from_its_parents_weights_with_settings_of_its_own(studio: Studio) -> None:
    parent = studio.start(toy_config(2, **SMALL))
    finish(studio, parent)
    changes = {"iterations": 3, "optimizer.learning_rate": 1e-12, "evaluation.every": 1}
    config = branched_config(toy_config(2, **SMALL), 2, changes)
    run = studio.branch(parent, 2, config)
    finish(studio, run)
    found = studio.store.run(run)
    assert (found.parent, found.branched, found.title, found.status) == (parent, 2, "Toy run from 2", "done")
    rows = studio.store.events(run)
    assert rows[0].kind == Started.__name__
    assert rows[0].iteration == 2
    assert [row.iteration for row in rows if row.kind == "IterationDone"] == [3]
    assert [row.iteration for row in rows if row.kind == "Evaluated"] == [2, 3]  # before anything changed, and after
    base, before = (studio.store.load_checkpoint(parent, at).tensors["policy"] for at in (0, 2))
    after = studio.store.load_checkpoint(run, 3).tensors["policy"]
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-9) for name in before)  # hardly anything is learned
    assert not all(torch.allclose(before[name], base[name], rtol=0, atol=1e-9) for name in before)


def test_a_branch_survives_its_parent(studio: Studio) -> None:
    parent = studio.start(toy_config(1, **SMALL))
    finish(studio, parent)
    run = studio.branch(parent, None, branched_config(toy_config(1, **SMALL), 1, {}))
    finish(studio, run)
    studio.store.delete(parent)
    studio.store.purge()
    assert studio.store.load_checkpoint(run, 1).iteration == 1
    assert studio.store.run(run).parent == parent


def test_a_branch_from_the_end_goes_on_for_as_long_again() -> None:
    assert branched_config(toy_config(20), 20, {}).iterations == 40
    assert branched_config(toy_config(20), 10, {}).iterations == 20
    assert branched_config(toy_config(20), 20, {"title": "Mine"}).title == "Mine"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"model.name": "shapes_cm", "sampler": "ddim_mix", "rollout.completion": "jump"},
            r"model.name = 'shapes_cm': the checkpoint",
        ),
        ({"adapter.kind": "lora"}, r"adapter.kind = 'lora': the checkpoint was made with 'full'"),
        ({"iterations": 5}, r"iterations = 5: the branch begins after iteration 5"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_setting_that_is_in_the_way(changes: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        branch_state(state(), toy_config(20), configure("shapes", {"iterations": 20, **changes}))


def test_what_does_not_carry_over_begins_anew() -> None:
    parent = toy_config(20)
    same = branch_state(state(), parent, toy_config(20, **{"grpo.group_size": 16}))
    assert same.state["spreads"] == [0.3, 0.2, 0.1]
    assert (same.state["base_reward"], same.state["best"]) == (0.4, 5)
    assert not same.state["checked"]
    longer = branch_state(state(), parent, toy_config(20, **{"rollout.steps": 6}))
    assert longer.state["spreads"] == [1.0] * 5
    assert branch_state(state(), parent, toy_config(20, **{"rewards.shapes_exact": 0.9})).state["base_reward"] is None
    assert (
        branch_state(state(), parent, toy_config(20, **{"objective.name": "nft"})).tensors["behaviour"]["w"].equal(torch.ones(2))
    )


def test_only_settings_that_differ_are_told_and_rewards_go_by_their_name() -> None:
    one = configure("shapes").model_dump(mode="json")
    other = configure("shapes", {"grpo.group_size": 16, "rewards.shapes_exact": 0.9, "sampler.name": "cps"}).model_dump(
        mode="json"
    )
    found = {key: (before, after) for key, before, after in differences(one, other)}
    assert found["grpo.group_size"] == (one["grpo"]["group_size"], 16)
    assert found["rewards.shapes_exact.weight"][1] == 0.9
    assert found["sampler.name"] == ("asfmc", "cps")
    assert found["sampler.anchor"][1] is None
    assert "grpo.groups" not in found
    assert compared([one, one, one]) == {}
    assert compared([one, other, one])["sampler.name"] == ["asfmc", "cps", "asfmc"]


def test_judges_are_told_apart_too() -> None:
    judged = configure("shapes", {"eval_rewards.shapes_exact": 1, "rewards.shapes_exact": 0}).model_dump(mode="json")
    assert [key for key in flat(judged) if key.startswith("eval_rewards.")] == ["eval_rewards.shapes_exact"]


def test_a_long_title_is_shortened_and_not_refused() -> None:
    config = branched_config(toy_config(5, title="x" * 200), 5, {})
    assert len(config.title) == 200
    assert config.title.endswith("x from 5")
