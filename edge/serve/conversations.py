"""The conversation API of the chat page: the tree of messages, replies as events, files, and the state of the board.

docs/chat.md tells what each route takes and gives. Knows the history and the replies, no page. Errors are EdgeErrors,
which the application turns into answers.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge import __version__
from edge.documents import read_text
from edge.engine.protocol import Kind
from edge.errors import DocumentError
from edge.history import History
from edge.messages import Attachment, to_json
from edge.serve.condition import is_throttled, memory_bytes, temperature_celsius
from edge.serve.replies import Replies
from edge.transfer import export_json, export_markdown, import_json, settings_from

BEAT_S = 10.0
N_CONTENT_CHARS = 1 << 20
N_FILES_MAX = 20
STEP_BY_STEP = "Please reason step by step, and put your final answer within \\boxed{}."
REVIEW = (
    "You review code. Name the bugs first, worst first, each with its line and its fix; then what could be plainer."
)
PRESETS: tuple[dict[str, Any], ...] = (
    {"name": "plain", "title_en": "Plain chat", "title_zh": "普通聊天", "settings": {}},
    {
        "name": "math", "title_en": "Math tutor", "title_zh": "数学老师",
        "settings": {"system": STEP_BY_STEP, "temperature": 0.6, "top_p": 0.95},
    },
    {
        "name": "code", "title_en": "Code reviewer", "title_zh": "代码审查",
        "settings": {"system": REVIEW, "temperature": 0.3},
    },
)  # fmt: skip


class Strict(BaseModel):
    """A JSON object of a request. Unknown fields are refused, types are not guessed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Title = Annotated[str, Field(max_length=500)]
Id = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class NewConversation(Strict):
    title: Title = ""
    folder: Title | None = None
    settings: dict[str, Any] = {}


class Changes(Strict):
    title: Title | None = None
    folder: Title | None = None
    pinned: bool | None = None
    leaf: Id | None = None
    settings: dict[str, Any] | None = None
    revision: int | None = None


class File(Strict):
    """A text, or the name of one that an earlier message has."""

    name: Annotated[str, Field(min_length=1, max_length=500)]
    text: Annotated[str, Field(max_length=N_CONTENT_CHARS)] | None = None
    source: Annotated[Id | None, Field(alias="from")] = None


class Asked(Strict):
    content: Annotated[str, Field(max_length=N_CONTENT_CHARS)] | None = None
    parent: Id | None = None
    attachments: Annotated[list[File], Field(max_length=N_FILES_MAX)] = []
    answer_to: Id | None = None
    go_on: Annotated[Id | None, Field(alias="continue")] = None

    @model_validator(mode="after")
    def _is_one(self) -> "Asked":
        if sum(wish is not None for wish in (self.content, self.answer_to, self.go_on)) != 1:
            raise ValueError("exactly one of content, answer_to and continue is wanted; send that one")
        if self.content is not None and not self.content.strip() and not self.attachments:
            raise ValueError("the question is empty; write one")
        return self


class Control(Strict):
    action: Literal["stop", "answer_now"]


def router(history: History, replies: Replies, *, model: str, route_class: type[APIRoute] = APIRoute) -> APIRouter:
    """The routes. model: its name, for the status; route_class: how JSON bodies are read.

    When the application ends, running replies are broken off and kept, and the history is closed.
    """

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        yield
        await replies.close()
        history.close()

    routes = APIRouter(prefix="/api", route_class=route_class, lifespan=lifespan)
    _conversations(routes, history, replies)
    _messages(routes, history, replies)
    _facts(routes, history, replies, model)
    return routes


def _conversations(routes: APIRouter, history: History, replies: Replies) -> None:
    @routes.get("/conversations")
    def find(
        query: Annotated[str, Query(max_length=200)] = "",
        folder: str | None = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        before: float | None = None,
    ) -> dict[str, Any]:
        found = history.find(query, folder=folder, limit=limit, before=before)
        return {
            "conversations": [to_json(talk) for talk in found],
            "folders": history.folders(),
            "saving": history.saving,
            "problem": history.problem,
        }

    @routes.post("/conversations")
    def create(body: NewConversation) -> dict[str, Any]:
        return to_json(history.create(body.title, folder=body.folder, settings=settings_from(body.settings)))

    @routes.post("/conversations/import")
    async def take_in(request: Request) -> dict[str, Any]:
        data = await request.body()
        return to_json(await asyncio.to_thread(lambda: history.insert(*import_json(data))))

    @routes.get("/conversations/{conversation}")
    def get(conversation: str) -> dict[str, Any]:
        messages = [to_json(message) for message in history.messages(conversation)]
        return {"conversation": to_json(history.get(conversation)), "messages": messages}

    @routes.patch("/conversations/{conversation}")
    def change(conversation: str, body: Changes) -> dict[str, Any]:
        changes = {name: getattr(body, name) for name in body.model_fields_set - {"revision"}}
        changes = {name: value for name, value in changes.items() if value is not None or name in ("folder", "leaf")}
        if body.settings is not None:
            before = to_json(history.get(conversation))["settings"]
            changes["settings"] = settings_from({**before, **body.settings})
        return to_json(history.update(conversation, changes, body.revision))

    @routes.delete("/conversations/{conversation}")
    async def delete(conversation: str) -> dict[str, Any]:
        await replies.end(conversation)
        until = await asyncio.to_thread(history.delete, conversation)
        replies.forget(conversation)
        return {"undo_until": until}

    @routes.post("/conversations/{conversation}/restore")
    def restore(conversation: str) -> dict[str, Any]:
        return to_json(history.restore(conversation))

    @routes.post("/conversations/{conversation}/clear")
    async def clear(conversation: str) -> dict[str, Any]:
        await replies.end(conversation)
        cleared = await asyncio.to_thread(history.clear, conversation)
        replies.forget(conversation)
        return to_json(cleared)

    @routes.get("/conversations/{conversation}/export")
    def export(conversation: str, format: Literal["json", "markdown"] = "json") -> Response:
        talk = history.get(conversation)
        if format == "json":
            text, kind, ending = export_json(talk, history.messages(conversation)), "application/json", "json"
        else:
            text, kind, ending = export_markdown(talk, history.branch(conversation, talk.leaf)), "text/markdown", "md"
        disposition = f'attachment; filename="conversation-{talk.id[:8]}.{ending}"'
        return PlainTextResponse(text, media_type=kind, headers={"Content-Disposition": disposition})


