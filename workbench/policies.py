"""Which policy is meant: that of a run's checkpoint, or the base of a preset; and those in use, kept in memory."""

from collections import OrderedDict
from collections.abc import Generator as Stream
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.config import RunConfig, configure, parse_config
from workbench.events import CheckpointReady, Evaluated, Progress
from workbench.newest import newest
from workbench.store import Store

if TYPE_CHECKING:
    from workbench.contracts import Generator
    from workbench.models.policy import Policy

NETWORKS, CHECKPOINTS = 2, 16
"""Most networks, and most checkpoints' averaged weights, that are kept in memory."""

LARGE = 1 / 8
"""Share of a device's memory above which a network is let go before another one is loaded, since both may not fit."""


@dataclass(frozen=True)
class Chosen:
    """A configuration with the checkpoint that its policy comes from; without one it is the base."""

    config: RunConfig
    run: str | None
    checkpoint: CheckpointReady | None

    @property
    def iteration(self) -> int:
        return 0 if self.checkpoint is None else self.checkpoint.iteration

    @property
    def title(self) -> str:
        """For people: the run and how far it had come, or the base."""
        if self.run:
            return f"run {self.run} after {self.iteration} iterations"
        start = self.config.adapter.start
        return f"the base model {self.config.model.name!r}" + (f" with the LoRA {start}" if start else "")

    def load(self) -> "Policy":
        """The policy, in memory of its own."""
        import torch

        from workbench.evaluate import load_policy

        if self.config.compute.threads:
            torch.set_num_threads(self.config.compute.threads)
        return load_policy(self.config, self.checkpoint, choose_device(self.config.compute.device))

    def evaluate(
        self, counts: Sequence[int], images: int | None = None, seed: int | None = None
    ) -> "Stream[Progress, None, Evaluated]":
        """One evaluation exactly as a run makes it; yields progress, returns what was measured.

        Args:
            counts: numbers of sampling steps.
            images: for each of them; by default as at a run's end.
            seed: of the first image; by default the run's own evaluation noise.
        """
        from accelerate import Accelerator

        from workbench.evaluate import held_out
        from workbench.learner import Learner

        settings = self.config.evaluation
        settings = settings.model_copy(update={} if seed is None else {"seed": seed})
        compute = self.config.compute.model_copy(update={"processes": 1})
        config = self.config.model_copy(update={"evaluation": settings, "compute": compute})
        accelerator = Accelerator(cpu=compute.device == "cpu", mixed_precision=compute.precision)
        shown = held_out(config.task, images or settings.final_images, settings.group_size, settings.seed)
        learner = Learner(config, accelerator, list(dict.fromkeys(shown.prompts)))
        if self.checkpoint is not None:
            learner.restore(self.checkpoint)
        with closing(learner.examiner) as examiner:
            yield from examiner.evaluate(learner.iteration, images or settings.final_images, counts)
            (event,) = examiner.told(before=learner.iteration + 1)
        assert isinstance(event, Evaluated)
        return event


def choose(
    store: Store | None,
    run: str | None,
    preset: str = "shapes",
    changes: Mapping[str, Any] | None = None,
    iteration: int | None = None,
) -> Chosen:
    """The policy of a run's checkpoint (the last without `iteration`, the base at 0), or the base of a changed preset.

    Raises:
        ValueError: if they name nothing, or contradict each other.
        CheckpointError: if the run's checkpoint is missing or damaged.
    """
    if run is None:
        if iteration is not None:
            raise ValueError(f"iteration {iteration} of which run? Name the run that the checkpoint belongs to")
        return Chosen(configure(preset, changes or {}), None, None)
    if changes:
        raise ValueError(f"run {run} has its own settings; leave out {', '.join(changes)}")
    assert store is not None
    found = store.run(run)
    if found.training is None:
        weights = store.folder(found.id) / "shapes.safetensors"
        raise ValueError(f"run {found.id} is of kind {found.kind!r}; use its weights by the setting model.weights={weights}")
    checkpoint = None if iteration == 0 else store.load_checkpoint(found.id, iteration)
    return Chosen(parse_config(found.training), found.id, checkpoint)


def choose_device(wanted: str) -> str:
    """`auto` takes an accelerator where there is one."""
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class Policies:
    """Policies in use, for one thread.

    Runs of one model share its network, and their weights are exchanged, so that many checkpoints cost little.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._networks: OrderedDict[str, Policy] = OrderedDict()
        self._checkpoints: OrderedDict[tuple[str, int, int], Chosen] = OrderedDict()

    def choose(self, run: str | None, preset: str = "shapes", iteration: int | None = None) -> Chosen:
        """As `choose`, from memory where a checkpoint has been read before."""
        if run is None or iteration == 0:
            return choose(self._store, run, preset, None, iteration)
        if iteration is None:
            iteration = max(self._store.checkpoints(self._store.run(run).id), default=-1)
        key = (run, iteration, self._store.checkpoint_stamp(run, iteration))
        if key not in self._checkpoints:
            chosen = choose(self._store, run, preset, None, None if iteration < 0 else iteration)
            assert chosen.checkpoint is not None
            averaged = {name: tensors for name, tensors in chosen.checkpoint.tensors.items() if name == "ema"}
            self._checkpoints[key] = replace(chosen, checkpoint=replace(chosen.checkpoint, tensors=averaged))
        return newest(self._checkpoints, key, CHECKPOINTS)

    @contextmanager
    def generator(self, chosen: Chosen, scale: float = 1.0) -> "Iterator[Generator]":
        """The generator with the averaged weights of the checkpoint, without gradients; valid inside.

        Args:
            scale: of what was learned: 0 is the base, 1 the tuned policy.
        """
        import torch

        from workbench.evaluate import load_policy

        config = chosen.config
        key = config.model.model_dump_json() + config.adapter.model_dump_json() + config.compute.precision
        if key not in self._networks:
            self._make_room()
            self._networks[key] = load_policy(config, None, choose_device(config.compute.device))
        policy = newest(self._networks, key, NETWORKS)
        with torch.no_grad():
            if chosen.checkpoint is None:
                with policy.beginning() as base:
                    yield base
                return
            if "ema" not in chosen.checkpoint.tensors:
                raise ValueError(f"the checkpoint of {chosen.title} holds no averaged weights, so it draws nothing")
            policy.load(chosen.checkpoint.tensors["ema"], scale)
            yield policy.generator

    def _make_room(self) -> None:
        """Let go of large networks."""
        import torch

        from workbench.memory import device_memory

        for key, policy in list(self._networks.items()):
            network, device = policy.generator.network, policy.generator.device
            if sum(value.numel() * value.element_size() for value in network.parameters()) > LARGE * device_memory(device):
                del self._networks[key], policy, network
                if device.type == "cuda":
                    torch.cuda.empty_cache()
