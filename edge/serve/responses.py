"""OpenAI's Responses: its JSON in, its JSON or server-sent events out. Nothing is stored: each request says all."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from copy import deepcopy
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from edge.engine.protocol import Constraint, Done, TokenLogprob
from edge.errors import EdgeError
from edge.serve.ask import Ask, effort, response_format
from edge.serve.body import StrictRoute, documented
from edge.serve.desk import Arguments, Call, Desk, Event, Finished, Text
from edge.serve.problems import RequestError, code_of
from edge.serve.responses_fields import (
    ChosenFunction,
    FunctionCall,
    FunctionCallOutput,
    InputMessage,
    ResponsesBody,
)
from edge.serve.stream import sse, stream
from edge.tools import ToolSet


class ResponseAnswer(BaseModel):
    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["completed", "incomplete"]
    incomplete_details: dict[str, str] | None
    error: None
    output: list[dict[str, Any]]
    usage: dict[str, Any]


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(route_class=StrictRoute, tags=["OpenAI"])

    @routes.post("/v1/responses", responses=documented(ResponseAnswer, content={"text/event-stream": {}}))
    async def responses(body: ResponsesBody, request: Request) -> Response:
        """Reply to a conversation. With `stream`, as events from `response.created` to `response.completed`."""
        ask = response_ask(body, desk, desk.client(request))
        reply = _Reply(ask, desk.model, body)
        headers = {"X-Request-Id": ask.id}
        if body.stream:
            response = await stream(_chunks(desk, ask, reply), on_error=lambda error: _event(reply.failed(error)))
            response.headers.update(headers)
            return response
        async with desk.open(ask) as events:
            async for event in events:
                reply.add(event)
        return JSONResponse(reply.response, headers=headers)

    return routes


# ---- from JSON


def response_ask(body: ResponsesBody, desk: Desk, client: str) -> Ask:
    """What a request wants. Raises RequestError and other EdgeErrors."""
    desk.check_model(body.model)
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options", "it needs stream: true; send both or none")
    level = body.reasoning.effort if body.reasoning else None
    thinks, n_thought = effort(level) if level else (True, None)
    constraint, tools = _constraint(body), _tools(body)
    if constraint is not None and tools is not None and tools.choice != "none":
        raise RequestError("text.format", "it cannot be had together with tools; send one of both")
    wants_logprobs = body.top_logprobs is not None or "message.output_text.logprobs" in (body.include or ())
    sampling = desk.sampling(
        temperature=body.temperature, top_p=body.top_p, top_k=body.top_k, min_p=body.min_p, seed=body.seed
    )
    return Ask(
        id=f"resp_{uuid.uuid4().hex}",
        client=client,
        sampling=sampling,
        messages=tuple(_messages(body)),
        max_tokens=body.max_output_tokens,
        thinks=thinks,
        max_thought_tokens=n_thought,
        constraint=constraint,
        tools=tools,
        n_logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
    )


def _constraint(body: ResponsesBody) -> Constraint | None:
    wanted = body.text.format if body.text else None
    if wanted is None:
        return None
    if (wanted.type == "json_schema") != (wanted.schema_ is not None):
        raise RequestError("text.format.schema", "it goes with type json_schema and no other; mend one of both")
    return response_format(wanted.type, wanted.schema_)


def _tools(body: ResponsesBody) -> ToolSet | None:
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise RequestError("tool_choice", "there are no tools to choose from; send tools")
        return None
    functions = [tool.model_dump(exclude_none=True, exclude={"type"}) for tool in body.tools]
    choice = body.tool_choice or "auto"
    name = choice.name if isinstance(choice, ChosenFunction) else choice
    return ToolSet(tuple({"type": "function", "function": function} for function in functions), name)


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    """Instructions and input as Ask wants them. Calls join the assistant's message before them."""
    found: list[dict[str, Any]] = []
    if body.instructions:
        found.append({"role": "system", "content": body.instructions})
    for i, item in enumerate(body.input):
        match item:
            case InputMessage(role=role, content=content):
                text = "".join(part.text for part in content)
                found.append({"role": "system" if role == "developer" else role, "content": text})
            case FunctionCall():
                call = {"name": item.name, "arguments": _arguments(i, item)}
                if not found or found[-1]["role"] != "assistant":
                    found.append({"role": "assistant", "content": ""})
                calls = found[-1].setdefault("tool_calls", [])
                calls.append({"id": item.call_id, "type": "function", "function": call})
            case FunctionCallOutput(output=output):
                text = "".join(part.text for part in output)
                found.append({"role": "tool", "content": text, "tool_call_id": item.call_id})
    return found


def _arguments(i: int, call: FunctionCall) -> dict[str, Any]:
    try:
        parsed = json.loads(call.arguments)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise RequestError(f"input.{i}.arguments", "this is no JSON object; send one as text")
    return parsed


# ---- to JSON


