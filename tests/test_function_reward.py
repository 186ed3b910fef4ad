"""Any function as a reward: which may be used, what it may give, and how its mistakes are told."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_training import told, toy

import workbench.rewards.function as function_module
from workbench.contracts import RewardFailed
from workbench.events import IterationDone
from workbench.places import REWARDS
from workbench.provenance import weights_of
from workbench.rewards.function import MODULES, Function, find_function
from workbench.rollout import drain
from workbench.scoring import Rewards
from workbench.settings import WeightedReward
from workbench.train import train

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # toy rewards are in no registry

CPU = torch.device("cpu")
IMAGES = torch.rand(5, 3, 8, 6, generator=torch.Generator().manual_seed(0))
PROMPTS = [f"prompt {index}" for index in range(5)]
EXPECTED = IMAGES[:, 0].mean((1, 2))

CODE = """
import threading
from dataclasses import dataclass
import numpy as np

GATE = threading.Event()

@dataclass
class Taste:
    channel: int = 0

    def __call__(self, images, prompts):
        assert isinstance(prompts, list) and all(isinstance(prompt, str) for prompt in prompts)
        return images[:, self.channel].mean((1, 2))

taste = Taste()

def tensor(images, prompts):
    return images[:, 0].mean((1, 2))

def array(images, prompts):
    return images.numpy()[:, 0].mean((1, 2))

def numbers(images, prompts):
    return [float(image[0].mean()) for image in images]

def optional(images, prompts, scale=1.0, **settings):
    return scale * images[:, 0].mean((1, 2))

def spoils(images, prompts):
    values = images[:, 0].mean((1, 2))
    images.zero_()
    return values

def few(images, prompts):
    return [0.5] * (len(prompts) - 1)

def words(images, prompts):
    return prompts

def nothing(images, prompts):
    images.mean()

def table(images, prompts):
    return [[0.5, 0.5]] * len(prompts)

def nan(images, prompts):
    return [float("nan") if prompt == "prompt 3" else 0.5 for prompt in prompts]

def breaks(images, prompts):
    if "prompt 2" in prompts:
        raise ZeroDivisionError("no third image")
    return [0.5] * len(prompts)

def lonely(images):
    return images

def greedy(images, prompts, tokenizer):
    return images

def hangs(images, prompts):
    GATE.wait(60)
    return images[:, 0].mean((1, 2))

def late(images, prompts):
    raise TimeoutError("the database is slow")

level = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    where = tmp_path / "mine"
    (where / "inner").mkdir(parents=True)
    (where / "taste.py").write_text(CODE)
    (where / "inner" / "deep.py").write_text("def red(images, prompts):\n    return images[:, 0].mean((1, 2))\n")
    (where / "broken.py").write_text("import no_such_module\n")
    (where / "wrong.py").write_text("def (:\n")
    (tmp_path / "secret.py").write_text("raise SystemExit\n")
    monkeypatch.setenv(REWARDS, str(where))
    monkeypatch.delenv(MODULES, raising=False)
    return where


def score(function: str) -> Tensor:
    return Function(function=function).load(CPU)(IMAGES, PROMPTS)


@pytest.mark.parametrize("name", ["tensor", "array", "numbers", "optional", "taste", "spoils"])
def test_a_tensor_an_array_and_a_list_of_numbers_are_scores(name: str) -> None:
    before = IMAGES.clone()
    values = score(f"taste.py:{name}")
    torch.testing.assert_close(values, EXPECTED)
    assert values.dtype == torch.float32
    assert torch.equal(IMAGES, before)  # other rewards look at the same pictures


def test_files_lie_in_the_folder_or_below_it_and_are_read_anew(folder: Path) -> None:
    assert torch.equal(score("inner/deep.py:red"), EXPECTED)
    (folder / "inner" / "deep.py").write_text("def red(images, prompts):\n    return [2] * len(prompts)\n")
    assert score("inner/deep.py:red").tolist() == [2.0] * 5


def test_without_a_variable_the_folder_is_rewards_beside_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REWARDS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"there is no taste\.py in .*rewards; put the file there, or let \$WORKBENCH_REWARDS"):
        score("taste.py:tensor")
    folder.rename(tmp_path / "rewards")
    assert torch.equal(score("taste.py:tensor"), EXPECTED)


@pytest.mark.parametrize("way", ["../secret.py:f", "inner/../../secret.py:f", "{absolute}:f", "link.py:f"])
def test_a_file_outside_the_folder_is_not_even_read(way: str, folder: Path) -> None:
    (folder / "link.py").symlink_to(folder.parent / "secret.py")
    with pytest.raises(ValueError, match=r"secret\.py is not in|link\.py is not in"):
        score(way.format(absolute=folder.parent / "secret.py"))
    assert not Function(function=way.format(absolute=folder.parent / "secret.py")).weight_files()


