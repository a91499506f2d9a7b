"""The engine process: JSON lines on a socket, a scheduler in the middle, one thread that owns the model.

Started by edge.engine.client as `python -m edge.engine.worker FD`, never by fork. It leaves when its socket closes,
when its parent dies, or when libllama ends it; the client tells these apart.
"""

import ctypes
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge.board.topology import pin
from edge.engine import protocol, sandbox
from edge.engine.prefix import PrefixStore
from edge.engine.protocol import (
    AnswerNow,
    Cancel,
    Close,
    Detokenize,
    Event,
    Failed,
    Forget,
    Generate,
    Load,
    Loading,
    Phase,
    Ready,
    Tokenize,
)
from edge.engine.scheduler import Scheduler
from edge.errors import EdgeError
from edge.model import shards

BEAT_S = 1.0
ABORT_EXIT_CODE = 70  # ggml's abort, its text on stderr


class Front:
    """The socket to the front process: send from any thread, receive through a queue."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self.inbox: queue.SimpleQueue[protocol.Request] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, *events: Event) -> None:
        if events:
            with self._lock:
                self._socket.sendall(b"".join(map(protocol.encode, events)))

    def _read(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                self.inbox.put(protocol.decode(line))
        os._exit(0)  # the front is gone: nobody is left to compute for


def serve(front: Front, network: str) -> None:
    """Load what the first message says, then schedule until Close. network: as in Ready."""
    load = front.inbox.get()
    assert isinstance(load, Load)
    settings = load.settings
    path = Path(settings.model)
    n_threads = pin(settings.n_threads, shards.n_bytes(path), settings.cpus)

    from edge.engine import library, llama  # loads libllama: only now, with the affinity set

    keep = library.on_abort(_leave_with_reason)
    loading = llama.Loading(
        n_ctx_tokens=settings.n_ctx_tokens,
        n_ubatch_tokens=settings.n_ubatch_tokens,
        n_sequences=settings.n_slots + 1,  # and the scheduler's spare one
        n_outputs=settings.n_slots + 1,  # libllama aborts on fewer outputs than sequences
        n_threads=n_threads,
        load_mode=settings.load_mode,
        kv_type=settings.kv_type,
        flash_attention=settings.flash_attention,
        n_gpu_layers=settings.n_gpu_layers,
    )
    started_s = time.perf_counter()
    try:
        model = llama.Llama(path, loading, progress=_throttled(lambda share: front.send(Loading(share))))
    except EdgeError as error:
        front.send(Failed.of("", error))
        return
    load_time_s = time.perf_counter() - started_s
    front.send(Ready(model.n_ctx_tokens, settings.n_slots, n_threads, load_time_s, library.system_info(), network))
    prefixes = None
    if settings.prefix_dir is not None:
        prefixes = PrefixStore(
            Path(settings.prefix_dir),
            llama.fingerprint(path, loading),
            n_bytes_max=settings.n_prefix_bytes_max,
            n_bytes_per_day=settings.n_prefix_bytes_per_day,
        )
    scheduler = Scheduler(model, settings, prefixes)
    last_beat_s = 0.0
    while _receive(front, scheduler):
        front.send(*scheduler.admit())  # told before the step: a step that kills us names its requests
        had_work = scheduler.has_work
        events = scheduler.step()
        comes_to_rest = had_work and not scheduler.has_work
        if (now := time.perf_counter()) - last_beat_s >= BEAT_S or comes_to_rest:
            events.insert(0, scheduler.beat())  # who hears of the end knows what is held
            last_beat_s = now
        front.send(*events)
    if prefixes is not None:
        prefixes.finish()
    model.close()
    del keep


def _receive(front: Front, scheduler: Scheduler) -> bool:
    """Hand over every message that waits; with no work, sleep until one comes or a beat is due. False after Close."""
    while True:
        try:
            message = front.inbox.get(block=not scheduler.has_work, timeout=BEAT_S)
        except queue.Empty:
            return True
        match message:
            case Generate():
                front.send(Phase(message.id, "arrived"))
                scheduler.submit(message)
            case Cancel():
                scheduler.cancel(message)
            case AnswerNow():
                scheduler.answer_now(message)
            case Tokenize():
                front.send(scheduler.tokens(message))
            case Detokenize():
                front.send(scheduler.text(message))
            case Forget():
                scheduler.forget(message)
                front.send(scheduler.beat())
            case Close():
                return False


def _throttled(report: Callable[[float], None]) -> Callable[[float], None]:
    """At most ten reports a second, and always the last."""
    last_s = 0.0

    def call(share: float) -> None:
        nonlocal last_s
        now = time.perf_counter()
        if share >= 1 or now - last_s >= 0.1:
            last_s = now
            report(share)

    return call


def _leave_with_reason(reason: str) -> None:
    os.write(2, f"{reason.strip()}\n".encode("utf-8", "replace"))
    os._exit(ABORT_EXIT_CODE)


def _die_with_parent() -> None:
    """Linux: be killed when the parent dies, however it dies. Elsewhere the closed socket ends us."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the front's to handle
    sandbox.volunteer_for_oom()
    network = sandbox.forbid_network() or ""
    serve(Front(socket.socket(fileno=int(sys.argv[1]))), network)


if __name__ == "__main__":
    main()
