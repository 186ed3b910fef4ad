"""Runs of SANA-Sprint, which want a GPU and its weights.

Flow-Map GRPO's protocol for maps that only reach the data (arXiv:2607.00535): the endpoint kernel with lambda 0.7, LoRA of rank
64, groups of 24, clip 1e-4. The grid is SANA-Sprint's own (arXiv:2503.09641), the KL weights are Flow-GRPO's (arXiv:2505.05470).
"""

from workbench.models import MODELS
from workbench.objectives.grpo import GRPOObjective
from workbench.samplers.asfmc_endpoint import EndpointSampler
from workbench.settings import (
    AdapterConfig,
    ComputeConfig,
    EvaluationConfig,
    GRPOConfig,
    OptimizerConfig,
    RecordConfig,
    RolloutConfig,
    RunConfig,
    rewards,
)
from workbench.tasks import TASKS


def _aligned(title: str, task: str, reward: str, kl_weight: float) -> RunConfig:
    return RunConfig(
        title=title,
        iterations=300,
        task=TASKS[task](),
        model=MODELS["sana_sprint"](),
        sampler=EndpointSampler(noise=0.7),
        rewards=rewards(**{reward: 1.0}),
        objective=GRPOObjective(clip_range=1e-4, kl_weight=kl_weight),
        rollout=RolloutConfig(mode="all", steps=4, grid="trigflow", shift=1.0),
        grpo=GRPOConfig(groups=8, group_size=24, advantage_clip=5.0),
        adapter=AdapterConfig(kind="lora", rank=64, alpha=128.0),
        optimizer=OptimizerConfig(beta2=0.999, weight_decay=1e-4),
        evaluation=EvaluationConfig(images=32, final_images=64, group_size=4, judged=32, steps=(1, 2, 4)),
        record=RecordConfig(groups_shown=4),
        compute=ComputeConfig(precision="bf16", sample_batch=24, train_batch=12),
    )


SANA: dict[str, RunConfig] = {
    "sana_sprint_pickscore": _aligned("Align SANA-Sprint with people's taste", "prompts", "jpeg_size", 0.01),
}
