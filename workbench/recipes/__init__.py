from workbench.recipes.base import Recipe
from workbench.recipes.glyphs import GlyphsRecipe
from workbench.recipes.shapes import ShapesConsistencyRecipe, ShapesRecipe, ShapesVelocityRecipe

RECIPES: dict[str, type[Recipe]] = {
    "shapes": ShapesRecipe,
    "shapes_fm": ShapesVelocityRecipe,
    "shapes_cm": ShapesConsistencyRecipe,
    "glyphs": GlyphsRecipe,
}
