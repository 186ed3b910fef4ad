"""Runs of Stable Diffusion 3.5 medium, which want a GPU and its weights.

`flow_grpo_*` is Flow-GRPO (arXiv:2505.05470): its SDE with a = 0.7 at every step but the last, 10 steps in training and 40 in
use, 48 groups of 24, guidance 4.5 with the unconditional branch detached, LoRA of rank 32, clip 1e-4. `tempflow_*` is
TempFlow-GRPO (arXiv:2508.04324) on the same: children leave a deterministic trunk at every step, which is their group's seed, and
a step weighs as much as its noise. Its 8 prompts of 9 steps of 16 children are as many pictures an iteration.

Their KL divides by 2 g^2 where ours, the true one, divides by 2 g^2 (t - s): ours is larger by 1 / (t - s), and t - s is a
twelfth on average over the nine stochastic steps of this grid. So their weights 0.01 and 0.04 are 0.00083 and 0.0033 here.

The grid is uniform with the model's shift of 3. Theirs is diffusers' own, which shifts a grid that was shifted before and ends
with a very short step.

An iteration is 1152 pictures, which is work for many GPUs: of `flow_grpo_*` each of 24 (`compute.processes`) has two groups, of
`tempflow_*` each of 8 has one. On one GPU `flow_grpo_*` may take a sixth of the pictures by `grpo.groups` = 8.
"""

from workbench.models.sd3 import SD3Model
from workbench.objectives.grpo import GRPOObjective
from workbench.presets.goals import GOALS
from workbench.rewards import REWARDS
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

STEPS, SHIFT = 10, 3.0
STEP = 0.75 / 9
"""Mean t - s of the nine stochastic steps: from 1 to 0.25, where the last one begins."""


def _aligned(method: str, reward: str, rollout: RolloutConfig, grpo: GRPOConfig, objective: GRPOObjective) -> RunConfig:
    goal = GOALS[reward]
    return RunConfig(
        title=f"Align SD3.5 with {method}: {goal.about}",
        iterations=600,
        task=goal.task,
        model=SD3Model(guidance=4.5, max_tokens=128),
        sampler=FlowSDESampler(noise=0.7),
        rewards=rewards(**{reward: 1.0}),
        eval_rewards=(EvalReward(reward=REWARDS[goal.judge]()),),
        objective=objective.model_copy(update={"kl_weight": round(goal.kl_weight * STEP, 5)}),
        rollout=rollout,
        grpo=grpo,
        adapter=AdapterConfig(kind="lora", rank=32, alpha=64.0),
        optimizer=OptimizerConfig(
            learning_rate=3e-4,
            warmup=0,
            final_share=1.0,
            beta2=0.999,
            weight_decay=1e-4,
            ema_decay=0.987,  # theirs is 0.9 every 8 updates
        ),
        evaluation=EvaluationConfig(images=64, final_images=128, group_size=4, judged=64, sampling_steps=40, steps=(10, 40)),
        record=RecordConfig(groups_shown=4),
        compute=ComputeConfig(precision="bf16", sample_batch=24, train_batch=12),
    )


def _flow_grpo(reward: str) -> RunConfig:
    rollout = RolloutConfig(mode="all", steps=STEPS, shift=SHIFT)
    grpo = GRPOConfig(groups=48, group_size=24, advantage_std="global", advantage_clip=5.0)
    return _aligned("Flow-GRPO", reward, rollout, grpo, GRPOObjective(clip_range=1e-4))


def _tempflow(reward: str) -> RunConfig:
    rollout = RolloutConfig(mode="branch", branch_at="every", completion="compose", steps=STEPS, shift=SHIFT)
    grpo = GRPOConfig(groups=8, group_size=16, advantage_std="global", advantage_clip=5.0)
    return _aligned("TempFlow-GRPO", reward, rollout, grpo, GRPOObjective(clip_range=1e-4, step_weights="noise"))


SD35: dict[str, RunConfig] = {
    **{f"flow_grpo_sd35_{reward}": _flow_grpo(reward) for reward in GOALS},
    **{f"tempflow_sd35_{reward}": _tempflow(reward) for reward in GOALS},
}
