"""Stable Diffusion 3 on random weights: its guidance, its three encoders or two, and the sizes that it can draw."""

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_family import CPU, PROMPTS, SIDE, noise, sampled
from tiny_sd3 import SD3, drawn, pipeline

from workbench.config import PRESETS
from workbench.models.policy import Policy
from workbench.models.sd3 import SD3Model
from workbench.models.tiny import TOKENS
from workbench.models.tiny.sd3 import tiny_sd3

model = SD3.model


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of this file's own, so that nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3(tmp_path_factory.mktemp("models") / "medium")


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3(tmp_path_factory.mktemp("models") / "clip", t5=False)


# Guidance


@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.5, 7.0])
@pytest.mark.parametrize("train_negative", [False, True])
def test_guidance_is_the_pipelines_at_every_scale(medium: Path, guidance: float, train_negative: bool) -> None:
    generator = model(medium, guidance=guidance, train_negative=train_negative).load(CPU)
    pipe, x = pipeline(medium), noise(generator.latent_shape)
    theirs = drawn(pipe, list(PROMPTS), x, 3, guidance)
    assert (sampled(generator, x, tuple(pipe.scheduler.sigmas.tolist())) - theirs).abs().max() <= 1e-4


def test_a_negative_prompt_is_what_guidance_leads_away_from(medium: Path) -> None:
    generator = model(medium, negative_prompt="blurry").load(CPU)
    pipe, x = pipeline(medium), noise(generator.latent_shape)
    theirs = drawn(pipe, list(PROMPTS), x, 2, 3.0, negative_prompt=["blurry"] * 3)
    times = tuple(pipe.scheduler.sigmas.tolist())
    assert (sampled(generator, x, times) - theirs).abs().max() <= 1e-4
    assert (sampled(model(medium).load(CPU), x, times) - theirs).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("guidance", "train_negative", "rows"), [(1.0, False, [3]), (1.0, True, [3]), (4.0, False, [3, 3]), (4.0, True, [6])]
)
def test_passes_are_as_few_as_guidance_allows(medium: Path, guidance: float, train_negative: bool, rows: list[int]) -> None:
    generator = model(medium, guidance=guidance, train_negative=train_negative).load(CPU)
    flow_map, asked = generator.bind(generator.embed(PROMPTS)), []
    generator.network.register_forward_hook(lambda *call: asked.append(len(call[2]["hidden_states"])), with_kwargs=True)
    flow_map.velocity(noise(generator.latent_shape), 0.5)
    assert asked == rows


