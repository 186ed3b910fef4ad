"""The policy update: its gradients by other roads, and what it costs."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from workbench.config import RunConfig, configure
from workbench.events import CheckpointReady, IterationDone
from workbench.flow import Gaussian
from workbench.grpo import gaussian_kl
from workbench.learner import Learner
from workbench.lesson import Lesson
from workbench.models.transformer import ConditionalTransformer
from workbench.rollout import Rollout, drain, sample_rollout
from workbench.train import train
from workbench.update import update_policy

SMALL = {
    "grpo.groups": 4,
    "grpo.group_size": 4,
    "rollout.steps": 3,
    "compute.train_batch": 3,
    "objective.kl_weight": 0.0,
    "objective.step_weights": "uniform",
    "optimizer.max_grad_norm": 1e6,
}

QUICK = {"evaluation.images": 8, "evaluation.final_images": 8, "evaluation.steps": "[1]", "evaluation.group_size": 2}


class WatchedLearner(Learner):
    """Keeps the gradients of every epoch."""

    def apply_gradients(self) -> Tensor:
        named = self.policy.parameters.items()
        self.gradients = [*getattr(self, "gradients", []), {name: p.grad.clone() for name, p in named if p.grad is not None}]
        return super().apply_gradients()


def learner_and_rollout(**changes: object) -> tuple[WatchedLearner, Rollout, Tensor]:
    """A learner, a rollout of its own, and made-up advantages that sum to zero in each group."""
    config = configure("shapes", SMALL | {key.replace("__", "."): value for key, value in changes.items()})
    learner = WatchedLearner(config, Accelerator(cpu=True))
    prompts, first = learner.draw_prompts()
    plan = learner.plan() if config.rollout.mode == "all" else replace(learner.plan(), steps=(1,))
    rollout = sample_rollout(learner.policy.generator, config.sampler, prompts, plan, key=(0, 0), first_prompt=first)
    advantages = torch.randn(4, 4, generator=torch.Generator().manual_seed(5))
    return learner, rollout, (advantages - advantages.mean(1, keepdim=True)).flatten()


def lesson_of(learner: Learner, rollout: Rollout, advantages: Tensor) -> Lesson:
    """Every child is credited with the advantage of the sample that descends from it."""
    credits = tuple(advantages[transition.leaves[..., 0]] for transition in rollout.transitions)
    portion = learner.config.compute.train_batch
    return Lesson(rollout, learner.config.sampler, advantages, credits, learner.stds, portion, (0, 0))


def update(learner: WatchedLearner, rollout: Rollout, advantages: Tensor) -> tuple[dict[str, float], Tensor]:
    """The figures, and the first epoch's gradient as one vector."""
    figures, _ = drain(update_policy(learner, lesson_of(learner, rollout, advantages)))
    return figures, torch.cat([g.flatten() for g in learner.gradients[0].values()])


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return float((a - b).norm()) <= tolerance * float(b.norm())


def test_one_pass_for_a_shared_mean_gives_the_gradient_of_a_pass_for_each_child() -> None:
    learner, rollout, advantages = learner_and_rollout(objective__kl_weight=0.3)
    (shared,) = rollout.transitions
    rows = torch.arange(4).repeat_interleave(4)
    apart = replace(
        shared,
        rows=shared.rows[rows],
        states=shared.states[rows],
        children=shared.children.flatten(0, 1)[:, None],
        means=shared.means[rows],
        log_probs=shared.log_probs.flatten()[:, None],
        leaves=shared.leaves.flatten(0, 1)[:, None],
    )
    other = learner_and_rollout(objective__kl_weight=0.3, compute__train_batch=64)[0]
    for one in (learner, other):
        disturb(one)
    figures, gradient = update(learner, rollout, advantages)
    figures_apart, gradient_apart = update(other, replace(rollout, transitions=(apart,)), advantages)
    assert close(gradient, gradient_apart)
    for name in ("loss", "kl", "ratio", "clip_fraction"):
        assert figures[name] == pytest.approx(figures_apart[name], rel=1e-3, abs=1e-6)


