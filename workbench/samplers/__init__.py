from workbench.contracts import Sampler
from workbench.samplers.asfmc import AnchoredSampler
from workbench.samplers.asfmc_endpoint import EndpointSampler
from workbench.samplers.flow_sde import FlowSDESampler
from workbench.samplers.ode import ODESampler

SAMPLERS: dict[str, type[Sampler]] = {
    "ode": ODESampler,
    "asfmc": AnchoredSampler,
    "asfmc_endpoint": EndpointSampler,
    "flow_sde": FlowSDESampler,
}