class _Reply:
    """One response as it grows. The last of output is open until closed; every event carries its number."""

    def __init__(self, ask: Ask, model: str, body: ResponsesBody) -> None:
        self._n_events = 0
        self._key = ask.id.removeprefix("resp_")
        self._shows_logprobs = ask.n_logprobs is not None
        self._output: list[dict[str, Any]] = []
        asked = body.model_dump(by_alias=True)
        form = {"type": "text"} if not body.text or not body.text.format else asked["text"]["format"]
        self.response: dict[str, Any] = {
            "id": ask.id,
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "status": "in_progress",
            "incomplete_details": None,
            "error": None,
            "output": self._output,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "store": False,
            "temperature": ask.sampling.temperature,
            "top_p": ask.sampling.top_p,
            "top_logprobs": ask.n_logprobs or 0,
            "text": {"format": {name: value for name, value in form.items() if value is not None}},
            "tool_choice": asked["tool_choice"] or "auto",
            "tools": asked["tools"] or [],
            "truncation": "disabled",
            "metadata": body.metadata or {},
            "user": body.user,
            "usage": None,
        }

    def start(self) -> list[dict[str, Any]]:
        return [self._told("response.created"), self._told("response.in_progress")]

    def failed(self, error: EdgeError) -> dict[str, Any]:
        """The last event where the engine failed in the middle."""
        self.response |= {"status": "failed", "error": {"code": code_of(error), "message": str(error)}}
        return self._told("response.failed")

    def add(self, event: Event) -> list[dict[str, Any]]:
        """Take an event in; returns what is to be told of it."""
        return list(self._added(event))

    def _added(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case Text(_, "thought", text):
                yield from self._opened("reasoning", "rs", summary=[], content=[{"type": "reasoning_text", "text": ""}])
                self._output[-1]["content"][0]["text"] += text
                yield self._part("reasoning_text.delta", delta=text)
            case Text(_, _, text, logprobs):
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                yield from self._opened("message", "msg", role="assistant", content=[part])
                told = self._told_logprobs(logprobs)
                self._output[-1]["content"][0]["text"] += text
                self._output[-1]["content"][0]["logprobs"] += told
                yield self._part("output_text.delta", delta=text, logprobs=told)
            case Call(_, call_id, name):
                yield from self._opened("function_call", "fc", call_id=call_id, name=name, arguments="")
            case Arguments(_, text):
                self._output[-1]["arguments"] += text
                yield self._item("function_call_arguments.delta", delta=text)
            case Finished(_, reason, done):
                is_whole = reason != "length"
                yield from self._closed("completed" if is_whole else "incomplete")
                details = None if is_whole else {"reason": "max_output_tokens"}
                self.response |= {"incomplete_details": details, "usage": _usage(done)}
                self.response["status"] = "completed" if is_whole else "incomplete"
                yield self._told("response.completed" if is_whole else "response.incomplete")

    def _opened(self, kind: str, short: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Begin an item of this kind unless it is open already."""
        if self._output and self._output[-1]["type"] == kind:
            return
        yield from self._closed("completed")
        item = {"id": f"{short}_{self._key}", "type": kind, "status": "in_progress", **fields}
        parts = item.get("content", [])
        self._output.append({**item, "content": []} if parts else item)
        yield self._output_item("added")
        if parts:
            self._output[-1]["content"] = parts
            yield self._part("content_part.added", part=deepcopy(parts[0]))

    def _closed(self, status: str) -> Iterator[dict[str, Any]]:
        """End the open item, if there is one."""
        if not self._output:
            return
        item = self._output[-1]
        item["status"] = status
        if item["type"] == "reasoning":
            yield self._part("reasoning_text.done", text=item["content"][0]["text"])
            yield self._part("content_part.done", part=dict(item["content"][0]))
        elif item["type"] == "message":
            part = item["content"][0]
            yield self._part("output_text.done", text=part["text"], logprobs=part["logprobs"])
            yield self._part("content_part.done", part=dict(part))
        elif status == "completed":
            yield self._item("function_call_arguments.done", arguments=item["arguments"], name=item["name"])
        yield self._output_item("done")

    def _told(self, kind: str, **fields: Any) -> dict[str, Any]:
        """An event with its number; without fields, one of the response itself."""
        self._n_events += 1
        return {"type": kind, "sequence_number": self._n_events - 1, **(fields or {"response": dict(self.response)})}

    def _output_item(self, what: str) -> dict[str, Any]:
        item = dict(self._output[-1])
        return self._told(f"response.output_item.{what}", output_index=len(self._output) - 1, item=item)

    def _item(self, kind: str, **fields: Any) -> dict[str, Any]:
        item_id, index = self._output[-1]["id"], len(self._output) - 1
        return self._told(f"response.{kind}", item_id=item_id, output_index=index, **fields)

    def _part(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._item(kind, content_index=0, **fields)

    def _told_logprobs(self, logprobs: tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
        if not self._shows_logprobs:
            return []
        return [
            {**_logprob(lp.text, lp.logprob), "top_logprobs": [_logprob(*likely) for likely in lp.top]}
            for lp in logprobs
        ]


def _logprob(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "replace"))}


def _usage(done: Done) -> dict[str, Any]:
    return {
        "input_tokens": done.n_prompt_tokens,
        "input_tokens_details": {"cached_tokens": done.n_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": done.n_output_tokens,
        "output_tokens_details": {"reasoning_tokens": done.n_thought_tokens},
        "total_tokens": done.n_prompt_tokens + done.n_output_tokens,
    }


async def _chunks(desk: Desk, ask: Ask, reply: _Reply) -> AsyncGenerator[bytes, None]:
    has_started = False
    async with desk.open(ask) as events:
        async for event in events:
            if not has_started:
                has_started = True
                for told in reply.start():
                    yield _event(told)
            for told in reply.add(event):
                yield _event(told)


def _event(data: dict[str, Any]) -> bytes:
    return sse(data, data["type"])
