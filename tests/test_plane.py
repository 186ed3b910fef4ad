"""The plane: distributions drawn by hand, what kernels make of them, and GRPO on a map that is known exactly."""

import math

import pytest
import torch
from scipy.stats import kstest

from workbench.config import validated
from workbench.energy import EnergyReference
from workbench.flow import time_grid
from workbench.lab import GaussianMixture, exact_flow_map
from workbench.pathlab import BINS, VIEW, Data, WalkRequest, accuracy, distribution, marginal, walk
from workbench.plane import (
    GROUP_SIZE,
    GROUPS,
    KEPT,
    PARTICLES,
    Lever,
    PlaneGenerator,
    PlaneLearner,
    PlaneLearners,
    PlaneSettings,
    bump,
)
from workbench.samplers import SAMPLERS
from workbench.update import first_ratios

WAVE = [[(-3 + 6 * i / 50, 2 * math.sin(i / 8)) for i in range(51)], [(0.0, -3.0)]]
NAMES = ("double_ring", "moons", "grid", "spiral", "drawn")
DATA = {name: Data(name=name, strokes=WAVE if name == "drawn" else ()) for name in NAMES}
UP = Lever(x=0.0, y=3.0, width=0.8)


def request(**changes) -> WalkRequest:
    return validated(WalkRequest, changes)


def test_a_drawing_becomes_a_mixture_whose_mass_goes_by_length():
    drawn = distribution(Data(name="drawn", strokes=[[(-3, 0), (-1, 0)], [(0, 1), (0, 1)], [(1, -2), (1, 2)]], brush=0.1))
    assert isinstance(drawn, GaussianMixture)
    assert len(drawn.means) <= 40
    assert set(drawn.stds.tolist()) == {0.1}
    left, right = (drawn.means[:, 0] < -0.5).sum(), (drawn.means[:, 0] > 0.5).sum()
    assert abs(int(right) - 2 * int(left)) <= 1
    dot = drawn.means[(drawn.means[:, 0].abs() < 0.5)]
    assert dot.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("name", DATA)
def test_the_exact_map_carries_noise_to_the_distribution(name):
    exact = distribution(DATA[name])
    x = exact_flow_map(exact)(exact.sample(2000, seed=1, t=1.0), 1.0, 0.0)
    assert EnergyReference(exact.sample(4000, seed=2), spectrum_size=300).test(x).p_value > 0.005
    assert float(x.norm(dim=1).max()) < 1.5 * VIEW


@pytest.mark.parametrize("name", DATA)
def test_an_anchored_walk_is_right_at_every_node_and_a_wrong_kernel_is_found(name):
    right = walk(request(data=DATA[name], steps=4, sampler={"name": "asfmc", "noise": 0.8, "anchor": 0.6}))
    assert right.wrong == ()
    assert len(right.p_values) == len(right.nodes) == len(right.times) == 5
    wrong = walk(request(data=DATA[name], steps=8, sampler={"name": "cps"}))
    assert 8 in wrong.wrong
    assert 0 not in wrong.wrong


def test_p_values_of_exact_samples_are_uniform():
    data = distribution(DATA["spiral"])
    p_values = []
    for seed in range(40):
        reference = EnergyReference(data.sample(1000, seed=2 * seed, t=0.2), spectrum_size=300)
        p_values.append(reference.test(data.sample(500, seed=2 * seed + 1, t=0.2)).p_value)
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_a_walk_keeps_its_ends_its_paths_and_the_noise_of_its_steps():
    found = walk(request(steps=64, particles=300))
    assert found.nodes[0] == 0
    assert found.nodes[-1] == 64
    assert found.particles.shape == (len(found.nodes), 300, 2)
    assert found.paths.shape == (65, 9, 2)
    torch.testing.assert_close(found.paths[found.nodes[3]], found.particles[3][:9])
    assert found.stds[-1] == 0.0
    assert found.means.shape == (64, 9, 2)
    assert len(found.noise) == 63
    assert found.masses is not None
    assert found.masses[-1] == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(300))
    assert found.wanted is not None
    assert found.wanted[0] == pytest.approx(math.exp(-2), abs=1e-4)
    assert found.wanted[-1] == pytest.approx(0.5, abs=1e-4)
    assert walk(request(steps=3, data=DATA["grid"], particles=200)).masses is None


def test_the_same_particles_move_little_when_a_setting_does():
    near = [walk(request(particles=500, sampler={"name": "asfmc", "noise": noise})).particles[-1] for noise in (0.5, 0.51, 0.9)]
    small, large = ((near[0] - other).norm(dim=1).median() for other in near[1:])
    assert float(small) < 0.1 * float(large)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_walks_with_its_defaults_on_a_map_that_it_fits(name):
    for kind in SAMPLERS[name].needs:
        found = walk(request(sampler={"name": name}, map=kind, steps=4, particles=200))
        assert torch.isfinite(found.particles).all()


def test_accuracy_tells_a_biased_kernel_from_an_exact_one():
    cps, exact = (accuracy(request(sampler={"name": name}), 32) for name in ("cps", "asfmc"))
    assert cps.mass is not None
    assert exact.mass is not None
    assert cps.mass < 0.42
    assert exact.mass == pytest.approx(0.5, abs=4 * exact.error)
    assert cps.distance > 5 * cps.chance
    assert exact.distance < 3 * exact.chance


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["double_ring", "drawn"])
def test_marginals_are_those_of_exact_samples(name, t):
    exact, found = distribution(DATA[name]), marginal(DATA[name], t)
    assert found.density.shape == (64, 64)
    assert float(found.density.max()) == 1.0
    x = exact.sample(20_000, seed=3, t=t).double()
    values = x.norm(dim=1) * 2 - VIEW if name == "double_ring" else x[:, 0]
    counts = torch.histc(values, BINS, -VIEW, VIEW) / len(x)
    assert float((counts - torch.tensor(found.profile)).abs().sum()) < 0.08


