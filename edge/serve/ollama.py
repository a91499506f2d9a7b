"""Ollama's routes, for clients that speak nothing else: its JSON in, its JSON or lines of JSON out."""

import hashlib
import json
import math
import uuid
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from edge.engine.protocol import Constraint, Done, TokenLogprob
from edge.errors import EdgeError, OutOfRangeError
from edge.schema import closed
from edge.serve.ask import Ask, effort
from edge.serve.body import StrictRoute, documented
from edge.serve.desk import Desk, Finished, Text, ToolCall, Whole
from edge.serve.ollama_answers import (
    Cards,
    ChatAnswer,
    GenerateAnswer,
    ProblemAnswer,
    RunningCards,
    Shown,
    Version,
)
from edge.serve.ollama_fields import ChatBody, Common, GenerateBody, Message, Options, ShowBody
from edge.serve.problems import RequestError, code_of
from edge.serve.stream import dumps, stream
from edge.tools import ToolSet

PATHS = ("/api/version", "/api/tags", "/api/show", "/api/ps", "/api/chat", "/api/generate")
VERSION = "0.12.0"  # of Ollama's API as it is spoken here; some clients talk to no older one
LINES: dict[str, Any] = {"application/x-ndjson": {}}
LATEST = ":latest"  # what clients put behind a name without a tag


def problem(error: EdgeError) -> dict[str, Any]:
    """The error in Ollama's form."""
    return {"error": str(error), "code": code_of(error)}


def _documented(answer: type[BaseModel], content: dict[str, Any] | None = None) -> dict[int | str, Any]:
    return documented(answer, content=content, problem=ProblemAnswer)


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(route_class=StrictRoute, tags=["Ollama"])

    @routes.get("/api/version", responses=_documented(Version))
    async def version() -> Response:
        """The version of Ollama's API that is spoken here."""
        return JSONResponse({"version": VERSION})

    @routes.get("/api/tags", responses=_documented(Cards))
    async def tags() -> Response:
        """The one model that is served."""
        return JSONResponse({"models": [_card(desk)]})

    @routes.get("/api/ps", responses=_documented(RunningCards))
    async def ps() -> Response:
        """The one model that is served: it is always loaded."""
        running = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0, "context_length": _n_ctx_tokens(desk)}
        return JSONResponse({"models": [{**_card(desk), **running}]})

    @routes.post("/api/show", responses=_documented(Shown))
    async def show(body: ShowBody) -> Response:
        """What the model's file says of itself. Long arrays are left out."""
        _check_model(desk, body.model)
        return JSONResponse(_shown(desk))

    @routes.post("/api/chat", responses=_documented(ChatAnswer, LINES))
    async def chat(body: ChatBody, request: Request) -> Response:
        """Reply to a conversation: JSON lines, or with `stream` false one object."""
        return await _reply(desk, chat_ask(body, desk, desk.client(request)), body, _ChatForm(desk.model))

    @routes.post("/api/generate", responses=_documented(GenerateAnswer, LINES))
    async def generate(body: GenerateBody, request: Request) -> Response:
        """Reply to a prompt: JSON lines, or with `stream` false one object."""
        return await _reply(desk, generate_ask(body, desk, desk.client(request)), body, _GenerateForm(desk.model))

    return routes


# ---- the model


def _check_model(desk: Desk, name: str) -> None:
    desk.check_model(name.removesuffix(LATEST) if not desk.model.endswith(LATEST) else name)


def _n_ctx_tokens(desk: Desk) -> int:
    ready = desk.engine.ready
    return ready.n_ctx_tokens if ready else desk.engine.settings.n_ctx_tokens


def _card(desk: Desk) -> dict[str, Any]:
    # the digest is a name for the file, not of its content: reading a gigabyte for a list would be too dear
    digest = hashlib.sha256(f"{desk.model} {desk.info.n_bytes} {desk.info.n_params}".encode()).hexdigest()
    modified = datetime.fromtimestamp(desk.created, timezone.utc).isoformat()
    return {
        "name": desk.model,
        "model": desk.model,
        "modified_at": modified,
        "size": desk.info.n_bytes,
        "digest": digest,
        "details": _details(desk),
    }


def _details(desk: Desk) -> dict[str, Any]:
    n_params = desk.info.n_params
    size = f"{n_params / 1e9:.1f}B" if n_params >= 1e9 else f"{n_params / 1e6:.1f}M"
    return {
        "parent_model": "",
        "format": "gguf",
        "family": desk.info.architecture,
        "families": [desk.info.architecture],
        "parameter_size": size,
        "quantization_level": desk.info.file_type,
    }


