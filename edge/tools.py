"""Tools a model may call: how they are told to it, what an answer may then look like, and the calls in an answer.

A call is one JSON object, {"name": …, "arguments": {…}}. What the caller declared is the constraint, so arguments are
always valid against their schema. Knows no engine and no HTTP.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge.config import JSON_WHITESPACE
from edge.engine.protocol import Constraint
from edge.errors import ConstraintError

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
N_TOOLS_MAX = 64


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]


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
        if self.choice not in ("none", "auto", "required", *self._schemas()):
            raise ConstraintError("tools", f"tool_choice names {self.choice}, which is none of them")

    def _schemas(self) -> dict[str, Any]:
        """The schema of a call, by the function's name."""
        return {
            tool["function"]["name"]: {
                "type": "object",
                "properties": {
                    "name": {"const": tool["function"]["name"]},
                    "arguments": tool["function"].get("parameters") or {"type": "object"},
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

    def constraint(self) -> Constraint | None:
        """What the answer must be; None if it is free."""
        schemas = self._schemas()
        if self.choice == "none":
            return None
        if self.choice != "auto":
            wanted = schemas.values() if self.choice == "required" else [schemas[self.choice]]
            return Constraint("json_schema", json.dumps({"anyOf": list(wanted)}))
        # either text that does not begin like a call, or a call
        call = json.dumps({"anyOf": list(schemas.values()), "x-guidance": {"whitespace_pattern": JSON_WHITESPACE}})
        return Constraint("lark", f"start: TEXT | call\nTEXT: /[^{{\\s](.|\\n)*/\ncall: %json {call}\n")

    def call_in(self, answer: str) -> ToolCall | None:
        """The call that an answer is, if it is one."""
        text = answer.strip()
        if not text.startswith("{"):
            return None
        try:
            body = json.loads(text)
        except ValueError:
            return None
        if not isinstance(body, dict) or body.get("name") not in self._schemas():
            return None
        arguments = body.get("arguments")
        return ToolCall(body["name"], arguments) if isinstance(arguments, dict) else None
