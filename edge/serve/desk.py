"""Where every API's requests arrive: one model, one engine, and the replies under way. Knows no wire format.

async with desk.open(ask) as reply:      # leaving it cancels what still runs, within one step of the engine
    async for event in reply: ...        # Progress, Text, Call, Arguments, Finished
"""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from edge.config import Sampling
from edge.engine import protocol
from edge.engine.client import EngineClient
from edge.engine.protocol import Done, Generate, Kind, TokenLogprob
from edge.errors import EdgeError, OutOfRangeError
from edge.model.gguf import ModelInfo
from edge.model.template import ChatTemplate
from edge.serve.ask import Ask, requests
from edge.serve.entry import entry
from edge.serve.metrics import Metrics
from edge.serve.problems import ModelNotFoundError, NotFoundError, RequestError, StoppingError
from edge.tools import CallReader, marks_in

MAX_CLIENT_CHARS = 64


@dataclass(frozen=True)
class Progress:
    """How far a prompt has been read."""

    index: int
    n_done_tokens: int
    n_prompt_tokens: int
    seconds_left: float


@dataclass(frozen=True)
class Text:
    """A piece of a reply, with the log-probabilities told since the piece before."""

    index: int
    kind: Kind
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Call:
    """A tool call begins; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Arguments:
    """A piece of the arguments of the call that has begun."""

    index: int
    text: str


@dataclass(frozen=True)
class Finished:
    """The end of one reply. logprobs: those whose text was never shown."""

    index: int
    reason: str  # stop, length, tool_calls, cancelled
    done: Done
    logprobs: tuple[TokenLogprob, ...] = ()


Event = Progress | Text | Call | Arguments | Finished


@dataclass
class ToolCall:
    """A call so far. arguments: JSON text; when whole, valid against the tool's schema."""

    id: str
    name: str
    arguments: str = ""

    @property
    def parsed(self) -> dict[str, Any] | None:
        """The arguments; None if the reply was cut in the middle of them."""
        try:
            found: dict[str, Any] = json.loads(self.arguments)
        except ValueError:
            return None
        return found

    @property
    def text(self) -> str:
        """What a call that was cut is told as where arguments cannot be in pieces."""
        return f'{{"name": "{self.name}", "arguments": {self.arguments}'


@dataclass
class Whole:
    """One reply as it grows, and when it is complete."""

    thought: str = ""
    answer: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: Event) -> None:
        match event:
            case Text(_, "thought", text):
                self.thought += text
            case Text(_, _, text):
                self.answer += text
            case Call(_, call_id, name):
                self.calls.append(ToolCall(call_id, name))
            case Arguments(_, text):
                self.calls[-1].arguments += text
            case Finished():
                self.finished = event
        if isinstance(event, Text | Finished):
            self.logprobs += event.logprobs

    @property
    def done(self) -> Done:
        assert self.finished is not None
        return self.finished.done

    @property
    def reason(self) -> str:
        assert self.finished is not None
        return self.finished.reason


