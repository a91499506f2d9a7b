"""The front's handle on the engine: start, generate, cancel, and bring its process back when it dies.

Knows which requests a death is to be blamed on, and which are sent again. `EngineClient` is for asyncio; `Engine` wraps
it for a program that waits, such as the command line.
"""

import asyncio
import contextlib
import hashlib
import logging
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from edge.board.build import wrong_build
from edge.config import SAMPLING_RANGES, EngineSettings
from edge.engine import protocol
from edge.engine.process import EngineProcess
from edge.engine.protocol import (
    AnswerNow,
    Beat,
    Cancel,
    Close,
    Detokenize,
    Detokenized,
    Done,
    Event,
    Failed,
    Forget,
    Generate,
    Load,
    Loading,
    Phase,
    Ready,
    Tokenize,
    Tokens,
)
from edge.errors import (
    EdgeError,
    EngineDiedError,
    EngineDownError,
    OutOfRangeError,
    PoisonedRequestError,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")

N_LOGPROBS_MAX = 20
BACKOFF_S = (0.0, 0.5, 2.0, 8.0)  # before the n-th restart in a row
MAX_DEATHS, DEATHS_WINDOW_S = 5, 120.0
QUARANTINE_DEATHS, QUARANTINE_S = 2, 600.0
CLOSE_S = 2.0  # for an engine that is told to leave

State = Literal["loading", "ok", "restarting", "down", "closed"]


@dataclass
class _Pending:
    """A request the engine has, or will get when it is back."""

    request: Generate | Tokenize | Detokenize
    events: asyncio.Queue[Event | EdgeError] = field(default_factory=asyncio.Queue)
    phase: Literal["sent", "arrived", "waiting", "running"] = "sent"


class EngineClient:
    """One engine process and the requests given to it. Use from one event loop."""

    def __init__(self, settings: EngineSettings, on_loading: Callable[[float], None] | None = None) -> None:
        self.settings = replace(settings, model=str(Path(settings.model).absolute()))
        self.state: State = "loading"
        self.ready: Ready | None = None
        self.beat = Beat()  # the engine's last word on how full it is
        self.n_deaths = 0
        self.last_death: str | None = None
        self._on_loading = on_loading
        self._pending: dict[str, _Pending] = {}
        self._deaths_s: deque[float] = deque(maxlen=MAX_DEATHS)
        self._blame: dict[str, list[float]] = {}  # request fingerprint -> times of the deaths it was active at
        self._process = EngineProcess(self.settings)
        self._supervisor: asyncio.Task[None] | None = None
        self._is_up = asyncio.Event()
        self._load_error: EdgeError | None = None

    @property
    def _is_closed(self) -> bool:
        return self.state == "closed"

    @property
    def pid(self) -> int | None:
        """Process id of the engine, while there is one."""
        return self._process.pid

    @property
    def n_requests(self) -> int:
        """Requests that are not answered yet."""
        return len(self._pending)

    async def start(self) -> Ready:
        """Start the engine and wait until the model is loaded. Raises what loading raised."""
        self._supervisor = asyncio.create_task(self._supervise())
        await self._is_up.wait()
        if self.ready is None:
            raise self._load_error or EngineDownError(self.last_death or "it did not start")
        return self.ready

    async def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        """Progress, Text … and Done. Closing the iterator early cancels the request. Raises EdgeError."""
        self._refuse(request)
        pending = self._put(request)
        try:
            while True:
                event = await pending.events.get()
                if isinstance(event, EdgeError):
                    raise event
                yield event
                if isinstance(event, Done):
                    return
        finally:
            if self._pending.pop(request.id, None) is not None:
                self.cancel(request.id)

    async def tokenize(self, segments: tuple[tuple[str, bool], ...]) -> tuple[int, ...]:
        """The tokens of a text in (text, is_template) pieces. Raises EdgeError."""
        tokens = await self._asked(Tokenize(uuid.uuid4().hex, segments))
        assert isinstance(tokens, Tokens)
        return tokens.tokens

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens. Raises EdgeError; OutOfRangeError for a token that is not in the vocabulary."""
        text = await self._asked(Detokenize(uuid.uuid4().hex, tuple(tokens)))
        assert isinstance(text, Detokenized)
        return text.text

    def fail(self, error: EdgeError) -> None:
        """End every request with error."""
        for request_id, pending in self._pending.items():
            self.cancel(request_id)
            pending.events.put_nowait(error)
        self._pending.clear()

    def cancel(self, request_id: str) -> None:
        """End a request; its stream ends with finish_reason "cancelled"."""
        self._send(Cancel(request_id))

    def answer_now(self, request_id: str) -> None:
        """End the thought of a request; its answer begins."""
        self._send(AnswerNow(request_id))

    def forget(self, conversation: str) -> None:
        """Free the KV memory of a conversation; `beat` tells how much is held then."""
        self._send(Forget(conversation))

    async def close(self) -> None:
        """Stop the engine; requests still running are dropped."""
        self.state = "closed"
        self._send(Close())
        await self._process.ended(CLOSE_S)
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor

    # ---- requests

    def _put(self, request: Generate | Tokenize | Detokenize) -> _Pending:
        """Send a request, now or when the engine is up."""
        assert request.id not in self._pending, "request ids are unique"
        pending = self._pending[request.id] = _Pending(request)
        if self.state == "ok":
            self._send(request)
        return pending

    async def _asked(self, request: Tokenize | Detokenize) -> Event:
        """The one event that answers a request."""
        if self.state in ("down", "closed"):
            raise self._down()
        pending = self._put(request)
        try:
            event = await pending.events.get()
        finally:
            self._pending.pop(request.id, None)
        if isinstance(event, EdgeError):
            raise event
        return event

    def _refuse(self, request: Generate) -> None:
        """Raise for a request that would never be answered, or asks for what makes no sense."""
        for name, (low, high) in SAMPLING_RANGES.items():
            value = getattr(request.sampling, name)
            if value is not None and not low <= value <= high:  # NaN too
                raise OutOfRangeError(name, value, low, high)
        if self.state in ("down", "closed"):
            raise self._down()
        if request.n_logprobs is not None and not 0 <= request.n_logprobs <= N_LOGPROBS_MAX:
            raise OutOfRangeError("n_logprobs", request.n_logprobs, 0, N_LOGPROBS_MAX)
        now = time.monotonic()
        deaths = [at for at in self._blame.get(_fingerprint(request), []) if now - at < QUARANTINE_S]
        if len(deaths) >= QUARANTINE_DEATHS:
            raise PoisonedRequestError(len(deaths))

    def _send(self, message: protocol.Request) -> None:
        self._process.send(protocol.encode(message))

    def _dispatch(self, line: bytes) -> None:
        event: Event = protocol.decode(line)
        match event:
            case Loading(share):
                if self._on_loading:
                    self._on_loading(share)
            case Ready():
                self.ready, self.state = event, "ok"
                logger.info("engine ready after %.2f s with %d threads", event.load_time_s, event.n_threads)
                if event.network:
                    logger.warning("the engine process could open network connections: %s", event.network)
                for waiting in self._pending.values():
                    self._send(waiting.request)
                self._is_up.set()
            case Failed(id=""):
                self._load_error = event.exception()
            case Phase(request_id, phase):
                if request_id in self._pending:
                    self._pending[request_id].phase = phase
            case Failed(request_id):
                if pending := self._pending.pop(request_id, None):
                    pending.events.put_nowait(event.exception())
            case Beat():
                self.beat = event
            case Done(id=request_id) | Tokens(id=request_id) | Detokenized(id=request_id):
                if pending := self._pending.pop(request_id, None):
                    pending.events.put_nowait(event)
            case protocol.Text(id=request_id) | protocol.Progress(id=request_id) | protocol.TokenLogprob(id=request_id):
                if request_id in self._pending:
                    self._pending[request_id].events.put_nowait(event)

    # ---- its lives

    async def _supervise(self) -> None:
        """Run the engine, again and again, until it is closed, cannot load, or dies too often."""
        while not self._is_closed:
            reason = await self._process.run(protocol.encode(Load(self.settings)), self._dispatch)
            if self._is_closed:
                return
            if self._process.has_met_unknown_instruction:  # it would meet it again
                self._load_error = wrong_build()
            if self._load_error is not None:  # the file or the library is at fault, not the process
                self._go_down(str(self._load_error))
                return
            now = time.monotonic()
            self.n_deaths += 1
            self.last_death, self.beat = reason, Beat()
            self._deaths_s.append(now)
            logger.error("engine died: %s", reason)
            self._bury(reason, now)
            recent = [at for at in self._deaths_s if now - at < DEATHS_WINDOW_S]
            if len(recent) >= MAX_DEATHS:
                self._go_down(reason)
                return
            self.state = "restarting"
            await asyncio.sleep(BACKOFF_S[min(len(recent), len(BACKOFF_S)) - 1])
            self._process = EngineProcess(self.settings)

    def _bury(self, reason: str, now: float) -> None:
        """Fail what was active when the engine died; what only waited is sent again when it is back."""
        for request_id, pending in list(self._pending.items()):
            question = not isinstance(pending.request, Generate)  # about tokens: small, and answered at once
            if question or pending.phase in ("arrived", "running"):
                if isinstance(pending.request, Generate):
                    self._blame.setdefault(_fingerprint(pending.request), []).append(now)
                del self._pending[request_id]
                pending.events.put_nowait(EngineDiedError(reason))
            else:
                pending.phase = "sent"

    def _go_down(self, reason: str) -> None:
        self.state, self.ready, self.last_death = "down", None, reason
        for pending in self._pending.values():
            pending.events.put_nowait(self._down())
        self._pending.clear()
        self._is_up.set()

    def _down(self) -> EngineDownError:
        """Why nothing is answered any more."""
        if isinstance(self._load_error, EngineDownError):
            return self._load_error
        return EngineDownError(self.last_death or "it was stopped")


def choices(request: Generate, n: int) -> list[Generate]:
    """n requests for different replies to one prompt, which is read only once."""
    seed = request.sampling.seed
    seeds = [None if seed is None else (seed + i) % 2**32 for i in range(n)]
    return [
        replace(request, id=f"{request.id}-{i}", sampling=replace(request.sampling, seed=seeds[i])) for i in range(n)
    ]


def _fingerprint(request: Generate) -> str:
    return hashlib.sha256(protocol.encode(replace(request, id=""))).hexdigest()


class Engine:
    """EngineClient for a program that waits: the event loop runs in a thread of its own."""

    def __init__(self, settings: EngineSettings, on_loading: Callable[[float], None] | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._client = EngineClient(settings, on_loading)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        return self._client.pid

    def start(self) -> Ready:
        return self._call(self._client.start())

    def generate(self, request: Generate) -> Iterator[Event]:
        """As EngineClient.generate. To stop early, call cancel (from a signal handler, say) and read on to Done."""
        inbox: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async for event in self._client.generate(request):
                    inbox.put(event)
                inbox.put(None)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                inbox.put(error)

        asyncio.run_coroutine_threadsafe(pump(), self._loop)
        while (event := inbox.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def cancel(self, request_id: str) -> None:
        self._loop.call_soon_threadsafe(self._client.cancel, request_id)

    def answer_now(self, request_id: str) -> None:
        self._loop.call_soon_threadsafe(self._client.answer_now, request_id)

    def tokenize(self, segments: tuple[tuple[str, bool], ...]) -> tuple[int, ...]:
        return self._call(self._client.tokenize(segments))

    def forget(self, conversation: str) -> None:
        self._loop.call_soon_threadsafe(self._client.forget, conversation)

    @property
    def beat(self) -> Beat:
        return self._client.beat

    @property
    def n_ctx_tokens(self) -> int:
        assert self._client.ready is not None, "started"
        return self._client.ready.n_ctx_tokens

    def close(self) -> None:
        self._call(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