def _shown(desk: Desk) -> dict[str, Any]:
    info = desk.info
    scalars = {
        key: value
        if isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
        else None
        for key, value in info.metadata.items()
        if key != "tokenizer.chat_template"
    }
    return {
        "modified_at": datetime.fromtimestamp(desk.created, timezone.utc).isoformat(),
        "license": info.license or "",
        "modelfile": f"FROM {desk.model}\n",
        "parameters": "\n".join(f"{name} {value:g}" for name, value in info.sampling.items()),
        "template": info.chat_template or "",
        "details": _details(desk),
        "model_info": {**scalars, "general.parameter_count": info.n_params},
        "capabilities": ["completion", *(["tools"] if desk.template else []), *(["thinking"] if info.thinks else [])],
    }


# ---- from JSON


def chat_ask(body: ChatBody, desk: Desk, client: str) -> Ask | None:
    """What a chat request wants; None if only whether the model is there. Raises EdgeError."""
    ask = _ask(body, desk, client, messages=tuple(_messages(body.messages or ())))
    if body.tools and ask.constraint is not None:
        raise RequestError("format", "it cannot be had together with tools; send one of both")
    return ask if body.messages else None


def generate_ask(body: GenerateBody, desk: Desk, client: str) -> Ask | None:
    """What a plain request wants; None if only whether the model is there. Raises EdgeError."""
    if body.raw and body.system:
        raise RequestError("system", "a raw prompt has no place for it; leave one of both out")
    if body.raw:
        ask = _ask(body, desk, client, prompts=(body.prompt,))
    else:
        system = [{"role": "system", "content": body.system}] if body.system else []
        ask = _ask(body, desk, client, messages=(*system, {"role": "user", "content": body.prompt}))
    return ask if body.prompt else None


