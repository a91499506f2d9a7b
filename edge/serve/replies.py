"""Replies under way: each runs in a task of its own, into the history, whoever reads along or goes away.

A reader follows a reply from any offset and gets what it missed, then what comes. Events are dicts as the page gets
them; offsets count characters (code points). Knows no HTTP.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from edge.chat import Conversation, Dropped, Partial, prompt_messages
from edge.config import Sampling
from edge.engine.client import EngineClient
from edge.engine.protocol import Done, Event, Kind, Progress, Text
from edge.errors import EdgeError, EngineDownError
from edge.history import History
from edge.messages import Attachment, Message, to_json
from edge.model.template import ChatTemplate
from edge.recording import Recording

logger = logging.getLogger(__name__)

KINDS: tuple[Kind, ...] = ("thought", "answer")
POLL_S = 1.0  # for a reply that another program writes
N_KEPT_MAX = 1000


def snake_code(error: EdgeError) -> str:
    """engine_died for an EngineDiedError: a word for programs."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).lower()


@dataclass(eq=False)
class Reply:
    """One reply under way."""

    conversation: str
    recording: Recording
    branch: list[Message] = field(default_factory=list)  # the messages before it
    request_id: str | None = None  # of the engine, once it has it
    is_stopped: bool = False
    answers_now: bool = False
    progress: Progress | None = None
    n_dropped_turns: int = 0
    n_tokens: dict[Kind, int] = field(default_factory=lambda: {"thought": 0, "answer": 0})
    ending: dict[str, Any] | None = None
    task: "asyncio.Task[None] | None" = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def message(self) -> Message:
        """As it stands now."""
        texts = self.recording.texts
        return replace(self.recording.reply, content=texts["answer"], reasoning=texts["thought"] or None)

    def take(self, event: Event | Dropped) -> None:
        self.recording.take(event)
        match event:
            case Progress():
                self.progress = event
            case Dropped(n_turns):
                self.n_dropped_turns += n_turns
            case Text(_, kind, _):
                self.n_tokens[kind] += 1
        self.tell()

    def tell(self) -> None:
        """Wake every reader."""
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, shown: dict[Kind, int]) -> AsyncIterator[dict[str, Any]]:
        """What happened and happens behind the characters shown, until the end."""
        progress, n_dropped = None, 0
        while True:
            news = self._news
            if self.n_dropped_turns > n_dropped:
                n_dropped = self.n_dropped_turns
                yield {"type": "dropped", "n_turns": n_dropped}
            if self.progress is not None and self.progress is not progress and not any(self.n_tokens.values()):
                progress = self.progress
                counts = {"n_done_tokens": progress.n_done_tokens, "n_prompt_tokens": progress.n_prompt_tokens}
                yield {"type": "progress", **counts, "seconds_left": round(progress.seconds_left, 2)}
            for event in pieces(self.recording.texts, shown):
                yield {**event, "n_tokens": self.n_tokens[event["type"]]}
            if self.ending is not None:
                yield self.ending
                return
            await news.wait()


def pieces(texts: dict[Kind, str], shown: dict[Kind, int]) -> list[dict[str, Any]]:
    """The events for what texts have behind the characters shown, which are counted on."""
    events: list[dict[str, Any]] = []
    for kind in KINDS:
        start, text = shown[kind], texts[kind]
        if len(text) > start:
            events.append({"type": kind, "text": text[start:], "offset": start, "end": len(text)})
            shown[kind] = len(text)
    return events


