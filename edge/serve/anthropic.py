"""Anthropic's Messages: its JSON in, its JSON or server-sent events out."""

import hashlib
import json
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from edge.config import Sampling
from edge.engine.protocol import Constraint, Done
from edge.errors import EdgeError
from edge.serve.anthropic_fields import (
    EFFORTS,
    Message,
    MessagesBody,
    PromptBody,
    TextBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from edge.serve.ask import Ask, effort
from edge.serve.body import StrictRoute, documented
from edge.serve.desk import Arguments, Call, Desk, Event, Finished, Text, ToolCall
from edge.serve.problems import RequestError, code_of, status_of
from edge.serve.stream import sse, stream
from edge.tools import ToolSet

PATHS = ("/v1/messages",)
PING = sse({"type": "ping"}, "ping")
ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Problem(BaseModel):
    type: str
    message: str
    code: str  # ours: stays the same, for programs


class ProblemAnswer(BaseModel):
    """An error in Anthropic's form."""

    type: Literal["error"]
    error: Problem


class MessageAnswer(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: dict[str, Any]


class TokenCount(BaseModel):
    input_tokens: int


def problem(error: EdgeError) -> dict[str, Any]:
    """The error in Anthropic's form."""
    status = status_of(error)
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error), "code": code_of(error)}}


def _documented(answer: type[BaseModel], content: dict[str, Any] | None = None) -> dict[int | str, Any]:
    return documented(answer, content=content, problem=ProblemAnswer)


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(route_class=StrictRoute, tags=["Anthropic"])

    @routes.post("/v1/messages", responses=_documented(MessageAnswer, {"text/event-stream": {}}))
    async def messages(body: MessagesBody, request: Request) -> Response:
        """Reply to a conversation. With `stream`, as server-sent events from `message_start` to `message_stop`."""
        ask = message_ask(body, desk, desk.client(request))
        reply = _Reply(ask.id, desk.model, body)
        headers = {"Request-Id": ask.id}
        if body.stream:
            response = await stream(_chunks(desk, ask, reply), on_error=_error_event, heartbeat=PING)
            response.headers.update(headers)
            return response
        async with desk.open(ask) as events:
            async for event in events:
                reply.add(event)
        return JSONResponse(reply.whole(), headers=headers)

    @routes.post("/v1/messages/count_tokens", responses=_documented(TokenCount))
    async def count_tokens(body: PromptBody, request: Request) -> Response:
        """The tokens of the prompt that the same request to /v1/messages would make."""
        return JSONResponse({"input_tokens": await desk.count(prompt_ask(body, desk, desk.client(request)))})

    return routes


# ---- from JSON


def message_ask(body: MessagesBody, desk: Desk, client: str) -> Ask:
    """What a request wants. Raises RequestError and other EdgeErrors."""
    thinking = body.thinking
    if thinking is not None and thinking.budget_tokens is not None and thinking.budget_tokens >= body.max_tokens:
        raise RequestError("thinking.budget_tokens", "it leaves no room for an answer; make it less than max_tokens")
    return prompt_ask(
        body,
        desk,
        client,
        max_tokens=body.max_tokens,
        stops=tuple(body.stop_sequences or ()),
        sampling=desk.sampling(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k),
    )


def prompt_ask(
    body: PromptBody,
    desk: Desk,
    client: str,
    *,
    max_tokens: int | None = None,
    stops: tuple[str, ...] = (),
    sampling: Sampling | None = None,
) -> Ask:
    """What the fields of a prompt want."""
    desk.check_model(body.model)
    thinks, n_thought = _thinking(body)
    constraint = _constraint(body)
    tools = _tools(body)
    if constraint is not None and tools is not None and tools.choice != "none":
        raise RequestError("output_config.format", "it cannot be had together with tools; send one of both")
    system = [{"role": "system", "content": _text(body.system)}] if body.system else []
    return Ask(
        id=f"msg_{uuid.uuid4().hex}",
        client=client,
        sampling=sampling or desk.defaults,
        messages=(*system, *_messages(body.messages)),
        max_tokens=max_tokens,
        stops=stops,
        thinks=thinks,
        max_thought_tokens=n_thought,
        constraint=constraint,
        tools=tools,
    )


def _thinking(body: PromptBody) -> tuple[bool, int | None]:
    """(thinks, max_thought_tokens)."""
    thinks, n_tokens = True, None
    if body.output_config is not None and body.output_config.effort is not None:
        thinks, n_tokens = effort(EFFORTS[body.output_config.effort])
    if body.thinking is not None:
        if (body.thinking.type == "enabled") != (body.thinking.budget_tokens is not None):
            raise RequestError("thinking.budget_tokens", "it goes with type enabled and no other; mend one of both")
        thinks = body.thinking.type != "disabled"
        n_tokens = body.thinking.budget_tokens or n_tokens
    return thinks, n_tokens if thinks else 0


def _constraint(body: PromptBody) -> Constraint | None:
    if body.output_config is None or body.output_config.format is None:
        return None
    return Constraint("json_schema", json.dumps(body.output_config.format.schema_))


