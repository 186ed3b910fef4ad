"""A base that is quantised, or waits in main memory: the same pictures and gradients, from less of the device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adapters import FAMILIES
from tiny_family import CPU, PROMPTS, noise
from tiny_flux import FLUX
from torch import Tensor, nn
from toy_training import told

from workbench.events import IterationDone, PreflightDone
from workbench.memory import memory_plan
from workbench.models import offload as streaming
from workbench.models import quantization
from workbench.models.offload import StreamedLinear, stream_linears
from workbench.models.policy import Policy
from workbench.models.quantization import quantised_weights
from workbench.train import train


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def drawn(policy: Policy) -> tuple[Tensor, list[Tensor]]:
    """What a policy says of some states, and the gradients of its adapters."""
    flow_map = policy.generator.bind(policy.generator.embed(PROMPTS))
    x = noise(policy.generator.latent_shape)
    out = flow_map(x, 0.5, 0.0) if flow_map.kind == "single_time" else flow_map.velocity(x, 0.5)
    out.square().mean().backward()
    return out.detach(), [parameter.grad for parameter in policy.parameters.values() if parameter.grad is not None]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.name != "flow_match"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_weights_that_wait_elsewhere_change_nothing(name: str, precision: Any, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = family.make(tmp_path / name)
    said = []
    for offload in ("no", "parts", "linears"):
        policy = Policy(family.model(folder, offload=offload), CPU, adapter="lora", rank=2, precision=precision)
        with torch.no_grad():
            for index, parameter in enumerate(policy.parameters.values()):
                parameter.add_(noise(tuple(parameter.shape), 1, index)[0], alpha=0.1)
        out, gradients = drawn(policy)
        said.append((out, gradients, policy.generator.decode(noise(policy.generator.latent_shape))))
    streamed = [module for module in policy.generator.network.modules() if isinstance(module, StreamedLinear)]
    assert streamed
    for out, gradients, images in said[1:]:
        assert torch.equal(out, said[0][0])
        assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-7) for one, other in zip(gradients, said[0][1], strict=True))
        assert torch.equal(images, said[0][2])


def test_streamed_layers_stay_where_they_are_and_keep_no_copy_for_the_backward_pass() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    stream_linears(network, CPU)
    network.to(torch.float64)
    assert network[0].weight.dtype == torch.float32
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        network(torch.randn(5, 3, requires_grad=True))
    assert all(tuple(x.shape) == (5, 4) for x in saved)


def test_forward_and_backward_each_copy_the_weights_to_where_the_numbers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    meta, copied = torch.device("meta"), []
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    stream_linears(network, meta)
    network.to(meta)

    def near(value: Tensor, other: Tensor, copy: Any = streaming._near) -> Tensor:
        copied.append((tuple(value.shape), value.device.type, copy(value, other).device.type))
        return copy(value, other)

    monkeypatch.setattr(streaming, "_near", near)
    x = torch.ones(5, 3, device=meta, requires_grad=True)
    out = network(x)
    forward, copied[:] = list(copied), []
    out.sum().backward()
    assert forward == [((4, 3), "cpu", "meta"), ((4,), "cpu", "meta"), ((2, 4), "cpu", "meta")]
    assert copied == [((2, 4), "cpu", "meta"), ((4, 3), "cpu", "meta")]
    assert x.grad is not None
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_streamed_weights_stay_in_main_memory_and_adapters_do_not(tmp_path: Path) -> None:
    folder, cuda = FLUX.make(tmp_path / "flux"), torch.device("cuda")
    near, far = (Policy(FLUX.model(folder, offload=each), cuda, adapter="lora", rank=2) for each in ("no", "linears"))
    (one, gradients), (other, again) = drawn(near), drawn(far)
    assert torch.allclose(one, other, atol=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(gradients, again, strict=True))
    assert {parameter.device.type for parameter in far.parameters.values()} == {"cuda"}
    streamed = [module for module in far.generator.network.modules() if isinstance(module, StreamedLinear)]
    assert {module.weight.device.type for module in streamed} == {"cpu"}
    assert all(module.weight.is_pinned() for module in streamed)


@pytest.mark.parametrize("setting", [{"quantize": "nf4"}, {"quantize": "int8"}, {"offload": "linears"}])
def test_all_weights_are_not_trained_where_they_are_held_otherwise(setting: dict[str, str], tmp_path: Path) -> None:
    changes = {f"model__{key}": value for key, value in setting.items()}
    with pytest.raises(ValueError, match=r"adapter.kind = 'full' trains all of them"):
        FLUX.run(tmp_path, adapter__kind="full", **changes)


@pytest.mark.parametrize("setting", ["quantize", "offload"])
def test_divided_weights_are_held_in_no_other_way(setting: str, tmp_path: Path) -> None:
    value = {"quantize": "nf4", "offload": "parts"}[setting]
    with pytest.raises(ValueError, match=rf"model.{setting} = 'no'"):
        FLUX.run(tmp_path, compute__sharding="fsdp2", compute__processes=2, **{f"model__{setting}": value})


def test_weights_that_are_divided_take_their_share_of_each_device(tmp_path: Path) -> None:
    folder = FLUX.make(tmp_path / "flux")
    whole, half = (
        memory_plan(FLUX.run(folder, compute__processes=2, compute__sharding=each)) for each in ("none", "fsdp2")
    )
    assert half.parts["base weights"] == whole.parts["base weights"] // 2


def test_a_missing_library_is_named_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install flow-map-workbench\[quantized\]"):
        FLUX.model(tmp_path / "nowhere", quantize="nf4").load(CPU)


@pytest.mark.parametrize(("kind", "near"), [("int8", 0.05), ("nf4", 0.3)])
def test_a_quantised_base_says_almost_the_same_and_is_trained(kind: str, near: float, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = FLUX.make(tmp_path / "flux")
    plain, rough = (Policy(FLUX.model(folder, quantize=each), CPU, adapter="lora", rank=2) for each in ("no", kind))
    (exact, _), (out, gradients) = drawn(plain), drawn(rough)
    assert 0 < float((out - exact).norm() / exact.norm()) < near
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    taken = sum(p.numel() * p.element_size() for p in rough.generator.network.parameters() if not p.requires_grad)
    whole = sum(p.numel() * p.element_size() for p in plain.generator.network.parameters() if not p.requires_grad)
    assert whole - taken > 2 * quantised_weights(plain.generator.network)
    assert memory_plan(FLUX.run(folder, model__quantize=kind)).parts["base weights"] == pytest.approx(taken, rel=0.1)
    events = told(train(FLUX.run(folder, model__quantize=kind, iterations=1)))
    (checks,) = (event.checks for event in events if isinstance(event, PreflightDone))
    assert next(check for check in checks if check.name == "ratio").value == 0
    assert any(isinstance(event, IterationDone) for event in events)
