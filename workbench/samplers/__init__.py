from workbench.contracts import Sampler
from workbench.samplers.asfmc import AnchoredSampler
from workbench.samplers.asfmc_endpoint import EndpointSampler
from workbench.samplers.asfmc_local import LocalAnchoredSampler
from workbench.samplers.cps import CPSSampler
from workbench.samplers.dance_sde import DanceSDESampler
from workbench.samplers.ddim_mix import DDIMMixSampler
from workbench.samplers.flow_sde import FlowSDESampler
from workbench.samplers.ode import ODESampler
from workbench.samplers.precise import PreciseSampler

SAMPLERS: dict[str, type[Sampler]] = {
    "ode": ODESampler,
    "asfmc": AnchoredSampler,
    "asfmc_local": LocalAnchoredSampler,
    "asfmc_endpoint": EndpointSampler,
    "ddim_mix": DDIMMixSampler,
    "flow_sde": FlowSDESampler,
    "dance_sde": DanceSDESampler,
    "cps": CPSSampler,
    "precise": PreciseSampler,
}
