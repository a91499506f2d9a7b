"""The server's life: listen, load, answer, drain, leave. SIGTERM and Ctrl-C both mean: finish what runs, then go."""

import asyncio
import logging
import os
import socket
import threading
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from edge.errors import EdgeError, EngineError
from edge.serve.desk import Desk
from edge.serve.guard import MAX_HEADER_BYTES
from edge.serve.problems import StoppingError
from edge.serve.wire import Limits, connection

logger = logging.getLogger(__name__)

DRAIN_S = 3.0  # for the last events to reach their clients
STUCK_S = 10.0  # after that the process is ended, whatever holds it
N_BACKLOG = 128


@dataclass
class Serving:
    """What a server needs to run."""

    app: ASGIApp
    desk: Desk
    limits: Limits
    grace_s: float  # for running replies after SIGTERM


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises EngineError with what to do when there is none to be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise EngineError(f"{host} is no address of this machine ({error})", "give --host an address") from None
    server = socket.socket(family, kind, protocol)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        server.bind(address)
        server.listen(N_BACKLOG)
    except OSError as error:
        server.close()
        reason = (error.strerror or str(error)).lower()
        raise EngineError(
            f"{host} port {port} cannot be opened ({reason})", "choose another --port or --host"
        ) from None
    server.setblocking(False)
    return server


def run(serving: Serving, server: socket.socket) -> None:
    """Serve until a signal, then drain and return. Raises what loading the model raised."""
    config = uvicorn.Config(
        serving.app,
        http=connection(serving.limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(serving.limits.keep_alive_s),
        timeout_graceful_shutdown=int(DRAIN_S),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    asyncio.run(_run(config, serving, server))


async def _run(config: uvicorn.Config, serving: Serving, listener: socket.socket) -> None:
    server = _Server(config, serving)
    loading = asyncio.ensure_future(server.load())
    await server.serve(sockets=[listener])
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    if server.load_error is not None:
        raise server.load_error


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self._serving = serving
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None
        self.load_error: EdgeError | None = None

    async def load(self) -> None:
        """Start the engine; without a model there is nothing to serve."""
        try:
            await self._serving.desk.engine.start()
        except EdgeError as error:
            self.load_error = error
            self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """First signal: drain. Second: leave at once. Called in the main thread, between two bytecodes."""
        self._loop.call_soon_threadsafe(self._drain_or_leave)

    def _drain_or_leave(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        else:
            self._serving.desk.engine.fail(StoppingError())
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        """No new requests; running ones get the grace time, then an error that says why."""
        desk, grace_s = self._serving.desk, self._serving.grace_s
        desk.is_stopping = True
        watchdog = threading.Timer(grace_s + DRAIN_S + STUCK_S, os._exit, (1,))
        watchdog.daemon = True
        watchdog.start()
        deadline_s = self._loop.time() + grace_s
        while desk.engine.n_requests and self._loop.time() < deadline_s:
            await asyncio.sleep(0.05)
        if desk.engine.n_requests:
            logger.warning("%d requests were cut off after %g s", desk.engine.n_requests, grace_s)
            desk.engine.fail(StoppingError())
            await asyncio.sleep(0.1)
        self.should_exit = True
