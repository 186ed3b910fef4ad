"""Objectives on the forward process: their losses by hand, what they draw, what they cost, and that they learn."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import pytest
import torch
from test_train import assert_same_state, kinds, plain, small, told
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from workbench.config import configure
from workbench.contracts import FlowMapKind, Generator, Model
from workbench.events import CheckpointReady, IterationDone
from workbench.flow import time_grid
from workbench.grpo import group_advantages
from workbench.lab import GaussianMixture, exact_flow_map
from workbench.lesson import Lesson
from workbench.objectives import OBJECTIVES
from workbench.objectives.awm import AWMObjective
from workbench.objectives.dpo import DPOObjective
from workbench.objectives.forward_process import ForwardProcess, Noised, induced_velocity, time_at
from workbench.objectives.nft import NFTObjective
from workbench.objectives.reward_weighted import RewardWeightedObjective
from workbench.rollout import Plan, Rollout, sample_rollout
from workbench.rules import check_maps
from workbench.samplers.ode import ODESampler
from workbench.train import train

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # a toy reward is in no registry

TIMES = time_grid(4, 4.0)
FORWARD = {name: kind for name, kind in OBJECTIVES.items() if issubclass(kind, ForwardProcess)}


class TinyNetwork(nn.Module):
    """u(x, t, s | prompt) on the plane of 3 numbers, with one hidden layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.enter, self.leave = nn.Linear(6, 16), nn.Linear(16, 3)
        self.calls: list[tuple[int, bool]] = []  # rows, and whether gradients are kept

    def forward(self, x: Tensor, t: Tensor, s: Tensor, prompt: Tensor) -> Tensor:
        self.calls.append((len(x), torch.is_grad_enabled()))
        condition = torch.stack([t.expand(len(x)), (t - s).expand(len(x)), prompt], 1)
        return self.leave(self.enter(torch.cat([x, condition], 1)).tanh())


class TinyGenerator:
    """A generator over the tiny network; embeddings are numbers."""

    latent_shape: tuple[int, ...] = (3,)
    device = torch.device("cpu")

    def __init__(self, kind: FlowMapKind = "two_time", seed: int = 0) -> None:
        self.kind, self.network = kind, TinyNetwork(seed)

    def embed(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([len(prompt) / 10 for prompt in prompts])

    def bind(self, embeddings: Tensor) -> "TinyMap":
        return TinyMap(self, embeddings)

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class TinyMap:
    def __init__(self, generator: TinyGenerator, embeddings: Tensor) -> None:
        self.kind, self.network, self.embeddings = generator.kind, generator.network, embeddings

    def __call__(self, x: Tensor, t: Any, s: Any) -> Tensor:
        assert self.kind == "two_time"
        t, s = (torch.as_tensor(time, dtype=x.dtype).reshape(-1) for time in (t, s))
        return x + (s - t)[:, None] * self.network(x, t, s, self.embeddings)

    def velocity(self, x: Tensor, t: Any) -> Tensor:
        t = torch.as_tensor(t, dtype=x.dtype).reshape(-1)
        return self.network(x, t, t, self.embeddings)


def lesson_of(rewards: Sequence[float] = (0.0, 3.0, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0), portion: int = 64, key: int = 0) -> Lesson:
    """Samples of two groups; those of the second are equally good."""
    count = len(rewards)
    final = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    rows = torch.arange(count) // 4
    rollout = Rollout(
        ("a",) * count, tuple(range(100, 100 + count)), 4, TIMES, torch.linspace(0.1, 0.4, count // 4), rows, (), final
    )
    return Lesson(rollout, ODESampler(), group_advantages(torch.tensor(rewards), 4), (), (), portion, (7, key))


def noised(objective: ForwardProcess, lesson: Lesson) -> Noised:
    (portion,) = objective.portions(lesson)
    return portion


def gradient_of(objective: ForwardProcess, portion: Noised, at: Tensor, **others: Tensor) -> Tensor:
    """Of the loss with respect to the velocities that it is told."""
    at = at.clone().requires_grad_()
    return torch.autograd.grad(objective.loss(portion, at, **others)[0], at)[0]


def someones_velocity(portion: Noised, seed: int = 3) -> Tensor:
    return torch.randn(portion.x0.shape, generator=torch.Generator().manual_seed(seed))


def policy_gradient(objective: ForwardProcess, lesson: Lesson, generator: TinyGenerator) -> Tensor:
    """Over all portions, as one vector."""
    reference = TinyGenerator(generator.kind, seed=9)
    for portion in objective.portions(lesson):
        with torch.no_grad():
            told = objective.predict(portion, reference) if objective.wants_reference else None
        objective.loss(portion, objective.predict(portion, generator), reference=told)[0].backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in generator.network.parameters()])
    generator.network.zero_grad()
    return gradient


