"""A form made from the configuration models: labels, ranges, units and help are read from their fields, never written twice."""

import json
import re
import types
from collections.abc import Iterable, Mapping
from html import escape
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def render(model: BaseModel) -> str:
    """The form of a configuration with its present values, as HTML.

    Input names are dotted paths, as in error messages; the fields of an extension carry its name, such as `sampler.asfmc.noise`.
    Plain fields come first, then choices, then groups of settings, folded.
    """
    plain: list[str] = []
    choices: list[str] = []
    lists: list[str] = []
    folded: list[str] = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            target = folded if _is_group(value) else choices
        else:
            target = lists if _is_list(field.annotation) else plain
        target.append(_field(name, name, field, field.annotation, value))
    blocks = {"wb-fields": plain, "wb-choices": choices, "wb-lists": lists, "wb-folds": folded}
    return "".join(f'<div class="{name}">{"".join(parts)}</div>' for name, parts in blocks.items())


def knobs(config: BaseModel, keys: Iterable[str]) -> str:
    """Single fields of a configuration by dotted key, such as `optimizer.learning_rate`, named by their key.

    Where a key holds an extension, all of its numbers. Keys that the configuration does not have are passed over.
    """
    found = []
    for key in keys:
        node: Any = config
        *path, last = key.split(".")
        for part in path:
            node = getattr(node, part, None)
        value = getattr(node, last, None)
        if isinstance(value, BaseModel):
            numbers = [name for name in type(value).model_fields if isinstance(getattr(value, name), int | float)]
            found.append(knobs(config, [f"{key}.{name}" for name in numbers]))
        elif isinstance(node, BaseModel) and last in type(node).model_fields:
            info = type(node).model_fields[last]
            label = _label(last) if len(path) == 0 else f"{_label(last)} <span>{path[0]}</span>"
            found.append(_wrapped(key, label, info.description, _input(key, info, info.annotation, value)))
    return "".join(found)


def key_values(text: str) -> dict[str, str]:
    """Settings as people type them, one `key = value` on a line. Raises: ValueError: names the line that is not."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, equals, content = line.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"write one KEY = VALUE on a line, as in grpo.group_size = 16; got {line!r}")
        found[key.strip()] = content.strip()
    return found


def under(prefix: str, html: str) -> str:
    """A form whose fields have names of their own in a document that holds several."""
    return re.sub(r'\b(id|for|aria-describedby)="([fh]-)', rf'\1="{prefix}-\2', html)


def read(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of a configuration from a form's inputs.

    Args:
        values: text or bool by dotted name, as the browser collected them; unknown names are passed on, to be refused.
    """
    tree: dict[str, Any] = {}
    for name, value in values.items():
        node = tree
        *path, last = name.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return {
        name: _read(model.model_fields[name].annotation, value) if name in model.model_fields else value
        for name, value in tree.items()
    }


