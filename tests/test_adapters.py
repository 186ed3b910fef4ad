"""What every family of pipelines has to pass, on random weights; what diffusers' own pipeline draws is the measure."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_family import CPU, PROMPTS, Family, noise, sampled
from tiny_flow_match import AURAFLOW, Z_IMAGE
from tiny_flux import FLUX
from tiny_flux2 import FLUX2_KLEIN
from tiny_flux_meanflow import FLUX_MEANFLOW
from tiny_flux_scm import FLUX_SCM
from tiny_sana import SANA, SANA_SPRINT
from tiny_sd3 import SD3
from torch import nn
from toy_training import assert_same_state, plain, told

from workbench.evaluate import generate, load_policy, stream_images
from workbench.events import CheckpointReady, Evaluated, Finished, IterationDone, PreflightDone
from workbench.export import write_weights
from workbench.flow import time_grid
from workbench.learner import Learner
from workbench.merging import write_merged
from workbench.models.policy import Policy
from workbench.rollout import drain
from workbench.settings import RunConfig
from workbench.store import Store
from workbench.train import make_accelerator, train

FAMILIES = {
    family.label or family.name: family
    for family in (FLUX, FLUX_MEANFLOW, FLUX_SCM, SANA, SANA_SPRINT, SD3, FLUX2_KLEIN, AURAFLOW, Z_IMAGE)
}


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of this file's own, so that nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.make(tmp_path_factory.mktemp("models") / (family.label or family.name))


def recorded(config: RunConfig, store: Store) -> str:
    """The id of a run of this configuration, done and recorded."""
    run = store.create("train", config.model_dump(mode="json"), title=config.title, origin="test", command="")
    for event in train(config):
        store.record(run, event)
    return run


# What diffusers draws, we draw


@pytest.mark.parametrize("steps", [1, 4])
def test_deterministic_samples_are_those_of_the_pipeline(family: Family, folder: Path, steps: int) -> None:
    generator = family.model(folder).load(CPU)
    x = noise(generator.latent_shape)
    theirs, times = family.drawn(folder, list(PROMPTS), x, steps, None)
    assert theirs.shape == (3, 3, family.side, family.side)
    assert theirs.std() > 0.02
    assert (sampled(generator, x, times) - theirs).abs().max() <= 1e-4


def test_images_depend_on_their_seed_alone(family: Family, folder: Path) -> None:
    policy = load_policy(family.run(folder))
    times = time_grid(2, 1.9)
    many = generate(policy, PROMPTS, (5, 6, 7), times=times)
    one = drain(stream_images(policy.generator, PROMPTS[1:2], (6,), times=times))
    assert many.shape == (3, 3, family.side, family.side)
    assert torch.allclose(many[1:2], one, atol=1e-5)


def test_no_more_is_needed_than_is_fetched_from_the_hub(
    family: Family, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = family.model(folder).load(CPU)
    x = noise(whole.latent_shape)
    expected = sampled(whole, x, (1.0, 0.0))
    fetched = tmp_path / "fetched"
    for part in {*whole.model.parts} & {path.name for path in folder.iterdir()}:
        shutil.copytree(folder / part, fetched / part)
    shutil.copy(folder / "model_index.json", fetched)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))  # so that prompts are read again
    assert torch.equal(sampled(family.model(fetched).load(CPU), x, (1.0, 0.0)), expected)


def test_encoding_is_undone_by_decoding(family: Family, folder: Path) -> None:
    """As far as the autoencoder itself undoes it."""
    generator = family.model(folder).load(CPU)
    images = torch.rand(2, 3, family.side, family.side, generator=torch.Generator().manual_seed(0))
    latents = generator.encode(images)
    assert latents.shape == (2, *generator.latent_shape)
    assert latents.dtype == torch.float32
    with torch.no_grad():
        coded = generator.vae.encode(2 * images - 1)
        code = coded.latent_dist.mode() if hasattr(coded, "latent_dist") else coded.latent
        theirs = (generator.vae.decode(code).sample / 2 + 0.5).clamp(0, 1)
        assert torch.allclose(generator.decode(latents), theirs, atol=1e-4)
    assert theirs.std() > 0.01


# Training


def test_prompts_are_read_before_any_other_network_is_loaded(
    family: Family, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text encoders are as large as what draws, so that both do not fit where one does."""
    if family.name == "flow_match":
        pytest.skip("its encoders read inside the pipeline's own call, for which the other parts have to be at hand")
    head = json.loads((folder / "model_index.json").read_text())
    readers = {head[part][1] for part in family.model(folder).encoders if "oken" not in part}
    read, came, move = list[weakref.ref[nn.Module]](), list[str](), nn.Module.to

    def watched(module: nn.Module, *given: Any, **named: Any) -> Any:
        if type(module).__name__ in readers:
            read.append(weakref.ref(module))
            assert not came
        elif type(module).__name__ in (head["transformer"][1], head["vae"][1]):
            came.append(type(module).__name__)
            assert all(reader() is None for reader in read)
        return move(module, *given, **named)

    monkeypatch.setattr(nn.Module, "to", watched)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))  # so that prompts are read again
    events = told(train(family.run(folder, iterations=1)))
    assert isinstance(events[-1], Finished)
    assert read
    assert came


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_first_ratio_is_exactly_one(family: Family, folder: Path, precision: str) -> None:
    run = family.run(folder, compute__precision=precision, rollout__mode="all", compute__train_batch=3, iterations=1)
    (checks,) = (event.checks for event in train(run) if isinstance(event, PreflightDone))
    ratio = next(check for check in checks if check.name == "ratio")
    assert ratio.level == "green"
    assert ratio.value == 0.0


