"""FLUX as a consistency map: its jump to the data, the kernel that fits it, and how the network is told of time."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SCMScheduler
from tiny_family import CPU, PROMPTS, noise, sampled, step_noise
from tiny_flux import pipeline
from tiny_flux_scm import FLUX_SCM, SIGMA, drawn
from tiny_sana import times_of
from torch import Tensor, nn

from workbench.config import configure
from workbench.flow import time_grid
from workbench.models.flux import pack, unpack
from workbench.models.flux_scm import FluxConsistencyMap
from workbench.models.tiny.flux import tiny_flux
from workbench.samplers import SAMPLERS

model = FLUX_SCM.model
SPREAD = 0.4


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this file's own, so that nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux(tmp_path_factory.mktemp("models") / "dev")


# Data N(0, SPREAD^2): a jump keeps the direction of x and gives it the data's size


def data(x: Tensor, t: Tensor) -> Tensor:
    """Where the flow of Gaussian data ends that is at x [N, ...] at time t, [N, 1, ...]."""
    return SPREAD * x / ((SPREAD * (1 - t)) ** 2 + t**2).sqrt()


class Gaussian(nn.Module):
    """FLUX's network, if it knew the consistency map of Gaussian data."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, hidden_states: Tensor, timestep: Tensor, guidance: Tensor, **_: Any) -> tuple[Tensor]:
        assert torch.allclose(1000 * guidance / self.scale, torch.tensor(3.5))
        rows = 2 * int(hidden_states.shape[1] ** 0.5)
        x, t = unpack(hidden_states, rows, rows), 1000 * timestep.view(-1, 1, 1, 1) / self.scale
        return (pack((x - data(x, t)) / t),)


def exact(scale: int = 1000) -> FluxConsistencyMap:
    return FluxConsistencyMap(Gaussian(scale), torch.zeros(1, 1, 1), torch.zeros(1, 1), 3.5, "single_time", scale)


@pytest.mark.parametrize("scale", [1, 1000])
def test_a_jump_to_the_data_is_what_the_network_knows(scale: int) -> None:
    t = torch.linspace(0.01, 1.0, 41)
    x = noise((4, 6, 6), len(t))
    assert torch.allclose(exact(scale)(x, t, torch.zeros_like(t)), data(x, t.view(-1, 1, 1, 1)), atol=1e-5)
    assert torch.allclose(exact(scale)(x, 0.3, 0.0), data(x, torch.tensor(0.3)), atol=1e-5)
    with pytest.raises(ValueError, match="reaches only s = 0"):
        exact(scale)(x, 0.7, 0.3)
    with pytest.raises(ValueError, match="has no velocity"):
        exact(scale).velocity(x, 0.7)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_the_endpoint_kernel_at_full_noise_is_multistep_consistency_sampling(steps: int) -> None:
    """Each state on the way, from the same noise: on the arc x_a / sigma_d, on the straight path N times that."""
    scheduler = SCMScheduler(sigma_data=SIGMA)
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    scheduler.set_begin_index(0)
    times, kernel, flow_map = time_grid(steps, kind="trigflow"), SAMPLERS["asfmc_endpoint"](noise=1.0), exact()
    assert times == pytest.approx(times_of(scheduler), abs=1e-5)
    x = noise((4, 6, 6))
    arc, ours, theirs = SIGMA * x, step_noise(), step_noise()
    for (t, s), angle in zip(pairwise(times), scheduler.timesteps[:-1], strict=True):
        norm = (t**2 + (1 - t) ** 2) ** 0.5
        ends = data(norm * arc / SIGMA, torch.tensor(t))
        answer = (torch.cos(angle) * arc - SIGMA * ends) / torch.sin(angle)  # whose jump on the arc is `ends`
        arc, _ = scheduler.step(answer, angle, arc, generator=theirs, return_dict=False)
        transition = kernel.step(flow_map, x, t, s)
        assert transition.std == s
        assert torch.allclose(transition.mean, (1 - s) * ends, atol=5e-5)
        x = transition.sample(torch.randn(x.shape, generator=ours))
    assert torch.allclose(x, arc / SIGMA, atol=1e-4)


def test_only_full_noise_keeps_the_marginals() -> None:
    fresh = torch.Generator().manual_seed(2)
    for strength, kept in ((1.0, True), (0.7, False)):
        x = noise((16, 16, 16), 64)
        for t, s in pairwise(time_grid(4, kind="trigflow")):
            x = SAMPLERS["asfmc_endpoint"](noise=strength).step(exact(), x, t, s).sample(torch.randn(x.shape, generator=fresh))
        assert (abs(float(x.std()) / SPREAD - 1) < 0.01) is kept  # the standard error of 262,144 numbers is 0.0014


# The network


@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_samples_are_those_of_scm_on_the_arc(folder: Path, steps: int, scale: int) -> None:
    """T2I-Distill's FLUX is diffusers' own, but that its sinusoids hear a time, and the guidance, as they are."""
    generator, pipe = model(folder, time_scale=scale).load(CPU), pipeline(folder)
    pipe.transformer.time_text_embed.time_proj.scale = scale / 1000
    x = noise(generator.latent_shape)
    theirs, scheduler = drawn(pipe, list(PROMPTS), x, steps)
    assert theirs.std() > 0.02
    assert (sampled(generator, x, times_of(scheduler)) - theirs).abs().max() <= 1e-4


def test_the_scale_of_times_matters(folder: Path) -> None:
    x = noise((4, 8, 8))
    one, other = (sampled(model(folder, time_scale=scale).load(CPU), x, (1.0, 0.5, 0.0)) for scale in (1, 1000))
    assert (one - other).abs().max() > 1e-3


def test_what_cannot_be_read_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="name the folder of a FluxPipeline whose transformer is a consistency map"):
        model(Path()).model_copy(update={"source": ""}).load(CPU)
    with pytest.raises(ValueError, match="time_scale"):
        FLUX_SCM.run(folder, model__time_scale=0)
    with pytest.raises(ValueError, match=r"single.time"):
        configure("flux_scm_ocr", {"sampler.name": "flow_sde"})
