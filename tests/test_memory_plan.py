"""The memory that a run is said to take, against what it takes; and what is advised where it does not fit."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from test_adapters import FAMILIES
from tiny_family import CPU, PROMPTS
from tiny_flux import FLUX
from torch import Tensor

from workbench.config import RunConfig, change, configure
from workbench.exact_json import to_json
from workbench.footprint import materialised, measured, unrolled, without_content
from workbench.learner import Learner
from workbench.memory import GIB, memory_plan, remedies
from workbench.models.outline import outline
from workbench.models.tiny.flux import tiny_flux
from workbench.rollout import drain, stream_rollout
from workbench.train import make_accelerator
from workbench.update import update_policy


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random FLUX of some megabytes, with enough blocks of each kind that not all of them are worked out."""
    folder = tiny_flux(tmp_path_factory.mktemp("models") / "middling")
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=3,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=3,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(16, 24, 24),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
        scaling_factor=0.4,
    )
    for part, network in (("transformer", transformer), ("vae", vae)):
        shutil.rmtree(folder / part)
        network.save_pretrained(folder / part)
    return folder


def taken(config: RunConfig) -> int:
    """Bytes that a run takes at most in two iterations on the CPU: its weights, and what was allocated on top of them."""
    learner = Learner(config, make_accelerator(config))
    generator: Any = learner.policy.generator
    networks = [network for network in (generator.network, generator.vae, learner.policy.frozen) if network is not None]
    weights = [parameter for network in networks for parameter in network.parameters()]
    here = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _all(weights, learner)}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(2):
            prompts, _ = learner.draw_prompts()
            rollout = drain(stream_rollout(generator, config.sampler, prompts, learner.plan(), key=(0, learner.iteration)))
            with torch.no_grad():
                images = torch.cat([generator.decode(part) for part in rollout.final.split(config.compute.sample_batch)])
            drain(update_policy(learner, learner.lesson(rollout, {"jpeg_size": images.mean((1, 2, 3))})))
    learner.close()
    return sum(here.values()) + _peak(profile.profiler.kineto_results.experimental_event_tree())


def _all(weights: list[Tensor], learner: Learner) -> Iterable[Tensor]:
    return (*weights, *learner.average.average.values())


def _peak(events: Iterable[Any]) -> int:
    """The most that the allocator had given out, above what it had at first."""
    found, left = [], list(events)
    while left:
        event = left.pop()
        left.extend(event.children)
        if "Allocation" in str(event.tag):
            found.append((event.start_time_ns, event.extra_fields.alloc_size, event.extra_fields.total_allocated))
    found.sort(key=lambda each: each[0])
    _, size, total = found[0]
    return max(total for _, _, total in found) - (total - size)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__gradient_checkpointing": False},
        {"compute__train_batch": 2, "compute__sample_batch": 2, "model__gradient_checkpointing": False},
        {"adapter__kind": "full", "compute__train_batch": 2},
        {"model__dtype": "bf16", "compute__precision": "bf16"},
        {"model__resolution": 48, "grpo__epochs": 2},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_the_prediction_is_within_fifteen_percent_of_what_is_taken(middling: Path, changes: dict[str, Any]) -> None:
    usual = {"model__resolution": 32, "rollout__mode": "all", "rollout__steps": 2, "grpo__groups": 2, "grpo__group_size": 4}
    config = FLUX.run(middling, **usual | changes)
    measured_bytes, predicted = taken(config), memory_plan(config, accelerator=False).total
    assert predicted == pytest.approx(measured_bytes, rel=0.15)


