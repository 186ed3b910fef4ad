"""Every notebook: its form, and what it computes when its run is executed with its smallest parameters, as the queue does it."""

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

from workbench.experiments.execute import execute
from workbench.experiments.notebooks import notebook
from workbench.experiments.papermilling import NOTEBOOK
from workbench.experiments.work import Work, submit
from workbench.store import Store

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
SMALLEST: dict[str, dict[str, Any]] = {
    "double_ring": {"num_samples": 1000, "steps": [10, 20], "few_steps": [2]},
    "anchor_noise": {"anchors": [0.0, 1.0], "noises": [0.0, 1.0], "prompts": 6, "per_prompt": 2},
    "methods": {"methods": ["asfmc, branching"], "evaluations": 8000, "seconds": 1.0, "prompts": 6, "jobs": 1},
    "quickstart": {"images": 2, "anchors": [1.0], "iterations": 2, "groups": 2, "measured": 8},
    "align_shapes": {"iterations": 2, "images": 8, "steps": [4], "overrides": {"grpo.groups": 2, "evaluation.final_images": 8}},
    "flux_lora": {"iterations": 2, "group_size": 4, "images": 8, "rank": 2},
    "report": {"pictures": 2, "figures": ["reward"]},
}
"""Each notebook by name, and the parameters with which it takes seconds."""


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.delenv("WORKBENCH_NOTEBOOKS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    store = Store(tmp_path / "runs")
    yield store
    store.close()


def run(store: Store, name: str) -> tuple[str, nbformat.NotebookNode]:
    """A run of a notebook that is done, and the notebook with its outputs."""
    work = Work(kind="notebook", config={"notebook": name, "parameters": SMALLEST[name]})
    end = execute(store, submit(store, work, origin="test"))
    assert end.status == "done", end.error
    return end.id, nbformat.read(store.folder(end.id) / NOTEBOOK, as_version=4)


def last(store: Store, made: str) -> dict[str, float]:
    """The numbers that a run has reported or recorded, the last of each."""
    return {name: points[-1][1] for name, points in store.metrics(made).items()}


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[Any]:
    """What the cells show, of one MIME type, in order."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output["data"][kind] for output in shown if kind in output.get("data", {})]


def curves(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """The lines of its first figure by name."""
    (figure, *_) = outputs(notebook, "application/vnd.plotly.v1+json")
    return {trace["name"]: trace for trace in figure["data"] if "name" in trace}


def source(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_executed_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALLEST)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_notebook_is_kept_without_outputs_and_defines_nothing_of_its_own(name):
    notebook = source(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count is None and not cell.outputs for cell in code)
    for cell in code:
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert not any(isinstance(node, defined) for node in ast.walk(ast.parse(cell.source))), "it belongs in the library"


@pytest.mark.parametrize("name", SMALLEST)
def test_its_first_code_cell_holds_the_parameters(name):
    first = next(cell for cell in source(name).cells if cell.cell_type == "code")
    assert first.metadata.tags == ["parameters"]
    assert set(SMALLEST[name]) <= {each.name for each in notebook(name).parameters}


def test_the_double_ring_finds_the_exact_kernel_right_and_the_biased_ones_wrong(store):
    made, shown = run(store, "double_ring")
    found = curves(shown)
    mass = {name: dict(zip(trace["x"], trace["y"], strict=True)) for name, trace in found.items()}
    assert mass["asfmc"][2] == pytest.approx(0.5, abs=4 * 0.5 / 1000**0.5)
    assert mass["cps"][10] < 0.4
    assert mass["precise"][10] < mass["precise"][20] < 0.5
    assert 19 in mass["asfmc_local"]  # two evaluations a step but at the last
    assert last(store, made)["outer_mass/asfmc"] == mass["asfmc"][2]


def test_the_plane_of_anchor_and_noise_shows_three_maps_and_no_error_where_there_is_no_noise(store):
    made, shown = run(store, "anchor_noise")
    (maps, *_) = outputs(shown, "application/vnd.plotly.v1+json")
    reward, diversity, error = ([list(row) for row in trace["z"]] for trace in maps["data"])
    assert reward[0][0] == reward[0][1] == reward[1][0]
    for table in (diversity, error):
        assert table[0] == [0, 0]
        assert table[1][0] == 0 < table[1][1]
    assert last(store, made)["largest_path_error"] == pytest.approx(error[1][1], rel=1e-3)


def test_the_methods_are_followed_from_the_base_to_the_end_of_their_budget(store):
    made, shown = run(store, "methods")
    found = curves(shown)
    assert set(found) == {"asfmc, branching"}
    spent, figure = found["asfmc, branching"]["x"], found["asfmc, branching"]["y"]
    assert spent[0] == 0
    assert spent == sorted(set(spent))
    assert 4000 < spent[-1] <= 8000
    assert all(0 <= value <= 1 for value in figure)
    assert {"shapes/base", "shapes/asfmc, branching"} <= set(last(store, made))


def test_the_quickstart_draws_and_aligns(store):
    made, shown = run(store, "quickstart")
    assert len(outputs(shown, "image/png")) == 2
    (before_and_after,) = (text for text in outputs(shown, "text/html") if "before" in text)
    assert before_and_after.count("<img") == 4
    found = last(store, made)
    assert found["last_reward"] == found["reward"]
    assert store.run(made).iterations == 2


def test_a_model_is_aligned_and_measured_and_a_report_tells_of_it(store):
    made, shown = run(store, "align_shapes")
    found = last(store, made)
    assert found["gain/shapes_dense@4"] == pytest.approx(found["final/shapes_dense@4"] - _base(shown)["shapes_dense"], abs=1e-3)
    assert store.events(made, kinds=("Evaluated",))
    told, page = run(store, "report")
    said = "".join(output.text for cell in page.cells for output in cell.get("outputs", ()) if "text" in output)
    assert f"{made}, done after 2 of 2 iterations" in said
    assert (store.folder(made) / "exports" / f"{made}.html").stat().st_size > 1_000_000
    assert last(store, told) == {"iterations": 2, "evaluations": len(store.events(made, kinds=("Evaluated",)))}


def test_a_random_flux_is_built_aligned_and_exported(store):
    made, shown = run(store, "flux_lora")
    found = last(store, made)
    base, tuned = (float(value) for value in _row(shown, "jpeg_size"))
    assert found["final/jpeg_size"] == pytest.approx(tuned, abs=1e-4)
    assert found["gain/jpeg_size"] == pytest.approx(tuned - base, abs=2e-4)
    (lora,) = (store.folder(made) / "exports").glob("*-lora.safetensors")
    said = "".join(output.text for cell in shown.cells for output in cell.get("outputs", ()) if "text" in output)
    assert str(lora) in said
    assert store.run(made).training["model"]["source"].startswith(str(store.location.parent / "cache"))


def _row(shown: nbformat.NotebookNode, name: str) -> list[str]:
    """The numbers of a table's row."""
    text = next(text for text in outputs(shown, "text/plain") if "tuned" in text and name in text)
    return next(line.split()[1:] for line in text.splitlines() if line.startswith(name))


def _base(shown: nbformat.NotebookNode) -> dict[str, float]:
    """The column of the base in the table of measures."""
    text = next(text for text in outputs(shown, "text/plain") if "tuned" in text and "shapes_dense" in text)
    return {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line.startswith("shapes_")}
