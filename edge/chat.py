"""A conversation: messages in, one request for the engine out. Knows the model's template, not its tokens.

Thoughts never return to the model, but for one that is to go on. When the context is full, the oldest turns go, and
that is told. `ask` and `reply` are for a program that waits, `stream` is `reply` for asyncio.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

from edge.config import MIN_ANSWER_TOKENS, Sampling
from edge.engine.protocol import Constraint, Done, Event, Generate, Kind, Text
from edge.engine.reasoning import CLOSING, OPEN, opens_thought
from edge.errors import ContextOverflowError, ModelFileError
from edge.messages import Message, Settings
from edge.model.gguf import ModelInfo
from edge.model.template import ChatTemplate
from edge.tools import ToolSet, marks_in

FULL_SHARE = (
    0.75  # of the context, for what is kept when turns have to go: the next turns then find their tokens cached
)


class Generates(Protocol):
    """What a conversation asks of an engine; edge.engine.client.Engine is the real one."""

    def generate(self, request: Generate) -> Iterator[Event]: ...


class Streams(Protocol):
    """The same for asyncio: edge.engine.client.EngineClient."""

    def generate(self, request: Generate) -> AsyncGenerator[Event, None]: ...


@dataclass(frozen=True)
class Dropped:
    """The context is full: the reply is made without so many of the oldest questions and answers."""

    n_turns: int


@dataclass(frozen=True)
class Partial:
    """A reply that was cut and is to go on."""

    thought: str
    answer: str = ""
    answers_now: bool = False  # the thought is over as it is


def chat_template(info: ModelInfo) -> ChatTemplate:
    """The template a model file carries. Raises ModelFileError if it has none, TemplateError if it is broken."""
    if info.chat_template is None:
        raise ModelFileError(info.path, "has no chat template", "use an instruction-tuned model")
    return ChatTemplate(info.chat_template, bos=info.bos_text, eos=info.eos_text)


@dataclass
class Conversation:
    """Questions and answers so far, and how the next reply is made."""

    template: ChatTemplate
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    max_tokens: int | None = None
    tools: ToolSet | None = None
    constraint: Constraint | None = None  # of every answer; tools bring their own
    messages: list[dict[str, str]] = field(default_factory=list)  # role user or assistant, in turn
    n_dropped_turns: int = 0  # oldest turns that the context has no more room for
    max_thought_tokens: int | None = None
    partial: Partial | None = None  # the next reply goes on behind it
    id: str = ""  # whose KV memory it is

    def set(self, settings: Settings) -> None:
        """Put in what a stored conversation sets for itself."""
        names = ("temperature", "top_p", "seed")
        self.sampling = self.sampling.updated({name: getattr(settings, name) for name in names})
        self.system = settings.system if settings.system is not None else self.system
        self.max_tokens = settings.max_tokens or self.max_tokens
        if settings.thinking_budget_tokens is not None:
            self.max_thought_tokens = settings.thinking_budget_tokens

    def request(self) -> Generate:
        """The request for the next reply to the messages so far."""
        tools, system = self.tools, self.system or ""
        has_place = tools is not None and "tools" in self.template.source
        if tools is not None and tools.choice != "none" and not has_place:
            system = f"{system}\n\n{tools.instruction()}".strip()
        head = [{"role": "system", "content": system}] if system else []
        rendered = self.template.render([*head, *self.messages], tools=tools.tools if tools and has_place else None)
        segments = [(segment.text, segment.is_template) for segment in rendered]
        tail, goes_on = self._tail(opens_thought("".join(text for text, _ in segments[-2:])))
        return Generate(
            id=uuid.uuid4().hex,
            segments=(*segments, *filter(lambda segment: segment[0], tail)),
            sampling=self.sampling,
            max_tokens=self.max_tokens,
            thinks=goes_on != "answer",
            max_thought_tokens=self.max_thought_tokens,
            constraint=tools.constraint(marks_in(self.template.source)) if tools else self.constraint,
            inside_thought=goes_on == "thought",
            conversation=self.id,
        )

    def _tail(self, is_open: bool) -> tuple[list[tuple[str, bool]], Kind | None]:
        """What stands behind the template's text, and what the reply goes on with. is_open: inside <think> already."""
        partial = self.partial
        if partial is None or not (partial.thought or partial.answer):
            return [], None
        if not partial.thought:
            return [(CLOSING if is_open else "", True), (partial.answer, False)], "answer"
        tail = [("" if is_open else f"{OPEN}\n", True), (partial.thought, False)]
        if not partial.answer and not partial.answers_now:
            return tail, "thought"
        return [*tail, (CLOSING, True), (partial.answer, False)], "answer"

    def ask(
        self, question: str, engine: Generates, on_start: Callable[[str], None] = lambda _: None
    ) -> Iterator[Event | Dropped]:
        """Add a question and yield the events of its reply; the answer joins the messages when it is done.

        on_start gets the request's id, to cancel it by. After a question that got no whole reply the conversation is
        as it was before.
        """
        before = list(self.messages), self.n_dropped_turns
        self.messages.append({"role": "user", "content": question})
        answer = ""
        is_done = False
        try:
            for event in self.reply(engine, on_start):
                if isinstance(event, Text) and event.kind == "answer":
                    answer += event.text
                is_done = isinstance(event, Done)
                if is_done:
                    self.messages.append({"role": "assistant", "content": answer})
                yield event
        finally:
            if not is_done:
                self.messages, self.n_dropped_turns = before

    def reply(self, engine: Generates, on_start: Callable[[str], None] = lambda _: None) -> Iterator[Event | Dropped]:
        """The events of a reply to the messages as they are; it does not join them. Raises EdgeError."""
        while True:
            request = self._roomy_request()
            on_start(request.id)
            try:
                yield from engine.generate(request)
                return
            except ContextOverflowError as error:
                yield self._make_room(error)

    async def stream(
        self, engine: Streams, on_start: Callable[[str], None] = lambda _: None
    ) -> AsyncGenerator[Event | Dropped, None]:
        """reply, for asyncio. The template is rendered in a thread."""
        while True:
            request = await asyncio.to_thread(self._roomy_request)
            on_start(request.id)
            try:
                async with aclosing(engine.generate(request)) as events:
                    async for event in events:
                        yield event
                return
            except ContextOverflowError as error:
                yield self._make_room(error)

    def _roomy_request(self) -> Generate:
        """The request that is refused where it leaves little room for its reply, while there is something to drop."""
        n_tokens = 0 if len(self.messages) == 1 else min(MIN_ANSWER_TOKENS, self.max_tokens or MIN_ANSWER_TOKENS)
        return replace(self.request(), min_reply_tokens=n_tokens)

    def _make_room(self, error: ContextOverflowError) -> Dropped:
        """Drop oldest turns, several at once: each time the whole prompt is read anew. Raises error if one is left."""
        if len(self.messages) == 1:
            raise error
        n_chars = sum(len(message["content"]) for message in self.messages)
        n_excess_tokens = error.n_prompt_tokens - FULL_SHARE * error.n_ctx_tokens
        n_chars_to_go = n_chars * n_excess_tokens / error.n_prompt_tokens
        n_turns = 0
        while len(self.messages) > 1 and (n_turns == 0 or n_chars_to_go > 0):
            n_chars_to_go -= sum(len(message["content"]) for message in self.messages[:2])
            del self.messages[:2]
            n_turns += 1
        self.n_dropped_turns += n_turns
        return Dropped(n_turns)

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.messages.clear()
        self.n_dropped_turns = 0


def prompt_messages(branch: Sequence[Message]) -> list[dict[str, str]]:
    """A stored branch as the template takes it; attached files stand before their question."""
    return [{"role": message.role, "content": _with_files(message)} for message in branch]


def _with_files(message: Message) -> str:
    files = [f"File {file.name}:\n\n{file.text.strip()}\n\nEnd of {file.name}." for file in message.attachments]
    return "\n\n".join([*files, message.content])
