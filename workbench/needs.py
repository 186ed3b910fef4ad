"""What a run needs of the machine that it was taken to: the weights that its checkpoints were trained on are not part of it."""

from pathlib import Path
from typing import TYPE_CHECKING

from workbench.config import RunConfig, parse_config
from workbench.first_line import first_line
from workbench.models.diffusers_folder import HUB
from workbench.models.lora import lora_file
from workbench.models.pipeline import PipelineModel
from workbench.provenance import Weights, read_provenance, weights_of

if TYPE_CHECKING:
    from workbench.records import Run
    from workbench.store import Store

PLACES = ("model.source", "model.weights", "adapter.start", "task.file")
"""Settings that only say where something lies, and may say it differently on another machine."""


def needs(store: "Store", run: "Run") -> list[str]:
    """What is missing here, or is not what the run was trained with, in sentences that say what to do; nothing is fetched."""
    if run.training is None:
        return []
    try:
        config, drivers = parse_config(run.training), read_provenance(store, run.id)
    except ValueError as error:
        return [f"it cannot be said what it needs: {first_line(error)}"]
    known = drivers[-1].weights if drivers else ()
    return [*_base(config, known), *_start(config)]


def _base(config: RunConfig, known: tuple[Weights, ...]) -> list[str]:
    model, recorded = config.model, [file for file in known if file.owner == config.model.name]
    here = [path for path in model.weight_files() if path.is_file()]
    size = sum(file.bytes for file in recorded) / 2**30
    told = f" ({size:.1f} GiB of weights)" if recorded else ""
    if not here:
        where = model.source if isinstance(model, PipelineModel) else getattr(model, "weights", "")
        if isinstance(model, PipelineModel) and HUB.fullmatch(where) and not Path(where).is_dir():
            return [
                f"its base {where}{told} is not on this machine: it is fetched at first use, or now with: hf download {where}"
            ]
        setting = "model.source" if isinstance(model, PipelineModel) else "model.weights"
        return [
            f"its base {where!r}{told} is not on this machine, and only what was learned is in the archive: put it there, or "
            f"import it again with --set {setting}=PLACE"
        ]
    for path in here if not model.component else [path for path in here if path.parent.name == model.component]:
        same = next((file for file in recorded if Path(file.path).name == path.name and _part(file.path, model.component)), None)
        if same is not None and (same.bytes != path.stat().st_size or same.sha256 != weights_of(model.name, path).sha256):
            return [f"{path} is not the file that it was trained on ({same.sha256[:12]}): its pictures will be others than there"]
    return []


def _part(path: str, component: str) -> bool:
    return not component or Path(path).parent.name == component


def _start(config: RunConfig) -> list[str]:
    if not config.adapter.start:
        return []
    try:
        lora_file(config.adapter.start)
    except ValueError:
        return [
            f"it began from the LoRA {config.adapter.start!r}, which is not on this machine: put it there, or import it again "
            "with --set adapter.start=PLACE"
        ]
    return []
