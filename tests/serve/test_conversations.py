"""The conversation routes over a real socket and the demo model: replies that outlive their readers, and refusals."""

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("fastapi", reason="the server extra is not installed")
pytest.importorskip("uvicorn", reason="the server extra is not installed")

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from edge import errors
from edge.chat import chat_template
from edge.config import EngineSettings, Sampling
from edge.engine.client import EngineClient
from edge.engine.protocol import Done
from edge.errors import EdgeError
from edge.history import History
from edge.model.gguf import read_model_info
from edge.serve import conversations
from edge.serve.replies import Replies, snake_code

STATUSES = {
    errors.UnknownConversationError: 404,
    errors.RevisionError: 409,
    errors.ReplyRunningError: 409,
    errors.DocumentError: 422,
}


@dataclass
class Site:
    """One running server, and how to talk to it."""

    port: int
    history: History
    server: uvicorn.Server
    engine_pid: int
    done: list[Done]

    def open(self, method: str, path: str, body: object = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        connection.request(method, path, data, {"Content-Type": kind})
        return connection.getresponse()

    def call(self, method: str, path: str, body: object = None, status: int = 200) -> Any:
        with self.open(method, path, body) as answer:
            text = answer.read()
            assert answer.status == status, text
            return json.loads(text)

    def talk(self, **body: object) -> str:
        return str(self.call("POST", "/api/conversations", body)["id"])

    def events(self, method: str, path: str, body: object = None) -> Iterator[dict[str, Any]]:
        with self.open(method, path, body) as answer:
            assert answer.status == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def reply(self, talk: str, **body: object) -> list[dict[str, Any]]:
        return list(self.events("POST", f"/api/conversations/{talk}/reply", body))

    def begin(self, talk: str, **body: object) -> tuple[str, Iterator[dict[str, Any]]]:
        """Start a reply and read until its first text; returns its id and the rest of its events."""
        events = self.events("POST", f"/api/conversations/{talk}/reply", body)
        first = next(events)
        assert first["type"] == "message"
        while next(events)["type"] not in ("thought", "answer"):
            pass
        return first["assistant"]["id"], events


@contextlib.contextmanager
def serving(model: Path, path: Path, *, endless: bool = False, **settings: object) -> Iterator[Site]:
    """endless: every reply is nonsense that goes on until the context of 64k tokens is full."""
    history = History(path)
    info = read_model_info(model)
    sampling = Sampling(temperature=0)
    if endless:
        settings["n_ctx_tokens"] = 1 << 16
        end = info.eos_id
        assert end is not None
        sampling = Sampling(temperature=5, top_k=0, top_p=1, seed=3, logit_bias=((end, float("-inf")),))
    template = chat_template(info)
    done: list[Done] = []
    engines: list[EngineClient] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = EngineClient(EngineSettings(str(model), n_threads=1, **settings))  # type: ignore[arg-type]
        await engine.start()
        engines.append(engine)
        replies = Replies(history, engine, template, sampling=sampling, on_done=done.append)
        app.include_router(conversations.router(history, replies, model="demo"))
        yield
        await replies.close()
        await engine.close()

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(EdgeError)
    async def known(_: Request, error: EdgeError) -> JSONResponse:
        return JSONResponse(
            {"error": {"message": str(error), "code": snake_code(error)}}, STATUSES.get(type(error), 400)
        )

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    pid = engines[0].pid
    assert pid is not None
    try:
        yield Site(server.servers[0].sockets[0].getsockname()[1], history, server, pid, done)
    finally:
        server.should_exit = True
        thread.join()
        template.close()
        history.close()


@pytest.fixture(scope="module")
def site(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(demo_model, tmp_path_factory.mktemp("site") / "history.db") as site:
        yield site


@pytest.fixture(scope="module")
def endless(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(demo_model, tmp_path_factory.mktemp("endless") / "history.db", endless=True) as site:
        yield site


def joined(events: list[dict[str, Any]], kind: str) -> str:
    return "".join(event["text"] for event in events if event["type"] == kind)


# ---------------------------------------------------------------- replies


def test_a_question_gets_its_thought_and_its_answer_and_both_are_stored(site: Site) -> None:
    talk = site.talk()
    events = site.reply(talk, content="What is 347 + 85?")
    first, last = events[0], events[-1]
    assert first["user"]["content"] == "What is 347 + 85?"
    assert (first["assistant"]["parent"], first["assistant"]["finish_reason"]) == (first["user"]["id"], None)
    assert joined(events, "answer") == last["message"]["content"] == "347 + 85 = 432"
    assert joined(events, "thought") == last["message"]["reasoning"]
    assert last["message"]["usage"]["reasoning_tokens"] > 20
    assert last["context"]["n_ctx_tokens"] == 4096
    assert last["context"]["n_used_tokens"] == (
        last["message"]["usage"]["prompt_tokens"] + last["message"]["usage"]["completion_tokens"]
    )
    stored = site.call("GET", f"/api/conversations/{talk}")
    assert stored["messages"] == [first["user"], last["message"]]
    assert stored["conversation"]["leaf"] == last["message"]["id"]
    assert stored["conversation"]["title"] == "What is 347 + 85?"
    assert site.done[-1].finish_reason == "stop", "the metrics hear of it"


def test_the_next_question_knows_the_turn_before_and_finds_it_in_memory(site: Site) -> None:
    talk = site.talk()
    first = site.reply(talk, content="What is 347 + 85?")[-1]["message"]
    second = site.reply(talk, content="and minus 12?", parent=first["id"])[-1]["message"]
    assert second["content"] == "432 - 12 = 420"
    assert second["usage"]["cached_tokens"] > 0


def test_edit_and_regenerate_make_branches(site: Site) -> None:
    talk = site.talk()
    events = site.reply(talk, content="What is 347 + 85?")
    question = events[0]["user"]["id"]
    again = site.reply(talk, answer_to=question)
    assert again[0]["user"] is None
    assert again[-1]["message"]["id"] != events[-1]["message"]["id"]
    edited = site.reply(talk, content="What is 1 + 1?", parent=None)
    assert edited[-1]["message"]["content"] == "1 + 1 = 2"
    stored = site.call("GET", f"/api/conversations/{talk}")
    assert len(stored["messages"]) == 5
    assert stored["conversation"]["leaf"] == edited[-1]["message"]["id"]
    back = site.call("PATCH", f"/api/conversations/{talk}", {"leaf": again[-1]["message"]["id"]})
    assert back["leaf"] == again[-1]["message"]["id"]


def test_a_reply_goes_on_when_its_page_is_gone_and_is_read_from_any_place(site: Site) -> None:
    talk = site.talk()
    with site.open("POST", f"/api/conversations/{talk}/reply", {"content": "What is 347 + 85?"}) as answer:
        message = json.loads(answer.readline()[6:])["assistant"]["id"]
    path = f"/api/conversations/{talk}/messages/{message}/events"
    whole = list(site.events("GET", path))
    assert whole[0]["assistant"]["id"] == message
    assert whole[-1]["message"]["content"] == joined(whole, "answer") == "347 + 85 = 432"
    part = list(site.events("GET", f"{path}?thought_offset=10&answer_offset=4"))
    assert joined(part, "answer") == "+ 85 = 432"[-len("347 + 85 = 432") + 4 :]
    assert part[1]["offset"] == 10
    assert part[1]["end"] == len(whole[-1]["message"]["reasoning"])
    assert joined(list(site.events("GET", f"{path}?thought_offset=9999&answer_offset=9999")), "answer") == ""


def test_several_readers_of_a_running_reply_see_the_same_text(endless: Site) -> None:
    talk = endless.talk()
    message, events = endless.begin(talk, content="Tell me a story")
    path = f"/api/conversations/{talk}/messages/{message}"
    readers = [endless.events("GET", f"{path}/events") for _ in range(3)]
    heads = [[next(reader) for _ in range(4)] for reader in readers]
    assert all(head[0]["assistant"]["finish_reason"] is None for head in heads)
    endless.call("POST", f"{path}/control", {"action": "stop"})
    endings = [list(reader)[-1] for reader in readers] + [list(events)[-1]]
    assert all(ending == endings[0] for ending in endings)
    assert endings[0]["message"]["finish_reason"] == "cancelled"
    stored = endless.history.message(talk, message)
    for head in heads:
        shown = joined(head, "thought")
        assert shown
        assert (stored.reasoning or "").startswith(shown)


def test_answer_now_ends_the_thought_and_an_answer_follows(site: Site) -> None:
    talk = site.talk()
    message, events = site.begin(talk, content="What is 347 + 85?")
    site.call("POST", f"/api/conversations/{talk}/messages/{message}/control", {"action": "answer_now"})
    last = list(events)[-1]
    assert last["message"]["content"]


def test_a_stopped_reply_goes_on_where_it_was_cut(site: Site) -> None:
    talk = site.talk(settings={"max_tokens": 20})
    cut = site.reply(talk, content="What is 347 + 85?")[-1]["message"]
    assert cut["finish_reason"] == "length"
    site.call("PATCH", f"/api/conversations/{talk}", {"settings": {"max_tokens": None}})
    events = site.reply(talk, **{"continue": cut["id"]})
    whole = events[-1]["message"]
    assert (whole["id"], whole["finish_reason"]) == (cut["id"], "stop")
    assert whole["content"].startswith(cut["content"])
    assert len(whole["content"]) > len(cut["content"]) > 0
    assert whole["reasoning"] == cut["reasoning"]
    assert whole["usage"]["completion_tokens"] > cut["usage"]["completion_tokens"]
    assert next(event for event in events if event["type"] == "answer")["offset"] == len(cut["content"])


def test_a_growing_reply_is_stored_before_its_end(endless: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.recording.SAVE_INTERVAL_S", 0.0)
    talk = endless.talk()
    message, events = endless.begin(talk, content="Tell me a story")
    for _ in range(20):
        next(events)
    stored = endless.history.message(talk, message)
    assert stored.finish_reason is None
    assert stored.content or stored.reasoning
    endless.call("POST", f"/api/conversations/{talk}/messages/{message}/control", {"action": "stop"})
    list(events)


def test_a_context_that_is_full_drops_old_turns_and_says_so(demo_model: Path, tmp_path: Path) -> None:
    with serving(demo_model, tmp_path / "h.db", n_ctx_tokens=512) as site:
        talk = site.talk(settings={"max_tokens": 20})
        parent, told = None, []
        for i in range(8):
            events = site.reply(talk, content=f"What is {i} + 1? " + "12 34 56 78 " * 6, parent=parent)
            told.append(sum(event["n_turns"] for event in events if event["type"] == "dropped"))
            parent = events[-1]["message"]["id"]
            assert events[-1]["type"] == "done"
            assert events[-1]["context"]["n_used_tokens"] <= 512
        assert told[0] == 0
        assert told[-1] > 0
        assert sorted(told) == told, "what was dropped stays dropped"
        assert len(set(told)) < 6, "several turns at once: the prompt is not read anew for each"
        too_long = site.reply(talk, content="12 34 56 78 " * 200, parent=parent)[-1]
        assert (too_long["type"], too_long["code"]) == ("error", "context_overflow")
        assert "the context holds 512" in too_long["message"]


def test_an_engine_that_dies_keeps_the_text_and_the_reply_can_go_on(demo_model: Path, tmp_path: Path) -> None:
    with serving(demo_model, tmp_path / "h.db", endless=True) as site:
        talk = site.talk()
        message, events = site.begin(talk, content="Tell me a story")
        os.kill(site.engine_pid, signal.SIGKILL)
        last = list(events)[-1]
        assert (last["type"], last["code"], last["message_id"]) == ("error", "engine_died", message)
        stored = site.history.message(talk, message)
        assert stored.finish_reason == "error"
        assert stored.content or stored.reasoning
        again = site.reply(site.talk(settings={"max_tokens": 5}), content="What is 1 + 1?")[-1]
        assert again["message"]["finish_reason"] == "length", "the engine is back"


def test_a_server_that_stops_in_mid_answer_keeps_the_text(demo_model: Path, tmp_path: Path) -> None:
    with serving(demo_model, tmp_path / "h.db", endless=True) as site:
        talk = site.talk()
        message, _ = site.begin(talk, content="Tell me a story")
    with History(tmp_path / "h.db") as history:
        stored = history.message(talk, message)
        assert stored.finish_reason == "error"
        assert stored.content or stored.reasoning


# ---------------------------------------------------------------- memory


def test_clear_empties_the_conversation_and_its_kv_memory(demo_model: Path, tmp_path: Path) -> None:
    with serving(demo_model, tmp_path / "h.db") as site:
        talk = site.talk(title="sums", folder="school")
        site.reply(talk, content="What is 347 + 85?")
        until(lambda: site.call("GET", "/api/status")["kv_used_tokens"] > 50)
        cleared = site.call("POST", f"/api/conversations/{talk}/clear")
        assert (cleared["n_messages"], cleared["leaf"], cleared["title"]) == (0, None, "sums")
        until(lambda: site.call("GET", "/api/status")["kv_used_tokens"] == 0)


def until(condition: Any) -> None:
    """Wait for what comes by itself within a second or two: the engine tells its memory once a second."""
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_clear_ends_a_running_reply_first(endless: Site) -> None:
    talk = endless.talk()
    _, events = endless.begin(talk, content="Tell me a story")
    assert endless.call("POST", f"/api/conversations/{talk}/clear")["n_messages"] == 0
    assert list(events)[-1]["type"] == "error"
    assert endless.history.messages(talk) == []


# ---------------------------------------------------------------- conversations


def test_list_search_pin_folder_delete_and_undo(site: Site) -> None:
    talk = site.talk()
    site.reply(talk, content="347 减 500 等于多少？")
    found = site.call("GET", f"/api/conversations?query={quote('等于')}")
    assert talk in [hit["id"] for hit in found["conversations"]]
    assert all("snippet" in hit for hit in found["conversations"])
    assert (found["saving"], found["problem"]) == (True, None)
    site.call("PATCH", f"/api/conversations/{talk}", {"pinned": True, "folder": "数学", "title": "Minus"})
    listed = site.call("GET", "/api/conversations?limit=1")
    assert listed["conversations"][0]["id"] == talk
    assert "数学" in listed["folders"]
    assert site.call("PATCH", f"/api/conversations/{talk}", {"folder": None})["folder"] is None
    assert site.call("DELETE", f"/api/conversations/{talk}")["undo_until"] > time.time() + 500
    site.call("GET", f"/api/conversations/{talk}", status=404)
    assert site.call("POST", f"/api/conversations/{talk}/restore")["title"] == "Minus"


def test_two_tabs_that_change_the_same_thing(site: Site) -> None:
    talk = site.call("POST", "/api/conversations", {"title": "one"})
    site.call("PATCH", f"/api/conversations/{talk['id']}", {"title": "two", "revision": talk["revision"]})
    site.call("PATCH", f"/api/conversations/{talk['id']}", {"title": "three", "revision": talk["revision"]}, status=409)
    assert site.call("GET", f"/api/conversations/{talk['id']}")["conversation"]["title"] == "two"


def test_settings_are_merged_and_null_unsets_one(site: Site) -> None:
    talk = site.talk(settings={"temperature": 0.5, "system": "Be kind."})
    path = f"/api/conversations/{talk}"
    changed = site.call("PATCH", path, {"settings": {"temperature": None, "seed": 4}})
    assert changed["settings"] == {
        "system": "Be kind.", "temperature": None, "top_p": None, "max_tokens": None,
        "thinking_budget_tokens": None, "seed": 4,
    }  # fmt: skip


def test_export_and_import(site: Site) -> None:
    talk = site.talk()
    site.reply(talk, content="What is 347 + 85?")
    exported = site.call("GET", f"/api/conversations/{talk}/export?format=json")
    copy = site.call("POST", "/api/conversations/import", exported)
    assert copy["id"] != talk
    assert copy["n_messages"] == 2
    with site.open("GET", f"/api/conversations/{talk}/export?format=markdown") as answer:
        assert answer.headers["content-type"].startswith("text/markdown")
        assert "347 + 85 = 432" in answer.read().decode()


def test_a_removed_message_is_gone_with_what_follows(site: Site) -> None:
    talk = site.talk()
    events = site.reply(talk, content="What is 347 + 85?")
    assert site.call("DELETE", f"/api/conversations/{talk}/messages/{events[0]['user']['id']}") == {}
    assert site.call("GET", f"/api/conversations/{talk}")["messages"] == []


# ---------------------------------------------------------------- files


def test_a_file_is_counted_before_and_goes_into_the_prompt(site: Site) -> None:
    file = site.call("POST", "/api/attachments?name=sum.txt", "What is 347 + 85? 方程".encode())
    assert (file["name"], file["fits"], file["n_ctx_tokens"]) == ("sum.txt", True, 4096)
    assert file["n_tokens"] > 5
    talk = site.talk()
    asked = {"content": "", "attachments": [{"name": "sum.txt", "text": file["text"]}]}
    events = site.reply(talk, **asked)
    assert events[0]["user"]["attachments"] == [{"name": "sum.txt", "n_tokens": file["n_tokens"]}]
    assert events[-1]["message"]["usage"]["prompt_tokens"] > file["n_tokens"]
    source = {"name": "sum.txt", "from": events[0]["user"]["id"]}
    edited = site.reply(talk, content="And?", attachments=[source])
    assert edited[0]["user"]["attachments"] == events[0]["user"]["attachments"]
    assert (
        site.call("GET", f"/api/conversations/{talk}/export")["messages"][2]["attachments"][0]["text"] == file["text"]
    )


def test_a_file_that_does_not_fit_is_told(site: Site) -> None:
    file = site.call("POST", "/api/attachments?name=long.txt", b"why " * 5000)
    assert file["fits"] is False
    assert file["n_tokens"] > 4096


# ---------------------------------------------------------------- refusals and facts


@pytest.mark.parametrize(
    "body",
    [
        {}, {"content": "x", "answer_to": "0" * 32}, {"content": "  "}, {"content": 5}, {"content": "x", "more": 1},
        {"content": "x", "parent": "../etc"}, {"content": "x", "attachments": [{"name": "a"}]},
        {"content": "x", "attachments": [{"name": "a", "text": "b", "from": "0" * 32}]},
        {"content": "x", "attachments": [{"name": "", "text": "b"}]},
    ],
)  # fmt: skip
def test_a_reply_that_makes_no_sense_is_refused_and_nothing_is_stored(site: Site, body: dict[str, object]) -> None:
    talk = site.talk()
    with site.open("POST", f"/api/conversations/{talk}/reply", body) as answer:
        assert 400 <= answer.status < 500, answer.read()
    assert site.history.messages(talk) == []


def test_unknown_ids_are_404(site: Site) -> None:
    talk, nobody = site.talk(), "0" * 32
    for method, path, body in (
        ("GET", f"/api/conversations/{nobody}", None),
        ("PATCH", f"/api/conversations/{nobody}", {"title": "x"}),
        ("DELETE", f"/api/conversations/{nobody}", None),
        ("POST", f"/api/conversations/{nobody}/clear", None),
        ("POST", f"/api/conversations/{nobody}/reply", {"content": "x"}),
        ("GET", f"/api/conversations/{nobody}/export", None),
        ("POST", f"/api/conversations/{talk}/restore", None),
        ("POST", f"/api/conversations/{talk}/reply", {"answer_to": nobody}),
        ("POST", f"/api/conversations/{talk}/reply", {"content": "x", "parent": nobody}),
        ("GET", f"/api/conversations/{talk}/messages/{nobody}/events", None),
        ("POST", f"/api/conversations/{talk}/messages/{nobody}/control", {"action": "stop"}),
        ("DELETE", f"/api/conversations/{talk}/messages/{nobody}", None),
    ):
        error = site.call(method, path, body, status=404)["error"]
        assert error["code"] == "unknown_conversation", path


def test_bad_bodies_are_refused_with_a_sentence(site: Site) -> None:
    for path, body in (
        ("/api/conversations", {"settings": {"temperature": 99}}),
        ("/api/conversations", {"settings": {"nonsense": 1}}),
        ("/api/conversations/import", {"format": "other"}),
    ):
        assert "; " in site.call("POST", path, body, status=400)["error"]["message"]
    for name, data in (("a.bin", b"\x7fELF\0"), ("a.pdf", b"%PDF-1.4 broken"), ("a.txt", b"")):
        assert "; " in site.call("POST", f"/api/attachments?name={name}", data, status=422)["error"]["message"]


def test_the_status_tells_the_board_and_the_model(site: Site) -> None:
    status = site.call("GET", "/api/status")
    assert (status["model"], status["state"], status["n_ctx_tokens"], status["saving"]) == ("demo", "ok", 4096, True)
    assert status["memory_bytes"] > 20e6
    assert set(status) == {
        "model", "n_ctx_tokens", "state", "version", "temperature_celsius", "memory_bytes", "throttled",
        "kv_used_tokens", "saving", "problem",
    }  # fmt: skip


def test_presets_can_be_set(site: Site) -> None:
    presets = site.call("GET", "/api/presets")
    assert [preset["name"] for preset in presets] == ["plain", "math", "code"]
    for preset in presets:
        site.talk(settings=preset["settings"])
