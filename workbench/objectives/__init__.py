from workbench.contracts import Objective
from workbench.objectives.awm import AWMObjective
from workbench.objectives.dpo import DPOObjective
from workbench.objectives.grpo import GRPOObjective
from workbench.objectives.nft import NFTObjective
from workbench.objectives.reward_weighted import RewardWeightedObjective

OBJECTIVES: dict[str, type[Objective]] = {
    "grpo": GRPOObjective,
    "nft": NFTObjective,
    "awm": AWMObjective,
    "reward_weighted": RewardWeightedObjective,
    "dpo": DPOObjective,
}
