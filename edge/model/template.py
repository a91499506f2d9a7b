"""A model's chat template: messages in, text in segments out. Trusts no template, runs none in this process.

A template is a program out of the model file, and no list of forbidden words makes a program harmless: it can loop
10^10 times, double a string forty times, raise 10 to the 10^8, or do so only when the hundredth message arrives, so
having seen it behave once proves nothing. Therefore every render of every template runs in one small helper process
(edge.model.renderer), exec'd, never forked, whose limits the kernel keeps whatever the template does: memory, an alarm
on the clock, no files, no sockets. A helper that dies is a TemplateError; the next render starts another.

What a user types is text: the segments say which characters are the template's own and may hold control tokens.

    with ChatTemplate(info.chat_template, bos=info.bos_text, eos=info.eos_text) as template:
        template.render([{"role": "user", "content": "Hi"}])
        # [Segment("<｜User｜>", is_template=True), Segment("Hi", is_template=False), …]
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import EngineError, RefusedMessagesError, TemplateError

RENDER_TIME_S = 1.5  # a render takes a few ms, on a board too
RENDER_MEMORY_BYTES = 256 << 20  # Python and Jinja alone have 30 MB of addresses
START_TIME_S = 30.0  # a cold SD card, all cores busy
MAX_TEMPLATE_CHARS = 1 << 18  # the longest known has 17,000
MAX_REPLY_BYTES = 128 << 20
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
PASSED_ON = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "TZ")  # no key and no token is among them


@dataclass(frozen=True)
class Segment:
    """A run of rendered text. Only text of the template may be read as control tokens."""

    text: str
    is_template: bool


class ChatTemplate:
    """One template and the helper that renders it. Usable from any thread; renders one at a time.

    Raises TemplateError at once for a template that is empty or too long to be one, otherwise when it is rendered.
    """

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        if not source.strip():
            raise TemplateError("it is empty")
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateError(f"it has {len(source):,} characters, {MAX_TEMPLATE_CHARS:,} at most are read")
        self.source = source
        self._setup = _line(source=source, bos=bos, eos=eos, memory_bytes=RENDER_MEMORY_BYTES, time_s=RENDER_TIME_S)
        self._lock = threading.Lock()
        self._helper: _Helper | None = None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        enable_thinking: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Segment]:
        """Return the prompt in segments, none empty, neighbours different; joined they are the plain render.

        messages: role and content, and what else the template knows, of types that JSON has. Raises TemplateError;
        RefusedMessagesError, a kind of it, when the template itself objects to these messages.
        """
        try:
            request = _line(
                messages=[dict(message) for message in messages],
                tools=None if tools is None else [dict(tool) for tool in tools],
                add_generation_prompt=add_generation_prompt,
                enable_thinking=enable_thinking,
            )
        except RecursionError:
            raise RefusedMessagesError("they are nested too deeply") from None
        with self._lock:
            if self._helper is None or not self._helper.is_alive():
                self._drop()
                self._helper = _Helper(self._setup)
            try:
                reply = self._helper.ask(request, START_TIME_S)
            except _HelperDiedError as error:
                self._drop()
                raise TemplateError(str(error)) from None
        if "refusal" in reply:
            raise RefusedMessagesError(_printable(reply["refusal"]))
        if "problem" in reply:
            raise TemplateError(_printable(reply["problem"]))
        return [Segment(text, is_template) for text, is_template in reply["segments"]]

    def close(self) -> None:
        """End the helper. The next render would start another."""
        with self._lock:
            self._drop()

    def __enter__(self) -> "ChatTemplate":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop(self) -> None:
        if self._helper is not None:
            self._helper.close()
            self._helper = None


class _HelperDiedError(Exception):
    """The helper ended or fell silent; the text says how."""


class _Helper:
    """The process at the other end of a socket. It ends by itself when this end closes."""

    def __init__(self, setup: bytes) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edge.model.renderer"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                cwd=PACKAGE_ROOT,  # -m puts the folder it starts in on the module path: ours, not the user's
                env={"LC_ALL": "C.UTF-8", **{name: os.environ[name] for name in PASSED_ON if name in os.environ}},
            )
        self._buffer = bytearray()
        try:
            self.ask(setup, START_TIME_S)
        except _HelperDiedError as error:
            self.close()
            remedy = "run python -m edge.model.renderer </dev/null to see why, or install edge again"
            raise EngineError(f"the process that renders chat templates does not start ({error})", remedy) from None

    def ask(self, request: bytes, time_s: float) -> dict[str, Any]:
        """Send a line and return the answer. Raises _HelperDiedError."""
        try:
            self._socket.settimeout(time_s)
            self._socket.sendall(request)
            while not self._buffer.endswith(b"\n"):
                piece = self._socket.recv(1 << 20)
                if not piece or len(self._buffer) > MAX_REPLY_BYTES:
                    raise ConnectionError
                self._buffer += piece
        except TimeoutError:
            raise _HelperDiedError("it does not answer") from None
        except OSError:
            raise _HelperDiedError(self._cause()) from None
        line, self._buffer = self._buffer, bytearray()
        reply: dict[str, Any] = json.loads(line.decode("utf-8", "surrogatepass"))
        return reply

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def _cause(self) -> str:
        """What the exit code says."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self._process.poll()
        if code == -signal.SIGALRM:
            return f"it takes longer than {RENDER_TIME_S} s"
        if code == -signal.SIGKILL:
            return "its process was killed, probably for want of memory"
        return f"its process ended with code {code}"

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


def _line(**values: Any) -> bytes:
    """One line of JSON. Surrogates go as they are: escaped, two lone ones would come out as one character."""
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _printable(text: str) -> str:
    """One line without control characters: what a template says may end in a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
