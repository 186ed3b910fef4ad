"""The embedded generator, its file, and the policy with its reference."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.evaluate import generate, held_out, stream_images
from workbench.flow import time_grid
from workbench.models import MODELS
from workbench.models.embedded import NetworkFlowMap, load_weights, save_weights, shipped_weights
from workbench.models.policy import Policy
from workbench.models.shapes import LATENT_SHAPE, ShapesModel
from workbench.models.transformer import ConditionalTransformer
from workbench.optim import AveragedWeights, load_optimizer_tensors, optimizer_tensors
from workbench.recipes import RECIPES
from workbench.rollout import drain
from workbench.samplers import SAMPLERS
from workbench.tasks.shapes import ShapesTask
from workbench.tasks.shapes_detector import score
from workbench.tasks.shapes_scenes import SLOT_SIZES, parse, render, sample_scenes

CPU = torch.device("cpu")
PROMPTS = list(ShapesTask().prompts("train")[:6])


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model file whose network is random everywhere, the layers that begin at zero included."""
    torch.manual_seed(0)
    networks = ShapesModel.networks()
    network = networks.network
    with torch.no_grad():
        for layer in (network.modulation, network.final, network.leave):
            layer.weight.normal_(std=0.02)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_weights(path, networks._asdict(), {"seed": 0})
    return str(path)


def latents(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, 4, 4, generator=torch.Generator().manual_seed(seed))


def bound(weights: str) -> NetworkFlowMap:
    """A two-time map of random weights with the prompts bound."""
    generator = ShapesModel(weights=weights).load(CPU)
    return generator.bind(generator.embed(PROMPTS))


def jump(policy: Policy) -> Tensor:
    """psi(x, 0.9, 0.2) with gradients as they are."""
    generator = policy.generator
    return generator.bind(generator.embed(PROMPTS))(latents(), 0.9, 0.2)


def disturb(policy: Policy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


# The generator


def test_encoding_and_decoding_a_scene_changes_nothing_that_the_detector_sees() -> None:
    generator = ShapesModel().load(CPU)
    prompts = list(ShapesTask().prompts("train")[:300])
    images = render(sample_scenes([parse(p) for p in prompts], np.random.default_rng(0)))
    z = generator.encode(images)
    assert z.shape == (300, *generator.latent_shape)
    again = generator.decode(z)
    assert again.shape == images.shape
    assert ((again >= 0) & (again <= 1)).all()
    assert score(again, prompts).exact.mean() >= 0.99


def test_the_map_is_the_identity_where_the_times_meet_and_depends_on_its_prompt(random_weights: str) -> None:
    generator = ShapesModel(weights=random_weights).load(CPU)
    flow_map = generator.bind(generator.embed(PROMPTS))
    x = latents()
    assert torch.equal(flow_map(x, 0.7, 0.7), x)
    assert flow_map(x, 0.7, 0.1).dtype == torch.float32
    same = generator.bind(generator.embed(PROMPTS[:1] * 6))
    assert not torch.allclose(flow_map(x, 0.7, 0.1)[1:], same(x, 0.7, 0.1)[1:], atol=1e-4)
    assert torch.equal(flow_map(x, 0.7, 0.1)[:1], same(x, 0.7, 0.1)[:1])


def test_the_velocity_is_the_slope_of_the_map_at_its_start(random_weights: str) -> None:
    generator = ShapesModel(weights=random_weights).load(CPU)
    flow_map, x = generator.bind(generator.embed(PROMPTS)), latents()
    slope = (flow_map(x, 0.6, 0.6 - 2**-10) - x) / -(2**-10)
    assert torch.allclose(slope, flow_map.velocity(x, 0.6), atol=2e-3)


def test_each_row_may_have_its_own_times(random_weights: str) -> None:
    flow_map = bound(random_weights)
    x, t, s = latents(), torch.linspace(0.3, 1.0, 6), torch.linspace(0.0, 0.25, 6)
    jumps, velocities = flow_map(x, t, s), flow_map.velocity(x, t)
    for row in range(6):
        one = NetworkFlowMap(flow_map.network, flow_map.slots[row : row + 1], "two_time")
        here = x[row : row + 1]
        assert torch.allclose(jumps[row : row + 1], one(here, float(t[row]), float(s[row])), atol=1e-5)
        assert torch.allclose(velocities[row : row + 1], one.velocity(here, float(t[row])), atol=1e-5)
    assert torch.allclose(flow_map(x, t, 0.0), flow_map(x, t, torch.zeros(6)))
    assert torch.allclose(flow_map(x, torch.full((6,), 0.5), 0.25), flow_map(x, 0.5, 0.25), atol=1e-6)


def test_a_map_refuses_the_calls_that_its_kind_is_not_trained_for(random_weights: str) -> None:
    flow_map, x = bound(random_weights), latents()
    slots = flow_map.slots
    velocity, single = (NetworkFlowMap(flow_map.network, slots, kind) for kind in ("velocity", "single_time"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"makes no jumps; call velocity\(x, t\)"):
        velocity(x, 0.5, 0.0)
    assert torch.equal(velocity.velocity(x, 0.5), flow_map.velocity(x, 0.5))
    for s in (0.1, torch.tensor([0.0, 0.0, 0.0, 0.2, 0.0, 0.0])):
        with pytest.raises(ValueError, match=r"reaches only s = 0, got s = .*0\.[12]"):
            single(x, 0.5, s)
    with pytest.raises(ValueError, match=r"has no velocity; call flow_map\(x, t, 0\.0\)"):
        single.velocity(x, 0.5)
    for s in (0.0, 0, torch.zeros(6)):
        assert torch.allclose(single(x, 0.5, s), flow_map(x, 0.5, 0.0), atol=1e-6)


def test_the_device_and_dtype_of_a_loaded_file_are_float32_on_that_device(random_weights: str) -> None:
    generator = ShapesModel(weights=random_weights).load(CPU)
    assert {p.dtype for p in generator.network.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in generator.autoencoder.parameters())


# The file


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_file_is_at_most_eight_megabytes_and_has_its_card_and_log_beside_it(name: str) -> None:
    path = shipped_weights(name)
    assert path.stat().st_size <= 8e6
    assert f"# Model card: {name}\n" in path.with_suffix(".md").read_text()
    assert "step" in path.with_suffix(".log").read_text()


@pytest.mark.parametrize(("name", "steps"), [("shapes", 1), ("shapes_cm", 1), ("shapes_fm", 10)])
def test_what_ships_follows_its_prompts_when_sampled_as_its_kind(name: str, steps: int) -> None:
    """Dense scores of 64 images for their own prompts, .4 to .5, against those for their neighbours' prompts, .2 to .3."""
    generator = MODELS[name]().load(CPU)
    assert generator.kind == MODELS[name].kind
    sample = held_out(ShapesTask(), 64, 1, seed=0)
    images = drain(stream_images(generator, sample.prompts, sample.seeds, times=time_grid(steps, 4.0)))
    own, neighbours = (score(shown, sample.prompts).dense.mean() for shown in (images, images.roll(1, 0)))
    assert own > neighbours + 0.1


def test_weights_come_back_in_half_precision_with_their_metadata(tmp_path: Path) -> None:
    saved, loaded = (ShapesModel.networks().autoencoder for _ in range(2))
    save_weights(tmp_path / "a.safetensors", {"autoencoder": saved}, {"command": "made up"})
    assert load_weights(tmp_path / "a.safetensors", {"autoencoder": loaded}) == {"command": "made up"}
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())


def test_missing_weights_say_how_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no weights at .*none\.safetensors; make them with: python -m workbench pretrain shapes"
    ):
        ShapesModel(weights=str(tmp_path / "none.safetensors")).load(CPU)


