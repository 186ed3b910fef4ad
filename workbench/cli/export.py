"""`export`: a run as a file for people, for another workbench, for another program, or as a folder for the hub."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from workbench.cli.options import BadArguments, Checkpoint, Json, Runs, StoreUrl, bad_arguments, open_store
from workbench.cli.screen import finish, say, show, show_json

if TYPE_CHECKING:
    from workbench.records import Run
    from workbench.store import Store

_OF_A_CHECKPOINT = ("weights", "merged", "card")


def export(
    run: Annotated[str, typer.Argument(help="id of the run, its beginning, or 'latest'")],
    report: Annotated[bool, typer.Option("--report", help="one HTML file for people, which opens offline")] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="averaged weights: a LoRA that diffusers loads, or all of them as safetensors")
    ] = False,
    merged: Annotated[bool, typer.Option("--merged", help="weights that need no adapter, folded into those of the base")] = False,
    card: Annotated[
        bool, typer.Option("--card", help="a folder for the hub: weights, a model card, its curves and pictures")
    ] = False,
    archive: Annotated[bool, typer.Option("--archive", help="one zip with everything, for: runs import FILE")] = False,
    notebook: Annotated[bool, typer.Option("--notebook", help="a notebook with parameters that repeats the run")] = False,
    checkpoint: Checkpoint = None,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="of --merged and --card: a whole pipeline of diffusers, not the network alone")
    ] = False,
    dtype: Annotated[
        Literal["base", "bf16", "fp16", "fp32"], typer.Option(help="of --merged: numbers of the network; base: as its files have")
    ] = "base",
    base: Annotated[
        str, typer.Option(metavar="ID", help="of --card: the base's id on the hub, where its folder does not say it")
    ] = "",
    repo: Annotated[str, typer.Option(metavar="ID", help="of --card: the id that the folder will have on the hub")] = "",
    out: Annotated[Path | None, typer.Option(metavar="PATH", help="where to put it instead of the run's folder")] = None,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Write a report, weights, a model card, an archive or a notebook of a run; nothing is uploaded anywhere."""
    asked = {"report": report, "weights": weights, "merged": merged, "card": card, "archive": archive, "notebook": notebook}
    chosen = [name for name, wanted in asked.items() if wanted]
    if len(chosen) != 1:
        raise BadArguments("choose one of --report, --weights, --merged, --card, --archive and --notebook")
    (what,) = chosen
    if checkpoint is not None and what not in _OF_A_CHECKPOINT:
        raise BadArguments("--checkpoint chooses the weights; all else is of the whole run")
    for option, given, takers in (
        ("--pipeline", pipeline, ("merged", "card")),
        ("--dtype", dtype != "base", ("merged",)),
        ("--base", base, ("card",)),
        ("--repo", repo, ("card",)),
    ):
        if given and what not in takers:
            raise BadArguments(f"{option} is for {' and '.join(f'--{name}' for name in takers)}")
    record = open_store(runs, store)
    with bad_arguments():
        found = record.run(run)
        if what == "merged":
            from workbench.merging import write_merged

            stream = write_merged(record, found.id, checkpoint, pipeline=pipeline, dtype=dtype, out=out)
            path = finish("merging", stream)
        elif what == "card":
            from workbench.model_card import write_card

            stream = write_card(record, found.id, checkpoint, pipeline=pipeline, base=base, repo=repo, out=out)
            path = finish("writing the card", stream)
        else:
            path = _one_file(record, found, what, checkpoint)
            path = path if out is None else Path(shutil.move(path, out))
    if as_json:
        show_json({"run": found.id, "path": path, "bytes": _bytes(path)})
    else:
        show(str(path))
    if what == "card":
        say(f"read it, then upload it with: hf upload {repo or 'YOUR_NAME/REPOSITORY'} {path}")


def _one_file(record: "Store", found: "Run", what: str, checkpoint: int | None) -> Path:
    if what == "weights":
        from workbench.export import write_weights

        return write_weights(record, found.id, checkpoint)
    if what == "archive":
        from workbench.export import write_archive

        return write_archive(record, found.id)
    if what == "notebook":
        from workbench.experiments.as_notebook import write_notebook

        return write_notebook(record, found.id)
    from workbench.report import write_report

    return write_report(record, found)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
