"""OpenAI's request bodies: every field that is honoured, with its range. What is not here is refused by name.

Six fields are taken and change nothing, because clients send them unasked: user, metadata, store, service_tier,
safety_identifier, prompt_cache_key.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from edge.config import SAMPLING_RANGES
from edge.serve.ask import EFFORTS
from edge.serve.body import Body
from edge.tools import N_TOOLS_MAX, NAME

N_MESSAGES_MAX = 4096
N_CHOICES_MAX = 8
N_STOPS_MAX = 16
N_STOP_CHARS_MAX = 256
N_BIASES_MAX = 1024
N_TOKENS_MAX = 1 << 20
N_LOGPROBS_MAX = 20
NAME_PATTERN = f"^{NAME.pattern}$"
ID_PATTERN = r"^[!-~]{1,128}$"  # visible ASCII


def ranged(name: str) -> Any:
    """A field with the range of a sampling setting."""
    low, high = SAMPLING_RANGES[name]
    return Field(default=None, ge=low, le=high)


# ---- messages


def _joined(content: Any) -> Any:
    """A content given in parts as one text."""
    if not isinstance(content, list):
        return content
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict):
            raise ValueError(f"part {i} is no object; send {{type: text, text: …}}")
        if part.get("type") != "text":
            raise ValueError(f"part {i} is of type {str(part.get('type'))[:40]}, only text is supported; leave it out")
        if not isinstance(part.get("text"), str) or part.keys() > {"type", "text"}:
            raise ValueError(f"part {i} is not just a text; send {{type: text, text: …}}")
        texts.append(part["text"])
    return "".join(texts)


PARTS_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
        "required": ["type", "text"],
        "additionalProperties": False,
    },
}
Content = Annotated[
    str | None,
    BeforeValidator(_joined),
    WithJsonSchema({"anyOf": [{"type": "string"}, PARTS_SCHEMA, {"type": "null"}]}),
]


class CalledFunction(Body):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    arguments: str  # JSON text


class ToolCallField(Body):
    id: Annotated[str, Field(pattern=ID_PATTERN)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Annotated[int, Field(ge=0, le=N_TOOLS_MAX)] | None = None


class Message(Body):
    """One message. An assistant's reasoning_content is dropped: earlier thoughts never return to the model."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_calls: Annotated[list[ToolCallField], Field(max_length=N_TOOLS_MAX)] | None = None
    tool_call_id: Annotated[str, Field(pattern=ID_PATTERN)] | None = None
    reasoning_content: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None


# ---- tools and formats


class Function(Body):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class ChosenFunction(Body):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]


class ToolChoice(Body):
    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(Body):
    name: Annotated[str, Field(max_length=64)] = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Body):
    include_usage: bool | None = None


class TemplateOptions(Body):
    """The one switch of a template that a request may set."""

    enable_thinking: bool | None = None


# ---- requests

Stop = Annotated[str, Field(min_length=1, max_length=N_STOP_CHARS_MAX)]
Bias = dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]]


class Common(Body):
    """What chat and plain completions share."""

    model: Annotated[str, Field(max_length=256)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_progress: bool | None = None
    n: Annotated[int, Field(ge=1, le=N_CHOICES_MAX)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=N_TOKENS_MAX)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=N_STOPS_MAX)] | None = None
    seed: int | None = ranged("seed")
    temperature: float | None = ranged("temperature")
    top_p: float | None = ranged("top_p")
    top_k: int | None = ranged("top_k")
    min_p: float | None = ranged("min_p")
    typical_p: float | None = ranged("typical_p")
    frequency_penalty: float | None = ranged("frequency_penalty")
    presence_penalty: float | None = ranged("presence_penalty")
    repeat_penalty: float | None = ranged("repeat_penalty")
    logit_bias: Annotated[Bias, Field(max_length=N_BIASES_MAX)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: bool | None = None
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def biases(self) -> list[tuple[int, float]]:
        return [(int(token), added) for token, added in (self.logit_bias or {}).items()]

    @property
    def settings(self) -> dict[str, float | int | None]:
        """The sampling settings, under the names of config.Sampling."""
        return {name: getattr(self, name, None) for name in SAMPLING_RANGES if name != "n_penalized_tokens"}

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatBody(Common):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1, max_length=N_MESSAGES_MAX)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=N_TOKENS_MAX)] | None = None
    reasoning_effort: Literal[tuple(EFFORTS)] | None = None  # type: ignore[valid-type]
    thinking_budget_tokens: Annotated[int, Field(ge=0, le=N_TOKENS_MAX)] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=N_TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None  # a reply holds at most one call, so both are honoured
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=N_LOGPROBS_MAX)] | None = None


class CompletionBody(Common):
    """POST /v1/completions: raw text, no template. Control tokens in it are read as such."""

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=N_CHOICES_MAX)]
    )
    logprobs: Annotated[int, Field(ge=0, le=N_LOGPROBS_MAX)] | None = None
    echo: Literal[False] | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)


class ControlBody(Body):
    """POST /v1/chat/completions/control"""

    id: Annotated[str, Field(pattern=ID_PATTERN)]
    action: Literal["answer_now", "cancel"]


class TokenizeBody(Body):
    content: str
    parse_special: bool = False  # control tokens in the text are read as such


class DetokenizeBody(Body):
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=1 << 18)]
