"""Rewards on CLIP: what a network is shown, each score against one worked out beside it, what is told when a model is missing."""

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_networks import SIDE, WIDTH, clip_config, tiny_clip, tiny_grounding_dino
from torch import Tensor, nn
from torch.nn import functional
from toy_training import told, toy
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from workbench.benchmarks.scorers import bench_scorers
from workbench.events import CheckpointReady, Event, GroupsScored
from workbench.models.diffusers_folder import quietly
from workbench.prompt_cache import cache_folder
from workbench.rewards import REWARDS, sizes
from workbench.rewards.aesthetic import Aesthetic
from workbench.rewards.clip import load_clip
from workbench.rewards.clip_score import CLIPScore
from workbench.rewards.hps import HPS
from workbench.rewards.image_reward import ImageReward
from workbench.rewards.pickscore import PickScore
from workbench.rewards.views import View, read_view
from workbench.tasks.prompts import EXAMPLES
from workbench.train import train
from workbench.trying import examine

CPU = torch.device("cpu")
PROMPTS = ["a red fox", "an old lighthouse in a storm", "a red fox", "two cats", "a sign"]
LEVEL = 1 / 255
NETWORKS = ("pickscore", "hps", "clip_score", "aesthetic", "geneval")


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth pictures with some noise, in [0, 1]."""
    draw = torch.Generator().manual_seed(seed)
    rough = torch.rand(count, 3, 5, 5, generator=draw)
    smooth = functional.interpolate(rough, (height, width), mode="bicubic", align_corners=False)
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=draw)).clamp(0, 1)


def as_pil(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("networks") / "clip")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return cache_folder()


def transformers_logits(folder: Path, images: Tensor, prompts: list[str]) -> Tensor:
    """The network's own number for each pair, from transformers' model, tokenizer and picture processor."""
    model = CLIPModel.from_pretrained(folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images=as_pil(images), return_tensors="pt").pixel_values
    words = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(pixel_values=pixels, **words).logits_per_image.diagonal()


# --- what a network is shown


@pytest.mark.parametrize(("height", "width"), [(40, 40), (28, 28), (24, 64), (90, 31), (512, 512), (9, 12)])
def test_a_picture_is_shown_as_transformers_shows_it(height: int, width: int, clip_folder: Path) -> None:
    images = pictures(3, height, width)
    seen = read_view(clip_folder)(images)
    wanted = CLIPImageProcessorPil.from_pretrained(clip_folder)(images=as_pil(images), return_tensors="pt").pixel_values
    assert seen.shape == wanted.shape == (3, 3, SIDE, SIDE)
    apart = (seen - wanted).abs() * torch.tensor(View.std)[:, None, None]
    assert apart.max() <= 2.01 * LEVEL
    assert apart.mean() < 0.02 * LEVEL


@pytest.mark.parametrize("processor", [Mask2FormerImageProcessorPil, GroundingDinoImageProcessorPil])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 64), (60, 200), (100, 70)])
def test_detectors_are_shown_pictures_as_transformers_shows_them(processor: Any, height: int, width: int, tmp_path: Path) -> None:
    own = processor(size={"shortest_edge": 64, "longest_edge": 128})
    own.save_pretrained(tmp_path)
    images = pictures(2, height, width)
    wanted = own(images=as_pil(images), return_tensors="pt").pixel_values
    seen = read_view(tmp_path)(images)
    assert seen.shape == wanted.shape
    apart = (seen - wanted).abs() * torch.tensor(own.image_std)[:, None, None]
    assert apart.max() <= 2.01 * LEVEL
    assert apart.mean() < 0.06 * LEVEL


def test_a_view_is_read_from_either_file_that_transformers_writes(clip_folder: Path, tmp_path: Path) -> None:
    told = json.loads((clip_folder / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": told, "processor_class": "CLIPProcessor"}))
    assert read_view(tmp_path) == read_view(clip_folder)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**told, "size": SIDE, "crop_size": SIDE}))  # as once written
    assert read_view(tmp_path) == read_view(clip_folder)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**told, "resample": 1}))
    with pytest.raises(ValueError, match="resizes with filter 1; this program knows 2 and 3"):
        read_view(tmp_path)


def test_a_whole_picture_is_shown_on_black(clip_folder: Path) -> None:
    white = torch.ones(1, 3, 20, 40)
    view = read_view(clip_folder).padded()
    seen = view(white) * torch.tensor(View.std)[:, None, None] + torch.tensor(View.mean)[:, None, None]
    assert seen.shape == (1, 3, SIDE, SIDE)
    rows = seen[0, 0, :, 0]
    assert rows.round().tolist() == [0] * 7 + [1] * 14 + [0] * 7
    odd = View(shortest=224, crop=(224, 224), mean=(0, 0, 0), std=(1, 1, 1)).padded()(torch.ones(1, 3, 832, 1216))[0, 0]
    assert odd.sum(0).tolist() == [153] * 224  # of 71 black rows 35 are above, as published
    assert odd.sum(1).tolist() == [0] * 35 + [224] * 153 + [0] * 36
    square = pictures(2, 40, 40)
    assert torch.equal(view(square), read_view(clip_folder)(square))


# --- scores


def test_pickscore_is_the_networks_own_number_over_its_divisor(clip_folder: Path) -> None:
    images = pictures(5, 40, 40)
    wanted = transformers_logits(clip_folder, images, PROMPTS)
    values = PickScore(source=str(clip_folder), processor=str(clip_folder), batch=2).load(CPU)(images, PROMPTS)
    assert values.dtype == torch.float32
    assert wanted.std() > 0.5  # the pictures differ to the network
    assert torch.allclose(values, wanted / 26, atol=2e-2)
    plain = PickScore(source=str(clip_folder), processor="", divisor=1).load(CPU)(images, PROMPTS)
    assert torch.allclose(plain, 26 * values, rtol=1e-5)


def test_clip_score_is_the_scaled_cosine(clip_folder: Path) -> None:
    images = pictures(5, SIDE, SIDE)  # as large as the network sees them, so nothing is resized
    wanted = transformers_logits(clip_folder, images, PROMPTS) / math.exp(2.6592)
    score = CLIPScore(source=str(clip_folder)).load(CPU)
    assert torch.allclose(score(images, PROMPTS), 100 * wanted, atol=1e-3)
    assert torch.allclose(CLIPScore(source=str(clip_folder), scale=1).load(CPU)(images, PROMPTS), wanted, atol=1e-5)


def test_a_picture_scores_alike_alone_and_among_others_and_every_time(clip_folder: Path) -> None:
    images = pictures(5, 33, 50)
    score = CLIPScore(source=str(clip_folder), batch=4).load(CPU)
    together = score(images, PROMPTS)
    alone = torch.cat([score(images[i : i + 1], [PROMPTS[i]]) for i in range(5)])
    assert torch.allclose(together, alone, atol=1e-4)
    assert torch.equal(together, score(images, PROMPTS))
    assert not torch.is_grad_enabled() or not together.requires_grad


def test_a_prompt_is_read_once(clip_folder: Path) -> None:
    clip = load_clip(str(clip_folder), CPU, setting="clip_score.source", dtype=torch.float32)
    read: list[int] = []
    clip.model.text_model.register_forward_pre_hook(lambda _, args, words: read.append(len(words["input_ids"])), with_kwargs=True)
    first = clip.texts(PROMPTS)
    assert read == [1] * 4  # one comes twice
    assert torch.equal(clip.texts(PROMPTS[::-1]), first.flip(0))
    assert clip.texts(["a fox", *PROMPTS]).shape == (6, WIDTH)
    assert read == [1] * 5
    assert torch.allclose(first.norm(dim=1), torch.ones(5), atol=1e-5)


def test_a_prompt_says_the_same_bits_whatever_comes_with_it(clip_folder: Path) -> None:
    longer = [f"{prompt} in the manner of an old master, {number}" for number, prompt in enumerate(PROMPTS * 3)]

    def first(texts: list[str]) -> Tensor:
        return load_clip(str(clip_folder), CPU, setting="clip_score.source", dtype=torch.float32).texts(texts)[0]

    assert torch.equal(first(PROMPTS[:1]), first([PROMPTS[0], *longer]))


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the toy model is in no registry
def test_a_run_that_is_resumed_scores_the_same_bits(clip_folder: Path) -> None:
    config = toy(CLIPScore(source=str(clip_folder)), iterations=4, record__checkpoint_every=2, evaluation__every=1000)
    config = config.model_copy(update={"prompts": EXAMPLES})
    whole = told(train(config))
    middle = next(event for event in whole if isinstance(event, CheckpointReady) and event.iteration == 2)
    resumed = told(train(config, resume=middle))
    wanted = [event.rewards for event in whole if isinstance(event, GroupsScored)][2:]
    assert [event.rewards for event in resumed if isinstance(event, GroupsScored)] == wanted
    for name, weights in kept(whole).items():
        assert torch.equal(kept(resumed)[name], weights)


def kept(events: list[Event]) -> dict[str, Tensor]:
    """The policy of the last checkpoint."""
    return [event for event in events if isinstance(event, CheckpointReady)][-1].tensors["policy"]


def test_a_long_prompt_is_read_as_far_as_the_network_goes(clip_folder: Path) -> None:
    clip = load_clip(str(clip_folder), CPU, setting="clip_score.source", dtype=torch.float32)
    assert torch.equal(clip.texts(["a" * 300]), clip.texts(["a" * 400]))


def test_half_precision_says_nearly_the_same(clip_folder: Path) -> None:
    images = pictures(5, 40, 40)
    exact, rough = (CLIPScore(source=str(clip_folder), dtype=dtype).load(CPU)(images, PROMPTS) for dtype in ("fp32", "bf16"))
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 5
    scale, rounded = (
        load_clip(str(clip_folder), CPU, setting="it", dtype=dtype).scale for dtype in (torch.float32, torch.bfloat16)
    )
    assert scale == rounded == pytest.approx(math.exp(2.6592))


def predictor_file(path: Path, width: int = WIDTH) -> dict[str, Tensor]:
    widths = (width, 1024, 128, 64, 16, 1)
    draw = torch.Generator().manual_seed(1)
    state = {}
    for number, wide, narrow in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        state[f"layers.{number}.weight"] = torch.randn(narrow, wide, generator=draw) / wide**0.5
        state[f"layers.{number}.bias"] = torch.randn(narrow, generator=draw)
    torch.save(state, path)
    return state


def test_aesthetic_is_five_layers_on_the_direction_of_a_picture(clip_folder: Path, tmp_path: Path) -> None:
    state = predictor_file(tmp_path / "linear.pth")
    images = pictures(5, SIDE, SIDE)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(images=as_pil(images), return_tensors="pt").pixel_values
    with torch.no_grad():
        x = model.get_image_features(pixel_values=pixels).pooler_output
    x = x / x.norm(dim=-1, keepdim=True)
    for number in (0, 2, 4, 6, 7):
        x = x @ state[f"layers.{number}.weight"].T + state[f"layers.{number}.bias"]
    reward = Aesthetic(source=str(clip_folder), predictor=str(tmp_path / "linear.pth"))
    values = reward.load(CPU)(images, PROMPTS)
    assert torch.allclose(values, x[:, 0], atol=1e-3)
    assert torch.equal(values, reward.load(CPU)(images, ["anything"] * 5))
    assert set(reward.weight_files()) == {clip_folder / "model.safetensors", tmp_path / "linear.pth"}


# --- the published weights of HPS


def open_clip_state(act_width: int = 24) -> dict[str, Tensor]:
    """Random weights by open_clip's names and shapes, for the tiny CLIP's sizes."""
    draw = torch.Generator().manual_seed(2)
    words = clip_config().text_config.vocab_size

    def made(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=draw)

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + made(16), f"{name}.bias": made(16)}

    state = {
        "positional_embedding": made(77, 16),
        "text_projection": made(16, WIDTH),
        "logit_scale": torch.tensor(3.0),
        "visual.class_embedding": made(16),
        "visual.positional_embedding": made(1 + (SIDE // 7) ** 2, 16),
        "visual.proj": made(16, WIDTH),
        "visual.conv1.weight": made(16, 3, 7, 7),
        "token_embedding.weight": made(words, 16),
        **norm("visual.ln_pre"),
        **norm("visual.ln_post"),
        **norm("ln_final"),
        "attn_mask": torch.full((77, 77), -math.inf).triu(1),
    }
    for tower in ("visual.transformer", "transformer"):
        for number in range(2):
            block = f"{tower}.resblocks.{number}"
            state |= {
                **norm(f"{block}.ln_1"),
                **norm(f"{block}.ln_2"),
                f"{block}.attn.in_proj_weight": made(48, 16),
                f"{block}.attn.in_proj_bias": made(48),
                f"{block}.attn.out_proj.weight": made(16, 16),
                f"{block}.attn.out_proj.bias": made(16),
                f"{block}.mlp.c_fc.weight": made(act_width, 16),
                f"{block}.mlp.c_fc.bias": made(act_width),
                f"{block}.mlp.c_proj.weight": made(16, act_width),
                f"{block}.mlp.c_proj.bias": made(16),
            }
    return state


def open_clip_forward(state: dict[str, Tensor], pixels: Tensor, words: Tensor, ends: Tensor) -> Tensor:
    """Cosines [N], by the published architecture, from its own weights."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (16,), state[f"{name}.weight"], state[f"{name}.bias"])

    def tower(x: Tensor, name: str, heads: int, mask: Tensor | None) -> Tensor:
        for number in range(2):
            block = f"{name}.resblocks.{number}"
            attention = nn.MultiheadAttention(16, heads, batch_first=True)
            attention.load_state_dict(
                {key.removeprefix(f"{block}.attn."): value for key, value in state.items() if key.startswith(f"{block}.attn.")}
            )
            y = norm(x, f"{block}.ln_1")
            x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
            y = functional.linear(norm(x, f"{block}.ln_2"), state[f"{block}.mlp.c_fc.weight"], state[f"{block}.mlp.c_fc.bias"])
            x = x + functional.linear(functional.gelu(y), state[f"{block}.mlp.c_proj.weight"], state[f"{block}.mlp.c_proj.bias"])
        return x

    x = functional.conv2d(pixels, state["visual.conv1.weight"], stride=7).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
    x = norm(tower(norm(x, "visual.ln_pre"), "visual.transformer", 4, None)[:, 0], "visual.ln_post") @ state["visual.proj"]
    y = state["token_embedding.weight"][words] + state["positional_embedding"][: words.shape[1]]
    y = norm(tower(y, "transformer", 2, state["attn_mask"][: words.shape[1], : words.shape[1]]), "ln_final")
    y = y[torch.arange(len(y)), ends] @ state["text_projection"]
    return functional.cosine_similarity(x, y)


