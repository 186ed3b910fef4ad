"""SANA-Sprint and SANA on random weights that diffusers saved; its scheduler and its pipelines are the measure."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SCMScheduler
from tiny_family import CPU, PROMPTS, noise, sampled, step_noise
from tiny_sana import GUIDANCE, SANA, SANA_SPRINT, SIDE, drawn, pipeline, times_of
from torch import Tensor, nn

from workbench.config import PRESETS, configure
from workbench.evaluate import deployed_sampler, load_policy
from workbench.events import Evaluated, GroupsScored
from workbench.flow import time_grid
from workbench.models.outline import META, outline
from workbench.models.policy import Policy
from workbench.models.sana import SanaMap, SanaModel, SanaSprintModel, _instruction
from workbench.models.tiny import TOKENS
from workbench.models.tiny.sana import tiny_sana, tiny_sana_sprint
from workbench.retrace import retrace
from workbench.samplers import SAMPLERS
from workbench.sampling import DrawRequest, Shot, draw, fitting_samplers, trajectory
from workbench.train import train

model, tiny_run = SANA_SPRINT.model, SANA_SPRINT.run


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this file's own, so that nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sana_sprint(tmp_path_factory.mktemp("models") / "sprint")


# TrigFlow: the arc, and the straight path that the network is asked on


class Straight(nn.Module):
    """A network that is asked on the straight path and answers there, for a consistency model that is known on the arc.

    Args:
        arc: F(x_a / sigma_d, a), for x_a = sigma_d (cos a x_0 + sin a eps); times [N, 1, ...].
    """

    def __init__(self, arc: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.arc = arc

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        x, t = hidden_states, timestep.view(-1, *[1] * (hidden_states.dim() - 1))
        norm = (t**2 + (1 - t) ** 2).sqrt()
        return ((norm * self.arc(x / norm, torch.atan2(t, 1 - t)) - (1 - 2 * t) * x) / norm**2,)


def known(x: Tensor, angle: Tensor) -> Tensor:
    """Some F, neither linear nor the same at any two angles."""
    return torch.tanh(1.7 * x + angle) + x.roll(1, dims=-1) * torch.sin(3 * angle)


def on_the_line(arc: Callable[[Tensor, Tensor], Tensor] = known) -> SanaMap:
    return SanaMap(
        Straight(arc), "single_time", {"hidden": torch.zeros(1, 1, 1), "mask": torch.ones(1, 1)}, embedded_guidance=0.45
    )


def scheduled(sigma: float, angles: tuple[float, ...]) -> SCMScheduler:
    """diffusers' scheduler, set to go through these angles."""
    made = SCMScheduler(sigma_data=sigma)
    made.set_timesteps(len(angles) - 1, timesteps=list(angles), max_timesteps=None, intermediate_timesteps=None)
    made.set_begin_index(0)
    return made


@pytest.mark.parametrize("sigma", [0.5, 1.0])
@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 3, 5), (7,), (2, 2, 2, 2)])
def test_a_jump_is_the_schedulers_prediction_at_any_time_and_in_any_shape(shape: tuple[int, ...], sigma: float) -> None:
    angles = torch.linspace(0.01, 1.5707, 41)
    t = torch.sin(angles) / (torch.sin(angles) + torch.cos(angles))
    x = noise(shape, len(angles))
    ours = on_the_line()(x, t, torch.zeros_like(t))
    for row, angle in enumerate(angles.tolist()):
        norm = (t[row] ** 2 + (1 - t[row]) ** 2).sqrt()
        arc = x[row : row + 1] / norm
        answer = sigma * known(arc, torch.tensor(angle))
        found = scheduled(sigma, (angle, 0.0)).step(answer, angle, sigma * arc).pred_original_sample / sigma
        assert torch.allclose(ours[row : row + 1], found, atol=2e-5), angle


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_the_endpoint_kernel_at_full_noise_is_the_schedulers_multistep_sampling(steps: int, sigma: float) -> None:
    """Each state on the way, from the same noise: on the arc x_a / sigma_d, on the straight path N times that."""
    scheduler = SCMScheduler(sigma_data=sigma)
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    scheduler.set_begin_index(0)
    times, kernel, flow_map = time_grid(steps, kind="trigflow"), SAMPLERS["asfmc_endpoint"](noise=1.0), on_the_line()
    assert times == pytest.approx(times_of(scheduler), abs=1e-5)  # its first angle is 1.5708, a little more than half of pi
    x = noise((4, 6, 6))
    arc, ours, theirs = sigma * x, step_noise(), step_noise()
    for (t, s), angle in zip(pairwise(times), scheduler.timesteps[:-1], strict=True):
        answer = sigma * known(arc / sigma, angle)
        arc, predicted = scheduler.step(answer, angle, arc, generator=theirs, return_dict=False)
        transition = kernel.step(flow_map, x, t, s)
        assert torch.allclose(transition.mean, (1 - s) * predicted / sigma, atol=5e-5)
        x = transition.sample(torch.randn(x.shape, generator=ours))
        assert torch.allclose(x, (s**2 + (1 - s) ** 2) ** 0.5 * arc / sigma, atol=5e-5)
    assert torch.allclose(x, predicted / sigma, atol=5e-5)


