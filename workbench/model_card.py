"""A run as a folder that is ready for the hub: weights, and a card that says what was done, how it went and how to use it."""

import json
import re
import shutil
import zipfile
from collections.abc import Generator as Stream
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from PIL import Image

from workbench import __version__
from workbench.branching import flat
from workbench.events import CheckpointReady, Progress
from workbench.export import averaged, export_folder, made_of, write_lora, write_weights
from workbench.figures import FIGURES
from workbench.figures.painted import paint
from workbench.health import held_out_reward, judges, verdicts
from workbench.history import History, Recorded
from workbench.merging import merge
from workbench.models.diffusers_folder import HEAD, HUB, cached_folder
from workbench.models.lora import DIFFUSERS, base_of
from workbench.models.pipeline import PipelineModel
from workbench.pictures import read_sprite
from workbench.provenance import Provenance, read_provenance
from workbench.records import Run, when
from workbench.settings import RunConfig
from workbench.store import Store
from workbench.whole_file import whole_folder

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 8
"""Most prompts that are shown before and after."""
SETTINGS = "workbench.json"
"""The file with all settings of the run."""

_CURVES = {
    "reward": "What was trained on, and the same on held-out prompts with its 95 % interval.",
    "steps": "The held-out reward of the base and of this model at each number of sampling steps, with 95 % intervals.",
    "drift": "Measures of the pictures that no reward saw, as times the base's value.",
    "kl": "How far the policy is from what it was held to.",
}
"""The curves of a card, and what is said of each."""

_WEIGHTED = "reward, weighted sum"
_SMALLEST = 256  # pixels of a picture's side; smaller ones are enlarged without smoothing
_PATH = re.compile(r"(?<![\w:/.])(?:~|\.{1,2})?/(?:[\w.@+-]+/)*([\w.@+-]+)")
_TRAINED = {"two_time": "two-time flow map", "single_time": "consistency map", "velocity": "velocity field"}


@dataclass(frozen=True)
class _Card:
    """What a card is made of. `base` is the base's id on the hub, empty where it is not known; `repo` the name of the folder."""

    store: Store
    run: Run
    config: RunConfig
    history: History
    iteration: int  # of the weights
    base: str
    repo: str
    whole: bool  # the weights need no base

    @property
    def measured(self) -> Recorded | None:
        """The latest evaluation, where there was one before it to compare with."""
        return self.history.evaluations[-1] if len(self.history.evaluations) > 1 else None


def write_card(
    store: Store,
    run: str,
    iteration: int | None = None,
    *,
    pipeline: bool = False,
    base: str = "",
    repo: str = "",
    out: Path | None = None,
) -> Stream[Progress, None, Path]:
    """A folder for `hf upload`, there whole or not at all: a card, its pictures, the settings, and the averaged weights.

    Yields progress, returns the folder. Weights are a LoRA where one was trained, else all of them.

    Args:
        iteration: of the checkpoint; the last one without.
        pipeline: a whole pipeline with the adapters merged into it, instead of a LoRA.
        base: id of the base on the hub, where the run was given a folder; by default as its files say.
        repo: id that the folder will have on the hub, for the code that loads it.
        out: where to write it, instead of the run's exports; must not be there yet.
    Raises: ValueError: if the run has no such checkpoint, or its base is wanted and not here; StoreError: if the disk refuses.
    """
    found, checkpoint, config = averaged(store, run, iteration)
    if out is not None and out.exists():
        raise ValueError(f"{out} is there already; name a place where nothing is, or remove it")
    if pipeline and not isinstance(config.model, PipelineModel):
        raise ValueError(f"model {config.model.name!r} is part of no pipeline of diffusers; leave out --pipeline")
    whole = pipeline or config.adapter.kind == "full"
    at = checkpoint.iteration
    history = History().extended(row for row in store.events(found.id) if row.iteration <= at)
    card = _Card(store, found, config, history, at, base or hub_base(config), repo or f"YOUR_NAME/{_slug(found.title)}", whole)
    path = out or export_folder(store, found.id) / f"{found.id}-{at:06d}-card"
    with store.disk(path.absolute().parent), whole_folder(path) as folder:
        yield from _add_weights(folder, card, checkpoint)
        pairs, curves = _add_pictures(folder, card), _add_curves(folder, card)
        settings = {"run": found.id, "iteration": at, "config": without_places(config.model_dump(mode="json"))}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_text(card, pairs, curves), encoding="utf-8")
    return path