@pytest.fixture
def hps(tmp_path: Path, cache: Path) -> HPS:
    base = tiny_clip(tmp_path / "base", act="gelu")
    (base / "model.safetensors").unlink()  # only its shape, its words and its view are wanted
    torch.save({"epoch": 3, "state_dict": open_clip_state()}, tmp_path / "HPS.pt")
    return HPS(source=str(tmp_path / "HPS.pt"), processor=str(base))


def test_hps_is_the_cosine_of_the_published_architecture(hps: HPS) -> None:
    images = pictures(5, SIDE, SIDE)
    words = AutoTokenizer.from_pretrained(hps.processor)(PROMPTS, padding=True, return_tensors="pt").input_ids
    pixels = CLIPImageProcessorPil.from_pretrained(hps.processor)(images=as_pil(images), return_tensors="pt").pixel_values
    ends = (words == clip_config().text_config.eos_token_id).int().argmax(1)
    with torch.no_grad():
        wanted = open_clip_forward(open_clip_state(), pixels, words, ends)
    values = hps.load(CPU)(images, PROMPTS)
    assert wanted.std() > 0.05
    assert torch.allclose(values, wanted, atol=1e-5)


def test_published_weights_are_converted_once(hps: HPS, cache: Path) -> None:
    first = hps.load(CPU)(pictures(2, 20, 30), PROMPTS[:2])
    (kept,) = cache.glob("converted/*/model.safetensors")
    before = kept.stat().st_mtime_ns
    assert torch.equal(hps.load(CPU)(pictures(2, 20, 30), PROMPTS[:2]), first)
    assert kept.stat().st_mtime_ns == before
    assert len(list(cache.glob("converted/*/*"))) == 2
    torch.save({"state_dict": {name: value + 0.1 for name, value in open_clip_state().items()}}, hps.source)
    assert not torch.equal(hps.load(CPU)(pictures(2, 20, 30), PROMPTS[:2]), first)
    assert len(list(cache.glob("converted/*/model.safetensors"))) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("visual.proj"), r"lacks visual_projection\.weight"),
        (
            lambda state: state.update({"visual.proj": torch.zeros(16, 99)}),
            r"has \[99, 16\] numbers for visual_proj",
        ),
        (lambda state: state.update({"visual.head.weight": torch.zeros(3)}), r"no CLIP .* has a weight 'visual\.head\.weight'"),
        (
            lambda state: state.update({"transformer.resblocks.7.ln_1.weight": torch.zeros(16)}),
            r"has text_model\.encoder\.layers\.7\.layer_norm1\.weight, which the CLIP",
        ),
    ],
)
def test_published_weights_of_another_network_are_refused(change: Any, words: str, hps: HPS, cache: Path) -> None:
    state = open_clip_state()
    change(state)
    torch.save({"state_dict": state}, hps.source)
    with pytest.raises(ValueError, match=words):
        hps.load(CPU)
    assert not list(cache.glob("converted/*/*"))