def test_an_exact_consistency_map_of_gaussian_data_keeps_its_marginals_at_full_noise_alone() -> None:
    """Data N(0, c^2): a jump keeps the direction of x and gives it the data's size."""
    c, size = 0.4, (16, 16, 16)

    def arc(x: Tensor, angle: Tensor) -> Tensor:
        wanted = c * x / (torch.sin(angle) ** 2 + (c * torch.cos(angle)) ** 2).sqrt()
        return (torch.cos(angle) * x - wanted) / torch.sin(angle)

    flow_map, fresh = on_the_line(arc), torch.Generator().manual_seed(2)
    for strength, exact in ((1.0, True), (0.7, False)):
        x = noise(size, 64)
        for t, s in pairwise(time_grid(4, kind="trigflow")):
            x = SAMPLERS["asfmc_endpoint"](noise=strength).step(flow_map, x, t, s).sample(torch.randn(x.shape, generator=fresh))
        assert (abs(float(x.std()) / c - 1) < 0.01) is exact  # the standard error of 262,144 numbers is 0.0014


# What diffusers draws, we draw


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_samples_on_the_presets_grid_are_those_of_the_pipeline(folder: Path, steps: int, guidance: float) -> None:
    generator, preset = model(folder, guidance=guidance).load(CPU), PRESETS["sana_sprint_pickscore"]
    x = noise(generator.latent_shape)
    theirs = drawn(pipeline(folder), list(PROMPTS), x, steps, guidance_scale=guidance)
    assert theirs.std() > 0.02
    assert (sampled(generator, x, preset.rollout.grid_of(steps)) - theirs).abs().max() <= 1e-4


def test_the_network_is_asked_what_the_pipeline_asks(folder: Path) -> None:
    generator, pipe = model(folder).load(CPU), pipeline(folder)
    asked: list[dict[str, Tensor]] = []
    for network in (pipe.transformer, generator.network):
        network.register_forward_hook(
            lambda _module, args, told, _result: asked.append(dict(zip(["hidden_states"], args, strict=False)) | told),
            with_kwargs=True,
        )
    x = noise(generator.latent_shape)
    drawn(pipe, list(PROMPTS), x, 2)
    sampled(generator, x, time_grid(2, kind="trigflow"))
    for theirs, ours in zip(asked[:2], asked[2:], strict=True):
        for name in ("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "guidance", "timestep"):
            assert ours[name].dtype == theirs[name].dtype
            assert torch.allclose(ours[name], theirs[name], atol=1e-4), name


@pytest.mark.parametrize(("guidance", "scale"), [(1.0, 1.0), (GUIDANCE, 1.0), (GUIDANCE, 0.001)])
def test_plain_sana_is_guided_and_counts_time_as_its_pipeline_does(tmp_path: Path, guidance: float, scale: float) -> None:
    plain = tiny_sana(tmp_path / "plain")
    settings = plain / "transformer" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"timestep_scale": scale}))
    generator, pipe = SANA.model(plain, guidance=guidance).load(CPU), pipeline(plain)
    x = noise(generator.latent_shape)
    theirs = drawn(pipe, list(PROMPTS), x, 3, guidance_scale=guidance)
    assert (sampled(generator, x, times_of(pipe.scheduler)) - theirs).abs().max() <= 1e-4


