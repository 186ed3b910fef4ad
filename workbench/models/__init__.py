from workbench.contracts import Model
from workbench.models.shapes import ShapesModel

MODELS: dict[str, type[Model]] = {"shapes": ShapesModel}
