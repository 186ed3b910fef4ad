"""Any pipeline of diffusers, driven by its own call: what it is compared with, and what it is refused for."""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AuraFlowPipeline
from tiny_family import CPU, PROMPTS, noise, sampled
from tiny_flow_match import AURAFLOW, Z_IMAGE, drawn
from tiny_flux import FLUX
from tiny_sd3 import SD3

from workbench.models.driven import alike, joined, packed, unpacked
from workbench.models.tiny.flow_match import tiny_auraflow, tiny_lumina2, tiny_qwen_image, tiny_z_image
from workbench.models.tiny.flux import tiny_flux
from workbench.models.tiny.flux2 import tiny_flux2_klein
from workbench.models.tiny.sd3 import tiny_sd3

model = AURAFLOW.model


def tiny_flux2_base(folder: Path) -> Path:
    """It takes latents in another shape than that in which it keeps them."""
    return tiny_flux2_klein(folder, distilled=False)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of this file's own, so that nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def auraflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_auraflow(tmp_path_factory.mktemp("models") / "auraflow")


@pytest.fixture(scope="module")
def z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_z_image(tmp_path_factory.mktemp("models") / "z_image")


# What diffusers draws, we draw


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(
    "make", [tiny_auraflow, tiny_z_image, tiny_lumina2, tiny_qwen_image, tiny_sd3, tiny_flux, tiny_flux2_base]
)
def test_a_pipeline_of_any_family_is_followed(make: Callable[..., Path], guidance: float, tmp_path: Path) -> None:
    """They scale time in three ways, predict with two signs, guide in four and pack in two."""
    folder = make(tmp_path / "model")
    tokens = 300 if make in (tiny_lumina2, tiny_qwen_image) else 64  # long instructions of their own
    generator = model(folder, guidance=guidance, max_tokens=tokens).load(CPU)
    x = noise(generator.latent_shape, 1)
    scale = {"true_cfg_scale": guidance, "negative_prompt": [""]} if make is tiny_qwen_image else {"guidance_scale": guidance}
    call = {"guidance_scale": None} | scale if make is tiny_qwen_image else scale
    given = x.mT.unflatten(2, (4, 4)) if make is tiny_flux2_base else x  # it packs what it is given
    theirs, times = drawn(folder, ["a red fox"], given, 3, max_sequence_length=tokens, **call)
    assert (sampled(generator, x, times, ("a red fox",)) - theirs).abs().max() <= 1e-4
    assert theirs.std() > 0.01


def test_an_adapter_of_its_own_gives_the_same(tmp_path: Path) -> None:
    folder = tiny_sd3(tmp_path / "sd3")
    own, driven = SD3.model(folder, guidance=4.0).load(CPU), model(folder, guidance=4.0).load(CPU)
    x = noise(own.latent_shape)
    assert own.latent_shape == driven.latent_shape
    for t in (1.0, 0.3):
        velocities = [each.bind(each.embed(PROMPTS)).velocity(x, t) for each in (own, driven)]
        assert torch.allclose(*velocities, atol=1e-4)


@pytest.mark.parametrize("which", ["auraflow", "z_image"])
def test_times_may_differ_by_row(which: str, request: pytest.FixtureRequest) -> None:
    generator = {"auraflow": AURAFLOW, "z_image": Z_IMAGE}[which].model(request.getfixturevalue(which)).load(CPU)
    flow_map, x = generator.bind(generator.embed(PROMPTS)), noise(generator.latent_shape)
    times = (0.7, 0.2, 0.7)
    with torch.no_grad():
        each = flow_map.velocity(x, torch.tensor(times))
        for row, t in enumerate(times):
            assert torch.allclose(each[row], flow_map.velocity(x, t)[row], atol=1e-5)


