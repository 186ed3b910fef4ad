"""The notebooks that may be run: those of one folder, with the parameters that a tagged cell of each declares."""

import ast
import hashlib
import io
import json
import os
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import workbench
from workbench.masking import is_secret

if TYPE_CHECKING:
    from pydantic import BaseModel  # loaded where parameters are read: a supervisor only looks for the file

VARIABLE = "WORKBENCH_NOTEBOOKS"
"""The environment variable that names another folder of notebooks than the project's own."""

TAG = "parameters"

_TITLE = 160  # most characters of a run's title that say its parameters
_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook. `type` is its annotation as it is written there."""

    name: str
    type: str
    default: Any
    help: str


@dataclass(frozen=True)
class Notebook:
    """A notebook of the folder. `problem` says why it cannot be run, where it cannot; it then has no parameters."""

    name: str
    path: Path
    sha256: str
    title: str
    summary: str = ""  # Markdown: what its first cell says below the title
    parameters: tuple[Parameter, ...] = ()
    problem: str = ""

    @property
    def model(self) -> "type[BaseModel]":
        """Its parameters as a model. Raises: ValueError: if it cannot be run, saying why."""
        if self.problem:
            raise ValueError(self.problem)
        return _model(self.name, tuple((each.name, each.type, repr(each.default), each.help) for each in self.parameters))


def folder() -> Path:
    """Where the notebooks are."""
    return Path(os.environ.get(VARIABLE) or Path(workbench.__file__).parent.parent / "notebooks").absolute()


def notebooks() -> list[Notebook]:
    """All notebooks of the folder by name, also those that cannot be run."""
    paths = sorted(path for path in folder().glob("*.ipynb") if not path.name.startswith("."))
    return [_look(path) for path in paths if _is_inside(path)]


def notebook(name: str) -> Notebook:
    """The notebook of this name. Raises: ValueError: if the folder holds none, or the name leads out of it."""
    return _look(_place(name))


def read_parameters(found: Notebook, values: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a notebook, those that are not given by their defaults.

    Args:
        values: by name; text, as typed on a command line, is read by the type of the parameter.
    Raises: ValueError: one line for each mistake, naming the value and what would be accepted.
    """
    from pydantic import ValidationError

    model = found.model
    kinds = {name: info.annotation for name, info in model.model_fields.items()}
    try:
        return model.model_validate({name: _from_text(each, kinds.get(name)) for name, each in values.items()}).model_dump()
    except ValidationError as error:
        raise ValueError("\n".join(_explain(item, found, values) for item in error.errors())) from None