def _read(annotation: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        if get_origin(annotation) is not tuple or not isinstance(value, str):
            return value
        parts = value.splitlines() if _is_lines(annotation) else value.split(",")
        return [part.strip() for part in parts if part.strip()]
    members = _members(annotation)
    if get_origin(annotation) is tuple:
        return _read_list(get_args(annotation)[0], value)
    if len(members) == 1 and "name" not in members[0].model_fields:
        return read(members[0], value)
    chosen = next((member for member in members if _name_of(member) == value.get("name")), None)
    if chosen is None:
        return {"name": value.get("name")}
    return {"name": value["name"], **read(chosen, value.get(value["name"], {}))}


def _read_list(item: type[BaseModel], value: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each choice that is switched on."""
    choice, members = _choice_of(item)
    rows = []
    for member in members:
        row = value.get(_name_of(member), {})
        if row.get("use"):
            own = {key: inner for key, inner in row.items() if key in item.model_fields}
            inner = row.get(choice, {})
            rows.append({**own, choice: {"name": _name_of(member), **(read(member, inner) if inner else {})}})
    return rows


def _field(path: str, name: str, field: FieldInfo, annotation: Any, value: Any) -> str:
    if _is_group(value):
        summary = f"<summary>{_label(name)}<span>{_note(type(value))}</span></summary>"
        return f'<details class="wb-fold">{summary}<div class="wb-fields">{_own_fields(path, value)}</div></details>'
    if isinstance(value, BaseModel):
        return _choice(path, name, field, _members(annotation), value)
    if _is_list(annotation):
        return _list(path, name, field, get_args(annotation)[0], value)
    return _wrapped(path, _label(name), field.description, _input(path, field, annotation, value), _when(field))


def _choice(path: str, name: str, field: FieldInfo, members: tuple[type[BaseModel], ...], value: BaseModel) -> str:
    """A menu of extensions, with the fields of the chosen one below it."""
    chosen = getattr(value, "name", "")
    options = "".join(
        f'<option value="{_name_of(m)}"{_domain(m)}{_on("selected", _name_of(m) == chosen)}>{_name_of(m)}</option>'
        for m in members
    )
    menu = (
        f'<select id="f-{path}.name" name="{path}.name" data-choice="{path}" aria-describedby="h-{path}.name">{options}</select>'
    )
    parts = [_wrapped(f"{path}.name", _label(name), field.description, menu)]
    for member in members:
        label = _name_of(member)
        current = value if label == chosen else member()
        fields = f'<p>{_note(member)}</p><div class="wb-fields">{_own_fields(f"{path}.{label}", current)}</div>'
        hidden = _on("hidden", label != chosen)
        parts.append(f'<div class="wb-extension" data-of="{path}" data-name="{label}"{hidden}>{fields}</div>')
    return f'<fieldset class="wb-choice"><legend class="wb-sr">{_label(name)}</legend>{"".join(parts)}</fieldset>'


def _list(path: str, name: str, field: FieldInfo, item: type[BaseModel], values: tuple[BaseModel, ...]) -> str:
    """One line for each extension that could be in the list: a switch, and the entry's own fields."""
    choice, members = _choice_of(item)
    present = {getattr(value, choice).name: value for value in values}
    lines = []
    for member in members:
        label = _name_of(member)
        entry = present.get(label)
        row = f"{path}.{label}"
        switch = f'<input type="checkbox" name="{row}.use"{_on("checked", entry is not None)}>'
        cells = [f'<label class="wb-inline wb-switch">{switch}{label}</label><small>{_note(member)}</small>']
        for key, info in item.model_fields.items():
            if key != choice:
                cells.append(_inline(f"{row}.{key}", key, info, getattr(entry, key) if entry else info.default))
        extension = getattr(entry, choice) if entry else member()
        for key, info in member.model_fields.items():
            if key != "name":
                cells.append(_inline(f"{row}.{choice}.{key}", key, info, getattr(extension, key)))
        lines.append(f'<div class="wb-line"{_domain(member)}>{"".join(cells)}</div>')
    legend = f"<legend>{_label(name)}</legend><small>{_plain(field.description)}</small>"
    return f'<fieldset class="wb-list" data-field="{path}">{legend}{"".join(lines)}</fieldset>'


def _inline(path: str, name: str, field: FieldInfo, value: Any) -> str:
    """A field in a line of others; its help shows on hovering."""
    control = _input(path, field, field.annotation, value, described=False)
    return f'<label class="wb-inline" title="{escape(field.description or "")}">{_label(name)}{control}</label>'


def _own_fields(path: str, model: BaseModel) -> str:
    """All fields of a model but its name."""
    fields = type(model).model_fields.items()
    return "".join(
        _field(f"{path}.{key}", key, info, info.annotation, getattr(model, key)) for key, info in fields if key != "name"
    )


def _wrapped(path: str, label: str, help_text: str | None, control: str, when: str = "") -> str:
    note = f'<small id="h-{path}">{_plain(help_text)}</small>'
    return f'<div class="wb-field" data-field="{path}"{when}><label for="f-{path}">{label}</label>{control}{note}</div>'


def _domain(member: type[BaseModel]) -> str:
    """What an extension is about, for the browser to offer only what fits the task."""
    return f' data-domain="{getattr(member, "domain", "")}"'


def _when(field: FieldInfo) -> str:
    """The values of its neighbours at which a field matters, for the browser to hide it elsewhere."""
    extra = field.json_schema_extra
    return f' data-when="{escape(json.dumps(extra["when"]))}"' if isinstance(extra, dict) and "when" in extra else ""


def _input(path: str, field: FieldInfo, annotation: Any, value: Any, *, described: bool = True) -> str:
    names = f'id="f-{path}" name="{path}"' + (f' aria-describedby="h-{path}"' if described else "")
    if isinstance(value, bool):
        return f'<input type="checkbox" {names}{_on("checked", value)}>'
    if get_origin(annotation) is Literal:
        options = "".join(f'<option value="{o}"{_on("selected", o == value)}>{o}</option>' for o in get_args(annotation))
        return f"<select {names}>{options}</select>"
    if isinstance(value, int | float):
        limits = _limits(field)
        step = "1" if isinstance(value, int) and annotation is int else "any"
        # a refused keystroke explains nothing; ranges are hints here, and the configuration's own sentence is shown
        bounds = "".join(f' data-{key}="{number:g}"' for key, number in limits.items())
        return f'<input type="number" step="{step}" {names}{bounds} value="{value!r}">'
    if _is_lines(annotation):
        return _lines(names, "\n".join(value))
    if isinstance(value, str) and "\n" in value:
        return _lines(names, value)
    if isinstance(value, tuple):
        return f'<input type="text" {names} value="{escape(", ".join(str(part) for part in value))}">'
    if value is None:
        return f'<input type="text" {names} value="">'
    limit = next((f' maxlength="{m.max_length}"' for m in field.metadata if isinstance(m, MaxLen)), "")
    return f'<input type="text" {names}{limit} value="{escape(str(value))}">'


def _lines(names: str, text: str) -> str:
    """A field of several lines, as high as what it holds."""
    return f'<textarea rows="{min(8, max(2, text.count(chr(10)) + 1))}" {names}>{escape(text)}</textarea>'


def _limits(field: FieldInfo) -> dict[str, float]:
    found: dict[str, float] = {}
    for rule in field.metadata:
        if isinstance(rule, Ge | Gt):
            found["min"] = float(getattr(rule, "ge", getattr(rule, "gt", 0)))  # type: ignore[arg-type]
        if isinstance(rule, Le | Lt):
            found["max"] = float(getattr(rule, "le", getattr(rule, "lt", 0)))  # type: ignore[arg-type]
    return found


def _members(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The models that a field may hold: one, or those of a union told apart by `name`."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return tuple(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))


def _choice_of(item: type[BaseModel]) -> tuple[str, tuple[type[BaseModel], ...]]:
    """The field of a list's entries that holds the extension, and what it may be."""
    for name, field in item.model_fields.items():
        members = _members(field.annotation)
        if members:
            return name, members
    raise ValueError(f"{item.__name__} holds no extension, so a list of it has no form")


def _name_of(member: type[BaseModel]) -> str:
    return str(member.model_fields["name"].default)


def _note(model: type[BaseModel]) -> str:
    """The first line of a model's docstring."""
    return _plain((model.__doc__ or "").split("\n")[0])


def _plain(text: str | None) -> str:
    """Help as text for people."""
    return escape((text or "").replace("`", ""))


def _is_group(value: Any) -> bool:
    """Nested settings, as against an extension that is chosen by name."""
    return isinstance(value, BaseModel) and "name" not in type(value).model_fields


def _is_list(annotation: Any) -> bool:
    """Several extensions with settings of their own beside them."""
    item = get_args(annotation)[0] if get_origin(annotation) is tuple else None
    return isinstance(item, type) and issubclass(item, BaseModel)


def _is_lines(annotation: Any) -> bool:
    """Several texts, which may hold commas, so each has a line of its own."""
    return get_origin(annotation) is tuple and get_args(annotation)[0] is str


def _label(name: str) -> str:
    words = name.replace("_", " ")
    return escape({"grpo": "GRPO", "kl_weight": "KL weight"}.get(name, words[:1].upper() + words[1:]))


def _on(attribute: str, yes: bool) -> str:
    return f" {attribute}" if yes else ""