def hub_base(config: RunConfig) -> str:
    """The id of the base on the hub, as far as the settings or the base's own files say; else nothing."""
    if not isinstance(config.model, PipelineModel):
        return ""
    source = config.model.source
    if not Path(source).expanduser().is_dir():
        return source if HUB.fullmatch(source) else ""
    folder = cached_folder(source)
    try:
        named = str(json.loads((folder / HEAD).read_text()).get("_name_or_path", "")) if folder else ""
    except (OSError, ValueError):
        return ""
    return named if HUB.fullmatch(named) and not Path(named).exists() else ""


def without_places(value: Any) -> Any:
    """Settings or a command in which a path on this machine is only the name of the file: they are to be read by anybody."""
    if isinstance(value, Mapping):
        return {key: without_places(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(each) for each in value]
    return _PATH.sub(r"\1", value) if isinstance(value, str) else value


# What lies beside the card


def _add_weights(folder: Path, card: _Card, checkpoint: CheckpointReady) -> Stream[Progress, None, None]:
    config, made = card.config, made_of(card.run, card.iteration, card.config)
    if config.model.component and card.whole:
        yield from merge(folder, checkpoint.tensors["ema"], config, made, pipeline=True)
    elif config.model.component:
        write_lora(folder / DIFFUSERS, checkpoint.tensors["ema"], config, made)
    else:
        file = write_weights(card.store, card.run.id, card.iteration)
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                archive.extractall(folder, [name for name in archive.namelist() if name.startswith("adapter_")])
        else:
            shutil.copyfile(file, folder / "model.safetensors")


def _add_pictures(folder: Path, card: _Card) -> list[dict[str, Any]]:
    """The same prompts and seeds before and after, as files; none where the pictures are gone."""
    first, last = card.history.evaluations[:1], card.measured
    if not first or last is None:
        return []
    sides = [_recorded(card, item) for item in (first[0], last)]
    if sides[0] is None or sides[1] is None or first[0].data["seeds"] != last.data["seeds"]:
        return []
    prompts, seeds = last.data["prompts"], last.data["seeds"]
    chosen = {prompt: index for index, prompt in reversed(list(enumerate(prompts[: min(map(len, sides))])))}  # type: ignore[arg-type]
    pairs = []
    (folder / "images").mkdir()
    for number, (prompt, index) in enumerate(sorted(chosen.items(), key=lambda item: item[1])[:SHOWN], 1):
        pair = {"prompt": prompt, "seed": seeds[index]}
        for name, images in zip(("before", "after"), sides, strict=True):
            pair[name] = f"images/{number:02d}-{name}.webp"
            _save(images[index], folder / pair[name])  # type: ignore[index]
        pairs.append(pair)
    return pairs


def _recorded(card: _Card, item: Recorded) -> "Tensor | None":
    preview = item.data["preview"]
    try:
        return read_sprite(card.store.image_path(card.run.id, preview["sprite"]), preview) if preview["sprite"] else None
    except ValueError:
        return None  # a missing file leaves a card without pictures, which is better than none


def _save(image: "Tensor", path: Path) -> None:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    times = -(-_SMALLEST // max(picture.size))
    if times > 1:
        picture = picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    picture.save(path, "WEBP", lossless=times > 1, quality=92)


def _add_curves(folder: Path, card: _Card) -> list[dict[str, str]]:
    curves = []
    for name, note in _CURVES.items():
        figure = FIGURES["train"][name](card.history, card.run.config)
        flat_line = name == "kl" and not any(value for _, value in card.history.metric("kl"))
        if not figure.data or flat_line:
            continue
        path = folder / "curves" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        paint(figure).save(path)
        curves.append({"title": escape(figure.layout.title.text), "path": f"curves/{name}.png", "note": note})
    return curves


# The card


def _text(card: _Card, pairs: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, str]]) -> str:
    config, measured = card.config, card.measured
    names = [weighted.reward.name for weighted in config.rewards if weighted.weight]
    found = verdicts(card.history, card.run.config, card.run.status, card.run.error)
    rows, scored = _rows(card), {_WEIGHTED, *(_words(name) for name in _scored(config))}
    body = _template().render(
        title=_plain(card.run.title),
        summary=_summary(card, names),
        verdicts=found if card.history.evaluations else [],
        pairs=pairs,
        steps=config.sampling_steps,
        measured=measured.iteration if measured else 0,
        reached=card.run.iteration,
        iteration=card.iteration,
        before_is=f"the LoRA that it began from, {_plain(Path(config.adapter.start).name)}"
        if config.adapter.start
        else "the base",
        images=measured.data["images"] if measured else 0,
        use=_use(card, pairs),
        rewarded=(rewarded := [row for row in rows if row[0] in scored]),
        others=(others := [row for row in rows if row not in rewarded]),
        seen_in_words=", ".join(dict.fromkeys(row[0] for row in others)),
        curves=curves,
        facts=_facts(card),
        command=without_places(card.run.command).replace(" --", " \\\n  --"),
        run=card.run.id,
        settings=without_places(flat(config.model_dump(mode="json"))),
        base_page=f"https://huggingface.co/{card.base}" if card.base else "",
        rewards_in_words=_in_words(names),
        several=len(names) > 1,
        trained_at=_trained_at(config),
        task=config.task.name,
        judges=judges(card.run.config),
        version=__version__,
    )
    return f"---\n{_head(card, pairs).to_yaml()}\n---\n\n{body}"


