import logging

from workbench.contracts import Model
from workbench.models.flow_match import FlowMatchModel
from workbench.models.flux import FluxModel
from workbench.models.flux2 import Flux2KleinModel
from workbench.models.flux_meanflow import FluxMeanFlowModel
from workbench.models.flux_scm import FluxConsistencyModel
from workbench.models.glyphs import GlyphsModel
from workbench.models.sana import SanaModel, SanaSprintModel
from workbench.models.sd3 import SD3Model
from workbench.models.shapes import ShapesModel
from workbench.models.shapes_cm import ShapesConsistencyModel
from workbench.models.shapes_fm import ShapesVelocityModel

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # diffusers and peft load it, and it tells of its kernels

MODELS: dict[str, type[Model]] = {
    "shapes": ShapesModel,
    "shapes_fm": ShapesVelocityModel,
    "shapes_cm": ShapesConsistencyModel,
    "glyphs": GlyphsModel,
    "flux": FluxModel,
    "flux_meanflow": FluxMeanFlowModel,
    "flux_scm": FluxConsistencyModel,
    "sd3": SD3Model,
    "flux2_klein": Flux2KleinModel,
    "sana": SanaModel,
    "sana_sprint": SanaSprintModel,
    "flow_match": FlowMatchModel,
}
