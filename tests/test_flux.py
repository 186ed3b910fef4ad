"""FLUX through the whole workbench, on random weights that diffusers saved: its own pipeline is what we compare with."""

import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_family import PROMPTS, SIDE, TINY, noise, sampled
from tiny_flux import FLUX, drawn, pipeline

from workbench.config import configure
from workbench.flow import time_grid
from workbench.models import MODELS
from workbench.models.diffusers_folder import cached_folder, pipeline_folder
from workbench.models.flux import FluxModel, pack, unpack
from workbench.models.pipeline import Encoders, Prompts
from workbench.models.policy import Policy
from workbench.models.tiny import PIPELINES, TOKENS
from workbench.models.tiny.flux import tiny_flux
from workbench.samplers import SAMPLERS

CPU = torch.device("cpu")
model, tiny_run = FLUX.model, FLUX.run


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of this file's own, so that nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Told a guidance scale, as FLUX.1-dev is."""
    return tiny_flux(tmp_path_factory.mktemp("models") / "dev")


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not told any, and other weights."""
    return tiny_flux(tmp_path_factory.mktemp("models") / "schnell", guidance=False, seed=1)



# What diffusers draws, we draw


@pytest.mark.parametrize(("which", "guidance", "steps"), [("dev", 3.5, 4), ("dev", 1.0, 1), ("schnell", 3.5, 3)])
def test_deterministic_samples_are_those_of_the_pipeline(
    which: str, guidance: float, steps: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    generator = model(folder, guidance=guidance).load(CPU)
    pipe, x = pipeline(folder), noise(generator.latent_shape)
    theirs = drawn(pipe, list(PROMPTS), x, steps, guidance)
    ours = sampled(generator, x, tuple(pipe.scheduler.sigmas.tolist()))
    assert theirs.std() > 0.02
    assert (ours - theirs).abs().max() <= 1e-4


def test_the_uniform_grid_shifted_by_the_pipelines_mu_is_the_pipelines_grid(dev: Path) -> None:
    pipe = pipeline(dev)
    tokens = (SIDE // 4) ** 2
    drawn(pipe, ["a"], noise((4, SIDE // 2, SIDE // 2), 1), 5, 1.0)
    shift = math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))
    assert time_grid(5, shift) == pytest.approx(pipe.scheduler.sigmas.tolist(), abs=1e-6)


def test_guidance_is_what_the_model_is_told(dev: Path, schnell: Path) -> None:
    x = noise((4, 8, 8))
    for folder, differs in ((dev, True), (schnell, False)):
        weak, strong = (sampled(model(folder, guidance=g).load(CPU), x, (1.0, 0.0)) for g in (1.0, 10.0))
        assert torch.equal(weak, strong) is not differs


def test_packing_is_diffusers_own_and_comes_back() -> None:
    latents = noise((4, 6, 10), 2)
    packed = pack(latents)
    pipe = pytest.importorskip("diffusers").FluxPipeline
    assert torch.equal(packed, pipe._pack_latents(latents, 2, 4, 6, 10))
    assert torch.equal(unpack(packed, 6, 10), latents)


def test_encoding_is_the_autoencoders_and_decoding_in_slices_is_decoding(dev: Path, monkeypatch) -> None:
    whole, sliced = model(dev).load(CPU), model(dev, vae_slicing=True).load(CPU)
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    latents = whole.encode(images)
    vae = whole.vae
    with torch.no_grad():
        theirs = (vae.encode(2 * images - 1).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        assert torch.equal(latents, theirs)
        assert latents.shape == (3, *whole.latent_shape)
        together = whole.decode(latents)
        assert torch.allclose(together, sliced.decode(latents), atol=1e-6)
        monkeypatch.setattr("workbench.models.pipeline._PIXELS", 2 * SIDE**2)  # two pictures at a time
        assert torch.allclose(together, whole.decode(latents), atol=1e-6)
    assert sliced.vae.use_slicing
    assert not whole.vae.use_slicing


def test_flow_sde_is_the_published_formula_step_by_step(dev: Path) -> None:
    """sde_step_with_logprob of Flow-GRPO, written out again on diffusers' own transformer."""
    generator, pipe, a = model(dev).load(CPU), pipeline(dev), 0.9
    times, sampler = time_grid(4, 1.9), SAMPLERS["flow_sde"](noise=a)
    flow_map = generator.bind(generator.embed(PROMPTS))
    x = noise(generator.latent_shape)
    with torch.no_grad():
        hidden, pooled, text_ids = pipe.encode_prompt(list(PROMPTS), max_sequence_length=TOKENS)
        for step, (sigma, after) in enumerate(pairwise(times[:-1])):
            v = pipe.transformer(
                hidden_states=pack(x),
                timestep=torch.full((3,), sigma),
                guidance=torch.full((3,), 3.5),
                pooled_projections=pooled,
                encoder_hidden_states=hidden,
                txt_ids=text_ids,
                img_ids=pipe._prepare_latent_image_ids(3, 4, 4, CPU, torch.float32),
            ).sample
            v = pipe._unpack_latents(v, SIDE, SIDE, 2)
            dt = after - sigma
            std = math.sqrt(sigma / (1 - (times[1] if sigma == 1 else sigma))) * a
            mean = x * (1 + std**2 / (2 * sigma) * dt) + v * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
            ours = sampler.step(flow_map, x, sigma, after)
            assert torch.allclose(ours.mean, mean, atol=2e-5)
            assert ours.std == pytest.approx(std * math.sqrt(-dt))
            x = mean + std * math.sqrt(-dt) * noise(generator.latent_shape, seed=step + 1)
            scale = std * math.sqrt(-dt)
            log_prob = -((x - mean) ** 2) / (2 * scale**2) - math.log(scale) - math.log(math.sqrt(2 * math.pi))
            assert torch.allclose(ours.log_prob(x), log_prob.mean((1, 2, 3)), atol=1e-4)