def checked_notebook(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What a run of a notebook records, and a title: its name, all of its parameters, and the digest of its file.

    Args:
        config: {"notebook": name, "parameters": some of them, "sha256": of the notebook that is meant, if a certain one is}.
    Raises: ValueError: if there is no such notebook, it has changed, cannot be run, or a parameter is wrong.
    """
    if not isinstance(config.get("notebook"), str):
        raise ValueError(f"a run of a notebook needs its name as 'notebook', got {config.get('notebook')!r}")
    if not isinstance(config.get("parameters", {}), Mapping):
        raise ValueError(f"parameters = {config['parameters']!r}: they are given by name")
    found = notebook(config["notebook"])
    if config.get("sha256") not in (None, found.sha256):
        raise ValueError(changed(found.name))
    parameters = read_parameters(found, config.get("parameters", {}))
    others = [each.name for each in found.parameters if parameters[each.name] != each.default]
    told = ", ".join(f"{name} = {parameters[name]}" for name in others)
    title = f"{found.title}: {told}" if told else found.title
    return {"notebook": found.name, "parameters": parameters, "sha256": found.sha256}, _shortened(title)


def checked_source(config: Mapping[str, Any]) -> bytes:
    """The notebook that a run was queued with, as it still is. Raises: ValueError: if it is gone or has changed since."""
    content = _place(config["notebook"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != config["sha256"]:
        raise ValueError(changed(config["notebook"]))
    return content


def changed(name: str) -> str:
    """What to say of a notebook that is not the one that was meant."""
    return f"notebook {name!r} has changed since this run was set up; queue it anew to run it as it is now"


def code_cells(content: bytes) -> int:
    """How many cells of a notebook hold code."""
    return sum(cell["cell_type"] == "code" and bool(_source(cell).strip()) for cell in json.loads(content)["cells"])


def _place(name: str) -> Path:
    path = folder() / f"{name}.ipynb"
    if os.sep in name or name.startswith(".") or not _is_inside(path):
        choices = ", ".join(each.name for each in notebooks()) or "none"
        raise ValueError(f"there is no notebook {name!r} in {folder()}; choose from: {choices}")
    return path


def _is_inside(path: Path) -> bool:
    """Whether a file is there, in the folder itself also when links are followed."""
    real = path.resolve()
    return real.is_file() and real.parent == folder().resolve()


def _look(path: Path) -> Notebook:
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _read(path: Path, _modified: int, _size: int) -> Notebook:
    """A notebook from its file, read again when that has changed."""
    found = Notebook(path.stem, path, sha256="", title=path.stem)
    try:
        content = path.read_bytes()
        found = replace(found, sha256=hashlib.sha256(content).hexdigest())
        cells = _cells(content)
        title, summary = _heading(cells, path.stem)
        found = replace(found, title=title, summary=summary)
        found = replace(found, parameters=tuple(_parameters(cells)))
        _check_defaults(found)
    except Exception as error:  # whatever is wrong with one, the others can be run
        known = isinstance(error, ValueError | SyntaxError | tokenize.TokenError | OSError)
        why = str(error) if known else f"it is damaged: {type(error).__name__}: {error}"
        return replace(found, parameters=(), problem=f"notebook {path.stem!r}: {why}")
    return found


def _check_defaults(found: Notebook) -> None:
    from pydantic import ValidationError

    try:
        found.model.model_validate({each.name: each.default for each in found.parameters})
    except ValidationError as error:
        wrong = ", ".join(str(item["loc"][0]) for item in error.errors())
        raise ValueError(f"the default does not fit the type of: {wrong}") from None


def _cells(content: bytes) -> list[dict[str, Any]]:
    try:
        read = json.loads(content)
        cells, language = read["cells"], read["metadata"].get("kernelspec", {}).get("language") or "python"
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("it is no notebook of format 4; save it again in JupyterLab") from None
    if language.lower() != "python":
        raise ValueError(f"it is written in {language}; only Python runs here")
    return list(cells)


def _heading(cells: list[dict[str, Any]], name: str) -> tuple[str, str]:
    """Title and summary: the heading of the first Markdown cell, and what follows it."""
    text = next((_source(cell) for cell in cells if cell["cell_type"] == "markdown"), "").strip()
    first, _, rest = text.partition("\n")
    return (first.lstrip("# ").strip(), rest.strip()) if first.startswith("#") else (name, text)


def _parameters(cells: list[dict[str, Any]]) -> Iterator[Parameter]:
    """What the tagged cell declares: each an annotated literal with a comment, as in `steps: int = 4  # sampling steps`."""
    tagged = [cell for cell in cells if TAG in cell.get("metadata", {}).get("tags", ()) and cell["cell_type"] == "code"]
    if len(tagged) != 1:
        raise ValueError(
            f"{len(tagged) or 'no'} of its cells {'have' if len(tagged) > 1 else 'has'} the tag {TAG!r}; give it to the one "
            "cell that sets the parameters, if only an empty one"
        )
    source = _source(tagged[0])
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.module == "typing":
            continue
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            raise ValueError(f"{ast.unparse(node)!r} is no parameter; write it as in: steps: int = 4  # sampling steps")
        name = node.target.id
        if name.startswith("_"):
            raise ValueError(f"parameter {name!r} must begin with a letter")
        if is_secret(name):
            raise ValueError(
                f"parameter {name!r} seems to hold a secret, and parameters are written down with the run; let the cells that "
                "need it read an environment variable"
            )
        help = comments.get(node.end_lineno or node.lineno, "")
        if not help:
            raise ValueError(f"parameter {name!r} needs a comment on its line that says what it is")
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise ValueError(f"parameter {name!r} must be a literal, got {ast.unparse(node.value)}") from None
        yield Parameter(name, ast.unparse(node.annotation), default, help)


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


@lru_cache(maxsize=256)
def _model(name: str, parameters: tuple[tuple[str, str, str, str], ...]) -> "type[BaseModel]":
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {
        each: (_type(ast.parse(kind, mode="eval").body), Field(ast.literal_eval(default), description=help))
        for each, kind, default, help in parameters
    }
    config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())
    return create_model(name, __config__=config, **fields)


def _type(node: ast.expr) -> Any:
    """A type from its annotation; only what values on a command line and in JSON can be."""
    match node:
        case ast.Name(id=name) if name in _TYPES:
            return _TYPES[name]
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_type(left), _type(right)]  # noqa: UP007
        case ast.Subscript(value=ast.Name(id="list"), slice=inner):
            return list[_type(inner)]  # type: ignore[misc]
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, inner])):
            return dict[_type(key), _type(inner)]  # type: ignore[misc]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            choices = ast.literal_eval(inner)
            return Literal[choices]  # type: ignore[valid-type]
    known = ", ".join([*_TYPES, "list[float]", "int | None", 'Literal["a", "b"]'])
    raise ValueError(f"type {ast.unparse(node)!r} is not understood; choose from such as: {known}")


def _from_text(value: Any, kind: Any) -> Any:
    """Text as typed on a command line as a value, unless the parameter itself is text."""
    if not isinstance(value, str) or kind is str:
        return value
    if value.strip().lower() in ("none", "null") and type(None) in get_args(kind):
        return None
    if get_origin(kind) not in (list, dict) and any(each is str or isinstance(each, str) for each in get_args(kind)):
        return value
    import yaml

    for read in (json.loads, yaml.safe_load):
        try:
            return read(value)
        except (ValueError, yaml.YAMLError):
            continue
    return value


def _explain(item: Any, found: Notebook, values: Mapping[str, Any]) -> str:
    """One mistake as a line."""
    name = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        choices = ", ".join(each.name for each in found.parameters) or "none"
        return f"notebook {found.name!r} has no parameter {name!r}; choose from: {choices}"
    kind = next(each.type for each in found.parameters if each.name == name)
    rule = item["msg"][0].lower() + item["msg"][1:]
    return f"{name} = {values.get(name)!r}: {rule}; its type is {kind}"


def _shortened(text: str) -> str:
    return text if len(text) <= _TITLE else f"{text[: _TITLE - 1]}…"
