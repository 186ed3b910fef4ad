"""The project as a whole: who imports whom, that checkers are content, and that lists kept in two places agree."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from workbench.__main__ import app as command_line
from workbench.benchmarks import BENCHMARKS
from workbench.cli import COMMANDS
from workbench.config import PRESETS, RunConfig
from workbench.contracts import Extension
from workbench.models import MODELS
from workbench.objectives import OBJECTIVES
from workbench.rewards import REWARDS
from workbench.samplers import SAMPLERS
from workbench.tasks import TASKS

ROOT = Path(__file__).parent.parent
SOURCES = sorted([ROOT / "app.py", *(ROOT / "workbench").rglob("*.py")])
EXTENSIONS = [(kind, name) for kind in (SAMPLERS, OBJECTIVES, REWARDS, MODELS, TASKS) for name in kind]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LARGEST_FILE = 8 * 2**20  # bytes

OWNERS = {
    "threading": ("workbench.jobs", "workbench.experiments.papermilling"),
    "concurrent": (  # pages only hand futures on
        "workbench.jobs",
        "workbench.making",
        "workbench.rewards.asking",
        "workbench.rewards.function",
        "workbench.rewards.jpeg",
        "workbench.rewards.ocr",
        "workbench.scoring",
        "workbench.studio",
        "workbench.panels",
        "workbench.benchmarks.methods",
    ),
    "gradio": ("app", "workbench.panels", "workbench.cli.doctor"),
    "plotly": ("workbench.figures",),
    "diffusers": ("workbench.models",),
    "transformers": ("workbench.models", "workbench.rewards"),
    "httpx": ("workbench.rewards.asking",),
    "anyio": ("workbench.rewards.asking", "workbench.reward_server"),
    "fastapi": ("workbench.reward_server",),
    "uvicorn": ("workbench.reward_server",),
    "rapidocr": ("workbench.rewards",),
    "onnxruntime": ("workbench.rewards",),
    "peft": ("workbench.models",),
    "deepspeed": ("workbench.models.sharding",),
    "sqlalchemy": ("workbench.store", "workbench.tables", "workbench.experiments"),
    "papermill": ("workbench.experiments.papermilling",),
    "apscheduler": ("workbench.experiments.triggers",),
    "optuna": ("workbench.experiments.search",),
    "submitit": ("workbench.experiments.clusters",),
    "dask": ("workbench.experiments.clusters",),
    "distributed": ("workbench.experiments.clusters",),
    "typer": ("app", "workbench.cli", "workbench.__main__"),
}
"""A library and the only modules that may import it."""

LAYERS = (
    {"flow"},
    {"contracts", "grpo", "events", "optim", "newest", "first_line", "whole_file", "places", "prompt_cache", "weight_cache"},
    {"samplers", "rewards", "models", "tasks", "lab", "energy"},
    {"rollout", "lesson"},
    {"objectives"},
    {"settings", "rules"},
    {"presets"},
    {"config"},
    {"planning", "evaluate", "scoring", "sampling", "axes", "pathlab", "retrace", "memory", "out_of_memory", "footprint"},
    {"ranks", "examiner", "learner", "update", "preflight", "train", "pretrain", "recipes", "preferences", "plane"}
    | {"distillation", "distillation_data", "captioned", "two_time", "linked"},
    {
        "store",
        "jobs",
        "history",
        "health",
        "records",
        "pictures",
        "png",
        "checkpoints",
        "tables",
        "exact_json",
        "processes",
        "policies",
        "sizing",
        "galleries",
        "trying",
        "votes",
        "branching",
        "shelf",
        "export",
        "merging",
        "making",
        "needs",
        "pretrained",
        "lora_runs",
        "example",
        "masking",
        "provenance",
        "replay",
        "reward_server",
    },
    {"experiments"},
    {"figures", "studio", "report", "model_card", "card_text", "digest_page", "rendering", "experiment"},
    {"panels"},
    {"benchmarks"},
    {"cli", "__main__"},
)
"""From the bottom up: a module imports from its own layer and from those below."""

QUIET = {
    "flow",
    "contracts",
    "grpo",
    "samplers",
    "objectives",
    "rewards",
    "models",
    "tasks",
    "rollout",
    "lesson",
    "rules",
    "planning",
    "evaluate",
    "scoring",
    "sampling",
    "axes",
    "pathlab",
    "retrace",
    "plane",
    "newest",
    "first_line",
    "examiner",
    "learner",
    "update",
    "train",
}
"""Modules that write no file, never sleep and say nothing."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path, *, at_run_time: bool = True) -> Iterator[str]:
    """Dotted names that a file imports, wherever in the file; those only for the type checker are left out."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if at_run_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(child for statement in node.body for child in ast.walk(statement))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> int | None:
    parts = module.split(".")
    if parts[0] != "workbench" or len(parts) < 2:
        return None
    return next((height for height, names in enumerate(LAYERS) if parts[1] in names), None)


def run_python(*arguments: str, timeout: float = 290) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_libraries_are_imported_by_their_owners_alone(path: Path) -> None:
    module = module_name(path)
    for name in imports(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or module.startswith(owners), f"{module} imports {name}, which belongs to {', '.join(owners)}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_nothing_imports_from_a_layer_above_its_own(path: Path) -> None:
    module = module_name(path)
    own = layer(module)
    for name in imports(path):
        other = layer(name)
        assert own is None or other is None or other <= own, f"{module} imports {name}, which is above it"


def test_every_module_has_its_layer() -> None:
    unplaced = {module for path in SOURCES if (module := module_name(path)).count(".") and layer(module) is None}
    assert not unplaced


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if module_name(path).split(".")[1:2] and module_name(path).split(".")[1] in QUIET],
    ids=module_name,
)
def test_the_loop_and_what_is_below_it_touch_neither_disk_nor_clock(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("open", "print", "time.sleep", "sleep"), f"line {node.lineno}: {called}"
            assert not called.endswith((".write_text", ".write_bytes", ".mkdir", ".unlink")), f"line {node.lineno}: {called}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_code_keeps_the_house_rules(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
            only_pass = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            assert not (only_pass and ast.unparse(node.type) == "Exception"), f"line {node.lineno}: swallows every exception"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "dill", "joblib"}, f"line {node.lineno}: pickle"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.save", "time.sleep"), f"line {node.lineno}"
            plain = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
            assert called != "torch.load" or plain, f"line {node.lineno}: torch.load runs what a file holds"
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert "NotImplementedError" not in ast.unparse(node.exc), f"line {node.lineno}"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_and_public_classes_say_what_they_are(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            described = ast.get_docstring(node) or module_name(path).endswith(("config", "settings", "events"))
            assert described, f"class {node.name} has no docstring"


@pytest.mark.parametrize(("kind", "name"), EXTENSIONS, ids=[name for _, name in EXTENSIONS])
def test_every_extension_is_made_without_arguments_and_explains_its_settings(kind: dict[str, type[Extension]], name: str) -> None:
    extension = kind[name]()
    assert getattr(extension, "name") == name  # noqa: B009
    assert type(extension).__doc__
    for field, info in type(extension).model_fields.items():
        assert field == "name" or info.description, f"{name}.{field} has no description"


def test_every_setting_of_a_run_explains_itself() -> None:
    for name, info in RunConfig.model_fields.items():
        settings = info.annotation
        if isinstance(settings, type) and issubclass(settings, RunConfig.__mro__[1]):
            for field, inner in settings.model_fields.items():
                assert inner.description, f"{name}.{field} has no description"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    assert RunConfig.model_validate_json(PRESETS[name].model_dump_json()) == PRESETS[name]


def test_ruff_is_content() -> None:
    checked = run_python("-m", "ruff", "check", ".")
    assert checked.returncode == 0, checked.stdout


def test_the_type_checker_is_content() -> None:
    checked = run_python("-m", "mypy")
    assert checked.returncode == 0, checked.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'gradio', 'plotly', 'sqlalchemy', 'scipy', 'numpy'} & set(sys.modules)"
    loaded = run_python("-c", f"import sys, workbench; print(sorted({heavy}))")
    assert loaded.stdout.strip() == "[]", loaded.stderr


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'gradio', 'sqlalchemy', 'numpy', 'scipy', 'pydantic'} & set(sys.modules)"
    loaded = run_python("-c", f"import sys, workbench.__main__; print(sorted({heavy}))")
    assert loaded.stdout.strip() == "[]", loaded.stderr


def test_environment_is_in_step_with_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = PYPROJECT["project"]
    python = next(item for item in environment["dependencies"] if isinstance(item, str) and item.startswith("python="))
    assert SpecifierSet(project["requires-python"]).contains(python.removeprefix("python=") + ".0")
    (ours,) = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    extras = set(re.fullmatch(r"-e \.\[(.*)\]", ours)[1].split(","))
    assert extras <= set(project["optional-dependencies"])
    assert environment["name"] == project["name"]


def test_constraints_pin_every_dependency_to_a_version_that_satisfies_it() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {_normal(pin.name): pin for pin in map(Requirement, lines)}
    assert lines[0].startswith("torch==")
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "exact versions only: no index, path or local build"
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    for requirement in map(Requirement, wanted):
        if requirement.name != project["name"]:
            (pin,) = pins[_normal(requirement.name)].specifier
            assert requirement.specifier.contains(pin.version), f"{requirement} against {pin.version}"


def test_no_tracked_file_is_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    tracked = [ROOT / name for name in listed.split("\0") if name]
    assert not [str(path) for path in tracked if path.is_file() and path.stat().st_size > LARGEST_FILE]


def test_commands_in_the_readme_exist() -> None:
    told = re.findall(r"python -m workbench ([a-z]+(?:-[a-z]+)*)", (ROOT / "README.md").read_text())
    assert set(COMMANDS) == set(told)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`?make ([a-z]+)", (ROOT / "README.md").read_text())) <= set(targets)


def test_python_in_the_readme_imports_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_options_in_the_readme_exist() -> None:
    known = {option for command in command_line.registered_commands for option in _options(command.callback)}
    told = set(re.findall(r"(?<=\s)--[a-z]+", "\n".join(re.findall(r"python -m workbench .*", (ROOT / "README.md").read_text()))))
    assert told <= known | {"--help"}


def _options(callback: object) -> set[str]:
    import typer

    application = typer.Typer()
    application.command()(callback)
    return {option for parameter in typer.main.get_command(application).params for option in parameter.opts}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_name_functions_that_exist(name: str) -> None:
    module, function = BENCHMARKS[name].split(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
