"""Training that begins from a LoRA: it begins where the file ended, is held to it, and what does not fit is refused by name."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_family import CPU, PROMPTS, noise, sampled
from tiny_flux import FLUX
from tiny_sd3 import SD3
from toy_training import told

from workbench.__main__ import main
from workbench.config import configure
from workbench.evaluate import load_policy
from workbench.events import CheckpointReady, IterationDone
from workbench.export import read_archive, write_archive, write_weights
from workbench.lora_runs import take_lora
from workbench.models.diffusers_folder import fingerprint
from workbench.models.lora import DIFFUSERS, DIFFUSERS_NOTE, NOTE, PEFT, Lora, attach, read_lora
from workbench.models.policy import Policy
from workbench.policies import Policies, choose
from workbench.provenance import collect
from workbench.settings import RunConfig
from workbench.store import Store
from workbench.train import train

TIMES = (1.0, 0.6, 0.3, 0.0)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of this file's own, so that nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FLUX.make(tmp_path_factory.mktemp("models") / "tiny-flux")


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Policy]:
    """A LoRA that moves pictures, as an export wrote it, and the policy that it was written from."""
    store, config = Store(tmp_path_factory.mktemp("runs")), FLUX.run(folder, adapter__alpha=6)
    return written(config, store), load_policy(config, store.load_checkpoint(store.runs()[0].id))


def written(config: RunConfig, store: Store) -> Path:
    """The exported adapters of a run whose weights are random."""
    policy, draw = load_policy(config), torch.Generator().manual_seed(0)
    moved = {name: 0.3 * torch.randn(value.shape, generator=draw) for name, value in policy.parameters.items()}
    run = store.create("train", config.model_dump(mode="json"), title="Moved", origin="test")
    store.record(run, CheckpointReady(3, {"policy": moved, "ema": moved, "optimizer": {}}, {"best": 3}))
    return write_weights(store, run)


def pictures(policy: Policy) -> torch.Tensor:
    return sampled(policy.generator, noise(policy.generator.latent_shape), TIMES)


def rewritten(path: Path, target: Path, change: Any, notes: Any = None) -> Path:
    """The file with `change` made to its tensors, and `notes` in place of its own."""
    with safe_open(path, framework="pt") as opened:
        own = opened.metadata()
    save_file(change(load_file(path)), target, own if notes is None else notes)
    return target


# Where it begins


def test_a_file_says_what_it_was_trained_on(trained: tuple[Path, Policy], folder: Path) -> None:
    path, _ = trained
    with safe_open(path, framework="pt") as opened:
        notes = opened.metadata()
    made, settings = json.loads(notes[NOTE]), json.loads(notes[DIFFUSERS_NOTE])
    assert (made["rank"], made["alpha"], made["iteration"], made["base"], made["trigger"]) == (4, 6.0, 3, "tiny-flux", None)
    assert (settings["transformer.r"], settings["transformer.lora_alpha"]) == (4, 4)
    lora = read_lora(str(path), "transformer")
    assert (lora.rank, lora.scale, lora.base.name) == (4, 1.0, "tiny-flux")
    assert set(settings["transformer.target_modules"]) == set(lora.factors)


@pytest.mark.parametrize("alpha", [6.0, 8.0])
def test_it_begins_with_the_pictures_of_the_file_whatever_its_own_scale(
    trained: tuple[Path, Policy], folder: Path, alpha: float
) -> None:
    path, policy = trained
    again = load_policy(FLUX.run(folder, adapter__start=str(path), adapter__alpha=alpha))
    assert torch.allclose(pictures(again), pictures(policy), atol=1e-5)
    assert not torch.allclose(pictures(again), pictures(load_policy(FLUX.run(folder))), atol=1e-2)


def test_peft_writes_what_it_takes(folder: Path, tmp_path: Path) -> None:
    """As published adapters are kept: the scale is in the settings, and the layers are not all that a model adapts."""
    from peft import LoraConfig, get_peft_model

    generator = FLUX.model(folder).load(CPU)
    settings = LoraConfig(r=4, lora_alpha=12, target_modules=["to_q", "to_v"], init_lora_weights=False)
    generator.network = get_peft_model(generator.network, settings).eval()
    generator.network.save_pretrained(tmp_path / "adapter")
    policy = load_policy(FLUX.run(folder, adapter__start=str(tmp_path / "adapter")))
    x = noise(generator.latent_shape)
    assert torch.allclose(sampled(generator, x, TIMES), sampled(policy.generator, x, TIMES), atol=1e-5)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in policy.parameters} == {"to_q", "to_v"}


def test_only_the_layers_of_the_file_are_adapted_though_others_end_alike(folder: Path) -> None:
    """FLUX has a `proj_out` at its end, and one in each of its single blocks."""
    network: Any = FLUX.model(folder).load(CPU).network
    layers = ("proj_out", "transformer_blocks.0.attn.to_q")
    sizes = [network.get_submodule(name).weight.shape for name in layers]
    factors = {name: (torch.ones(2, size[1]), torch.ones(size[0], 2)) for name, size in zip(layers, sizes, strict=True)}
    adapted = attach(network, FLUX.model(folder), 2, 2.0, 0, Lora(Path("some.safetensors"), factors, 1.0, None))
    ends = ".lora_A.default.weight"
    assert {name.removesuffix(ends) for name, _ in adapted.named_parameters() if name.endswith(ends)} == {
        f"base_model.model.{name}" for name in layers
    }


def test_diffusers_writes_what_it_takes(trained: tuple[Path, Policy], folder: Path, tmp_path: Path) -> None:
    from diffusers import FluxPipeline

    path, policy = trained
    pipe = FluxPipeline.from_pretrained(folder)
    pipe.load_lora_weights(path, adapter_name="default")
    own = {
        name.removeprefix("base_model.model.").replace(".default.", "."): value
        for name, value in pipe.transformer.state_dict().items()
        if ".lora_" in name
    }
    FluxPipeline.save_lora_weights(tmp_path / "saved", transformer_lora_layers=own)
    assert (tmp_path / "saved" / DIFFUSERS).is_file()
    again = load_policy(FLUX.run(folder, adapter__start=str(tmp_path / "saved")))
    assert torch.allclose(pictures(again), pictures(policy), atol=1e-5)


def test_an_embedded_model_begins_from_its_zip(store: Store) -> None:
    path = written(configure("shapes_lora"), store)
    before = load_policy(configure("shapes_lora"), store.load_checkpoint(store.runs()[0].id))
    again = load_policy(configure("shapes_lora", {"adapter.start": str(path)}))
    assert path.suffix == ".zip"
    for name, value in before.parameters.items():
        assert torch.allclose(again.parameters[name], value)


# What it is held to


@pytest.mark.parametrize(("reference", "held"), [("start", True), ("base", False)])
def test_the_reference_is_the_file_or_the_base(trained: tuple[Path, Policy], folder: Path, reference: str, held: bool) -> None:
    policy = load_policy(FLUX.run(folder, adapter__start=str(trained[0]), adapter__reference=reference))
    base, x = pictures(load_policy(FLUX.run(folder))), noise(policy.generator.latent_shape)
    began = pictures(policy)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.mul_(1.5)
    moved = pictures(policy)
    with policy.reference() as generator:
        assert torch.equal(sampled(generator, x, TIMES), began if held else base)
    with policy.beginning() as generator:
        assert torch.equal(sampled(generator, x, TIMES), began)
    assert torch.equal(pictures(policy), moved)
    policy.load({name: value.detach().clone() for name, value in policy.parameters.items()}, 0.0)
    assert torch.allclose(pictures(policy), began if held else base, atol=1e-5)


def test_a_run_begins_with_no_distance_to_the_file_and_goes_on_as_if_it_never_stopped(
    trained: tuple[Path, Policy], folder: Path
) -> None:
    config = FLUX.run(folder, adapter__start=str(trained[0]), objective__kl_weight=0.05, iterations=4)
    events = told(train(config))
    distances = [event.metrics["kl"] for event in events if isinstance(event, IterationDone)]
    assert distances[0] == 0.0
    assert distances[-1] > 0.0
    (middle,) = (event for event in events if isinstance(event, CheckpointReady) and event.iteration == 2)
    again = [event for event in told(train(config, resume=middle)) if isinstance(event, IterationDone)]
    assert [event.metrics["kl"] for event in again] == distances[2:]


def test_its_file_counts_as_weights_of_the_run(trained: tuple[Path, Policy], folder: Path) -> None:
    config = FLUX.run(folder, adapter__start=str(trained[0]))
    (lora,) = (file for file in collect(config.model_dump(mode="json"), "").weights if file.owner == "adapter.start")
    assert lora.path == str(trained[0])
    assert lora.bytes == trained[0].stat().st_size


# Drawing with it


def test_samples_are_drawn_with_a_file_and_without_training(
    trained: tuple[Path, Policy], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "model.source": str(folder), "model.resolution": "16", "model.max_tokens": "64", "model.dtype": "fp32",
        "adapter.rank": "4", "adapter.start": str(trained[0]), "compute.precision": "no",
    }  # fmt: skip
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    out = tmp_path / "grid.png"
    asked = ["--prompt", PROMPTS[0], "--count", "1", "--steps", "2", "--out", str(out)]
    assert main(["sample", "--preset", "flux", *options, *asked]) == 0
    assert "with the LoRA" in capsys.readouterr().err
    with Image.open(out) as picture:
        assert json.loads(picture.text["workbench"])["adapter"]["start"] == str(trained[0])
    chosen = choose(None, None, "flux", changes)
    assert torch.allclose(pictures(chosen.load()), pictures(trained[1]), atol=1e-5)
    with Policies(Store(tmp_path / "runs")).generator(chosen) as generator:
        drawn = sampled(generator, noise(generator.latent_shape), TIMES)
    assert torch.allclose(drawn, pictures(trained[1]), atol=1e-5)


# Bad input


def test_another_rank_says_which_to_set(trained: tuple[Path, Policy], folder: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter\.rank = 8, and .* has rank 4: set adapter\.rank = 4"):
        load_policy(FLUX.run(folder, adapter__rank=8, adapter__start=str(trained[0])))


def test_a_lora_for_another_kind_of_model_names_both(trained: tuple[Path, Policy], tmp_path: Path) -> None:
    other = SD3.make(tmp_path / "tiny-sd3")
    with pytest.raises(ValueError, match=r"made for tiny-flux: it adapts the layer '.*', which tiny-sd3 \('sd3\w*'\) does not"):
        load_policy(SD3.run(other, adapter__start=str(trained[0]), adapter__other_base=True))


def test_a_lora_for_another_size_names_both(trained: tuple[Path, Policy], folder: Path, tmp_path: Path) -> None:
    def widened(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value.repeat(1, 2) if "lora_A" in name else value for name, value in tensors.items()}

    wide = rewritten(trained[0], tmp_path / "wide.safetensors", widened)
    with pytest.raises(
        ValueError, match=r"made for tiny-flux: its layer '.*' takes \d+ numbers and gives \d+, that of tiny-flux"
    ):
        load_policy(FLUX.run(folder, adapter__start=str(wide)))


def test_a_lora_of_other_weights_is_refused_unless_it_is_wanted(
    trained: tuple[Path, Policy], folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "other-flux")
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"was trained on tiny-flux \(\w+\), and model 'flux' is other-flux \(\w+\); choose"):
        load_policy(FLUX.run(other, adapter__start=str(trained[0])))
    load_policy(FLUX.run(other, adapter__start=str(trained[0]), adapter__other_base=True))


@pytest.fixture(scope="module")
def sizeable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of which an adapter changes neither the first nor the last megabytes."""
    root = tmp_path_factory.mktemp("sizeable")
    (root / "transformer").mkdir()
    (root / "transformer" / "config.json").write_text(json.dumps({"_class_name": "Net", "heads": 2, "_diffusers_version": "1"}))
    sides = {"a_first": 1024, "m_attn.to_q": 256, "m_attn.to_v": 256, "z_last": 1024}
    save_file({f"{name}.weight": noise((side, side), 1)[0] for name, side in sides.items()}, root / "transformer" / WEIGHTS)
    return root