def disturb(learner: Learner, size: float = 1e-3) -> None:
    """Move the policy off the one that sampled, and off the reference."""
    with torch.no_grad():
        for parameter in learner.policy.parameters.values():
            parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))


def test_the_first_gradient_is_that_of_the_mean_along_the_weighted_noise() -> None:
    """grad <mean, d> with d = sum_j A_j xi_j / (G std), a mean over dimensions and states."""
    learner, rollout, advantages = learner_and_rollout()
    (transition,) = rollout.transitions
    xi = (transition.children - transition.means[:, None]) / transition.std
    direction = (advantages.view(4, 4, 1, 1, 1) * xi).mean(1) / transition.std
    flow_map = learner.policy.generator.bind(rollout.embeddings[transition.rows])
    mean = learner.config.sampler.step(flow_map, transition.states, transition.t, transition.s).mean
    objective = -(mean * direction).flatten(1).mean(1).mean()
    parameters = list(learner.policy.parameters.values())
    by_hand = torch.cat([g.flatten() for g in torch.autograd.grad(objective, parameters)])
    figures, gradient = update(learner, rollout, advantages)
    assert close(gradient, by_hand, 1e-3)
    assert figures["ratio"] == 1.0
    assert figures["ratio_deviation"] == 0.0
    assert figures["clip_fraction"] == 0.0
    assert figures["gradient_norm"] == pytest.approx(float(by_hand.norm()), rel=1e-3)


def test_without_a_learning_signal_only_the_kl_pulls_and_it_pulls_home() -> None:
    learner, rollout, advantages = learner_and_rollout(objective__kl_weight=0.5)
    disturb(learner)
    (transition,) = rollout.transitions
    means = []
    for inside in (True, False):
        if inside:
            with learner.policy.reference() as reference:
                flow_map = reference.bind(rollout.embeddings[transition.rows])
                means.append(learner.config.sampler.step(flow_map, transition.states, transition.t, transition.s).mean)
        else:
            flow_map = learner.policy.generator.bind(rollout.embeddings[transition.rows])
            means.append(learner.config.sampler.step(flow_map, transition.states, transition.t, transition.s).mean)
    kl = gaussian_kl(means[1], means[0], transition.std).mean()
    gradients = torch.autograd.grad(0.5 * kl, list(learner.policy.parameters.values()))
    figures, gradient = update(learner, rollout, torch.zeros_like(advantages))
    assert figures["kl"] == pytest.approx(kl.item(), rel=1e-4)
    assert figures["kl"] > 0
    assert close(gradient, torch.cat([g.flatten() for g in gradients]), 1e-3)


def test_the_true_kl_between_the_gaussians_is_what_is_reported() -> None:
    learner, rollout, _ = learner_and_rollout()
    (transition,) = rollout.transitions
    shifted = transition.means + 0.1
    normals = [torch.distributions.Normal(mean, transition.std) for mean in (transition.means, shifted)]
    expected = torch.distributions.kl_divergence(*normals).flatten(1).mean(1)
    assert torch.allclose(gaussian_kl(transition.means, shifted, transition.std), expected, rtol=1e-4)
    assert learner.config.objective.kl_weight == 0


def test_with_neither_signal_nor_distance_nothing_moves() -> None:
    learner, rollout, advantages = learner_and_rollout(objective__kl_weight=0.5)
    figures, gradient = update(learner, rollout, torch.zeros_like(advantages))
    assert figures["kl"] == 0
    assert not gradient.any()
    assert figures["update_size"] == 0
    assert figures["gradient_norm"] == 0


def test_inner_epochs_step_again_on_the_same_rollout() -> None:
    learner, rollout, advantages = learner_and_rollout(grpo__epochs=3, optimizer__warmup=0)
    figures, _ = update(learner, rollout, advantages)
    assert len(learner.gradients) == 3
    assert {int(state["step"]) for state in learner.optimizer.state_dict()["state"].values()} == {3}
    assert figures["ratio_deviation"] > 0
    name = "leave.weight"
    assert not torch.equal(learner.gradients[0][name], learner.gradients[1][name])


