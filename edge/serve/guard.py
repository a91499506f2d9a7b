"""What every request passes before any route sees it: Host, Origin, key, content type, size; and the log behind it.

Default-deny: a key is wanted for every path but those named public, whether a route exists there or not. When a client
is gone, the task that answers it is cancelled, and with it what runs in the engine.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.errors import EdgeError
from edge.serve.entry import CURRENT, Entry
from edge.serve.problems import (
    BodyTooLargeError,
    ForbiddenError,
    KeyRequiredError,
    MediaTypeError,
    RequestError,
    body_of,
    code_of,
    headers_of,
    status_of,
)

MAX_BODY_BYTES = 1 << 20
MAX_HEADER_BYTES = 16 << 10
CLIENT_GONE = 499  # in the log only: nobody is left to read a status
BODY_METHODS = ("POST", "PUT", "PATCH")
HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^:\[\]/@\s]+)(?::(?P<port>[0-9]{1,5}))?")
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}

ProblemForm = Callable[[EdgeError], dict[str, Any]]


@dataclass(frozen=True)
class Rules:
    """Who may come in. hosts: names and addresses this server is called by, lower case; keys: none means no key."""

    hosts: frozenset[str]
    keys: tuple[str, ...] = ()
    origins: frozenset[str] = frozenset()  # foreign web pages that may call, such as https://app.example
    public: frozenset[str] = frozenset({"/health"})  # paths without a key
    raw: frozenset[str] = frozenset()  # paths whose body need not be JSON
    max_body_bytes: int = MAX_BODY_BYTES
    max_bytes_of: Mapping[str, int] = field(default_factory=dict)  # path -> a limit of its own
    forms: Mapping[str, ProblemForm] = field(default_factory=dict)  # beginning of a path -> form of its errors
    _digests: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_digests", tuple(_digest(key.encode()) for key in self.keys))

    def key_number(self, credentials: Sequence[bytes]) -> int | None:
        """Which key the credentials are, if they are one. Takes the same time for every wrong one."""
        numbers = set()
        for credential in credentials:
            digest = _digest(credential)
            found = [hmac.compare_digest(digest, ours) for ours in self._digests]
            numbers.add(found.index(True) if any(found) else None)
        return numbers.pop() if len(numbers) == 1 else None

    def form(self, path: str) -> ProblemForm:
        """How errors of a path are written."""
        return next((form for start, form in self.forms.items() if path.startswith(start)), body_of)


class Guard:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, rules: Rules, on_answered: Callable[[Entry], None]) -> None:
        self._app, self._rules, self._on_answered = app, rules, on_answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        assert scope["type"] == "http", "the server is configured without websockets"
        client = scope["client"][0] if scope.get("client") else ""
        entry = Entry(method=scope["method"], path=_printable(scope["path"]), client=client)
        CURRENT.set(entry)
        answer = _Answer(send, entry, self._cors(scope))
        try:
            await self._answer(scope, receive, answer)
        except EdgeError as error:
            entry.code = code_of(error)
            response = JSONResponse(self._rules.form(scope["path"])(error), status_of(error), headers_of(error))
            await response(scope, receive, answer)
        except _GoneError:
            entry.status, entry.code = CLIENT_GONE, "client_gone"
        finally:
            entry.route = str(getattr(scope.get("route"), "path", ""))
            entry.total_time_s = time.perf_counter() - entry.started_s
            self._on_answered(entry)

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        headers = _Headers(scope["headers"])
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            # the connection bounds what is incomplete; many small fields may arrive whole
            raise RequestError("", f"the headers have more than {MAX_HEADER_BYTES >> 10} kB; send fewer")
        self._check_host(headers)
        self._check_origin(scope, headers)
        if scope["method"] == "OPTIONS" and headers.one(b"access-control-request-method"):
            await answer({"type": "http.response.start", "status": 204, "headers": []})
            await answer({"type": "http.response.body", "body": b""})
            return
        scope["client_name"] = self._check_key(scope, headers)
        self._check_body_headers(scope, headers)
        limit = self._rules.max_bytes_of.get(scope["path"], self._rules.max_body_bytes)
        body = await self._body(headers, receive, limit)
        await self._run(scope, body, receive, answer)

    # ---- who

    def _check_host(self, headers: "_Headers") -> None:
        hosts = headers.all(b"host")
        found = HOST.fullmatch(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
        if found is None or int(found["port"] or 80) not in range(1, 65536):
            raise ForbiddenError("the Host header is missing or is none", "send the name of this server")
        if found["name"].lower().rstrip(".") not in self._rules.hosts:
            raise ForbiddenError(
                f"this server is not called {_printable(found['name'])[:100]}",
                "use its own address, or start it with --allow-host NAME",
            )

    def _check_origin(self, scope: Scope, headers: "_Headers") -> None:
        """Pages of other sites stay out, whatever the method: browsers tell where a request comes from."""
        for origin in headers.all(b"origin"):
            ours = scope["scheme"].encode() + b"://" + headers.one(b"host")
            # behind a TLS proxy the page is https, the proxy's request is http
            if origin.lower() not in (ours.lower(), ours.lower().replace(b"http://", b"https://", 1)):
                if origin.decode("latin-1") in self._rules.origins:
                    continue
                raise ForbiddenError(
                    f"pages of {_printable(origin.decode('latin-1'))[:100]} may not use this server",
                    "start it with --cors-origin for that page",
                )
        if headers.one(b"sec-fetch-site") == b"cross-site" and not headers.all(b"origin"):
            if headers.one(b"sec-fetch-mode") == b"navigate":
                return
            raise ForbiddenError("pages of other sites may not use this server", "open this address itself")

    def _check_key(self, scope: Scope, headers: "_Headers") -> str:
        """The client's name: its key's number, or its address where no key is wanted."""
        client = str(scope["client"][0]) if scope.get("client") else "local"
        is_public = scope["path"] in self._rules.public and scope["method"] in ("GET", "HEAD")
        if not self._rules.keys or is_public:
            return client
        bearers = [value.partition(b" ") for value in headers.all(b"authorization")]
        credentials = [key.strip() if scheme.lower() == b"bearer" else b"" for scheme, _, key in bearers]
        number = self._rules.key_number([*credentials, *headers.all(b"x-api-key")])
        if number is None:
            raise KeyRequiredError
        return f"key {number + 1}"

    def _cors(self, scope: Scope) -> dict[str, str]:
        origin = _Headers(scope["headers"]).one(b"origin").decode("latin-1")
        if not origin or origin not in self._rules.origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
            "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Api-Key",
            "Access-Control-Expose-Headers": "X-Request-Id, Retry-After",
            "Access-Control-Max-Age": "600",
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Vary": "Origin",
        }

    # ---- what

    def _check_body_headers(self, scope: Scope, headers: "_Headers") -> None:
        if headers.all(b"transfer-encoding") and headers.all(b"content-length"):
            raise RequestError("", "there are Transfer-Encoding and Content-Length; send one of both")
        if scope["method"] in BODY_METHODS and scope["path"] not in self._rules.raw:
            kind = headers.one(b"content-type").decode("latin-1")
            name, _, parameters = kind.partition(";")
            charset = parameters.strip().lower().replace('"', "")
            if name.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
                raise MediaTypeError(_printable(kind)[:100])
            if headers.one(b"content-encoding").lower() not in (b"", b"identity"):
                raise MediaTypeError("compressed")

    async def _body(self, headers: "_Headers", receive: Receive, limit: int) -> bytes:
        length = headers.one(b"content-length")  # digits only, the connection saw to that
        if len(length) > 15 or int(length or 0) > limit:
            raise BodyTooLargeError(limit)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            body += message.get("body", b"")
            if len(body) > limit:
                raise BodyTooLargeError(limit)
            if not message.get("more_body", False):
                return bytes(body)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, answer: "_Answer") -> None:
        """Run the app until it is done or its client is gone."""
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        never = asyncio.Event()

        async def replay() -> Message:
            if not messages:
                await never.wait()
            return messages.pop()

        task = asyncio.current_task()
        assert task is not None
        is_gone = False

        async def watch() -> None:
            nonlocal is_gone
            while (await receive())["type"] != "http.disconnect":
                pass
            if not answer.is_complete:
                is_gone = True
                task.cancel()

        watcher = asyncio.ensure_future(watch())
        try:
            await self._app(scope, replay, answer)
        except asyncio.CancelledError:
            if not is_gone:
                raise
            raise _GoneError from None
        finally:
            watcher.cancel()


class _GoneError(Exception):
    """The client closed its connection."""


class _Headers:
    """Header fields by lower-case name."""

    def __init__(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs

    def all(self, name: bytes) -> list[bytes]:
        return [value for found, value in self._pairs if found == name]

    def one(self, name: bytes) -> bytes:
        """The first value; b"" if there is none."""
        return next(iter(self.all(name)), b"")


class _Answer:
    """send, with the headers every answer has, and the status noted."""

    def __init__(self, send: Send, entry: Entry, headers: Mapping[str, str]) -> None:
        self._send, self._entry, self._headers = send, entry, {**SECURITY_HEADERS, **headers}
        self.is_complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._entry.status = message["status"]
            present = {name.lower() for name, _ in message["headers"]}
            added = [(n.lower().encode(), v.encode("latin-1")) for n, v in self._headers.items()]
            message["headers"] = [*message["headers"], *(pair for pair in added if pair[0] not in present)]
        else:
            self.is_complete = not message.get("more_body", False)
        await self._send(message)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
