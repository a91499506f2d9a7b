"""Conversations through `edge serve` itself: its guard, its limits, and a restart."""

import json
from pathlib import Path

import httpx2

from tests.serve.conftest import Server, serving


def reply(server: Server, talk: str, **body: object) -> list[dict[str, object]]:
    path = f"{server.url}/api/conversations/{talk}/reply"
    with httpx2.stream("POST", path, json=body, timeout=60) as response:
        assert response.status_code == 200, response.read()
        return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]


def test_conversations_outlive_the_server(demo_model: Path, tmp_path: Path) -> None:
    data = {"EDGE_DATA": str(tmp_path / "data")}
    with serving(tmp_path / "one", model=demo_model, **data) as server:
        talk = server.post("/api/conversations", {"settings": {"temperature": 0}}).json()["id"]
        assert reply(server, talk, content="What is 347 + 85?")[-1]["message"]["content"] == "347 + 85 = 432"  # type: ignore[index]
        assert server.metric("edge_tokens_total") > 20, "the metrics hear of it"
        path = f"{server.url}/api/conversations/{talk}/reply"
        with httpx2.stream("POST", path, json={"content": "What is 1 + 1?"}, timeout=60) as response:
            next(response.iter_lines())
    with serving(tmp_path / "two", model=demo_model, **data) as server:
        messages = server.get(f"/api/conversations/{talk}").json()["messages"]
        assert [message["content"] for message in messages[:2]] == ["What is 347 + 85?", "347 + 85 = 432"]
        assert messages[3]["finish_reason"] in ("stop", "error")
        listed = server.get("/api/conversations", params={"query": "347"}).json()
        assert [hit["id"] for hit in listed["conversations"]] == [talk]


def test_the_guard_stands_before_conversations_too(server: Server) -> None:
    foreign = {"Origin": "https://evil.example"}
    assert server.get("/api/conversations", headers=foreign).status_code == 403
    assert server.post("/api/conversations", {}, headers=foreign).status_code == 403
    assert httpx2.post(f"{server.url}/api/conversations", content=b"{}", timeout=60).status_code == 415
    twice = b'{"title": "a", "title": "b"}'
    kind = {"Content-Type": "application/json"}
    assert httpx2.post(f"{server.url}/api/conversations", content=twice, headers=kind, timeout=60).status_code == 400
    error = server.get(f"/api/conversations/{'0' * 32}")
    assert (error.status_code, error.json()["error"]["code"]) == (404, "unknown_conversation")
    wrong = server.post(f"/api/conversations/{'0' * 32}/reply", {"content": "x", "answer_to": "0" * 32})
    assert wrong.status_code == 400
    assert "send that one" in wrong.json()["error"]["message"]


def test_files_may_be_larger_than_other_bodies(server: Server) -> None:
    text = b"1 2 3\n" * 200_000
    answer = httpx2.post(f"{server.url}/api/attachments?name=long.txt", content=text, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["fits"] is False
    assert server.post("/api/conversations", {"title": "x" * (1 << 20)}).status_code == 413
