"""What is known of notebooks before any of them runs: which there are, their parameters, and what is refused."""

import json
import os
from pathlib import Path

import papermill
import pytest
from toy_notebooks import PARAMETERS, write_notebook

from workbench.experiments.notebooks import checked_notebook, checked_source, notebook, notebooks, read_parameters

ROOT = Path(__file__).parent.parent
KINDS = """steps: int = 4  # sampling steps
noise: float = 0.5  # share of fresh noise
preset: str = "shapes"  # what to begin with
exact: bool = False  # whether it has to be
anchors: list[float] = [0.0, 1.0]  # how far past the target
seed: int | None = None  # of the first image; none for a new one
mode: Literal["grid", "random"] = "grid"  # how to search"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_NOTEBOOKS", str(tmp_path / "notebooks"))
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


@pytest.fixture
def toy(folder):
    write_notebook(
        folder, "toy", f"from typing import Literal\n{KINDS}", "print(steps)", text="# A toy\n\nIt does little.\n\nNone."
    )
    return notebook("toy")


def test_the_folder_of_the_project_is_the_default_and_all_in_it_can_be_run(monkeypatch):
    monkeypatch.delenv("WORKBENCH_NOTEBOOKS", raising=False)
    assert [each.name for each in notebooks()] == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert not [each.problem for each in notebooks() if each.problem]


def test_a_notebook_says_its_title_summary_and_parameters(toy):
    assert (toy.title, toy.summary) == ("A toy", "It does little.\n\nNone.")
    assert [(each.name, each.type, each.default) for each in toy.parameters] == [
        ("steps", "int", 4),
        ("noise", "float", 0.5),
        ("preset", "str", "shapes"),
        ("exact", "bool", False),
        ("anchors", "list[float]", [0.0, 1.0]),
        ("seed", "int | None", None),
        ("mode", "Literal['grid', 'random']", "grid"),
    ]
    assert toy.parameters[0].help == "sampling steps"


def test_parameters_of_the_shipped_notebooks_are_those_that_papermill_sees(monkeypatch):
    monkeypatch.delenv("WORKBENCH_NOTEBOOKS", raising=False)
    for each in notebooks():
        seen = papermill.inspect_notebook(str(each.path))
        assert [(item["name"], item["inferred_type_name"], item["help"]) for item in seen.values()] == [
            (parameter.name, parameter.type, parameter.help) for parameter in each.parameters
        ]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "8", 8),
        ("noise", "1", 1),
        ("noise", "1e-3", 1e-3),
        ("exact", "true", True),
        ("exact", "False", False),
        ("preset", "3", "3"),
        ("anchors", "[0, 1e-1]", [0, 0.1]),
        ("anchors", "[]", []),
        ("seed", "7", 7),
        ("seed", "none", None),
        ("mode", "random", "random"),
    ],
)
def test_text_from_a_command_line_is_read_by_the_type_of_the_parameter(toy, name, text, value):
    found = read_parameters(toy, {name: text})
    assert found == {each.name: each.default for each in toy.parameters} | {name: value}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "abc"),
        ("steps", 1.5),
        ("steps", "1.5"),
        ("steps", True),
        ("steps", ""),
        ("noise", "much"),
        ("noise", float("nan")),
        ("preset", 3),
        ("exact", 2),
        ("anchors", "0.5"),
        ("anchors", ["a"]),
        ("seed", "first"),
        ("mode", "halving"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(toy, name, value):
    with pytest.raises(ValueError, match=rf"^{name} = .*; its type is ") as refused:
        read_parameters(toy, {name: value})
    assert len(str(refused.value).splitlines()) == 1


def test_every_mistake_has_its_line_and_an_unknown_name_lists_the_choices(toy):
    with pytest.raises(ValueError, match="notebook 'toy' has no parameter 'step'; choose from: steps, noise, preset") as refused:
        read_parameters(toy, {"step": 3, "noise": "x"})
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize("name", ["../secret", "secret", "sub/toy", "", ".hidden", "toy.ipynb", "none"])
def test_a_name_never_leads_out_of_the_folder(folder, tmp_path, toy, name):
    outside = write_notebook(tmp_path, "secret", PARAMETERS)
    (folder / "secret.ipynb").symlink_to(outside)
    write_notebook(folder / "sub", "toy", PARAMETERS)
    write_notebook(folder, ".hidden", PARAMETERS)
    with pytest.raises(ValueError, match=r"there is no notebook .*; choose from: toy"):
        notebook(name)


@pytest.mark.parametrize(
    ("cells", "tagged", "metadata", "said"),
    [
        (("x = 1",), False, {}, "no of its cells has the tag 'parameters'"),
        (("x = 1  # a number",), True, {}, "'x = 1' is no parameter; write it as in: steps: int = 4"),
        (("x: int = 1",), True, {}, "parameter 'x' needs a comment"),
        (("x: int = 1 + 1  # a number",), True, {}, "parameter 'x' must be a literal, got 1 \\+ 1"),
        (("x: set = []  # some",), True, {}, "type 'set' is not understood; choose from such as: int, float"),
        (("x: int = 'a'  # a number",), True, {}, "the default does not fit the type of: x"),
        (("x: int = (  # a number",), True, {}, "notebook 'bad'"),
        (("_x: int = 1  # a number",), True, {}, "parameter '_x' must begin with a letter"),
        (("hf_token: str = ''  # of the hub",), True, {}, "parameter 'hf_token' seems to hold a secret.*an environment variable"),
        ((PARAMETERS,), True, {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}, "it is written in R"),
    ],
)
def test_a_notebook_that_cannot_be_run_is_listed_and_says_why(folder, cells, tagged, metadata, said):
    write_notebook(folder, "bad", *cells, tagged=tagged, metadata=metadata)
    (found,) = notebooks()
    assert found.parameters == ()
    with pytest.raises(ValueError, match=said):
        read_parameters(found, {})
    with pytest.raises(ValueError, match=said):
        checked_notebook({"notebook": "bad"})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cells": [], "metadata": []}', '{"worksheets": []}'])
def test_a_file_that_is_no_notebook_harms_no_other(folder, toy, content):
    (folder / "broken.ipynb").write_text(content)
    broken, good = notebooks()
    assert "it is no notebook" in broken.problem
    assert good == toy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda made: made["cells"][1].pop("cell_type"), "it is damaged: KeyError: 'cell_type'"),
        (lambda made: made["cells"][1].update(source=None), "it is damaged: TypeError"),
        (lambda made: made["cells"].append(None), "it is damaged: AttributeError"),
        (lambda made: made["metadata"].update(kernelspec={"name": "python3", "language": None}), ""),
    ],
)
def test_a_notebook_with_a_damaged_cell_harms_no_other(folder, toy, change, said):
    made = json.loads((folder / "toy.ipynb").read_text())
    change(made)
    (folder / "odd.ipynb").write_text(json.dumps(made))
    odd, good = notebooks()
    assert odd.problem.startswith(f"notebook 'odd': {said}" if said else "")
    assert bool(odd.problem) == bool(said)
    assert good == toy


def test_a_notebook_that_cannot_be_read_harms_no_other(folder, toy, monkeypatch):
    (folder / "closed.ipynb").write_text("{}")
    read = Path.read_bytes

    def refuse(path):
        if path.stem == "closed":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    closed, good = notebooks()
    assert "Permission denied" in closed.problem
    assert good == toy


def test_a_notebook_is_read_again_when_its_file_has_changed(folder, toy):
    path = write_notebook(folder, "toy", "y: int = 2  # another", text="No heading")
    os.utime(path, ns=(1, 1))
    now = notebook("toy")
    assert (now.title, now.summary, now.parameters[0].name) == ("toy", "No heading", "y")
    assert now.sha256 != toy.sha256


def test_what_a_run_records_is_complete_and_accepted_again_as_long_as_the_notebook_is_the_same(folder):
    path = write_notebook(folder, "toy", PARAMETERS, "print(x)")
    config, title = checked_notebook({"notebook": "toy", "parameters": {"x": "3"}})
    assert config == {"notebook": "toy", "parameters": {"x": 3, "words": ["a"]}, "sha256": notebook("toy").sha256}
    assert title == "A toy: x = 3"
    assert checked_notebook(config) == (config, title)
    assert checked_source(config) == path.read_bytes()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": {"changed": True}}))
    with pytest.raises(ValueError, match="notebook 'toy' has changed"):
        checked_notebook(config)
    with pytest.raises(ValueError, match="notebook 'toy' has changed"):
        checked_source(config)
    path.unlink()
    with pytest.raises(ValueError, match="there is no notebook 'toy'"):
        checked_source(config)


@pytest.mark.parametrize("config", [{}, {"notebook": 3}, {"notebook": "toy", "parameters": [1]}])
def test_a_run_needs_a_name_and_parameters_by_name(toy, config):
    with pytest.raises(ValueError, match=r"needs its name|they are given by name"):
        checked_notebook(config)
