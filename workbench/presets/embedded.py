"""Runs that train on a laptop's CPU: of the generators that ship with the package, and of a FLUX of random weights."""

from workbench.models import MODELS
from workbench.models.flux import FluxModel
from workbench.objectives.grpo import GRPOObjective
from workbench.objectives.nft import NFTObjective
from workbench.rewards import REWARDS
from workbench.rewards.jpeg import JPEGSize
from workbench.samplers import SAMPLERS
from workbench.settings import (
    AdapterConfig,
    EvalReward,
    EvaluationConfig,
    GRPOConfig,
    GuardConfig,
    OptimizerConfig,
    RolloutConfig,
    RunConfig,
    WeightedReward,
    rewards,
)
from workbench.tasks import TASKS

EMBEDDED: dict[str, RunConfig] = {
    "shapes": RunConfig(),
    "shapes_jump": RunConfig(
        title="Align shapes, children completed in one jump",
        rollout=RolloutConfig(completion="jump"),
    ),
    "shapes_all_steps": RunConfig(
        title="Align shapes, every step stochastic",
        rollout=RolloutConfig(mode="all"),
        grpo=GRPOConfig(groups=12, std_floor=0.05),
        optimizer=OptimizerConfig(learning_rate=1.5e-4),
    ),
    "shapes_flow_sde": RunConfig(
        title="Align shapes with Flow-GRPO's SDE",
        sampler=SAMPLERS["flow_sde"](),
        rollout=RolloutConfig(mode="all"),
        grpo=GRPOConfig(groups=12, std_floor=0.05),
        optimizer=OptimizerConfig(learning_rate=1.5e-4),
    ),
    "shapes_cm": RunConfig(
        title="Align a consistency model of the shapes",
        model=MODELS["shapes_cm"](),
        sampler=SAMPLERS["asfmc_endpoint"](),
        rollout=RolloutConfig(mode="all"),
        grpo=GRPOConfig(groups=12, std_floor=0.05),
        optimizer=OptimizerConfig(learning_rate=1.5e-4),
    ),
    "shapes_fm": RunConfig(
        title="Align a velocity model of the shapes, trained with 10 steps and used with 40",
        model=MODELS["shapes_fm"](),
        sampler=SAMPLERS["flow_sde"](),
        rollout=RolloutConfig(mode="all", steps=10),
        grpo=GRPOConfig(groups=12, std_floor=0.05),
        optimizer=OptimizerConfig(learning_rate=1.5e-4),
        evaluation=EvaluationConfig(sampling_steps=40, steps=(4, 10, 20, 40)),
    ),
    "shapes_nft": RunConfig(
        title="Align shapes with DiffusionNFT",
        sampler=SAMPLERS["ode"](),
        objective=NFTObjective(interval_share=0.0, kl_weight=0.0),
        rollout=RolloutConfig(mode="all"),
        grpo=GRPOConfig(groups=16, std_floor=0.05),
        optimizer=OptimizerConfig(learning_rate=8e-4, ema_decay=0.9),
    ),
    "glyphs": RunConfig(
        title="Align spelling",
        iterations=150,
        task=TASKS["glyphs"](),
        model=MODELS["glyphs"](),
        rewards=rewards(glyphs_dense=0.5, glyphs_exact=0.5),
        eval_rewards=(EvalReward(reward=REWARDS["glyphs_rule"]()),),
    ),
    "glyphs_preference": RunConfig(
        title="Align spelling and taste",
        iterations=150,
        task=TASKS["glyphs"](),
        model=MODELS["glyphs"](),
        rewards=rewards(glyphs_dense=0.4, glyphs_exact=0.4, glyphs_preference=0.4),
        eval_rewards=(EvalReward(reward=REWARDS["glyphs_rule"]()),),
    ),
    "glyphs_hacked": RunConfig(
        title="Reward hacking on purpose: a learned taste alone, no KL",
        iterations=100,
        task=TASKS["glyphs"](),
        model=MODELS["glyphs"](),
        rewards=rewards(glyphs_preference=1.0),
        eval_rewards=(EvalReward(reward=REWARDS["glyphs_dense"]()), EvalReward(reward=REWARDS["glyphs_rule"]())),
        objective=GRPOObjective(kl_weight=0.0),
        rollout=RolloutConfig(completion="jump"),
        optimizer=OptimizerConfig(learning_rate=5e-4),
    ),
    "shapes_lora": RunConfig(
        title="Align shapes with LoRA",
        adapter=AdapterConfig(kind="lora"),
        optimizer=OptimizerConfig(learning_rate=5e-4),
    ),
    "shapes_hacked": RunConfig(
        title="Reward hacking on purpose: no KL, no fidelity",
        rewards=rewards(shapes_dense=0.5, shapes_exact=0.5, shapes_fidelity=0.0),
        rollout=RolloutConfig(completion="jump"),
        objective=GRPOObjective(kl_weight=0.0),
        optimizer=OptimizerConfig(learning_rate=5e-4),
    ),
    "flux_tiny": RunConfig(
        title="Try FLUX's way on random weights, which draw nothing",
        iterations=20,
        task=TASKS["prompts"](),
        model=FluxModel(source="tiny:flux", resolution=32, max_tokens=64, dtype="fp32", gradient_checkpointing=False),
        sampler=SAMPLERS["flow_sde"](),
        rewards=(WeightedReward(reward=JPEGSize(wanted="small")),),
        objective=GRPOObjective(kl_weight=0.005),
        rollout=RolloutConfig(steps=4, shift=1.0),
        grpo=GRPOConfig(groups=4, group_size=8),
        optimizer=OptimizerConfig(learning_rate=2e-2, ema_decay=0.5),
        adapter=AdapterConfig(kind="lora", rank=8, alpha=16.0),
        evaluation=EvaluationConfig(every=5, images=32, final_images=32, group_size=4, steps=(4,)),
        guard=GuardConfig(collapse=0.0),
    ),
}
