"""What a sweep varies: its settings, the axes of its space, and whether they make sense. Runs nothing."""

import itertools
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from workbench.config import configure, validated
from workbench.exact_json import to_json
from workbench.experiments.queue import LANE
from workbench.experiments.work import Work, checked
from workbench.settings import Settings

MOST_POINTS = 1000


class Range(Settings):
    """Numbers from `low` to `high`, both included; with `step` or `count` only some of them."""

    low: int | float = Field(description="smallest value")
    high: int | float = Field(description="largest value")
    log: bool = Field(False, description="even in the logarithm")
    step: int | float | None = Field(None, gt=0, description="distance of neighbouring values")
    count: int | None = Field(None, ge=2, le=MOST_POINTS, description="how many values, evenly spaced")

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"a range goes from a smaller to a larger number, not from {self.low} to {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above 0, not at {self.low}")
        if self.step is not None and (self.log or self.count):
            raise ValueError("a range has a step, or a count, or is logarithmic with or without a count")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError(f"step {self.step} is longer than the range from {self.low} to {self.high}")
        return self

    def values(self, whole: bool) -> tuple[int | float, ...] | None:
        """Each value of a range that has a step or a count; None where there are endlessly many."""
        if self.step is not None:
            number = int((self.high - self.low) / self.step + 1e-9) + 1
            found = self.low + self.step * np.arange(number)
        elif self.count is not None:
            found = (np.geomspace if self.log else np.linspace)(self.low, self.high, self.count)
        else:
            return None
        if whole:
            return tuple(dict.fromkeys(int(value) for value in np.rint(found)))
        return tuple(float(f"{value:.6g}") for value in found)


def read_axis(text: str) -> "tuple[Any, ...] | Range":
    """An axis as people type it: choices as in `0,0.5,1`, or a range as in `1e-4..1e-2:log`, `0..1:step=0.25` or `8..64:log:4`.

    Raises: ValueError: where it is neither.
    """
    found = re.fullmatch(r"\s*([^:,\[]+?)\s*\.\.\s*([^:,\[]+?)\s*((?::[^:]*)*)", text)
    if not found:
        return tuple(_read(part) for part in _split(text))
    values: dict[str, Any] = {"low": _read(found[1]), "high": _read(found[2])}
    for word in filter(None, (word.strip() for word in found[3].split(":"))):
        if word == "log":
            values["log"] = True
        elif word.isdecimal():
            values["count"] = int(word)
        elif word.startswith("step="):
            values["step"] = _read(word.removeprefix("step="))
        else:
            raise ValueError(f"{text!r}: after the range comes log, step=NUMBER or how many values, as in 1e-4..1e-2:log:5")
    return validated(Range, values)


def _split(text: str) -> Iterator[str]:
    """The parts between commas that are not within brackets."""
    depth, part = 0, ""
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and not depth:
            yield part
            part = ""
        else:
            part += sign
    yield part


def _read(text: str) -> Any:
    """A number, a truth value, a list, or the text itself."""
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if text.startswith("[") and text.endswith("]"):
        return [_read(part) for part in _split(text[1:-1])] if text[1:-1].strip() else []
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _axis(value: Any) -> Any:
    """An axis from its JSON form or from text; choices become a tuple without repetitions."""
    if isinstance(value, str):
        value = read_axis(value)
    if isinstance(value, Mapping):
        return validated(Range, value)
    if isinstance(value, Range) or not isinstance(value, Sequence):
        return value
    choices = tuple(value)
    if not choices or "" in choices:
        raise ValueError("give at least one choice, and none that is empty")
    if repeated := [choice for i, choice in enumerate(choices) if choice in choices[:i]]:
        raise ValueError(f"the choice {repeated[0]!r} is given twice")
    return choices


Choice = bool | int | float | str | list[Any] | None
Axis = Annotated[tuple[Choice, ...] | Range, BeforeValidator(_axis)]


