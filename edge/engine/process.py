"""One life of the engine process: exec'd, spoken to line by line, and why it ended. Knows not what the lines say.

Never loads libllama: that library ends its process on many inputs, so it lives in a child (edge.engine.worker) that is
exec'd, never forked. Death is the closed socket, silence counts as death.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edge.config import EngineSettings

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
LINE_LIMIT_BYTES = 16 << 20
READ_BYTES = 1 << 16
STDERR_LINES = 20
# Weights in pages of 2 MB where the kernel leaves the choice: reading them all for every token misses the TLB less.
HUGE_PAGES = "glibc.malloc.hugetlb=1"


class EngineProcess:
    """A child with the environment and the patience that settings say. `send` and `kill` work at any time."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def has_met_unknown_instruction(self) -> bool:
        """It ended at an instruction that this CPU does not have, and would again."""
        return self._process is not None and self._process.returncode == -signal.SIGILL

    async def run(self, first: bytes, on_line: Callable[[bytes], None]) -> str:
        """Start it, send the first line, hand over its own until it ends; returns why it did, in words."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "edge.engine.worker", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(self._settings),
                cwd=PACKAGE_ROOT,  # python -m looks for modules there first: never in the user's folder
                start_new_session=True,  # Ctrl-C in the terminal is for the front alone
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        errors = asyncio.create_task(self._read_stderr(self._process))
        self.send(first)
        silence = await self._read(reader, on_line)
        self._writer.close()
        self._writer = None
        if silence is not None:
            self.kill()
        code = await self._process.wait()
        await errors
        return silence or self._cause(code)

    def send(self, line: bytes) -> None:
        """Nothing happens where nobody listens any more."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(line)

    async def ended(self, within_s: float) -> None:
        """Wait for its end, and bring it about when the time is up."""
        if self._process is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), within_s)
            self.kill()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _read(self, reader: asyncio.StreamReader, on_line: Callable[[bytes], None]) -> str | None:
        """Hand over lines until the socket closes (None) or the engine falls silent or raves (why)."""
        timeout_s = self._settings.hang_timeout_s
        rest = b""
        while len(rest) <= LINE_LIMIT_BYTES:
            try:  # many lines at a time: one step of the engine tells something of every stream
                data = await asyncio.wait_for(reader.read(READ_BYTES), timeout_s)
            except asyncio.TimeoutError:
                return f"it did not answer for {timeout_s:.0f} s"
            except ConnectionError:
                return None
            if not data:
                return None
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                on_line(line)
        return f"it sent a line of more than {LINE_LIMIT_BYTES >> 20} MiB"

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            self._stderr.append(line.decode("utf-8", "replace").rstrip())

    def _cause(self, code: int) -> str:
        """Why a process that returned code ended, in words."""
        if code < 0:
            with contextlib.suppress(ValueError):
                name = signal.Signals(-code).name
                return {"SIGKILL": "SIGKILL, perhaps out of memory", "SIGABRT": self._last_words("SIGABRT")}.get(
                    name, name
                )
        return self._last_words(f"exit code {code}")

    def _last_words(self, otherwise: str) -> str:
        words = next((line for line in reversed(self._stderr) if line.strip()), "")
        return f"{otherwise}: {words[:200]}" if words else otherwise


def _environment(settings: EngineSettings) -> dict[str, str]:
    """The engine's variables; what the user says of malloc stays, and what the settings say goes before all."""
    tunables = ":".join(filter(None, (HUGE_PAGES, os.environ.get("GLIBC_TUNABLES"))))
    return {**os.environ, "GGML_NO_BACKTRACE": "1", "GLIBC_TUNABLES": tunables, **dict(settings.environment)}