# --- what is told when a model is not there


class Dangerous:
    def __reduce__(self) -> Any:
        return (print, ("this ran",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not an archive", "cannot be read as plain weights"),
        (b"", "cannot be read as plain weights"),
        (pickle.dumps({"state_dict": Dangerous()}, protocol=2), "cannot be read as plain weights"),
        ([1, 2], "holds a list and no weights by name"),
        ({"epoch": 3}, "holds no weights"),
    ],
)
def test_an_archive_is_read_without_running_what_is_in_it(
    content: Any, words: str, clip_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"aesthetic\.predictor: .*weights\.pth {words}"):
        Aesthetic(source=str(clip_folder), predictor=str(path)).load(CPU)
    assert "this ran" not in "".join(capfd.readouterr())


def test_a_dangerous_archive_of_the_usual_kind_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": Dangerous()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="cannot be read as plain weights"):
        Aesthetic(source=str(clip_folder), predictor=str(tmp_path / "weights.pth")).load(CPU)


def test_a_predictor_for_another_clip_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    predictor_file(tmp_path / "wide.pth", 768)
    with pytest.raises(ValueError, match=r"has \[1024, 768\] for layers\.0\.weight, where .* has \[1024, 12\]"):
        Aesthetic(source=str(clip_folder), predictor=str(tmp_path / "wide.pth")).load(CPU)


