"""Ready-made runs by name: those of the embedded generators train anywhere, the others want a GPU and a model's weights."""

from workbench.presets.embedded import EMBEDDED
from workbench.presets.flux import FLUX
from workbench.presets.flux2 import FLUX2
from workbench.presets.sana import SANA
from workbench.presets.sd35 import SD35
from workbench.settings import RunConfig

PRESET_GROUPS: dict[str, dict[str, RunConfig]] = {
    "Anywhere: generators that ship with the workbench, and a random FLUX": EMBEDDED,
    "FLUX.1: a GPU and its weights": FLUX,
    "SANA-Sprint: a GPU and its weights": SANA,
    "Stable Diffusion 3.5: a GPU and its weights": SD35,
    "FLUX.2 Klein: a GPU and its weights": FLUX2,
}
"""The presets as menus show them."""

PRESETS: dict[str, RunConfig] = {name: config for group in PRESET_GROUPS.values() for name, config in group.items()}
