"""Ready-made runs by name: those of the embedded generators train anywhere, the others want a GPU and a model's weights."""

from workbench.presets.embedded import EMBEDDED
from workbench.presets.flux import FLUX
from workbench.settings import RunConfig

PRESETS: dict[str, RunConfig] = {**EMBEDDED, **FLUX}