def test_children_outside_the_trust_region_stop_pulling() -> None:
    """Once every ratio is clipped against its advantage, there is no gradient left."""
    learner, rollout, advantages = learner_and_rollout(objective__clip_range=1e-12)
    (transition,) = rollout.transitions
    moved = replace(transition, log_probs=transition.log_probs - advantages.view(4, 4).sign())
    figures, gradient = update(learner, replace(rollout, transitions=(moved,)), advantages)
    assert figures["clip_fraction"] == 1.0
    assert not gradient.any()


def test_ratio_norm_scales_the_first_gradient_by_the_step_noise() -> None:
    plain, rollout, advantages = learner_and_rollout()
    normed, _, _ = learner_and_rollout(objective__ratio_norm=True)
    _, gradient = update(plain, rollout, advantages)
    figures, scaled = update(normed, rollout, advantages)
    assert figures["ratio"] == 1.0
    assert close(scaled, rollout.transitions[0].std * gradient, 1e-3)


@pytest.mark.parametrize(
    ("kind", "ratio_norm", "weight"),
    [
        ("noise", False, lambda std, span: std),
        ("balanced", False, lambda std, span: std / span),
        ("balanced", True, lambda std, span: 1 / span),  # the ratio is already rescaled by the std
    ],
)
def test_step_weights_weigh_the_gradients_of_the_steps(kind: str, ratio_norm: bool, weight: Callable[..., float]) -> None:
    def gradient(kind: str, steps: tuple[int, ...]) -> tuple[Tensor, Rollout]:
        learner, rollout, advantages = learner_and_rollout(
            rollout__mode="all", rollout__steps=4, objective__step_weights=kind, objective__ratio_norm=ratio_norm
        )
        chosen = tuple(rollout.transitions[i] for i in steps)
        return update(learner, replace(rollout, transitions=chosen), advantages)[1], rollout

    alone = [gradient("uniform", (i,))[0] for i in range(3)]
    uniform, rollout = gradient("uniform", (0, 1, 2))
    weighted, _ = gradient(kind, (0, 1, 2))
    assert close(uniform, sum(alone) / 3, 1e-3)
    weights = [weight(transition.std, transition.t - transition.s) for transition in rollout.transitions]
    expected = sum(w / (sum(weights) / 3) * g for w, g in zip(weights, alone, strict=True)) / 3
    assert close(weighted, expected, 1e-3)
    part, _ = gradient(kind, (2,))  # a step weighs the same whether the others were stochastic too or not
    assert close(part, weights[2] / (sum(weights) / 3) * alone[2], 1e-3)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_gradient_that_is_not_finite_stops_the_run_and_changes_nothing(epochs: int) -> None:
    """Also when it appears in the second of two epochs."""
    learner, rollout, advantages = learner_and_rollout(grpo__epochs=epochs)
    update(learner, rollout, advantages)
    parameters, optimizer = learner.snapshot()
    countdown = iter([False] * (2 * epochs - 1) + [True])  # two portions an epoch

    def spoil(gradient: Tensor) -> Tensor:
        return gradient * float("nan") if next(countdown) else gradient

    learner.policy.parameters["enter.weight"].register_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"iteration 0: the gradient norm is nan; lower optimizer\.learning_rate"):
        update(learner, rollout, advantages)
    after, state = learner.snapshot()
    assert all(torch.equal(after[name], value) for name, value in parameters.items())
    assert state.keys() == optimizer.keys()
    assert all(torch.equal(state[name], value) for name, value in optimizer.items())
    assert all(p.grad is None or not p.grad.any() for p in learner.policy.parameters.values())


