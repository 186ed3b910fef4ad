"""`pretrain`: make the embedded generator from nothing, and write its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from workbench.cli.drive import command_line, conclude, drive, reopen
from workbench.cli.options import (
    BadArguments,
    Changes,
    Checkpoint,
    Json,
    Resume,
    Runs,
    StoreUrl,
    bad_arguments,
    open_store,
    read_changes,
)
from workbench.cli.screen import say

if TYPE_CHECKING:
    from workbench.pretrain import PretrainConfig
    from workbench.store import Store


def pretrain(
    model: Annotated[Literal["shapes"], typer.Argument(help="generator to make")] = "shapes",
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="weights to write; by default in the run's folder")] = None,
    resume: Resume = None,
    checkpoint: Checkpoint = None,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Pretrain the embedded generator: autoencoder, flow matching, then the two-time map.

    Ctrl-C stops after the current step with a checkpoint; a second one ends it now.
    """
    from workbench.jobs import Job
    from workbench.pretrain import pretrain as start

    if resume is not None and changes:
        raise BadArguments("--resume goes on with the run's own settings; leave out --set")
    with bad_arguments():
        if resume is None:
            config, record, last = configure_pretraining(read_changes(changes)), open_store(runs, store), None
            run = record.create(
                "pretrain", config.model_dump(mode="json"), title=config.title, origin="command line", command=command_line()
            )
        else:
            record = open_store(runs, store)
            run, last = reopen(record, resume, checkpoint, "pretrain")
            config = configure_pretraining(record.run(run).config)
    job = Job(record, run, lambda checkpoint, controls: start(config, resume=checkpoint, controls=controls), resume=last)
    summary = drive(record, run, job, "pretrain")
    if summary["status"] == "done":
        summary["weights"] = str(export_weights(record, run, out or record.folder(run) / f"{model}.safetensors"))
        say(f"weights in {summary['weights']}")
    conclude(summary, as_json)


def configure_pretraining(changes: Mapping[str, object]) -> "PretrainConfig":
    """A pretraining configuration with changes applied; text is read as YAML scalars.

    Raises: ValueError: one line for each mistake, naming the key, the value and what would be accepted.
    """
    import yaml
    from pydantic import ValidationError

    from workbench.pretrain import PretrainConfig

    values = {key: yaml.safe_load(value) if isinstance(value, str) else value for key, value in changes.items()}
    if unknown := [key for key in values if key not in PretrainConfig.model_fields]:
        raise ValueError(f"unknown setting {unknown[0]!r}; choose from: {', '.join(PretrainConfig.model_fields)}")
    try:
        return PretrainConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError("\n".join(f"{item['loc'][0]} = {item['input']!r}: {item['msg']}" for item in error.errors())) from None


def export_weights(store: "Store", run: str, path: Path) -> Path:
    """Write the averaged weights of a finished pretraining as the model loads them."""
    from workbench import __version__
    from workbench.models.embedded import save_weights
    from workbench.models.shapes import ShapesModel

    last = store.load_checkpoint(run)
    network, autoencoder = ShapesModel.networks()
    network.load_state_dict(last.tensors["network"] | last.tensors["average"])
    autoencoder.load_state_dict(last.tensors["autoencoder"])
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"run": run, "iteration": last.iteration, "config": store.run(run).config, "version": __version__}
    save_weights(path, {"network": network, "autoencoder": autoencoder}, metadata)
    return path