class Replies:
    """All replies of this process. Use from one event loop."""

    def __init__(
        self,
        history: History,
        engine: EngineClient,
        template: ChatTemplate | None,
        *,
        sampling: Sampling,
        on_done: Callable[[Done], None] = lambda _: None,
        code_of: Callable[[EdgeError], str] = snake_code,
    ) -> None:
        self.history, self.engine = history, engine
        self._template, self._sampling, self._on_done, self._code_of = template, sampling, on_done, code_of
        self._running: dict[str, Reply] = {}  # by the id of their message
        self._kept: dict[str, str] = {}  # conversation -> first message that its context has room for
        self._is_closed = False

    # ---- beginning

    async def ask(
        self, conversation: str, content: str, *, parent: str | None, attachments: Sequence[Attachment] = ()
    ) -> tuple[Message, Reply]:
        """A question behind parent, and the reply to it."""
        self._check_open()
        question = await asyncio.to_thread(
            self.history.add_question, conversation, content, parent=parent, attachments=attachments
        )
        return question, await self.answer(conversation, question.id)

    async def answer(self, conversation: str, question: str) -> Reply:
        """A new reply to a question that is there."""
        self._check_open()
        message = await asyncio.to_thread(self.history.begin_reply, conversation, question)
        return await self._start(conversation, message, None)

    async def go_on(self, conversation: str, reply: str) -> Reply:
        """A cut reply goes on where it ends."""
        self._check_open()
        message = await asyncio.to_thread(self.history.resume_reply, conversation, reply)
        return await self._start(conversation, message, Partial(message.reasoning or "", message.content))

    def _check_open(self) -> None:
        if self._is_closed or self._template is None:
            raise EngineDownError("the server is stopping" if self._is_closed else "the model has no chat template")

    async def _start(self, conversation: str, message: Message, partial: Partial | None) -> Reply:
        reply = self._running[message.id] = Reply(conversation, Recording(self.history, message))
        reply.task = asyncio.create_task(self._run(reply, partial))
        return reply

    # ---- reading along and steering

    async def follow(self, conversation: str, message: str, shown: dict[Kind, int]) -> AsyncIterator[dict[str, Any]]:
        """The message, then what happens behind the characters shown, whether it runs here, elsewhere or is over."""
        if reply := self._running.get(message):
            yield {"type": "message", "user": None, "assistant": to_json(reply.message)}
            async with aclosing(reply.follow(shown)) as events:  # type: ignore[type-var]
                async for event in events:
                    yield event
            return
        stored = await asyncio.to_thread(self.history.message, conversation, message)
        yield {"type": "message", "user": None, "assistant": to_json(stored)}
        while True:
            for event in pieces({"thought": stored.reasoning or "", "answer": stored.content}, shown):
                yield event
            if stored.finish_reason is not None or stored.role == "user":
                yield {"type": "done", "message": to_json(stored), "context": None}
                return
            await asyncio.sleep(POLL_S)
            stored = await asyncio.to_thread(self.history.message, conversation, message)

    def stop(self, message: str) -> None:
        """End a reply; one that is over stays as it is."""
        if reply := self._running.get(message):
            reply.is_stopped = True
            if reply.request_id is not None:
                self.engine.cancel(reply.request_id)

    def answer_now(self, message: str) -> None:
        """End the thought of a reply; its answer begins."""
        if reply := self._running.get(message):
            reply.answers_now = True
            if reply.request_id is not None:
                self.engine.answer_now(reply.request_id)

    async def end(self, conversation: str, message: str | None = None) -> None:
        """Break off all replies of a conversation, or those that stand behind a message, and wait for their end."""
        for reply in list(self._running.values()):
            ids = {reply.message.id, *(before.id for before in reply.branch)}
            if reply.conversation == conversation and (message is None or message in ids) and reply.task is not None:
                reply.task.cancel()
                await asyncio.wait({reply.task})

    def forget(self, conversation: str) -> None:
        """Free what the engine keeps of a conversation."""
        self._kept.pop(conversation, None)
        self.engine.forget(conversation)

    async def close(self) -> None:
        """Break off all replies; what they have so far is kept."""
        self._is_closed = True
        tasks = {reply.task for reply in self._running.values() if reply.task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- a reply's life

    async def _run(self, reply: Reply, partial: Partial | None) -> None:
        reason, error = None, None
        try:
            await self._generate(reply, partial)
        except EdgeError as known:
            reason, error = "error", known
        except asyncio.CancelledError:
            reason, error = "error", EngineDownError("the reply was broken off")
        except Exception:
            logger.exception("a bug in a reply")
            reason, error = "error", EngineDownError("something went wrong inside")
        message = await asyncio.shield(asyncio.to_thread(reply.recording.finish, reason))
        body = to_json(message or reply.message)
        if error is not None:
            reply.ending = {"type": "error", "message": str(error), "code": self._code_of(error)}
            reply.ending |= {"message_id": reply.message.id}
        else:
            done = reply.recording.done
            assert done is not None, "a reply ends with Done or an error"
            n_used_tokens = done.n_prompt_tokens + done.n_output_tokens
            context = {"n_used_tokens": n_used_tokens, "n_ctx_tokens": self.n_ctx_tokens}
            reply.ending = {"type": "done", "message": body, "context": context}
        del self._running[reply.message.id]
        reply.tell()

    async def _generate(self, reply: Reply, partial: Partial | None) -> None:
        talk = await asyncio.to_thread(self.history.get, reply.conversation)
        reply.branch = await asyncio.to_thread(self.history.branch, talk.id, reply.message.parent)
        first = self._kept.get(talk.id)
        start = next((i for i, message in enumerate(reply.branch) if message.id == first), 0)
        assert self._template is not None
        conversation = Conversation(self._template, self._sampling, partial=partial, id=talk.id)
        conversation.set(talk.settings)
        conversation.messages = prompt_messages(reply.branch[start:])
        reply.n_dropped_turns = start // 2

        def started(request_id: str) -> None:
            reply.request_id = request_id
            loop = asyncio.get_running_loop()  # asked for before the engine had it
            if reply.is_stopped:
                loop.call_soon(self.engine.cancel, request_id)
            if reply.answers_now:
                loop.call_soon(self.engine.answer_now, request_id)

        async with aclosing(conversation.stream(self.engine, started)) as events:
            async for event in events:
                reply.take(event)
                if isinstance(event, Done):
                    self._on_done(event)
                elif reply.recording.is_due:
                    await asyncio.to_thread(reply.recording.save)
        if conversation.n_dropped_turns:
            self._kept.pop(talk.id, None)
            self._kept[talk.id] = reply.branch[start + 2 * conversation.n_dropped_turns].id
            if len(self._kept) > N_KEPT_MAX:
                del self._kept[next(iter(self._kept))]

    # ---- facts

    @property
    def n_ctx_tokens(self) -> int:
        return self.engine.ready.n_ctx_tokens if self.engine.ready else self.engine.settings.n_ctx_tokens

    async def count(self, text: str) -> int:
        """Tokens of a text that a person gave."""
        return len(await self.engine.tokenize(((text, False),)))
