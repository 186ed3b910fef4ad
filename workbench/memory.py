"""How much memory a run takes, part by part, before it is begun; and which settings take less."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn

from workbench.config import RunConfig, change
from workbench.contracts import Reward
from workbench.flow import seeded_noise
from workbench.models.pipeline import DTYPES, PROMPTS_AT_ONCE
from workbench.models.quantization import BYTES
from workbench.newest import newest
from workbench.prompt_cache import KEPT
from workbench.rules import check_adapter, check_processes

if TYPE_CHECKING:
    from workbench.footprint import Pass

GIB = 2**30

RESERVE = 0.08
"""Share of a device that is best left to its libraries, and to what cannot be put together without gaps."""


@dataclass(frozen=True)
class Advice:
    """A setting that takes less memory, and what the run would then take."""

    setting: str
    value: Any
    total: int  # bytes
    fits: bool


@dataclass(frozen=True)
class MemoryPlan:
    """What a run takes on one device, in bytes.

    Args:
        parts: what is there all the time that it learns.
        stages: the whole in each stage, `parts` among it but where prompts are read, which comes before.
        device: what the device has; 0 where that is not known.
        advice: what to change where it does not fit; those first that cost least time.
    """

    parts: Mapping[str, int]
    stages: Mapping[str, int]
    device: int
    advice: tuple[Advice, ...] = ()

    @property
    def total(self) -> int:
        """The peak."""
        return max(self.stages.values())

    @property
    def fits(self) -> bool:
        """Whether the device has room for it, and for what its libraries take."""
        return not self.device or self.total <= (1 - RESERVE) * self.device

    def as_json(self) -> dict[str, Any]:
        """All of it as plain numbers, with what follows from it."""
        return asdict(self) | {"total": self.total, "fits": self.fits}


def memory_plan(config: RunConfig, device: int = 0, *, accelerator: bool = True) -> MemoryPlan:
    """The memory that a run will take, from its settings alone: nothing is loaded, fetched or allocated.

    Passes are made with tensors that have a shape and no content, so kernels' own scratch memory is left out; attention is
    counted as one that keeps no matrix of its weights.

    Args:
        device: bytes that it has; with 0 there is no advice.
        accelerator: whether it is one, rather than the CPU: precision and the optimizer's step differ.
    Raises: ValueError: if what the model is made of is not known, saying how to fetch it.
    """
    plan = _plan(config, device, accelerator)
    if plan.fits:
        return plan
    advice = []
    for key, value in remedies(config):
        alone = _plan(change(config, {key: value}), device, accelerator)
        if alone.total < plan.total:
            advice.append(Advice(key, value, alone.total, alone.fits))
    if advice and not any(each.fits for each in advice):
        ways = [_together(config, first, device, accelerator) for first in ("model.quantize", "model.offload")]
        advice.append(next((way for way in ways if way.fits), ways[-1]))
    return MemoryPlan(plan.parts, plan.stages, device, tuple(advice))


def _together(config: RunConfig, first: str, device: int, accelerator: bool) -> Advice:
    """All remedies at once; one that a setting rules out which was taken before it is left out, by name.

    Args:
        first: the setting that comes before all others.
    """
    left: list[str] = []
    for key, value in sorted(remedies(config), key=lambda each: each[0] != first):
        try:  # a later value of the same setting takes the place of an earlier
            config = change(config, {key: value})
        except ValueError:
            left.append(f"{key}={value}")
    whole = _plan(config, device, accelerator)
    return Advice(f"all of these but {' and '.join(left)}" if left else "all of these", "", whole.total, whole.fits)


def advised(advice: Advice) -> str:
    """A piece of advice in words."""
    value = str(advice.value).lower() if isinstance(advice.value, bool) else advice.value
    setting = f"{advice.setting}={value}" if value != "" else advice.setting
    return f"{setting} ({advice.total / GIB:.1f} GiB{', fits' if advice.fits else ''})"


def device_memory(device: torch.device) -> int:
    """Bytes that a device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def remedies(config: RunConfig) -> list[tuple[str, Any]]:
    """Settings that take less memory, each with its value, those first that cost least time; only what the run may be given."""
    return [(key, value) for key, value in _lower(config) if _allowed(config, key, value)]


