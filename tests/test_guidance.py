"""Classifier-free guidance whose negative pass leaves no graph: made once for a state, and never again with the same weights."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_family import CPU, Family
from tiny_sana import SANA
from tiny_sd3 import SD3
from torch import Tensor, nn
from toy_training import assert_same_state, told

from workbench.contracts import FlowMapKind, Sampler
from workbench.events import CheckpointReady
from workbench.learner import Learner
from workbench.lesson import Lesson
from workbench.models.guidance import Conditions, GuidedMap
from workbench.objectives.grpo import GRPOObjective
from workbench.optim import AveragedWeights
from workbench.rollout import Plan, Rollout, drain, sample_rollout
from workbench.samplers import SAMPLERS
from workbench.train import make_accelerator, train
from workbench.update import first_ratios, update_policy

PROMPTS = ("a", "b", "c")
PLANS = {
    "all": Plan((1.0, 0.7, 0.4, 0.0), 2, "chain", (0, 1), train_batch=4, sample_batch=5),
    "window": Plan((1.0, 0.7, 0.4, 0.0), 2, "chain", (1,), train_batch=4),
    "branch": Plan((1.0, 0.7, 0.4, 0.0), 4, "branch", (0, 1), "compose", train_batch=2),
    "tree": Plan((1.0, 0.7, 0.4, 0.0), 4, "tree", (0, 1), "compose", train_batch=4),
}
FAMILIES = {family.name: family for family in (SD3, SANA)}


class Asked(nn.Module):
    """A network of the state, the time and the prompt that remembers how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 3)
        self.negative: list[bool] = []  # of each pass, whether it was for the negative prompt

    def forward(self, x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        self.negative.append(bool((prompts == 0).all()))
        return self.mix(torch.cat([x, t[:, None], prompts], dim=1)).tanh()


class AskedMap(GuidedMap):
    def predict(self, x: Tensor, t: Tensor, prompts: Conditions) -> Tensor:
        return self.network(x, t, prompts["hidden"])


class Guided:
    """A generator of three numbers under guidance."""

    latent_shape = (3,)
    device = CPU

    def __init__(self, kind: FlowMapKind = "two_time", *, both: bool = False) -> None:
        torch.manual_seed(0)
        self.network, self.kind, self.both = Asked(), kind, both

    def embed(self, prompts: Any) -> Tensor:
        return torch.tensor([[float(ord(prompt))] for prompt in prompts]) / 100

    def bind(self, embeddings: Tensor) -> AskedMap:
        negative = {"hidden": torch.zeros(1, 1)}
        return AskedMap(self.network, self.kind, {"hidden": embeddings}, negative, scale=3.0, train_negative=self.both)


def drawn(generator: Guided, sampler: Sampler, plan: Plan) -> tuple[Rollout, Lesson]:
    rollout = sample_rollout(generator, sampler, PROMPTS, plan, key=(0,))  # type: ignore[arg-type]
    credits = tuple(torch.ones_like(transition.log_probs) for transition in rollout.transitions)
    stds = tuple(0.3 for _ in plan.times[1:-1])
    return rollout, Lesson(rollout, sampler, torch.ones(len(rollout.prompts)), credits, stds, plan.train_batch, (0,))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this file's own, so that nothing is left in the user's."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.make(tmp_path_factory.mktemp("models") / family.name)


@pytest.mark.parametrize(("sampler", "calls"), [("flow_sde", 1), ("asfmc_local", 2)])
@pytest.mark.parametrize("plan", PLANS)
def test_what_the_rollout_kept_gives_the_very_prediction_of_a_new_pass(plan: str, sampler: str, calls: int) -> None:
    """Call by call, in portions, for every structure of a rollout; a state costs a pass for its prompt and no other."""
    generator, objective = Guided(), GRPOObjective()
    rollout, lesson = drawn(generator, SAMPLERS[sampler](), PLANS[plan])
    for transition in rollout.transitions:
        assert [values.shape for values in transition.kept] == [transition.states.shape] * calls
    parameters = list(generator.network.parameters())
    for portion in objective.portions(lesson):
        found = []
        for ask, negative in ((objective.predict, calls), (objective.repeat, 0)):
            generator.network.negative.clear()
            means = ask(portion, generator)  # type: ignore[arg-type]
            assert generator.network.negative.count(True) == negative
            assert generator.network.negative.count(False) == calls
            found.append([means, *torch.autograd.grad(means.square().sum(), parameters)])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
        ratio = objective.loss(portion, found[1][0].detach())[1]["ratio"]
        assert torch.equal(ratio, torch.ones_like(ratio))


def test_what_is_kept_stands_for_weights_that_have_changed_since() -> None:
    """So it is only right before the first step: afterwards `predict` gives something else."""
    generator, objective = Guided(), GRPOObjective()
    _, lesson = drawn(generator, SAMPLERS["flow_sde"](), PLANS["all"])
    with torch.no_grad():
        generator.network.mix.bias.add_(0.1)
        portion = objective.portions(lesson)[0]
        assert not torch.equal(objective.repeat(portion, generator), objective.predict(portion, generator))  # type: ignore[arg-type]


@pytest.mark.parametrize("both", [False, True])
def test_nothing_is_kept_of_steps_without_noise_or_of_passes_with_a_gradient(both: bool) -> None:
    generator = Guided(both=both)
    rollout, _ = drawn(generator, SAMPLERS["flow_sde"](), replace(PLANS["all"], steps=()))
    assert rollout.transitions == ()
    rollout, lesson = drawn(generator, SAMPLERS["flow_sde"](), PLANS["window"])
    assert [len(transition.kept) for transition in rollout.transitions] == [0 if both else 1]
    objective = GRPOObjective()
    for portion in objective.portions(lesson):
        assert torch.equal(objective.repeat(portion, generator), objective.predict(portion, generator))  # type: ignore[arg-type]


def test_what_is_kept_goes_with_its_rollout() -> None:
    """At once, before any cycle is collected: memory for it is wanted by the next rollout."""
    generator, objective = Guided(), GRPOObjective()
    gc.collect()
    gc.disable()
    try:
        rollout, lesson = drawn(generator, SAMPLERS["asfmc_local"](), PLANS["all"])
        kept = [weakref.ref(values) for transition in rollout.transitions for values in transition.kept]
        for portion in objective.portions(lesson):
            objective.repeat(portion, generator).sum().backward()  # type: ignore[arg-type]
        assert len(kept) == 4
        del rollout, lesson, portion
        assert all(values() is None for values in kept)
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", ["all", "branch"])
def test_a_run_is_bit_for_bit_the_run_that_makes_every_pass_again(
    family: Family, folder: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = family.run(
        folder, iterations=2, rollout__mode=mode, rollout__completion="compose", compute__train_batch=3,
        compute__precision="bf16", objective__kl_weight=0.01,
    )  # fmt: skip
    events = told(train(config))
    monkeypatch.setattr(GRPOObjective, "repeat", GRPOObjective.predict)
    again = told(train(config))
    last, other = (next(e for e in reversed(each) if isinstance(e, CheckpointReady)) for each in (events, again))
    assert_same_state(last, other)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("averaged", [False, True])
def test_later_epochs_and_averaged_weights_make_their_own_passes(
    family: Family, folder: Path, epochs: int, averaged: bool
) -> None:
    config = family.run(folder, rollout__mode="all", grpo__epochs=epochs, objective__clip_range=0.1)
    learner = Learner(config, make_accelerator(config))
    rollout, parts = drawn_by(learner)
    assert all(len(transition.kept) == 1 for transition in rollout.transitions)
    if averaged:
        learner.behaviour = AveragedWeights(learner.policy.parameters, 0.0)
    asked: list[bool] = []
    learner.policy.generator.network.get_base_model().register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    lesson = learner.lesson(rollout, parts)
    assert all(torch.equal(ratio, torch.ones_like(ratio)) for ratio in first_ratios(learner, lesson))
    asked.clear()
    figures, _ = drain(update_policy(learner, lesson))
    steps = len(rollout.transitions)
    assert asked.count(True) == epochs * steps
    assert asked.count(False) == (epochs - 1 + averaged) * steps
    assert (figures["ratio_deviation"] == 0) == (epochs == 1)
    learner.close()


def drawn_by(learner: Learner) -> tuple[Rollout, dict[str, Tensor]]:
    """A rollout of a learner's, and its rewards by name."""
    rollout, _, scores = drain(learner.draw(learner.plan(), (0, 0)))
    return rollout, drain(scores.collect())