def test_a_folder_that_is_not_there_or_holds_something_else_says_so(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clip_score\.source = '.*none' is no folder; name one with a config\.json"):
        CLIPScore(source=str(tmp_path / "none")).load(CPU)
    with pytest.raises(ValueError, match=r"holds no model of transformers: it has no config\.json"):
        CLIPScore(source=str(tmp_path)).load(CPU)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not readable .*; fetch it again"):
        CLIPScore(source=str(tmp_path)).load(CPU)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match=r"has no model\.safetensors, and weights in other files are not read"):
        CLIPScore(source=str(tmp_path)).load(CPU)
    other = tiny_grounding_dino(tmp_path / "dino")
    with pytest.raises(ValueError, match=r"a network of the kind 'grounding-dino', and clip_score\.source wants a 'clip'"):
        CLIPScore(source=str(other)).load(CPU)
    with pytest.raises(ValueError, match=r"pickscore\.processor = '.*nowhere' is no folder"):
        PickScore(source=str(clip_folder), processor=str(tmp_path / "nowhere")).load(CPU)
    with pytest.raises(ValueError, match=r"hps\.source = '.*HPS\.pt' is no file; name one, or write OWNER/MODEL/FILE"):
        HPS(source=str(tmp_path / "HPS.pt")).load(CPU)