def test_the_empty_prompt_alone_is_read_without_the_instruction(tmp_path: Path) -> None:
    plain = tiny_sana(tmp_path / "plain")
    pipe, made = pipeline(plain), SANA.model(plain)
    read = made.read(pipe, ["a red fox", "", "an old lighthouse"], CPU)
    asked = pipe.encode_prompt(
        ["a red fox", "an old lighthouse"], max_sequence_length=TOKENS, complex_human_instruction=_instruction(pipe)
    )
    for name, toward, away in zip(("hidden", "mask"), asked[:2], asked[2:], strict=True):
        assert torch.allclose(read[name][[0, 2]], toward, atol=1e-6)
        assert torch.allclose(read[name][1], away[0], atol=1e-6)
    assert made.negative == ""
    assert SANA.model(plain, guidance=1.0).negative is None


def test_what_is_beyond_a_prompts_end_is_not_looked_at(folder: Path) -> None:
    generator = model(folder).load(CPU)
    told = generator.embed(PROMPTS).tensors()
    assert told["hidden"].shape[:2] == told["mask"].shape == (3, TOKENS)
    assert not told["mask"][:, -1].any()
    x, spoiled = noise(generator.latent_shape), told | {"hidden": told["hidden"] + 9 * (1 - told["mask"])[..., None]}
    with torch.no_grad():
        maps = [generator.model.flow_map(generator.network, generator.config, each, None) for each in (told, spoiled)]
        jumps = [flow_map(x, 0.8, 0.0) for flow_map in maps]
        other = generator.bind(generator.embed(PROMPTS[::-1]))(x, 0.8, 0.0)
    assert torch.allclose(*jumps, atol=1e-5)
    assert not torch.allclose(jumps[0], other, atol=1e-3)


def test_pictures_are_encoded_by_the_autoencoder_and_decoded_in_slices_alike(folder: Path) -> None:
    whole, sliced = model(folder).load(CPU), model(folder, vae_slicing=True).load(CPU)
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    latents = whole.encode(images)
    with torch.no_grad():
        assert torch.equal(latents, whole.vae.encode(2 * images - 1).latent * whole.vae.config.scaling_factor)
        assert torch.allclose(whole.decode(latents), sliced.decode(latents), atol=1e-6)
    assert sliced.vae.use_slicing
    assert not whole.vae.use_slicing


# Prompts


def test_a_prompt_is_as_long_as_the_tokens_that_are_read_of_it(folder: Path) -> None:
    pipe, made = pipeline(folder), model(folder)
    prompts = ["a", "A Red Fox  ", "x" * (TOKENS - 2), "x" * (TOKENS - 1)]
    lengths = made.lengths(pipe, prompts)
    told = made.read(pipe, prompts, CPU)["mask"].sum(1).tolist()
    assert told == [*lengths[:3], TOKENS]
    assert lengths[2:] == [TOKENS, TOKENS + 1]
    generator = made.load(CPU)
    generator.embed(prompts[:3])
    with pytest.raises(ValueError, match=r"prompt 'x+' has 65 tokens, and model\.max_tokens = 64 are read; shorten it, or raise"):
        generator.embed(prompts)


# Training, and the pages that follow it


def test_adapters_sit_on_both_attentions_and_all_of_them_learn(folder: Path) -> None:
    policy = Policy(model(folder, dtype="bf16", gradient_checkpointing=True), CPU, adapter="lora", rank=2)
    assert {p.dtype for p in policy.parameters.values()} == {torch.float32}
    assert {p.dtype for p in policy.generator.network.parameters()} == {torch.float32, torch.bfloat16}
    names = {name.split("base_model.model.")[1].split(".lora_")[0] for name in policy.parameters}
    wanted = {f"transformer_blocks.0.attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")}
    assert names == wanted
    flow_map = policy.generator.bind(policy.generator.embed(PROMPTS))
    jump = flow_map(noise(policy.generator.latent_shape), 0.7, 0.0)
    assert jump.dtype == torch.float32
    jump.square().mean().backward()
    assert all(float(p.grad.abs().sum()) > 0 for name, p in policy.parameters.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler__name": "ddim_mix", "rollout__mode": "all"},
        {"rollout__mode": "branch", "rollout__completion": "jump"},
        {"rollout__mode": "window", "rollout__window": 1},
        {"rollout__mode": "tree", "rollout__completion": "jump", "rollout__chosen_steps": (0, 1)},
    ],
    ids=lambda changes: changes.get("sampler__name", changes["rollout__mode"]),
)
def test_every_way_of_drawing_trains_it_and_evaluates_it_at_one_two_and_four_steps(folder: Path, changes: dict[str, Any]) -> None:
    config = tiny_run(folder, iterations=1, evaluation__steps=(1, 2, 4), **changes)
    events = list(train(config))
    before, after = (event for event in events if isinstance(event, Evaluated))
    assert set(before.measures) == set(after.measures) == {1, 2, 4}
    assert len({before.measures[steps]["jpeg_size"].value for steps in (1, 2, 4)}) == 3
    (scored,) = (event for event in events if isinstance(event, GroupsScored))
    recorded = {"group_size": scored.group_size, "prompts": scored.prompts, "iteration": scored.iteration, "steps": scored.steps}
    trace = retrace(load_policy(config).generator, config, recorded, 0)
    assert trace.times[0] == 1.0
    assert trace.times[-1] == 0.0
    assert trace.stochastic
    assert trace.states.shape == trace.predictions.shape == (len(trace.times), 3, SIDE, SIDE)