def test_a_density_has_its_first_row_at_the_top():
    found = marginal(Data(name="drawn", strokes=[[(2.0, 3.0)]]), 0.0)
    row, column = divmod(int(found.density.argmax()), 64)
    assert row in (7, 8)  # the point lies where four of them meet
    assert column in (47, 48)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data": {"name": "drawn"}}, "nothing is drawn yet"),
        ({"data": {"name": "drawn", "strokes": [[[0, 9]]]}}, "within -4..4"),
        ({"data": {"name": "circle"}}, "double_ring"),
        ({"sampler": {"name": "asfmc", "anchor": 1.5}}, "sampler.anchor = 1.5"),
        ({"sampler": {"name": "asfmc"}, "map": "velocity"}, "needs a two_time map, and this is a velocity map"),
        ({"sampler": {"name": "precise"}, "map": "single_time"}, "asfmc_endpoint"),
        ({"steps": 0}, "steps"),
    ],
)
def test_what_cannot_be_walked_is_refused_with_a_sentence(changes, complaint):
    with pytest.raises(ValueError, match=complaint.replace(".", r"\.")):
        request(**changes)


@pytest.mark.parametrize("name", DATA)
def test_the_base_is_the_exact_map(name):
    exact = distribution(DATA[name])
    if isinstance(exact, GaussianMixture):  # solved much more finely
        exact = GaussianMixture(exact.means, exact.stds, exact.weights, stride=0.125)
    policy = PlaneGenerator(DATA[name], seed=3).bind(torch.zeros(300, 1))
    x = exact.sample(300, seed=4, t=1.0)
    with torch.no_grad():
        for t, s in zip(time_grid(4), time_grid(4)[1:], strict=False):
            error = (policy(x, t, s) - exact.carry(x, t, s)).norm(dim=1)
            assert float(error.mean()) < (1e-6 if name == "double_ring" else 2e-4)
            torch.testing.assert_close(policy.velocity(x, t), exact.velocity(x, t))
            x = exact.carry(x, t, s)


@pytest.mark.parametrize("name", ["double_ring", "drawn"])
def test_the_first_ratio_is_exactly_one_before_and_after_updates(name):
    learner = PlaneLearner(PlaneSettings(data=DATA[name]), UP)
    for _ in range(3):
        (ratios,) = first_ratios(learner, learner.lesson())
        assert ratios.shape == (GROUPS * GROUP_SIZE,)
        assert (ratios == 1).all()
        learner.learn()


def test_mass_moves_toward_the_reward_and_a_large_kl_weight_holds_it():
    free, held = (
        PlaneLearner(PlaneSettings(), UP.model_copy(update={"kl_weight": kl_weight, "learning_rate": 3e-3}))
        for kl_weight in (0.02, 20.0)
    )
    before = float(bump(free.particles(), UP).mean())
    assert torch.equal(free.particles(), held.particles())
    for learner in (free, held):
        for _ in range(80):
            learner.learn()
    assert float(bump(free.particles(), UP).mean()) > before + 0.5
    assert float(bump(held.particles(), UP).mean()) < before + 0.05
    assert free.history[-1].kl > 100 * held.history[-1].kl


def test_a_moved_reward_is_followed_without_beginning_anew():
    learners = PlaneLearners()
    learner = learners.open("page", PlaneSettings(), UP.model_copy(update={"kl_weight": 0.1}))
    for _ in range(40):
        learner.learn()
    moved = UP.model_copy(update={"x": 3.0, "y": 0.0, "kl_weight": 0.1})
    again = learners.open("page", PlaneSettings(), moved)
    assert again is learner
    before = float(bump(again.particles(), moved).mean())
    for _ in range(80):
        again.learn()
    assert again.updates == 120
    assert float(bump(again.particles(), moved).mean()) > before + 0.3


def test_equal_seeds_learn_equally():
    points = []
    for _ in range(2):
        learner = PlaneLearner(PlaneSettings(data=DATA["grid"], seed=5), UP)
        for _ in range(3):
            learner.learn()
        points.append(learner.particles())
    assert points[0].shape == (PARTICLES, 2)
    assert torch.equal(points[0], points[1])


def test_learners_are_few_and_begin_anew_when_asked_or_made_of_something_else():
    learners = PlaneLearners()
    first = learners.open("a", PlaneSettings(), UP)
    first.learn()
    assert learners.open("a", PlaneSettings(), UP) is first
    assert learners.open("a", PlaneSettings(steps=3), UP) is not first
    assert learners.open("a", PlaneSettings(steps=3), UP, anew=True).updates == 0
    for number in range(KEPT):
        learners.open(str(number), PlaneSettings(), UP)
    assert learners.open("a", PlaneSettings(steps=3), UP).updates == 0


def test_a_reward_out_of_sight_teaches_nothing_and_changes_nothing():
    learner = PlaneLearner(PlaneSettings(), Lever(x=-4.0, y=-4.0, width=0.1, kl_weight=0.0))
    before = learner.particles()
    told = learner.learn()
    assert told.silent > 0.5
    assert float((learner.particles() - before).norm(dim=1).mean()) < 0.5


@pytest.mark.parametrize(("name", "value"), [("anchor", 0), ("noise", 2), ("x", 9), ("kl_weight", -1), ("width", 0)])
def test_levers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        validated(Lever, {name: value})
