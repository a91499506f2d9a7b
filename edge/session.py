"""`edge chat`: questions and commands from a keyboard or a pipe, one conversation at a time, kept in the history.

Every reply is a node of the stored tree, so retrying, editing and undoing lose nothing. Knows no options and no exit
codes; edge.terminal prints, edge.lines reads.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.markup import escape

from edge import terminal
from edge.chat import Conversation, Dropped, Partial, prompt_messages
from edge.config import data_dir
from edge.documents import read_text
from edge.engine.client import Engine
from edge.engine.protocol import Event
from edge.errors import DocumentError, EdgeError, EngineDownError, OutputError
from edge.history import History
from edge.lines import Lines
from edge.messages import Attachment, Message, Settings, shortened
from edge.messages import Conversation as Talk
from edge.recording import Recording
from edge.terminal import notes
from edge.transfer import export_json, export_markdown

N_LISTED = 20
COMMANDS = {
    "/help": "this list",
    "/new": "begin a new conversation",
    "/list": "the latest conversations",
    "/open": "N or ID: go on with one of the list",
    "/search": "WORDS: conversations that hold them",
    "/system": "TEXT: begin anew with this system prompt; without TEXT: with none",
    "/think": "show or hide thoughts; N: give them N tokens",
    "/now": "answer from the thought that was stopped",
    "/continue": "go on with a reply that was cut",
    "/retry": "another reply to the last question",
    "/edit": "ask the last question anew, changed",
    "/undo": "take the last question and its answer back",
    "/file": "PATH: attach a text or PDF to the next question",
    "/save": "PATH: write the conversation as Markdown, or as JSON if it ends in .json",
    "/clear": "empty this conversation, and its memory in the engine",
    "/stats": "tokens, context, memory",
    "/exit": "leave (also Ctrl-D)",
}
OTHER_NAMES = {"/bye": "/exit", "/quit": "/exit", "/?": "/help", "/go": "/continue"}
KEYS = 'Alt-Enter or """ for several lines; Ctrl-C stops an answer, Ctrl-\\ ends its thought'


class SessionError(EdgeError):
    """A command that makes no sense now; the text says what would."""


class LeaveError(Exception):
    """The user wants to go."""


