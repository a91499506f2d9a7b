"""Closed by default: who gets in, and what a request may look like. Raw bytes where a client library hides the case."""

import re
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from edge.serve import page
from edge.serve.guard import Rules, is_loopback
from tests.serve.conftest import CLIENT, KEY, Server, post_text, serving

SECOND_KEY = "another-key-of-the-tests"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW")
ODD_PATHS = (
    "/",
    "//",
    "//v1/models",
    "/v1/models/",
    "/v1/../metrics",
    "/v1/%2e%2e/metrics",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/..%2fetc/passwd",
    "/health/",
    "/health/..",
    "/health/../metrics",
    "/health%00",
    "/health;x=1",
    "/health%2f..%2fmetrics",
    "/HEALTH",
    "/v1/models;",
    "/metrics#",
    "/v1/models%00",
    "/CON",
    "/a" * 2000,
    "/%F0%9F%98%80",
    "/%ff",
    "/api/tags",
    "/v1/messages",
    "/docs/../metrics",
    "/static/../../app.py",
    "/web",
    "/web/",
    "/web/none.js",
    "/web/../app.py",
    "/web/%2e%2e/app.py",
    "/web/index.html/../../api/conversations",
)


@pytest.fixture(scope="module")
def keyed(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("keyed")
    file = folder / "keys"
    file.write_text(f"# ours\n{SECOND_KEY}\n")
    file.chmod(0o600)
    with serving(folder, "--api-key-file", str(file), model=demo_model, EDGE_API_KEY=KEY) as found:
        yield found


def status(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d+)", answer)
    return int(found[1]) if found else 0


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ---- keys


def test_every_key_opens_and_nothing_else_does(keyed: Server) -> None:
    for headers in (bearer(KEY), bearer(SECOND_KEY), {"X-Api-Key": KEY}, {"authorization": f"bearer {KEY}"}):
        assert keyed.get("/v1/models", headers=headers).status_code == 200, headers
    wrong: list[dict[str, str]] = [
        {},
        bearer("wrong"),
        bearer(KEY + "x"),
        bearer(KEY[:-1]),
        bearer(KEY.upper()),
        {"X-Api-Key": "no"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {**bearer(KEY), "X-Api-Key": "wrong"},
        {**bearer(KEY), "X-Api-Key": SECOND_KEY},
        {"Cookie": f"key={KEY}"},
        bearer("é"),
    ]
    for headers in wrong:
        answer = keyed.get("/v1/models", headers=httpx2.Headers(headers, encoding="utf-8"))
        assert answer.status_code == 401, headers
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert keyed.get(f"/v1/models?api_key={KEY}&key={KEY}").status_code == 401


def test_two_keys_in_one_request_are_none(keyed: Server) -> None:
    lines = f"Authorization: Bearer {KEY}\r\nAuthorization: Bearer wrong\r\n"
    assert (
        status(
            keyed.exchange(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{lines}Connection: close\r\n\r\n".encode())
        )
        == 401
    )


def test_without_a_key_only_health_and_the_page_answer(keyed: Server) -> None:
    open_to_all = page.paths()
    assert not [path for path in open_to_all if path != "/" and not path.startswith("/web/")]
    routes = keyed.get("/openapi.json", headers=bearer(KEY)).json()["paths"]
    paths = {re.sub(r"\{[^}]*\}", "x", path) for path in routes} - {"/health"}
    assert not paths & open_to_all
    for start in ("/v1/", "/api/"):
        assert len([path for path in paths if path.startswith(start)]) >= 8, start
    for path in (*paths, *ODD_PATHS, *open_to_all):
        for method in METHODS:
            request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            found = status(keyed.exchange(request.encode()))
            is_open = path in open_to_all and method in ("GET", "HEAD")
            assert found in ((200,) if is_open else (400, 401)), (method, path, found)
    health = keyed.get("/health")
    assert health.json() == {"status": "ok"}
    assert not {"server", "x-powered-by"} & {name.lower() for name in health.headers}
    assert keyed.post("/health", {}).status_code == 401


def test_odd_paths_with_a_key_reach_no_file(keyed: Server) -> None:
    for path in ODD_PATHS:
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
        answer = keyed.exchange(request.encode())
        assert status(answer) in (200, 307, 400, 404, 405), (path, answer)
        assert b"root:" not in answer
        assert b"import " not in answer


def test_a_huge_key_is_refused_like_any_other(keyed: Server) -> None:
    assert keyed.get("/v1/models", headers=bearer("k" * 15_000)).status_code == 401
    assert status(keyed.exchange(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: " + b"k" * (1 << 20))) in (0, 400)


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compare(a: bytes, b: bytes) -> bool:
        seen.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("edge.serve.guard.hmac.compare_digest", compare)
    rules = Rules(frozenset(), ("first-key", "second-key"))
    assert rules.key_number([b"first-key"]) == 0
    assert rules.key_number([b"second-key"]) == 1
    assert rules.key_number([b"x"]) is None
    assert seen == [(32, 32)] * 6, "every key is compared, whatever was found before, and lengths tell nothing"


def test_a_request_is_controlled_by_its_own_key_only(keyed: Server) -> None:
    body = keyed.endless(headers=bearer(KEY))
    with CLIENT.stream("POST", keyed.url + "/v1/chat/completions", json=body, headers=bearer(KEY)) as stream:
        lines = stream.iter_lines()  # the one iterator: the connection closes with it
        first = next(line for line in lines if line.startswith("data: "))
        found = re.search(r"chatcmpl-[0-9a-f]+", first)
        assert found
        act = {"id": found[0], "action": "cancel"}
        foreign = keyed.post("/v1/chat/completions/control", act, headers=bearer(SECOND_KEY))
        assert foreign.status_code == 404
        assert keyed.post("/v1/chat/completions/control", act, headers=bearer(KEY)).json() == act
        assert "data: [DONE]" in list(lines)
    assert keyed.post("/v1/chat/completions/control", act, headers=bearer(KEY)).status_code == 404


def test_the_engine_never_sees_the_key(keyed: Server) -> None:
    import psutil

    children = psutil.Process(keyed.process.pid).children(recursive=True)
    assert len(children) >= 2
    for child in children:
        assert KEY not in " ".join([*child.environ().values(), *child.cmdline()])
    assert KEY not in keyed.log
    assert SECOND_KEY not in keyed.log


# ---- Host and Origin


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "localhost:1", "LOCALHOST:65535", "localhost."])
def test_our_own_names_are_answered(server: Server, host: str) -> None:
    assert status(server.exchange(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "localhost.evil.com",
        "evil.com:8080",
        "8.8.8.8",
        "127.0.0.2",
        "[::2]",
        "localhost:99999",
        "localhost:x",
        "localhost:0",
        "user@localhost",
        "localhost/x",
        "",
        " ",
        "a b",
        "xn--lcalhost-n4a",
        "0.0.0.0",
        "2130706433",
    ],
)
def test_a_foreign_name_is_refused(server: Server, host: str) -> None:
    for path in ("/health", "/v1/models"):
        answer = server.exchange(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert status(answer) in (400, 403), answer


def test_a_request_names_exactly_one_host(server: Server) -> None:
    assert status(server.exchange(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")) == 400
    both = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\nConnection: close\r\n\r\n"
    assert status(server.exchange(both)) == 400
    assert status(server.exchange(b"GET /health HTTP/1.0\r\n\r\n")) == 403


@pytest.mark.parametrize(
    "origin", ["https://evil.com", "null", "http://localhost.evil.com", "http://localhost:1", "file://"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_pages_of_other_sites_stay_out(server: Server, origin: str, method: str) -> None:
    answer = CLIENT.request(method, server.url + "/v1/models", headers={"Origin": origin})
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_our_own_page_comes_in(server: Server) -> None:
    assert server.get("/v1/models", headers={"Origin": server.url}).status_code == 200
    assert (
        server.get("/v1/models", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}).status_code
        == 403
    )
    assert (
        server.get("/docs", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status_code == 200
    )


def test_a_page_that_was_asked_for_gets_its_headers(demo_model: Path, tmp_path: Path) -> None:
    origin = "https://app.example"
    with serving(
        tmp_path, "--cors-origin", origin, "--api-key", KEY, "--allow-host", "ai.example", model=demo_model
    ) as found:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        preflight = CLIENT.request("OPTIONS", found.url + "/v1/chat/completions", headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in preflight.headers
        assert found.get("/v1/models", headers={"Origin": origin}).status_code == 401
        opened = found.get("/v1/models", headers={"Origin": origin, **bearer(KEY)})
        assert opened.status_code == 200
        assert opened.headers["access-control-allow-origin"] == origin
        assert (
            found.get("/v1/models", headers={"Origin": "https://app.example.evil.com", **bearer(KEY)}).status_code
            == 403
        )
        assert found.get("/health", headers={"Host": "ai.example"}).status_code == 200


# ---- the body's headers


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/json; charset=latin-1",
        "application/json, text/plain",
    ],
)
def test_only_json_is_taken(server: Server, kind: str) -> None:
    answer = CLIENT.post(server.url + "/v1/chat/completions", content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"


def test_a_body_over_the_cap_is_refused_by_its_length_and_while_it_comes(server: Server) -> None:
    before = server.metric('edge_memory_bytes{process="front"}') or 0
    long = b'{"messages": "' + b"x" * (1 << 20) + b'"}'
    assert (
        CLIENT.post(
            server.url + "/v1/chat/completions", content=long, headers={"Content-Type": "application/json"}
        ).status_code
        == 413
    )
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with server.raw(chunked) as connection:
        found = b""
        for _ in range(40):
            connection.sendall(chunk)
        found = connection.recv(4096)
    assert status(found) == 413
    claimed = head + b"Content-Length: 99999999999\r\n\r\n"
    with server.raw(claimed) as connection:
        assert status(connection.recv(4096)) == 413
    assert (server.metric('edge_memory_bytes{process="front"}') or 0) - before < 20e6


def test_two_ways_of_saying_the_length_are_refused(server: Server) -> None:
    smuggled = post_text("/v1/chat/completions", b"0\r\n\r\n", "Transfer-Encoding: chunked", "Connection: close")
    assert status(server.exchange(smuggled)) == 400
    twice = post_text("/v1/chat/completions", b"{}", "Content-Length: 3", "Connection: close")
    assert status(server.exchange(twice)) == 400
    for length in ("-1", "1e3", "0x10", "٣"):
        head = f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        assert status(server.exchange(head.encode())) == 400


def test_headers_over_the_cap_are_refused(server: Server) -> None:
    long = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 200_000 + b"\r\n\r\n"
    assert status(server.exchange(long)) in (0, 400)  # 0: closed while it was still being sent
    many = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"Connection: close\r\n\r\n"
    assert status(server.exchange(many)) in (0, 400)
    assert server.get("/health", headers={f"x-{i}": "y" * 90 for i in range(180)}).status_code == 400


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\nHost : localhost\n\n",
        b"\xff\xfe\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(server: Server, junk: bytes) -> None:
    answer = server.exchange(junk + b"\r\n\r\n")
    assert status(answer) in (0, 400, 403)
    assert b"Traceback" not in answer
    assert server.get("/health").status_code == 200


# ---- what starts


def test_the_network_gets_in_with_a_key_only(demo_model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0", model=demo_model) as found:
        shown = re.search(r"key: (\S{30,})", found.log)
        assert shown, found.log
        file = tmp_path / "config" / "api-key"
        assert file.read_text().strip() == shown[1]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert found.get("/v1/models").status_code == 401
        assert found.get("/v1/models", headers=bearer(shown[1])).status_code == 200
        assert "http://0.0.0.0" not in found.log
    with serving(tmp_path, "--host", "0.0.0.0", model=demo_model) as again:
        assert shown[1] not in again.log, "shown once"
        assert again.get("/v1/models", headers=bearer(shown[1])).status_code == 200


def test_insecure_has_to_be_typed(demo_model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0", "--insecure", model=demo_model) as found:
        assert found.get("/v1/models").status_code == 200
        assert not (tmp_path / "config").exists()


def test_loopback_is_told_from_the_network() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "example.com", "", "localhost.evil.com")))


def test_wrong_keys_take_the_same_time(keyed: Server) -> None:
    def seconds(key: str) -> float:
        started_s = time.perf_counter()
        for _ in range(30):
            client.get("/v1/models", headers=bearer(key))
        return time.perf_counter() - started_s

    with httpx2.Client(base_url=keyed.url) as client:
        seconds("x")
        pairs = [(seconds("x" * len(KEY)), seconds(KEY[:-1] + "x")) for _ in range(5)]
    ratios = sorted(a / b for a, b in pairs)
    assert 0.5 < ratios[2] < 2


def test_many_threads_share_the_server(server: Server) -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.chat(max_tokens=5).status_code)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [200] * 12