def test_truncated_weights_are_called_unreadable(random_weights: str, tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(Path(random_weights).read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"short\.safetensors is not a readable safetensors file"):
        ShapesModel(weights=str(short)).load(CPU)
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.safetensors is not a readable"):
        ShapesModel(weights=str(empty)).load(CPU)


def test_foreign_weights_are_called_another_models(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_weights(foreign, {"other": torch.nn.Linear(2, 2)}, {})
    with pytest.raises(ValueError, match=r"foreign\.safetensors does not hold the weights of this model") as caught:
        ShapesModel(weights=str(foreign)).load(CPU)
    assert "\n" not in str(caught.value)
    wider = tmp_path / "wider.safetensors"
    networks = ShapesModel.networks()._replace(network=ConditionalTransformer(SLOT_SIZES, LATENT_SHAPE, width=80))
    save_weights(wider, networks._asdict(), {})
    with pytest.raises(ValueError, match=r"does not hold the weights of this model: .*size mismatch"):
        ShapesModel(weights=str(wider)).load(CPU)


# The policy


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_the_reference_stays_the_base_whatever_the_policy_becomes(random_weights: str, adapter: str, precision: str) -> None:
    policy = Policy(ShapesModel(weights=random_weights), CPU, adapter=adapter, precision=precision)  # type: ignore[arg-type]
    with torch.no_grad():
        base = jump(policy)
    disturb(policy)
    with torch.no_grad():
        changed = jump(policy)
    assert not torch.allclose(changed, base, atol=1e-3)
    with policy.reference():
        inside = jump(policy)
    assert torch.equal(inside, base)
    assert not inside.requires_grad
    with torch.no_grad():
        assert torch.equal(jump(policy), changed)


def test_without_casting_the_policy_begins_as_the_model_on_disk(random_weights: str) -> None:
    generator = ShapesModel(weights=random_weights).load(CPU)
    with torch.no_grad():
        base = generator.bind(generator.embed(PROMPTS))(latents(), 0.9, 0.2)
        for adapter in ("full", "lora"):
            assert torch.equal(jump(Policy(ShapesModel(weights=random_weights), CPU, adapter=adapter)), base)  # type: ignore[arg-type]


def test_the_reference_ends_even_when_what_is_inside_fails(random_weights: str) -> None:
    for adapter in ("full", "lora"):
        policy = Policy(ShapesModel(weights=random_weights), CPU, adapter=adapter)  # type: ignore[arg-type]
        disturb(policy)
        with torch.no_grad():
            before = jump(policy)
        with pytest.raises(RuntimeError, match="stop"), policy.reference():
            raise RuntimeError("stop")
        with torch.no_grad():
            assert torch.equal(jump(policy), before)
        assert torch.is_grad_enabled()


def test_adapters_train_a_fraction_and_gradients_reach_all_of_them(random_weights: str) -> None:
    policy = Policy(ShapesModel(weights=random_weights), CPU, adapter="lora", rank=4)
    assert all("lora" in name for name in policy.parameters)
    whole = sum(p.numel() for p in policy.generator.network.parameters())
    assert sum(p.numel() for p in policy.parameters.values()) < 0.1 * whole
    disturb(policy)
    jump(policy).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters.values())
    assert all(p.grad is None for name, p in policy.generator.network.named_parameters() if "lora" not in name)


def test_one_seed_makes_one_set_of_adapters(random_weights: str) -> None:
    policies = [Policy(ShapesModel(weights=random_weights), CPU, adapter="lora", seed=seed) for seed in (3, 3, 4)]
    first, second, third = ([p for name, p in policy.parameters.items() if "lora_A" in name] for policy in policies)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], third[0])


