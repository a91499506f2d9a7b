"""A reply as it grows: server-sent events, or lines of JSON, that keep a silent connection alive.

Headers wait for the first event, so that a request refused at once gets its real status; a long queue or prompt gets
its headers after HEADERS_WAIT_S, and a comment every HEARTBEAT_S while there is nothing to tell.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edge.errors import EdgeError

HEADERS_WAIT_S = 2.0
HEARTBEAT_S = 5.0  # the least patient clients and proxies give up after some 30 s
COMMENT = b": still here\n\n"


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {dumps(data)}\n\n".encode()


def dumps(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


async def stream(
    chunks: AsyncGenerator[bytes, None],
    *,
    on_error: Callable[[EdgeError], bytes],
    media_type: str = "text/event-stream",
    heartbeat: bytes = COMMENT,
) -> Response:
    """The response that sends chunks. Raises what they raise before the first. on_error: the chunk for a later one."""
    first = asyncio.ensure_future(anext(chunks, b""))
    try:
        await asyncio.wait({first}, timeout=HEADERS_WAIT_S)
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        with contextlib.suppress(BaseException):
            await first
        await chunks.aclose()
        raise
    return _Stream(chunks, first, on_error, media_type, heartbeat)


class _Stream(Response):
    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        first: "asyncio.Future[bytes]",
        on_error: Callable[[EdgeError], bytes],
        media_type: str,
        heartbeat: bytes,
    ) -> None:
        super().__init__(media_type=media_type, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._first, self._on_error, self._heartbeat = chunks, first, on_error, heartbeat
        self._sent_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        clock = asyncio.get_running_loop().time
        self._sent_s = clock()
        beats = asyncio.ensure_future(self._beat(send)) if self._heartbeat else None
        try:
            chunk = await self._first
            while chunk:
                self._sent_s = clock()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                chunk = await anext(self._chunks, b"")
        except EdgeError as error:
            await send({"type": "http.response.body", "body": self._on_error(error), "more_body": True})
        finally:
            if beats is not None:
                beats.cancel()
            await self._chunks.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            quiet_s = clock() - self._sent_s
            if quiet_s >= HEARTBEAT_S:
                self._sent_s, quiet_s = clock(), 0.0
                await send({"type": "http.response.body", "body": self._heartbeat, "more_body": True})
            await asyncio.sleep(HEARTBEAT_S - quiet_s)