def test_damaged_weights_say_so(clip_folder: Path, tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "clip")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"clip cannot be loaded: .*; fetch it again"):
        CLIPScore(source=str(folder)).load(CPU)
    whole = load_file(clip_folder / "model.safetensors")
    whole["visual_projection.weight"] = whole["visual_projection.weight"][:, :8].contiguous()
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"clip cannot be loaded: .*; fetch it again"):
        CLIPScore(source=str(folder)).load(CPU)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_that_was_never_fetched_says_how_to_fetch_it(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not on this machine and cannot be fetched from the hub: run `hf download "):
        REWARDS[name](offline=True).load(CPU)
    assert REWARDS[name]().weight_files() == ()


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            "GatedRepoError",
            r"accepted its licence: do so on https://hugg.* let clip_score\.source name a folder",
        ),
        ("RepositoryNotFoundError", "no model of that name on the hub"),
        ("RemoteEntryNotFoundError", r"has no config\.json, so it is no model of transformers"),
    ],
)
def test_a_gated_or_unknown_model_says_what_to_do(failure: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_: Any, **__: Any) -> None:
        response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
        raise getattr(errors, failure)("no such luck", response=response)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ValueError, match=words):
        CLIPScore(source="some/model").load(CPU)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_transformers_one_line_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=rf"'{name}' needs transformers.*pip install flow-map-workbench\[models\]"):
        REWARDS[name]().load(CPU)


def test_to_construct_rewards_loads_nothing() -> None:
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from workbench.rewards import REWARDS; [made() for made in REWARDS.values()];"
            "print({'transformers', 'diffusers', 'rapidocr', 'onnxruntime', 'huggingface_hub', 'PIL'} & set(sys.modules))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "set()"


def test_the_page_of_rewards_tries_them_and_tells_what_is_missing(clip_folder: Path) -> None:
    images = pictures(4, 24, 24)
    tried, missing = examine([CLIPScore(source=str(clip_folder)), HPS(offline=True)], images, PROMPTS[:4])
    assert tried.values is not None
    assert tried.milliseconds is not None
    assert missing.values is None
    assert "hf download" in missing.failure


# --- ImageReward


def test_image_reward_says_which_package_it_wants() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"reward 'image_reward' needs .*: pip install image-reward"):
        ImageReward().load(CPU)


PACKAGE = '''
import torch

class Tokens(dict):
    __getattr__ = dict.__getitem__

    def to(self, device):
        return self

class Model(torch.nn.Module):
    """The mean of the picture plus the number of letters."""

    class blip:
        @staticmethod
        def tokenizer(texts, padding, truncation, max_length, return_tensors):
            assert (padding, truncation, max_length, return_tensors) == ("max_length", True, 35, "pt")
            sizes = torch.tensor([[len(text)] for text in texts])
            return Tokens(input_ids=sizes, attention_mask=torch.ones_like(sizes))

    def score_gard(self, ids, mask, image):
        assert image.shape[1:] == (3, 224, 224)
        return image.mean((1, 2, 3))[:, None] + ids * mask

def load(name, device, med_config):
    assert med_config in (None, "med_config.json")
    if name != "ImageReward-v1.0":
        raise RuntimeError(f"{name} is not known")
    return Model()
'''


def test_image_reward_shows_its_package_pictures_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ImageReward.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ImageReward", raising=False)
    images = pictures(5, 40, 40)
    seen = CLIPImageProcessorPil()(images=as_pil(images), return_tensors="pt").pixel_values
    wanted = seen.mean((1, 2, 3)) + torch.tensor([len(prompt) for prompt in PROMPTS])
    for reward in (ImageReward(batch=2), ImageReward(med_config="med_config.json")):
        assert torch.allclose(reward.load(CPU)(images, PROMPTS), wanted, atol=1e-2)
    with pytest.raises(ValueError, match=r"image_reward\.source = 'other' cannot be loaded: other is not known"):
        ImageReward(source="other").load(CPU)
    monkeypatch.delitem(sys.modules, "ImageReward")


# --- what they cost


@pytest.mark.parametrize(
    ("name", "millions"),
    zip(sizes.NETWORKS, (427.6, 986.1, 68.7, 232.3), strict=True),  # the first two as published
)
def test_networks_of_the_published_sizes_are_as_large_as_those(name: str, millions: float) -> None:
    with quietly(), torch.device("meta"):
        model, _ = sizes.NETWORKS[name]()
    count = sum(weights.numel() for weights in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)
    for reward in name.partition(": ")[2].split(", "):  # each says it, and geneval has a CLIP besides
        others = 427_616_513 if reward == "geneval" else 0
        assert millions == 232.3 or REWARDS[reward].published - others == count


def test_the_benchmark_of_scorers_tells_what_each_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sizes.NETWORKS, "tiny", lambda: sizes.clip_of((16, 1, 2), (16, 1, 2), 8))
    told = bench_scorers(images=9, side=32, networks=("tiny",))
    assert (told["images"], told["side"]) == (9, 32)
    assert told["tiny"]["fp32"]["milliseconds_per_image"] > 0
    assert told["tiny"]["bf16"]["milliseconds_per_image"] > 0
    assert told["tiny"]["parameters"] > 800_000  # most of them words