def test_checkpointed_activations_change_no_gradient(family: Family, folder: Path) -> None:
    gradients = []
    for checkpointed in (False, True):
        policy = Policy(family.model(folder, gradient_checkpointing=checkpointed), CPU, adapter="lora", rank=2)
        flow_map = policy.generator.bind(policy.generator.embed(PROMPTS))
        x = noise(policy.generator.latent_shape)
        out = flow_map(x, 0.5, 0.0) if flow_map.kind == "single_time" else flow_map.velocity(x, 0.5)
        out.square().mean().backward()
        gradients.append([p.grad for p in policy.parameters.values()])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients, strict=True))


def test_twenty_iterations_raise_the_reward(family: Family, folder: Path) -> None:
    usual: dict[str, Any] = {
        "iterations": 20, "model__resolution": 32, "rollout__mode": "branch", "rollout__completion": "compose", "grpo__groups": 4,
        "grpo__group_size": 8, "optimizer__learning_rate": 4e-2, "optimizer__ema_decay": 0.5, "adapter__rank": 8,
        "adapter__alpha": 16, "evaluation__every": 20, "evaluation__final_images": 16,
    }  # fmt: skip
    events = told(train(family.run(folder, **usual | {key.replace(".", "__"): value for key, value in family.learning.items()})))
    rewards = [event.metrics["reward"] for event in events if isinstance(event, IterationDone)]
    spread = next(event.metrics["reward_std"] for event in events if isinstance(event, IterationDone))
    assert sum(rewards[-5:]) / 5 - sum(rewards[:5]) / 5 > 2 * spread
    before, after = (event.measures[4]["jpeg_size"] for event in events if isinstance(event, Evaluated))
    assert after.low > before.high


@pytest.mark.parametrize(("kl_weight", "references"), [(0.0, 0), (0.01, 3)])
def test_an_iteration_asks_the_network_no_oftener_than_it_must(
    family: Family, folder: Path, kl_weight: float, references: int
) -> None:
    """Four steps, three of them stochastic: each drawn once, and once more with a gradient; the reference only for a KL.

    What guidance adds without a gradient comes with what is drawn and with the reference, and never again.
    """
    config = family.run(
        folder, rollout__mode="all", iterations=1, objective__kl_weight=kl_weight, model__gradient_checkpointing=False
    )
    learner = Learner(config, make_accelerator(config))
    passes: list[bool] = []
    learner.policy.generator.network.get_base_model().register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    for event in train(config, learner=learner):
        if isinstance(event, CheckpointReady) and event.iteration == 0:
            passes.clear()
        if isinstance(event, IterationDone):
            break
    assert (passes.count(False), passes.count(True)) == ((4 + references) * (1 + family.detached), 3)


