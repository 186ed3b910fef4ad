from workbench.contracts import Task
from workbench.tasks.geneval import GenEvalTask
from workbench.tasks.glyphs import GlyphsTask
from workbench.tasks.prompts import PromptsTask
from workbench.tasks.shapes import ShapesTask

TASKS: dict[str, type[Task]] = {"shapes": ShapesTask, "glyphs": GlyphsTask, "prompts": PromptsTask, "geneval": GenEvalTask}
