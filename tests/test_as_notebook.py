"""Runs as notebooks: their parameters, and that executing them gives the run again."""

import json
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from toy_run import SMALL, toy_config

from workbench.config import PRESETS, configure
from workbench.events import GroupsScored
from workbench.experiments.as_notebook import against_the_record, overrides, write_notebook
from workbench.experiments.comparison import compare
from workbench.experiments.execute import loop
from workbench.experiments.notebooks import VARIABLE, notebook
from workbench.jobs import Job
from workbench.store import Store

ROOT = Path(__file__).parent.parent
CONFIG = toy_config(2, **SMALL, **{"sampler.noise": 0.4, "rewards.shapes_exact": 0.9})
TINY = {"name": "preference", "steps": 4, "pairs": 8, "held_out_pairs": 16, "report_every": 2, "checkpoint_every": 4}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs")
    yield store
    store.close()


def driven(store, kind, config, *, changes=None, title="A run"):
    """A finished run; settings may change after its first iteration."""
    run = store.create(kind, config, title=title, origin="test")
    job = Job(store, run, loop(kind, config))
    while not job.over:
        event = job.advance()
        if changes and isinstance(event, GroupsScored) and event.iteration == 1:
            store.wish(run, "change", changes)
    assert job.error is None
    return run


def executed(path, folder, monkeypatch, **parameters):
    """The notebook as papermill leaves it, and what its cells printed; it finds the record in `folder`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = papermill.execute_notebook(
        str(path), str(folder / "out.ipynb"), parameters, cwd=str(folder), kernel_name="python3", progress_bar=False
    )
    return made, "".join(
        output.text for cell in made.cells for output in cell.get("outputs", ()) if output.output_type == "stream"
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_differs_from_no_preset(name):
    assert overrides(PRESETS[name]) == (name, {})


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("shapes", {"grpo.group_size": 16, "sampler.name": "flow_sde", "rollout.mode": "all", "rewards.shapes_exact": 0.9}),
        ("glyphs", {"rewards.glyphs_preference": 0.3, "eval_rewards.glyphs_ocr": 1, "seed": 4, "title": "Other"}),
        ("shapes_nft", {"objective.name": "awm", "evaluation.steps": "[1,2]", "prompts": "[a red circle]"}),
        ("shapes_fm", {"eval_rewards.shapes_exact": 1, "rewards.shapes_exact": 0}),  # a reward less
        ("shapes_lora", {"adapter.rank": 4, "compute.threads": 2}),
    ],
)
def test_settings_come_back_from_what_they_change_in_the_nearest_preset(preset, changes):
    config = configure(preset, changes)
    assert configure(*overrides(config)) == config
    assert overrides(config)[0] == preset


def test_a_training_exported_as_a_notebook_gives_the_same_numbers_when_it_is_executed(store, tmp_path, monkeypatch):
    run = driven(store, "train", CONFIG.model_dump(mode="json"), changes={"sampler.noise": 0.2}, title="What # it was")
    path = write_notebook(store, run)
    assert path == store.folder(run) / "exports" / f"{run}.ipynb"
    first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert first.metadata.tags == ["parameters"]
    assert "rewards_shapes_exact: float = 0.9  # its share in the sum that is trained on" in first.source
    assert "live_changes: dict = {'1': {'sampler.noise': 0.2}}" in first.source
    made, printed = executed(path, tmp_path, monkeypatch)
    assert "exact: every number, pixel and tensor is the same bit for bit" in printed
    assert any("image/png" in str(output) for cell in made.cells for output in cell.get("outputs", ()))
    (new,) = store.runs("notebook")
    found = compare(store, run, new.id)
    assert (found.verdict, found.notes) == ("exact", ())
    assert found.tensors > 100
    here = SimpleNamespace(store=store, run=new.id)
    assert against_the_record(here, run) == found.sentence
    assert against_the_record(here, "nobody").startswith("nothing to compare with: unknown run 'nobody'")


def test_a_pretraining_exported_as_a_notebook_gives_the_same_numbers_when_it_is_executed(store, tmp_path, monkeypatch):
    run = driven(store, "pretrain", TINY)
    _, printed = executed(write_notebook(store, run), tmp_path, monkeypatch)
    assert "exact: every number, pixel and tensor is the same bit for bit" in printed


def test_every_notebook_that_is_exported_can_be_run_as_one_of_the_folder(store, monkeypatch):
    run = driven(store, "pretrain", TINY)
    monkeypatch.setenv(VARIABLE, str(write_notebook(store, run).parent))
    found = notebook(run)
    assert found.problem == ""
    assert {each.name: each.default for each in found.parameters} == {
        **{"recipe": "preference", "seed": 0, "steps": 4, "pairs": 8, "held_out_pairs": 16, "report_every": 2},
        **{"checkpoint_every": 4, "threads": 1, "recorded": run},
    }
    assert all(each.help for each in found.parameters)


def test_a_notebooks_run_gives_the_notebook_as_it_was_with_its_parameters(store):
    source = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell(
        'steps: int = 3  # how many\nname: str = "ä"  # whose\nlist_: list[int] = [\n    1,\n]  # which'
    )
    cell.metadata.tags = ["parameters"]
    source.cells = [nbformat.v4.new_markdown_cell("# Mine"), cell]
    config = {"notebook": "mine", "parameters": {"steps": 7, "name": "ö", "list_": [2, 3]}, "sha256": "0"}
    run = store.create("notebook", config, title="Mine", origin="test")
    with pytest.raises(ValueError, match="run by hand, so its cells were not recorded"):
        write_notebook(store, run)
    (store.folder(run) / "source.ipynb").write_text(nbformat.writes(source))
    found = json.loads(write_notebook(store, run).read_text())
    assert (
        "".join(found["cells"][1]["source"])
        == "steps: int = 7  # how many\nname: str = 'ö'  # whose\nlist_: list[int] = [2, 3]  # which"
    )


def test_a_sweep_is_no_notebook(store):
    with pytest.raises(ValueError, match="of kind 'sweep', which computes nothing itself"):
        write_notebook(store, store.create("sweep", {}, title="Sweep", origin="test"))
