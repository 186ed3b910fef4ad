"""Two-time maps of FLUX: told where a jump ends, made of a plain FLUX, distilled by MeanFlow, and what they become afterwards."""

import json
import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_family import CPU, PROMPTS, SIDE, noise, sampled
from tiny_flux import FLUX
from tiny_flux_meanflow import FLUX_MEANFLOW, pipeline
from torch import Tensor, nn
from toy_training import assert_same_state, told

from workbench.__main__ import main
from workbench.captioned import captioned, read_picture
from workbench.distillation import Distillation, distil, slope_along
from workbench.distillation_data import gather
from workbench.events import CheckpointReady, Controls, Evaluated, Event, Finished, IterationDone, PreflightDone
from workbench.experiments.execute import execute
from workbench.experiments.work import Work, submit
from workbench.flow import time_grid
from workbench.models.flux import pack, unpack
from workbench.models.flux_meanflow import FluxMeanFlowModel
from workbench.models.flux_two_time import FluxTwoTimeTransformer2DModel
from workbench.models.tiny import TOKENS, saved
from workbench.models.tiny.flux import random_flux, tiny_flux
from workbench.models.tiny.flux_meanflow import smooth_in_time, tiny_flux_meanflow
from workbench.pretrain import configure_recipe, recorded_recipe
from workbench.pretrained import write_distilled
from workbench.provenance import read_provenance
from workbench.recipes.distillation import DistillationRecipe
from workbench.store import Store
from workbench.train import train
from workbench.two_time import copy_pipeline, make_two_time

model = FLUX_MEANFLOW.model
KINDS = ("interval", "target")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this file's own, so that nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX as gentle as one that was trained: smooth in time, and with velocities of about unit size."""

    def gentle() -> Any:
        made = random_flux(True)
        smooth_in_time(made.transformer)
        with torch.no_grad():
            made.transformer.proj_out.weight.mul_(0.3)
        return made

    return saved(gentle, "gentle", tmp_path_factory.mktemp("models") / "gentle", 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random two-time map of each kind."""
    place = tmp_path_factory.mktemp("maps")
    return {kind: tiny_flux_meanflow(place / kind, kind=kind) for kind in KINDS}


def bound(folder: Path, **settings: Any) -> Any:
    """The map of a folder with the usual prompts."""
    generator = model(folder, **settings).load(CPU)
    return generator.bind(generator.embed(PROMPTS))


# Where a jump ends


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_embedder_is_added_or_mixed_as_it_was_published(folders: dict[str, Path], kind: str) -> None:
    """u(x, t, s) of diffusers' own FLUX, whose timestep embedding is replaced by what either paper's formula gives."""
    folder = folders[kind]
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    config = FluxTransformer2DModel.load_config(folder, subfolder="transformer")
    theirs = FluxTransformer2DModel.from_config(config)
    theirs.load_state_dict({name: value for name, value in tensors.items() if "delta_embedder" not in name})
    second = {name.rpartition("delta_embedder.")[2]: value for name, value in tensors.items() if "delta_embedder" in name}
    t, s = torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0.2, 0.5, 0.0])
    heard = 6 * (t - s) if kind == "interval" else 1000 * s
    angles = heard[:, None] * 10_000.0 ** -(torch.arange(128) / 128)
    hidden = torch.cat([angles.cos(), angles.sin()], 1) @ second["linear_1.weight"].T + second["linear_1.bias"]
    says = nn.functional.silu(hidden) @ second["linear_2.weight"].T + second["linear_2.bias"]
    mix = (lambda first: first + says) if kind == "interval" else (lambda first: 0.75 * first + 0.25 * says)
    theirs.time_text_embed.timestep_embedder.register_forward_hook(lambda module, args, out: mix(out))
    ours = bound(folder)
    x = noise((4, 8, 8))
    with torch.no_grad():
        jump = ours(x, t, s)
        ours.network = _Plain(theirs)
        expected = x + (s - t).view(-1, 1, 1, 1) * ours.average_velocity(x, t, s)
    assert torch.allclose(jump, expected, atol=1e-4)
    assert not torch.allclose(jump, x + (s - t).view(-1, 1, 1, 1) * bound(folder).velocity(x, t), atol=1e-2)


class _Plain(nn.Module):
    """A FLUX that takes no notice of where a jump ends."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, target_timestep: Tensor, **rest: Any) -> Any:
        return self.network(**rest)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_target_it_is_the_velocity_so_that_diffusers_takes_euler_steps(folders: dict[str, Path], kind: str) -> None:
    pipe, ours = pipeline(folders[kind]), bound(folders[kind])
    x = noise((4, 8, 8))
    told = {"guidance_scale": 3.5, "max_sequence_length": TOKENS, "height": SIDE, "width": SIDE, "num_inference_steps": 3}
    theirs = unpack(pipe(prompt=list(PROMPTS), latents=pack(x), output_type="latent", **told).images, 8, 8)
    with torch.no_grad():
        for t, s in pairwise(pipe.scheduler.sigmas.tolist()):
            x = x + (s - t) * ours.velocity(x, t)
    assert torch.allclose(x, theirs, atol=1e-4)


def test_rows_may_have_times_of_their_own(folders: dict[str, Path]) -> None:
    ours, x = bound(folders["interval"]), noise((4, 8, 8))
    t, s = torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0.2, 0.5, 0.3])
    with torch.no_grad():
        together = ours(x, t, s)
        for row in range(3):
            assert torch.allclose(together[row], ours(x, float(t[row]), float(s[row]))[row], atol=1e-5)
    assert torch.equal(together[2], x[2])  # a jump from a time to itself


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_embedder_stays_in_single_precision(folders: dict[str, Path], kind: str) -> None:
    network = model(folders[kind], dtype="bf16").load(CPU).network
    types = {name: p.dtype for name, p in network.named_parameters() if "embedder.linear_1.weight" in name}
    assert types.pop("time_text_embed.delta_embedder.linear_1.weight") == torch.float32
    assert set(types.values()) == {torch.bfloat16}