class Target(Settings):
    """What is run at each point: a preset with changes, or a notebook with parameters."""

    preset: str | None = Field(None, description="ready-made configuration of a training run")
    changes: dict[str, Any] = Field(default_factory=dict, description="settings of the preset that all points share")
    notebook: str | None = Field(None, description="name of a notebook")
    parameters: dict[str, Any] = Field(default_factory=dict, description="parameters of the notebook that all points share")
    sha256: str | None = Field(None, description="digest of the notebook's file, which all points share; empty: as it is now")

    @model_validator(mode="after")
    def _is_one_thing(self) -> "Target":
        if (self.preset is None) == (self.notebook is None):
            raise ValueError("a sweep is over one preset or one notebook; name one of them")
        if (self.preset is None and self.changes) or (self.notebook is None and self.parameters):
            raise ValueError("a preset has changes, a notebook has parameters")
        return self

    @property
    def name(self) -> str:
        return self.preset or self.notebook or ""

    @property
    def kind(self) -> Literal["train", "notebook"]:
        return "train" if self.preset is not None else "notebook"

    @property
    def fixed(self) -> dict[str, Any]:
        return self.changes if self.preset is not None else self.parameters

    def config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The complete settings of one run. Raises: ValueError: one line for each mistake."""
        if self.preset is not None:
            config = configure(self.preset, self.changes | dict(values)).model_dump(mode="json")
        else:
            config = {"notebook": self.notebook, "parameters": self.parameters | dict(values), "sha256": self.sha256}
        return checked(self.kind, config)[0]

    def command(self, values: Mapping[str, Any]) -> str:
        """What to type for one such run by itself."""
        given = [f"{key}={_typed(value)}" for key, value in (self.fixed | dict(values)).items()]
        start = ["train", "--preset", self.preset] if self.preset is not None else ["notebook", "run", self.name]
        option = "--set" if self.preset is not None else "-p"
        return shlex.join(["python", "-m", "workbench", *start, *(word for pair in given for word in (option, pair))])


class SweepSettings(Settings):
    """Everything that a sweep depends on. A point is one choice of values; it has one run for each seed."""

    title: str = Field("", max_length=200, description="name shown on the page; empty for one made of the space")
    target: Target = Field(description="what is run at each point")
    space: dict[str, Axis] = Field(min_length=1, description="values of each setting or parameter that is varied")
    search: Literal["grid", "random", "tpe"] = Field(
        "grid", description="grid: all points; random: some, drawn evenly; tpe: some, drawn where earlier ones were good"
    )
    points: int | None = Field(None, ge=1, le=MOST_POINTS, description="how many points random and tpe try")
    seeds: int | tuple[int, ...] = Field(
        1, description="runs of each point, which give its error bar; or their seeds. One run keeps the seed of the target"
    )
    metric: str = Field("reward", min_length=1, description="curve that is compared, such as held_out/shapes_exact@4")
    direction: Literal["max", "min"] = Field("max", description="whether more of it is better, or less")
    value: Literal["last", "best", "mean"] = Field("last", description="which value of the curve counts; mean: of the last ones")
    window: int = Field(10, ge=1, description="how many values `mean` takes")
    pruning: Literal["none", "halving", "median"] = Field(
        "none",
        description="whether poor points end early, judged by their first seed; the other seeds follow where it has lasted. "
        "halving: at each rung one in `reduction` goes on; median: those above the median of the finished points",
    )
    pruning_metric: str = Field("", description="curve that they are judged by; empty for the one that is compared")
    min_iterations: int | None = Field(
        None, ge=1, description="iterations before the first judgement; empty for iterations / reduction^2"
    )
    reduction: int = Field(3, ge=2, le=16, description="one point in so many goes on, for so many times the iterations")
    parallel: int = Field(1, ge=1, le=256, description="runs that wait in the queue or go on at once")
    timeout: float | None = Field(None, gt=0, description="seconds that one attempt at a run may take; empty for no limit")
    retries: int = Field(0, ge=0, le=20, description="more attempts at a run after a failure")
    lane: str = Field(LANE, description="which kind of executor begins the runs")
    search_seed: int = Field(0, ge=0, description="what random and tpe draw follows from it")

    @model_validator(mode="after")
    def _agrees(self) -> "SweepSettings":
        if both := [key for key in self.space if key in self.target.fixed]:
            raise ValueError(f"{both[0]} is both fixed and varied; leave out one of them")
        if isinstance(self.seeds, int):
            if not 1 <= self.seeds <= 100:
                raise ValueError(f"seeds = {self.seeds}: a point has from 1 to 100 runs")
        elif not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)}: give different numbers of at least 0")
        if self.seeds != 1 and "seed" in (*self.space, *self.target.fixed):
            raise ValueError("several seeds for each point need the setting 'seed' for themselves; leave it out elsewhere")
        if self.search == "grid" and self.points is not None:
            raise ValueError(f"a grid has all its points; points = {self.points} goes with the searches random and tpe")
        if self.search != "grid" and self.points is None:
            raise ValueError(f"the search {self.search} needs to know how many points to try; set points")
        return self

    @property
    def run_seeds(self) -> tuple[int | None, ...]:
        """The seeds of a point's runs; None leaves the target's own."""
        if isinstance(self.seeds, tuple):
            return self.seeds
        return (None,) if self.seeds == 1 else tuple(range(self.seeds))

    @property
    def judged_by(self) -> str:
        return self.pruning_metric or self.metric

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is better than `b`."""
        return a > b if self.direction == "max" else a < b

    def pinned(self) -> "SweepSettings":
        """These settings with the notebook as it is now. Raises: ValueError: if there is none of this name."""
        if self.target.notebook is None or self.target.sha256:
            return self
        from workbench.experiments.notebooks import notebook

        target = self.target.model_copy(update={"sha256": notebook(self.target.notebook).sha256})
        return self.model_copy(update={"target": target})

    def work(self, parameters: Mapping[str, Any], seed: int | None) -> Work:
        """One run of a point. Raises: ValueError: if the values do not go together."""
        values = dict(parameters) | ({} if seed is None else {"seed": seed})
        title = ", ".join(f"{key} = {told(value)}" for key, value in parameters.items())
        title += "" if seed is None else f", seed {seed}"
        limits = {"timeout": self.timeout, "retries": self.retries, "lane": self.lane}
        return Work(kind=self.target.kind, config=self.target.config(values), title=title[:200], **limits)


