from workbench.contracts import Reward
from workbench.rewards.aesthetic import Aesthetic
from workbench.rewards.clip_score import CLIPScore
from workbench.rewards.function import Function
from workbench.rewards.geneval import GenEval
from workbench.rewards.glyphs_dense import GlyphsDense
from workbench.rewards.glyphs_exact import GlyphsExact
from workbench.rewards.glyphs_ocr import GlyphsOCR
from workbench.rewards.hps import HPS
from workbench.rewards.image_reward import ImageReward
from workbench.rewards.jpeg import JPEGSize
from workbench.rewards.judge import Judge
from workbench.rewards.ocr import OCR
from workbench.rewards.pickscore import PickScore
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
    "pickscore": PickScore,
    "hps": HPS,
    "clip_score": CLIPScore,
    "aesthetic": Aesthetic,
    "image_reward": ImageReward,
    "geneval": GenEval,
    "ocr": OCR,
    "judge": Judge,
    "function": Function,
    "remote": Remote,
}