def test_weights_that_an_adapter_was_fused_into_are_another_base(sizeable: Path, tmp_path: Path) -> None:
    fused = shutil.copytree(sizeable, tmp_path / "fused")
    tensors = load_file(fused / "transformer" / WEIGHTS)
    tensors["m_attn.to_q.weight"] += 1e-3 * noise((256, 2), 1)[0] @ noise((2, 256), 1)[0]
    save_file(tensors, fused / "transformer" / WEIGHTS)
    assert fingerprint(fused, ["transformer"]) != fingerprint(sizeable, ["transformer"])


def test_weights_are_the_same_base_in_other_files_and_under_settings_laid_out_otherwise(sizeable: Path, tmp_path: Path) -> None:
    again = shutil.copytree(sizeable, tmp_path / "again")
    config, file = again / "transformer" / "config.json", again / "transformer" / WEIGHTS
    config.write_text(json.dumps({"heads": 2, "_diffusers_version": "2", "_class_name": "Net"}, indent=4))
    for number, part in enumerate(sorted(load_file(file).items())):
        save_file(dict([part]), file.with_name(f"{number}.safetensors"), {"format": "pt"})
    file.with_name(f"{WEIGHTS}.index.json").write_text("{}")
    file.unlink()
    whole = fingerprint(sizeable, ["transformer"])
    assert fingerprint(again, ["transformer"]) == whole
    config.write_text(json.dumps({"heads": 4, "_class_name": "Net"}))
    assert fingerprint(again, ["transformer"]) != whole


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda all_: {f"text_encoder.{name}": value for name, value in all_.items()}, "also changes a text encoder"),
        (
            lambda all_: {name.replace("lora_A", "lora_down"): value for name, value in all_.items()},
            "no LoRA as diffusers or peft",
        ),
        (lambda all_: {name: value for name, value in all_.items() if "lora_A" in name}, "has one factor of two"),
        (lambda _: {}, "it is empty"),
        (
            lambda all_: {n: v[:2] if i < 1 and "lora_A" in n else v for i, (n, v) in enumerate(sorted(all_.items()))},
            "adapters of different ranks",
        ),
    ],
)
def test_what_is_no_lora_of_the_network_is_told_in_one_line(
    trained: tuple[Path, Policy], tmp_path: Path, change: Any, complaint: str
) -> None:
    path = rewritten(trained[0], tmp_path / "changed.safetensors", change)
    with pytest.raises(ValueError, match=complaint) as caught:
        read_lora(str(path), "transformer")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "hub", "cut short", "no zip of ours", "empty folder"])
