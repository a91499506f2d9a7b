"""Ollama's request bodies: every field that is honoured, with its range. What is not here is refused by name.

One field is taken and changes nothing, because clients send it unasked: keep_alive, as the model always stays loaded.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from edge.serve.body import Body
from edge.serve.openai_fields import (
    ID_PATTERN,
    N_LOGPROBS_MAX,
    N_MESSAGES_MAX,
    N_STOPS_MAX,
    N_TOKENS_MAX,
    NAME_PATTERN,
    Stop,
    ranged,
)
from edge.tools import N_TOOLS_MAX

Name = Annotated[str, Field(min_length=1, max_length=256)]


class Options(Body):
    """Sampling, under Ollama's names. num_predict and repeat_last_n: -1 is as much as there is."""

    seed: int | None = ranged("seed")
    num_predict: Annotated[int, Field(ge=-2, le=N_TOKENS_MAX)] | None = None
    num_ctx: Annotated[int, Field(ge=1, le=N_TOKENS_MAX)] | None = None  # no more than the server holds
    temperature: float | None = ranged("temperature")
    top_k: int | None = ranged("top_k")
    top_p: float | None = ranged("top_p")
    min_p: float | None = ranged("min_p")
    typical_p: float | None = ranged("typical_p")
    repeat_penalty: float | None = ranged("repeat_penalty")
    repeat_last_n: Annotated[int, Field(ge=-1, le=N_TOKENS_MAX)] | None = None
    presence_penalty: float | None = ranged("presence_penalty")
    frequency_penalty: float | None = ranged("frequency_penalty")
    stop: Stop | Annotated[list[Stop], Field(max_length=N_STOPS_MAX)] | None = None


class Common(Body):
    """What chat and generate share."""

    model: Name
    stream: bool | None = None  # None: yes
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    keep_alive: float | Annotated[str, Field(max_length=32)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=N_LOGPROBS_MAX)] | None = None


class CalledFunction(Body):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    arguments: dict[str, Any]
    index: Annotated[int, Field(ge=0, le=N_TOOLS_MAX)] | None = None


class ToolCall(Body):
    id: Annotated[str, Field(pattern=ID_PATTERN)] | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class Message(Body):
    """One message. An assistant's thinking is dropped: earlier thoughts never return to the model."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=N_TOOLS_MAX)] | None = None
    tool_name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    tool_call_id: Annotated[str, Field(pattern=ID_PATTERN)] | None = None


class Function(Body):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    type: Literal["function"] = "function"
    function: Function


class ChatBody(Common):
    """POST /api/chat. No messages: is the model loaded?"""

    messages: Annotated[list[Message], Field(max_length=N_MESSAGES_MAX)] | None = None
    tools: Annotated[list[Tool], Field(max_length=N_TOOLS_MAX)] | None = None


class GenerateBody(Common):
    """POST /api/generate. raw: no template, control tokens in the prompt are read. No prompt: is the model loaded?"""

    prompt: str = ""
    system: str | None = None
    raw: bool | None = None


class ShowBody(Body):
    """POST /api/show"""

    model: Name
    verbose: Literal[False] | None = None