@cache
def _template() -> Any:
    made = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    made.filters |= {"plain": _plain, "cell": lambda value: _plain(str(value)).replace("|", "\\|").replace("\n", " ")}
    return made.from_string((files("workbench") / "card.md").read_text(encoding="utf-8"))


def _head(card: _Card, pairs: Sequence[Mapping[str, Any]]) -> Any:
    """What the hub reads of a card. It names no licence: that of the base holds."""
    from huggingface_hub import ModelCardData

    config, in_pipeline = card.config, isinstance(card.config.model, PipelineModel)
    lora = config.adapter.kind == "lora" and not card.whole
    tags = ["flow-map-workbench", "reinforcement-learning", config.objective.name, config.sampler.name, config.model.name]
    widget = [{"text": pair["prompt"], "output": {"url": pair["after"]}} for pair in pairs]
    more: dict[str, Any] = {"widget": widget} if widget else {}
    if card.base:
        more["base_model_relation"] = "adapter" if lora else "finetune"
    return ModelCardData(
        base_model=card.base or None,
        library_name="diffusers" if in_pipeline else None,
        pipeline_tag="text-to-image",
        tags=[*tags, "flow-map", *(["lora"] if lora else [])],
        model_name=card.run.title,
        eval_results=_results(card) or None,
        **more,
    )


def _results(card: _Card) -> list[Any]:
    """The rewards and judges of the last evaluation, at every number of steps."""
    from huggingface_hub import EvalResult

    if card.measured is None:
        return []
    scored = _scored(card.config)
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type=card.config.task.name,
            dataset_name=f"held-out prompts of {card.config.task.name}",
            metric_type=name,
            metric_name=f"{_words(name)}, {steps} step{'s' * (steps != '1')}",
            metric_value=round(measure["value"], 5),
        )
        for steps, measures in card.measured.data["measures"].items()
        for name, measure in measures.items()
        if name in scored
    ]


def _scored(config: RunConfig) -> set[str]:
    """Names of the figures that are rewards or judges, in an evaluation."""
    return {"reward", *(each.reward.name for each in config.rewards), *(each.reward.name for each in config.eval_rewards)}


def _rows(card: _Card) -> list[tuple[str, str, str, str, str]]:
    """Figure, steps, before, after, change; at every number of steps that both evaluations have."""
    if card.measured is None:
        return []
    first, last = card.history.evaluations[0].data["measures"], card.measured.data["measures"]
    counts = [steps for steps in sorted(last, key=int) if steps in first]
    rows = []
    for steps in counts if "reward" not in next(iter(last.values()), {}) and len(card.config.rewards) > 1 else ():
        points = held_out_reward(card.history, card.run.config, int(steps))
        if len(points) > 1:
            before, after = ({"value": v, "low": low, "high": high} for _, v, low, high in (points[0], points[-1]))
            rows.append((_WEIGHTED, steps, *_interval_pair(before, after)))
    for name in last[counts[0]] if counts else ():
        for steps in counts:
            if name in first[steps] and name in last[steps]:
                rows.append((_words(name), steps, *_interval_pair(first[steps][name], last[steps][name])))
    return rows


