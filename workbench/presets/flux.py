"""Runs of FLUX.1, which want a GPU and its weights.

`flux` is Flow-GRPO-Fast on the velocity field (arXiv:2505.05470, arXiv:2507.21802). `flux_meanflow_*` are the protocol of
Flow-Map GRPO for two-time maps (arXiv:2607.00535): its local kernel with d = 0.03 and lambda = 0.7, four stochastic steps on a
grid from 1 to 0.05 and a last one to 0, 512 pixels, guidance 3.5, groups of 24, LoRA of rank 64, clip 1e-4; the weights of the KL
are Flow-GRPO's numbers. The local kernel asks the network twice a step: `sampler.name = asfmc` asks once, and its marginals are
exact at any number of steps. They want a two-time map in `model.source`; `python -m workbench pretrain flux_meanflow` makes one.
`flux_scm_*` are its protocol for consistency maps: the endpoint kernel with lambda = 0.7, on four steps even in TrigFlow's angle.
They want T2I-Distill's sCM (arXiv:2512.13006), or another that was distilled of FLUX, in `model.source`. AdamW is set as in
Flow-GRPO, at a constant rate of 3e-4.
"""

from workbench.contracts import Sampler
from workbench.models import MODELS
from workbench.objectives.grpo import GRPOObjective
from workbench.presets.goals import GOALS
from workbench.rewards import REWARDS
from workbench.samplers.asfmc_endpoint import EndpointSampler
from workbench.samplers.asfmc_local import LocalAnchoredSampler
from workbench.samplers.flow_sde import FlowSDESampler
from workbench.settings import (
    AdapterConfig,
    ComputeConfig,
    EvalReward,
    EvaluationConfig,
    GRPOConfig,
    OptimizerConfig,
    RecordConfig,
    RolloutConfig,
    RunConfig,
    rewards,
)
from workbench.tasks import TASKS

_MAPS: dict[str, tuple[str, Sampler, RolloutConfig, tuple[int, ...]]] = {  # what it is, kernel, rollout, steps of an evaluation
    "flux_meanflow": (
        "a two-time FLUX",
        LocalAnchoredSampler(noise=0.7, distance=0.03),
        RolloutConfig(mode="all", steps=5, grid="linspace", shift=1.0),
        (1, 2, 5, 8),
    ),
    "flux_scm": (
        "a FLUX consistency map",
        EndpointSampler(noise=0.7),
        RolloutConfig(mode="all", steps=4, grid="trigflow", shift=1.0),
        (1, 2, 4),
    ),
}


def _aligned(name: str, reward: str) -> RunConfig:
    """A run of a FLUX that makes jumps on one reward, with a judge of the pictures that it is not trained on."""
    what, sampler, rollout, steps = _MAPS[name]
    goal = GOALS[reward]
    return RunConfig(
        title=f"Align {what} with Flow-Map GRPO: {goal.about}",
        iterations=300,
        task=goal.task,
        model=MODELS[name](),
        sampler=sampler,
        rewards=rewards(**{reward: 1.0}),
        eval_rewards=(EvalReward(reward=REWARDS[goal.judge]()),),
        objective=GRPOObjective(clip_range=1e-4, kl_weight=goal.kl_weight),
        rollout=rollout,
        grpo=GRPOConfig(groups=8, group_size=24, advantage_clip=5.0),
        adapter=AdapterConfig(kind="lora", rank=64, alpha=128.0),
        optimizer=OptimizerConfig(warmup=0, final_share=1.0, beta2=0.999, weight_decay=1e-4),
        evaluation=EvaluationConfig(images=32, final_images=64, group_size=4, judged=32, steps=steps),
        record=RecordConfig(groups_shown=4),
        compute=ComputeConfig(precision="bf16", sample_batch=8, train_batch=4),
    )


FLUX: dict[str, RunConfig] = {
    "flux": RunConfig(
        title="Align FLUX.1 with LoRA",
        iterations=200,
        task=TASKS["prompts"](),
        model=MODELS["flux"](),
        sampler=FlowSDESampler(noise=0.9),
        rewards=rewards(jpeg_size=1.0),
        objective=GRPOObjective(kl_weight=0.0),
        rollout=RolloutConfig(mode="window", steps=6, window=2, window_moves="jumps", window_until=3, shift=1.9),
        grpo=GRPOConfig(groups=8, group_size=24),
        adapter=AdapterConfig(kind="lora", rank=64, alpha=128.0),
        optimizer=OptimizerConfig(warmup=0, final_share=1.0, beta2=0.999, weight_decay=1e-4),
        evaluation=EvaluationConfig(images=32, final_images=64, group_size=4, judged=32, sampling_steps=28, steps=(28,)),
        record=RecordConfig(groups_shown=4),
        compute=ComputeConfig(precision="bf16", sample_batch=8, train_batch=4),
    ),
    **{f"{name}_{reward}": _aligned(name, reward) for name in _MAPS for reward in GOALS},
}
