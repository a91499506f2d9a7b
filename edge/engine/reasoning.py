"""From thought to answer: splits a reply at </think>, and says when the thought has to end. Knows text, not tokens.

States: start (is there an opening tag?) -> thought -> answer. A model whose prompt ends inside <think> starts in
thought. White space around the tags belongs to neither side.
"""

from dataclasses import dataclass, field
from typing import Literal

from edge.engine.protocol import Kind
from edge.text import StopMatcher

OPEN, CLOSE = "<think>", "</think>"
CLOSING = f"\n{CLOSE}\n\n"  # what is fed to a model whose thought has to end


def opens_thought(prompt: str) -> bool:
    """True if the prompt leaves the model inside a thought, as DeepSeek-R1's template does."""
    return prompt.rstrip().endswith(OPEN)


@dataclass
class Reasoning:
    """One reply. phase: "start" if the model may open a thought itself, else where the reply begins."""

    phase: Literal["start", "thought", "answer"]
    _close: StopMatcher = field(default_factory=lambda: StopMatcher([CLOSE]))
    _head: str = ""  # start: text that may still become <think>
    _blank: str = ""  # white space that is shown only if more of the same kind follows
    _shown: Kind | None = None  # kind of the last text shown; leading white space of each kind is dropped

    def may_open(self, text: str) -> bool:
        """Before the answer: text begins the opening tag, or goes on with it."""
        head = (self._head + text).lstrip()
        return head.startswith(OPEN) or (head != "" and OPEN.startswith(head))

    def answer(self) -> None:
        """There was no thought: what comes now is the answer."""
        self.phase, self._head = "answer", ""

    def feed(self, text: str) -> list[tuple[Kind, str]]:
        """What can be shown now, in order."""
        if self.phase == "start":
            self._head += text
            head = self._head.lstrip()
            if OPEN.startswith(head):  # also while it is empty
                return []
            inside = head.startswith(OPEN)
            self.phase = "thought" if inside else "answer"
            text = head[len(OPEN) :] if inside else self._head
        pieces: list[tuple[Kind, str]] = []
        if self.phase == "thought":
            thought, stop = self._close.feed(text)
            pieces += self._show("thought", thought)
            if stop is None:
                return pieces
            self.phase, text = "answer", self._close.finish()
        return pieces + self._show("answer", text)

    def finish(self) -> list[tuple[Kind, str]]:
        """The text still held back when the reply ends."""
        if self.phase == "start":
            self.phase = "answer"
            return self._show("answer", self._head)
        return self._show("thought", self._close.finish()) if self.phase == "thought" else []

    def _show(self, kind: Kind, text: str) -> list[tuple[Kind, str]]:
        if kind != self._shown:
            text, self._blank = text.lstrip(), ""
        else:
            text = self._blank + text
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        if not shown:
            return []
        self._shown = kind
        return [(kind, shown)]
