"""The plane of anchor and noise: its closed forms on an exact map, and its picture."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.benchmarks.anchor_noise import bench_anchor_noise, energy_distance, path_error, roll_out
from workbench.evaluate import HeldOut
from workbench.figures.anchor_noise import anchor_noise_maps
from workbench.flow import seeded_noise, time_grid
from workbench.lab import ExactFlowMap, GaussianMixture, exact_flow_map
from workbench.samplers.asfmc import AnchoredSampler


class Exact:
    """A generator whose map is exact, for a Gaussian around 2 with standard deviation 0.5 in three dimensions."""

    latent_shape = (3,)
    device = torch.device("cpu")
    kind = "two_time"
    network = torch.nn.Identity()
    distribution = GaussianMixture([[2.0, 2.0, 2.0]], 0.5)

    def embed(self, prompts: Any) -> Any:
        return prompts

    def bind(self, embeddings: Any) -> ExactFlowMap:
        return exact_flow_map(self.distribution)

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class Bent(Exact):
    """The same, but every jump ends off its target by a tenth of the square of the time that it went."""

    def bind(self, embeddings: Any) -> Any:
        exact = super().bind(embeddings)
        return lambda x, t, s: exact(x, t, s) + 0.1 * (t - s) ** 2


SAMPLE = HeldOut(("a circle",) * 400, tuple(range(400)), 4)
TIMES = time_grid(4, 4.0)


@pytest.fixture(scope="module")
def plane() -> dict[str, Any]:
    return bench_anchor_noise(anchors=(0.0, 1.0), noises=(0.0, 0.9), prompts=6, per_prompt=4)


@pytest.mark.parametrize(("noise", "anchor"), [(0.5, 1.0), (1.0, 0.5), (1.0, 1.0)])
def test_an_exact_map_has_no_path_error_and_its_samples_are_the_data(noise: float, anchor: float) -> None:
    assert path_error(Exact(), SAMPLE, TIMES, noise, anchor) < 1e-5  # type: ignore[arg-type]
    drawn = roll_out(Exact(), AnchoredSampler(noise=noise, anchor=anchor), SAMPLE, TIMES)  # type: ignore[arg-type]
    assert abs(energy_distance(drawn, Exact.distribution.sample(2000, seed=1))) < 0.02


def test_the_path_error_is_the_difference_of_the_two_ways() -> None:
    """One stochastic step from 1 to 0.6 and an anchor at the data: the jump there against the two jumps by 0.6."""
    found = path_error(Bent(), SAMPLE, (1.0, 0.6, 0.0), 1.0, 1.0)  # type: ignore[arg-type]
    # at the data the flow of a Gaussian of deviation 0.5 has shrunk an offset at 0.6 by 0.5 / std of x_0.6
    shrink = 0.5 / math.hypot(0.4 * 0.5, 0.6)
    assert found == pytest.approx(0.1 - (shrink * 0.1 * 0.4**2 + 0.1 * 0.6**2), rel=1e-3)
    assert path_error(Bent(), SAMPLE, (1.0, 0.6, 0.0), 1.0, 0.0) == 0.0  # type: ignore[arg-type]
    assert 0.0 < path_error(Bent(), SAMPLE, (1.0, 0.6, 0.0), 1.0, 0.5) < found  # type: ignore[arg-type]


def test_a_group_that_shares_its_noise_differs_by_the_kernels_alone() -> None:
    for noise, spread in ((0.0, 0.0), (0.8, 0.05)):
        drawn = roll_out(Exact(), AnchoredSampler(noise=noise), SAMPLE, TIMES, shared_noise=True)  # type: ignore[arg-type]
        inside = drawn.view(100, 4, 3).std(1).mean()
        assert inside > spread if noise else inside == 0.0
    apart = roll_out(Exact(), AnchoredSampler(noise=0.0), SAMPLE, TIMES)  # type: ignore[arg-type]
    assert apart.view(100, 4, 3).std(1).mean() > 0.3


def test_the_energy_distance_of_two_gaussians_is_their_closed_form() -> None:
    """In one dimension, N(0, 1) and N(m, 1): E|X - Y| is the mean of a folded normal."""
    x, y = seeded_noise(range(4000), (1,)), seeded_noise(range(4000, 8000), (1,)) + 1.0
    folded = 2 / math.sqrt(math.pi) * math.exp(-1 / 4) + math.erf(1 / 2)
    assert energy_distance(x, y) == pytest.approx(2 * folded - 4 / math.sqrt(math.pi), abs=0.03)
    assert abs(energy_distance(x, y - 1.0)) < 0.01


def test_without_noise_or_way_past_the_target_nothing_differs(plane: dict[str, Any]) -> None:
    for name in ("reward", "shapes_exact", "diversity", "path_error", "energy_distance"):
        table = plane[name]
        assert [len(row) for row in table] == [2, 2]
        assert table[0][0] == table[0][1] == table[1][0]
    assert plane["diversity"][0][0] == plane["path_error"][0][0] == 0.0
    assert plane["diversity"][1][1] > 0.02
    assert plane["path_error"][1][1] > 1e-3
    assert plane["images"] == 24


def test_only_two_time_maps_have_the_two_knobs() -> None:
    changes = {"model.name": "shapes_fm", "sampler.name": "flow_sde"}
    with pytest.raises(ValueError, match="knobs of a two-time map, but shapes_fm is velocity"):
        bench_anchor_noise(changes=changes)


def test_the_maps_show_the_tables_with_noise_upward(plane: dict[str, Any]) -> None:
    chart = anchor_noise_maps(plane, ("reward", "shapes_exact", "energy_distance"))
    assert [trace.type for trace in chart.data] == ["heatmap"] * 3
    assert [list(row) for row in chart.data[1].z] == plane["shapes_exact"]
    assert list(chart.data[0].y) == ["0", "0.9"]
    assert list(chart.data[0].x) == ["0", "1"]
    assert [note.text for note in chart.layout.annotations] == ["Reward", "shapes_exact", "Energy distance to data"]
    starts = [axis.domain[0] for axis in (chart.layout.xaxis, chart.layout.xaxis2, chart.layout.xaxis3)]
    assert starts == sorted(set(starts))
    with pytest.raises(ValueError, match=r"no table 'rewards'; choose from: .*reward.*path_error"):
        anchor_noise_maps(plane, ("rewards",))