def test_prompts_of_different_lengths_are_asked_for_apart(tmp_path: Path) -> None:
    """Where nothing fills them up, as with Qwen-Image's own; each gives what it gives alone."""
    generator = model(tiny_qwen_image(tmp_path / "qwen"), guidance=1.0, max_tokens=300).load(CPU)
    passes: list[int] = []
    generator.network.register_forward_hook(lambda *call: passes.append(len(call[2]["hidden_states"])), with_kwargs=True)
    prompts, x = ("a fox", "two boats", "a cat"), noise(generator.latent_shape)
    with torch.no_grad():
        together = generator.bind(generator.embed(prompts)).velocity(x, 0.5)
        assert passes == [2, 1]
        for row, prompt in enumerate(prompts):
            alone = generator.bind(generator.embed((prompt,))).velocity(x[row : row + 1], 0.5)
            assert torch.allclose(together[row : row + 1], alone, atol=1e-5)


def test_pictures_become_packed_latents(tmp_path: Path) -> None:
    generator = FLUX.model(tiny_flux(tmp_path / "flux")).load(CPU)
    driven = model(tmp_path / "flux", guidance=3.5).load(CPU)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert driven.latent_shape == (16, 16)  # tokens, numbers of each
    assert torch.allclose(driven.decode(driven.encode(images)), generator.decode(generator.encode(images)), atol=1e-4)


# How what encoders said is kept


def test_what_was_said_of_a_prompt_survives_its_file() -> None:
    said = ((torch.ones(1, 2), None, [torch.zeros(3, 1)]), (torch.arange(3), ()))
    again = unpacked(packed(said))
    assert again[0][1] is None
    assert isinstance(again[0][2], list)
    assert torch.equal(again[0][0], said[0][0])
    assert torch.equal(again[1][0], said[1][0])
    assert again[1][1] == ()


def test_prompts_are_joined_where_they_are_counted() -> None:
    first = ((torch.zeros(1, 4), torch.zeros(6, 1, 2), [torch.zeros(2, 3)], torch.arange(5), None),)
    second = ((torch.ones(1, 4), torch.ones(6, 1, 2), [torch.ones(4, 3)], torch.arange(5), None),)
    ((rows, layers, own, shared, nothing),) = joined([first, second])
    assert rows.tolist() == [[0] * 4, [1] * 4]
    assert layers.shape == (6, 2, 2)
    assert [len(each) for each in own] == [2, 4]
    assert shared.tolist() == [0, 1, 2, 3, 4]
    assert nothing is None
    assert alike(first) == alike(second)
    assert alike(first) != alike(((torch.zeros(1, 5), torch.zeros(6, 1, 2), [], torch.arange(5), None),))


def test_guidance_and_the_negative_prompt_have_embeddings_of_their_own(auraflow: Path) -> None:
    settings = ({"guidance": 1.0}, {"guidance": 3.0}, {"guidance": 3.0, "negative_prompt": "blurry"}, {"guidance": 5.0})
    folders = [model(auraflow, **each).load(CPU).encoders.cache.folder for each in settings]
    assert folders[1] == folders[3]
    assert len(set(folders)) == 3


# What is refused


def _scheduler(folder: Path, to: Path, name: str, **settings: Any) -> Path:
    """A copy with another scheduler."""
    other = shutil.copytree(folder, to)
    head = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(head | {"scheduler": ["diffusers", name]}))
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": name, **settings}))
    return other


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("DDIMScheduler", {}, "DDIMScheduler"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "epsilon"}, "DPMSolverMultistepScheduler"),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "Scheduler with stochastic_sampling"),
    ],
)
def test_steps_that_are_no_euler_steps_are_refused(
    auraflow: Path, tmp_path: Path, name: str, settings: dict[str, Any], told: str
) -> None:
    other = _scheduler(auraflow, tmp_path / "other", name, **settings)
    with pytest.raises(
        ValueError, match=rf"holds a AuraFlowPipeline with the scheduler .*{told}: its step is not x \+ \(s - t\) v"
    ):
        model(other).load(CPU)


def test_a_solver_of_higher_order_over_the_same_field_is_taken(auraflow: Path, tmp_path: Path) -> None:
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    other = _scheduler(auraflow, tmp_path / "other", "DPMSolverMultistepScheduler", **settings)
    x = noise((4, 8, 8))
    one, same = (model(folder).load(CPU) for folder in (other, auraflow))
    assert torch.equal(sampled(one, x, (1.0, 0.5, 0.0)), sampled(same, x, (1.0, 0.5, 0.0)))


