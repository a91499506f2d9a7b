"""A server that says exactly what a test wants, when it wants it: the page's API over an in-memory store.

For states that a real engine does not reach on command: 100 tokens a second, a connection cut between two pieces, a
formula half written. The page itself, its files and its policy are the real ones.

    python -m tests.serve.web.scripted          # look at the page with it: http://127.0.0.1:8099
"""

import asyncio
import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from edge.serve import page

N_CTX_TOKENS = 4096
SETTINGS = ("system", "temperature", "top_p", "max_tokens", "thinking_budget_tokens", "seed")
PRESETS = [
    {"name": "plain", "title_en": "Plain chat", "title_zh": "普通对话", "settings": {}},
    {
        "name": "tutor",
        "title_en": "Math tutor",
        "title_zh": "数学老师",
        "settings": {"system": "Explain each step.", "temperature": 0.6},
    },
    {
        "name": "review",
        "title_en": "Code reviewer",
        "title_zh": "代码审查",
        "settings": {"system": "Review the code.", "temperature": 0.2},
    },
]


@dataclass
class Script:
    """What the next replies say. Pieces are sent pause_s apart; a Hold among them waits until the test lets go."""

    thought: list[Any] = field(default_factory=list)
    answer: list[Any] = field(default_factory=lambda: ["Hello."])
    progress: list[Any] = field(default_factory=list)  # (n_done, n_prompt, seconds_left) or Hold
    pause_s: float = 0.0
    finish_reason: str = "stop"
    error: tuple[str, str] | None = None  # (message, code) instead of an end
    n_dropped: int = 0


