"""FLUX as a two-time map: MeanFlow distillates of FLUX.1, whose second timestep embedder is told where a jump ends."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn

from workbench.contracts import FlowMapKind
from workbench.models.embedded import time_on
from workbench.models.flux import FluxMap, FluxModel

MAKE = "python -m workbench pretrain flux_meanflow --set source=FOLDER --out FOLDER"
"""The command that makes a two-time map from a FLUX checkpoint."""

ANYFLOW_GATE = 0.25
"""Share of the second embedder in AnyFlow's checkpoints, whose settings do not always say it."""


WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The file of a transformer's weights, where there is one; its name with an ending lists several."""


HEAD_ENTRY = ("diffusers", "FluxTransformer2DModel")
"""The network in a pipeline's head: diffusers takes no class but its own there, and ours where it is passed in its place."""


class FluxMeanFlowMap(FluxMap):
    """A FLUX two-time network with its prompts bound; the network itself says the average velocity."""

    def average_velocity(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        """u(x, t, s), also where s = t; [N, ...], float32."""
        return self._average_velocity(x, t, s)

    def _times(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> dict[str, Tensor]:
        return super()._times(x, t, s) | {"target_timestep": time_on(x, s).expand(len(x))}


class FluxMeanFlowModel(FluxModel):
    """FLUX.1 as a two-time map in a folder: T2I-Distill's kind, which is told t - s, or AnyFlow's, which is told s.

    Which of the two it is, the checkpoint says. `python -m workbench pretrain flux_meanflow` makes one from any FLUX.1.

    Source: MeanFlow (arXiv:2505.13447) on FLUX (arXiv:2512.13006); AnyFlow (arXiv:2605.13724).
    """

    name: Literal["flux_meanflow"] = "flux_meanflow"  # type: ignore[assignment]
    source: str = Field("", description=f"folder of a FluxPipeline with a two-time map, or its id on the hub; made by `{MAKE}`")

    kind: ClassVar[FlowMapKind] = "two_time"

    def found(self) -> Path:
        if not self.source:
            raise ValueError(f"model.source is empty: name the folder of a two-time map; make one from a FLUX with `{MAKE}`")
        return super().found()

    def flow_map(
        self, network: nn.Module, config: Any, prompts: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None
    ) -> FluxMeanFlowMap:
        return FluxMeanFlowMap(network, prompts["hidden"], prompts["pooled"], self.embedded_guidance(config), self.kind)

    def load_transformer(self, folder: Path, settings: Mapping[str, Any]) -> Any:
        from workbench.models.flux_two_time import FluxTwoTimeTransformer2DModel

        config = json.loads((folder / "transformer" / "config.json").read_text())
        unsaid = {"deltatime_type": "r", "gate_value": ANYFLOW_GATE}  # ours always say which they are
        kind = {} if "deltatime_type" in config else {name: config.get(name, value) for name, value in unsaid.items()}
        return FluxTwoTimeTransformer2DModel.from_pretrained(folder, subfolder="transformer", **kind, **settings)

    def made(self, settings: Mapping[str, Any]) -> Any:
        from workbench.models.flux_two_time import FluxTwoTimeTransformer2DModel

        return FluxTwoTimeTransformer2DModel.from_config(settings)

    def check(self, folder: Path) -> None:
        """Raises: ValueError: if the folder holds another kind of map, saying how to make this one; damage is left to loading."""
        try:
            names = weight_map(folder / "transformer").keys()
        except (OSError, ValueError, SafetensorError):
            return
        if any(name.startswith("timestep_embedder2.") for name in names):
            remedy = f"take them in with `{MAKE} --set weights=FILE`"
            raise ValueError(f"the transformer in {folder} has weights under the names of T2I-Distill: {remedy}")
        if names and not any("delta_embedder." in name for name in names):
            raise ValueError(
                f"the transformer in {folder} has one timestep embedder, so it is a velocity field and makes no jumps: make a "
                f"two-time map of it with `{MAKE}`, or use it as it is with model.name = 'flux'"
            )


def is_two_time(folder: Path) -> bool:
    """Whether a pipeline's transformer has the weights of a second timestep embedder. Raises: ValueError: if they are damaged."""
    try:
        return any("delta_embedder." in name for name in weight_map(folder / "transformer"))
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"the transformer in {folder} cannot be read ({error}); fetch it again") from error


def weight_map(part: Path) -> dict[str, str]:
    """The file of each tensor of a pipeline's part; empty where it has no weights.

    Raises: OSError, ValueError, SafetensorError: if a file is missing or damaged.
    """
    from safetensors import safe_open

    index = part / f"{WEIGHTS}.index.json"
    if index.is_file():
        return dict(json.loads(index.read_text())["weight_map"])
    found: dict[str, str] = {}
    for path in sorted(part.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path.name)
    return found
