"""Every notebook: its form, and what it computes when executed with its smallest parameters in a kernel of its own."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
SMALLEST: dict[str, dict[str, Any]] = {
    "double_ring": {"num_samples": 1000, "steps": [10, 20], "few_steps": [2]},
    "anchor_noise": {"anchors": [0.0, 1.0], "noises": [0.0, 1.0], "prompts": 6, "per_prompt": 2},
    "methods": {"methods": ["asfmc, branching"], "evaluations": 8000, "seconds": 1.0, "prompts": 6, "jobs": 1},
}
"""Each notebook by name, and the parameters with which it takes seconds."""


def execute(name: str, parameters: Mapping[str, Any], folder: Path) -> nbformat.NotebookNode:
    """The executed notebook; unlike papermill alone, it refuses a parameter that the notebook does not have."""
    known = papermill.inspect_notebook(str(FOLDER / f"{name}.ipynb"))
    if unknown := set(parameters) - set(known):
        raise ValueError(f"{name} has no parameter {', '.join(sorted(unknown))}; choose from: {', '.join(known)}")
    made = papermill.execute_notebook(
        str(FOLDER / f"{name}.ipynb"),
        str(folder / f"{name}.ipynb"),
        dict(parameters),
        cwd=str(folder),
        kernel_name="python3",
        progress_bar=False,
    )
    return made


@pytest.fixture
def importable(monkeypatch):
    """The package, for kernels: they do not inherit pytest's search path."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


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
def test_its_first_code_cell_holds_the_parameters_each_with_type_and_help(name):
    first = next(cell for cell in source(name).cells if cell.cell_type == "code")
    assert first.metadata.tags == ["parameters"]
    known = papermill.inspect_notebook(str(FOLDER / f"{name}.ipynb"))
    assert set(SMALLEST[name]) <= set(known)
    for parameter in known.values():
        assert parameter["inferred_type_name"] != "None", parameter
        assert parameter["help"], parameter


def test_a_parameter_with_a_wrong_name_is_caught(tmp_path):
    with pytest.raises(ValueError, match=r"double_ring has no parameter num_sample; choose from: num_samples, steps"):
        execute("double_ring", {"num_sample": 10}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_double_ring_finds_the_exact_kernel_right_and_the_biased_ones_wrong(tmp_path, importable):
    found = curves(execute("double_ring", SMALLEST["double_ring"], tmp_path))
    mass = {name: dict(zip(trace["x"], trace["y"], strict=True)) for name, trace in found.items()}
    assert mass["asfmc"][2] == pytest.approx(0.5, abs=4 * 0.5 / 1000**0.5)
    assert mass["cps"][10] < 0.4
    assert mass["precise"][10] < mass["precise"][20] < 0.5
    assert 19 in mass["asfmc_local"]  # two evaluations a step but at the last


def test_the_plane_of_anchor_and_noise_shows_three_maps_and_no_error_where_there_is_no_noise(tmp_path, importable):
    (maps, *_) = outputs(execute("anchor_noise", SMALLEST["anchor_noise"], tmp_path), "application/vnd.plotly.v1+json")
    reward, diversity, error = ([list(row) for row in trace["z"]] for trace in maps["data"])
    assert reward[0][0] == reward[0][1] == reward[1][0]
    for table in (diversity, error):
        assert table[0] == [0, 0]
        assert table[1][0] == 0 < table[1][1]


def test_the_methods_are_followed_from_the_base_to_the_end_of_their_budget(tmp_path, importable):
    found = curves(execute("methods", SMALLEST["methods"], tmp_path))
    assert set(found) == {"asfmc, branching"}
    spent, figure = found["asfmc, branching"]["x"], found["asfmc, branching"]["y"]
    assert spent[0] == 0
    assert spent == sorted(set(spent))
    assert 4000 < spent[-1] <= 8000
    assert all(0 <= value <= 1 for value in figure)
