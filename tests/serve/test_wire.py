"""Connections that misbehave: too slow, too many, gone, never reading. Others go on, what they held is free again."""

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.conftest import QUESTION, Server, eventually, post_text, read_all, serving

IMPATIENT = """
import functools
from edge.serve import stream, wire
wire.Limits = functools.partial(wire.Limits, header_s=1.0, body_s=1.5, write_s=1.5, keep_alive_s=2)
stream.HEADERS_WAIT_S, stream.HEARTBEAT_S = 0.2, 0.2
"""
N_CONNECTIONS = 40


@pytest.fixture(scope="module")
def quick(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose deadlines are short, with one slot, so that a second request waits."""
    options = ("--slots", "1", "--ctx", "16384", "--max-connections", str(N_CONNECTIONS))
    with serving(tmp_path_factory.mktemp("quick"), *options, model=demo_model, patch=IMPATIENT) as found:
        yield found


def endless(server: Server, **fields: object) -> bytes:
    return post_text("/v1/chat/completions", json.dumps({**server.endless(), **fields}).encode())


def until(connection: socket.socket, wanted: bytes) -> bytes:
    found = b""
    while wanted not in found:
        piece = connection.recv(65536)
        assert piece, found
        found += piece
    return found


# ---- too slow


def test_headers_that_trickle_are_cut_off(quick: Server) -> None:
    started_s = time.monotonic()
    with quick.raw(b"GET /health HTTP/1.1\r\n") as connection:
        connection.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - started_s < 20:
            connection.sendall(b"X-A: b\r\n")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer


def test_a_body_that_trickles_is_cut_off(quick: Server) -> None:
    with quick.raw(
        post_text("/tokenize", b"")[:-4].replace(b"Length: 0", b"Length: 1000") + b"\r\n\r\n{"
    ) as connection:
        for _ in range(10):
            connection.sendall(b" ")
            time.sleep(0.05)
        assert b" 408 " in read_all(connection)


def test_a_connection_that_says_nothing_is_closed(quick: Server) -> None:
    assert quick.exchange(b"") == b""
    with quick.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        assert b'{"status":"ok"}' in read_all(connection), "answered, then closed after the time to keep it alive"


def test_a_refused_request_does_not_go_on_sending_for_ever(quick: Server) -> None:
    head = b"POST /nope HTTP/1.1\r\nHost: evil\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n"
    with quick.raw(head) as connection:
        assert b" 403 " in connection.recv(4096)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"x")
                time.sleep(0.05)
            raise AssertionError("nobody cut it off")


# ---- gone


def gone_by_closing(connection: socket.socket) -> None:
    connection.close()


def gone_by_reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def gone_by_half_close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)
    read_all(connection)


@pytest.mark.parametrize("leave", [gone_by_closing, gone_by_reset, gone_by_half_close])
@pytest.mark.parametrize("is_streamed", [True, False])
def test_who_leaves_stops_the_reply(quick: Server, leave, is_streamed: bool) -> None:
    cancelled = quick.metric("edge_replies_total")
    connection = quick.raw(endless(quick, stream=is_streamed))
    eventually(lambda: quick.n_running() == 1)
    leave(connection)
    started_s = time.monotonic()
    assert quick.chat(max_tokens=3).status_code == 200
    assert time.monotonic() - started_s < 4, "the one slot was not free"
    quick.wait_until_idle()
    assert quick.metric("edge_replies_total") <= cancelled + 1
    assert re.search(r"499 POST /v1/chat/completions.*client_gone", quick.log)


def test_who_leaves_the_queue_is_never_run(quick: Server) -> None:
    with quick.raw(endless(quick)) as first:
        until(first, b"data: ")
        waiting = [quick.raw(endless(quick)) for _ in range(5)]
        eventually(lambda: quick.metric("edge_requests_waiting") == 5)
        for connection in waiting:
            connection.close()
        eventually(lambda: quick.metric("edge_requests_waiting") == 0)
        assert quick.n_running() == 1
    quick.wait_until_idle()


def test_who_leaves_while_the_prompt_is_read_frees_the_slot(quick: Server) -> None:
    (model,) = quick.get("/v1/models").json()["data"]
    n_tokens = len(quick.post("/tokenize", {"content": "7 " * 100}).json()["tokens"])
    n_times = model["meta"]["n_ctx"] * 100 // n_tokens // 2  # half the context; a reply that is not cut fills the rest
    long = [{"role": "user", "content": "7 " * n_times}]
    connection = quick.raw(endless(quick, messages=long, return_progress=True))
    until(connection, b"prompt_progress")
    connection.close()
    started_s = time.monotonic()
    assert quick.chat(max_tokens=3).status_code == 200
    assert time.monotonic() - started_s < 4


def test_a_client_that_never_reads_is_cut_off_and_others_go_on(quick: Server) -> None:
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", quick.port))
    with deaf:
        deaf.sendall(endless(quick, logprobs=True, top_logprobs=20))
        eventually(lambda: quick.n_running() == 1)
        assert quick.chat(max_tokens=3).status_code == 200, "it waits for the one slot and gets it"
    quick.wait_until_idle()


# ---- heartbeat, pipelining, caps


def test_a_silent_stream_keeps_its_connection_alive(quick: Server) -> None:
    with quick.raw(endless(quick)) as first, quick.raw(endless(quick)) as second:
        until(first, b"data: ")
        waiting = until(second, b": still here\n\n")
        assert waiting.startswith(b"HTTP/1.1 200")
        assert b"data: " not in waiting
    quick.wait_until_idle()


def test_an_early_error_of_a_stream_has_its_own_status(quick: Server) -> None:
    long = [{"role": "user", "content": "7 " * 40_000}]
    answer = quick.post("/v1/chat/completions", {"messages": long, "stream": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert re.search(r"\d+ tokens, the context holds \d+", answer.json()["error"]["message"])


def test_pipelined_requests_do_not_pile_up(quick: Server) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answers = quick.exchange(one * 10_000)
    assert 1 <= answers.count(b"HTTP/1.1 200") <= 10_000
    assert quick.get("/health").status_code == 200
    reply = post_text("/v1/chat/completions", json.dumps({"messages": QUESTION, "max_tokens": 5}).encode())
    assert quick.exchange(reply * 20).count(b"chatcmpl-") >= 1
    quick.wait_until_idle()


def test_idle_connections_give_way_and_replies_go_on(quick: Server) -> None:
    with quick.raw(endless(quick)) as active:
        until(active, b"data: ")
        crowd = [socket.create_connection(("127.0.0.1", quick.port)) for _ in range(N_CONNECTIONS * 3)]
        assert quick.get("/health").status_code == 200
        until(active, b"data: ")
        for connection in crowd:
            connection.close()
    quick.wait_until_idle()


def test_busy_connections_over_the_cap_are_told_so(quick: Server) -> None:
    request = endless(quick)
    busy = [quick.raw(endless(quick, stream=False))]  # a stream that nobody reads would be cut off too soon
    try:
        eventually(lambda: quick.n_running() == 1)
        busy += [quick.raw(request) for _ in range(N_CONNECTIONS - 1)]
        for connection in busy[1:]:
            until(connection, b"HTTP/1.1 200")  # before that it may count as idle, and give way
        assert b" 503 " in quick.exchange(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    finally:
        for connection in busy:
            connection.close()
    eventually(lambda: quick.get("/health").status_code == 200)
    quick.wait_until_idle()


def test_no_client_starves_another(demo_model: Path, tmp_path: Path) -> None:
    keys = ("a-key-of-many-requests", "a-key-of-one-request")
    options = [part for key in keys for part in ("--api-key", key)]
    with serving(tmp_path, "--slots", "1", *options, model=demo_model) as found:
        many, one = ({"Authorization": f"Bearer {key}"} for key in keys)
        done: list[int] = []
        threads = [
            threading.Thread(target=lambda: done.append(found.chat_as(many, max_tokens=300).status_code))
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: len(done) >= 1)
        n_before = len(done)
        assert found.chat_as(one, max_tokens=5).status_code == 200
        assert len(done) <= n_before + 3, "the other client's request came after one of the first's, not after all"
        for thread in threads:
            thread.join(60)
        assert done == [200] * 12


def test_a_full_queue_says_come_back(demo_model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--slots", "1", "--queue", "2", model=demo_model) as found:
        busy = [found.raw(endless(found)) for _ in range(3)]
        eventually(lambda: found.metric("edge_requests_waiting") == 2)
        assert found.get("/health").json() == {"status": "busy"}
        for is_streamed in (True, False):
            refused = found.chat(stream=is_streamed)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "busy"
        for connection in busy:
            connection.close()
        eventually(lambda: found.get("/health").json() == {"status": "ok"})
