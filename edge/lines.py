"""Lines that a person types: editing, history, completion and several lines at a keyboard; plain lines from a pipe.

Knows no conversation. A terminal that cannot move its cursor (TERM=dumb) gets plain lines too.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

QUOTES = '"""'  # begin and end a text of several lines


def is_screen() -> bool:
    """True for a person at a terminal that can do more than print."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Lines:
    """What is typed, one text at a time. commands: what is completed behind a slash, with its explanation."""

    def __init__(self, commands: Mapping[str, str], path: Path) -> None:
        """path: where typed lines are kept; if it cannot be written they are kept while the program runs."""
        self._is_person = sys.stdin.isatty() and sys.stdout.isatty()
        self._session: "PromptSession[str] | None" = _session(commands, path) if is_screen() else None  # noqa: UP037

    def read(self, default: str = "") -> str:
        """The next text, without white space around it. Raises EOFError, KeyboardInterrupt.

        default: stands there already, to be edited; without a screen it is the text if nothing is typed.
        """
        if self._session is not None:
            text = self._session.prompt(default=default)
            text = text.strip().removeprefix(QUOTES).removesuffix(QUOTES)
        else:
            text = self._plain() or default
        return text.encode("utf-8", "replace").decode().replace("\0", "").strip()  # bytes that were no UTF-8

    def _plain(self) -> str:
        line = input("> " if self._is_person else "").strip()
        if not line.startswith(QUOTES):
            return line
        lines = [line[len(QUOTES) :]]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(input("… " if self._is_person else ""))
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines)


def _session(commands: Mapping[str, str], path: Path) -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer as Base
    from prompt_toolkit.completion import Completion, PathCompleter
    from prompt_toolkit.document import Document

    class Commands(Base):
        """Commands behind a slash; files behind those that take one."""

        def get_completions(self, document: Document, event: object) -> Iterable[Completion]:
            text = document.text_before_cursor
            command, space, argument = text.partition(" ")
            if space and command in ("/file", "/save"):
                paths: Completer = PathCompleter(expanduser=True)
                yield from paths.get_completions(Document(argument, len(argument)), event)  # type: ignore[arg-type]
            elif text.startswith("/") and not space:
                for name, meaning in commands.items():
                    if name.startswith(text):
                        yield Completion(name, -len(text), display_meta=meaning)

    return PromptSession(
        "> ", history=_typed_before(path), completer=Commands(), complete_while_typing=False,
        multiline=True, prompt_continuation="… ", key_bindings=_keys(),
    )  # fmt: skip


def _typed_before(path: Path) -> "History":
    from prompt_toolkit.history import FileHistory

    class Kept(FileHistory):
        def load_history_strings(self) -> Iterable[str]:
            try:
                return list(super().load_history_strings())
            except (OSError, ValueError):
                return []

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):
                super().store_string(string)

    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    return Kept(str(path))


def _keys() -> "KeyBindings":
    """Enter sends, but inside of quotes; Alt-Enter begins a line; Ctrl-C throws a text away, an empty one leaves."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        text = event.current_buffer.text.strip()
        if text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES)):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys
