"""What the published protocols of image generators align them with, one goal for each reward."""

from typing import NamedTuple

from workbench.contracts import Task
from workbench.tasks.geneval import GenEvalTask
from workbench.tasks.prompts import PromptsTask


class Goal(NamedTuple):
    """What a run on a reward is about, its prompts, the reward that judges it in its place, and the weight of the KL."""

    about: str
    task: Task
    judge: str
    kl_weight: float


GOALS: dict[str, Goal] = {
    "pickscore": Goal("people's taste", PromptsTask(packaged="general"), "clip_score", 0.01),
    "ocr": Goal("spelling", PromptsTask(packaged="text"), "pickscore", 0.04),
    "geneval": Goal("objects, counts, colours and places", GenEvalTask(mix="flow_grpo"), "pickscore", 0.04),
}
"""By the name of the reward; the weights are Flow-GRPO's (arXiv:2505.05470)."""