def _tools(body: PromptBody) -> ToolSet | None:
    choice = body.tool_choice or ToolChoice(type="auto")
    if (choice.type == "tool") != (choice.name is not None):
        raise RequestError("tool_choice.name", "it goes with type tool and no other; mend one of both")
    if not body.tools:
        if choice.type in ("any", "tool"):
            raise RequestError("tool_choice", "there are no tools to choose from; send tools")
        return None
    functions = [
        {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
        for tool in body.tools
    ]
    name = choice.name if choice.name is not None else CHOICES[choice.type]
    return ToolSet(tuple({"type": "function", "function": function} for function in functions), name)


def _text(blocks: Sequence[TextBlock] | None) -> str:
    return "\n\n".join(block.text for block in blocks or ())


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as Ask wants them. Neighbours of one role become one message, as templates want turns."""
    found: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        for j, block in enumerate(message.content):
            match block:
                case TextBlock():
                    _add_text(found, message.role, block.text)
                case ToolUseBlock() if message.role == "assistant":
                    function = {"name": block.name, "arguments": block.input}
                    call = {"id": block.id, "type": "function", "function": function}
                    _last(found, "assistant").setdefault("tool_calls", []).append(call)
                case ToolResultBlock() if message.role == "user":
                    text = _text(block.content)
                    text = f"error: {text}" if block.is_error else text
                    found.append({"role": "tool", "content": text, "tool_call_id": block.tool_use_id})
                case ToolUseBlock() | ToolResultBlock():
                    raise RequestError(f"messages.{i}.content.{j}", f"no {block.type} of this role; change the role")
    if not found:
        raise RequestError("messages", "they say nothing; send a text")
    return found


def _add_text(found: list[dict[str, Any]], role: str, text: str) -> None:
    message = _last(found, role)
    message["content"] = f"{message['content']}\n\n{text}" if message["content"] else text


def _last(found: list[dict[str, Any]], role: str) -> dict[str, Any]:
    """The last message if it is of this role, else a new one behind it."""
    if not found or found[-1]["role"] != role:
        found.append({"role": role, "content": ""})
    return found[-1]


# ---- to JSON


class _Reply:
    """One message as it grows, whole or as events."""

    def __init__(self, reply_id: str, model: str, body: MessagesBody) -> None:
        self._head = {"id": reply_id, "type": "message", "role": "assistant", "model": model}
        thinking = body.thinking
        self._shows_thought = thinking is not None and thinking.type != "disabled"
        self._omits_thought = thinking is not None and thinking.display == "omitted"
        self._max_tokens = body.max_tokens
        self._content: list[dict[str, Any]] = []
        self._digest = hashlib.sha256()
        self._call: ToolCall | None = None
        self._finished: Finished | None = None

    def start(self) -> dict[str, Any]:
        usage = {"input_tokens": 0, "output_tokens": 0}  # told at the end, when they are known
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return {"type": "message_start", "message": message}

    def whole(self) -> dict[str, Any]:
        content = list(self._content)
        if self._call is not None:  # the last block; an input that was cut is told as text
            found = self._call.parsed
            content[-1] = (
                {"type": "text", "text": self._call.text} if found is None else {**content[-1], "input": found}
            )
        return {**self._head, "content": content, **self._end(), "usage": self._usage()}

    def add(self, event: Event) -> list[dict[str, Any]]:
        """Take an event in; returns what is to be told of it."""
        return list(self._added(event))

    def _added(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case Text(_, "thought", text) if self._shows_thought:
                yield from self._opened("thinking", thinking="", signature="")
                self._digest.update(text.encode())
                if not self._omits_thought:
                    self._content[-1]["thinking"] += text
                    yield self._delta(type="thinking_delta", thinking=text)
            case Text(_, "answer", text):
                yield from self._opened("text", text="")
                self._content[-1]["text"] += text
                yield self._delta(type="text_delta", text=text)
            case Call(_, call_id, name):
                self._call = ToolCall(call_id.replace("call_", "toolu_"), name)
                yield from self._opened("tool_use", id=self._call.id, name=name, input={})
            case Arguments(_, text):
                assert self._call is not None
                self._call.arguments += text
                yield self._delta(type="input_json_delta", partial_json=text)
            case Finished():
                yield from self._closed()
                self._finished = event
                yield {"type": "message_delta", "delta": self._end(), "usage": self._usage()}
                yield {"type": "message_stop"}

    def _opened(self, kind: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Begin a block of this kind unless it is open already."""
        if self._content and self._content[-1]["type"] == kind:
            return
        yield from self._closed()
        block = {"type": kind, **fields}
        self._content.append(block)
        yield {"type": "content_block_start", "index": len(self._content) - 1, "content_block": dict(block)}

    def _closed(self) -> Iterator[dict[str, Any]]:
        if not self._content:
            return
        block = self._content[-1]
        if block["type"] == "thinking" and not block["signature"]:
            block["signature"] = self._digest.hexdigest()  # nothing is verified: thoughts never come back
            yield self._delta(type="signature_delta", signature=block["signature"])
        yield {"type": "content_block_stop", "index": len(self._content) - 1}

    def _delta(self, **delta: Any) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._content) - 1, "delta": delta}

    @property
    def _done(self) -> Done:
        assert self._finished is not None
        return self._finished.done

    def _end(self) -> dict[str, Any]:
        assert self._finished is not None
        match self._finished.reason:
            case "tool_calls":
                reason = "tool_use"
            case "length" if self._done.n_output_tokens < self._max_tokens:
                reason = "model_context_window_exceeded"
            case "length":
                reason = "max_tokens"
            case _:
                reason = "end_turn" if self._done.stop is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": self._done.stop}

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self._done.n_prompt_tokens - self._done.n_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self._done.n_cached_tokens,
            "output_tokens": self._done.n_output_tokens,
            "output_tokens_details": {"thinking_tokens": self._done.n_thought_tokens},
        }


async def _chunks(desk: Desk, ask: Ask, reply: _Reply) -> AsyncGenerator[bytes, None]:
    has_started = False
    async with desk.open(ask) as events:
        async for event in events:
            if not has_started:
                has_started = True
                yield _event(reply.start())
            for told in reply.add(event):
                yield _event(told)


def _event(data: dict[str, Any]) -> bytes:
    return sse(data, data["type"])


def _error_event(error: EdgeError) -> bytes:
    return _event(problem(error))
