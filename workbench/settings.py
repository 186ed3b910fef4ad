"""A run's whole configuration as one frozen object, in groups whose fields carry range, unit and help."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workbench.contracts import Extension
from workbench.flow import time_grid
from workbench.models import MODELS
from workbench.models.lora import lora_file
from workbench.objectives import OBJECTIVES
from workbench.rewards import REWARDS
from workbench.rules import check_adapter, check_domain, check_maps, check_noise, check_processes, check_rollout
from workbench.samplers import SAMPLERS
from workbench.tasks import TASKS

TITLE_LENGTH = 200
"""Most characters of a run's title."""


def _choice(registry: Mapping[str, type[Extension]]) -> Any:
    """The union of a registry's classes, told apart by `name`."""
    members = tuple(registry.values())
    return members[0] if len(members) == 1 else Annotated[Union[members], Field(discriminator="name")]  # noqa: UP007


def _when(**settings: str | tuple[str, ...]) -> dict[str, Any]:
    """That a setting matters only where others of its group have one of these values; a form hides it elsewhere."""
    return {"when": {name: [value] if isinstance(value, str) else list(value) for name, value in settings.items()}}


class Settings(BaseModel):
    """A frozen, closed group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WeightedReward(Settings):
    reward: _choice(REWARDS) = Field(description="what is scored")  # type: ignore[valid-type]
    weight: float = Field(1.0, description="its share in the sum that is trained on")


class EvalReward(Settings):
    reward: _choice(REWARDS) = Field(description="what judges held-out images")  # type: ignore[valid-type]


class RolloutConfig(Settings):
    """How samples are drawn for training."""

    steps: int = Field(4, ge=2, le=64, description="steps of a rollout; the last one is deterministic and never trained")
    grid: Literal["uniform", "linspace", "log_snr", "trigflow", "custom"] = Field(
        "uniform",
        description="how times are spaced before the shift; linspace: 1 to 0.05, then 0 (Flow-Map GRPO), and "
        "uniform at other numbers of steps; log_snr: evenly in log noise-to-signal; trigflow: evenly in the angle arctan k "
        "(SANA-Sprint); custom: `times`",
    )
    shift: float = Field(4.0, ge=1, le=12, description="shift of the time grid toward noise; 1 leaves it")
    times: tuple[float, ...] = Field(
        (),
        description="the grid `custom`, from 1 down to 0, `steps` + 1 numbers; not shifted",
        json_schema_extra=_when(grid="custom"),
    )
    mode: Literal["branch", "all", "window", "tree"] = Field(
        "branch",
        description="where a rollout is stochastic. branch: children leave a deterministic trunk and share one mean; all: "
        "trajectories, every step but the last; window: trajectories, some consecutive steps; tree: nodes split",
    )
    branch_at: Literal["drawn", "every", "chosen"] = Field(
        "drawn",
        description="where children leave the trunk. drawn: one step an iteration, where the reward varies most; every: "
        "every step, a group for each; chosen: at `chosen_steps`",
        json_schema_extra=_when(mode="branch"),
    )
    chosen_steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (),
        description="steps, counted from 0, at which `chosen` branches or a tree splits; a tree without any splits at all",
        json_schema_extra=_when(mode=("branch", "tree")),
    )
    window: int = Field(2, ge=1, description="stochastic steps of a window", json_schema_extra=_when(mode="window"))
    window_moves: Literal["slides", "jumps"] = Field(
        "slides",
        description="slides: one step later every `window_every` iterations (MixGRPO); jumps: drawn at every iteration",
        json_schema_extra=_when(mode="window"),
    )
    window_every: int = Field(
        25,
        ge=1,
        description="iterations between two moves of a sliding window",
        json_schema_extra=_when(mode="window", window_moves="slides"),
    )
    window_until: int = Field(
        0,
        ge=0,
        description="a jumping window stays within this many first steps (Flow-GRPO-Fast); 0 lets it go anywhere",
        json_schema_extra=_when(mode="window", window_moves="jumps"),
    )
    completion: Literal["jump", "compose"] = Field(
        "compose",
        description="how a branched child reaches the data: step by step, as deployed, or in one cheaper jump",
        json_schema_extra=_when(mode=("branch", "tree")),
    )
    antithetic: bool = Field(
        True,
        description="draw branching noise in pairs (xi, -xi), which removes the even part of the variance",
        json_schema_extra=_when(mode=("branch", "tree")),
    )
    shared_noise: bool = Field(
        False,
        description="all samples of a group start from one initial noise (seed groups); branching always does",
        json_schema_extra=_when(mode=("all", "window")),
    )

    def grid_of(self, steps: int) -> tuple[float, ...]:
        """The grid with that many steps.

        `custom` is only known for the rollout's own number, and `linspace` is only meant for it: with two steps it would make one
        and a very short one. Elsewhere they are uniform and shifted.
        """
        if self.grid in ("custom", "linspace") and steps != self.steps:
            return time_grid(steps, self.shift)
        return self.times if self.grid == "custom" else time_grid(steps, self.shift, self.grid)


class GRPOConfig(Settings):
    """Groups, and how their samples are compared."""

    groups: int = Field(64, ge=1, description="prompts per iteration, over all processes")
    group_size: int = Field(8, ge=2, description="samples that are compared with one another, at least 2: one teaches nothing")
    epochs: int = Field(1, ge=1, le=16, description="passes over one batch of rollouts")
    advantage_std: Literal["group", "global"] = Field("group", description="whose spread the advantage is divided by")
    std_floor: float = Field(1e-4, ge=0, description="added to that spread, so that near-constant groups are not amplified")
    advantage_clip: float = Field(5.0, gt=0, description="largest absolute advantage")
    combine: Literal["sum", "gdpo"] = Field(
        "sum",
        description="several rewards: sum, then compare; or gdpo: compare each by itself, then sum, so that none drowns another",
    )


class OptimizerConfig(Settings):
    """AdamW and the averaging of weights."""

    learning_rate: float = Field(3e-4, gt=0, le=1, description="step size after warm-up")
    warmup: int = Field(5, ge=0, description="iterations of linear warm-up")
    final_share: float = Field(0.1, ge=0, le=1, description="share of the learning rate left at the end, falling linearly")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's average")
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the squared gradient's average")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    ema_decay: float = Field(0.95, ge=0, lt=1, description="decay of the averaged weights; 0 evaluates the raw policy")


class AdapterConfig(Settings):
    """What is trained: all weights, or low-rank adapters on them."""

    kind: Literal["full", "lora"] = Field(
        "full", description="full: every weight, with a second copy as reference; lora: adapters"
    )
    rank: int = Field(16, ge=1, le=512, description="rank of the adapters")
    alpha: float = Field(32.0, gt=0, description="scale of the adapters, applied as alpha / rank")
    start: str = Field(
        "",
        description="LoRA to begin from, of the same base and rank: a file that diffusers or peft wrote, or its folder; the "
        "layers that it adapts are those that are trained",
        json_schema_extra=_when(kind="lora"),
    )
    reference: Literal["start", "base"] = Field(
        "start",
        description="what the KL holds a policy to that begins from a LoRA. start: that LoRA; base: the model without it",
        json_schema_extra=_when(kind="lora"),
    )
    other_base: bool = Field(
        False,
        description="begin from a LoRA even where it was trained on other weights of the same shape",
        json_schema_extra=_when(kind="lora"),
    )

    def weight_files(self) -> tuple[Path, ...]:
        """The LoRA that training begins from, where it is here."""
        try:
            return (lora_file(self.start),) if self.start else ()
        except ValueError:
            return ()


class EvaluationConfig(Settings):
    """Held-out prompts, deterministic sampler, averaged weights."""

    every: int = Field(20, ge=1, description="iterations between evaluations")
    images: int = Field(256, ge=8, description="images at each evaluation during training")
    final_images: int = Field(512, ge=8, description="images before the first and after the last update")
    judged: int = Field(64, ge=8, description="images of each evaluation that `eval_rewards` judge, which may be slow")
    group_size: int = Field(8, ge=2, description="samples per prompt, over which diversity is measured")
    steps: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        (1, 2, 4, 8), min_length=1, description="sampling steps reported before and after; during training only the rollout's"
    )
    sampling_steps: int = Field(
        0, ge=0, le=64, description="steps of the samples that count, where not a rollout's (denoising reduction); 0: as many"
    )
    seed: int = Field(20_000, description="seed of the evaluation noise, the same before, during and after")
    preview: int = Field(24, ge=1, le=256, description="images kept of each evaluation")


class GuardConfig(Settings):
    """When a run pauses by itself, keeping its last good checkpoint."""

    max_kl: float = Field(10.0, gt=0, description="pause when the mean KL to the reference exceeds this (per dimension)")
    collapse: float = Field(
        0.2, ge=0, le=1, description="pause when the held-out reward falls below this share of the base's; 0 never"
    )
    pause_when_hacked: bool = Field(
        False, description="pause where the training reward begins to rise at the cost of a judge or of the pictures"
    )


class RecordConfig(Settings):
    """What a run leaves behind besides its numbers, which are all kept."""

    groups_shown: int = Field(8, ge=0, le=64, description="groups whose images are kept of each recorded iteration")
    rollouts_every: int = Field(1, ge=1, description="iterations between recorded groups")
    rollouts_kept: int = Field(500, ge=2, description="most group pictures kept; older ones are thinned, first and last stay")
    checkpoint_every: int = Field(25, ge=1, description="iterations between checkpoints")
    checkpoints_kept: int = Field(3, ge=1, description="recent checkpoints kept, besides the first and the best")


class ComputeConfig(Settings):
    """Where and in which portions the work is done; none of it changes the mathematics."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto takes an accelerator where there is one")
    precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="mixed precision of the network; log-probabilities stay float32"
    )
    sample_batch: int = Field(128, ge=1, description="images per forward pass of a rollout")
    train_batch: int = Field(64, ge=1, description="states per forward and backward pass of an update")
    processes: int = Field(1, ge=1, description="processes that train together, one for each GPU; groups divide over them")
    sharding: Literal["none", "fsdp2", "deepspeed"] = Field(
        "none",
        description="who divides the frozen weights among the processes, each of which gathers a block's while it works: with "
        "adapters, for models that one GPU does not hold; deepspeed needs that package",
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0 takes all cores, and in the app all but one")


class RunConfig(Settings):
    """Everything that a run depends on."""

    title: str = Field("Align shapes", max_length=TITLE_LENGTH, description="name shown on the page")
    seed: int = Field(0, ge=0, description="every random number of the run follows from it")
    iterations: int = Field(250, ge=1, description="policy updates")
    task: _choice(TASKS) = Field(default_factory=TASKS["shapes"], description="prompts and domain")  # type: ignore[valid-type]
    model: _choice(MODELS) = Field(default_factory=MODELS["shapes"], description="the generator that is aligned")  # type: ignore[valid-type]
    sampler: _choice(SAMPLERS) = Field(default_factory=SAMPLERS["asfmc"], description="transition kernel of the rollouts")  # type: ignore[valid-type]
    prompts: tuple[str, ...] = Field((), description="prompts to train on; none: all of the task's")
    rewards: tuple[WeightedReward, ...] = Field(
        default_factory=lambda: rewards(shapes_dense=0.5, shapes_exact=0.5, shapes_fidelity=0.2),
        min_length=1,
        description="what is trained on, as a weighted sum",
    )
    eval_rewards: tuple[EvalReward, ...] = Field(
        (), description="what only judges: held-out images are scored by it and nothing is trained on it"
    )
    objective: _choice(OBJECTIVES) = Field(default_factory=OBJECTIVES["grpo"], description="what the policy is trained to do")  # type: ignore[valid-type]
    rollout: RolloutConfig = RolloutConfig()
    grpo: GRPOConfig = GRPOConfig(std_floor=0.05)
    optimizer: OptimizerConfig = OptimizerConfig()
    adapter: AdapterConfig = AdapterConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    guard: GuardConfig = GuardConfig()
    record: RecordConfig = RecordConfig()
    compute: ComputeConfig = ComputeConfig()

    @property
    def sampling_steps(self) -> int:
        """Steps of the samples that count: those of evaluations during training, of the best checkpoint, of the pages."""
        return self.evaluation.sampling_steps or self.rollout.steps

    @property
    def times(self) -> tuple[float, ...]:
        """The rollout's time grid."""
        return self.rollout.grid_of(self.rollout.steps)

    @property
    def training_steps(self) -> tuple[int, ...]:
        """Every step that could be stochastic: all but the last."""
        return tuple(range(self.rollout.steps - 1))

    @model_validator(mode="after")
    def _agrees(self) -> "RunConfig":
        check_domain(self)
        for prompt in self.prompts:
            self.task.check(prompt)
        check_maps(self)
        check_adapter(self)
        check_noise(self)
        check_rollout(self)
        check_processes(self)
        names = [weighted.reward.name for weighted in self.rewards] + [judge.reward.name for judge in self.eval_rewards]
        if len(set(names)) < len(names):
            raise ValueError(f"each reward may appear once among rewards and eval_rewards, got {', '.join(names)}")
        if not any(weighted.weight for weighted in self.rewards):
            raise ValueError("every reward has weight 0; give at least one a weight")
        return self


def rewards(**weights: float) -> tuple[WeightedReward, ...]:
    return tuple(WeightedReward(reward=REWARDS[name](), weight=weight) for name, weight in weights.items())