def value_of(curve: Sequence[tuple[int, float]], settings: SweepSettings) -> float:
    """The value of a curve that counts; NaN where there is none.

    Args:
        curve: (iteration, value), in order. What was measured before the first iteration counts only where nothing else was.
    """
    values = [value for iteration, value in curve if iteration > 0] or [value for _, value in curve]
    if not values:
        return math.nan
    if settings.value == "best":
        return (max if settings.direction == "max" else min)((value for value in values if value == value), default=math.nan)
    return values[-1] if settings.value == "last" else sum(values[-settings.window :]) / len(values[-settings.window :])


def told(value: Any) -> str:
    """A value of a setting as people read it."""
    return f"{value:.4g}" if isinstance(value, float) else _typed(value)


def _typed(value: Any) -> str:
    """A value as it is typed on a command line."""
    return value if isinstance(value, str) else to_json(value)


def check_sweep(settings: SweepSettings) -> None:
    """Look at every value of every axis, and at every point of a grid, before anything is run.

    Raises: ValueError: one line for each mistake, naming the setting, the value and what would be accepted.
    """
    axes = resolved_axes(settings)
    if settings.search == "grid":
        points = itertools.product(*(axis for axis in axes.values() if isinstance(axis, tuple)))
        wrong = _mistakes(settings, (dict(zip(axes, point, strict=True)) for point in points))
    else:
        ends = {key: axis if isinstance(axis, tuple) else (axis.low, axis.high) for key, axis in axes.items()}
        wrong = _mistakes(settings, (first_point(ends) | {key: value} for key, values in ends.items() for value in values))
        size = math.prod(_size(settings, key, axis) for key, axis in axes.items())
        if settings.points and settings.points > size:
            raise ValueError(f"points = {settings.points}: the space has only {size}; try them all with the search grid")
    if wrong:
        raise ValueError("\n".join(wrong))
    _check_run_length(settings, first_point(axes))


def number_of_points(settings: SweepSettings) -> int:
    """How many points a sweep will have. Raises: ValueError: as `resolved_axes`."""
    if settings.points is not None:
        return settings.points
    return math.prod(len(axis) for axis in resolved_axes(settings).values() if isinstance(axis, tuple))


