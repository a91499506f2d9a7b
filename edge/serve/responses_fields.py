"""The body of OpenAI's Responses: every field that is honoured, with its range. What is not here is refused by name.

Six fields are taken and change nothing, because clients send them unasked: user, metadata, store, service_tier,
safety_identifier, prompt_cache_key. Nothing is stored, so a conversation comes whole in input.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from edge.serve.ask import EFFORTS
from edge.serve.body import Body
from edge.serve.openai_fields import (
    ID_PATTERN,
    N_LOGPROBS_MAX,
    N_MESSAGES_MAX,
    N_TOKENS_MAX,
    NAME_PATTERN,
    ranged,
)
from edge.tools import N_TOOLS_MAX

N_PARTS_MAX = 1024
Status = Literal["in_progress", "completed", "incomplete"]
Id = Annotated[str, Field(pattern=ID_PATTERN)]


def _refused(value: Any) -> None:
    if value is not None:
        raise ValueError("this server keeps no responses; send the whole conversation as input")


Stateless = Annotated[None, BeforeValidator(_refused), WithJsonSchema({"type": "null"})]

# ---- input


class InputText(Body):
    type: Literal["input_text"]
    text: str


class OutputText(Body):
    """As a response has it; annotations and logprobs are not looked at."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=N_PARTS_MAX)] | None = None
    logprobs: list[Any] | None = None


Part = Annotated[InputText | OutputText, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(max_length=N_PARTS_MAX)]
Texts = Annotated[list[InputText], Field(max_length=N_PARTS_MAX)]


def _as_parts(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


class InputMessage(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[Parts, BeforeValidator(_as_parts, json_schema_input_type=str | Parts)]
    id: Id | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCall(Body):
    type: Literal["function_call"]
    call_id: Id
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    arguments: str  # JSON text
    id: Id | None = None
    status: Status | None = None


class FunctionCallOutput(Body):
    type: Literal["function_call_output"]
    call_id: Id
    output: Annotated[Texts, BeforeValidator(_as_parts, json_schema_input_type=str | Texts)]
    id: Id | None = None
    status: Status | None = None


class SummaryText(Body):
    type: Literal["summary_text"]
    text: str


class ReasoningText(Body):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Body):
    """Dropped: earlier thoughts never return to the model."""

    type: Literal["reasoning"]
    id: Id | None = None
    summary: Annotated[list[SummaryText], Field(max_length=N_PARTS_MAX)] | None = None
    content: Annotated[list[ReasoningText], Field(max_length=N_PARTS_MAX)] | None = None
    encrypted_content: None = None
    status: Status | None = None


def _kind(item: Any) -> Any:
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind, custom_error_type="item", custom_error_message="Items of this type are not supported"),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=N_MESSAGES_MAX)]


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


# ---- tools and formats


class FunctionTool(Body):
    """Arguments are always valid against parameters, strict or not."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChosenFunction(Body):
    type: Literal["function"]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]


class Format(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Body):
    """The thought is told whole; there is no summary of it."""

    effort: Literal[tuple(EFFORTS)] | None = None  # type: ignore[valid-type]
    summary: None = None


class StreamOptions(Body):
    include_obfuscation: Literal[False] | None = None


class ResponsesBody(Body):
    """POST /v1/responses"""

    model: Annotated[str, Field(max_length=256)] | None = None
    input: Annotated[Items, BeforeValidator(_as_items, json_schema_input_type=str | Items)]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=N_TOKENS_MAX)] | None = None
    temperature: float | None = ranged("temperature")
    top_p: float | None = ranged("top_p")
    top_k: int | None = ranged("top_k")
    min_p: float | None = ranged("min_p")
    seed: int | None = ranged("seed")
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=N_TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None  # a response holds at most one call, so both are honoured
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=8)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=N_LOGPROBS_MAX)] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    previous_response_id: Stateless = None
    conversation: Stateless = None
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: bool | None = None
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
