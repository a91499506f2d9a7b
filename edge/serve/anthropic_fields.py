"""Anthropic's request bodies: every field that is honoured, with its range. What is not here is refused by name.

Three fields are taken and change nothing, because clients send them unasked: metadata, service_tier, and cache_control,
as what prompts have in common is kept anyway.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from edge.serve.body import Body
from edge.serve.openai_fields import ID_PATTERN, N_MESSAGES_MAX, N_STOPS_MAX, N_TOKENS_MAX, NAME_PATTERN, Stop, ranged
from edge.tools import N_TOOLS_MAX

N_BLOCKS_MAX = 1024
Efforts = Literal["low", "medium", "high", "xhigh", "max"]
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "xhigh"}  # theirs -> ask.EFFORTS


class CacheControl(Body):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Direct(Body):
    """Who called a tool: the model itself."""

    type: Literal["direct"]


class TextBlock(Body):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: None = None


class ThinkingBlock(Body):
    """Dropped: earlier thoughts never return to the model."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedBlock(Body):
    """Dropped."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: Annotated[str, Field(pattern=ID_PATTERN)]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: Direct | None = None
    toolset_name: None = None


def _as_blocks(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


TextBlocks = Annotated[list[TextBlock], Field(max_length=N_BLOCKS_MAX)]
Texts = Annotated[TextBlocks, BeforeValidator(_as_blocks, json_schema_input_type=str | TextBlocks)]


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(pattern=ID_PATTERN)]
    content: Texts | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: None = None


Block = Annotated[
    TextBlock | ThinkingBlock | RedactedBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")
]
Blocks = Annotated[list[Block], Field(max_length=N_BLOCKS_MAX)]


class Message(Body):
    role: Literal["user", "assistant"]
    content: Annotated[Blocks, BeforeValidator(_as_blocks, json_schema_input_type=str | Blocks)]


class Tool(Body):
    """A tool of the client's own. Its input is always valid against input_schema, strict or not."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    cache_control: CacheControl | None = None


class ToolChoice(Body):
    """disable_parallel_tool_use: a reply holds at most one call, so both are honoured."""

    type: Literal["auto", "any", "tool", "none"]
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """adaptive: as long as the model likes. display omitted: a thinking block without its text."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, Field(ge=1, le=N_TOKENS_MAX)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    effort: Efforts | None = None
    format: OutputFormat | None = None


class Metadata(Body):
    user_id: Annotated[str, Field(max_length=512)] | None = None


class PromptBody(Body):
    """POST /v1/messages/count_tokens, and what /v1/messages shares with it."""

    model: Annotated[str, Field(max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=N_MESSAGES_MAX)]
    system: Texts | None = None
    thinking: Thinking | None = None
    tools: Annotated[list[Tool], Field(max_length=N_TOOLS_MAX)] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None


class MessagesBody(PromptBody):
    """POST /v1/messages. Without thinking the model thinks as it always does, and the thought is not shown."""

    max_tokens: Annotated[int, Field(ge=1, le=N_TOKENS_MAX)]
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=N_STOPS_MAX)] | None = None
    temperature: float | None = ranged("temperature")
    top_p: float | None = ranged("top_p")
    top_k: int | None = ranged("top_k")
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