class Desk:
    """One server's model and engine. Use from one event loop."""

    def __init__(self, engine: EngineClient, info: ModelInfo, template: ChatTemplate | None, model: str) -> None:
        self.engine, self.info, self.template, self.model = engine, info, template, model
        self.created = int(time.time())
        self.defaults = Sampling().updated(info.sampling)
        self.is_stopping = False
        self.logs_prompts = False
        self.metrics = Metrics(engine, lambda: self.state)
        self._running: dict[str, tuple[str, list[str]]] = {}  # id -> client, ids of its engine requests

    @property
    def state(self) -> str:
        """loading, ok, busy, restarting, down, stopping."""
        if self.is_stopping:
            return "stopping"
        if self.engine.state == "ok" and self.engine.beat.n_waiting >= self.engine.settings.n_queue:
            return "busy"
        return self.engine.state

    # ---- what a request says

    def client(self, request: Request) -> str:
        """Whose request it is: waiting requests of different clients take turns."""
        return str(request.scope.get("client_name") or (request.client.host if request.client else ""))

    def sampling(self, *, logit_bias: Sequence[tuple[int, float]] = (), **values: float | int | None) -> Sampling:
        """The model's own settings with every value that is not None put in. Raises for a token that is none."""
        for token, _ in logit_bias:
            if not 0 <= token < self.info.n_vocab:
                raise OutOfRangeError("logit_bias", token, 0, self.info.n_vocab - 1)
        return self.defaults.updated({**values, "logit_bias": tuple(logit_bias) or None})

    def check_model(self, name: str | None) -> None:
        """Raise if a request names a model that is not the one served; "default" and nothing are fine."""
        if name not in (None, "", "default", self.model):
            raise ModelNotFoundError(f"the model {name}", f"use {self.model}")

    # ---- replies

    @contextlib.asynccontextmanager
    async def open(self, ask: Ask) -> AsyncIterator[AsyncIterator[Event]]:
        """The events of all replies to ask, each reply's in order. Raises EdgeError."""
        if self.is_stopping:
            raise StoppingError
        if ask.id in self._running:
            raise RequestError("id", "a request with this id is running; choose another")
        self._running[ask.id] = (ask.client, [])
        try:
            asked = await asyncio.to_thread(requests, ask, self.template, self.info)
            self._running[ask.id] = (ask.client, [request.id for request in asked])
            self._note(ask)
            async with contextlib.aclosing(self._events(ask, asked)) as events:
                yield events
        finally:
            del self._running[ask.id]

    async def whole(self, ask: Ask) -> list[Whole]:
        """All replies to ask, when they are complete. Raises EdgeError."""
        wholes = [Whole() for _ in range(ask.n * max(1, len(ask.prompts)))]
        async with self.open(ask) as events:
            async for event in events:
                wholes[event.index].add(event)
        return wholes

    async def count(self, ask: Ask) -> int:
        """Tokens of the prompt that ask becomes. Raises EdgeError."""
        first, *_ = await asyncio.to_thread(requests, ask, self.template, self.info)
        return len(await self.engine.tokenize(first.segments))

    def answer_now(self, request_id: str, client: str) -> None:
        """End the thought of a running request. Raises NotFoundError."""
        for part in self._parts(request_id, client):
            self.engine.answer_now(part)

    def cancel(self, request_id: str, client: str) -> None:
        """End a running request. Raises NotFoundError."""
        for part in self._parts(request_id, client):
            self.engine.cancel(part)

    def _parts(self, request_id: str, client: str) -> list[str]:
        owner, parts = self._running.get(request_id, (None, []))
        if owner != client:  # nobody learns which ids others use
            raise NotFoundError(f"the request {request_id}", "name one that is running")
        return parts

    # ---- their events

    async def _events(self, ask: Ask, asked: list[Generate]) -> AsyncGenerator[Event, None]:
        streams = [self._one(i, request, calls_tools=ask.calls_tools) for i, request in enumerate(asked)]
        async with contextlib.aclosing(streams[0] if len(streams) == 1 else _merged(streams)) as events:
            async for event in events:
                yield event

    async def _one(self, index: int, request: Generate, *, calls_tools: bool) -> AsyncGenerator[Event, None]:
        """The events of one reply."""
        logprobs: dict[Kind, list[TokenLogprob]] = {"thought": [], "answer": []}
        is_marked = self.template is not None and marks_in(self.template.source) is not None
        reader = CallReader(is_marked=is_marked) if calls_tools else None
        async with contextlib.aclosing(self.engine.generate(request)) as events:
            async for event in events:
                match event:
                    case protocol.Text(_, "answer", text) if reader is not None:
                        for piece in _read(reader, index, text, logprobs["answer"]):
                            yield piece
                    case protocol.Text(_, kind, text):
                        yield Text(index, kind, text, tuple(logprobs[kind]))
                        logprobs[kind].clear()
                    case TokenLogprob():
                        logprobs[event.kind].append(event)
                    case protocol.Progress(_, n_done, n_prompt, left_s):
                        yield Progress(index, n_done, n_prompt, left_s)
                    case Done():
                        self._count(event)
                        reason: str = event.finish_reason
                        if reader is not None:
                            if held := reader.finish():  # cut off before the call had a name
                                yield Text(index, "answer", held)
                            if reader.is_whole and reason == "stop":
                                reason = "tool_calls"
                        left = tuple(lp for lp in logprobs["answer"] if lp.text not in self._end_texts)
                        yield Finished(index, reason, event, left)

    @property
    def _end_texts(self) -> tuple[str, ...]:
        return tuple(self.info.special_tokens.values())

    def _note(self, ask: Ask) -> None:
        facts = entry()
        facts.id, facts.model = ask.id, self.model
        if self.logs_prompts:
            facts.prompt = "\n".join(ask.prompts or [str(message["content"]) for message in ask.messages])

    def _count(self, done: Done) -> None:
        self.metrics.done(done)
        facts = entry()
        facts.n_prompt_tokens += done.n_prompt_tokens
        facts.n_cached_tokens += done.n_cached_tokens
        facts.n_thought_tokens += done.n_thought_tokens
        facts.n_answer_tokens += done.n_answer_tokens
        facts.finish_reason = done.finish_reason
        facts.queue_time_s = done.queue_time_s
        if done.n_output_tokens:
            facts.time_to_first_token_s = done.time_to_first_token_s


def _read(reader: CallReader, index: int, text: str, logprobs: list[TokenLogprob]) -> Iterator[Text | Call | Arguments]:
    """What the next piece of an answer is: text, which takes the log-probabilities with it, or a call."""
    had_name = reader.name is not None
    shown = reader.feed(text)
    if reader.name is not None:
        if not had_name:
            yield Call(index, f"call_{uuid.uuid4().hex[:24]}", reader.name)
        if shown:
            yield Arguments(index, shown)
    elif shown:
        yield Text(index, "answer", shown, tuple(logprobs))
        logprobs.clear()


async def _merged(streams: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """The events of several streams as they come; the first error ends all."""
    inbox: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[Event, None]) -> None:
        try:
            async with contextlib.aclosing(stream):
                async for event in stream:
                    inbox.put_nowait(event)
            inbox.put_nowait(None)
        except EdgeError as error:
            inbox.put_nowait(error)

    tasks = [asyncio.ensure_future(pump(stream)) for stream in streams]
    try:
        n_open = len(tasks)
        while n_open:
            event = await inbox.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                n_open -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
