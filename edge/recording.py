"""One reply on its way into the history: its text as it grows, its numbers when it is done. Knows no engine."""

import time
from collections.abc import Callable

from edge.engine.protocol import Done, Kind, Text
from edge.history import History
from edge.messages import Message, Usage

SAVE_INTERVAL_S = 1.0  # a page that comes back after a crash has lost no more


class Recording:
    """The growing text of one reply. `take` each event, `save` when `is_due`, then `finish`."""

    def __init__(self, history: History, reply: Message, clock: Callable[[], float] = time.monotonic) -> None:
        self.reply = reply
        self.texts: dict[Kind, str] = {"thought": reply.reasoning or "", "answer": reply.content}
        self.done: Done | None = None
        self._history = history
        self._clock = clock
        self._saved_s = clock()
        self._has_news = False

    def take(self, event: object) -> None:
        """Note what the event says of the reply; other events are nothing to it."""
        match event:
            case Text(_, kind, text):
                self.texts[kind] += text
                self._has_news = True
            case Done():
                self.done = event

    @property
    def is_empty(self) -> bool:
        return not any(self.texts.values())

    @property
    def is_due(self) -> bool:
        return self._has_news and self._clock() - self._saved_s >= SAVE_INTERVAL_S

    def save(self) -> None:
        """Keep the text so far."""
        self._saved_s, self._has_news = self._clock(), False
        self._history.grow_reply(self.reply.id, self.texts["answer"], self.texts["thought"] or None)

    def finish(self, reason: str | None = None) -> Message | None:
        """Keep the whole; reason only where the engine gave none. None if the reply was deleted meanwhile."""
        reason = reason or (self.done.finish_reason if self.done else "error")
        texts = self.texts["answer"], self.texts["thought"] or None
        return self._history.finish_reply(self.reply.id, *texts, reason, self._usage())

    def _usage(self) -> Usage | None:
        """The numbers; of a reply that was cut and went on, its tokens all together."""
        done, before = self.done, self.reply.usage
        if done is None:
            return before
        return Usage(
            prompt_tokens=done.n_prompt_tokens,
            cached_tokens=done.n_cached_tokens,
            completion_tokens=done.n_output_tokens + (before.completion_tokens if before else 0),
            reasoning_tokens=done.n_thought_tokens + (before.reasoning_tokens if before else 0),
            seconds_to_first_token=round(done.time_to_first_token_s, 4),
            tokens_per_second=round(done.decode_tokens_per_s, 2),
        )