def _interval_pair(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[str, str, str]:
    change = after["value"] - before["value"]
    apart = after["low"] > before["high"] or after["high"] < before["low"]
    told = f"{change:+.3g}"
    return _interval(before), _interval(after), f"**{told}**" if apart else told


def _interval(measure: Mapping[str, float]) -> str:
    return f"{measure['value']:.3g}&nbsp;±&nbsp;{(measure['high'] - measure['low']) / 2:.2g}"


def _summary(card: _Card, rewards: Sequence[str]) -> str:
    config = card.config
    known = f"[{card.base}](https://huggingface.co/{card.base})" if card.base else f"the model `{config.model.name}`"
    known += "" if isinstance(config.model, PipelineModel) else " that ships with Flow-Map Workbench"
    what = "A LoRA for" if config.adapter.kind == "lora" and not card.whole else "The weights of"
    length = f"{card.iteration} iteration{'s' * (card.iteration != 1)} of {config.grpo.groups} prompts"
    return (
        f"{what} {known}, a {_TRAINED[config.model.kind]}, aligned by reinforcement learning with {_in_words(rewards)}: "
        f"{length} with {config.grpo.group_size} images each, compared with one another ({config.objective.name.upper()}, "
        f"sampler {config.sampler.name})."
    )


def _use(card: _Card, pairs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """How to draw with it: with diffusers, or with the workbench where diffusers has no sampler for the map."""
    config, model = card.config, card.config.model
    prompt = pairs[0]["prompt"] if pairs else (config.prompts or config.task.prompts("held_out"))[0]
    steps = config.sampling_steps
    if isinstance(model, PipelineModel) and model.kind != "two_time":
        dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[model.dtype]
        base = card.repo if card.whole else card.base or "FOLDER_OF_THE_BASE"
        lora = "" if card.whole else f'pipe.load_lora_weights("{card.repo}")\n'
        code = (
            f"import torch\nfrom diffusers import DiffusionPipeline\n\n"
            f'pipe = DiffusionPipeline.from_pretrained("{base}", torch_dtype=torch.{dtype}).to("cuda")\n{lora}'
            f"image = pipe(\n    {json.dumps(prompt, ensure_ascii=False)},\n    num_inference_steps={steps},\n"
            f"    guidance_scale={model.guidance:g},\n    height={model.resolution},\n    width={model.resolution},\n"
            f'    generator=torch.Generator("cpu").manual_seed(0),\n).images[0]\nimage.save("image.png")'
        )
        return {"sentence": "With [diffusers](https://github.com/huggingface/diffusers):", "language": "python", "code": code}
    told = []
    if isinstance(model, PipelineModel):
        told += ["model.source=FOLDER" if card.whole or not card.base else f"model.source={card.base}"]
    if config.adapter.kind == "lora" and not card.whole:
        told += ["adapter.kind=lora", f"adapter.rank={config.adapter.rank}", "adapter.start=FOLDER"]
    elif not isinstance(model, PipelineModel):
        told += ["model.weights=FOLDER/model.safetensors"]
    settings = "".join(f" \\\n  --set {each}" for each in told)
    code = f"python -m workbench sample --preset {_preset(config)}{settings} \\\n  --prompt {json.dumps(prompt)} --steps {steps}"
    return {"sentence": "With Flow-Map Workbench, where FOLDER is a copy of this one:", "language": "bash", "code": code}


def _preset(config: RunConfig) -> str:
    """A ready-made run of this model."""
    from workbench.presets import PRESETS

    return next((name for name, preset in PRESETS.items() if preset.model.name == config.model.name), "shapes")


def _facts(card: _Card) -> list[tuple[str, str]]:
    config, told = card.config, _last_driver(card)
    weights = ", ".join(f"{each.reward.name} (weight {each.weight:g})" for each in config.rewards)
    judging = ", ".join(each.reward.name for each in config.eval_rewards)
    rollout, grpo, optimizer = config.rollout, config.grpo, config.optimizer
    adapter = f"LoRA, rank {config.adapter.rank}, alpha {config.adapter.alpha:g}"
    if config.adapter.start:
        adapter += f", begun from {Path(config.adapter.start).name}"
    seconds = sum(value for _, value in card.history.seconds)
    facts = [
        ("Base", _base_in_words(card)),
        ("Trained", adapter if config.adapter.kind == "lora" else "all weights of the network"),
        ("Objective", _with_settings(config.objective)),
        ("Sampler", _with_settings(config.sampler)),
        ("Rollouts", f"{rollout.steps} steps, stochastic: {rollout.mode}; evaluated at {config.sampling_steps}"),
        ("Rewards", f"{weights}; combined by {grpo.combine}"),
        ("Judges, not trained on", judging),
        ("Prompts", _prompts(config, told)),
        ("Batch", f"{grpo.groups} prompts x {grpo.group_size} images an iteration, {grpo.epochs} epoch{'s' * (grpo.epochs > 1)}"),
        ("Optimizer", f"AdamW, learning rate {optimizer.learning_rate:g}, weights averaged with decay {optimizer.ema_decay:g}"),
        ("Length", f"{card.iteration} iterations" + (f", {seconds / 3600:.1f} hours of updates" if seconds >= 360 else "")),
        ("Seeds", f"{config.seed}; evaluations {config.evaluation.seed}"),
        ("Run", f"{card.run.id}, begun {when(card.run.created)}"),
    ]
    if told is not None:
        code, machine = told.code, told.machine
        facts += [
            ("Code", f"version {told.version}, commit {code.commit[:12]}" if code.commit else f"version {told.version}"),
            ("Machine", ", ".join(machine.devices) or f"{machine.processor} ({machine.cores} cores)"),
            ("Versions", _versions(told)),
        ]
    return [(label, text) for label, text in facts if text]


def _base_in_words(card: _Card) -> str:
    found = base_of(card.config.model)
    return f"{card.base or found.name}, weights {found.digest[:12]}" if found.digest else card.base or found.name


def _last_driver(card: _Card) -> Provenance | None:
    """What the last process that drove the run said of itself; None where that is not known."""
    try:
        return next(reversed(read_provenance(card.store, card.run.id)), None)
    except ValueError:
        return None


def _prompts(config: RunConfig, told: Provenance | None) -> str:
    own = f"{len(config.prompts)} of its own" if config.prompts else ""
    counted = (
        [f"{each.count} {split.replace('_', ' ')} ({each.sha256[:12]})" for split, each in told.prompts.items()] if told else []
    )
    return f"task {config.task.name}" + "".join(f", {each}" for each in (own, *counted) if each)


def _versions(told: Provenance) -> str:
    named = [
        f"{name} {told.packages[name]}" for name in ("diffusers", "transformers", "peft", "accelerate") if name in told.packages
    ]
    return ", ".join([f"Python {told.machine.python}", f"torch {told.machine.torch}", *named])


def _with_settings(extension: Any) -> str:
    values = {key: value for key, value in extension.model_dump(mode="json").items() if key != "name"}
    return extension.name + (f" ({', '.join(f'{key} {value}' for key, value in values.items())})" if values else "")


def _trained_at(config: RunConfig) -> str:
    steps = f"{config.sampling_steps} sampling step{'s' * (config.sampling_steps != 1)}"
    if not isinstance(config.model, PipelineModel):
        return steps
    return f"{config.model.resolution} pixels, guidance {config.model.guidance:g} and {steps}"


def _in_words(names: Sequence[str]) -> str:
    told = [f"the reward `{names[0]}`"] if len(names) == 1 else [f"`{name}`" for name in names]
    return told[0] if len(told) == 1 else f"the rewards {', '.join(told[:-1])} and {told[-1]}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.")[:80] or "aligned"


def _plain(text: str) -> str:
    """Text of people that means nothing else in Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]#])", r"\\\1", escape(text, quote=True).replace("&#x27;", "'"))