def test_the_negative_pass_leaves_no_graph_unless_it_is_trained(medium: Path) -> None:
    """With guidance w the velocity is (1 - w) v- + w v+: detached, the gradient is w times that of v+ alone."""
    gradients = {}
    for label, settings in {
        "alone": {"guidance": 1.0}, "detached": {"guidance": 4.0}, "both": {"guidance": 4.0, "train_negative": True}
    }.items():  # fmt: skip
        policy = Policy(model(medium, gradient_checkpointing=False, **settings), CPU, adapter="lora", rank=2)
        flow_map, x = policy.generator.bind(policy.generator.embed(PROMPTS)), noise(policy.generator.latent_shape)
        (flow_map.velocity(x, 0.5) * noise(policy.generator.latent_shape, seed=1)).sum().backward()
        gradients[label] = torch.cat([p.grad.flatten() for p in policy.parameters.values()])
    assert gradients["alone"].abs().max() > 1e-4
    assert torch.allclose(gradients["detached"], 4 * gradients["alone"], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(gradients["both"], gradients["detached"], rtol=1e-2, atol=1e-5)


def test_one_time_for_all_rows_or_one_for_each(medium: Path) -> None:
    generator = model(medium).load(CPU)
    flow_map, x = generator.bind(generator.embed(PROMPTS)), noise(generator.latent_shape)
    with torch.no_grad():
        each = flow_map.velocity(x, torch.tensor([0.9, 0.5, 0.2]))
        assert torch.allclose(each[1:2], flow_map.velocity(x, 0.5)[1:2], atol=1e-5)


# Prompts


def test_prompts_are_read_by_three_encoders(medium: Path) -> None:
    tensors = model(medium).load(CPU).embed(PROMPTS).tensors()
    hidden, _, pooled, _ = pipeline(medium).encode_prompt(*[list(PROMPTS)] * 3, max_sequence_length=TOKENS)
    assert torch.allclose(tensors["hidden"], hidden, atol=1e-5)
    assert torch.allclose(tensors["pooled"], pooled, atol=1e-5)
    assert hidden.shape[1] == 77 + TOKENS


def test_without_t5_its_tokens_are_zeros_that_the_cache_does_not_hold(without_t5: Path) -> None:
    assert not (without_t5 / "text_encoder_3").exists()
    generator = model(without_t5).load(CPU)
    pipe, x = pipeline(without_t5), noise(generator.latent_shape)
    theirs = drawn(pipe, list(PROMPTS), x, 2, 3.0)
    assert (sampled(generator, x, tuple(pipe.scheduler.sigmas.tolist())) - theirs).abs().max() <= 1e-4
    assert generator.embed(PROMPTS).tensors()["hidden"].shape == (3, 77, 32)


def test_without_t5_a_prompt_that_clip_would_cut_is_refused(without_t5: Path) -> None:
    generator = model(without_t5, max_tokens=256).load(CPU)
    with pytest.raises(ValueError, match=r"has 92 tokens, and CLIP reads 77: these weights come without T5.*shorten it"):
        generator.embed(["a" * 90])


def test_t5_that_the_head_names_may_not_be_missing(medium: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(medium, tmp_path / "broken")
    shutil.rmtree(broken / "text_encoder_3")
    with pytest.raises(ValueError, match="lacks the folder 'text_encoder_3' of a StableDiffusion3Pipeline; fetch it again"):
        model(broken).load(CPU)


# Sizes and adapters


def test_sizes_are_whole_tokens_and_no_larger_than_the_places_known(medium: Path) -> None:
    assert model(medium, resolution=64).load(CPU).latent_shape == (4, 32, 32)
    with pytest.raises(ValueError, match=r"model\.resolution = 18 is not a multiple of 4, the pixels of one token"):
        model(medium, resolution=18).load(CPU)
    with pytest.raises(ValueError, match=r"model\.resolution = 68 is above 64, the most pixels that these weights know of"):
        model(medium, resolution=68).load(CPU)


def test_adapters_go_where_flow_grpo_puts_them(medium: Path) -> None:
    policy = Policy(model(medium, dtype="bf16"), CPU, adapter="lora", rank=2)
    places = {name.split(".lora_")[0].rsplit("transformer_blocks.", 1)[1] for name in policy.parameters}
    assert {place for place in places if place.startswith("0.")} == {
        f"0.attn.{layer}"
        for layer in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    }
    assert {p.dtype for p in policy.parameters.values()} == {torch.float32}
    assert policy.generator.decode(noise(policy.generator.latent_shape, 1)).shape == (1, 3, SIDE, SIDE)


def test_what_is_published_of_medium_is_its_size() -> None:
    with torch.device("meta"):
        made = SD3Model().made(SD3Model.published["transformer"])
    assert sum(value.numel() for value in made.parameters()) == pytest.approx(2.24e9, rel=0.01)
    assert SD3Model().prompt_shapes(made.config) == {"hidden": (77 + 256, 4096), "pooled": (2048,)}


# Presets


def test_the_weights_of_the_kl_are_flow_grpos_in_our_scale() -> None:
    """Theirs divides by 2 g^2, ours by 2 g^2 (t - s)."""
    times = PRESETS["flow_grpo_sd35_ocr"].times
    steps = [t - s for t, s in pairwise(times[:-1])]
    for reward, theirs in (("pickscore", 0.01), ("ocr", 0.04), ("geneval", 0.04)):
        for method in ("flow_grpo", "tempflow"):
            ours = PRESETS[f"{method}_sd35_{reward}"].objective.kl_weight
            assert ours == pytest.approx(theirs * sum(steps) / len(steps), rel=0.01)


def test_branching_draws_as_many_pictures_as_trajectories_do() -> None:
    whole, branched = PRESETS["flow_grpo_sd35_ocr"], PRESETS["tempflow_sd35_ocr"]
    pictures = whole.grpo.groups * whole.grpo.group_size
    assert pictures == branched.grpo.groups * branched.grpo.group_size * len(branched.training_steps) == 1152
    assert (whole.rollout.steps, whole.sampling_steps) == (10, 40)
    assert whole.model.guidance == 4.5
    assert not whole.model.train_negative