def test_the_pages_draw_it_with_kernels_that_fit_and_show_its_jumps(folder: Path) -> None:
    generator = model(folder).load(CPU)
    assert fitting_samplers(generator.kind) == ["ode", "asfmc_endpoint", "ddim_mix"]
    assert deployed_sampler(generator.kind) == SAMPLERS["asfmc_endpoint"](noise=1.0)
    shots = [
        Shot(PROMPTS[0], 3, time_grid(steps, kind="trigflow"), SAMPLERS[name]())
        for name, steps in (("ode", 1), ("asfmc_endpoint", 2), ("ddim_mix", 4), ("ode", 4))
    ]
    images = draw(generator, shots)
    assert images.shape == (4, 3, SIDE, SIDE)
    assert all(torch.allclose(draw(generator, [shot])[0], image, atol=1e-5) for shot, image in zip(shots, images, strict=True))
    deployed = DrawRequest(prompt=PROMPTS[0], seed=3).deployed(generator.kind, time_grid(2, kind="trigflow"))
    assert torch.allclose(draw(generator, [deployed])[0], images[1], atol=1e-5)
    way = trajectory(generator, shots[2])
    assert way.jumps is not None
    assert way.jumps.shape == way.states.shape == (5, 3, SIDE, SIDE)
    assert way.means is None
    assert torch.equal(way.jumps[-1], way.states[-1])


# Bad input


def test_a_size_that_does_not_divide_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.resolution = 30 is not a multiple of 4, the pixels of one token"):
        model(folder, resolution=30).load(CPU)


def test_what_a_consistency_map_cannot_do_is_refused(folder: Path) -> None:
    generator = model(folder).load(CPU)
    flow_map, x = generator.bind(generator.embed(PROMPTS)), noise(generator.latent_shape)
    with pytest.raises(ValueError, match="a single-time map has no velocity"):
        flow_map.velocity(x, 0.5)
    with pytest.raises(ValueError, match=r"a single-time map reaches only s = 0, got s = 0\.25"):
        flow_map(x, 0.5, 0.25)
    preset = "sana_sprint_pickscore"
    with pytest.raises(ValueError, match=r"'sana_sprint' is a single_time map; choose from: ode, asfmc_endpoint, ddim_mix"):
        configure(preset, {"sampler.name": "flow_sde"})
    with pytest.raises(ValueError, match=r"reaches only the data: rollout\.completion = 'compose' has no steps to take; choose"):
        configure(preset, {"rollout.mode": "branch"})


def test_what_is_published_has_the_size_that_is_published_and_draws_1024_pixels() -> None:
    for made, numbers in ((SanaModel(), 1.60e9), (SanaSprintModel(), 1.61e9)):
        generator = outline(made)
        assert sum(p.numel() for p in generator.network.parameters()) == pytest.approx(numbers, rel=0.005)
        generator.encoders.device = META
        with META:
            flow_map, x = generator.bind(generator.embed(PROMPTS[:2])), torch.empty(2, *generator.latent_shape)
            state = flow_map(x, 0.7, 0.0) if made.kind == "single_time" else flow_map.velocity(x, 0.7)
            assert generator.decode(state).shape == (2, 3, 1024, 1024)