# Prompts


def test_prompts_are_encoded_once_and_the_encoders_do_not_come_back(dev: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    prompts = model(dev).load(CPU).embed(PROMPTS)
    hidden, pooled = prompts.tensors().values()
    theirs = pipeline(dev).encode_prompt(list(PROMPTS), max_sequence_length=TOKENS)
    assert torch.allclose(hidden, theirs[0], atol=1e-6)
    assert torch.allclose(pooled, theirs[1], atol=1e-6)
    files = sorted(tmp_path.rglob("*.*"))
    assert len(files) == 3
    assert all(file.suffix == ".safetensors" for file in files)
    monkeypatch.setattr("diffusers.FluxPipeline.from_pretrained", lambda *_, **__: pytest.fail("the encoders came back"))
    again = model(dev).load(CPU).embed(PROMPTS[::-1]).tensors()  # another generator: from the disk
    assert torch.equal(again["hidden"].flip(0), hidden)
    shown = [file.stat().st_mtime_ns for file in files]
    assert shown == [file.stat().st_mtime_ns for file in sorted(tmp_path.rglob("*.*"))]


def test_other_encoders_and_other_lengths_have_embeddings_of_their_own(dev: Path, schnell: Path) -> None:
    encoders = [each.load(CPU).encoders for each in (model(dev), model(dev, max_tokens=32), model(schnell))]
    assert len({each.cache.folder for each in encoders}) == 3
    assert model(dev, resolution=32).load(CPU).encoders.cache.folder == encoders[0].cache.folder


def test_prompts_are_indexed_as_tensors_are(dev: Path) -> None:
    prompts = model(dev).load(CPU).embed(PROMPTS)
    for rows in (torch.tensor([2, 0, 2]), slice(1, 3), torch.tensor([True, False, True])):
        chosen = prompts[rows]
        assert isinstance(chosen, Prompts)
        assert torch.equal(chosen.tensors()["hidden"], prompts.tensors()["hidden"][rows])


def test_where_memory_is_short_the_network_makes_room_for_the_encoders(
    dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    generator, order, read = model(dev).load(CPU), list[str](), FluxModel.read
    monkeypatch.setattr(FluxModel, "read", lambda *given: (order.append("read"), read(*given))[1])
    monkeypatch.setattr(generator.network, "to", lambda device: order.append(str(device)))
    generator.embed(["with room"])
    monkeypatch.setattr(Encoders, "cramped", lambda self: True)
    generator.device = torch.device("meta")
    generator.embed(["without"])
    generator.embed(["with room", "without"])
    with pytest.raises(ValueError, match="tokens"):
        generator.embed(["a" * 80])
    assert order == ["read", "cpu", "read", "meta", "cpu", "meta"]


def test_memory_is_short_where_the_encoders_do_not_fit_beside_what_is_there(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sum(path.stat().st_size for path in dev.glob("text_encoder*/*.safetensors"))
    encoders = Encoders(model(dev), dev, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for free, short in ((weights, True), (2 * weights, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * weights))
        assert encoders.cramped() is short
    assert not Encoders(model(dev), dev, CPU).cramped()


def test_a_damaged_embedding_is_named(dev: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    model(dev).load(CPU).embed(PROMPTS[:1])
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"nonsense")
    generator = model(dev).load(CPU)
    with pytest.raises(ValueError, match=rf"embedding of 'a red fox' cannot be read .*delete .*{file.name}"):
        generator.bind(generator.embed(PROMPTS[:1]))


# Training



def test_a_base_in_half_precision_is_trained_by_adapters_in_single(dev: Path) -> None:
    policy = Policy(model(dev, dtype="bf16", gradient_checkpointing=True), CPU, adapter="lora", rank=2)
    assert {p.dtype for p in policy.parameters.values()} == {torch.float32}
    assert {p.dtype for p in policy.generator.network.parameters()} == {torch.float32, torch.bfloat16}
    assert all("attn" in name for name in policy.parameters)
    assert len(policy.parameters) == 2 * (8 + 3)  # of a double block and a single one
    flow_map = policy.generator.bind(policy.generator.embed(PROMPTS))
    v = flow_map.velocity(noise((4, 8, 8)), 0.5)
    assert v.dtype == torch.float32
    v.square().mean().backward()
    assert sum(float(p.grad.abs().sum()) > 0 for p in policy.parameters.values()) >= 11









# Bad input


def test_a_missing_folder_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.source = '/.*/none' is no folder; name one with a model_index\.json"):
        model(tmp_path / "none").load(CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no pipeline of diffusers: it has no model_index\.json"):
        model(tmp_path / "empty").load(CPU)


def test_a_model_that_is_not_here_names_its_page_and_the_command(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"black-forest-labs/FLUX\.1-dev is not on this machine.*`hf download .*licence on https://hugg"):
        FluxModel(offline=True).load(CPU)
    assert FluxModel().weight_files() == ()


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("GatedRepoError", "accepted its licence: do so on https://huggingface.co/some/model"),
        ("RepositoryNotFoundError", "no model of that name on the hub"),
        ("RemoteEntryNotFoundError", r"has no model_index\.json, so it is no pipeline of diffusers"),
        ("HfHubHTTPError", r"cannot be fetched from the hub: run `hf download some/model`.*\(no such luck\)"),
    ],
)
def test_a_gated_or_unknown_model_says_what_to_do(failure: str, words: str, monkeypatch) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_: Any, **__: Any) -> None:
        raise getattr(errors, failure)("no such luck", response=httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co")))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ValueError, match=words):
        FluxModel(source="some/model").load(CPU)





def test_a_size_that_does_not_divide_is_refused(dev: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.resolution = 18 is not a multiple of 4"):
        model(dev, resolution=18).load(CPU)


def test_without_diffusers_the_model_says_what_to_install(dev: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModuleNotFoundError, match=r"model 'flux' needs .*diffusers.*: pip install flow-map-workbench\[models\]"):
        model(dev).load(CPU)
    assert configure("flux").model.name == "flux"


def test_weights_too_coarse_to_be_trained_are_refused() -> None:
    with pytest.raises(ValueError, match=r"adapter\.kind = 'full' .* model\.dtype = 'bf16' .*use adapter\.kind = 'lora'"):
        configure("flux", {"adapter.kind": "full"})


def test_jumps_are_refused(dev: Path) -> None:
    generator = model(dev).load(CPU)
    with pytest.raises(ValueError, match="a velocity map makes no jumps"):
        generator.bind(generator.embed(PROMPTS))(noise(generator.latent_shape), 1.0, 0.0)
    with pytest.raises(ValueError, match=r"needs a two_time map, and 'flux' is a velocity map; choose from: ode, flow_sde"):
        configure("flux", {"sampler.name": "asfmc"})


def test_the_folder_of_a_pipeline_may_begin_at_home(dev: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(dev.parent))
    assert pipeline_folder("~/dev", "FluxPipeline", ("vae",)) == dev
    assert {path.parent.name for path in model(dev).weight_files()} == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    assert TINY["model.max_tokens"] == TOKENS


@pytest.mark.parametrize("name", PIPELINES)
def test_a_random_pipeline_is_made_by_the_name_of_its_model(name: str) -> None:
    model = MODELS[name](source=f"tiny:{name}")
    folder = cached_folder(model.source)
    assert folder is not None
    assert folder == pipeline_folder(model.source, model.pipeline, ("transformer",))
    assert all(path.is_relative_to(folder) for path in model.weight_files())
    assert model.weight_files()


def test_a_random_pipeline_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.source = 'tiny:flu': there is no tiny 'flu'; choose from: flux, flux_meanflow"):
        FluxModel(source="tiny:flu").load(CPU)