def resolved_axes(settings: SweepSettings) -> dict[str, tuple[Any, ...] | Range]:
    """Each axis as the values to choose from, or as a range to draw from.

    Raises: ValueError: where a grid would be endless or too large.
    """
    axes: dict[str, tuple[Any, ...] | Range] = {}
    for key, axis in settings.space.items():
        axes[key] = axis
        if isinstance(axis, Range) and (settings.search == "grid" or axis.count):
            axes[key] = axis.values(is_whole(settings, key, axis)) or axis
    if settings.search == "grid":
        if endless := [key for key, axis in axes.items() if isinstance(axis, Range)]:
            axis = settings.space[endless[0]]
            assert isinstance(axis, Range), "a tuple has an end"
            typed = f"{axis.low:g}..{axis.high:g}{':log' if axis.log else ''}:5"
            raise ValueError(
                f"{endless[0]}: a grid needs to know which values of the range to take, as in {typed} for five of them; "
                "or choose the search random or tpe"
            )
        lengths = [len(axis) for axis in axes.values()]  # type: ignore[arg-type]
        if math.prod(lengths) > MOST_POINTS:
            told = " x ".join(map(str, lengths))
            raise ValueError(
                f"the grid has {told} = {math.prod(lengths)} points, more than {MOST_POINTS}; give fewer values, or choose "
                "the search random or tpe and how many points to try"
            )
    return axes


def _mistakes(settings: SweepSettings, points: Iterator[dict[str, Any]]) -> list[str]:
    """What is wrong with points, each mistake once; at most a few."""
    wrong: dict[str, None] = {}
    for parameters in points:
        try:
            settings.work(parameters, settings.run_seeds[0])
        except ValueError as error:
            wrong |= dict.fromkeys(str(error).splitlines())
        if len(wrong) > 4:
            break
    return list(wrong)


def _check_run_length(settings: SweepSettings, parameters: Mapping[str, Any]) -> None:
    """That a run is long enough to be ended early, and measures what is compared."""
    config = settings.target.config(parameters)
    if settings.target.kind != "train":
        return
    if settings.pruning != "none" and (least := first_judgement(settings, config)) >= config["iterations"]:
        raise ValueError(
            f"min_iterations = {least}: no point would end early, since a run has {config['iterations']} iterations; set fewer"
        )
    counts = {*config["evaluation"]["steps"], config["evaluation"]["sampling_steps"] or config["rollout"]["steps"]}
    for metric in (settings.metric, settings.judged_by):
        found = re.fullmatch(r"held_out/(.+)@(\d+)", metric)
        if found and int(found[2]) not in counts and "evaluation.steps" not in settings.space:
            steps = ", ".join(map(str, sorted(counts)))
            raise ValueError(f"metric {metric!r}: nothing is measured with {found[2]} steps; evaluation.steps has {steps}")


def first_judgement(settings: SweepSettings, config: Mapping[str, Any]) -> int:
    """Iterations before a point may end early, of a run with these settings."""
    length = config.get("parameters", config).get("iterations", 1)
    return settings.min_iterations or max(1, int(length) // settings.reduction**2)


def is_whole(settings: SweepSettings, key: str, axis: Range) -> bool:
    """Whether the setting takes whole numbers only."""
    given = (axis.low, axis.high, axis.low if axis.step is None else axis.step)
    if not all(isinstance(number, int) for number in given):
        return False
    if settings.target.notebook is not None:
        from workbench.experiments.notebooks import notebook

        return any(each.name == key and each.type.startswith("int") for each in notebook(settings.target.notebook).parameters)
    node: Any = settings.target.config(first_point(settings.space))
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return isinstance(node, int)


def first_point(axes: Mapping[str, tuple[Any, ...] | Range]) -> dict[str, Any]:
    """The point where every axis begins."""
    return {key: axis.low if isinstance(axis, Range) else axis[0] for key, axis in axes.items()}


def _size(settings: SweepSettings, key: str, axis: tuple[Any, ...] | Range) -> float:
    """How many values an axis has."""
    if isinstance(axis, tuple):
        return len(axis)
    whole = is_whole(settings, key, axis)
    values = axis.values(whole)
    return len(values) if values else axis.high - axis.low + 1 if whole else math.inf
