from workbench.contracts import Reward
from workbench.rewards.function import Function
from workbench.rewards.glyphs_dense import GlyphsDense
from workbench.rewards.glyphs_exact import GlyphsExact
from workbench.rewards.glyphs_ocr import GlyphsOCR
from workbench.rewards.jpeg import JPEGSize
from workbench.rewards.judge import Judge
from workbench.rewards.preference import GlyphsPreference
from workbench.rewards.preference_rule import GlyphsRule
from workbench.rewards.remote import Remote
from workbench.rewards.shapes_dense import ShapesDense
from workbench.rewards.shapes_exact import ShapesExact
from workbench.rewards.shapes_fidelity import ShapesFidelity

REWARDS: dict[str, type[Reward]] = {
    "shapes_dense": ShapesDense,
    "shapes_exact": ShapesExact,
    "shapes_fidelity": ShapesFidelity,
    "glyphs_dense": GlyphsDense,
    "glyphs_exact": GlyphsExact,
    "glyphs_ocr": GlyphsOCR,
    "glyphs_preference": GlyphsPreference,
    "glyphs_rule": GlyphsRule,
    "jpeg_size": JPEGSize,
    "judge": Judge,
    "function": Function,
    "remote": Remote,
}
