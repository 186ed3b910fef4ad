"""A run as a notebook with parameters that does the same again; and what the cells of such a notebook call."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from workbench.branching import flat
from workbench.checkpoints import write_checkpoint
from workbench.config import PRESETS, RunConfig, change, parse_config
from workbench.experiments.comparison import compare
from workbench.experiments.execute import loop
from workbench.experiments.notebooks import TAG
from workbench.experiments.papermilling import SOURCE
from workbench.experiments.reproduce import begun_from
from workbench.export import export_folder
from workbench.history import History
from workbench.models import MODELS
from workbench.objectives import OBJECTIVES
from workbench.records import Run
from workbench.replay import Replay, replay_of, write_replay
from workbench.samplers import SAMPLERS
from workbench.store import Store
from workbench.tasks import TASKS
from workbench.whole_file import whole_file

if TYPE_CHECKING:
    from workbench.experiment import Experiment

_EXTENSIONS: dict[str, Mapping[str, Any]] = {"task": TASKS, "model": MODELS, "sampler": SAMPLERS, "objective": OBJECTIVES}
_LISTS = ("rewards", "eval_rewards")
_TURNED = ("seed", "iterations")  # what people want to turn, whether or not the run did
_WIDTH = 100
_HOW = """Put it into `notebooks/` and run it with `python -m workbench notebook run NAME`, where every parameter is an option;
or open it in JupyterLab. With its parameters as they are it gives the same numbers, bit for bit on the same kind of processor."""


def write_notebook(store: Store, run: str) -> Path:
    """A notebook that repeats a run, in its exports.

    Its parameters are what the run sets differently from the preset that is nearest to it. A notebook's run gives that notebook
    as it was, with the run's parameters.

    Raises: ValueError: if there is no such run, or it computes nothing itself; StoreError: if the disk refuses.
    """
    found = store.run(run)
    if found.kind == "notebook":
        made = _own_notebook(store, found)
    elif found.kind in ("train", "pretrain"):
        made = _notebook_of(found, replay_of(store, found))
    else:
        raise ValueError(
            f"run {found.id} is of kind {found.kind!r}, which computes nothing itself; export the runs that belong to it"
        )
    nbformat.validate(made)
    path = export_folder(store, found.id) / f"{found.id}.ipynb"
    with store.disk(path.parent), whole_file(path) as hidden:
        hidden.write_text(nbformat.writes(made) + "\n")
    return path


def overrides(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """The preset that is nearest to some settings, and what they set differently by dotted key; `configure` takes both."""
    found = {name: _changes(preset, config) for name, preset in PRESETS.items()}
    nearest = min(found, key=lambda name: len(found[name]))
    return nearest, found[nearest]


# What the cells call


def repeat(
    experiment: "Experiment",
    recorded: str,
    *,
    threads: int = 0,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    until: int | None = None,
) -> None:
    """Let what this experiment trains go on as a recorded run did.

    Args:
        threads: that torch works with; 0 leaves them as they are.
        changes: settings by dotted key, by the iteration after which they change.
        until: the iteration after which that run ended early.
    """
    counts = ((0, threads),) if threads else ()
    steps = {int(iteration): dict(each) for iteration, each in (changes or {}).items()}
    folder = experiment.store.folder(experiment.run)
    with experiment.store.disk(folder):
        write_replay(Replay(of=recorded, until=until, threads=counts, changes=steps), folder)


def begin_from(experiment: "Experiment", config: RunConfig, run: str, iteration: int) -> None:
    """Let the training of this experiment begin from a checkpoint of a run. Raises: ValueError: if there is none that fits."""
    store, begin = experiment.store, begun_from(experiment.store, run, iteration, config)
    with store.disk(store.folder(experiment.run)):
        write_checkpoint(store.folder(experiment.run) / "checkpoints", experiment.run, begin)


def pretrain_here(experiment: "Experiment", recipe: str, changes: Mapping[str, Any]) -> History:
    """Pretrain an embedded network as a part of this experiment's run. Raises: what ended it early."""
    from workbench.pretrain import configure_recipe

    settings = configure_recipe(recipe, changes).model_dump(mode="json")
    experiment.store.add_settings(experiment.run, settings)
    experiment.drive(loop("pretrain", settings))
    return experiment.history


