"""Tools a model may call: how they are told to it, what an answer may then look like, and the calls in an answer.

A call is one JSON object, {"name": …, "arguments": {…}}. What the caller declared is the constraint, its objects closed
(edge.schema), so whole arguments are always valid against their schema, with no names that it does not know. Knows no
engine and no HTTP.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge.engine.protocol import Calls, Constraint
from edge.errors import ConstraintError
from edge.schema import closed

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MARKS = ("<tool_call>", "</tool_call>")  # Hermes, Qwen
HEAD = re.compile(
    rf'\s*(?:{MARKS[0]}\s*)?{{\s*"name"\s*:\s*"({NAME.pattern})"\s*,\s*"arguments"\s*:\s*(?={{)'
)  # of a call
N_TOOLS_MAX = 64
NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}}  # the parameters of a function that has none


@dataclass(frozen=True)
class ToolSet:
    """The functions of one request, in OpenAI's form: {"type": "function", "function": {name, parameters, …}}.

    choice: "none", "auto", "required", or the name of the one to call. Raises ConstraintError for what is no tool.
    """

    tools: tuple[Mapping[str, Any], ...]
    choice: Literal["none", "auto", "required"] | str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= len(self.tools) <= N_TOOLS_MAX:
            raise ConstraintError("tools", f"there are {len(self.tools)}, 1 to {N_TOOLS_MAX} can be used")
        for tool in self.tools:
            function = tool.get("function") if tool.get("type") == "function" else None
            if not isinstance(function, Mapping) or not NAME.fullmatch(str(function.get("name"))):
                raise ConstraintError("tools", "a tool is no function with a name of letters, digits, _ and -")
            if not isinstance(function.get("parameters", {}), Mapping):
                raise ConstraintError("tools", f"the parameters of {function['name']} are no schema")
        if self.choice not in ("none", "auto", "required", *(tool["function"]["name"] for tool in self.tools)):
            raise ConstraintError("tools", f"tool_choice names {self.choice}, which is none of them")

    def _schemas(self) -> dict[str, Any]:
        """The schema of a call, by the function's name."""
        return {
            tool["function"]["name"]: {
                "type": "object",
                "properties": {
                    "name": {"const": tool["function"]["name"]},
                    "arguments": _arguments(tool["function"]),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in self.tools
        }

    def instruction(self) -> str:
        """What a model is told whose template has no place for tools."""
        functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in self.tools)
        return (
            f"You can call these functions:\n{functions}\n"
            'To call one, answer with nothing but {"name": its name, "arguments": {…}}.'
        )

    def constraint(self, marks: tuple[str, str] | None = None) -> Constraint | None:
        """What the answer must be; None if it is free. marks: as marks_in found them in the model's template."""
        if self.choice == "none":
            return None
        schemas = self._schemas()
        wanted = list(schemas.values()) if self.choice in ("auto", "required") else [schemas[self.choice]]
        calls = Calls(schema={"anyOf": wanted}, marks=marks, is_free=self.choice == "auto")
        return Constraint("tools", json.dumps(calls))


def marks_in(template: str) -> tuple[str, str] | None:
    """What a chat template teaches its model to put around a call, where the call itself is JSON as it is here."""
    is_known = "tools" in template and all(mark in template for mark in MARKS)
    return MARKS if is_known and "<function=" not in template else None


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, under a name of its own: its references begin there."""
    return {"$id": f"urn:function:{function['name']}", **closed(function.get("parameters") or NOTHING)}


class CallReader:
    """Tells a call from a text while an answer to a ToolSet's constraint is written, and where its arguments end.

    The constraint lets nothing but a call begin with a brace, or where calls are marked, with the mark's first letter.
    """

    def __init__(self, *, is_marked: bool = False) -> None:
        self._first = "{<" if is_marked else "{"
        self.name: str | None = None  # of the function, once it is known: from then on the answer is its arguments
        self.is_whole = False  # the arguments have come to their end
        self._held = ""  # what may still become the head of a call
        self._is_text = False
        self._depth = 0
        self._is_string = self._is_escaped = False

    def feed(self, piece: str) -> str:
        """What can be shown of the answer: text, or once there is a name, arguments."""
        if self._is_text:
            return piece
        if self.name is None:
            self._held += piece
            begun = self._held.lstrip()
            self._is_text = begun != "" and begun[0] not in self._first
            if self._is_text:
                return self.finish()
            if (head := HEAD.match(self._held)) is None:
                return ""
            self.name, piece = head[1], self._held[head.end() :]
            self._held = ""
        return self._arguments(piece)

    def finish(self) -> str:
        """The text held back."""
        held, self._held = self._held, ""
        return held

    def _arguments(self, piece: str) -> str:
        """piece up to the brace that closes the arguments."""
        if self.is_whole:
            return ""
        for i, character in enumerate(piece):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_string:
                self._is_escaped = character == "\\"
                self._is_string = character != '"'
            elif character == '"':
                self._is_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_whole = True
                    return piece[: i + 1]
        return piece
