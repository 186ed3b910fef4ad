"""JSON in which every float comes back exactly, NaN and infinity included, and dataclasses need no code of their own."""

import dataclasses
import json
import math
from pathlib import PurePath
from typing import Any

_NOT_FINITE = "not_finite"


def to_json(value: Any, indent: int | None = None) -> str:
    """Standard JSON; keys become text, tuples lists, arrays nested lists, and a float that is not finite `{"not_finite": "nan"}`.

    Raises: TypeError: names the type that has no JSON form.
    """
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(value, default=_plain, allow_nan=False, separators=separators, indent=indent)
    except ValueError:  # rare, and walking thousands of numbers in Python is not free
        return json.dumps(_finite(value), allow_nan=False, separators=separators, indent=indent)


def from_json(text: str | bytes) -> Any:
    """The value that `to_json` wrote. Raises: ValueError: if this is not JSON."""
    rare = _NOT_FINITE in text if isinstance(text, str) else _NOT_FINITE.encode() in text
    return json.loads(text, object_hook=_restore if rare else None)  # the hook costs more than the reading


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of a dataclass, one level deep and not copied, as `dataclasses.asdict` would."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields_of(value)
    if hasattr(value, "model_dump"):  # settings
        return value.model_dump()
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_NOT_FINITE: repr(float(value))}
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    return _finite(_plain(value))


def _restore(record: dict[str, Any]) -> Any:
    return float(record[_NOT_FINITE]) if record.keys() == {_NOT_FINITE} else record