def against_the_record(experiment: "Experiment", recorded: str) -> str:
    """How this experiment compares with a recorded run, in a sentence; also where that run is not in the record here."""
    try:
        found = experiment.store.run(recorded)
    except ValueError as error:
        return f"nothing to compare with: {error}"
    return compare(experiment.store, found.id, experiment.run).sentence


# The notebook


def _notebook_of(run: Run, replay: Replay) -> nbformat.NotebookNode:
    trains = run.kind == "train"
    lines, settings = _settings_of(run)
    lines += [_line(name, value, told) for name, value, told in _circumstances(run, replay)]
    called = ["against_the_record", *["begin_from"] * (replay.begins is not None), *["pretrain_here"] * (not trains), "repeat"]
    imports = ["from workbench.config import configure"] * trains + ["from workbench.experiment import Experiment"]
    imports += [f"from workbench.experiments.as_notebook import {', '.join(called)}"]
    given = ["threads=threads", *["changes=live_changes"] * bool(replay.changes), *["until=until"] * (replay.until is not None)]
    training = ["experiment = Experiment.here()", f"repeat(experiment, recorded, {', '.join(given)})"]
    training += ["begin_from(experiment, config, begins_from, begins_after)"] * (replay.begins is not None)
    training += ["history = experiment.train(config)" if trains else "history = pretrain_here(experiment, recipe, changes)"]
    of = "alignment" if trains else "pretraining"
    cells = [
        new_markdown_cell(f"# {run.title}\n\nThis {of} repeats run `{run.id}`. {_HOW}"),
        new_code_cell("\n".join(lines), metadata={"tags": [TAG]}),
        new_code_cell("\n".join(imports)),
        new_markdown_cell(f"The settings: those of {'a preset' if trains else 'a recipe'}, and what differs from them."),
        new_code_cell(f"config = configure(preset, {settings})" if trains else f"changes = {settings}"),
        new_markdown_cell("The training goes on live on the page, where it can be paused and stopped as any other."),
        new_code_cell("\n".join(training)),
        *(_shown_after_training() if trains else _shown_after_pretraining()),
        new_markdown_cell("Whether the same came out as was recorded, where that run is at hand."),
        new_code_cell("print(against_the_record(experiment, recorded))"),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # the same run gives the same file
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def _shown_after_training() -> list[nbformat.NotebookNode]:
    said = "The reward; and the same held-out prompts and seeds, before and after."
    return [new_markdown_cell(said), new_code_cell("experiment.figure()"), new_code_cell("experiment.before_and_after()")]


def _shown_after_pretraining() -> list[nbformat.NotebookNode]:
    said = "The last figures of every stage, as (step, value)."
    return [new_markdown_cell(said), new_code_cell("{name: points[-1] for name, points in history.metrics.items()}")]


def _settings_of(run: Run) -> tuple[list[str], str]:
    """The lines that declare a run's settings as parameters, and the expression that maps their keys to them."""
    if run.kind == "train":
        config = parse_config(run.config)
        preset, changes = overrides(config)
        values = {key: getattr(config, key) for key in _TURNED} | changes
        lines = [_line("preset", preset, "the preset that the settings start from")]
        helps = {key: _help(config, key) for key in values}
    else:
        from workbench.pretrain import configure_recipe, recorded_recipe

        recipe = recorded_recipe(run.config)
        standard = configure_recipe(recipe.name)
        fields = [name for name in type(recipe).model_fields if name != "name"]
        values = {
            name: getattr(recipe, name) for name in fields if name == "seed" or getattr(recipe, name) != getattr(standard, name)
        }
        lines = [_line("recipe", recipe.name, "what is made")]
        helps = {name: str(type(recipe).model_fields[name].description) for name in values}
    variables = {key: key.replace(".", "_") for key in values}
    lines += [_line(variables[key], value, helps[key]) for key, value in values.items()]
    entries = [f'"{key}": {variable}' for key, variable in variables.items()]
    if len(", ".join(entries)) < _WIDTH:
        return lines, f"{{{', '.join(entries)}}}"
    return lines, "{\n" + "".join(f"    {entry},\n" for entry in entries) + "}"


def _circumstances(run: Run, replay: Replay) -> Iterator[tuple[str, Any, str]]:
    """What else the numbers of a run depend on: name, value and help of each parameter."""
    origin, begins = replay.begins or ("", 0)
    threads = replay.threads_after(begins) or 0
    yield "threads", threads, "CPU threads of torch, on which the last bits of every sum depend; 0 leaves them as they are"
    if replay.changes:
        yield "live_changes", {str(at): each for at, each in replay.changes.items()}, "settings that change after an iteration"
    if replay.until is not None:
        yield "until", replay.until, "the iteration after which the run ended early"
    if origin:
        yield "begins_from", origin, "the run that it begins from"
        yield "begins_after", begins, "the iteration of that run after which it begins"
    yield "recorded", run.id, "the run that it is compared with"


def _line(name: str, value: Any, told: str) -> str:
    """A parameter: an annotated literal with a comment."""
    value = list(value) if isinstance(value, tuple) else value
    return f"{name}: {type(value).__name__} = {value!r}  # {' '.join(told.split())}"


def _help(config: RunConfig, key: str) -> str:
    """What a setting says of itself."""
    *path, last = key.split(".")
    node: Any = config
    for name in path:
        node = getattr(node, name, None)
    fields = getattr(type(node), "model_fields", {})
    if last in fields and fields[last].description:
        return str(fields[last].description)
    return (
        {"rewards": "its share in the sum that is trained on", "eval_rewards": "1: it judges"}.get(path[0], "which one")
        if path
        else key
    )


def _changes(preset: RunConfig, config: RunConfig) -> dict[str, Any]:
    """What must be set in a preset to have these settings, by dotted key."""
    values, wanted = preset.model_dump(mode="json"), config.model_dump(mode="json")
    changes: dict[str, Any] = {}
    for field, known in _EXTENSIONS.items():
        name = wanted[field]["name"]
        if name != values[field]["name"]:  # it begins with its own defaults
            changes[f"{field}.name"] = name
            values[field] = known[name]().model_dump(mode="json")
    plain = [flat({key: value for key, value in each.items() if key not in _LISTS}) for each in (values, wanted)]
    changes |= {key: value for key, value in plain[1].items() if plain[0].get(key) != value}
    lists = {field: wanted[field] for field in _LISTS if wanted[field] != values[field]}
    if not lists:
        return changes
    short = changes | {
        f"{field}.{entry['reward']['name']}": entry.get("weight", 1)
        for field, entries in lists.items()
        for entry in entries
        if entry not in values[field]
    }
    return short if _gives(preset, short, config) else changes | lists


def _gives(preset: RunConfig, changes: Mapping[str, Any], config: RunConfig) -> bool:
    try:
        return change(preset, changes) == config
    except ValueError:
        return False


# A notebook's own


def _own_notebook(store: Store, run: Run) -> nbformat.NotebookNode:
    """The notebook of a run as it was, its parameters set to those of the run. Raises: ValueError: if it was not recorded."""
    path = store.folder(run.id) / SOURCE
    if not path.is_file():
        raise ValueError(f"run {run.id} is a notebook that was run by hand, so its cells were not recorded")
    made = nbformat.read(path, as_version=4)
    for cell in made.cells:
        if TAG in cell.metadata.get("tags", ()):
            cell.source = _with_values(cell.source, run.config["parameters"])
    return made


def _with_values(source: str, values: Mapping[str, Any]) -> str:
    """A cell of parameters with other values; types and comments stay."""
    lines = source.split("\n")
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value and node.target.id in values:
            first, last = node.value.lineno - 1, (node.value.end_lineno or node.value.lineno) - 1
            before = lines[first].encode()[: node.value.col_offset].decode()
            after = lines[last].encode()[node.value.end_col_offset :].decode()
            lines[first : last + 1] = [f"{before}{values[node.target.id]!r}{after}"]
    return "\n".join(lines)