class _Momentum(AuraFlowPipeline):
    """Hands its scheduler an average over steps."""

    def prepare_latents(self, *given: Any, **named: Any) -> torch.Tensor:
        step, before = self.scheduler.step, []

        def averaged(output: torch.Tensor, *rest: Any, **more: Any) -> Any:
            before.append(output)
            return step(sum(before) / len(before), *rest, **more)

        self.scheduler.step = averaged
        return super().prepare_latents(*given, **named)


class _Moved(AuraFlowPipeline):
    """Moves its latents after every step."""

    def prepare_latents(self, *given: Any, **named: Any) -> torch.Tensor:
        step = self.scheduler.step
        self.scheduler.step = lambda *rest, **more: (step(*rest, **more)[0] + 0.5,)
        return super().prepare_latents(*given, **named)


class _Mixed(AuraFlowPipeline):
    """Begins at more noise."""

    def prepare_latents(self, *given: Any, **named: Any) -> torch.Tensor:
        return 2.0 * super().prepare_latents(*given, **named)


class _Sealed(AuraFlowPipeline):
    """Lets no gradient out, wherever it is asked."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        with torch.no_grad():
            return inspect.unwrap(AuraFlowPipeline.__call__)(self, *given, **named)

    __call__.__signature__ = inspect.signature(AuraFlowPipeline.__call__)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (_Momentum, "velocity at a time depends on the steps before it"),
        (_Moved, r"steps are not x \+ \(s - t\) v"),
        (_Mixed, "does not begin at noise of unit variance but of 4"),
        (_Sealed, "call keeps gradients from its network"),
    ],
)
def test_a_pipeline_that_does_more_is_found_out(
    auraflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, told: str
) -> None:
    monkeypatch.setattr("diffusers.AuraFlowPipeline", kind)
    with pytest.raises(ValueError, match=rf"auraflow holds a _\w+, (whose|which) {told}; it wants an adapter of its own"):
        model(auraflow).load(CPU)


@pytest.mark.parametrize("offload", ["parts", "linears"])
def test_parts_on_several_devices_are_refused(auraflow: Path, offload: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.offload = '{offload}': a pipeline that is driven has all its parts"):
        model(auraflow, offload=offload).load(CPU)


def test_a_pipeline_without_the_right_parts_is_named(auraflow: Path, tmp_path: Path) -> None:
    other = shutil.copytree(auraflow, tmp_path / "other")
    head = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(head | {"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(
        ValueError, match="holds a StableDiffusionPipeline, and this model loads a pipeline of diffusers with a tr"
    ):
        model(other).load(CPU)


def test_layers_that_are_not_there_are_named_with_those_that_are(auraflow: Path) -> None:
    with pytest.raises(
        ValueError, match=r"model\.adapted = qkv: its network has no layers of such names; choose from: .*attn\.to_q"
    ):
        model(auraflow, adapted=("qkv",)).load(CPU)


def test_a_prompt_that_every_tokenizer_cuts_is_refused(auraflow: Path) -> None:
    generator = model(auraflow, max_tokens=20).load(CPU)
    with pytest.raises(
        ValueError, match=r"prompt 'a{40}' has 4\d tokens, and model\.max_tokens = 20 are read; shorten it, or raise"
    ):
        generator.embed(["a" * 40])
    assert len(generator.embed(["a" * 15])) == 1


def test_weights_are_not_divided_over_processes_that_may_ask_unequally_often(auraflow: Path) -> None:
    with pytest.raises(ValueError, match=r"compute\.sharding = 'fsdp2': model 'flow_match' asks its network as often as its"):
        AURAFLOW.run(auraflow, compute__sharding="fsdp2")


def test_what_is_only_known_by_driving_is_not_said_beforehand(auraflow: Path) -> None:
    with pytest.raises(ValueError, match="is only known once it is loaded and driven"):
        model(auraflow).latent_shape(None, None)