def _allowed(config: RunConfig, key: str, value: Any) -> bool:
    """Whether the model and the other settings let it be changed."""
    section, field = key.split(".")
    part = getattr(config, section)
    try:
        changed = config.model_copy(update={section: type(part)(**dict(part) | {field: value})})
        check_adapter(changed)
        check_processes(changed)
    except ValueError:
        return False
    return True


def _lower(config: RunConfig) -> list[tuple[str, Any]]:
    """Every setting that is not as low as it can be."""
    model, compute = config.model, config.compute
    found: list[tuple[str, Any]] = []
    if compute.sample_batch > 1:
        found.append(("compute.sample_batch", compute.sample_batch // 2))
    if not getattr(model, "vae_slicing", True):
        found.append(("model.vae_slicing", True))
    if compute.train_batch > 1:
        found.append(("compute.train_batch", compute.train_batch // 2))
    if not getattr(model, "gradient_checkpointing", True):
        found.append(("model.gradient_checkpointing", True))
    if getattr(model, "offload", "linears") == "no":
        found.append(("model.offload", "parts"))
    if config.adapter.kind == "full":
        found.append(("adapter.kind", "lora"))
    if getattr(model, "dtype", "bf16") == "fp32" and config.adapter.kind == "lora":
        found.append(("model.dtype", "bf16"))
    if getattr(model, "quantize", "nf4") == "no" and config.adapter.kind == "lora":
        found += [("model.quantize", "int8"), ("model.quantize", "nf4")]
    if getattr(model, "offload", "linears") != "linears" and config.adapter.kind == "lora":
        found.append(("model.offload", "linears"))
    return found


@dataclass(frozen=True)
class _Sizes:
    """What a configuration's networks and passes take, in bytes."""

    base: int
    trained: int
    adapters: int
    autoencoder: int
    encoders: int
    prompt: int
    latent: int
    image: int
    blocks: int  # numbers in the linear layers of the network's blocks
    linears: int  # bytes of all its linear layers
    widest: int  # bytes of the widest of them
    block: int  # bytes of the largest of its blocks
    reading: int
    noise: int
    sampling: "Pass"
    decoding: "Pass"
    update: "Pass"


_known: OrderedDict[tuple[str, bool], _Sizes] = OrderedDict()
_KEPT = 64  # configurations whose sizes are known


def _plan(config: RunConfig, device: int, accelerator: bool) -> MemoryPlan:
    relevant = _relevant(config)  # what waits elsewhere or is held in fewer bits changes what is there, not what passes take
    key = (repr(relevant), accelerator)
    if key not in _known:
        _known[key] = _sizes(relevant, accelerator)
    sizes = newest(_known, key, _KEPT)
    compute, grpo = config.compute, config.grpo
    behaviour = config.objective.behaviour_decay(0) is not None
    offload = getattr(config.model, "offload", "no")
    base, passing = _base(config.model, sizes, 1 if compute.sharding == "none" else compute.processes)
    parts = {
        "base weights": base,
        "adapters": sizes.adapters,
        "reference": sizes.base if config.adapter.kind == "full" else 0,
        "averaged weights": sizes.trained * (1 + behaviour),
        "optimizer": 2 * sizes.trained,
        "autoencoder": sizes.autoencoder if offload == "no" else 0,
        "rewards": _of_rewards([entry.reward for entry in config.rewards] + [entry.reward for entry in config.eval_rewards]),
        "prompts": sizes.prompt * min(KEPT, _prompts(config)),
    }
    samples = _samples(config)
    steps = {"branch": 1, "tree": 2, "window": config.rollout.window, "all": config.rollout.steps - 1}[config.rollout.mode]
    latents = sizes.latent * samples * (2 + 2 * steps)  # what was drawn: states, children and ends
    images = sizes.image * samples
    several = _states(config) * steps > compute.train_batch or grpo.epochs > 1
    learnt = sum(parts.values()) + latents + images
    copies = sizes.trained * (1 + 3 * (grpo.epochs > 1))  # of the parameters before the update, and to undo it
    autoencoder = sizes.autoencoder - parts["autoencoder"]  # comes to the device while it decodes
    sampling, decoding = sizes.sampling.peak + passing, sizes.decoding.peak + autoencoder
    stages = {
        "reading prompts": sizes.encoders + sizes.reading,  # before anything else is loaded
        "sampling": sum(parts.values()) + sizes.latent * samples * 2 + max(sampling, sizes.noise * samples),
        "decoding": learnt + images + decoding,
        "update": learnt + copies + sizes.update.peak + passing + (sizes.trained if several else 0),
        "step": learnt + copies + sizes.trained * (2 if accelerator else 1),
        "evaluation": sum(parts.values()) + sizes.trained + max(sampling, decoding),
    }
    return MemoryPlan(parts, stages, device)


def _base(model: Any, sizes: _Sizes, sharded: int) -> tuple[int, int]:
    """Bytes of the base's weights on the device, and of copies of a layer's weights that come and go."""
    if getattr(model, "offload", "no") == "linears":
        return sizes.base - sizes.linears, 2 * sizes.widest
    if (kind := getattr(model, "quantize", "no")) == "no":
        return (sizes.base, 0) if sharded == 1 else (sizes.base // sharded, 2 * sizes.block)  # one works, the next arrives
    whole = 4 if model.dtype == "fp32" else 2  # bytes of a number
    return sizes.base - int(sizes.blocks * (whole - BYTES[kind])), sizes.widest


def _relevant(config: RunConfig) -> RunConfig:
    """What a pass depends on, all else as usual, so that it is worked out once."""
    named = ("adapter", "sampler", "rollout", "task", "grpo", "compute")
    plain = {name: "no" for name in ("offload", "quantize") if hasattr(config.model, name)}
    model = config.model.model_copy(update=plain)
    return RunConfig.model_construct(model=model, **{name: getattr(config, name) for name in named})


def _sizes(config: RunConfig, accelerator: bool) -> _Sizes:
    from workbench.footprint import materialised, measured, size, unrolled, without_content
    from workbench.models.quantization import quantised_weights

    model, adapter, compute = config.model, config.adapter, config.compute
    with torch.random.fork_rng(devices=[]):
        generator, readers = _outlined(model)
        network = generator.network.eval()
        base, blocks = size(network.parameters()), quantised_weights(network)
        lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
        largest = max((size(block.parameters()) for blocks in lists for block in blocks), default=0)
        linears = [size(layer.parameters()) for layer in network.modules() if isinstance(layer, nn.Linear)]
        if adapter.kind == "lora":
            from workbench.models.lora import attach

            network = generator.network = attach(network, model, adapter.rank, adapter.alpha, 0)
        else:
            network.requires_grad_(True)
    others = [value for value in vars(generator).values() if isinstance(value, nn.Module) and value is not network]
    trained = size(value for value in network.parameters() if value.requires_grad)
    reading = _reading(readers, model) if readers else 0
    with without_content(accelerator):
        for module in (network, *others):
            materialised(module)
        generator.device = torch.device("cpu")
        drawn, learnt = min(compute.sample_batch, _samples(config)), min(compute.train_batch, _states(config))
        sampling = unrolled(network, lambda: _step(generator, config, drawn), backward=False)
        update = unrolled(network, lambda: _step(generator, config, learnt), backward=True)
        decoding = measured(lambda: generator.decode(torch.empty(drawn, *generator.latent_shape)), backward=False)
        with torch.no_grad():
            latent = torch.empty(1, *generator.latent_shape)
            image = size(iter([generator.decode(latent)]))
            noise = measured(lambda: seeded_noise([0] * 8, generator.latent_shape), backward=False).peak // 8
            prompt = _size_of(generator.embed(config.task.prompts("train")[:1]))
    return _Sizes(
        base=base,
        trained=trained,
        adapters=trained if adapter.kind == "lora" else 0,
        autoencoder=sum(size(other.parameters()) for other in others),
        encoders=sum(size(reader.parameters()) for reader in readers),
        prompt=prompt,
        latent=size(iter([latent])),
        image=image,
        blocks=blocks,
        linears=sum(linears),
        widest=max(linears, default=0),
        block=largest,
        reading=reading,
        noise=noise,
        sampling=sampling,
        decoding=decoding,
        update=update,
    )


def _outlined(model: Any) -> tuple[Any, list[nn.Module]]:
    """A generator without weights where it is a pipeline, and the encoders of its prompts; else as it is loaded, being small."""
    from workbench.models.pipeline import PipelineModel

    if not isinstance(model, PipelineModel):
        return model.load(torch.device("cpu")), []
    from workbench.models.outline import encoders, outline

    return outline(model), encoders(model)


def _step(generator: Any, config: RunConfig, rows: int) -> Tensor:
    """One step of the sampler on so many rows, as in a rollout and in an update."""
    precision, (t, s) = config.compute.precision, config.times[:2]
    with nullcontext() if precision == "no" else torch.autocast("cpu", DTYPES[precision]):
        known = config.task.prompts("train")
        flow_map = generator.bind(generator.embed([known[row % len(known)] for row in range(rows)]))
        return config.sampler.step(flow_map, torch.empty(rows, *generator.latent_shape), t, s).mean


def _reading(readers: list[nn.Module], model: Any) -> int:
    """Bytes that the hungriest of the encoders takes while it reads some prompts."""
    from workbench.footprint import materialised, measured, without_content

    peaks = []
    for reader in readers:
        tokens = min(model.max_tokens, getattr(reader.config, "max_position_embeddings", model.max_tokens))
        with without_content(False):
            materialised(reader.requires_grad_(False))
            ids = torch.zeros(PROMPTS_AT_ONCE, tokens, dtype=torch.int64)
            peaks.append(measured(partial(reader, input_ids=ids, **model.asks), backward=False).peak)
    return max(peaks)


def _size_of(embeddings: Any) -> int:
    """Bytes of what is kept of prompts."""
    from workbench.footprint import size

    tensors = embeddings.tensors().values() if hasattr(embeddings, "tensors") else [embeddings]
    return size(iter(tensors))


def _of_rewards(rewards: Sequence[Reward]) -> int:
    """Bytes of the rewards' networks: of their files, or of what was published where none is here."""
    weights, size = (".safetensors", ".bin", ".pt", ".pth"), 0
    counted: set[Path] = set()
    for reward in dict.fromkeys(rewards):
        files = {path for path in reward.weight_files() if path.suffix in weights and path.is_file()}
        size += sum(path.stat().st_size for path in files - counted)
        counted |= files
        if not files:
            size += reward.published * (4 if getattr(reward, "dtype", "fp32") == "fp32" else 2)
    return size


def _prompts(config: RunConfig) -> int:
    """How many prompts a run will have read."""
    return len(config.prompts or config.task.prompts("train")) + len(config.task.prompts("held_out"))


def _samples(config: RunConfig) -> int:
    """Samples that one process draws in an iteration."""
    turns = len(_chosen(config)) if config.rollout.mode == "branch" else 1
    return config.grpo.groups // config.compute.processes * config.grpo.group_size * turns


def _states(config: RunConfig) -> int:
    """States of one stochastic step, each of which is a row of an update."""
    branches = config.rollout.mode == "branch"
    return config.grpo.groups // config.compute.processes * (1 if branches else config.grpo.group_size)


def _chosen(config: RunConfig) -> tuple[int, ...]:
    """The steps at which an iteration branches."""
    rollout = config.rollout
    return {"drawn": (0,), "every": config.training_steps, "chosen": rollout.chosen_steps}[rollout.branch_at]
