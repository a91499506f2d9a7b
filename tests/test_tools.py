"""Tools: what may be answered under each choice, how a call is read while it is written, what is refused."""

import json
from typing import Any, ClassVar

import pytest

from edge.engine.grammar import Grammars
from edge.errors import ConstraintError
from edge.tools import MARKS, CallReader, ToolSet, marks_in
from tests.engine.test_grammar import GRAMMARS, accepts, accepts_tokens
from tests.fakes import END, FakeLlama, replies

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


class MarkedLlama(FakeLlama):
    """Bytes, the end, and a control token for each mark of a call."""

    SPELLED: ClassVar = dict(zip((257, 258), MARKS, strict=True))

    def piece(self, token: int) -> bytes:
        return self.SPELLED[token].encode() if token in self.SPELLED else super().piece(token)

    def control_tokens(self) -> list[int]:
        return [END, *self.SPELLED]

    def tokenize(self, text: str, *, control: bool) -> list[int]:
        found = [token for token, mark in self.SPELLED.items() if control and text == mark]
        return found or super().tokenize(text, control=control)


@pytest.mark.parametrize("choice", ["auto", "required", "weather"])
def test_a_model_may_mark_its_call_as_its_template_taught_it(choice: str) -> None:
    """With control tokens where its vocabulary has them, else in letters; and what is marked is bound like any call."""
    constraint = ToolSet((WEATHER, CLOCK), choice).constraint(MARKS)
    assert constraint is not None
    with_tokens = Grammars(MarkedLlama(replies(), n_vocab=259))
    for call, is_allowed in ((CALL, True), (WRONG, False)):
        assert accepts(constraint, f"{MARKS[0]}\n{call}\n{MARKS[1]}") == is_allowed
        tokens = [257, *f"\n{call}\n".encode(), 258]
        assert accepts_tokens(with_tokens.matcher(constraint), tokens) == is_allowed
        assert accepts(constraint, call) == is_allowed, "bare too"
    assert not accepts(constraint, "<tool_call> me"), "text does not look like a call"
    assert accepts(constraint, "It rains <b>hard</b>.") == (choice == "auto")


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_schema_that_cannot_be_honoured_is_named_without_our_grammar(choice: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "integers"}}}
    constraint = ToolSet((tool,), choice).constraint()
    assert constraint is not None
    with pytest.raises(ConstraintError) as refused:
        GRAMMARS.matcher(constraint)
    assert str(refused.value) == "the tools constraint cannot be used: Invalid type: integers; simplify it"


def test_with_none_the_answer_is_free() -> None:
    assert ToolSet((WEATHER,), "none").constraint() is None


def read(answer: str, size: int) -> tuple[CallReader, str]:
    """A reader that was fed an answer in pieces of a size, and all that it showed."""
    reader = CallReader()
    shown = "".join(reader.feed(answer[i : i + size]) for i in range(0, len(answer), size))
    return reader, shown


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "arguments", ["{}", '{"city": "北京", "days": 3}', r'{"a": "}\"]{", "b": [{"c": "\\"}]}', '{\n  "a": {}\n}']
)
def test_a_call_is_read_while_it_is_written(arguments: str, size: int) -> None:
    for answer in (
        f'{{"name": "clock", "arguments": {arguments}}}',
        f'\n{{\n "name":"clock",\n "arguments":{arguments}\n}}\n',
    ):
        reader, shown = read(answer, size)
        assert (reader.name, reader.is_whole, shown, reader.finish()) == ("clock", True, arguments, "")


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_marks_around_a_call_are_not_shown(size: int) -> None:
    reader = CallReader(is_marked=True)
    answer = f"{MARKS[0]}\n{CLOCK_CALL}\n{MARKS[1]}"
    shown = "".join(reader.feed(answer[i : i + size]) for i in range(0, len(answer), size))
    assert (reader.name, reader.is_whole, shown, reader.finish()) == ("clock", True, "{}", "")


@pytest.mark.parametrize(
    ("template", "marks"),
    [
        ("{% if tools %}<tool_call>\n{...}\n</tool_call>{% endif %}", MARKS),
        ("{% if tools %}<tool_call>\n<function=name>…</function>\n</tool_call>{% endif %}", None),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", None),
        ("<tool_call></tool_call>", None),
    ],
)
def test_marks_are_those_of_templates_whose_calls_are_json(template: str, marks: tuple[str, str] | None) -> None:
    assert marks_in(template) == marks


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_call_that_is_cut_loses_nothing(size: int) -> None:
    for n in range(len(CALL) - 1):
        reader, shown = read(CALL[:n], size)
        assert not reader.is_whole
        held = reader.finish()
        assert (held if reader.name is None else CALL[: CALL.index("{", 1)] + shown) == CALL[:n]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("answer", ["It rains {hard}.", "  [1, 2]", "", "x"])
def test_text_is_shown_as_it_comes(answer: str, size: int) -> None:
    reader, shown = read(answer, size)
    assert (reader.name, shown + reader.finish()) == (None, answer)


def test_arguments_hold_only_names_that_the_schema_knows() -> None:
    """Unless it says that there may be others; a function without parameters takes none."""
    open_ = {name: part for name, part in WEATHER["function"]["parameters"].items() if name != "additionalProperties"}
    made_up = '{"name": "weather", "arguments": {"city": "Bern", "cities": {}}}'
    for parameters, is_allowed in ((open_, False), ({**open_, "additionalProperties": True}, True)):
        tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
        for choice in ("required", "auto"):
            constraint = ToolSet((tool,), choice).constraint()
            assert constraint is not None
            assert accepts(constraint, made_up) == is_allowed
    constraint = ToolSet((CLOCK,), "required").constraint()
    assert constraint is not None
    assert not accepts(constraint, '{"name": "clock", "arguments": {"zone": 1}}')


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_references_of_parameters_lead_into_them(choice: str) -> None:
    """They are one schema among others then; two tools may use the same word for different things."""
    tools = []
    for name in ("go", "come"):
        place = {"type": "object", "properties": {name: {"const": 1}}, "required": [name]}
        parameters = {"type": "object", "properties": {"to": {"$ref": "#/$defs/Place"}}, "$defs": {"Place": place}}
        tools.append({"type": "function", "function": {"name": name, "parameters": parameters}})
    constraint = ToolSet(tuple(tools), choice).constraint()
    assert constraint is not None
    assert accepts(constraint, '{"name": "go", "arguments": {"to": {"go": 1}}}')
    assert accepts(constraint, '{"name": "come", "arguments": {"to": {"come": 1}}}')
    assert not accepts(constraint, '{"name": "go", "arguments": {"to": {"come": 1}}}')


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
