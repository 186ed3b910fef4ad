"""The folder for the hub: what its card says is what was recorded, its pictures are there, its code loads what lies beside it."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from tiny_family import PROMPTS, noise, sampled
from tiny_flux import FLUX
from toy_run import toy_config, toy_events

from workbench.__main__ import main
from workbench.card_text import Card, card_text, hub_base, without_places
from workbench.config import RunConfig
from workbench.evaluate import load_policy
from workbench.events import CheckpointReady
from workbench.figures.painted import HEIGHT, WIDTH, paint
from workbench.figures.style import figure
from workbench.history import History
from workbench.merging import write_merged
from workbench.model_card import SETTINGS, SHOWN, write_card
from workbench.models.lora import DIFFUSERS
from workbench.records import Run
from workbench.rollout import drain
from workbench.store import Store, StoreError
from workbench.train import train


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of this file's own, so that nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def recorded(store: Store, config: RunConfig | None = None, *, title: str = "Toy | run *one*", drift: float = 1.0) -> Run:
    """A run of 20 iterations with pictures; its last checkpoint is real."""
    config = config or toy_config(20, **{"adapter.kind": "lora"})
    command = "python -m workbench train --preset shapes --set model.weights=/home/ann/secret/shapes.safetensors"
    run = store.create("train", config.model_dump(mode="json"), title=title, origin="test", command=command)
    tensors = {name: value.detach() + 0.01 for name, value in load_policy(config).parameters.items()}
    for event in toy_events(config, drift=drift):
        if isinstance(event, CheckpointReady):
            event = CheckpointReady(event.iteration, {"ema": tensors, "policy": tensors}, {"best": event.iteration})
        store.record(run, event)
    store.set_status(run, "done")
    return store.run(run)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run, Path]:
    """A recorded run and the folder that was made of it."""
    store = Store(tmp_path_factory.mktemp("runs"))
    run = recorded(store)
    return store, run, drain(write_card(store, run.id))


def sections(text: str) -> dict[str, str]:
    """What stands below each heading of the second order."""
    parts = re.split(r"(?m)^## (.+)$", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


# The card


def test_the_card_says_what_was_recorded(made: tuple[Store, Run, Path]) -> None:
    store, run, folder = made
    text = (folder / "README.md").read_text()
    first, last = (row.data["measures"] for row in store.events(run.id, kinds=("Evaluated",)) if row.iteration in (0, 20))
    told = sections(text)
    for steps, measures in last.items():
        for name, measure in measures.items():
            label = name.replace("_", " ")
            (line,) = (line for line in text.splitlines() if line.startswith(f"| {label} | {steps} |"))
            assert f"{measure['value']:.3g}&nbsp;±" in line
            assert f"{first[steps][name]['value']:.3g}&nbsp;±" in line
    assert "shapes_dense" in told["How it was made"].replace("\\", "")
    assert "20 iterations" in told["How it was made"]
    assert {"Before and after", "How to use it", "Held-out figures", "Curves", "Intended use and limits"} <= told.keys()


def test_the_hub_reads_its_head(made: tuple[Store, Run, Path]) -> None:
    store, run, folder = made
    card = ModelCard.load(folder / "README.md")
    head = card.data.to_dict()
    assert head["pipeline_tag"] == "text-to-image"
    assert {"lora", "flow-map", "grpo", "flow-map-workbench"} <= set(head["tags"])
    assert "license" not in head
    results = {(result.metric_name, result.metric_value) for result in card.data.eval_results}
    measures = next(row for row in store.events(run.id, kinds=("Evaluated",)) if row.iteration == 20).data["measures"]
    assert ("shapes dense, 4 steps", round(measures["4"]["shapes_dense"]["value"], 5)) in results
    assert head["widget"][0]["output"]["url"] == "images/01-after.webp"


def test_every_picture_that_it_names_is_there_and_shows_what_was_recorded(made: tuple[Store, Run, Path]) -> None:
    from workbench.pictures import read_sprite

    store, run, folder = made
    named = re.findall(r'src="([^"]+)"', (folder / "README.md").read_text())
    assert len(named) == len(set(named)) >= 4 + 2
    for name in named:
        with Image.open(folder / name) as picture:
            assert min(picture.size) >= 256
    (before, *_, after) = store.events(run.id, kinds=("Evaluated",))
    for side, row in (("before", before), ("after", after)):
        preview = row.data["preview"]
        first = read_sprite(store.image_path(run.id, preview["sprite"]), preview)[0]
        with Image.open(folder / "images" / f"01-{side}.webp") as picture:
            scale = picture.width // first.shape[-1]
            drawn = torch.from_numpy(np.array(picture.convert("RGB")))
        assert torch.equal(drawn[::scale, ::scale].permute(2, 0, 1), first)
    prompts = {line.split("<br>")[0] for line in sections((folder / "README.md").read_text())["Before and after"].splitlines()}
    assert len({prompt for prompt in prompts if prompt.startswith("| ")}) <= SHOWN + 2


def test_words_of_people_stay_words(store: Store) -> None:
    run = recorded(store, title="A <b>bold</b> | title *here*")
    text = (drain(write_card(store, run.id)) / "README.md").read_text()
    assert "# A &lt;b&gt;bold&lt;/b&gt; | title \\*here\\*" in text


def test_a_prompt_runs_no_command_in_the_shell_that_is_told_to_draw_it(store: Store, tmp_path: Path) -> None:
    prompt = "un café à l'aube $(touch made) `touch made` $HOME"
    config = toy_config(20, **{"adapter.kind": "lora"})
    card = Card(store, recorded(store, config), config, History(), 20, "", "me/toy", False)
    text = card_text(card, [{"prompt": prompt, "seed": 1, "before": "a.png", "after": "b.png"}], [])
    (code,) = re.findall(r"```bash\n(.*?)\n```", sections(text)["How to use it"], re.S)
    said = subprocess.run(
        ["bash", "-c", f"python() {{ printf '%s\\n' \"$@\"; }}\n{code}"], cwd=tmp_path, capture_output=True, check=True
    )
    assert prompt in said.stdout.decode().split("\n")
    assert not (tmp_path / "made").exists()


def test_places_on_this_machine_are_not_told(made: tuple[Store, Run, Path]) -> None:
    store, _, folder = made
    everything = (folder / "README.md").read_text() + (folder / SETTINGS).read_text()
    assert "/home/" not in everything
    assert "model.weights=shapes.safetensors" in everything
    assert str(store.location) not in everything


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ("train --set model.source=/data/models/flux --seed 1", "train --set model.source=flux --seed 1"),
        ("task.file=~/prompts.txt", "task.file=prompts.txt"),
        ("../runs/x.safetensors", "x.safetensors"),
        ("http://localhost:8000/v1/score", "http://localhost:8000/v1/score"),
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
        ("1/2 and a/b", "1/2 and a/b"),
    ],
)
def test_a_path_becomes_a_name(told: str, left: str) -> None:
    assert without_places({"a": [told]}) == {"a": [left]}


def test_a_run_that_hacked_its_reward_says_so(store: Store) -> None:
    run = recorded(store, drift=6.0)
    text = (drain(write_card(store, run.id)) / "README.md").read_text()
    (first, *_) = (line for line in text.splitlines() if line.startswith("> "))
    assert first.startswith("> ✕ **Reward hacking suspected.**")
    assert "> ✓" not in text


def test_an_earlier_checkpoint_is_judged_by_what_was_known_then(store: Store) -> None:
    run = recorded(store)
    checkpoint = store.load_checkpoint(run.id, 20)
    store.save_checkpoint(run.id, CheckpointReady(10, checkpoint.tensors, checkpoint.state))
    text = (drain(write_card(store, run.id, 10)) / "README.md").read_text()
    assert "10 iterations of 16 prompts" in text
    assert "after is iteration 10." in text


def test_a_run_without_evaluations_has_a_card_without_figures(store: Store) -> None:
    config = toy_config(20, **{"adapter.kind": "lora"})
    run = store.create("train", config.model_dump(mode="json"), title="Bare", origin="test")
    tensors = {name: value.detach() for name, value in load_policy(config).parameters.items()}
    store.record(run, CheckpointReady(20, {"ema": tensors}, {"best": 20}))
    folder = drain(write_card(store, run))
    assert {"How to use it", "How it was made", "Intended use and limits"} == sections((folder / "README.md").read_text()).keys()
    assert not (folder / "images").exists()


def test_a_long_list_is_cut_in_the_card_and_whole_beside_it(store: Store) -> None:
    prompts = [
        f"a red circle left of a {colour} {shape}" for colour in ("blue", "green", "yellow") for shape in ("square", "circle")
    ]
    run = recorded(store, toy_config(20, **{"adapter.kind": "lora", "prompts": prompts * 3}))
    folder = drain(write_card(store, run.id))
    (line,) = (line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| prompts |"))
    assert len(line) < 300
    assert line.endswith("… |")
    assert json.loads((folder / SETTINGS).read_text())["config"]["prompts"] == prompts * 3


def test_a_full_disk_leaves_no_half_folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded(store)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StoreError, match="No space left on device"):
        drain(write_card(store, run.id))
    assert [path for path in (store.folder(run.id) / "exports").iterdir() if path.is_dir()] == []


def test_the_command_writes_it_and_says_how_to_upload_it(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recorded(store)
    out = tmp_path / "card"
    status = main(["export", run.id, "--card", "--repo", "ann/toy", "--out", str(out), "--runs", str(store.location)])
    told = capsys.readouterr()
    assert (status, told.out.strip()) == (0, str(out))
    assert f"hf upload ann/toy {out}" in told.err.replace("\n", "")
    assert main(["export", run.id, "--card", "--out", str(out), "--runs", str(store.location)]) == 2
    assert "is there already" in capsys.readouterr().err


# A pipeline of diffusers


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str, RunConfig, Path]:
    """A trained run of a random FLUX in a folder that says which model of the hub it is."""
    folder = FLUX.make(tmp_path_factory.mktemp("models") / "tiny-flux")
    head = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(head | {"_name_or_path": "black-forest-labs/FLUX.1-dev"}))
    config, store = FLUX.run(folder, iterations=2, adapter__alpha=6), Store(tmp_path_factory.mktemp("runs"))
    run = store.create("train", config.model_dump(mode="json"), title="Tiny FLUX", origin="test")
    for event in train(config):
        store.record(run, event)
    return store, run, config, folder


def test_a_lora_of_a_pipeline_lies_where_diffusers_looks_for_it(flux: tuple[Store, str, RunConfig, Path]) -> None:
    store, run, config, base = flux
    folder = drain(write_card(store, run, repo="ann/fox"))
    policy = load_policy(config, store.load_checkpoint(run))
    x = noise(policy.generator.latent_shape)
    theirs, times = FLUX.drawn(base, list(PROMPTS), x, 4, folder)  # the folder, as code on the hub would name it
    assert (sampled(policy.generator, x, times) - theirs).abs().max() <= 1e-4
    text = (folder / "README.md").read_text()
    head = ModelCard(text).data.to_dict()
    assert (head["base_model"], head["base_model_relation"]) == ("black-forest-labs/FLUX.1-dev", "adapter")
    assert head["library_name"] == "diffusers"
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]  # type: ignore[index]
    compile(code, "card", "exec")
    assert 'pipe.load_lora_weights("ann/fox")' in code
    assert f"num_inference_steps={config.sampling_steps}" in code
    assert 'from_pretrained("black-forest-labs/FLUX.1-dev"' in code


def test_a_whole_pipeline_with_a_card_is_loaded_by_diffusers(flux: tuple[Store, str, RunConfig, Path]) -> None:
    store, run, config, _ = flux
    folder = drain(write_card(store, run, pipeline=True, repo="ann/fox"))
    policy = load_policy(config, store.load_checkpoint(run))
    x = noise(policy.generator.latent_shape)
    theirs, times = FLUX.drawn(folder, list(PROMPTS), x, 4, None)
    assert (sampled(policy.generator, x, times) - theirs).abs().max() <= 1e-4
    text = (folder / "README.md").read_text()
    assert ModelCard(text).data.to_dict()["base_model_relation"] == "finetune"
    assert "load_lora_weights" not in text
    assert not (folder / DIFFUSERS).exists()


def test_merged_weights_come_in_the_files_and_numbers_that_diffusers_writes(
    flux: tuple[Store, str, RunConfig, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import FluxTransformer2DModel

    store, run, config, base = flux
    monkeypatch.setattr("workbench.merging.SHARD", "40KB")
    folder = drain(write_merged(store, run, dtype="bf16"))
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert files == {path.name for path in folder.glob("*.safetensors")}
    before = load_file(base / "transformer" / "diffusion_pytorch_model.safetensors")
    after = {name: value for file in files for name, value in load_file(folder / file).items()}
    assert after.keys() == before.keys()
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    assert sum(value.nbytes for value in after.values()) == index["metadata"]["total_size"]
    network = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    tuned = load_policy(config, store.load_checkpoint(run)).generator.network.merge_and_unload().state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, tuned[name].bfloat16()), name


@pytest.mark.parametrize(
    ("source", "named", "found"),
    [
        ("black-forest-labs/FLUX.1-dev", None, "black-forest-labs/FLUX.1-dev"),
        ("folder", "somebody/some-model", "somebody/some-model"),
        ("folder", "/home/ann/flux", ""),
        ("folder", "", ""),
    ],
)
def test_the_base_is_told_as_far_as_it_is_known(
    tmp_path: Path, flux: tuple[Store, str, RunConfig, Path], source: str, named: Any, found: str
) -> None:
    if source == "folder":
        source = str(tmp_path)
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", "_name_or_path": named}))
    model = flux[2].model.model_copy(update={"source": source})
    assert hub_base(flux[2].model_copy(update={"model": model})) == found


# Curves as pictures


def test_a_line_is_painted_where_its_values_are() -> None:
    chart = figure("A line", "")
    chart.add_scatter(x=[0, 10], y=[0.0, 1.0], mode="lines", line={"color": "#ff0000", "width": 4})
    chart.add_scatter(x=[0, 10], y=[5.0, 5.0], mode="lines", line={"color": "#00ff00"}, visible="legendonly")
    picture = paint(chart)
    assert picture.size == (2 * WIDTH, 2 * HEIGHT)
    pixels = torch.from_numpy(np.array(picture))
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)
    rows, columns = red.nonzero(as_tuple=True)
    left, right = columns < columns.float().quantile(0.1), columns > columns.float().quantile(0.9)
    assert rows[left].float().mean() > rows[right].float().mean() + HEIGHT / 2  # it rises to the right
    assert not ((pixels[..., 1] > 200) & (pixels[..., 0] < 60)).any()  # what is hidden stays hidden


def test_categories_marks_and_bars_are_painted_too() -> None:
    chart = go.Figure()
    chart.add_scatter(
        x=["8", "1"], y=[2.0, 1.0], error_y={"array": [0.1, 0.1], "arrayminus": [0.1, 0.1]}, mode="lines+markers",
        line={"color": "#0f9d78", "dash": "dot"}, marker={"size": 9, "symbol": "circle-open"}, name="a",
    )  # fmt: skip
    chart.add_hline(y=1.5, line={"color": "#8a8f98", "dash": "dash"})
    chart.add_vline(x=0, line={"color": "#8a8f98"}, annotation={"text": "here"})
    assert len(paint(chart).getcolors(10**6)) > 20


def test_a_figure_without_lines_is_not_painted() -> None:
    with pytest.raises(ValueError, match=r"the figure 'Empty' has no line to draw"):
        paint(figure("Empty", ""))