def test_a_run_that_goes_on_is_the_run_that_never_stopped(family: Family, folder: Path) -> None:
    run = family.run(folder)
    events = told(train(run))
    checkpoints = [event for event in events if isinstance(event, CheckpointReady)]
    (middle,) = (event for event in checkpoints if event.iteration == 2)
    again = told(train(run, resume=middle))
    assert_same_state(checkpoints[-1], next(e for e in reversed(again) if isinstance(e, CheckpointReady)))
    late = [plain(event) for event in events if isinstance(event, IterationDone) and event.iteration > 2]
    assert late == [plain(event) for event in again if isinstance(event, IterationDone)]


# What leaves


def test_what_was_learned_is_loaded_by_diffusers_and_draws_the_same(family: Family, folder: Path, store: Store) -> None:
    config = family.run(folder, iterations=2, adapter__alpha=6)  # a scale that is no power of two
    run = recorded(config, store)
    policy = load_policy(config, store.load_checkpoint(run))
    x = noise(policy.generator.latent_shape)
    base, times = family.drawn(folder, list(PROMPTS), x, 4, None)
    theirs, _ = family.drawn(folder, list(PROMPTS), x, 4, write_weights(store, run))
    assert (sampled(policy.generator, x, times) - theirs).abs().max() <= 1e-4
    assert (base - theirs).abs().max() > 1e-3


def test_all_weights_take_the_place_of_the_components_file(family: Family, folder: Path, store: Store, tmp_path: Path) -> None:
    config = family.run(folder, iterations=1, adapter__kind="full")
    run = recorded(config, store)
    tuned = shutil.copytree(folder, tmp_path / "tuned")
    shutil.copy(write_weights(store, run), tuned / "transformer" / "diffusion_pytorch_model.safetensors")
    policy = load_policy(config, store.load_checkpoint(run))
    x, times = noise(policy.generator.latent_shape), time_grid(2, 1.9)
    again = sampled(family.model(tuned).load(CPU), x, times)
    assert torch.equal(again, sampled(policy.generator, x, times))
    assert not torch.equal(again, sampled(family.model(folder).load(CPU), x, times))


def test_merged_weights_are_a_pipeline_that_draws_the_same(family: Family, folder: Path, store: Store) -> None:
    config = family.run(folder, iterations=1, adapter__alpha=6)
    run = recorded(config, store)
    policy = load_policy(config, store.load_checkpoint(run))
    x = noise(policy.generator.latent_shape)
    theirs, times = family.drawn(drain(write_merged(store, run, pipeline=True)), list(PROMPTS), x, 4, None)
    assert (sampled(policy.generator, x, times) - theirs).abs().max() <= 1e-4
    with policy.beginning() as base:
        assert (sampled(base, x, times) - theirs).abs().max() > 5e-4


def test_a_run_that_begins_from_an_exported_lora_begins_where_that_ended(family: Family, folder: Path, store: Store) -> None:
    config = family.run(folder, iterations=1, adapter__alpha=6)
    run = recorded(config, store)
    policy, times = load_policy(config, store.load_checkpoint(run)), time_grid(2, 1.9)
    x = noise(policy.generator.latent_shape)
    again = load_policy(family.run(folder, adapter__start=str(write_weights(store, run))))  # its alpha is another
    assert torch.allclose(sampled(again.generator, x, times), sampled(policy.generator, x, times), atol=1e-5)


# Bad input


def test_another_pipeline_is_named(family: Family, folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    head = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(head | {"_class_name": "KandinskyPipeline"}))
    with pytest.raises(ValueError, match=r"other holds a KandinskyPipeline, and this model loads a"):
        family.model(other).load(CPU)


@pytest.mark.parametrize("damage", ["no folder", "no weights", "cut short", "no head"])
def test_a_damaged_folder_is_named_in_one_line(family: Family, folder: Path, tmp_path: Path, damage: str) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    if damage == "no folder":
        shutil.rmtree(broken / "text_encoder")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:5000])
    else:
        (broken / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken.* fetch it again") as caught:
        family.model(broken).load(CPU)
    assert "\n" not in str(caught.value)


def test_a_prompt_longer_than_the_encoder_is_refused_before_anything_is_drawn(family: Family, folder: Path) -> None:
    long = "a very long prompt " * 5
    with pytest.raises(ValueError, match=r"prompt 'a very long.* has \d+ tokens, and model\.max_tokens = 64 are read; short"):
        next(train(family.run(folder, task__lines=[long, "a fox"])))