@pytest.mark.parametrize("function", ["os:getcwd", "subprocess:run", "math:dist", "builtins:print"])
def test_a_module_that_is_not_listed_is_not_imported(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = function.partition(":")[0]
    with pytest.raises(ValueError, match=rf"module '{module}' may not be used: list it in \${MODULES} \(now: none\)"):
        score(function)
    monkeypatch.setenv(MODULES, "numpy, mine.rewards")
    with pytest.raises(ValueError, match=r"may not be used.*\(now: numpy, mine\.rewards\)"):
        score(function)


def test_a_listed_module_and_what_is_in_it_may_be_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder.parent)
    (folder / "__init__.py").touch()
    monkeypatch.setenv(MODULES, "mine")
    assert torch.equal(score("mine.taste:tensor"), EXPECTED)
    with pytest.raises(ValueError, match=r"module 'mine\.broken' does not load: ModuleNotFoundError: .*no_such_module"):
        score("mine.broken:f")
    with pytest.raises(ValueError, match="'mineral' may not be used"):
        score("mineral:f")


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("", "function = '': write file.py:function or module:function"),
        ("taste.py", "write file.py:function"),
        ("taste.py:", "write file.py:function"),
        ("taste.py:a.b", "write file.py:function"),
        ("taste.py:__class__.x()", "write file.py:function"),
        ("none.py:f", "there is no none.py in"),
        ("taste.py:tensr", "taste.py has no function 'tensr'; it has: tensor, array, numbers"),
        ("taste.py:level", "taste.py:level is no function but a value of type int"),
        ("taste.py:lonely", "taste.py:lonely(images) does not take images and prompts"),
        ("taste.py:greedy", "taste.py:greedy(images, prompts, tokenizer) does not take images and prompts"),
        ("broken.py:f", "broken.py does not load: ModuleNotFoundError: No module named 'no_such_module'"),
        ("wrong.py:f", "wrong.py does not load: SyntaxError"),
    ],
)
def test_what_cannot_be_used_is_told_when_it_is_loaded(function: str, told: str) -> None:
    reward = Function(function=function)  # a configuration alone reads nothing
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the text is compared below
        reward.load(CPU)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("few", "must give one number per image, [5], got shape [4]"),
        ("table", "got shape [5, 2]"),
        ("words", "taste.py:words must give 5 numbers, got list"),
        ("nothing", "taste.py:nothing must give 5 numbers, got NoneType"),
        ("nan", "nan for sample 3, prompt 'prompt 3'"),
        ("late", "raised TimeoutError: the database is slow, for sample 0"),
        ("breaks", "raised ZeroDivisionError: no third image, for sample 2, prompt 'prompt 2'"),
    ],
)
def test_what_is_no_score_is_an_error_that_names_the_sample(name: str, told: str) -> None:
    rewards = Rewards([WeightedReward(reward=Function(function=f"taste.py:{name}"))], CPU)
    with pytest.raises(RewardFailed) as caught:
        rewards.score(IMAGES, PROMPTS)
    assert told in str(caught.value)
    assert "resume the run" in str(caught.value)


def test_a_run_is_trained_on_a_function_and_its_code_is_on_record(folder: Path) -> None:
    reward = Function(function="taste.py:tensor")
    assert reward.weight_files() == (folder / "taste.py",)
    assert len(weights_of("function", *reward.weight_files()).sha256) == 64
    events = told(train(toy(reward, iterations=2)))
    assert all("reward/function" in event.metrics for event in events if isinstance(event, IterationDone))
    assert json.loads(reward.model_dump_json()) == {"name": "function", "function": "taste.py:tensor", "timeout": 1800.0}


def gate(rewards: Rewards) -> threading.Event:
    return rewards._loaded[0]._function.__globals__["GATE"]


def test_a_function_that_hangs_is_an_error_that_names_it_and_can_be_closed() -> None:
    rewards = Rewards([WeightedReward(reward=Function(function="taste.py:hangs", timeout=0.3))], CPU)
    scores = rewards.begin()
    scores.add(IMAGES, PROMPTS)
    with pytest.raises(RewardFailed, match=r"taste\.py:hangs did not answer within function\.timeout = 0\.3 s, .*'prompt 0'"):
        drain(scores.collect())
    gate(rewards).set()
    assert torch.equal(rewards.score(IMAGES, PROMPTS)["function"], EXPECTED)  # in a new thread
    rewards.close()


def test_closing_waits_a_little_for_a_function_and_then_leaves_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_module, "GRACE", 0.2)
    rewards = Rewards([WeightedReward(reward=Function(function="taste.py:hangs"))], CPU)
    scores = rewards.begin()
    scores.add(IMAGES, PROMPTS)
    began = time.monotonic()
    rewards.close()
    assert time.monotonic() - began < 10
    with pytest.raises((RewardFailed, CancelledError)):
        drain(scores.collect())
    gate(rewards).set()


def test_a_program_ends_though_a_function_hangs(folder: Path) -> None:
    code = (
        "import torch; from workbench.rewards.function import Function\n"
        "try: Function(function='taste.py:hangs', timeout=0.2).load('cpu')(torch.rand(1, 3, 4, 4), ['a'])\n"
        "except ValueError as error: print(error)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert "did not answer within" in ended.stdout


def test_functions_written_in_c_may_be_used_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODULES, "numpy")
    assert find_function("numpy:hypot") is np.hypot