class Hold:
    """A place in a script where it waits."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def let_go(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        while not self._event.is_set():
            await asyncio.sleep(0.01)


@dataclass
class Live:
    """A reply that is being written: everything said so far, and who listens."""

    events: list[dict[str, Any]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False
    action: str | None = None

    def say(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.changed.set()
        self.changed = asyncio.Event()


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "refused") -> None:
        self.status, self.message, self.code = status, message, code


class ScriptedServer:
    """Use as a context manager; `url` is the page. Everything a test may change is an attribute."""

    def __init__(self, port: int = 0) -> None:
        self.script = Script()
        self.conversations: dict[str, dict[str, Any]] = {}
        self.messages: dict[str, dict[str, dict[str, Any]]] = {}
        self.deleted: dict[str, dict[str, Any]] = {}
        self.live: dict[str, Live] = {}
        self.key: str | None = None
        self.is_cut = False  # every event stream ends now, new ones are refused
        self.is_mute = False  # /reply stores the question, and the line breaks before it says so
        self.saving, self.problem = True, None
        self.kv_used_tokens = 0
        self.status_extra: dict[str, Any] = {}
        self.asked: list[dict[str, Any]] = []  # bodies of /reply
        self.paths: list[str] = []  # of every request
        self.app = FastAPI()
        self.app.include_router(page.router())
        self.app.include_router(self._routes())
        self.app.middleware("http")(self._guard)
        self.app.exception_handler(Refusal)(_refused)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> "ScriptedServer":
        config = uvicorn.Config(self.app, log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *error: object) -> None:
        self.is_cut = True
        self._server.should_exit = True
        self._thread.join(10)

    # ---- the store

    def add(self, title: str = "", turns: int = 0, *, age_s: float = 0.0, **values: Any) -> str:
        """A conversation with so many turns; its id."""
        now = time.time() - age_s
        made = {
            "id": uuid.uuid4().hex,
            "title": title,
            "folder": None,
            "pinned": False,
            "created": now,
            "updated": now,
            "leaf": None,
            "settings": dict.fromkeys(SETTINGS),
            "n_messages": 0,
            "revision": 1,
            **values,
        }
        self.conversations[made["id"]] = made
        self.messages[made["id"]] = {}
        for i in range(turns):
            question = self.put(made["id"], "user", f"question {i}", made["leaf"])
            self.put(made["id"], "assistant", f"answer **{i}**", question["id"], finish_reason="stop")
        return str(made["id"])

    def put(self, cid: str, role: str, content: str, parent: str | None, **values: Any) -> dict[str, Any]:
        """Store a message and make it the leaf."""
        conversation = self.conversations[cid]
        message = {
            "id": uuid.uuid4().hex,
            "parent": parent,
            "role": role,
            "content": content,
            "reasoning": None,
            "created": time.time(),
            "finish_reason": None,
            "usage": None,
            "attachments": [],
            **values,
        }
        self.messages[cid][message["id"]] = message
        conversation["leaf"] = message["id"]
        self._touch(cid)
        return message

    def _touch(self, cid: str) -> None:
        conversation = self.conversations[cid]
        conversation["revision"] += 1
        conversation["n_messages"] = len(self.messages[cid])

    def _of(self, cid: str) -> dict[str, Any]:
        if cid not in self.conversations:
            raise Refusal(404, "no such conversation", "not_found")
        return self.conversations[cid]

    # ---- the routes

    async def _guard(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        self.paths.append(request.url.path)
        is_open = not self.key or not request.url.path.startswith("/api/")
        if not is_open and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "this server wants its key", "code": "key"}}, 401)
        return await call_next(request)

    def _routes(self) -> APIRouter:
        routes = APIRouter(prefix="/api")
        c, m = "/conversations/{cid}", "/conversations/{cid}/messages/{mid}"
        routes.get("/conversations")(self._list)
        routes.post("/conversations")(self._create)
        routes.post("/conversations/import")(self._import)
        routes.get(c)(self._read)
        routes.patch(c)(self._patch)
        routes.delete(c)(self._delete)
        routes.post(f"{c}/restore")(self._restore)
        routes.post(f"{c}/clear")(self._clear)
        routes.get(f"{c}/export")(self._export)
        routes.post(f"{c}/reply")(self._reply)
        routes.delete(m)(self._delete_message)
        routes.get(f"{m}/events")(self._events)
        routes.post(f"{m}/control")(self._control)
        routes.post("/attachments")(self._attach)
        routes.get("/status")(self._status)
        routes.get("/presets")(lambda: PRESETS)
        return routes

    async def _list(self, query: str = "", limit: int = 50, before: float = 1e18) -> dict[str, Any]:
        found = []
        for entry in sorted(self.conversations.values(), key=lambda entry: -entry["updated"]):
            texts = [entry["title"], *(message["content"] for message in self.messages[entry["id"]].values())]
            hit = next((text for text in texts if query.lower() in text.lower()), None)
            if hit is not None and entry["updated"] < before:
                found.append({**entry, **({"snippet": hit[:80]} if query else {})})
        folders = sorted({entry["folder"] for entry in found if entry["folder"]})
        return {"conversations": found[:limit], "folders": folders, "saving": self.saving, "problem": self.problem}

    async def _create(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        cid = self.add(body.get("title") or "", folder=body.get("folder"))
        self.conversations[cid]["settings"] |= body.get("settings") or {}
        return self.conversations[cid]

    async def _read(self, cid: str) -> dict[str, Any]:
        return {"conversation": self._of(cid), "messages": list(self.messages[cid].values())}

    async def _patch(self, cid: str, request: Request) -> dict[str, Any]:
        body = await request.json()
        conversation = self._of(cid)
        settings = body.pop("settings", {})
        conversation.update(body)
        conversation["settings"] = {**conversation["settings"], **settings}
        self._touch(cid)
        return conversation

    async def _delete(self, cid: str) -> dict[str, Any]:
        self.deleted[cid] = self._of(cid)
        del self.conversations[cid]
        return {"undo_until": time.time() + 600}

    async def _restore(self, cid: str) -> dict[str, Any]:
        self.conversations[cid] = self.deleted.pop(cid)
        return self.conversations[cid]

    async def _clear(self, cid: str) -> dict[str, Any]:
        conversation = self._of(cid)
        self.messages[cid].clear()
        conversation["leaf"] = None
        self.kv_used_tokens = 0
        self._touch(cid)
        return conversation

    async def _delete_message(self, cid: str, mid: str) -> dict[str, Any]:
        messages, conversation = self.messages[cid], self._of(cid)
        gone = {mid}
        for message in list(messages.values()):
            if message["parent"] in gone:
                gone.add(message["id"])
        if conversation["leaf"] in gone:
            conversation["leaf"] = messages[mid]["parent"]
        for key in gone:
            del messages[key]
        self._touch(cid)
        return {}

    async def _import(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        if not isinstance(body, dict) or "conversation" not in body:
            raise Refusal(400, "this is not an exported conversation")
        cid = self.add(body["conversation"]["title"])
        for message in body["messages"]:
            self.messages[cid][message["id"]] = message
        self.conversations[cid]["leaf"] = body["conversation"]["leaf"]
        return self.conversations[cid]

    async def _export(self, cid: str, format: str = "json") -> Response:
        if format == "markdown":
            text = "\n\n".join(message["content"] for message in self.messages[cid].values())
            return Response(text, media_type="text/markdown")
        return JSONResponse(await self._read(cid))

    async def _attach(self, name: str, request: Request) -> dict[str, Any]:
        text = (await request.body()).decode()
        n_tokens = len(text) // 4 + 1
        fits = n_tokens < N_CTX_TOKENS
        return {"name": name, "text": text, "n_tokens": n_tokens, "fits": fits, "n_ctx_tokens": N_CTX_TOKENS}

    async def _status(self) -> dict[str, Any]:
        return {
            "model": "scripted-1.5B-Q4_0",
            "n_ctx_tokens": N_CTX_TOKENS,
            "state": "ok",
            "version": "0.0",
            "temperature_celsius": 61.2,
            "memory_bytes": 1_350_000_000,
            "throttled": False,
            "kv_used_tokens": self.kv_used_tokens,
            "saving": self.saving,
            "problem": self.problem,
            **self.status_extra,
        }

    async def _control(self, cid: str, mid: str, request: Request) -> dict[str, Any]:
        self.live[mid].action = (await request.json())["action"]
        return {}

    async def _reply(self, cid: str, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        conversation = self._of(cid)
        if any(not live.is_over for mid, live in self.live.items() if mid in self.messages[cid]):
            raise Refusal(409, "a reply is being written", "busy")
        user = None
        if "continue" in body:
            answer = self.messages[cid][body["continue"]]
            answer["finish_reason"] = None
        else:
            parent = body.get("answer_to")
            if parent is None:
                files = [{"name": file["name"], "n_tokens": 7} for file in body.get("attachments", [])]
                user = self.put(cid, "user", body["content"], body["parent"], attachments=files)
                parent = user["id"]
                conversation["title"] = conversation["title"] or body["content"].splitlines()[0][:60]
            answer = self.put(cid, "assistant", "", parent)
        live = self.live[answer["id"]] = Live()
        live.say({"type": "message", "user": user, "assistant": json.loads(json.dumps(answer))})
        live.task = asyncio.create_task(self._write(cid, answer, live, self.script))  # type: ignore[attr-defined]
        if self.is_mute:
            return StreamingResponse(iter([b": nothing\n\n"]), media_type="text/event-stream")
        return StreamingResponse(self._listen(live, 0, 0), media_type="text/event-stream")

    async def _events(self, cid: str, mid: str, thought_offset: int = 0, answer_offset: int = 0) -> Response:
        if self.is_cut:
            raise Refusal(503, "away", "away")
        if mid not in self.messages.get(cid, {}):
            raise Refusal(404, "no such message", "not_found")
        live = self.live[mid]
        return StreamingResponse(self._listen(live, thought_offset, answer_offset), media_type="text/event-stream")

    async def _listen(self, live: Live, thought_offset: int, answer_offset: int) -> AsyncIterator[bytes]:
        skip = {"thought": thought_offset, "answer": answer_offset}
        n = 0
        while not self.is_cut:
            while n < len(live.events):
                event = live.events[n]
                n += 1
                if event.get("end", 1e18) <= skip.get(event["type"], -1):
                    continue
                yield b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"
            if live.is_over:
                return
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(live.changed.wait(), 0.05)  # so that a cut is noticed

    async def _write(self, cid: str, answer: dict[str, Any], live: Live, script: Script) -> None:
        if script.n_dropped:
            live.say({"type": "dropped", "n_turns": script.n_dropped})
        for step in script.progress:
            if isinstance(step, Hold):
                await step.wait()
                continue
            n_done, n_prompt, left = step
            live.say({"type": "progress", "n_done_tokens": n_done, "n_prompt_tokens": n_prompt, "seconds_left": left})
        is_stopped = False
        n_tokens = {"thought": 0, "answer": 0}
        started = time.monotonic()
        for kind, key, pieces in (("thought", "reasoning", script.thought), ("answer", "content", script.answer)):
            for piece in pieces:
                if isinstance(piece, Hold):
                    while not piece._event.is_set() and live.action is None:
                        await asyncio.sleep(0.01)
                elif live.action is None:
                    before = answer[key] or ""
                    answer[key] = before + piece
                    n_tokens[kind] += 1
                    said = {"type": kind, "text": piece, "offset": len(before), "end": len(before) + len(piece)}
                    live.say(said)
                    due = started + sum(n_tokens.values()) * script.pause_s
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                is_stopped = is_stopped or live.action == "stop"
                if is_stopped:
                    break
            if live.action == "answer_now":
                live.action = None
            if is_stopped:
                break
        n_completion = sum(n_tokens.values())
        elapsed = time.monotonic() - started
        answer["usage"] = {
            "prompt_tokens": 24,
            "cached_tokens": 0,
            "completion_tokens": n_completion,
            "reasoning_tokens": n_tokens["thought"],
            "seconds_to_first_token": 0.1,
            "tokens_per_second": n_completion / elapsed if elapsed > 0.001 else 0.0,
        }
        self.kv_used_tokens = 24 + n_completion
        context = {"n_used_tokens": 24 + n_completion, "n_ctx_tokens": N_CTX_TOKENS}
        if script.error and not is_stopped:
            message, code = script.error
            answer["finish_reason"] = "error"
            live.say({"type": "error", "message": message, "code": code, "message_id": answer["id"]})
        else:
            answer["finish_reason"] = "cancelled" if is_stopped else script.finish_reason
            live.say({"type": "done", "message": json.loads(json.dumps(answer)), "context": context})
        live.is_over = True
        self.conversations[cid]["updated"] = time.time()
        self._touch(cid)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse({"error": {"message": error.message, "code": error.code}}, error.status)


def main() -> None:
    with ScriptedServer(8099) as server:
        server.script.thought = ["I ", "think.\n"] * 20
        server.script.pause_s = 0.02
        print(server.url)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
