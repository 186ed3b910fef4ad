"""Runs of FLUX.1, which want a GPU and its weights."""

from workbench.models import MODELS
from workbench.objectives.grpo import GRPOObjective
from workbench.samplers.flow_sde import FlowSDESampler
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
        optimizer=OptimizerConfig(beta2=0.999, weight_decay=1e-4),
        evaluation=EvaluationConfig(images=32, final_images=64, group_size=4, judged=32, sampling_steps=28, steps=(28,)),
        record=RecordConfig(groups_shown=4),
        compute=ComputeConfig(precision="bf16", sample_batch=8, train_batch=4),
    ),
}
