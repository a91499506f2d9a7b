"""Replies in a terminal: thought dimmed on stderr, answer plain on stdout, numbers at the end; and the chat loop.

Answers alone go to stdout, so `edge run … > file` keeps what was asked for. Knows no options and no exit codes.
"""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from types import FrameType
from typing import Any

from rich.console import Console
from rich.status import Status

from edge.chat import Conversation
from edge.engine.client import Engine
from edge.engine.protocol import Done, Event, Progress, Text

HELP = """\
/clear         forget the conversation
/system TEXT   set the system prompt and start anew (without TEXT: none)
/think         show or hide thoughts
/bye           leave (also Ctrl-D); Ctrl-C stops an answer
\"\"\"            begin and end a question of several lines"""

notes = Console(stderr=True, highlight=False)  # thought, progress, numbers


@contextlib.contextmanager
def loading(name: str) -> Iterator[Any]:
    """Show that a model loads; yields the callback that takes the share done."""
    with notes.status(f"loading {name}") as status:
        yield lambda share: status.update(f"loading {name} {share:.0%}")


@contextlib.contextmanager
def interrupts(engine: Engine) -> Iterator[list[str]]:
    """The first Ctrl-C cancels the request whose id is last in the list, the second raises KeyboardInterrupt."""
    ids: list[str] = []
    is_stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping or not ids:
            raise KeyboardInterrupt
        is_stopping = True
        engine.cancel(ids[-1])

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield ids
    finally:
        signal.signal(signal.SIGINT, before)


def reply(conversation: Conversation, engine: Engine, question: str, *, show_thought: bool) -> Done:
    """Ask, and print the reply as it comes. Returns its numbers."""
    n_dropped_before = conversation.n_dropped_turns
    with interrupts(engine) as ids:
        printer = Printer(show_thought)
        try:
            for event in conversation.ask(question, engine, ids.append):
                printer.show(event)
        finally:
            printer.finish()
    assert printer.done is not None, "a reply ends with Done or an error"
    if n_dropped := conversation.n_dropped_turns - n_dropped_before:
        notes.print(f"[dim]the context is full: forgot the oldest {n_dropped} question(s) and answer(s)[/]")
    notes.print(f"[dim]{summary(printer.done)}[/]")
    return printer.done


class Printer:
    """Writes the events of one reply."""

    def __init__(self, show_thought: bool) -> None:
        self.done: Done | None = None
        self._show_thought = show_thought
        self._last_kind = ""
        self._status: Status | None = None

    def show(self, event: Event) -> None:
        match event:
            case Progress(_, n_done, n_prompt, seconds_left):
                self._say(f"reading the prompt, {n_done} of {n_prompt} tokens, {seconds_left:.0f} s left")
            case Text(_, "thought", _) if not self._show_thought:
                self._say("thinking")
            case Text(_, kind, text):
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
            sys.stdout.write(text)
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
        if self._last_kind == "answer":
            sys.stdout.write("\n")
            sys.stdout.flush()
        elif self._last_kind:
            notes.print()


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
            if isinstance(event, Text):
                texts[event.kind] += event.text
            elif isinstance(event, Done):
                numbers = asdict(event)
                numbers["prefill_tokens_per_s"] = event.prefill_tokens_per_s
                numbers["decode_tokens_per_s"] = event.decode_tokens_per_s
    del numbers["id"]
    return json.dumps({**texts, **numbers}, ensure_ascii=False, indent=1)


def chat(conversation: Conversation, engine: Engine, *, show_thought: bool) -> None:
    """Questions from the keyboard until Ctrl-D, /bye, or Ctrl-C at the prompt. Raises EdgeError."""
    from edge.errors import ContextOverflowError, EngineDiedError

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its history and editing
    notes.print("[dim]Ask a question. /? lists the commands, Ctrl-D leaves.[/]")
    while True:
        try:
            question = _read_question()
        except (EOFError, KeyboardInterrupt):
            notes.print()
            return
        command, _, argument = question.partition(" ")
        match command:
            case "":
                continue
            case "/bye" | "/exit" | "/quit":
                return
            case "/clear":
                conversation.clear()
                notes.print("[dim]forgotten[/]")
            case "/system":
                conversation.system = argument.strip() or None
                conversation.clear()
                notes.print("[dim]new conversation[/]")
            case "/think":
                show_thought = not show_thought
                notes.print(f"[dim]thoughts are {'shown' if show_thought else 'hidden'}[/]")
            case _ if command.startswith("/"):
                notes.print(HELP, style="dim", markup=False)
            case _:
                try:
                    reply(conversation, engine, question, show_thought=show_thought)
                except (ContextOverflowError, EngineDiedError) as error:
                    notes.print(f"[red]{error}[/]")


def _read_question() -> str:
    # input() writes its prompt to stdout; only a person at a keyboard wants one there
    prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    line = input(prompt).strip()
    if not line.startswith('"""'):
        return line
    lines = [line[3:]]
    while not lines[-1].rstrip().endswith('"""'):
        lines.append(input("… " if prompt else ""))
    lines[-1] = lines[-1].rstrip()[:-3]
    return "\n".join(lines).strip()
