"""uvicorn's HTTP/1.1 connection with the deadlines it lacks: for a request to arrive, for an answer to be read.

Also: a cap on connections where the longest idle one gives way, no pipelining, errors in JSON.
"""

import asyncio
import json
import socket
from dataclasses import dataclass
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.errors import EdgeError
from edge.serve.guard import MAX_HEADER_BYTES
from edge.serve.problems import RequestError, TooManyConnectionsError, TooSlowError, body_of, headers_of, status_of

SEND_BUFFER_BYTES = 64 << 10  # what the kernel holds for a client that does not read


@dataclass(frozen=True)
class Limits:
    """Times in seconds."""

    header_s: float = 10.0  # from a request's first byte to its blank line
    body_s: float = 30.0  # from there to its last byte
    write_s: float = 60.0  # that a client may leave its answer unread
    keep_alive_s: float = 75.0
    n_connections: int = 256


class Connection(H11Protocol):
    """One client's connection."""

    limits: ClassVar[Limits] = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arrival: asyncio.TimerHandle | None = None
        self._awaits = ""  # what the arrival timer waits for: header, body
        self._unread: asyncio.TimerHandle | None = None
        self._idle_since_s = 0.0

    @property
    def is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    # ---- opening and closing

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since_s = self.loop.time()
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # a client that lost its power is gone after this
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.limits.write_s * 1000))
        if len(self.connections) > self.limits.n_connections and not self._make_room():
            self._refuse(TooManyConnectionsError(self.limits.n_connections))
            return
        self._await("header")

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest."""
        others = [c for c in self.connections if isinstance(c, Connection) and c is not self and c.is_idle]
        if not others:
            return False
        min(others, key=lambda other: other._idle_since_s).transport.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._await("")
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    # ---- reading

    def data_received(self, data: bytes) -> None:
        if self._arrival is None and self.is_idle:
            self._await("header")
        if self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body:
            self.cycle.keep_alive = False  # a request before the answer to the last one: it is not answered
        super().data_received(data)
        self._note_arrival()

    def on_response_complete(self) -> None:
        self._idle_since_s = self.loop.time()
        super().on_response_complete()
        if not self.transport.is_closing():
            self._note_arrival()

    def _note_arrival(self) -> None:
        """Set the deadline for what is still to come of the request."""
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            if self._awaits != "body":
                self._await("body")
        elif state is not h11.IDLE or (self.cycle is not None and not self.conn.trailing_data[0]):
            self._await("")  # it is here, or none has begun since the last

    def _await(self, what: str) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
        self._awaits, self._arrival = what, None
        if what:
            seconds = self.limits.header_s if what == "header" else self.limits.body_s
            self._arrival = self.loop.call_later(seconds, self._too_slow, seconds)

    def _too_slow(self, seconds: float) -> None:
        self._arrival = None
        has_begun = self._awaits == "body" or bool(self.conn.trailing_data[0])
        if has_begun and (self.cycle is None or not self.cycle.response_started or self.cycle.response_complete):
            self._refuse(TooSlowError(seconds))
        else:
            self.transport.close()

    # ---- writing

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's word for any bad request
        limit = f"its headers have more than {MAX_HEADER_BYTES >> 10} kB"
        self._refuse(RequestError("", f"the request is not HTTP/1.1, or {limit}; send a plain request"))

    def _refuse(self, error: EdgeError) -> None:
        """Answer without the app, and close."""
        status, body = status_of(error), json.dumps(body_of(error)).encode()
        headers = {**headers_of(error), "Content-Type": "application/json", "Content-Length": len(body)}
        lines = [f"HTTP/1.1 {status} Refused", *(f"{name}: {value}" for name, value in headers.items())]
        self.transport.write("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
        self.transport.close()


def connection(limits: Limits) -> type[Connection]:
    """Connections with these limits, for uvicorn's setting `http`."""
    return type("Connection", (Connection,), {"limits": limits})
