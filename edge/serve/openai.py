"""OpenAI's chat and plain completions: its JSON in, its JSON or server-sent events out."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from edge.engine.protocol import Constraint, Done, TokenLogprob
from edge.serve.answers import ChatAnswer, CompletionAnswer
from edge.serve.ask import Ask, effort, response_format
from edge.serve.body import StrictRoute, documented
from edge.serve.desk import Arguments, Call, Desk, Event, Finished, Progress, Text, ToolCall, Whole
from edge.serve.openai_fields import ChatBody, Common, CompletionBody, Message, ToolChoice
from edge.serve.problems import RequestError, body_of
from edge.serve.stream import sse, stream
from edge.tools import ToolSet

EVENTS: dict[str, Any] = {"text/event-stream": {}}  # what a streamed answer is
DONE = b"data: [DONE]\n\n"
# cancelled by the client itself or by the control route: OpenAI has no word of its own for that
REASONS = {"cancelled": "stop"}


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(route_class=StrictRoute, tags=["OpenAI"])

    @routes.post("/v1/chat/completions", responses=documented(ChatAnswer, content=EVENTS))
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Reply to a conversation. With `stream`, as server-sent events that end in `[DONE]`."""
        ask = chat_ask(body, desk, desk.client(request))
        return await _reply(desk, ask, body, _ChatForm(ask.id, desk.model, shows_logprobs=bool(body.logprobs)))

    @routes.post("/v1/completions", responses=documented(CompletionAnswer, content=EVENTS))
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Go on behind a text. No template is applied; control tokens in the text are read as such."""
        ask = completion_ask(body, desk, desk.client(request))
        return await _reply(desk, ask, body, _CompletionForm(ask.id, desk.model, shows_logprobs=bool(ask.n_logprobs)))

    return routes


# ---- from JSON


def chat_ask(body: ChatBody, desk: Desk, client: str) -> Ask:
    """What a chat request wants. Raises RequestError and other EdgeErrors."""
    desk.check_model(body.model)
    _check(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs", "it needs logprobs: true; send both")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise RequestError("max_tokens", "it says the same as max_completion_tokens; send one of both")
    thinks, n_thought = effort(body.reasoning_effort) if body.reasoning_effort else (True, None)
    if body.thinking_budget_tokens is not None:
        thinks, n_thought = body.thinking_budget_tokens > 0, body.thinking_budget_tokens
    if body.chat_template_kwargs is not None and body.chat_template_kwargs.enable_thinking is False:
        thinks = False
    return Ask(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        client=client,
        sampling=desk.sampling(logit_bias=body.biases, **body.settings),
        messages=tuple(_message(i, message) for i, message in enumerate(body.messages)),
        n=body.n or 1,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stops=body.stops,
        thinks=thinks,
        max_thought_tokens=n_thought,
        constraint=_constraint(body),
        tools=_tools(body),
        n_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def completion_ask(body: CompletionBody, desk: Desk, client: str) -> Ask:
    """What a plain completion wants."""
    desk.check_model(body.model)
    _check(body)
    return Ask(
        id=f"cmpl-{uuid.uuid4().hex}",
        client=client,
        sampling=desk.sampling(logit_bias=body.biases, **body.settings),
        prompts=body.prompts,
        n=body.n or 1,
        max_tokens=body.max_tokens,
        stops=body.stops,
        n_logprobs=body.logprobs,
    )


def _check(body: Common) -> None:
    for name in ("stream_options", "return_progress"):
        if getattr(body, name) and not body.stream:
            raise RequestError(name, "it needs stream: true; send both or none")


def _constraint(body: ChatBody) -> Constraint | None:
    wanted = body.response_format
    if wanted is None:
        return None
    if (wanted.type == "json_schema") != (wanted.json_schema is not None):
        raise RequestError(
            "response_format.json_schema", "it goes with type json_schema and no other; mend one of both"
        )
    return response_format(wanted.type, wanted.json_schema.schema_ if wanted.json_schema else None)


def _tools(body: ChatBody) -> ToolSet | None:
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise RequestError("tool_choice", "there are no tools to choose from; send tools")
        return None
    choice = body.tool_choice or "auto"
    name = choice.function.name if isinstance(choice, ToolChoice) else choice
    return ToolSet(tuple(tool.model_dump(exclude_none=True) for tool in body.tools), name)


def _message(i: int, message: Message) -> dict[str, Any]:
    """A message as Ask wants it."""
    role = "system" if message.role == "developer" else message.role
    calls = [
        _call(i, j, call.id, call.function.name, call.function.arguments)
        for j, call in enumerate(message.tool_calls or ())
    ]
    if message.content is None and not calls:
        raise RequestError(f"messages.{i}.content", "this message says nothing; send a text")
    if calls and role != "assistant":
        raise RequestError(f"messages.{i}.tool_calls", "only the assistant calls tools; change the role")
    found: dict[str, Any] = {"role": role, "content": message.content or ""}
    if calls:
        found["tool_calls"] = calls
    if message.name is not None:
        found["name"] = message.name
    if role == "tool":
        if message.tool_call_id is None:
            raise RequestError(f"messages.{i}.tool_call_id", "a result of a tool names its call; send the call's id")
        found["tool_call_id"] = message.tool_call_id
    elif message.tool_call_id is not None:
        raise RequestError(f"messages.{i}.tool_call_id", "only messages of role tool have one; leave it out")
    return found


def _call(i: int, j: int, call_id: str, name: str, arguments: str) -> dict[str, Any]:
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise RequestError(
            f"messages.{i}.tool_calls.{j}.function.arguments", "this is no JSON object; send one as text"
        )
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": parsed}}


# ---- to JSON


def usage(dones: Sequence[Done], n_prompts: int = 1) -> dict[str, Any]:
    """Token counts of all replies; the prompt they share counts once."""
    per_prompt = max(1, len(dones) // n_prompts)
    prompt = sum(done.n_prompt_tokens for done in dones[::per_prompt])
    output = sum(done.n_output_tokens for done in dones)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": sum(done.n_cached_tokens for done in dones[::per_prompt])},
        "completion_tokens_details": {"reasoning_tokens": sum(done.n_thought_tokens for done in dones)},
    }


def timings(done: Done) -> dict[str, Any]:
    """The numbers of a reply in llama-server's form."""
    n_read, n_made = done.n_prompt_tokens - done.n_cached_tokens, done.n_output_tokens
    read_ms, made_ms = done.prefill_time_s * 1000, done.decode_time_s * 1000
    return {
        "cache_n": done.n_cached_tokens,
        "prompt_n": n_read,
        "prompt_ms": round(read_ms, 3),
        "prompt_per_token_ms": round(read_ms / n_read, 3) if n_read else 0.0,
        "prompt_per_second": round(done.prefill_tokens_per_s, 3),
        "predicted_n": n_made,
        "predicted_ms": round(made_ms, 3),
        "predicted_per_token_ms": round(made_ms / (n_made - 1), 3) if n_made > 1 else 0.0,
        "predicted_per_second": round(done.decode_tokens_per_s, 3),
        "queue_ms": round(done.queue_time_s * 1000, 3),
    }