# What is drawn


def test_times_lie_as_the_grid_has_them() -> None:
    places = torch.tensor([0.0, 0.125, 0.25, 0.5, 0.75, 1.0])
    expected = [TIMES[0], (TIMES[0] + TIMES[1]) / 2, *TIMES[1:]]
    assert torch.allclose(time_at(TIMES, places), torch.tensor(expected))


def test_every_sample_is_noised_along_the_straight_path_to_a_time_away_from_the_data() -> None:
    portion = noised(NFTObjective(interval_share=0.5), lesson_of([0.0] * 1600, portion=1600))
    assert torch.equal(portion.x0, lesson_of([0.0] * 1600).rollout.final)
    t = portion.t[:, None]
    assert torch.allclose(portion.x, (1 - t) * portion.x0 + t * portion.noise, atol=1e-6)
    assert 0.0199 < float(portion.t.min()) <= float(portion.t.max()) <= 1
    assert abs(float(portion.noise.std()) - 1) < 0.07  # 400 groups of 3 numbers
    below = [float((portion.t > time).float().mean()) for time in TIMES[1:-1]]  # a quarter for each step of the grid
    assert below == pytest.approx([0.25, 0.5, 0.75], abs=0.1)
    assert bool((portion.s <= portion.t).all())
    assert float((portion.s < portion.t).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_the_draws_of_a_sample_divide_the_grid_among_themselves() -> None:
    portions = NFTObjective(draws=4).portions(lesson_of())
    assert len(portions) == 4
    for portion, (later, earlier) in zip(portions, pairwise(TIMES), strict=True):
        assert bool((portion.t <= later + 1e-6).all())
        assert bool((portion.t >= max(earlier, 0.02) - 1e-6).all())
    assert not torch.equal(portions[0].noise, portions[1].noise)


def test_noise_and_time_depend_on_the_seeds_of_the_group_and_on_the_iteration_alone() -> None:
    whole, again, other = (noised(AWMObjective(), lesson_of(key=key)) for key in (0, 0, 1))
    assert torch.equal(whole.noise, again.noise)
    assert torch.equal(whole.t, again.t)
    assert torch.equal(whole.s, again.s)
    assert not torch.equal(whole.noise, other.noise)
    assert not torch.equal(whole.t, other.t)
    assert whole.t.view(2, 4).unique(dim=1).shape == (2, 1)  # one for each group
    assert torch.equal(whole.noise[:4], whole.noise[:1].expand(4, 3))
    assert not torch.equal(whole.noise[0], whole.noise[4])
    lesson, rows = lesson_of(), slice(4, 8)  # as the second of two processes has it
    rollout = lesson.rollout
    half = Rollout(
        rollout.prompts[rows], rollout.seeds[rows], 4, TIMES, rollout.embeddings[1:], rollout.rows[:4], (), rollout.final[rows]
    )
    own = noised(AWMObjective(), Lesson(half, lesson.sampler, lesson.advantages[rows], (), (), 64, lesson.key))
    assert torch.equal(own.noise, whole.noise[rows])
    assert torch.equal(own.t, whole.t[rows])
    assert torch.equal(own.embeddings, whole.embeddings[rows])


# The velocity that a jump induces


def test_the_jump_of_an_exact_flow_map_induces_its_velocity() -> None:
    data = GaussianMixture([[1.0, -2.0, 0.5]], 0.3)
    x, flow_map = data.sample(50, 0, t=0.8).double(), exact_flow_map(data)
    for s in (0.0, 0.3, 0.79):
        t, s = torch.tensor([0.8], dtype=torch.float64), torch.tensor([s], dtype=torch.float64)
        assert torch.allclose(induced_velocity(flow_map, x, t, s), data.velocity(x, 0.8), atol=1e-6)


def test_the_induced_velocity_is_that_of_improved_meanflow_and_its_derivative_carries_no_gradient() -> None:
    """u + (t - s) du/dt, the derivative here from differences along (v, 1, 0)."""
    generator = TinyGenerator()
    network = generator.network.double()
    draw = torch.Generator().manual_seed(0)
    x, prompt = torch.randn(5, 3, generator=draw, dtype=torch.float64), torch.rand(5, generator=draw, dtype=torch.float64)
    t = 0.3 + 0.7 * torch.rand(5, generator=draw, dtype=torch.float64)
    s, h = 0.5 * t, 1e-5
    told = induced_velocity(generator.bind(prompt), x, t, s)
    with torch.no_grad():
        v = network(x, t, t, prompt)
        slope = (network(x + h * v, t + h, s, prompt) - network(x - h * v, t - h, s, prompt)) / (2 * h)
    u = network(x, t, s, prompt)
    assert torch.allclose(told, u + (t - s)[:, None] * slope, atol=1e-8)
    weights = list(network.parameters())
    for ours, theirs in zip(torch.autograd.grad(told.sum(), weights), torch.autograd.grad(u.sum(), weights), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-8)


def test_rows_keep_their_places_whether_they_are_jumps_or_velocities() -> None:
    generator, portion = TinyGenerator(), noised(AWMObjective(interval_share=0.5), lesson_of())
    told = AWMObjective().predict(portion, generator)
    kinds_seen = set()
    for i in range(8):
        flow_map, row = generator.bind(portion.embeddings[i : i + 1]), slice(i, i + 1)
        jump = bool(portion.s[i] < portion.t[i])
        kinds_seen.add(jump)
        if jump:
            alone = induced_velocity(flow_map, portion.x[row], portion.t[row], portion.s[row])
        else:
            alone = flow_map.velocity(portion.x[row], portion.t[row])
        assert torch.allclose(told[row], alone, atol=1e-6)
    assert kinds_seen == {True, False}


class OneWay(torch.autograd.Function):
    """The identity, without a forward derivative, as fused attention has none."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_only_jumps_need_a_forward_derivative() -> None:
    generator, lesson = TinyGenerator(), lesson_of()
    generator.network.leave.register_forward_hook(lambda module, inputs, output: OneWay.apply(output))
    velocities, jumps = AWMObjective(interval_share=0.0), AWMObjective(interval_share=1.0)
    assert velocities.predict(noised(velocities, lesson), generator).requires_grad
    with pytest.raises(RuntimeError):
        jumps.predict(noised(jumps, lesson), generator)
    generator.kind = "velocity"
    assert jumps.predict(noised(jumps, lesson), generator).requires_grad


@pytest.mark.parametrize(("share", "kind"), [(0.0, "two_time"), (0.5, "two_time"), (1.0, "two_time"), (1.0, "velocity")])
def test_a_row_costs_one_trained_pass_and_a_jump_two_calls_more(share: float, kind: FlowMapKind) -> None:
    generator, objective = TinyGenerator(kind), AWMObjective(interval_share=share)
    portion = noised(objective, lesson_of())
    objective.predict(portion, generator)
    jumps = int((portion.s < portion.t).sum()) if kind == "two_time" else 0
    assert sum(rows for rows, kept in generator.network.calls if kept) == 8
    assert sum(rows for rows, kept in generator.network.calls if not kept) == 2 * jumps


# Losses by hand


@pytest.mark.parametrize("kind", ["two_time", "velocity"])
@pytest.mark.parametrize("name", FORWARD)
def test_the_gradient_does_not_depend_on_the_size_of_portions(name: str, kind: FlowMapKind) -> None:
    objective, generator = FORWARD[name](draws=2, kl_weight=0.3, interval_share=0.5), TinyGenerator(kind)
    whole = policy_gradient(objective, lesson_of(portion=64), generator)
    assert float(whole.norm()) > 1e-3
    for size in (1, 3, 4):
        parts = policy_gradient(objective, lesson_of(portion=size), generator)
        assert float((parts - whole).norm()) < 1e-5 * float(whole.norm())


@pytest.mark.parametrize("name", FORWARD)
def test_the_distance_to_the_reference_is_told_and_weighed(name: str) -> None:
    without, objective = FORWARD[name](kl_weight=0.0), FORWARD[name](kl_weight=0.7)
    portion = noised(objective, lesson_of())
    v, reference = someones_velocity(portion), someones_velocity(portion, 4)
    plain_loss, _ = without.loss(portion, v, reference=reference)
    loss, figures = objective.loss(portion, v, reference=reference)
    assert torch.allclose(figures["kl"], (v - reference).square().mean(1))
    assert float(loss - plain_loss) == pytest.approx(0.7 * float(figures["kl"].mean()), rel=1e-4)
    assert float(figures["loss"].mean()) == pytest.approx(float(plain_loss), rel=1e-5)
    assert objective.wants_reference


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_nft_at_first_is_normalised_flow_matching_times_the_advantage_whatever_beta(beta: float) -> None:
    objective = NFTObjective(beta=beta, advantage_max=2.0)
    lesson = lesson_of()
    portion = noised(objective, lesson)
    v = someones_velocity(portion)
    error = v - (portion.noise - portion.x0)
    scale = portion.t[:, None] * error.abs().mean(1, keepdim=True)
    by_hand = (lesson.advantages / 2.0)[:, None] * portion.t[:, None] ** 2 * 2 * error / 3 / scale / 8
    assert torch.allclose(gradient_of(objective, portion, v), by_hand, atol=1e-6)
    assert not gradient_of(objective, portion, v)[4:].any()  # where r = 1/2 and v = v_old


def test_nft_pulls_wholly_good_samples_and_pushes_wholly_bad_ones() -> None:
    objective = NFTObjective(advantage_max=0.1)
    portion = noised(objective, lesson_of())
    v = someones_velocity(portion)
    assert portion.weights[:4].tolist() == [0.0, 1.0, 0.0, 1.0]
    moved = v - 1e-2 * gradient_of(objective, portion, v)
    closer = portion.errors(moved) < portion.errors(v)
    assert closer[:4].tolist() == [False, True, False, True]


def test_nft_holds_the_policy_near_the_one_that_sampled() -> None:
    objective = NFTObjective()
    portion = noised(objective, lesson_of([1.0] * 8))
    v, old = someones_velocity(portion), someones_velocity(portion, 4)
    pull = -(gradient_of(objective, portion, v, old=old) * (old - v)).sum(1)
    assert bool((pull < 0).logical_not().all())
    assert float(pull.mean()) > 0


def test_the_loss_of_nft_follows_its_formula_away_from_the_old_policy() -> None:
    objective = NFTObjective(beta=0.4, advantage_max=2.0)
    lesson = lesson_of()
    portion = noised(objective, lesson)
    v, old = someones_velocity(portion), someones_velocity(portion, 4)
    t, terms = portion.t[:, None], []
    for velocity in (0.4 * v + 0.6 * old, 1.4 * old - 0.4 * v):
        error = portion.x - t * velocity - portion.x0
        terms.append(error.square().mean(1) / error.abs().mean(1))
    r = (lesson.advantages / 4.0 + 0.5).clamp(0, 1)
    expected = ((r * terms[0] + (1 - r) * terms[1]) / 0.4).mean()
    assert float(objective.loss(portion, v, old=old)[0]) == pytest.approx(float(expected), rel=1e-4)


def test_the_policy_that_samples_for_nft_lags_more_and_more_up_to_a_limit() -> None:
    assert [NFTObjective().behaviour_decay(n) for n in (0, 100, 5000)] == pytest.approx([0.0, 0.1, 0.5])
    assert [FORWARD[name]().behaviour_decay(3) for name in ("awm", "reward_weighted", "dpo")] == [None] * 3


def test_the_first_ratio_of_awm_is_exactly_1_and_its_gradient_is_advantage_weighted_flow_matching() -> None:
    objective, lesson, generator = AWMObjective(weighting="uniform", kl_weight=0.0), lesson_of(), TinyGenerator()
    portion = noised(objective, lesson)
    with torch.no_grad():
        stored = objective.predict(portion, generator)
    v = objective.predict(portion, generator)
    assert bool((objective.loss(portion, v, old=stored)[1]["ratio"] == 1).all())
    figures = objective.loss(portion, v)[1]
    assert bool((figures["ratio"] == 1).all())
    assert not figures["clip_fraction"].any()
    matching = (lesson.advantages * (v - (portion.noise - portion.x0)).square().mean(1)).mean()
    by_hand = torch.cat([g.flatten() for g in torch.autograd.grad(matching, list(generator.network.parameters()))])
    assert torch.allclose(policy_gradient(objective, lesson, generator), by_hand, atol=1e-6)


def test_the_weighting_of_awm_scales_the_gradient_of_a_row() -> None:
    portion = noised(AWMObjective(), lesson_of())
    v = someones_velocity(portion)
    plain, timed, huber = (gradient_of(AWMObjective(weighting=name), portion, v) for name in ("uniform", "time", "huber"))
    t, e = portion.t[:, None], portion.errors(v)[:, None]
    assert torch.allclose(timed, t * plain, atol=1e-6)
    assert torch.allclose(huber, t * e**-0.75 * plain, atol=1e-6)


def test_awm_stops_pulling_what_has_left_the_trust_region() -> None:
    objective, lesson = AWMObjective(weighting="uniform", clip_range=0.01, kl_weight=0.0), lesson_of()
    portion = noised(objective, lesson)
    target, old = portion.noise - portion.x0, someones_velocity(portion)
    gone = torch.where(lesson.advantages[:, None] > 0, target + 0.5 * (old - target), target + 2.0 * (old - target))
    assert not gradient_of(objective, portion, gone, old=old).any()
    figures = objective.loss(portion, gone, old=old)[1]
    assert bool((figures["clip_fraction"] == 1).all())
    expected = torch.exp(portion.errors(old) - portion.errors(gone))
    assert torch.allclose(figures["ratio"], expected)
    assert gradient_of(objective, portion, 2 * old - gone, old=old)[:4].any()


def test_reward_weighted_regression_is_flow_matching_at_equal_rewards() -> None:
    objective, generator = RewardWeightedObjective(kl_weight=0.0), TinyGenerator()
    lesson = lesson_of([1.0] * 8)
    portion = noised(objective, lesson)
    v = objective.predict(portion, generator)
    matching = (v - (portion.noise - portion.x0)).square().mean()
    by_hand = torch.cat([g.flatten() for g in torch.autograd.grad(matching, list(generator.network.parameters()))])
    assert torch.allclose(policy_gradient(objective, lesson, generator), by_hand, atol=1e-6)


def test_reward_weights_are_exponential_and_average_to_one_in_every_group() -> None:
    lesson = lesson_of()
    weights = noised(RewardWeightedObjective(temperature=0.5), lesson).weights
    assert torch.allclose(weights.view(2, 4).mean(1), torch.ones(2))
    assert torch.allclose((weights[1] / weights[0]).log(), (lesson.advantages[1] - lesson.advantages[0]) / 0.5, atol=1e-4)
    assert torch.allclose(
        noised(RewardWeightedObjective(temperature=0.01), lesson).weights, torch.tensor([0.0, 4, 0, 0, 1, 1, 1, 1]), atol=1e-6
    )


def test_dpo_compares_the_best_with_the_worst_at_one_noise_and_time() -> None:
    lesson = lesson_of()
    portion = noised(DPOObjective(), lesson)
    assert torch.equal(portion.x0[:2], lesson.rollout.final[[1, 0]])
    assert torch.equal(portion.noise[::2], portion.noise[1::2])
    assert torch.equal(portion.t[::2], portion.t[1::2])
    assert torch.equal(portion.s[::2], portion.s[1::2])
    assert portion.weights.tolist() == [1, 1, 0, 0]


def test_the_gradient_of_dpo_is_that_of_its_formula_and_equal_groups_have_none() -> None:
    objective, lesson = DPOObjective(beta=3.0), lesson_of()
    portion = noised(objective, lesson)
    v, reference = someones_velocity(portion).requires_grad_(), someones_velocity(portion, 4)
    target = portion.noise - portion.x0
    best, worst = ((v[i] - target[i]).square().mean() - (reference[i] - target[i]).square().mean() for i in (0, 1))
    by_hand = torch.autograd.grad(-logsigmoid(-3.0 * (best - worst)) / 2, v)[0]  # one pair of two
    told = gradient_of(objective, portion, v.detach(), reference=reference)
    assert torch.allclose(told, by_hand, atol=1e-6)
    assert told[:2].any()
    assert not told[2:].any()


# Learning


@pytest.mark.parametrize("kind", ["two_time", "velocity"])
@pytest.mark.parametrize("name", FORWARD)
def test_every_objective_raises_the_reward_of_samples_drawn_without_noise(name: str, kind: FlowMapKind) -> None:
    """A tiny network that begins as the identity flow is to move its samples along the first axis."""
    objective = FORWARD[name](kl_weight=0.1, interval_share=0.5, **({"beta": 3.0} if name == "dpo" else {}))
    generator, reference = TinyGenerator(kind), TinyGenerator(kind)
    for network in (generator.network, reference.network):
        nn.init.zeros_(network.leave.weight)
        nn.init.zeros_(network.leave.bias)
    optimizer = torch.optim.Adam(generator.network.parameters(), lr=3e-3)
    plan = Plan(TIMES, group_size=8, structure="chain", steps=())
    rewards = []
    for iteration in range(60):
        rollout = sample_rollout(generator, ODESampler(), ["a", "four", "eleven characters"], plan, key=(0, iteration))
        rewards.append(float(rollout.final[:, 0].mean()))
        lesson = Lesson(rollout, ODESampler(), group_advantages(rollout.final[:, 0], 8), (), (), 10, (0, iteration))
        for portion in objective.portions(lesson):
            with torch.no_grad():
                told = objective.predict(portion, reference) if objective.wants_reference else None
            objective.loss(portion, objective.predict(portion, generator), reference=told)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    gained = sum(rewards[-10:]) / 10 - sum(rewards[:10]) / 10
    assert gained > 0.3  # the standard error of such a mean of 240 samples is 0.065


@pytest.mark.parametrize("name", FORWARD)
def test_a_run_on_deterministic_samples_tells_its_figures(name: str) -> None:
    changes = {"objective.name": name, "sampler.name": "ode", "rollout.mode": "all", "grpo.epochs": 2, "iterations": 1}
    config = small(**{key.replace(".", "__"): value for key, value in changes.items()}, objective__kl_weight=0.1)
    events = told(train(config))
    (metrics,) = [event.metrics for event in events if isinstance(event, IterationDone)]
    assert {"loss", "kl"} <= metrics.keys()
    assert metrics["update_size"] > 0
    assert ("ratio" in metrics) == (name == "awm")
    assert not [check for event in events for check in getattr(event, "checks", ()) if check.name == "ratio"]


def test_a_resumed_run_goes_on_with_the_policy_that_samples_bit_for_bit() -> None:
    config = small(
        objective__name="nft", objective__decay_rate=0.2, sampler__name="ode", rollout__mode="all", compute__train_batch=5
    )
    whole = told(train(config))
    checkpoints = [event for event in whole if isinstance(event, CheckpointReady)]
    middle = next(event for event in checkpoints if event.iteration == 2)
    lags = [not torch.equal(value, middle.tensors["behaviour"][name]) for name, value in middle.tensors["policy"].items()]
    assert any(lags)
    resumed = told(train(config, resume=middle))
    rest = whole[whole.index(middle) + 1 :]
    assert kinds(resumed) == [("Started", 2), *kinds(rest)]
    for ours, theirs in zip(resumed[1:], rest, strict=True):
        assert plain(ours) == plain(theirs)
    assert_same_state(resumed[-2], checkpoints[-1])  # type: ignore[arg-type]


# Refusals


def test_samples_without_noise_are_refused_where_steps_are_scored_and_the_others_are_named() -> None:
    changes = {"sampler.name": "ode", "rollout.mode": "all"}
    with pytest.raises(ValueError, match=r"'grpo' has no ratio to train.*nft, awm, reward_weighted, dpo"):
        configure("shapes", changes)
    for name in FORWARD:
        assert configure("shapes", changes | {"objective.name": name}).objective.name == name
    with pytest.raises(ValueError, match=r"must start from different noise: use rollout\.mode = 'all'"):
        configure("shapes", {"sampler.name": "ode", "objective.name": "nft"})


class SingleTimeModel(Model):
    """A map that reaches only the data."""

    name: Literal["single"] = "single"
    kind: ClassVar[FlowMapKind] = "single_time"

    def load(self, device: torch.device) -> Generator:
        raise AssertionError("a mismatch is told before anything is loaded")


@pytest.mark.parametrize("name", FORWARD)
def test_maps_without_a_velocity_are_refused(name: str) -> None:
    config = configure("shapes", {"objective.name": name, "sampler.name": "ode", "rollout.mode": "all"})
    with pytest.raises(ValueError, match=f"objective '{name}' needs a two_time or velocity map.*choose from: grpo"):
        check_maps(config.model_copy(update={"model": SingleTimeModel()}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective.beta": 0}, ["objective.beta", "greater than 0"]),
        ({"objective.interval_share": 1.5}, ["objective.interval_share", "less than or equal to 1"]),
        ({"objective.temperature": 1}, ["temperature", "choose from", "interval_share", "beta"]),
        ({"objective.name": "ntf"}, ["unknown objective 'ntf'", "grpo, nft, awm, reward_weighted, dpo"]),
    ],
)
def test_a_mistake_names_the_setting_and_the_choices(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        configure("shapes", {"objective.name": "nft", "sampler.name": "ode", "rollout.mode": "all"} | changes)
    for word in words:
        assert word in str(error.value)
