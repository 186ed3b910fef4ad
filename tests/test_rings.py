"""The benchmark on the double ring, at sizes that take seconds, and its figure by its data."""

import json
import math

import pytest

from workbench.benchmarks.rings import KERNELS, Kernel, bench_rings
from workbench.figures.rings import outer_mass_by_evaluations
from workbench.samplers import SAMPLERS

RINGS = bench_rings(num=1000, steps=(10, 40), few_steps=(2,))


def test_every_sampler_is_measured_on_a_map_that_it_can_use_and_exactness_is_claimed_of_no_approximate_one():
    assert {kernel.sampler.name for kernel in KERNELS.values()} == set(SAMPLERS)
    assert all(kernel.kind in kernel.sampler.needs for kernel in KERNELS.values())
    assert {name for name, kernel in KERNELS.items() if kernel.exact} == {"asfmc", "ode, flow map", "asfmc_endpoint"}


def test_the_figures_are_plain_numbers_for_each_kernel_and_number_of_steps():
    assert json.loads(json.dumps(RINGS, allow_nan=False)) == RINGS
    assert set(RINGS["curves"]) == set(KERNELS)
    for name, curve in RINGS["curves"].items():
        assert curve["steps"] == ([2] if KERNELS[name].exact else [10, 40])
        lengths = {len(curve[key]) for key in ("evaluations", "outer_mass", "standard_error", "scatter", "p_value")}
        assert lengths == {len(curve["steps"])}
        for mass, error in zip(curve["outer_mass"], curve["standard_error"], strict=True):
            assert error == pytest.approx(math.sqrt(mass * (1 - mass) / 1000), rel=1e-3)


def test_evaluations_are_counted_where_they_happen():
    curves = RINGS["curves"]
    assert curves["cps"]["evaluations"] == [10, 40]
    assert curves["asfmc_local"]["evaluations"] == [19, 79]  # a jump and a velocity at every step but the last
    assert curves["asfmc"]["evaluations"] == [2]


def test_exact_kernels_hold_the_mass_and_approximate_ones_lose_it():
    masses = {name: curve["outer_mass"] for name, curve in RINGS["curves"].items()}
    for name, kernel in KERNELS.items():
        if kernel.exact:
            assert masses[name] == pytest.approx([0.5], abs=4 * 0.5 / math.sqrt(1000))
    assert masses["cps"][1] < 0.42
    assert masses["ddim_mix"][1] > 0.58
    assert RINGS["curves"]["cps"]["p_value"][0] < 1e-4
    assert RINGS["scatter_of_data"] == pytest.approx(0.05 * math.sqrt(2 / math.pi), rel=0.05)


def test_a_measurement_is_the_same_whoever_is_measured_beside_it():
    told = []
    alone = bench_rings(num=1000, steps=(10,), kernels={"cps": KERNELS["cps"]}, progress=told.append)
    assert alone["curves"]["cps"]["outer_mass"] == RINGS["curves"]["cps"]["outer_mass"][:1]
    quieter = bench_rings(num=1000, steps=(10,), kernels={"cps": Kernel(SAMPLERS["cps"](noise=0.2), "velocity")})
    assert quieter["curves"]["cps"]["noise"] == 0.2
    assert quieter["curves"]["cps"]["outer_mass"] > alone["curves"]["cps"]["outer_mass"]
    assert told == ["rings: cps"]


def test_the_figure_shows_each_curve_over_evaluations_with_its_bars_and_the_wanted_mass():
    chart = outer_mass_by_evaluations(RINGS)
    assert [trace.name for trace in chart.data] == list(KERNELS)
    for trace, curve in zip(chart.data, RINGS["curves"].values(), strict=True):
        assert list(trace.x) == curve["evaluations"]
        assert list(trace.y) == curve["outer_mass"]
        assert list(trace.error_y.array) == pytest.approx([1.96 * error for error in curve["standard_error"]])
    looks = {(trace.line.color, trace.marker.symbol) for trace in chart.data}
    assert len(looks) == len(KERNELS)
    assert chart.layout.xaxis.type == "log"
    (line,) = chart.layout.shapes
    assert line.y0 == line.y1 == 0.5
    assert chart.layout.title.text
    assert chart.layout.meta["healthy"]