def _ask(
    body: Common,
    desk: Desk,
    client: str,
    *,
    messages: tuple[dict[str, Any], ...] = (),
    prompts: tuple[str, ...] = (),
) -> Ask:
    _check_model(desk, body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs", "it needs logprobs: true; send both")
    options = body.options or Options()
    n_ctx_tokens = _n_ctx_tokens(desk)
    if options.num_ctx is not None and options.num_ctx > n_ctx_tokens:
        raise OutOfRangeError("options.num_ctx", options.num_ctx, 1, n_ctx_tokens)
    n_penalized = n_ctx_tokens if options.repeat_last_n == -1 else options.repeat_last_n
    if isinstance(body.think, str):
        thinks, n_thought = effort(body.think)
    else:
        thinks, n_thought = body.think is not False, None
    tools = None
    if isinstance(body, ChatBody) and body.tools:
        tools = ToolSet(tuple(tool.model_dump(exclude_none=True) for tool in body.tools))
    return Ask(
        id=f"ollama-{uuid.uuid4().hex}",
        client=client,
        sampling=desk.sampling(
            seed=options.seed,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            typical_p=options.typical_p,
            repeat_penalty=options.repeat_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            n_penalized_tokens=n_penalized,
        ),
        messages=messages,
        prompts=prompts,
        max_tokens=options.num_predict if options.num_predict and options.num_predict > 0 else None,
        stops=(options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ()),
        thinks=thinks,
        max_thought_tokens=n_thought,
        constraint=_constraint(body),
        tools=tools,
        n_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def _constraint(body: Common) -> Constraint | None:
    if not body.format:
        return None
    return Constraint("json") if body.format == "json" else Constraint("json_schema", json.dumps(closed(body.format)))


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as Ask wants them. Calls get ids, and a result finds its call by id, name or order."""
    found: list[dict[str, Any]] = []
    unanswered: list[tuple[str, str]] = []  # (id, name) of calls
    for i, message in enumerate(messages):
        if message.content is None and not message.tool_calls:
            raise RequestError(f"messages.{i}.content", "this message says nothing; send a text")
        told: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.tool_calls:
            if message.role != "assistant":
                raise RequestError(f"messages.{i}.tool_calls", "only the assistant calls tools; change the role")
            told["tool_calls"] = [
                {
                    "id": call.id or f"call_{i}_{j}",
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
                for j, call in enumerate(message.tool_calls)
            ]
            unanswered = [(call["id"], call["function"]["name"]) for call in told["tool_calls"]]
        if message.role == "tool":
            wanted = [c for c in unanswered if message.tool_call_id == c[0]]
            wanted = wanted or [c for c in unanswered if message.tool_name == c[1]] or unanswered
            if not wanted:
                raise RequestError(f"messages.{i}", "this is the result of no call; send the call before it")
            unanswered.remove(wanted[0])
            told["tool_call_id"] = wanted[0][0]
        found.append(told)
    return found


# ---- to JSON


class _Form:
    """How one route writes replies."""

    def __init__(self, model: str) -> None:
        self.model = model

    def text(self, kind: str, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def call(self, call: ToolCall) -> dict[str, Any]:
        raise NotImplementedError

    def whole(self, whole: Whole) -> dict[str, Any]:
        raise NotImplementedError

    def head(self) -> dict[str, Any]:
        return {"model": self.model, "created_at": datetime.now(timezone.utc).isoformat()}


class _ChatForm(_Form):
    def text(self, kind: str, text: str) -> dict[str, Any]:
        told = {"content": "", "thinking": text} if kind == "thought" else {"content": text}
        return {"message": {"role": "assistant", **told}}

    def call(self, call: ToolCall) -> dict[str, Any]:
        return {"message": {"role": "assistant", **_told_call(call)}}

    def whole(self, whole: Whole) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": whole.answer}
        if whole.thought:
            message["thinking"] = whole.thought
        for call in whole.calls:
            message |= _told_call(call)
        return {"message": message}


class _GenerateForm(_Form):
    def text(self, kind: str, text: str) -> dict[str, Any]:
        return {"response": "", "thinking": text} if kind == "thought" else {"response": text}

    def whole(self, whole: Whole) -> dict[str, Any]:
        return {"response": whole.answer, **({"thinking": whole.thought} if whole.thought else {})}


def _told_call(call: ToolCall) -> dict[str, Any]:
    """A message's fields for a call. Arguments are an object here: one that was cut is told as text."""
    if call.parsed is None:
        return {"content": call.text}
    function = {"index": 0, "name": call.name, "arguments": call.parsed}
    return {"content": "", "tool_calls": [{"id": call.id, "function": function}]}


def _told_logprobs(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    def told(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "replace"))}

    return [{**told(lp.text, lp.logprob), "top_logprobs": [told(*likely) for likely in lp.top]} for lp in logprobs]


def _end(finished: Finished) -> dict[str, Any]:
    """How a reply ended, with its numbers; durations in nanoseconds."""
    done = finished.done
    return {
        "done": True,
        "done_reason": "length" if finished.reason == "length" else "stop",
        "total_duration": _ns(done.queue_time_s + done.prefill_time_s + done.decode_time_s),
        "load_duration": 0,
        "prompt_eval_count": done.n_prompt_tokens,
        "prompt_eval_duration": _ns(done.prefill_time_s),
        "eval_count": done.n_output_tokens,
        "eval_duration": _ns(done.decode_time_s),
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


LOADED = Finished(0, "stop", Done("", "stop", 0, 0, 0, 0, 0.0, 0.0, 0.0))


async def _reply(desk: Desk, ask: Ask | None, body: Common, form: _Form) -> Response:
    if ask is None:
        return JSONResponse({**form.head(), **form.whole(Whole()), **_end(LOADED), "done_reason": "load"})
    headers = {"X-Request-Id": ask.id}
    if body.stream is not False:
        lines = _lines(desk, ask, form)
        response = await stream(
            lines, on_error=lambda error: _line(problem(error)), media_type="application/x-ndjson", heartbeat=b""
        )
        response.headers.update(headers)
        return response
    (whole,) = await desk.whole(ask)
    assert whole.finished is not None
    answer = {**form.head(), **form.whole(whole), **_end(whole.finished)}
    if ask.n_logprobs is not None:
        answer["logprobs"] = _told_logprobs(whole.logprobs)
    return JSONResponse(answer, headers=headers)


async def _lines(desk: Desk, ask: Ask, form: _Form) -> AsyncGenerator[bytes, None]:
    whole = Whole()
    async with desk.open(ask) as events:
        async for event in events:
            whole.add(event)
            match event:
                case Text(_, kind, text):
                    told = [{**form.text(kind, text), "done": False}]
                case Finished():
                    calls = [{**form.call(call), "done": False} for call in whole.calls]
                    told = [*calls, {**form.text("answer", ""), **_end(event)}]
                case _:  # how far the prompt is read; a call is told when it is whole
                    continue
            if event.logprobs:
                told[-1]["logprobs"] = _told_logprobs(event.logprobs)
            for line in told:
                yield _line({**form.head(), **line})


def _line(data: dict[str, Any]) -> bytes:
    return dumps(data).encode() + b"\n"