def test_the_checkpoint_says_which_kind_it_is_and_anyflows_own_is_told_by_its_weights(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    theirs = shutil.copytree(folders["target"], tmp_path / "theirs")
    settings = theirs / "transformer" / "config.json"
    told = json.loads(settings.read_text())
    ours = {"deltatime_type", "gate_value", "time_scale", "second_scale", "guidance_scale"}
    settings.write_text(json.dumps({key: value for key, value in told.items() if key not in ours} | {"_class_name": "Theirs"}))
    x = noise((4, 8, 8))
    with torch.no_grad():
        assert torch.equal(bound(theirs)(x, 0.9, 0.3), bound(folders["target"])(x, 0.9, 0.3))


# Making one


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [True, False])
def test_where_s_is_t_a_new_map_is_the_velocity_of_its_flux(kind: str, guidance: bool, tmp_path: Path) -> None:
    source = tiny_flux(tmp_path / "plain", guidance=guidance)
    made = make_two_time(source, tmp_path / "made", second_time=kind)  # type: ignore[arg-type]
    flux = FLUX.model(source).load(CPU)
    velocity, ours, x = flux.bind(flux.embed(PROMPTS)), bound(made), noise((4, 8, 8))
    with torch.no_grad():
        for t in (1.0, 0.6, 0.05):
            v = velocity.velocity(x, t)
            assert (ours.velocity(x, t) - v).abs().max() <= 1e-6 * v.abs().max()
            assert (ours.average_velocity(x, t, 0.0) - v).abs().max() > 1e-3
    assert "where s = t it is exactly that checkpoint's velocity" in (made / "README.md").read_text()
    fresh = {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    assert fresh - {Path("README.md")} == {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert FluxTransformer2DModel.load_config(made, subfolder="transformer")["_class_name"] == "FluxTwoTimeTransformer2DModel"


def test_large_parts_are_linked_and_a_sharded_transformer_gets_one_shard_more(plain: Path, tmp_path: Path) -> None:
    source = shutil.copytree(plain, tmp_path / "sharded")
    (source / "flux1-dev.safetensors").write_bytes(b"the same weights in one file, under other names")
    (source / "LICENSE.md").write_text("not for sale")
    network = FluxTransformer2DModel.from_pretrained(source, subfolder="transformer")
    (source / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(source / "transformer", max_shard_size="60KB")
    made = make_two_time(source, tmp_path / "made")
    shards = sorted((source / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    for shard in [*shards, source / "vae" / "diffusion_pytorch_model.safetensors"]:
        assert (made / shard.relative_to(source)).samefile(shard)
    assert len(list((made / "transformer").glob("*.safetensors"))) == len(shards) + 1
    for folder in (made, copy_pipeline(made, tmp_path / "further")):
        assert {path.name for path in folder.iterdir() if path.is_file()} == {"model_index.json", "README.md", "LICENSE.md"}
    assert not (made / "transformer" / "config.json").samefile(source / "transformer" / "config.json")
    x, whole = noise((4, 8, 8)), make_two_time(plain, tmp_path / "whole")
    with torch.no_grad():
        assert torch.equal(bound(made)(x, 0.9, 0.3), bound(whole)(x, 0.9, 0.3))


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_of_t2i_distill_are_taken_in(folders: dict[str, Path], plain: Path, tmp_path: Path, ending: str) -> None:
    """Their names, and times and guidance as they are: what FLUX's own sinusoids hear a thousandfold."""
    network = FluxTwoTimeTransformer2DModel.from_pretrained(folders["interval"], subfolder="transformer")
    theirs = {
        name.replace("time_text_embed.delta_embedder.", "timestep_embedder2."): value
        for name, value in network.state_dict().items()
    }
    file = tmp_path / f"transformer_25000.{ending}"
    torch.save({"module": theirs}, file) if ending == "pt" else save_file(theirs, file)
    made = make_two_time(plain, tmp_path / "made", weights=str(file))
    loaded = model(made).load(CPU).network
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
    pooled, first = torch.zeros(1, 16), loaded.time_text_embed.timestep_embedder
    angles = 0.7 * 10_000.0 ** -(torch.arange(128) / 128)
    heard: list[Tensor] = []
    first.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    loaded.time_text_embed(torch.tensor([[700.0, 200.0]]), torch.tensor([3500.0]), pooled)
    assert torch.allclose(heard[0], torch.cat([angles.cos(), angles.sin()])[None], atol=1e-5)

    del theirs["proj_out.bias"]
    save_file(theirs, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"less\.safetensors does not fit the checkpoint: only the checkpoint has 'proj_out\.b"):
        make_two_time(plain, tmp_path / "less", weights=str(tmp_path / "less.safetensors"))
    assert not [path for path in tmp_path.iterdir() if "less" in path.name and path.is_dir()]


# Bad input


def test_a_plain_flux_says_how_to_make_a_map_of_it(plain: Path) -> None:
    with pytest.raises(ValueError, match=r"one timestep embedder, so it is a velocity field.*pretrain flux_meanflow.*'flux'"):
        model(plain).load(CPU)
    with pytest.raises(ValueError, match=r"model\.source is empty: .*pretrain flux_meanflow --set source=FOLDER"):
        FluxMeanFlowModel().load(CPU)


def test_t2i_distills_names_in_a_folder_say_how_to_take_them_in(folders: dict[str, Path], tmp_path: Path) -> None:
    theirs = shutil.copytree(folders["interval"], tmp_path / "theirs")
    file = theirs / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("time_text_embed.delta_embedder", "timestep_embedder2"): v for name, v in tensors.items()}, file)
    with pytest.raises(ValueError, match=r"under the names of T2I-Distill: take them in with .* --set weights=FILE"):
        model(theirs).load(CPU)


def test_a_folder_that_is_there_is_not_written_over(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"mine is there already; name a folder that is not"):
        make_two_time(plain, tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


# Distillation


def recipe(source: Path, **changes: Any) -> DistillationRecipe:
    usual: dict[str, Any] = {
        "source": str(source), "resolution": SIDE, "max_tokens": TOKENS, "dtype": "fp32", "precision": "float32", "device": "cpu",
        "packaged": "none", "samples": 8, "teacher_steps": 6, "batch": 4, "portion": 4, "rank": 4, "alpha": 8, "warmup": 2,
        "report_every": 1, "evaluation_images": 4, "evaluation_steps": (1, 2), "checkpoint_every": 2, "learning_rate": 1e-2,
        "steps": 4,
    }  # fmt: skip
    return DistillationRecipe(**usual | changes)


def last_checkpoint(events: list[Event]) -> CheckpointReady:
    return next(event for event in reversed(events) if isinstance(event, CheckpointReady))


@pytest.mark.parametrize("kind", KINDS)
def test_both_derivatives_along_the_path_agree(folders: dict[str, Path], kind: str) -> None:
    generator = model(folders[kind]).load(CPU)
    network = generator.network.double()
    ours = generator.bind(generator.embed(PROMPTS))
    ours.hidden, ours.pooled = ours.hidden.double(), ours.pooled.double()
    x, t, s = noise((4, 8, 8)), torch.tensor([0.9, 0.6, 1.0]), torch.tensor([0.2, 0.5, 0.0])
    with torch.no_grad():
        v = ours.velocity(x, t)
    exact = slope_along(ours, x, t, s, v)
    assert exact.abs().mean() > 0.1
    near = slope_along(ours, x, t, s, v, by="difference", reach=1e-3)
    assert (exact - near)[:2].abs().max() < 0.02 * exact.abs().max()  # both sides are within: an error of the second order
    assert (exact - near)[2].abs().max() < 0.2 * exact.abs().max()  # at t = 1 only one side is
    assert not exact.requires_grad
    assert next(network.parameters()).grad is None


def test_a_difference_reaches_as_far_as_the_numbers_are_coarse(plain: Path) -> None:
    """Of bfloat16 against the exact derivative in float32: a short step would mostly measure rounding."""
    exact, coarse = recipe(plain), recipe(plain, dtype="bf16", precision="bfloat16")
    assert (exact.reach, coarse.reach, recipe(plain, precision="bfloat16").reach) == (0.005, 0.05, 0.05)
    assert recipe(plain, dtype="bf16", difference=0.01).reach == 0.01
    x, t, s, v = noise((4, 8, 8)), torch.tensor([0.9, 0.6, 0.8]), torch.tensor([0.2, 0.5, 0.0]), noise((4, 8, 8), seed=1)

    def slope(wanted: DistillationRecipe, **how: Any) -> Tensor:
        generator = wanted.student(wanted.beginning(), CPU).generator
        return slope_along(generator.bind(generator.embed(PROMPTS)), x, t, s, v, **how)  # type: ignore[arg-type]

    wanted = slope(exact)
    near, short = (slope(coarse, by="difference", reach=reach) for reach in (coarse.reach, 0.005))
    assert (near - wanted).norm() < 0.2 * wanted.norm() < (short - wanted).norm()


def test_the_target_is_the_teachers_velocity_less_the_slope_and_no_gradient_runs_through_it(plain: Path) -> None:
    wanted = recipe(plain, same_time=0.0)
    work = Distillation(wanted, wanted.beginning(), CPU)
    list(gather(work.data, work.student, wanted, Controls()))
    errors, same = work._errors(0, torch.arange(4))
    assert not same.any()
    errors.sum().backward()
    grads = {name: p.grad for name, p in work.student.parameters.items()}
    assert all(grads[name] is not None for name in grads if "lora_B" in name)
    assert float(next(grad for name, grad in grads.items() if name.endswith("linear_2.weight")).abs().sum()) > 0  # type: ignore[union-attr]
    other = Distillation(recipe(plain, same_time=0.0, derivative="difference", difference=1e-3), wanted.beginning(), CPU)
    assert torch.allclose(other._errors(0, torch.arange(4))[0], errors, rtol=0.05)
    alone, _ = work._errors(0, torch.tensor([2]))
    assert torch.allclose(alone, errors[2:3], rtol=1e-4)  # a row depends on its place, not on its portion
    at_once = Distillation(recipe(plain, same_time=1.0), wanted.beginning(), CPU)
    assert float(at_once._errors(0, torch.arange(4))[0].detach().max()) < 1e-9  # where s = t the student begins as the teacher


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_distillation_lowers_its_loss_and_brings_few_steps_nearer_to_the_teachers_many(kind: str, plain: Path) -> None:
    wanted = recipe(
        plain, second_time=kind, steps=24, batch=8, portion=8, samples=16, teacher_steps=8, same_time=0.25, ema_decay=0.8,
        learning_rate=2e-2, power=0.5, rank=8, alpha=16, evaluation_images=8, checkpoint_every=100, time_mean=0.4,
    )  # fmt: skip
    events = told(distil(wanted))
    losses = [event.metrics["loss_map"] for event in events if isinstance(event, IterationDone)]
    assert sum(losses[-6:]) < 0.75 * sum(losses[:6])
    before, after = (event.measures for event in events if isinstance(event, Evaluated))
    for steps in (1, 2):
        assert after[steps]["distance_to_teacher"].value < 0.95 * before[steps]["distance_to_teacher"].value


def test_a_base_in_half_precision_is_distilled_and_begins_as_its_velocity(plain: Path) -> None:
    wanted = recipe(plain, dtype="bf16", precision="bfloat16", steps=1)
    work = Distillation(wanted, wanted.beginning(), CPU)
    assert {p.dtype for p in work.student.parameters.values()} == {torch.float32}
    events = told(distil(wanted))
    assert isinstance(events[-1], Finished)
    x, flux = noise((4, 8, 8)), FLUX.model(plain, dtype="bf16").load(CPU)
    velocity = flux.bind(flux.embed(PROMPTS))
    with torch.no_grad(), work.student.teacher() as teacher:
        ours = teacher.bind(teacher.embed(PROMPTS)).velocity(x, 0.6)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = velocity.velocity(x, 0.6)
    assert (ours - theirs).abs().max() <= 0.01 * theirs.abs().max()  # of numbers with 8 bits


def test_what_has_no_forward_derivative_says_what_to_use_instead(plain: Path, monkeypatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("Trying to use forward AD with some_kernel\nPlease file an issue")

    monkeypatch.setattr(torch.func, "jvp", refuse)
    with pytest.raises(ValueError, match=r"'jvp' cannot be taken here \(.*some_kernel\); use derivative = 'difference'"):
        list(distil(recipe(plain, same_time=0.0)))


def test_prompts_are_read_before_the_networks_are_loaded(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, order = recipe(plain, steps=1), list[str]()
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))  # so that prompts are read again
    for name in ("read", "load_transformer"):
        usual = getattr(FluxMeanFlowModel, name)
        monkeypatch.setattr(
            FluxMeanFlowModel, name, lambda *given, name=name, usual=usual: (order.append(name), usual(*given))[1]
        )
    assert isinstance(told(distil(wanted))[-1], Finished)
    assert order[0] == "read"
    assert set(order[order.index("load_transformer") :]) == {"load_transformer"}


def test_a_distillation_that_goes_on_is_the_one_that_never_stopped(plain: Path) -> None:
    wanted = recipe(plain)
    events = told(distil(wanted))
    middle = next(event for event in events if isinstance(event, CheckpointReady) and event.iteration == 2)
    again = told(distil(recorded_recipe(wanted.model_dump(mode="json")), resume=middle))  # type: ignore[arg-type]
    assert_same_state(last_checkpoint(events), last_checkpoint(again))
    late = [event.metrics for event in events if isinstance(event, IterationDone) and event.iteration > 2]
    assert late == [event.metrics for event in again if isinstance(event, IterationDone)]
    ends = [next(event.measures for event in reversed(run) if isinstance(event, Evaluated)) for run in (events, again)]
    assert ends[0] == ends[1]


def test_a_stop_while_the_teacher_draws_is_resumed_without_drawing_again(plain: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(plain.parent / "another cache"))
    controls, wanted, seen = Controls(), recipe(plain, steps=1, portion=2), []
    for event in distil(wanted, controls=controls):
        seen.append(event)
        controls.stop = True
    assert [type(event).__name__ for event in seen if not hasattr(event, "total")] == ["Started", "CheckpointReady", "Finished"]
    again = told(distil(wanted, resume=last_checkpoint(seen)))
    assert isinstance(again[-1], Finished)
    assert sum(isinstance(event, Evaluated) for event in again) == 2
    drawn = sum(getattr(event, "stage", "") == "teacher" for event in distil(wanted))
    assert drawn == 0


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_what_was_distilled_is_a_pipeline_that_trains(adapter: str, plain: Path, tmp_path: Path) -> None:
    wanted = recipe(plain, adapter=adapter, learning_rate=1e-3)
    events = told(distil(wanted))
    out = write_distilled(wanted, last_checkpoint(events), tmp_path / "distilled")
    student = wanted.student(wanted.beginning(), CPU)
    with torch.no_grad():
        for name, parameter in student.parameters.items():
            parameter.copy_(last_checkpoint(events).tensors["average"][name])
    x, times = noise((4, 8, 8)), time_grid(2, 1.9)
    ours = sampled(model(out).load(CPU), x, times)
    assert torch.allclose(ours, sampled(student.generator, x, times), atol=1e-5)
    assert (ours - sampled(model(wanted.beginning()).load(CPU), x, times)).abs().max() > 1e-4
    assert f"Distilled from {plain} by MeanFlow, 4 steps." in (out / "README.md").read_text()
    if adapter == "lora":
        run = FLUX_MEANFLOW.run(out, iterations=1, rollout__mode="all")
        assert sum(isinstance(event, IterationDone) for event in train(run)) == 1
        further = recipe(out, steps=1)
        assert further.beginning() == out
        assert isinstance(told(distil(further))[-1], Finished)


def test_what_was_distilled_is_written_in_the_numbers_of_its_base_and_the_embedder_in_its_own(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(plain, tmp_path / "coarse")
    file = Path("transformer") / "diffusion_pytorch_model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(plain / file).items()}, source / file)
    wanted = recipe(source, dtype="bf16", precision="bfloat16")
    work = Distillation(wanted, wanted.beginning(), CPU)
    with torch.no_grad():
        for value in work.average.average.values():
            value.add_(0.01)
    checkpoint = work.checkpoint()
    monkeypatch.setattr(DistillationRecipe, "student", None)  # no whole network is loaded
    written = load_file(write_distilled(wanted, checkpoint, tmp_path / "out") / file)
    second = {name: value for name, value in written.items() if "delta_embedder" in name}
    assert {value.dtype for value in second.values()} == {torch.float32}
    assert {value.dtype for name, value in written.items() if name not in second} == {torch.bfloat16}
    trained = checkpoint.tensors["average"]
    for name, value in second.items():
        assert any(torch.equal(value, trained[known]) for known in trained if known.endswith(name.rpartition("embedder.")[2]))


def test_undistilled_maps_are_written_as_they_are_made(plain: Path, tmp_path: Path) -> None:
    wanted = recipe(plain, steps=0)
    events = told(distil(wanted))
    assert [type(event).__name__ for event in events] == ["Started", "CheckpointReady", "Finished"]
    out = write_distilled(wanted, last_checkpoint(events), tmp_path / "made")
    x = noise((4, 8, 8))
    with torch.no_grad():
        assert torch.equal(bound(out)(x, 0.9, 0.2), bound(make_two_time(plain, tmp_path / "again"))(x, 0.9, 0.2))


def test_the_command_writes_a_folder_and_never_over_one(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = recipe(plain, steps=1).model_dump(mode="json") | {"seed": 1}
    standard = DistillationRecipe().model_dump(mode="json")
    told = {name: value for name, value in values.items() if name != "name" and value != standard[name]}
    changes = [word for name, value in told.items() for word in ("--set", f"{name}={value}")]
    ask = ["pretrain", "flux_meanflow", *changes, "--out", str(tmp_path / "made"), "--runs", str(tmp_path / "runs"), "--json"]
    assert main(ask) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["weights"] == str(tmp_path / "made")
    assert (tmp_path / "made.log").read_text().count("distance to teacher") == 4
    assert bound(tmp_path / "made").kind == "two_time"
    (origin,) = read_provenance(Store(tmp_path / "runs"), summary["run"])
    assert {weights.owner for weights in origin.weights} == {"source"}
    assert len(origin.weights) == 4  # transformer, autoencoder and both readers of prompts
    assert main(ask) == 2
    assert "made is a folder that is there already; name a place where nothing is" in capsys.readouterr().err


def test_a_distillation_of_the_queue_leaves_its_folder_with_the_run(plain: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    run = submit(store, Work(kind="pretrain", config=recipe(plain, steps=1).model_dump(mode="json")), origin="test")
    assert execute(store, run).status == "done"
    assert bound(store.folder(run) / "flux_meanflow").kind == "two_time"
    assert "held-out" in (store.folder(run) / "flux_meanflow.log").read_text()


def test_the_papers_kernel_trains_on_its_grid_from_an_exact_first_ratio(folders: dict[str, Path]) -> None:
    changes = {"sampler.name": "asfmc_local", "sampler.distance": 0.03, "rollout.grid": "linspace", "rollout.steps": 5}
    run = FLUX_MEANFLOW.run(folders["interval"], iterations=1, rollout__mode="all", compute__train_batch=3, **changes)
    assert run.times == pytest.approx((1.0, 0.7625, 0.525, 0.2875, 0.05, 0.0))
    events = list(train(run))
    (checks,) = (event.checks for event in events if isinstance(event, PreflightDone))
    assert next(check for check in checks if check.name == "ratio").value == 0.0
    assert sum(isinstance(event, IterationDone) for event in events) == 1


# Pictures


def test_pictures_with_captions_are_learned_from(plain: Path, tmp_path: Path) -> None:
    colours = ("red", "green", "blue", "white")
    for index, colour in enumerate(colours):
        Image.new("RGB", (40, 20 + index), colour).save(tmp_path / f"{colour}.png")
        (tmp_path / f"{colour}.txt").write_text(f"all {colour}\n")
    found = captioned(str(tmp_path))
    assert [each.caption for each in found] == sorted(f"all {colour}" for colour in colours)
    pixels = read_picture(tmp_path / "red.png", SIDE)
    assert pixels.shape == (3, SIDE, SIDE)
    assert torch.equal(pixels[0], torch.ones(SIDE, SIDE))
    wanted = recipe(plain, pictures=str(tmp_path), samples=0, steps=1)
    work = Distillation(wanted, wanted.beginning(), CPU)
    list(gather(work.data, work.student, wanted, Controls()))
    latents = load_file(work.data[0].file)["latent"]
    expected = work.generator.encode(read_picture(found[0].path, SIDE)[None])[0]
    assert torch.allclose(latents.float(), expected, atol=2e-3)
    assert isinstance(told(distil(wanted))[-1], Finished)


def test_a_list_names_pictures_and_their_captions(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    lines = tmp_path / "metadata.jsonl"
    lines.write_text('{"file_name": "a.png", "text": "  nothing   at all "}\n\n')
    assert [each.caption for each in captioned(str(tmp_path))] == ["nothing at all"]
    for line, words in (
        ('{"file_name": "b.png", "text": "b"}', r"line 1 of .* names .*b\.png, which is not there"),
        ('{"file_name": "a.png"}', r"line 1 of .*metadata\.jsonl is not an object such as"),
        ('{"file_name": "a.png", "text": " "}', r"line 1 of .* has an empty caption"),
    ):
        lines.write_text(line)
        with pytest.raises(ValueError, match=words):
            captioned(str(lines))


def test_missing_captions_pictures_and_data_are_named(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pictures = '.*none' is neither a folder nor a JSONL"):
        captioned(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"holds no pictures; they end in \.png"):
        captioned(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"a\.png has no caption: write it into a\.txt beside it"):
        captioned(str(tmp_path))
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture"):
        read_picture(tmp_path / "a.png", SIDE)
    with pytest.raises(ValueError, match="nothing to learn from: give `pictures`, or let the teacher draw"):
        list(distil(recipe(plain, samples=0)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"second_time": "both"}, "second_time = 'both': Input should be 'interval' or 'target'"),
        ({"same_time": 2}, "same_time = 2: .*less than or equal to 1"),
        ({"flow_steps": 3}, "unknown setting 'flow_steps'; choose from: title, seed, source"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        configure_recipe("flux_meanflow", changes)


def test_weights_too_coarse_to_be_trained_are_refused(plain: Path) -> None:
    with pytest.raises(ValueError, match="adapter = 'full' trains weights that dtype = 'bf16' holds too coarsely"):
        list(distil(recipe(plain, adapter="full", dtype="bf16")))
