"""Rollouts: what an image depends on, and transitions that the update can score again exactly."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from workbench.contracts import FlowMapKind, Sampler
from workbench.flow import Gaussian, seed_stream, seeded_noise, time_grid
from workbench.lesson import Lesson, portions
from workbench.models.policy import Policy
from workbench.models.shapes import ShapesModel
from workbench.objectives.grpo import GRPOObjective
from workbench.rollout import Plan, Rollout, child_log_probs, children_of_a_tree, sample_rollout
from workbench.samplers import SAMPLERS
from workbench.tasks.shapes import ShapesTask

CPU = torch.device("cpu")
PROMPTS = list(ShapesTask().prompts("train")[:5])
TIMES = time_grid(4, 4.0)
PLAN = Plan(TIMES, group_size=4, structure="branch", steps=(1,), train_batch=2, sample_batch=7)
CHAINS = replace(PLAN, structure="chain", steps=(0, 1, 2))
PLANS = {
    "every step": CHAINS,
    "window": replace(CHAINS, steps=(1, 2)),
    "no step": replace(CHAINS, steps=()),
    "seed groups": replace(CHAINS, shared_noise=True),
    "first branch": replace(PLAN, steps=(0,)),
    "last branch": replace(PLAN, steps=(2,), completion="compose"),
    "branches": replace(PLAN, steps=(0, 1, 2)),
    "tree": replace(PLAN, structure="tree", steps=(0, 2)),
}
SAMPLERS_TRAINED = {"asfmc": SAMPLERS["asfmc"](), "flow_sde": SAMPLERS["flow_sde"]()}


class ToyGenerator:
    """A flow map without matrix products, so that what a row gives cannot depend on its batch even in the last bit.

    psi(x, t, s) = x (1 + s) / (1 + t) + c (t - s), where c is a number read off the prompt.
    """

    latent_shape: tuple[int, ...] = (3, 2, 2)
    kind: FlowMapKind = "two_time"
    network = torch.nn.Identity()
    device = CPU

    def __init__(self) -> None:
        self.calls: list[tuple[int, float, float]] = []

    def embed(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([sum(map(ord, prompt)) % 97 / 97 for prompt in prompts]).view(-1, 1, 1, 1)

    def bind(self, embeddings: Tensor) -> "ToyMap":
        return ToyMap(embeddings, self.calls)

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class ToyMap:
    kind: FlowMapKind = "two_time"

    def __init__(self, embeddings: Tensor, calls: list[tuple[int, float, float]]) -> None:
        self.embeddings, self.calls = embeddings, calls

    def __call__(self, x: Tensor, t: float, s: float) -> Tensor:
        self.calls.append((len(x), t, s))
        return x * ((1 + s) / (1 + t)) + self.embeddings * (t - s)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        self.calls.append((len(x), t, t))
        return x / (1 + t) - self.embeddings


def draw(
    plan: Plan = PLAN, sampler: Sampler = SAMPLERS_TRAINED["asfmc"], prompts: Sequence[str] = PROMPTS, first: int = 0
) -> Rollout:
    return sample_rollout(ToyGenerator(), sampler, prompts, plan, key=(0, 3), first_prompt=first)


@cache
def embedded(adapter: str = "full", precision: str = "no") -> Policy:
    """The embedded generator, which these tests leave as it is."""
    return Policy(ShapesModel(), CPU, adapter=adapter, rank=4, precision=precision)  # type: ignore[arg-type]


# What an image depends on


@pytest.mark.parametrize("name", PLANS)
def test_an_image_depends_on_its_seed_and_not_on_its_batch(name: str) -> None:
    plan = PLANS[name]
    whole = draw(plan)
    for changed in (replace(plan, train_batch=1), replace(plan, train_batch=64, sample_batch=1)):
        assert torch.equal(draw(changed).final, whole.final)
    found = dict(zip(whole.seeds, whole.final, strict=True))
    seen: dict[int, str] = {}
    parts = [draw(plan, prompts=PROMPTS[i:j], first=i) for i, j in ((0, 2), (2, 3), (3, 5))]
    for part in parts:
        assert all(torch.equal(found[seed], image) for seed, image in zip(part.seeds, part.final, strict=True))
        seen |= dict(zip(part.seeds, part.prompts, strict=True))
    assert seen == dict(zip(whole.seeds, whole.prompts, strict=True))
    for number, transition in enumerate(whole.transitions):
        assert torch.equal(torch.cat([part.transitions[number].children for part in parts]), transition.children)


def test_the_embedded_generator_gives_the_same_samples_in_any_batch() -> None:
    """Matrix products may round differently; the noise may not differ at all."""
    generator = embedded().generator
    whole = sample_rollout(generator, SAMPLERS["asfmc"](), PROMPTS, CHAINS, key=(0,))
    part = sample_rollout(generator, SAMPLERS["asfmc"](), PROMPTS[3:], replace(CHAINS, train_batch=3), key=(0,), first_prompt=3)
    assert part.seeds == whole.seeds[12:]
    assert torch.equal(part.latents[0], whole.latents[0][12:])
    assert torch.allclose(part.final, whole.final[12:], atol=1e-4)


def test_other_runs_iterations_prompts_and_samples_are_other_streams() -> None:
    seeds = {
        seed
        for key in ((0, 0), (0, 1), (1, 0))
        for seed in sample_rollout(ToyGenerator(), SAMPLERS["asfmc"](), PROMPTS, PLAN, key=key).seeds
    }
    assert len(seeds) == 3 * len(PROMPTS) * PLAN.group_size


def test_groups_are_contiguous() -> None:
    rollout = draw()
    assert rollout.prompts == tuple(prompt for prompt in PROMPTS for _ in range(4))
    assert rollout.final.shape == (20, 3, 2, 2)
    assert all(len(row) == 20 for row in rollout.log_probs)
    expected = [seed_stream("rollout", 0, 3, p, j) for p in range(5) for j in range(4)]
    assert list(rollout.seeds) == expected


def test_repeated_prompts_are_drawn_apart() -> None:
    rollout = draw(prompts=["a circle", "a circle"])
    assert not torch.equal(rollout.final[:4], rollout.final[4:])


# Branching


def test_children_of_a_branch_share_their_state_and_its_gaussian() -> None:
    (transition,) = draw().transitions
    assert transition.step == 1
    assert (transition.t, transition.s) == (PLAN.times[1], PLAN.times[2])
    assert transition.states.shape == transition.means.shape == (5, 3, 2, 2)
    assert transition.children.shape == (5, 4, 3, 2, 2)
    trunk = seeded_noise([seed_stream(seed, -1) for seed in draw().seeds[::4]], (3, 2, 2))
    generator = ToyGenerator()
    assert torch.equal(transition.states, generator.bind(generator.embed(PROMPTS))(trunk, PLAN.times[0], PLAN.times[1]))


def test_antithetic_children_mirror_one_another_around_the_mean() -> None:
    (transition,) = draw().transitions
    away = transition.children - transition.means[:, None]
    assert torch.allclose(away[:, :2], -away[:, 2:], atol=1e-6)
    assert torch.allclose(transition.log_probs[:, :2], transition.log_probs[:, 2:], atol=1e-5)
    (free,) = draw(replace(PLAN, antithetic=False)).transitions
    assert torch.equal(free.children[:, :2], transition.children[:, :2])
    assert not torch.allclose(free.children[:, 2:], transition.children[:, 2:], atol=0.1)


def test_a_jump_is_one_call_for_each_child_and_composition_one_for_each_step() -> None:
    ends = {}
    for completion in ("jump", "compose"):
        generator = ToyGenerator()
        plan = replace(PLAN, steps=(0,), completion=completion, train_batch=64, sample_batch=64)
        rollout = sample_rollout(generator, SAMPLERS["asfmc"](), PROMPTS, plan, key=(0,))
        ends[completion] = [(rows, s) for rows, _, s in generator.calls if rows == 20]
        (transition,) = rollout.transitions
        flow_map = ToyGenerator().bind(ToyGenerator().embed(rollout.prompts))
        x = transition.children.flatten(0, 1)
        hops = [(plan.times[1], 0.0)] if completion == "jump" else list(zip(plan.times[1:], plan.times[2:], strict=False))
        for t, s in hops:
            x = flow_map(x, t, s)
        assert torch.equal(rollout.final, x)
    assert ends == {"jump": [(20, 0.0)], "compose": [(20, s) for s in PLAN.times[2:]]}


def test_forwards_of_a_branch_are_the_trunk_the_states_and_the_children() -> None:
    generator = ToyGenerator()
    sample_rollout(generator, SAMPLERS["asfmc"](), PROMPTS, replace(PLAN, steps=(2,)), key=(0,))
    assert sum(rows for rows, _, _ in generator.calls) == 5 * 2 + 5 + 20


def composed(x: Tensor, prompts: Sequence[str], times: Sequence[float]) -> Tensor:
    """Deterministic composition of the toy map along `times`."""
    flow_map = ToyGenerator().bind(ToyGenerator().embed(prompts))
    for t, s in pairwise(times):
        x = flow_map(x, t, s)
    return x


@pytest.mark.parametrize(("completion", "calls_of_a_child"), [("jump", 5), ("compose", 15)])
def test_branching_at_every_step_costs_k_t_by_jumps_and_half_k_t_squared_by_composition(
    completion: str, calls_of_a_child: int
) -> None:
    """T = 6 steps, of which 5 branch: a child of step i is finished in one jump, or in the 5 - i steps left."""
    generator = ToyGenerator()
    plan = replace(PLAN, times=time_grid(6), steps=(0, 1, 2, 3, 4), completion=completion)  # type: ignore[arg-type]
    rollout = sample_rollout(generator, SAMPLERS["asfmc"](), PROMPTS, plan, key=(0,))
    trunk, states, children = 5 * 4, 5 * 5, 5 * 4 * calls_of_a_child
    assert sum(rows for rows, _, _ in generator.calls) == trunk + states + children
    assert len(rollout.final) == 5 * 4 * 5


@pytest.mark.parametrize("steps", [(0, 1, 2), (0, 2)])
@pytest.mark.parametrize("completion", ["jump", "compose"])
def test_every_branching_step_has_groups_of_its_own_that_leave_one_trunk(steps: tuple[int, ...], completion: str) -> None:
    rollout = draw(replace(PLAN, steps=steps, completion=completion))  # type: ignore[arg-type]
    assert [transition.step for transition in rollout.transitions] == list(steps)
    assert rollout.prompts == tuple(prompt for prompt in PROMPTS for _ in range(4)) * len(steps)
    assert len(set(rollout.seeds)) == len(rollout.seeds) == 20 * len(steps)
    start = seeded_noise([seed_stream(seed, -1) for seed in rollout.seeds[:20:4]], (3, 2, 2))
    for turn, transition in enumerate(rollout.transitions):
        own = slice(20 * turn, 20 * turn + 20)
        assert torch.equal(transition.leaves, torch.arange(own.start, own.stop).view(5, 4, 1))
        assert torch.equal(transition.rows, torch.arange(5))
        assert torch.equal(transition.states, composed(start, PROMPTS, TIMES[: transition.step + 1]))
        rest = TIMES[transition.step + 1 :]
        hops = (rest[0], 0.0) if completion == "jump" else rest
        finished = composed(transition.children.flatten(0, 1), rollout.prompts[own], hops)
        assert torch.equal(rollout.final[own], finished)


def test_one_branching_step_among_several_is_what_it_would_be_alone() -> None:
    """The first of them bit for bit; later ones have seeds of their own, since no two samples may share one."""
    alone, together = draw(replace(PLAN, steps=(0,))), draw(replace(PLAN, steps=(0, 2)))
    assert together.seeds[:20] == alone.seeds
    assert torch.equal(together.final[:20], alone.final)
    assert torch.equal(together.transitions[0].children, alone.transitions[0].children)


def test_a_sample_has_a_log_probability_only_at_the_step_where_it_branched() -> None:
    rollout = draw(replace(PLAN, steps=(0, 2)))
    first, second = rollout.log_probs
    assert torch.equal(first[:20], rollout.transitions[0].log_probs.flatten())
    assert torch.equal(second[20:], rollout.transitions[1].log_probs.flatten())
    assert first[20:].isnan().all()
    assert second[:20].isnan().all()


# Trees


@pytest.mark.parametrize("completion", ["jump", "compose"])
@pytest.mark.parametrize("step", [0, 2])
def test_a_tree_that_splits_once_is_a_branch_bit_for_bit(step: int, completion: str) -> None:
    plan = replace(PLAN, steps=(step,), completion=completion)  # type: ignore[arg-type]
    (branch,), (tree,) = (draw(replace(plan, structure=kind)).transitions for kind in ("branch", "tree"))  # type: ignore[arg-type]
    for name in ("states", "children", "means", "log_probs", "leaves", "rows"):
        assert torch.equal(getattr(branch, name), getattr(tree, name)), name
    assert torch.equal(draw(plan).final, draw(replace(plan, structure="tree")).final)


@pytest.mark.parametrize("completion", ["jump", "compose"])
def test_every_node_of_a_tree_grows_from_the_child_that_it_is(completion: str) -> None:
    plan = replace(PLAN, structure="tree", steps=(0, 2), group_size=16, completion=completion)  # type: ignore[arg-type]
    rollout = draw(plan)
    first, second = rollout.transitions
    assert first.children.shape == (5, 4, 3, 2, 2)
    assert second.children.shape == (20, 4, 3, 2, 2)
    assert second.rows.tolist() == [p for p in range(5) for _ in range(4)]
    assert torch.equal(second.states, composed(first.children.flatten(0, 1), [PROMPTS[row] for row in second.rows], TIMES[1:3]))
    assert torch.equal(rollout.final, composed(second.children.flatten(0, 1), rollout.prompts, (TIMES[3], 0.0)))
    assert torch.equal(first.leaves, torch.arange(80).view(5, 4, 4))
    assert torch.equal(second.leaves, torch.arange(80).view(20, 4, 1))
    shared, own = rollout.log_probs
    assert torch.equal(shared, first.log_probs.flatten().repeat_interleave(4))
    assert torch.equal(own, second.log_probs.flatten())
    assert len(torch.unique(rollout.final.flatten(1), dim=0)) == 80


def test_only_the_last_split_of_a_tree_may_jump() -> None:
    """Before it nodes are carried along the grid, since that is where they split again."""
    generators = {}
    for completion in ("jump", "compose"):
        generators[completion] = ToyGenerator()
        plan = replace(PLAN, structure="tree", steps=(0, 1), completion=completion, sample_batch=64)  # type: ignore[arg-type]
        sample_rollout(generators[completion], SAMPLERS["asfmc"](), PROMPTS, plan, key=(0,))
    rows = {name: sum(calls for calls, _, _ in generator.calls) for name, generator in generators.items()}
    assert rows == {"jump": 5 + 10 + 20, "compose": 5 + 10 + 2 * 20}


def test_every_split_of_a_tree_is_antithetic() -> None:
    for transition in draw(replace(PLAN, structure="tree", steps=(0, 1, 2), group_size=8)).transitions:
        away = transition.children - transition.means[:, None]
        assert torch.allclose(away[:, 0], -away[:, 1], atol=1e-6)
        assert len(torch.unique(away[:, 0].flatten(1), dim=0)) == len(away)


@pytest.mark.parametrize(
    ("leaves", "splits", "children"), [(8, 3, 2), (27, 3, 3), (64, 3, 4), (7, 1, 7), (2**12, 12, 2), (10**6, 6, 10)]
)
def test_children_of_a_tree_multiply_to_its_leaves(leaves: int, splits: int, children: int) -> None:
    assert children_of_a_tree(leaves, splits) == children


@pytest.mark.parametrize(("leaves", "splits"), [(9, 3), (2, 2), (1, 1), (8, 0)])
def test_a_tree_whose_leaves_do_not_fit_is_told_which_would(leaves: int, splits: int) -> None:
    fitting = {3: "8, 27, 64", 2: "4, 9, 16", 1: "2, 3, 4", 0: "none without a split"}[splits]
    with pytest.raises(ValueError, match=f"splits {splits} times cannot have {leaves} leaves; possible are: {fitting}"):
        children_of_a_tree(leaves, splits)


# Every step stochastic, or some


def test_every_step_but_the_last_is_scored() -> None:
    rollout = draw(CHAINS)
    assert [transition.step for transition in rollout.transitions] == [0, 1, 2]
    assert all(transition.children.shape == (20, 1, 3, 2, 2) for transition in rollout.transitions)
    assert torch.equal(rollout.latents[1], rollout.transitions[0].children[:, 0])
    last = ToyGenerator().bind(ToyGenerator().embed(rollout.prompts))(rollout.transitions[2].children[:, 0], PLAN.times[3], 0.0)
    assert torch.equal(rollout.final, last)


@pytest.mark.parametrize("steps", [(0,), (1, 2), (1,), ()])
def test_outside_a_window_a_trajectory_is_deterministic_composition(steps: tuple[int, ...]) -> None:
    rollout = draw(replace(CHAINS, steps=steps))
    assert [transition.step for transition in rollout.transitions] == list(steps)
    x, at = seeded_noise([seed_stream(seed, -1) for seed in rollout.seeds], (3, 2, 2)), 0
    for transition in rollout.transitions:
        assert torch.equal(transition.states, composed(x, rollout.prompts, TIMES[at : transition.step + 1]))
        x, at = transition.children[:, 0], transition.step + 1
    assert torch.equal(rollout.final, composed(x, rollout.prompts, TIMES[at:]))
    assert all(not row.isnan().any() for row in rollout.log_probs)


def test_without_a_stochastic_step_samples_differ_by_their_initial_noise_alone() -> None:
    rollout = draw(replace(CHAINS, steps=()), SAMPLERS["ode"]())
    assert rollout.transitions == rollout.log_probs == ()
    assert len(torch.unique(rollout.final.flatten(1), dim=0)) == 20
    assert torch.equal(rollout.final, draw(replace(CHAINS, steps=(), train_batch=1), SAMPLERS_TRAINED["flow_sde"]).final)


def test_seed_groups_share_their_initial_noise_and_nothing_else() -> None:
    apart, shared = (draw(replace(CHAINS, shared_noise=flag)) for flag in (False, True))
    starts = shared.latents[0].unflatten(0, (5, 4))
    assert all(torch.equal(starts[:, 0], starts[:, i]) for i in range(4))
    assert torch.equal(shared.latents[0][::4], apart.latents[0][::4])
    assert len(torch.unique(apart.latents[0].flatten(1), dim=0)) == 20
    assert len(torch.unique(shared.final.flatten(1), dim=0)) == 20


# Scores


@pytest.mark.parametrize("sampler", SAMPLERS_TRAINED)
@pytest.mark.parametrize("name", PLANS)
def test_log_probabilities_are_those_of_the_noise_that_was_drawn(sampler: str, name: str) -> None:
    rollout = draw(PLANS[name], SAMPLERS_TRAINED[sampler])
    for transition in rollout.transitions:
        means = transition.means.repeat_interleave(transition.children.shape[1], 0)
        expected = Gaussian(means, transition.std).log_prob(transition.children.flatten(0, 1))
        assert torch.equal(transition.log_probs.flatten(), expected)
        xi = (transition.children.flatten(0, 1) - means) / transition.std
        by_hand = (
            -0.5 * xi.square().flatten(1).mean(1)
            - torch.tensor(transition.std).log()
            - 0.5 * torch.log(torch.tensor(2 * torch.pi))
        )
        assert torch.allclose(expected, by_hand, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 1), (3, 4)])
def test_children_are_scored_as_if_each_had_its_state_to_itself(shape: tuple[int, int]) -> None:
    gaussian, children = Gaussian(torch.randn(3, 6), 0.3), torch.randn(*shape, 6)
    rows = [Gaussian(gaussian.mean[i : i + 1], 0.3).log_prob(children[i, j][None])[0] for i in range(3) for j in range(shape[1])]
    assert torch.allclose(child_log_probs(gaussian, children), torch.stack(rows).view(shape))


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("sampler", SAMPLERS_TRAINED)
@pytest.mark.parametrize("name", ["every step", "window", "branches", "tree"])
def test_the_first_ratio_is_exactly_one(sampler: str, name: str, precision: str, adapter: str) -> None:
    """In portions of two states, drawn without gradients and scored again with them."""
    generator, kernel, objective = embedded(adapter, precision).generator, SAMPLERS_TRAINED[sampler], GRPOObjective()
    rollout = sample_rollout(generator, kernel, PROMPTS[:3], replace(PLANS[name], sample_batch=5), key=(0,))
    credits = tuple(torch.ones_like(transition.log_probs) for transition in rollout.transitions)
    lesson = Lesson(rollout, kernel, torch.ones(len(rollout.prompts)), credits, (0.3, 0.3, 0.3), PLAN.train_batch, (0,))
    scored = 0
    for portion in objective.portions(lesson):
        mean = objective.predict(portion, generator)
        assert mean.requires_grad
        assert mean.dtype == torch.float32
        ratio = objective.loss(portion, mean)[1]["ratio"]
        assert torch.equal(ratio, torch.ones_like(ratio))
        scored += len(ratio)
    assert scored == sum(transition.log_probs.numel() for transition in rollout.transitions)


def test_portions_cover_everything_once() -> None:
    assert [(part.start, part.stop) for part in portions(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    assert portions(2, 64) == [slice(0, 2)]
