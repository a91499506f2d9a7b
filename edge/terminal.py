"""Replies in a terminal: thought dimmed on stderr, answer on stdout, numbers at the end.

Answers alone go to stdout, so `edge run … > file` keeps what was asked for. On a screen an answer is laid out as
Markdown when it is whole. Knows no options and no exit codes.
"""

import contextlib
import json
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status

from edge.chat import Conversation, Dropped
from edge.engine import protocol
from edge.engine.client import Engine
from edge.engine.protocol import Done, Event, Progress
from edge.lines import is_screen

if TYPE_CHECKING:
    from rich.markdown import Markdown
    from rich.text import Text

notes = Console(stderr=True, highlight=False)  # thought, progress, numbers


@contextlib.contextmanager
def loading(name: str) -> Iterator[Any]:
    """Show that a model loads; yields the callback that takes the share done."""
    with notes.status(f"loading {name}") as status:
        yield lambda share: status.update(f"loading {name} {share:.0%}")


@contextlib.contextmanager
def interrupts(engine: Engine) -> Iterator[list[str]]:
    """While a reply is made: the first Ctrl-C cancels the request whose id is last in the list, the second raises
    KeyboardInterrupt; Ctrl-\\ ends the thought."""
    ids: list[str] = []
    is_stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping or not ids:
            raise KeyboardInterrupt
        is_stopping = True
        engine.cancel(ids[-1])

    def hurry(_signal: int, _frame: FrameType | None) -> None:
        if ids:
            engine.answer_now(ids[-1])

    before = signal.signal(signal.SIGINT, stop), signal.signal(signal.SIGQUIT, hurry)
    try:
        yield ids
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGQUIT, before[1])


def reply(conversation: Conversation, engine: Engine, question: str, *, show_thought: bool) -> Done:
    """Ask, and print the reply as it comes. Returns its numbers."""
    return show(lambda started: conversation.ask(question, engine, started), engine, show_thought=show_thought)


def show(
    start: Callable[[Callable[[str], None]], Iterable[Event | Dropped]],
    engine: Engine,
    *,
    show_thought: bool,
    note: Callable[[Event | Dropped], None] = lambda _: None,
) -> Done:
    """Print the events that start yields, as they come. note hears each of them too. Returns the numbers."""
    with interrupts(engine) as ids:
        printer = Printer(show_thought)
        try:
            for event in start(ids.append):
                note(event)
                printer.show(event)
        finally:
            printer.finish()
    assert printer.done is not None, "a reply ends with Done or an error"
    notes.print(f"[dim]{summary(printer.done)}[/]")
    return printer.done


class Printer:
    """Writes the events of one reply."""

    def __init__(self, show_thought: bool) -> None:
        self.done: Done | None = None
        self._show_thought = show_thought
        self._last_kind = ""
        self._status: Status | None = None
        self._answer: GrowingAnswer | None = None

    def show(self, event: Event | Dropped) -> None:
        match event:
            case Dropped(n_turns):
                self._hush()
                notes.print(f"[dim]the context is full: forgot the oldest {n_turns} question(s) and answer(s)[/]")
            case Progress(_, n_done, n_prompt, seconds_left):
                self._say(f"reading the prompt, {n_done} of {n_prompt} tokens, {seconds_left:.0f} s left")
            case protocol.Text(_, "thought", _) if not self._show_thought:
                self._say("thinking")
            case protocol.Text(_, kind, text):
                self._write(kind, text)
            case Done():
                self.done = event

    def _write(self, kind: str, text: str) -> None:
        self._hush()
        if kind == "thought":
            notes.print(text, style="dim italic", end="", markup=False, soft_wrap=True)
        else:
            if self._last_kind == "thought":
                notes.print("\n")
            if self._answer is None and is_screen():
                self._answer = GrowingAnswer()
            if self._answer is not None:
                self._answer.feed(text)
            else:
                sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
                sys.stdout.flush()
        self._last_kind = kind

    def _say(self, text: str) -> None:
        if self._status is None:
            self._status = notes.status(text)
            self._status.start()
        self._status.update(text)

    def _hush(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def finish(self) -> None:
        """End the line the reply stands on."""
        self._hush()
        if self._answer is not None:
            self._answer.finish()
        elif self._last_kind == "answer":
            sys.stdout.write("\n")
            sys.stdout.flush()
        elif self._last_kind:
            notes.print()


class GrowingAnswer:
    """An answer on a screen: its last lines while it grows, the whole as Markdown when it is done."""

    def __init__(self) -> None:
        from rich.live import Live

        self._text = ""
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, transient=True, get_renderable=self._tail, refresh_per_second=8)
        self._live.start()

    def feed(self, text: str) -> None:
        self._text += text

    def _tail(self) -> "Text":
        from rich.text import Text

        size = self._console.size
        lines = Text(self._text[-size.width * size.height :]).wrap(self._console, size.width)
        return Text("\n").join(lines[-max(1, size.height - 2) :])

    def finish(self) -> None:
        self._live.stop()
        self._console.print(markdown(self._text))


def harmless(text: str) -> str:
    """Text without the characters that steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def markdown(text: str) -> "Markdown":
    """Text as a model writes it; its formulas stand as code, for Markdown would eat their backslashes."""
    from rich.markdown import Markdown

    parts = re.split(r"(```.*?(?:```|\Z))", text, flags=re.DOTALL)  # plain, code, plain, …
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\\\[(.+?)\\\]|\$\$(.+?)\$\$", _block, parts[i], flags=re.DOTALL)
        parts[i] = re.sub(r"\\\((.+?)\\\)", r"`\1`", parts[i], flags=re.DOTALL)
    return Markdown("".join(parts))


def _block(found: re.Match[str]) -> str:
    return f"\n```\n{(found[1] or found[2]).strip()}\n```\n"


def summary(done: Done) -> str:
    """12 thought + 8 answer tokens, 31.2 tokens/s, first after 0.12 s"""
    ending = {"length": "; stopped at the token limit", "cancelled": "; stopped"}.get(done.finish_reason, "")
    return (
        f"{done.n_thought_tokens} thought + {done.n_answer_tokens} answer tokens, "
        f"{done.decode_tokens_per_s:.1f} tokens/s, first after {done.time_to_first_token_s:.2f} s{ending}"
    )


def reply_json(conversation: Conversation, engine: Engine, question: str) -> str:
    """Ask, and return the whole reply as one JSON document: thought, answer, finish_reason, counts, times, rates."""
    texts = {"thought": "", "answer": ""}
    numbers: dict[str, Any] = {}
    with interrupts(engine) as ids:
        for event in conversation.ask(question, engine, ids.append):
            if isinstance(event, protocol.Text):
                texts[event.kind] += event.text
            elif isinstance(event, Done):
                numbers = asdict(event)
                numbers["prefill_tokens_per_s"] = event.prefill_tokens_per_s
                numbers["decode_tokens_per_s"] = event.decode_tokens_per_s
    del numbers["id"]
    return json.dumps({**texts, **numbers}, ensure_ascii=False, indent=1)