class _Form:
    """How one API writes replies."""

    object = ""
    chunk_object = ""

    def __init__(self, reply_id: str, model: str, *, shows_logprobs: bool) -> None:
        self.id, self.model, self.shows_logprobs = reply_id, model, shows_logprobs
        self.created = int(time.time())

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def choice(self, index: int, whole: Whole) -> dict[str, Any]:
        raise NotImplementedError

    def opening(self, index: int) -> list[dict[str, Any]]:  # noqa: ARG002
        """The choice of the chunk before a reply's first event, if there is one."""
        return []

    def pieces(self, event: Event) -> list[dict[str, Any]]:
        """The choice of the chunk for an event, if there is one."""
        raise NotImplementedError


class _ChatForm(_Form):
    object, chunk_object = "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [self._piece(index, {"role": "assistant", "content": ""})]

    def choice(self, index: int, whole: Whole) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": whole.answer or (None if whole.calls else "")}
        if whole.thought:
            message["reasoning_content"] = whole.thought
        if whole.calls:
            message["tool_calls"] = [_told_call(call) for call in whole.calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs([lp for lp in whole.logprobs if lp.kind == "answer"]),
            "finish_reason": REASONS.get(whole.reason, whole.reason),
        }

    def pieces(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case Text(index, "thought", text):
                return [self._piece(index, {"reasoning_content": text})]
            case Text(index, _, text, logprobs):
                return [self._piece(index, {"content": text}, logprobs)]
            case Call(index, call_id, name):
                begun = _told_call(ToolCall(call_id, name))
                return [self._piece(index, {"tool_calls": [{"index": 0, **begun}]})]
            case Arguments(index, text):
                return [self._piece(index, {"tool_calls": [{"index": 0, "function": {"arguments": text}}]})]
            case Finished(index, reason, _, logprobs):
                return [self._piece(index, {}, logprobs, REASONS.get(reason, reason))]
        return []

    def _piece(
        self, index: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob] = (), reason: str | None = None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(logprobs) if logprobs else None,
            "finish_reason": reason,
        }

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.shows_logprobs:
            return None
        return {"content": [_told_logprob(lp) for lp in logprobs], "refusal": None}


