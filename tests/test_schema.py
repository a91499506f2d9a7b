"""Closed schemas: what they allow is valid under the original, by a judge not ours, and holds no other names."""

import json
import random
from typing import Any

import fastjsonschema
import pytest

from edge.engine.protocol import Constraint
from edge.schema import closed
from tests.engine.test_grammar import GRAMMARS, accepts, allowed
from tests.fakes import END

CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"enum": ["Bern", "Oslo"]}}, "required": ["city"]}
YEAR: dict[str, Any] = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}


def tagged(tag: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": {"const": tag}, **properties}, "required": ["kind"]}


# Open as people write them: with parts, references, unions that a tag tells apart.
OPEN: dict[str, dict[str, Any]] = {
    "plain": CITY,
    "optional": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}},
    "inside": {"type": "object", "properties": {"where": CITY, "when": {"anyOf": [YEAR, {"type": "null"}]}}},
    "list": {"type": "object", "properties": {"all": {"type": "array", "items": CITY, "maxItems": 3}}},
    "map": {"type": "object", "properties": {"free": {"type": "object", "additionalProperties": {"type": "integer"}}}},
    "referred": {"type": "object", "properties": {"to": {"$ref": "#/$defs/City"}}, "$defs": {"City": CITY}},
    "one part": {"type": "object", "properties": {"to": {"allOf": [{"$ref": "#/$defs/C"}]}}, "$defs": {"C": CITY}},
    "recursive": {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
        "required": ["next"],
        "$defs": {"Node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, YEAR]}}}},
    },
    "tagged": {"oneOf": [tagged("a", n={"type": "integer"}), tagged("b", s={"type": "boolean"})]},
    "tagged by reference": {
        "type": "object",
        "properties": {"item": {"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}},
        "required": ["item"],
        "$defs": {"A": tagged("a", n={"type": "integer"}), "B": tagged("b", s={"type": "boolean"})},
    },
    "both": {"type": "object", "allOf": [CITY, YEAR]},
    "either beside names": {**CITY, "anyOf": [{"required": ["city"]}, YEAR]},
}


def written(schema: dict[str, Any], draw: random.Random) -> Any:
    """What a model that knows nothing writes under a schema: any byte that is allowed, quotes and braces sooner."""
    matcher = GRAMMARS.matcher(Constraint("json_schema", json.dumps(schema)))
    text = b""
    while not matcher.is_complete and len(text) < 2000:
        may = allowed(matcher)
        if END in may:
            break
        choices = sorted(byte for byte in may if 32 <= byte < 127)
        soon = [byte for byte in choices if byte in b'"}]']
        byte = draw.choice(soon if soon and draw.random() < 0.4 else choices)
        matcher.accept(byte)
        text += bytes([byte])
    return json.loads(text)


@pytest.mark.parametrize("name", OPEN)
def test_what_a_closed_schema_allows_is_valid_under_the_original(name: str) -> None:
    judge, draw = fastjsonschema.compile(OPEN[name]), random.Random(name)
    for _ in range(12):
        judge(written(closed(OPEN[name]), draw))


@pytest.mark.parametrize("name", [name for name in OPEN if name not in ("map", "both", "either beside names")])
def test_no_object_of_a_closed_schema_holds_other_names(name: str) -> None:
    draw = random.Random(name)
    known = {"city", "year", "a", "b", "where", "when", "all", "to", "next", "kind", "n", "s", "item"}
    for _ in range(12):
        assert names_in(written(closed(OPEN[name]), draw)) <= known


def names_in(value: Any) -> set[str]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set(value if isinstance(value, dict) else ()).union(*map(names_in, parts))


def test_what_says_how_open_it_is_stays_so() -> None:
    """Also what is no schema, and objects that list no names."""
    schemas: tuple[Any, ...] = (
        {"type": "object"},
        {**CITY, "additionalProperties": True},
        {**CITY, "additionalProperties": {"type": "string"}},
        {"const": {"properties": {}}},
        {"properties": {"x": {"type": "integer"}}, "required": ["y"]},
        True,
    )
    for schema in schemas:
        assert closed(schema) == schema


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [CITY, {**CITY, "required": []}]},
        {"not": CITY},
        {"allOf": [CITY, YEAR]},
        {"$ref": "#/$defs/City", **YEAR, "$defs": {"City": CITY}},
        {"properties": {"x": {"not": {"$ref": "#/$defs/A"}}}, "additionalProperties": True, "$defs": {"A": CITY}},
        {"properties": {"x": {"not": {"$ref": "#city"}}}, "$defs": {"A": {"$anchor": "city", **CITY}}},
    ],
    ids=["parts overlap", "not", "two speak of one object", "reference beside names", "reference in not", "anchor"],
)
def test_what_closing_could_turn_into_something_else_stays_as_it_is(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


def test_a_name_that_was_made_up_is_refused_only_when_closed() -> None:
    text = '{"city": "Bern", "cities": [1]}'
    assert accepts(Constraint("json_schema", json.dumps(CITY)), text)
    assert not accepts(Constraint("json_schema", json.dumps(closed(CITY))), text)
