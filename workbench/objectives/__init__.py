from workbench.contracts import Objective
from workbench.objectives.grpo import GRPOObjective

OBJECTIVES: dict[str, type[Objective]] = {
    "grpo": GRPOObjective,
}