class _CompletionForm(_Form):
    object = chunk_object = "text_completion"

    def choice(self, index: int, whole: Whole) -> dict[str, Any]:
        reason = REASONS.get(whole.reason, whole.reason)
        return self._piece(index, whole.answer, whole.logprobs, reason)

    def pieces(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case Text(index, _, text, logprobs):
                return [self._piece(index, text, logprobs)]
            case Finished(index, reason, _, logprobs):
                return [self._piece(index, "", logprobs, REASONS.get(reason, reason))]
        return []

    def _piece(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] = (), reason: str | None = None
    ) -> dict[str, Any]:
        told = None
        if self.shows_logprobs:
            told = {
                "tokens": [lp.text for lp in logprobs],
                "token_logprobs": [lp.logprob for lp in logprobs],
                "top_logprobs": [dict(lp.top) for lp in logprobs],
            }
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}


def _told_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _told_logprob(logprob: TokenLogprob) -> dict[str, Any]:
    def told(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "replace"))}

    return {**told(logprob.text, logprob.logprob), "top_logprobs": [told(*entry) for entry in logprob.top]}


# ---- whole and streamed


async def _reply(desk: Desk, ask: Ask, body: Common, form: _Form) -> Response:
    headers = {"X-Request-Id": ask.id}
    if body.stream:
        chunks = _chunks(desk, ask, body, form)
        response = await stream(chunks, on_error=lambda error: sse(body_of(error)))
        response.headers.update(headers)
        return response
    wholes = await desk.whole(ask)
    dones = [whole.done for whole in wholes]
    answer = {
        **form.head(form.object),
        "choices": [form.choice(i, whole) for i, whole in enumerate(wholes)],
        "usage": usage(dones, len(ask.prompts) or 1),
        "timings": timings(dones[0]),
    }
    return JSONResponse(answer, headers=headers)


async def _chunks(desk: Desk, ask: Ask, body: Common, form: _Form) -> AsyncGenerator[bytes, None]:
    head = form.head(form.chunk_object)
    told: set[int] = set()
    dones: list[Done] = []
    started_s = time.perf_counter()
    async with desk.open(ask) as events:
        async for event in events:
            if isinstance(event, Progress):
                if body.return_progress:
                    yield sse({**head, "choices": [], "prompt_progress": _progress(event, started_s)})
                continue
            opening = [] if event.index in told else form.opening(event.index)
            told.add(event.index)
            for piece in (*opening, *form.pieces(event)):
                chunk = {**head, "choices": [piece]}
                if isinstance(event, Finished) and piece["finish_reason"] is not None:
                    chunk["timings"] = timings(event.done)
                yield sse(chunk)
            if isinstance(event, Finished):
                dones.append(event.done)
    if body.includes_usage:
        yield sse({**head, "choices": [], "usage": usage(dones, len(ask.prompts) or 1)})
    yield DONE


def _progress(event: Progress, started_s: float) -> dict[str, Any]:
    return {
        "total": event.n_prompt_tokens,
        "processed": event.n_done_tokens,
        "time_ms": round((time.perf_counter() - started_s) * 1000),
        "seconds_left": round(event.seconds_left, 3),
    }
