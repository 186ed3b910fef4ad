"""Frozen records of what a run reports. Their tensors are detached, on the CPU and small: previews, never latents."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor  # not loaded: a process that only watches runs needs none of it

Level = Literal["green", "amber", "red"]


@dataclass(frozen=True)
class Progress:
    """Work inside an iteration, for progress bars; never recorded."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Started:
    """A run begins, or begins again at `iteration` after a resume; everything recorded past it is superseded."""

    iteration: int
    facts: dict[str, Any]  # device, processes, trainable parameters, ...


@dataclass(frozen=True)
class Check:
    """One question that preflight answers, with a sentence for people."""

    name: str
    level: Level
    sentence: str
    value: float | None = None


@dataclass(frozen=True)
class PreflightDone:
    iteration: int
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Preview:
    """Images worth keeping, uint8 [n, 3, H, W], in the order of whatever lists accompany them."""

    images: "Tensor"


@dataclass(frozen=True)
class GroupsScored:
    """The rollouts of one iteration; samples of one prompt are contiguous.

    Per-sample lists have P * G entries. `log_probs` is the mean over dimensions, one list per stochastic step taken.
    """

    iteration: int
    prompts: tuple[str, ...]  # [P]
    group_size: int
    seeds: tuple[int, ...]
    rewards: tuple[float, ...]
    parts: dict[str, tuple[float, ...]]  # each reward by name, before weighting
    advantages: tuple[float, ...]
    steps: tuple[int, ...]  # indices of the stochastic steps that are trained
    log_probs: tuple[tuple[float | None, ...], ...]  # [steps][P * G]; None where a sample took no part in the step
    noise_std: tuple[float, ...]  # [steps], data units
    groups_shown: tuple[int, ...]  # indices into prompts
    preview: Preview  # [len(groups_shown) * G] images, group after group


@dataclass(frozen=True)
class IterationDone:
    """One policy update is finished. `metrics` holds every number, by name."""

    iteration: int  # 1 after the first update
    metrics: dict[str, float]
    seconds: float
    ratios: tuple[tuple[float | None, ...], ...] = ()
    """[steps][P * G], as the log_probs of its groups: policy ratios in the last epoch; none with one epoch, where all are 1."""


@dataclass(frozen=True)
class Measure:
    """One figure of an evaluation with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluated:
    """Held-out evaluation with the deterministic sampler and averaged weights.

    `measures[steps][name]`; names are the rewards, the task's statistics, `diversity`, `distance_to_base`, ...
    """

    iteration: int
    measures: dict[int, dict[str, Measure]]
    images: int  # how many were scored for each number of steps
    prompts: tuple[str, ...]  # of the preview
    seeds: tuple[int, ...]
    preview: Preview
    breakdown: dict[str, Measure] = field(default_factory=dict)  # success by skill, where the task names skills


@dataclass(frozen=True)
class Sampled:
    """Images asked for while the run goes on; recorded beside the evaluations."""

    iteration: int
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    preview: Preview


@dataclass(frozen=True)
class CheckpointReady:
    """The whole state of a run after `iteration`; whoever drives the run writes it to disk.

    `tensors` maps a file stem ("policy", "ema", "optimizer") to named tensors; `state` is JSON. The tensors are live: write
    them before the next event is asked for.
    """

    iteration: int
    tensors: "dict[str, dict[str, Tensor]]"
    state: dict[str, Any]


@dataclass(frozen=True)
class Changed:
    """Settings that hold from the next iteration on, by dotted key."""

    iteration: int  # after which they changed
    changes: dict[str, Any]


@dataclass(frozen=True)
class Reported:
    """Numbers that a notebook reports of its own accord, by name; the last ones are its result."""

    iteration: int  # of the training they belong to; 0 where there was none
    metrics: dict[str, float]


@dataclass(frozen=True)
class Finished:
    iteration: int
    summary: dict[str, Any]


Event = (
    Progress
    | Started
    | PreflightDone
    | GroupsScored
    | IterationDone
    | Evaluated
    | Sampled
    | Changed
    | CheckpointReady
    | Reported
    | Finished
)


@dataclass
class Controls:
    """Wishes of whoever drives a run; read at the next iteration boundary, where all but `stop` are cleared."""

    stop: bool = False
    save: bool = False
    sample: bool = False
    changes: dict[str, Any] = field(default_factory=dict)  # settings by dotted key, as `config.change_live` takes them