@dataclass
class Session:
    """One person's chat. base: template, sampling and limits as the command line gave them."""

    base: Conversation
    engine: Engine
    history: History
    show_thought: bool
    talk: Talk | None = None  # none until the first question
    leaf: str | None = None
    settings: Settings = field(default_factory=Settings)  # of the next new conversation
    files: list[Attachment] = field(default_factory=list)  # for the next question
    _listed: list[Talk] = field(default_factory=list)
    _kept: str | None = None  # the first message that the context has room for
    _n_used_tokens: int = 0
    _told: str | None = None

    def run(self) -> None:
        """Read and answer until the end. Raises EngineDownError."""
        lines = Lines(COMMANDS, data_dir() / "typed")
        if self.settings.system is None and self.base.system:
            self.settings = replace(self.settings, system=self.base.system)
        notes.print("[dim]Ask a question. /help lists the commands, Ctrl-D leaves.[/]")
        self._tell_problem()
        while True:
            try:
                self._obey(lines.read(), lines)
            except (EOFError, KeyboardInterrupt, LeaveError):
                notes.print()
                return
            except EngineDownError:
                raise
            except EdgeError as error:
                notes.print(f"[red]{escape(str(error))}[/]", soft_wrap=True)

    def _obey(self, text: str, lines: Lines) -> None:
        word, _, argument = text.partition(" ")
        argument = argument.strip()
        match OTHER_NAMES.get(word, word):
            case "":
                return
            case "/help":
                self._say("\n".join(f"{name:<10} {meaning}" for name, meaning in COMMANDS.items()) + f"\n{KEYS}")
            case "/new":
                self._begin()
            case "/system":
                self.settings = replace(self.settings, system=argument or None)
                self.base.system = None
                self._begin()
            case "/list":
                self._list(self.history.find(folder=argument or None, limit=N_LISTED))
            case "/search":
                self._list(self.history.find(argument, limit=N_LISTED) if argument else [])
            case "/open":
                self._open(argument)
            case "/think":
                self._think(argument)
            case "/now":
                self._go_on(answers_now=True)
            case "/continue":
                self._go_on(answers_now=False)
            case "/retry":
                self._answer(self._last_question().id)
            case "/edit":
                self._edit(argument, lines)
            case "/undo":
                self._move(self._last_question().parent)
                self._say("taken back")
            case "/file":
                self._attach(argument)
            case "/save":
                self._save(argument)
            case "/clear":
                self._clear()
            case "/stats":
                self._stats()
            case "/exit":
                raise LeaveError
            case _ if word.startswith("/"):
                raise SessionError(f"there is no command {word[:40]}; /help lists them")
            case _:
                self._ask(text, self.leaf)

    # ---- replies

    def _ask(self, question: str, parent: str | None) -> None:
        if self.talk is None:
            self.talk = self.history.create(settings=self.settings)
        files, self.files = self.files, []
        before = self.leaf
        asked = self.history.add_question(self.talk.id, question, parent=parent, attachments=files)
        try:
            self._answer(asked.id)
        except EdgeError:
            if not self.history.branch(self.talk.id, self.leaf)[-1].content:  # nothing came of it: as it was before
                self.history.remove_message(self.talk.id, asked.id)
                self._move(before)
                self.files = files
            raise

    def _answer(self, question: str) -> None:
        """A new reply to a question that is stored."""
        assert self.talk is not None
        self._write(self.history.begin_reply(self.talk.id, question), None)

    def _go_on(self, *, answers_now: bool) -> None:
        last = self._last()
        if last.role != "assistant" or last.finish_reason == "stop":
            raise SessionError("the last reply is whole; /retry makes another")
        if answers_now and (last.content or not last.reasoning):
            raise SessionError("no thought was stopped; stop one with Ctrl-C, or end it with Ctrl-\\")
        assert self.talk is not None
        partial = Partial(last.reasoning or "", last.content, answers_now=answers_now)
        self._write(self.history.resume_reply(self.talk.id, last.id), partial)

    def _write(self, reply: Message, partial: Partial | None) -> None:
        """Generate, print and keep one reply."""
        assert self.talk is not None
        self.leaf = reply.id
        branch = self.history.branch(self.talk.id, reply.parent)
        start = next((i for i, message in enumerate(branch) if message.id == self._kept), 0)
        conversation = replace(self.base, messages=prompt_messages(branch[start:]), partial=partial, id=self.talk.id)
        conversation.set(self.talk.settings)
        recording = Recording(self.history, reply)

        def keep(event: Event | Dropped) -> None:
            recording.take(event)
            if recording.is_due:
                recording.save()

        def start_reply(started: Callable[[str], None]) -> Iterator[Event | Dropped]:
            return conversation.reply(self.engine, started)

        reason: str | None = "error"
        try:
            done = terminal.show(start_reply, self.engine, show_thought=self.show_thought, note=keep)
            reason, self._n_used_tokens = None, done.n_prompt_tokens + done.n_output_tokens
        except KeyboardInterrupt:
            reason = "cancelled"
            raise
        finally:
            recording.finish(reason)
            if conversation.n_dropped_turns:
                self._kept = branch[start + 2 * conversation.n_dropped_turns].id
            self._tell_problem()

    # ---- where we are

    def _branch(self) -> list[Message]:
        return [] if self.talk is None else self.history.branch(self.talk.id, self.leaf)

    def _last(self) -> Message:
        if branch := self._branch():
            return branch[-1]
        raise SessionError("nothing was asked yet; ask a question")

    def _last_question(self) -> Message:
        self._last()
        return next(message for message in reversed(self._branch()) if message.role == "user")

    def _move(self, leaf: str | None) -> None:
        assert self.talk is not None
        self.leaf = leaf
        self.history.update(self.talk.id, {"leaf": leaf})

    def _begin(self, talk: Talk | None = None) -> None:
        """Another conversation, a new one if none is given; the engine frees the memory of this one."""
        if self.talk is not None:
            self.engine.forget(self.talk.id)
        self.talk, self.leaf = talk, talk.leaf if talk else None
        self.files, self._kept, self._n_used_tokens = [], None, 0
        if talk is None:
            self._say("new conversation")

    def _clear(self) -> None:
        if self.talk is not None:
            self.engine.forget(self.talk.id)
            self.talk = self.history.clear(self.talk.id)
        self.leaf, self.files, self._kept, self._n_used_tokens = None, [], None, 0
        self._say("forgotten")

    # ---- commands

    def _list(self, found: list[Talk]) -> None:
        self._listed = found
        if not found:
            self._say("nothing found")
        for i, talk in enumerate(found, start=1):
            mark = "*" if self.talk is not None and talk.id == self.talk.id else " "
            place = f" [{talk.folder}]" if talk.folder else ""
            self._say(f"{i:>3}{mark} {talk.title or 'without a title'}{place}, {talk.n_messages} messages")
            if talk.snippet:
                self._say(f"       {talk.snippet}")

    def _open(self, which: str) -> None:
        if which.isdecimal() and 1 <= int(which) <= len(self._listed):
            talk = self.history.get(self._listed[int(which) - 1].id)
        else:
            found = [talk for talk in self.history.find(limit=10_000) if which and talk.id.startswith(which)]
            if len(found) != 1:
                raise SessionError("that is no number of the last list, and no one id; see /list")
            talk = found[0]
        self._begin(talk)
        self._say(f"— {talk.title or 'without a title'} —")
        for message in self._branch()[-2:]:
            self._say(f"{'>' if message.role == 'user' else ' '} {shortened(message.content, 500)}")

    def _think(self, argument: str) -> None:
        if not argument:
            self.show_thought = not self.show_thought
            self._say(f"thoughts are {'shown' if self.show_thought else 'hidden'}")
        elif argument.isdecimal() and len(argument) < 7:
            self._set(replace(self._settings(), thinking_budget_tokens=int(argument)))
            self._say(f"a thought has at most {int(argument)} tokens")
        else:
            raise SessionError(f"{argument[:40]} is no number of tokens; try /think 200")

    def _settings(self) -> Settings:
        return self.talk.settings if self.talk is not None else self.settings

    def _set(self, settings: Settings) -> None:
        if self.talk is None:
            self.settings = settings
        else:
            self.talk = self.history.update(self.talk.id, {"settings": settings})

    def _edit(self, argument: str, lines: Lines) -> None:
        question = self._last_question()
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            text = argument or lines.read(default=question.content)
            self.files = [*question.attachments, *self.files]
            self._ask(text, question.parent)

    def _attach(self, argument: str) -> None:
        path = Path(argument).expanduser()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DocumentError(
                argument[:200], (error.strerror or "no file").lower(), "give the path of a file"
            ) from None
        text = read_text(path.name, data)
        n_tokens = len(self.engine.tokenize(((text, False),)))
        if n_tokens >= self.engine.n_ctx_tokens:
            problem = f"it has {n_tokens} tokens, the context holds {self.engine.n_ctx_tokens}"
            raise DocumentError(path.name, problem, "shorten it or start with a larger --ctx")
        self.files.append(Attachment(path.name, text, n_tokens))
        self._say(f"{path.name} goes with the next question, {n_tokens} of {self.engine.n_ctx_tokens} tokens")

    def _save(self, argument: str) -> None:
        self._last()
        assert self.talk is not None
        talk = self.history.get(self.talk.id)
        stem = "".join(c if c.isalnum() else "-" for c in talk.title).strip("-") or talk.id[:8]
        path = Path(argument or f"{stem}.md").expanduser()
        if path.suffix == ".json":
            text = export_json(talk, self.history.messages(talk.id))
        else:
            text = export_markdown(talk, self._branch())
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise OutputError(path, (error.strerror or "cannot be written").lower(), "give another PATH") from None
        self._say(f"saved as {path}")

    def _stats(self) -> None:
        branch = self._branch()
        usages = [message.usage for message in branch if message.usage is not None]
        n_written = sum(usage.completion_tokens for usage in usages)
        self._say(f"context    {self._n_used_tokens} of {self.engine.n_ctx_tokens} tokens")
        self._say(f"written    {n_written} tokens in {len(usages)} replies")
        if usages:
            self._say(
                f"last       {usages[-1].tokens_per_second:.1f} tokens/s, {usages[-1].cached_tokens} tokens cached"
            )
        self._say(f"KV memory  {self.engine.beat.n_kv_tokens} tokens held")
        self._say(f"history    {self.history.path if self.history.saving else 'not saved'}")

    # ---- telling

    def _say(self, text: str) -> None:
        notes.print(text, style="dim", markup=False, soft_wrap=True)

    def _tell_problem(self) -> None:
        """What is wrong with the history, once."""
        if self.history.problem != self._told:
            self._told = self.history.problem
            notes.print(f"[yellow]{escape(self._told or 'saving again')}[/]", soft_wrap=True)
