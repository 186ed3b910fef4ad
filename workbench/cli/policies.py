"""Which policy a command means: that of a run's checkpoint, or the base of a preset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.cli.options import bad_arguments, read_changes

if TYPE_CHECKING:
    from workbench.config import RunConfig
    from workbench.events import CheckpointReady
    from workbench.models.policy import Policy
    from workbench.store import Store


@dataclass(frozen=True)
class Chosen:
    """A configuration with the checkpoint that its policy comes from; without one it is the base."""

    config: "RunConfig"
    run: str | None
    checkpoint: "CheckpointReady | None"

    @property
    def iteration(self) -> int:
        return 0 if self.checkpoint is None else self.checkpoint.iteration

    @property
    def title(self) -> str:
        """For people: the run and how far it had come, or the base."""
        return f"run {self.run} after {self.iteration} iterations" if self.run else f"the base model {self.config.model.name!r}"

    def load(self) -> "Policy":
        import torch

        from workbench.evaluate import load_policy

        if self.config.compute.threads:
            torch.set_num_threads(self.config.compute.threads)
        return load_policy(self.config, self.checkpoint, choose_device(self.config.compute.device))


def choose(store: "Store | None", run: str | None, preset: str, changes: Sequence[str] | None, iteration: int | None) -> Chosen:
    """What `--run`, or `--preset` with `--set`, name.

    Raises:
        BadArguments: if they name nothing, or contradict each other.
        CheckpointError: if the run's checkpoint is missing or damaged.
    """
    from workbench.config import configure, parse_config

    with bad_arguments():
        if run is None:
            if iteration is not None:
                raise ValueError("--checkpoint needs the run that it belongs to: add --run RUN")
            return Chosen(configure(preset, read_changes(changes)), None, None)
        if changes:
            raise ValueError("--run has its own settings; leave out --set")
        assert store is not None
        found = store.run(run)
        if found.kind != "train":
            weights = store.folder(found.id) / "shapes.safetensors"
            raise ValueError(f"run {found.id} is of kind {found.kind!r}; use its weights with: --set model.weights={weights}")
        return Chosen(parse_config(found.config), found.id, store.load_checkpoint(found.id, iteration))


def choose_device(wanted: str) -> str:
    """`auto` takes an accelerator where there is one."""
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
