"""What a model card says of a run, and what the hub reads at its head; pictures and weights are laid beside it elsewhere."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from workbench import __version__
from workbench.branching import flat
from workbench.health import held_out_reward, judges, verdicts
from workbench.history import History, Recorded
from workbench.models.diffusers_folder import HEAD, HUB, cached_folder
from workbench.models.lora import base_of
from workbench.models.pipeline import PipelineModel
from workbench.provenance import Provenance, read_provenance
from workbench.records import Run, when
from workbench.settings import RunConfig
from workbench.store import Store

_LONGEST = 200  # letters of a setting's value
_WEIGHTED = "reward, weighted sum"
_PATH = re.compile(r"(?<![\w:/.])(?:~|\.{1,2})?/(?:[\w.@+-]+/)*([\w.@+-]+)")
_TRAINED = {"two_time": "two-time flow map", "single_time": "consistency map", "velocity": "velocity field"}


@dataclass(frozen=True)
class Card:
    """What a card tells of. `base` is the base's id on the hub, empty where it is not known; `repo` the name of the folder."""

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


def card_text(card: Card, pairs: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, str]]) -> str:
    """The card in Markdown, with the hub's head.

    Args:
        pairs: `prompt` and `seed`, and the files of the pictures `before` and `after`.
        curves: `title`, `note` and `path` of each picture.
    """
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
        settings={key: _short(value) for key, value in without_places(flat(config.model_dump(mode="json"))).items()},
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


def _head(card: Card, pairs: Sequence[Mapping[str, Any]]) -> Any:
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


def _results(card: Card) -> list[Any]:
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


def _rows(card: Card) -> list[tuple[str, str, str, str, str]]:
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


def _summary(card: Card, rewards: Sequence[str]) -> str:
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


def _use(card: Card, pairs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """How to draw with it: with diffusers, or with the workbench where diffusers has no sampler for the map."""
    config, model = card.config, card.config.model
    prompt = pairs[0]["prompt"] if pairs else (config.prompts or config.task.prompts("held_out"))[0]
    steps = config.sampling_steps
    if isinstance(model, PipelineModel) and model.kind != "two_time":
        dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[model.dtype]
        base = card.repo if card.whole else card.base or "FOLDER_OF_THE_BASE"
        midway = (
            "    intermediate_timesteps=None,\n" if model.kind == "single_time" and steps != 2 else ""
        )  # theirs suits two steps
        lora = "" if card.whole else f'pipe.load_lora_weights("{card.repo}")\n'
        code = (
            f"import torch\nfrom diffusers import DiffusionPipeline\n\n"
            f'pipe = DiffusionPipeline.from_pretrained("{base}", torch_dtype=torch.{dtype}).to("cuda")\n{lora}'
            f"image = pipe(\n    {json.dumps(prompt, ensure_ascii=False)},\n    num_inference_steps={steps},\n"
            f"{midway}    guidance_scale={model.guidance:g},\n    height={model.resolution},\n    width={model.resolution},\n"
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
    settings = "".join(f" \\\n  --set {shlex.quote(each)}" for each in told)
    asked = shlex.quote(" ".join(prompt.split()))
    code = f"python -m workbench sample --preset {_preset(config)}{settings} \\\n  --prompt {asked} --steps {steps}"
    return {"sentence": "With Flow-Map Workbench, where FOLDER is a copy of this one:", "language": "bash", "code": code}


def _preset(config: RunConfig) -> str:
    """A ready-made run of this model."""
    from workbench.presets import PRESETS

    return next((name for name, preset in PRESETS.items() if preset.model.name == config.model.name), "shapes")


def _facts(card: Card) -> list[tuple[str, str]]:
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


def _base_in_words(card: Card) -> str:
    found = base_of(card.config.model)
    return f"{card.base or found.name}, weights {found.digest[:12]}" if found.digest else card.base or found.name


def _last_driver(card: Card) -> Provenance | None:
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


def _short(value: Any) -> str:
    """A value as a cell of a table: of long lists, such as prompts, only the beginning."""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def _words(name: str) -> str:
    return name.replace("_", " ")


def slug(title: str) -> str:
    """A title as the name of a repository."""
    return re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.")[:80] or "aligned"


def _plain(text: str) -> str:
    """Text of people that means nothing else in Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]#])", r"\\\1", escape(text, quote=True).replace("&#x27;", "'"))