def test_a_ratio_that_was_left_behind_is_seen() -> None:
    learner, rollout, advantages = learner_and_rollout()
    disturb(learner)
    figures, _ = update(learner, rollout, advantages)
    (transition,) = rollout.transitions
    assert figures["ratio_deviation"] > 0
    with torch.no_grad():
        assert Gaussian(transition.means, transition.std).log_prob(transition.children[:, 0]).shape == (4,)


@pytest.fixture
def passes() -> Iterator[list[tuple[int, bool]]]:
    """Rows and whether gradients are kept, for every forward pass of any generator's network."""
    seen: list[tuple[int, bool]] = []

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        if isinstance(module, ConditionalTransformer):
            seen.append((len(inputs[0]), torch.is_grad_enabled() and _output.requires_grad))

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    yield seen
    handle.remove()


@pytest.mark.parametrize(
    ("changes", "frozen_rows", "trained_rows"),
    [
        # 6 states of step k: a trunk of k steps, the step itself, 4 children each in the 2 - k steps left, the reference
        ({}, lambda k: 6 * k + 6 + 24 * (2 - k) + 6, 6),
        ({"rollout.completion": "jump"}, lambda k: 6 * k + 6 + 24 + 6, 6),
        ({"objective.kl_weight": 0}, lambda k: 6 * k + 6 + 24 * (2 - k), 6),
        ({"grpo.epochs": 2}, lambda k: 6 * k + 6 + 24 * (2 - k) + 6, 12),
        ({"adapter.kind": "lora"}, lambda k: 6 * k + 6 + 24 * (2 - k) + 6, 6),
        ({"rollout.branch_at": "every"}, lambda k: 6 + 12 + 24 * (2 + 1) + 12, 12),
        ({"rollout.branch_at": "every", "rollout.completion": "jump"}, lambda k: 6 + 12 + 24 * 2 + 12, 12),
        # 6 states, then 12 that are their children, then 24 leaves
        ({"rollout.mode": "tree"}, lambda k: 6 + 12 + 24 + 18, 18),
        ({"rollout.mode": "all"}, lambda k: 24 * 3 + 24 * 2, 48),
        ({"rollout.mode": "window", "rollout.window": 1}, lambda k: 24 * 3 + 24, 24),
    ],
    ids=["default", "jump", "no kl", "epochs", "lora", "branches", "branches, jump", "tree", "all steps", "window"],
)
def test_an_iteration_makes_the_passes_it_must_and_no_others(
    passes: list[tuple[int, bool]], changes: dict, frozen_rows, trained_rows: int
) -> None:
    config: RunConfig = configure(
        "shapes", SMALL | {"objective.kl_weight": 0.1} | QUICK | {"grpo.groups": 6, "iterations": 1} | changes
    )
    for event in train(config):
        if isinstance(event, CheckpointReady) and event.iteration == 0:
            passes.clear()
        if isinstance(event, IterationDone):
            break
    step = int(event.metrics.get("branch_step", 0))
    assert sum(rows for rows, trained in passes if trained) == trained_rows
    assert sum(rows for rows, trained in passes if not trained) == frozen_rows(step)


@pytest.mark.parametrize("mode", ["branch", "all"])
def test_ratios_of_the_last_epoch_belong_to_the_samples_and_one_epoch_has_none(mode: str) -> None:
    learner, rollout, advantages = learner_and_rollout(rollout__mode=mode, grpo__epochs=2, optimizer__learning_rate=1e-3)
    lesson = lesson_of(learner, rollout, advantages)
    _, ratios = drain(update_policy(learner, lesson))
    assert len(ratios) == len(rollout.transitions)
    assert all(values.shape == (16,) for values in ratios)
    pushed = torch.cat([advantages for _ in ratios])
    moved = torch.cat(ratios) - 1
    assert float((pushed * moved).mean()) > 0  # what was better than its group has become likelier
    assert float(moved.abs().max()) > 0
    once, again, advantages = learner_and_rollout(rollout__mode=mode)
    assert drain(update_policy(once, lesson_of(once, again, advantages)))[1] == ()
