from workbench.contracts import Task
from workbench.tasks.shapes import ShapesTask

TASKS: dict[str, type[Task]] = {"shapes": ShapesTask}