@pytest.mark.parametrize("backward", [False, True])
def test_blocks_that_are_alike_need_not_all_be_worked_out(middling: Path, backward: bool) -> None:
    generator = outline(FLUX.model(middling, gradient_checkpointing=False))
    network = generator.network

    with without_content(True):
        materialised(network.requires_grad_(True))

        def run() -> Tensor:
            return generator.bind(generator.embed(PROMPTS)).velocity(torch.empty(3, *generator.latent_shape), 0.5)

        quick, whole = unrolled(network, run, backward=backward), measured(run, backward=backward)
    assert quick.kept == whole.kept
    assert quick.peak == pytest.approx(whole.peak, rel=0.02)
    assert len(network.transformer_blocks) == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_described_without_its_weights(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = family.make(tmp_path / name)
    if family.name == "flow_match":
        with pytest.raises(ValueError, match="only known once it is loaded"):
            memory_plan(family.run(folder))
        return
    loaded, described = family.model(folder).load(CPU), outline(family.model(folder))
    shapes = [{key: tuple(value.shape) for key, value in each.network.named_parameters()} for each in (loaded, described)]
    assert shapes[0] == shapes[1]
    read, guessed = loaded.embed(PROMPTS).tensors(), described.embed(PROMPTS).tensors()
    assert {key: value.shape for key, value in read.items()} == {key: value.shape for key, value in guessed.items()}
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    plan = memory_plan(family.run(folder), accelerator=False)
    assert plan.parts["base weights"] == sum(value.numel() * value.element_size() for value in loaded.network.parameters())


def test_a_model_that_is_not_here_is_known_by_what_is_published_of_it() -> None:
    plan = memory_plan(configure("flux"), 80 * GIB)
    assert plan.parts["base weights"] == pytest.approx(11.9e9 * 2, rel=0.01)
    assert plan.fits
    assert plan.advice == ()
    encoders = 2 * (4.76e9 + 0.12e9)
    assert encoders < plan.stages["reading prompts"] < 1.5 * encoders < plan.parts["base weights"]  # which is not loaded yet
    with pytest.raises(ValueError, match="hf download nobody/nothing"):
        memory_plan(configure("flux", {"model.source": "nobody/nothing"}))


def test_what_does_not_fit_comes_with_what_would(middling: Path) -> None:
    wanted = {"model__gradient_checkpointing": False, "model__resolution": 32, "rollout__mode": "all"}
    config = FLUX.run(middling, **wanted)
    whole = memory_plan(config, accelerator=False)
    plan = memory_plan(config, int(whole.total * 0.9), accelerator=False)
    assert not plan.fits
    assert all(each.total < plan.total for each in plan.advice)
    checkpointing = next(each for each in plan.advice if each.setting == "model.gradient_checkpointing")
    assert checkpointing.fits
    changed = FLUX.run(middling, **wanted | {"model__gradient_checkpointing": True})
    assert checkpointing.total == memory_plan(changed, accelerator=False).total
    assert '"advice"' in to_json(plan.as_json())


def test_weights_are_held_in_one_way_and_what_is_advised_can_be_set(middling: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.quantize = 'nf4' and model\.offload = 'linears'"):
        FLUX.run(middling, model__quantize="nf4", model__offload="linears")
    config = FLUX.run(middling, model__resolution=32)
    plan = memory_plan(config, 2**20, accelerator=False)
    *single, together = plan.advice
    for each in single:
        change(config, {each.setting: each.value})
    assert together.setting == "all of these but model.quantize=int8 and model.quantize=nf4"
    assert together.total < min(each.total for each in single)


def test_a_pipeline_that_is_driven_is_not_told_to_have_its_parts_elsewhere() -> None:
    told = dict(remedies(configure("flux", {"model.name": "flow_match"})))
    assert told["model.quantize"] == "nf4"
    assert "model.offload" not in told
    divided = configure("flux", {"compute.sharding": "fsdp2", "compute.processes": 2})
    assert not {"model.quantize", "model.offload"} & dict(remedies(divided)).keys()


def test_what_an_encoder_is_asked_to_keep_is_counted() -> None:
    """FLUX.2 takes what a prompt is from three layers, and its pipeline has all of them kept, with the logits."""
    plan = memory_plan(configure("precise_flux2_klein"))
    weights, tokens = 2 * 4.02e9, 16 * 512
    kept = 2 * tokens * (37 * 2560 + 151936)
    assert plan.stages["reading prompts"] == pytest.approx(weights + kept, rel=0.02)


def test_rewards_that_are_not_here_count_by_what_is_published_of_them(middling: Path, tmp_path: Path) -> None:
    def rewards(**changes: Any) -> int:
        return memory_plan(FLUX.run(middling, rewards=[{"reward": changes}]), accelerator=False).parts["rewards"]

    assert rewards(name="jpeg_size") == 0
    assert rewards(name="pickscore", source="nobody/nothing") == 4 * 986_109_441
    assert rewards(name="pickscore", source="nobody/nothing", dtype="bf16") == 2 * 986_109_441
    file = shutil.copy(middling / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "model.safetensors")
    assert rewards(name="pickscore", source=str(tmp_path)) == file.stat().st_size


def test_a_small_model_of_our_own_has_a_plan_too() -> None:
    plan = memory_plan(configure("shapes"), accelerator=False)
    assert 0 < plan.total < GIB