def test_a_policy_takes_back_what_it_gave_and_refuses_what_is_not_its_own(random_weights: str) -> None:
    policy = Policy(ShapesModel(weights=random_weights), CPU)
    kept = {name: p.detach().clone() for name, p in policy.parameters.items()}
    with torch.no_grad():
        before = jump(policy)
    disturb(policy)
    policy.load(kept)
    with torch.no_grad():
        assert torch.equal(jump(policy), before)
    with pytest.raises(ValueError, match="only the checkpoint has 'strange'"):
        policy.load({**kept, "strange": torch.zeros(1)})
    with pytest.raises(ValueError, match="only the policy has 'position'"):
        policy.load({name: value for name, value in kept.items() if name != "position"})
    with pytest.raises(ValueError, match=r"'position' is \[3\], expected \[16, 160\]"):
        policy.load({**kept, "position": torch.zeros(3)})
    with pytest.raises(ValueError, match="another model or adapter"):
        Policy(ShapesModel(weights=random_weights), CPU, adapter="lora").load(kept)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if "two_time" in SAMPLERS[name].needs])
def test_every_sampler_for_its_kind_of_map_draws_pictures(random_weights: str, sampler: str) -> None:
    policy = Policy(ShapesModel(weights=random_weights), CPU)
    images = generate(policy, PROMPTS[:2], [0, 1], steps=3, sampler=SAMPLERS[sampler]())
    assert images.shape == (2, 3, 40, 40)
    assert torch.isfinite(images).all()


# Averaged weights and the optimizer


def test_the_average_follows_its_warm_up_by_hand() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    average = AveragedWeights({"w": weight}, decay=0.5)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update()
    assert average.average["w"].item() == pytest.approx(1 - 2 / 11)
    average.update()
    assert average.average["w"].item() == pytest.approx(1 - 2 / 11 * 3 / 12)
    for _ in range(40):
        average.update()
    expected = average.average["w"].item()
    with torch.no_grad():
        weight.fill_(0.0)
    average.update()
    assert average.average["w"].item() == pytest.approx(0.5 * expected)


def test_averaged_weights_stand_in_and_leave_bit_for_bit() -> None:
    weight = torch.nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)) * 1e-3 + 1)
    raw = weight.detach().clone()
    average = AveragedWeights({"w": weight}, decay=0.9)
    average.average["w"].mul_(1 / 3)
    with average.applied():
        assert torch.equal(weight.detach(), average.average["w"])
    assert torch.equal(weight.detach(), raw)
    with pytest.raises(RuntimeError, match="stop"), average.applied():
        raise RuntimeError("stop")
    assert torch.equal(weight.detach(), raw)
    average.commit()
    assert torch.equal(weight.detach(), average.average["w"])


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Muon])
def test_an_optimizer_goes_on_from_its_tensors_as_if_it_had_not_stopped(make: type[torch.optim.Optimizer]) -> None:
    def problem() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        draw = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(4, 3, generator=draw)) for _ in range(3)]
        return parameters, make(parameters, lr=0.1)  # type: ignore[call-arg]

    def advance(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            for i, parameter in enumerate(parameters):
                parameter.grad = torch.sin(parameter.detach() * (step + i + 1))
            optimizer.step()

    whole, optimizer = problem()
    advance(whole, optimizer, range(6))
    parts, first = problem()
    advance(parts, first, range(3))
    kept = {name: value.clone() for name, value in optimizer_tensors(first).items()}
    assert kept
    values = [parameter.detach().clone() for parameter in parts]
    again, second = problem()
    with torch.no_grad():
        for parameter, value in zip(again, values, strict=True):
            parameter.copy_(value)
    load_optimizer_tensors(second, kept)
    advance(again, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
    assert all(torch.equal(optimizer_tensors(second)[name], value) for name, value in optimizer_tensors(optimizer).items())
    fresh = problem()[1]
    load_optimizer_tensors(fresh, optimizer_tensors(problem()[1]))
    assert optimizer_tensors(fresh) == {}
