"""Frozen dataclasses from JSON and back, checked field by field, and the JSON Schema they stand for.

Records come from other people's machines: what is not exactly the described form is refused, by the name of its place.
Unknown fields are passed over, so that a newer record of the same version can be read.
"""

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
N_INT_BITS = 64
_SCALARS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("boolean", (bool,)),
    int: ("integer", (int,)),
    float: ("number", (int, float)),
    str: ("string", (str,)),
}


class ShapeError(ValueError):
    """A value that is not what its place asks for; the text names place and value."""


def from_json(kind: type[T], value: Any, place: str = "record") -> T:
    """`value`, parsed JSON, as an instance of the dataclass `kind`. Raises ShapeError."""
    made: T = _parse(kind, value, place)
    return made


def to_json(value: Any) -> Any:
    """A dataclass as what JSON has."""
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def json_schema(kind: type) -> dict[str, Any]:
    """The JSON Schema of a dataclass, its parts under $defs."""
    parts: dict[str, Any] = {}
    top = _describe(kind, parts)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": parts}


def _parse(kind: Any, value: Any, place: str) -> Any:
    if is_dataclass(kind):
        return _parse_object(kind, value, place)
    origin, args = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(place, value, "a list")
        if args[-1] is not ...:
            if len(value) != len(args):
                raise _wrong(place, value, f"a list of {len(args)}")
            return tuple(_parse(arg, item, f"{place}[{i}]") for i, (arg, item) in enumerate(zip(args, value)))  # noqa: B905
        return tuple(_parse(args[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in args:
            raise _wrong(place, value, f"one of: {', '.join(map(str, args))}")
        return value
    if origin in (Union, types.UnionType):  # X | None
        return None if value is None else _parse(args[0], value, place)
    name, accepted = _SCALARS[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(place, value, name)
    if kind is float:
        value = float(str(value))  # str: an integer too large for a float is infinite, not an error
        if not math.isfinite(value):
            raise _wrong(place, value, "a finite number")
    if kind is int and value.bit_length() >= N_INT_BITS:
        raise _wrong(place, value, f"an integer of {N_INT_BITS} bits")
    return value


def _parse_object(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(place, value, "an object")
    hints = get_type_hints(kind)
    found = {}
    for field in fields(kind):
        if field.name in value:
            found[field.name] = _parse(hints[field.name], value[field.name], f"{place}.{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ShapeError(f"{place}.{field.name} is missing")
    return kind(**found)


def _wrong(place: str, value: Any, wanted: str) -> ShapeError:
    shown = ascii(value)
    return ShapeError(f"{place} is {shown if len(shown) <= 40 else shown[:37] + '...'}, not {wanted}")


def _describe(kind: Any, parts: dict[str, Any]) -> dict[str, Any]:
    if is_dataclass(kind):
        assert isinstance(kind, type)
        if kind.__name__ not in parts:
            parts[kind.__name__] = {}  # stands for itself while its fields are described
            hints = get_type_hints(kind)
            parts[kind.__name__] = {
                "type": "object",
                "description": (kind.__doc__ or "").partition("\n")[0],
                "properties": {field.name: _describe(hints[field.name], parts) for field in fields(kind)},
                "required": [field.name for field in fields(kind) if field.default is MISSING],
            }
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, args = get_origin(kind), get_args(kind)
    if origin is tuple and args[-1] is ...:
        return {"type": "array", "items": _describe(args[0], parts)}
    if origin is tuple:
        items = [_describe(arg, parts) for arg in args]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_describe(args[0], parts), {"type": "null"}]}
    return {"type": _SCALARS[kind][0]}
