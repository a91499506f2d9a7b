"""Tools: what may be answered under each choice, what a call becomes, what is refused."""

import json
from typing import Any

import pytest

from edge.errors import ConstraintError
from edge.tools import ToolCall, ToolSet
from tests.engine.test_grammar import accepts

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
CALL = '{"name": "weather", "arguments": {"city": "北京", "days": 3}}'
CLOCK_CALL = '{"name": "clock", "arguments": {}}'
WRONG = '{"name": "weather", "arguments": {"city": "Paris", "days": 9}}'


@pytest.mark.parametrize(
    ("choice", "good", "bad"),
    [
        ("required", [CALL, CLOCK_CALL], ["It rains.", WRONG, '{"name": "other", "arguments": {}}']),
        ("weather", [CALL], [CLOCK_CALL, "It rains."]),
        ("auto", [CALL, CLOCK_CALL, "It rains {hard}."], [WRONG, '{"free": "JSON"}']),
    ],
)
def test_an_answer_is_what_the_choice_allows(choice: str, good: list[str], bad: list[str]) -> None:
    constraint = ToolSet((WEATHER, CLOCK), choice).constraint()
    assert constraint is not None
    assert all(accepts(constraint, text) for text in good)
    assert not any(accepts(constraint, text) for text in bad)


def test_with_none_the_answer_is_free() -> None:
    assert ToolSet((WEATHER,), "none").constraint() is None


def test_a_call_is_read_and_text_is_not() -> None:
    tools = ToolSet((WEATHER, CLOCK))
    assert tools.call_in(CALL) == ToolCall("weather", {"city": "北京", "days": 3})
    for text in ("It rains.", '{"name": "other", "arguments": {}}', '{"name": "clock"}', "{", ""):
        assert tools.call_in(text) is None


def test_the_instruction_names_every_function() -> None:
    text = ToolSet((WEATHER, CLOCK)).instruction()
    assert json.dumps(CLOCK["function"]) in text
    assert "The weather of a city" in text


@pytest.mark.parametrize(
    ("tools", "choice", "said"),
    [
        ((), "auto", "there are 0"),
        ((CLOCK,) * 65, "auto", "there are 65"),
        (({"type": "retrieval"},), "auto", "no function"),
        (({"type": "function", "function": {"name": "a b"}},), "auto", "no function"),
        (({"type": "function", "function": {"name": "a", "parameters": []}},), "auto", "no schema"),
        ((CLOCK,), "weather", "names weather"),
    ],
)
def test_what_is_no_tool_is_refused(tools: tuple[dict[str, Any], ...], choice: str, said: str) -> None:
    with pytest.raises(ConstraintError) as refused:
        ToolSet(tools, choice)
    assert said in refused.value.problem
