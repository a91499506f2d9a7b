"""What every translated route must keep: errors in its client's form, also in the middle of a stream."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.serve.conftest import Server, eventually, is_up, serving

SAID = [{"role": "user", "content": "Go on."}]
ENDLESS: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": SAID, "stream": True, "temperature": 5},
    "/v1/messages": {"model": "default", "messages": SAID, "max_tokens": 4000, "stream": True, "temperature": 5},
    "/api/chat": {"model": "default", "messages": SAID, "options": {"temperature": 5}},
    "/api/generate": {"model": "default", "prompt": "Count.", "options": {"temperature": 5}},
}


@pytest.fixture(scope="module")
def mortal(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose engine may be killed."""
    with serving(tmp_path_factory.mktemp("mortal"), model=demo_model) as found:
        yield found


def last_event(path: str, lines: list[str]) -> dict[str, Any]:
    """The last thing a stream told."""
    last = [line for line in lines if line.strip() and not line.startswith((":", "event:"))][-1]
    found: dict[str, Any] = json.loads(last if path.startswith("/api/") else last.removeprefix("data: "))
    return found


@pytest.mark.parametrize("path", ENDLESS)
def test_an_engine_that_dies_ends_the_stream_with_an_error_its_client_reads(mortal: Server, path: str) -> None:
    children = psutil.Process(mortal.process.pid).children(recursive=True)
    (engine,) = [child for child in children if "edge.engine.worker" in child.cmdline()]
    with httpx2.stream("POST", mortal.url + path, json=ENDLESS[path], timeout=60) as response:
        assert response.status_code == 200, response.read()
        lines = response.iter_lines()
        first = next(lines)
        os.kill(engine.pid, signal.SIGKILL)
        last = last_event(path, [first, *lines])
    match path:
        case "/v1/responses":
            assert last["type"] == "response.failed"
            assert last["response"]["status"] == "failed"
            told = last["response"]["error"]
        case "/v1/messages":
            assert (last["type"], last["error"]["type"]) == ("error", "overloaded_error")
            told = last["error"]
        case _:
            told = {"code": last["code"], "message": last["error"]}
    assert told["code"] == "engine_restarted"
    assert "starts again by itself" in told["message"]
    eventually(lambda: is_up(mortal), 30)


@pytest.mark.parametrize("path", ENDLESS)
@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model": NaN}', b'{"a": 1, "a": 2}', b"[" * 100, b"\xff", b""])
def test_what_is_no_body_is_refused_in_the_clients_form(server: Server, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx2.post(server.url + path, content=body, headers=headers, timeout=60)
    assert answer.status_code == 400
    error = answer.json()["error"]
    if path.startswith("/api/"):
        assert isinstance(error, str)
    else:
        assert error["type"] == "invalid_request_error"
        assert error["message"]
    assert (answer.json().get("type") == "error") == (path == "/v1/messages")


def test_a_wrong_content_type_and_method_are_told_in_the_clients_form(server: Server) -> None:
    plain = httpx2.post(f"{server.url}/v1/messages", content=b"{}", headers={"Content-Type": "text/plain"}, timeout=60)
    assert (plain.status_code, plain.json()["type"]) == (415, "error")
    wrong = server.get("/api/chat")
    assert wrong.status_code == 405
    assert isinstance(wrong.json()["error"], str)


def test_the_document_names_every_field_and_its_other_forms(server: Server) -> None:
    """A text where a list may stand, too: clients are generated from this."""
    schemas = server.get("/openapi.json").json()["components"]["schemas"]
    said = schemas["MessagesBody"]["properties"]
    assert {"model", "messages", "max_tokens", "thinking", "tools"} <= said.keys()
    assert {"type": "string"} in schemas["ResponsesBody"]["properties"]["input"]["anyOf"]
    assert {"type": "string"} in said["system"]["anyOf"]