def _messages(routes: APIRouter, history: History, replies: Replies) -> None:
    @routes.delete("/conversations/{conversation}/messages/{message}")
    async def remove(conversation: str, message: str) -> dict[str, Any]:
        await replies.end(conversation, message)
        await asyncio.to_thread(history.remove_message, conversation, message)
        return {}

    @routes.post("/conversations/{conversation}/reply")
    async def reply(conversation: str, body: Asked) -> Response:
        user = None
        match body:
            case Asked(content=str(content), answer_to=None, go_on=None):
                files = [await attached(conversation, file) for file in body.attachments]
                user, running = await replies.ask(conversation, content, parent=body.parent, attachments=files)
            case Asked(content=None, answer_to=str(question), go_on=None):
                running = await replies.answer(conversation, question)
            case Asked(content=None, answer_to=None, go_on=str(message)):
                running = await replies.go_on(conversation, message)
            case _:
                raise AssertionError("Asked is one of these")
        first = {"type": "message", "user": user and to_json(user), "assistant": to_json(running.message)}
        shown: dict[Kind, int] = {kind: len(text) for kind, text in running.recording.texts.items()}

        async def events() -> AsyncIterator[dict[str, Any]]:
            yield first
            async for event in running.follow(shown):
                yield event

        return sent(events())

    async def attached(conversation: str, file: File) -> Attachment:
        if (file.text is None) == (file.source is None):
            raise DocumentError(file.name, "it has neither text nor from, or both", "send one of them")
        if file.text is not None:
            return Attachment(file.name, file.text, await replies.count(file.text))
        assert file.source is not None
        message = await asyncio.to_thread(history.message, conversation, file.source)
        for attachment in message.attachments:
            if attachment.name == file.name:
                return attachment
        raise DocumentError(file.name, "that message has no such file", "attach it again")

    @routes.get("/conversations/{conversation}/messages/{message}/events")
    async def follow(
        conversation: str,
        message: str,
        thought_offset: Annotated[int, Query(ge=0)] = 0,
        answer_offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        await asyncio.to_thread(history.message, conversation, message)  # 404 while there is a status to give
        return sent(replies.follow(conversation, message, {"thought": thought_offset, "answer": answer_offset}))

    @routes.post("/conversations/{conversation}/messages/{message}/control")
    async def control(conversation: str, message: str, body: Control) -> dict[str, Any]:
        await asyncio.to_thread(history.message, conversation, message)
        if body.action == "stop":
            replies.stop(message)
        else:
            replies.answer_now(message)
        return {}


def _facts(routes: APIRouter, history: History, replies: Replies, model: str) -> None:
    @routes.post("/attachments")
    async def attach(request: Request, name: Annotated[str, Query(min_length=1, max_length=500)]) -> dict[str, Any]:
        text = await asyncio.to_thread(read_text, name, await request.body())
        n_tokens = await replies.count(text)
        fits = n_tokens < replies.n_ctx_tokens
        return {"name": name, "text": text, "n_tokens": n_tokens, "fits": fits, "n_ctx_tokens": replies.n_ctx_tokens}

    @routes.get("/status")
    def status() -> dict[str, Any]:
        engine = replies.engine
        return {
            "model": model,
            "n_ctx_tokens": replies.n_ctx_tokens,
            "state": engine.state,
            "version": __version__,
            "temperature_celsius": temperature_celsius(),
            "memory_bytes": memory_bytes(engine.pid),
            "throttled": is_throttled(),
            "kv_used_tokens": engine.beat.n_kv_tokens,
            "saving": history.saving,
            "problem": history.problem,
        }

    @routes.get("/presets")
    def presets() -> list[dict[str, Any]]:
        return list(PRESETS)


def sent(events: AsyncIterator[dict[str, Any]]) -> Response:
    """Events as a stream that no proxy holds back and no silence ends."""

    async def lines() -> AsyncGenerator[str, None]:
        coming: asyncio.Task[dict[str, Any]] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(events))
                await asyncio.wait({coming}, timeout=BEAT_S)
                if not coming.done():
                    yield ": still here\n\n"
                    continue
                with suppress(StopAsyncIteration):
                    event, coming = coming.result(), None
                    yield f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"
                    continue
                return
        finally:
            if coming is not None:
                coming.cancel()

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)
