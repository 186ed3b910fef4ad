"""Runs of SANA-Sprint, which want a GPU and its weights.

Flow-Map GRPO's protocol for maps that only reach the data (arXiv:2607.00535): the endpoint kernel with lambda 0.7, LoRA of rank
64, groups of 24, clip 1e-4. The grid is SANA-Sprint's own (arXiv:2503.09641), the KL weights are Flow-GRPO's (arXiv:2505.05470),
and so is AdamW at a constant rate of 3e-4. One GPU takes 8 prompts an iteration; papers take about 48, over many.

SANA's linear attention multiplies in float32 in its own pipeline; under `compute.precision` = bf16 it multiplies in bf16, as all
else does. With "no" it stays in float32, as do the adapters, while the base is bf16 by `model.dtype` all the same.
"""

from workbench.models.sana import SanaSprintModel
from workbench.objectives.grpo import GRPOObjective
from workbench.presets.goals import GOALS
from workbench.rewards import REWARDS
from workbench.samplers.asfmc_endpoint import EndpointSampler
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


def _aligned(reward: str) -> RunConfig:
    """A run on one reward, with a judge of the pictures that it is not trained on."""
    goal = GOALS[reward]
    return RunConfig(
        title=f"Align SANA-Sprint with Flow-Map GRPO: {goal.about}",
        iterations=300,
        task=goal.task,
        model=SanaSprintModel(),
        sampler=EndpointSampler(noise=0.7),
        rewards=rewards(**{reward: 1.0}),
        eval_rewards=(EvalReward(reward=REWARDS[goal.judge]()),),
        objective=GRPOObjective(clip_range=1e-4, kl_weight=goal.kl_weight),
        rollout=RolloutConfig(mode="all", steps=4, grid="trigflow", shift=1.0),
        grpo=GRPOConfig(groups=8, group_size=24, advantage_clip=5.0),
        adapter=AdapterConfig(kind="lora", rank=64, alpha=128.0),
        optimizer=OptimizerConfig(warmup=0, final_share=1.0, beta2=0.999, weight_decay=1e-4),
        evaluation=EvaluationConfig(images=64, final_images=128, group_size=4, judged=64, steps=(1, 2, 4)),
        record=RecordConfig(groups_shown=4),
        compute=ComputeConfig(precision="bf16", sample_batch=24, train_batch=12),
    )


SANA: dict[str, RunConfig] = {f"sana_sprint_{reward}": _aligned(reward) for reward in GOALS}