def test_a_file_that_cannot_be_read_says_what_to_do(trained: tuple[Path, Policy], tmp_path: Path, damage: str) -> None:
    path, complaint = tmp_path / "broken.safetensors", r"broken.* is not a readable LoRA: .*; fetch it again"
    if damage == "missing":
        complaint = r"adapter\.start = '.*broken\.safetensors' is no file or folder; name a LoRA"
    elif damage == "hub":
        path, complaint = Path("somebody/some-lora"), "fetch it first, with: hf download somebody/some-lora"
    elif damage == "cut short":
        path.write_bytes(trained[0].read_bytes()[:5000])
    elif damage == "no zip of ours":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("other.txt", "x")
    else:
        path.mkdir()
        complaint = rf"holds no LoRA: it has neither {PEFT[1]} nor {DIFFUSERS}"
    with pytest.raises(ValueError, match=complaint):
        read_lora(str(path), "transformer")


def test_all_weights_do_not_begin_from_adapters(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter\.start = 'x' are adapters, and adapter\.kind = 'full' trains none"):
        FLUX.run(folder, adapter__kind="full", adapter__start="x")


# A LoRA as a run


@pytest.mark.parametrize("form", ["file", "peft"])
def test_a_lora_is_taken_in_as_a_run_that_draws_it(
    trained: tuple[Path, Policy], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    given, drawn = Path(shutil.copy(trained[0], tmp_path)), pictures(trained[1])
    if form == "peft":
        given = tmp_path / "adapter"
        given.mkdir()
        tensors = {f"base_model.model.{name.removeprefix('transformer.')}": v for name, v in load_file(trained[0]).items()}
        save_file({name: v / 3 if "lora_B" in name else v for name, v in tensors.items()}, given / PEFT[1], {})
        (given / PEFT[0]).write_text(json.dumps({"r": 4, "lora_alpha": 12}))
    store = Store(tmp_path / "runs")
    here = {"model.source": str(folder), "model.resolution": "16", "model.max_tokens": "64", "model.dtype": "fp32"}
    options = [part for key, value in {**here, "compute.precision": "no"}.items() for part in ("--set", f"{key}={value}")]
    asked = ["runs", "import", str(given), "--preset", "flux", *options, "--json", "--runs", str(store.location)]
    assert main(asked) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    found = store.run(run)
    assert (found.status, found.iteration) == ("done", 3 if form == "file" else 1)
    policies, chosen = Policies(store), Policies(store).choose(run)
    x = noise(trained[1].generator.latent_shape)
    for scale, wanted in ((1.0, drawn), (0.0, pictures(load_policy(FLUX.run(folder))))):
        with policies.generator(chosen, scale) as generator:
            assert torch.allclose(sampled(generator, x, TIMES), wanted, atol=1e-5)
    given.rename(tmp_path / "elsewhere")  # the run has its own copy, and takes it along
    other = Store(tmp_path / "other")
    copy = read_archive(other, write_archive(store, run))
    assert torch.allclose(pictures(choose(other, copy).load()), drawn, atol=1e-5)


def test_a_lora_that_does_not_say_its_model_asks_for_it(trained: tuple[Path, Policy], store: Store, tmp_path: Path) -> None:
    foreign = rewritten(trained[0], tmp_path / "foreign.safetensors", lambda all_: all_, {"format": "pt"})
    with pytest.raises(ValueError, match=r"foreign\.safetensors does not say which model it is for; choose one .* with --preset"):
        take_lora(store, foreign)
    with pytest.raises(ValueError, match="is no LoRA as diffusers or peft writes it"):
        take_lora(store, rewritten(trained[0], tmp_path / "x.safetensors", lambda _: {"w": torch.zeros(1)}))
    assert store.runs() == []
    assert store.run(take_lora(store, trained[0])).title == "LoRA Moved"
