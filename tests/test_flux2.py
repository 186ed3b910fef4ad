"""FLUX.2 Klein on random weights: guidance of its base, its latents and places, its chat and the shift of its grid."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from tiny_family import CPU, PROMPTS, SIDE, noise, sampled
from tiny_flux2 import FLUX2_KLEIN, drawn, pipeline

from workbench.flow import time_grid
from workbench.models.flux2 import Flux2KleinModel, klein_shift
from workbench.models.policy import Policy
from workbench.models.tiny import TOKENS
from workbench.models.tiny.flux2 import tiny_flux2_klein

model = FLUX2_KLEIN.model


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of this file's own, so that nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux2_klein(tmp_path_factory.mktemp("models") / "klein")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux2_klein(tmp_path_factory.mktemp("models") / "base", distilled=False)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("train_negative", [False, True])
def test_the_base_is_guided_as_its_pipeline_guides(base: Path, guidance: float, train_negative: bool) -> None:
    generator = model(base, guidance=guidance, train_negative=train_negative).load(CPU)
    pipe, x = pipeline(base), noise(generator.latent_shape)
    theirs = drawn(pipe, list(PROMPTS), x, 3, guidance)
    assert (sampled(generator, x, tuple(pipe.scheduler.sigmas.tolist())) - theirs).abs().max() <= 1e-4


def test_a_distilled_checkpoint_takes_no_guidance(klein: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.guidance = 4: .*klein holds a distilled checkpoint, .* use 1, or the base"):
        model(klein, guidance=4.0).load(CPU)


def test_latents_are_normalised_by_the_autoencoders_running_statistics(klein: Path) -> None:
    generator, pipe = model(klein).load(CPU), pipeline(klein)
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = pipe._encode_vae_image(2 * images - 1, None)
    assert torch.allclose(generator.encode(images), theirs, atol=1e-5)
    assert generator.vae.bn.running_var.min() > 1.5  # otherwise nothing would have been normalised


def test_tokens_are_where_the_pipeline_puts_them(klein: Path) -> None:
    generator, pipe, told = model(klein).load(CPU), pipeline(klein), {}
    generator.network.register_forward_pre_hook(lambda *call: told.update(call[2]), with_kwargs=True)
    generator.bind(generator.embed(PROMPTS)).velocity(noise(generator.latent_shape), 0.5)
    assert torch.equal(told["img_ids"], pipe._prepare_latent_ids(noise(generator.latent_shape))[0])
    assert torch.equal(told["txt_ids"], pipe._prepare_text_ids(torch.zeros(1, TOKENS, 1))[0])
    assert told["hidden_states"].shape == (3, (SIDE // 4) ** 2, 16)
    assert told["timestep"].tolist() == [0.5] * 3


def test_the_chat_around_a_prompt_counts(klein: Path) -> None:
    chosen, pipe = model(klein), pipeline(klein)
    chat = 8  # letters and marks around it
    assert chosen.lengths(pipe, ["", "a fox"]) == [chat, chat + 5]
    generator = chosen.load(CPU)
    assert len(generator.embed(["a" * (TOKENS - chat)])) == 1
    with pytest.raises(ValueError, match=rf"has {TOKENS + 1} tokens, and model\.max_tokens = {TOKENS} are read; shorten it"):
        generator.embed(["a" * (TOKENS - chat + 1)])


@pytest.mark.parametrize(("side", "steps"), [(512, 4), (1024, 10), (1024, 50), (2048, 28)])
def test_the_shift_of_the_grid_is_the_pipelines(klein: Path, side: int, steps: int) -> None:
    scheduler = pipeline(klein).scheduler
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu((side // 16) ** 2, steps))
    assert time_grid(steps, klein_shift(side, steps)) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_a_size_that_does_not_divide_is_refused(klein: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.resolution = 18 is not a multiple of 4, the pixels of one token"):
        model(klein, resolution=18).load(CPU)


def test_adapters_go_into_both_kinds_of_block(klein: Path) -> None:
    policy = Policy(model(klein), CPU, adapter="lora", rank=2)
    places = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in policy.parameters}
    assert len(places) == 8 + 1
    assert "single_transformer_blocks.0.attn.to_qkv_mlp_proj" in places


def test_what_is_published_of_klein_is_its_size() -> None:
    with torch.device("meta"):
        made = Flux2KleinModel().made(Flux2KleinModel.published["transformer"])
    assert sum(value.numel() for value in made.parameters()) == pytest.approx(3.88e9, rel=0.01)
    assert Flux2KleinModel().prompt_shapes(made.config) == {"hidden": (512, 3 * 2560)}
