"""JSON Schemas with their objects closed: where a schema does not say, an object holds what it names and no more.

A small model that may add names adds them for ever. Whatever is valid under the closed schema is valid under the
original: names are only taken away, and not where fewer of them could make something valid (`not`, a `oneOf` whose
parts overlap), nor where several schemas speak of one object and each would forbid what the other names. Such parts
stay as they are.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

DEFINITIONS = ("$defs", "definitions")
BY_NAME = ("properties", "patternProperties")  # word -> schemas by name
PARTS = ("items", "prefixItems", "additionalItems", "additionalProperties", "anyOf", "allOf")  # a schema, or several
OF_THE_OBJECT = ("properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "minProperties")
IN_PLACE = ("$ref", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas")  # speak of the same object again


def closed(schema: Any) -> Any:
    """A copy of a JSON Schema with its objects closed where that is sound."""
    closing = _Closing(schema)
    closing.close(schema, "#")  # finds what has to stay as it is
    return closing.close(schema, "#")


class _Closing:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._left: set[str] = set()  # pointers to what something that stays as it is refers to

    def close(self, schema: Any, pointer: str) -> Any:
        if not isinstance(schema, dict) or pointer in self._left:
            return schema
        is_alone = n_voices(schema) <= 1
        if not is_alone:
            self._leave({word: value for word, value in schema.items() if word not in DEFINITIONS})
        found = {}
        for word, value in schema.items():
            here = f"{pointer}/{word}"
            if word in DEFINITIONS or (word in BY_NAME and is_alone):
                found[word] = self._close_named(value, here)
            elif word in PARTS and is_alone:
                found[word] = self._close_parts(value, here)
            elif word == "oneOf" and is_alone and self._is_told_apart(value):
                found["anyOf"] = self._close_parts(value, here)  # the same then, and what grammars know
            else:
                self._leave(value)
                found[word] = value
        names = found.get("properties")
        if is_alone and isinstance(names, dict) and "minProperties" not in found:
            wanted = found.get("required", ())
            if isinstance(wanted, list | tuple) and all(isinstance(name, str) and name in names for name in wanted):
                found.setdefault("additionalProperties", False)
        return found

    def _close_named(self, schemas: Any, pointer: str) -> Any:
        if not isinstance(schemas, dict):
            return schemas
        return {
            name: self.close(schema, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}")
            for name, schema in schemas.items()
        }

    def _close_parts(self, schemas: Any, pointer: str) -> Any:
        if not isinstance(schemas, list):
            return self.close(schemas, pointer)
        return [self.close(schema, f"{pointer}/{i}") for i, schema in enumerate(schemas)]

    def _leave(self, part: Any) -> None:
        """Note what part refers to, and what that refers to."""
        for reference in _references(part):
            # by another name than its place it could be anything
            pointer = unquote(reference) if reference.startswith("#/") else "#"
            if pointer not in self._left:
                self._left.add(pointer)
                self._leave(self._at(pointer))

    def _at(self, pointer: str) -> Any:
        """What a pointer of this document leads to; None if nowhere."""
        found = self._root
        for escaped in pointer.split("/")[1:]:
            word = escaped.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and word.isdigit() and int(word) < len(found):
                found = found[int(word)]
            elif isinstance(found, dict):
                found = found.get(word)
            else:
                return None
        return found

    def _is_told_apart(self, parts: Any) -> bool:
        """Every part wants a name to have a value of its own: then no two hold at once, closed or not."""
        if not isinstance(parts, list):
            return False
        tags = [_tags(self._at(part["$ref"]) if _is_reference(part) else part) for part in parts]
        names = set.intersection(*map(set, tags)) if tags else set()
        return any(len({tag[name] for tag in tags}) == len(tags) for name in names)


def n_voices(schema: dict[str, Any]) -> int:
    """How many schemas speak of the object that schema describes."""
    n_all = len(schema["allOf"]) if isinstance(schema.get("allOf"), list) else 0
    return any(word in schema for word in OF_THE_OBJECT) + sum(word in schema for word in IN_PLACE) + n_all


def _is_reference(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("$ref"), str)


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if _is_reference(part):
            yield part["$ref"]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def _tags(schema: Any) -> dict[str, str]:
    """The names whose value schema fixes to one text."""
    names = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(names, dict) or not isinstance(schema.get("required"), list):
        return {}
    tags = {}
    for name, part in names.items():
        if isinstance(part, dict) and name in schema["required"]:
            values = [part["const"]] if "const" in part else part.get("enum")
            if isinstance(values, list) and len(values) == 1 and isinstance(values[0], str):
                tags[name] = values[0]
    return tags
