"""Runs of FLUX.2 Klein, which want a GPU and its weights.

`precise_flux2_klein` trains by the kernel of Precise (arXiv:2605.23522) with its eta of 1.5, on the grid that the pipeline itself
takes for 10 steps at 512 pixels; learning rate, groups and clip are Flow-GRPO's (arXiv:2505.05470), the rank is its own for FLUX.
The distilled checkpoint takes no guidance, so every velocity is one pass. The weight of the KL is ours.

An iteration is 576 pictures, which is work for several GPUs: with `compute.processes` = 8 each has three groups. On one it takes
eight times as long; `grpo.groups` = 8 asks for a third of the pictures.
"""

from workbench.models.flux2 import Flux2KleinModel, klein_shift
from workbench.objectives.grpo import GRPOObjective
from workbench.rewards import REWARDS
from workbench.samplers.precise import PreciseSampler
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
from workbench.tasks.prompts import PromptsTask

STEPS, SIDE = 10, 512

FLUX2: dict[str, RunConfig] = {
    "precise_flux2_klein": RunConfig(
        title="Align FLUX.2 Klein with people's taste, by Precise",
        iterations=300,
        task=PromptsTask(packaged="general"),
        model=Flux2KleinModel(resolution=SIDE),
        sampler=PreciseSampler(noise=1.5),
        rewards=rewards(pickscore=1.0),
        eval_rewards=(EvalReward(reward=REWARDS["clip_score"]()),),
        objective=GRPOObjective(clip_range=1e-4, kl_weight=0.001),
        rollout=RolloutConfig(mode="all", steps=STEPS, shift=round(klein_shift(SIDE, STEPS), 2)),
        grpo=GRPOConfig(groups=24, group_size=24, advantage_std="global", advantage_clip=5.0),
        adapter=AdapterConfig(kind="lora", rank=64, alpha=128.0),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup=0, final_share=1.0, beta2=0.999, weight_decay=1e-4),
        evaluation=EvaluationConfig(images=64, final_images=128, group_size=4, judged=64, steps=(4, 10)),
        record=RecordConfig(groups_shown=4),
        compute=ComputeConfig(precision="bf16", sample_batch=24, train_batch=12),
    ),
}
