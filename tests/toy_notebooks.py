"""Made-up notebooks for tests, in a folder of their own."""

from pathlib import Path
from typing import Any

import nbformat

PARAMETERS = "x: int = 1  # a number\nwords: list = ['a']  # some words"

TRAINS = (
    "iterations: int = 3  # policy updates\nevery: int = 1  # updates between two checkpoints",
    "from workbench.config import configure\nfrom workbench.experiment import Experiment\nexperiment = Experiment.here()",
    """config = configure("shapes", {
    "iterations": iterations, "record.checkpoint_every": every, "grpo.groups": 2, "evaluation.images": 8,
    "evaluation.final_images": 8, "evaluation.preview": 4, "evaluation.steps": (4,), "compute.threads": 1})
history = experiment.train(config)""",
    "experiment.report({'final': history.metric('reward')[-1][1]})",
)
"""The cells of a notebook with a real training, of which an iteration takes a fraction of a second."""


def write_notebook(
    folder: Path,
    name: str,
    *cells: str,
    tagged: bool = True,
    metadata: dict[str, Any] | None = None,
    text: str = "# A toy\n\nIt does little.",
) -> Path:
    """A notebook with a Markdown cell and these code cells, the first of which holds the parameters."""
    made = nbformat.v4.new_notebook(metadata=metadata or {})
    made.cells = [nbformat.v4.new_markdown_cell(text), *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    if tagged:
        made.cells[1].metadata.tags = ["parameters"]
    folder.mkdir(exist_ok=True)
    nbformat.write(made, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"
