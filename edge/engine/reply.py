"""One reply in the making: outputs of the model in, text and log-probabilities out, until it ends.

Thought, answer, constraint, stop strings and limits meet here. Knows no batch and no KV cache: it says which tokens
are fed next, and the scheduler feeds them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.config import MIN_ANSWER_TOKENS
from edge.engine.door import Door
from edge.engine.grammar import Matcher
from edge.engine.loops import LoopDetector
from edge.engine.protocol import Event, FinishReason, Generate, Kind, Text, TokenLogprob
from edge.engine.reasoning import CLOSING, Reasoning, opens_thought
from edge.text import CharacterStream, StopMatcher


@dataclass(frozen=True)
class Ending:
    """How a reply ended. stop: the stop string that ended the answer."""

    reason: FinishReason
    stop: str | None = None


class Reply:
    """What the model says to one request. tell: gets each event as it happens."""

    def __init__(
        self,
        llama: Door,
        request: Generate,
        n_prompt_tokens: int,
        matcher: Matcher | None,
        end_tokens: list[int],
        tell: Callable[[Event], None],
    ) -> None:
        self.n_thought_tokens = self.n_answer_tokens = 0
        self.answers_now = False  # the thought has to end: asked for, or it goes round in circles
        self._llama = llama
        self._request = request
        self._n_prompt_tokens = n_prompt_tokens
        self._matcher = matcher
        self._end_tokens = end_tokens
        self._tell = tell
        self._sampler = llama.new_sampler(request.sampling, end_tokens if request.ignore_end else [])
        self._reasoning = _reasoning(request)
        self._is_silent = True  # no answer text was shown yet
        self._loops = LoopDetector()
        self._characters = CharacterStream()
        self._stops = StopMatcher(request.stops)

    @property
    def n_output_tokens(self) -> int:
        return self.n_thought_tokens + self.n_answer_tokens

    def next(self, index: int, n_held_tokens: int) -> list[int] | Ending:
        """Go on by the output at a batch's index: the tokens to feed next, or the end.

        n_held_tokens: what the KV cache holds of this reply and its prompt. Raises ConstraintDeadEndError.
        """
        reasoning = self._reasoning
        token = self._sample(index)
        is_end = self._llama.is_end(token) or token in self._request.stop_tokens
        if is_end and reasoning.phase == "answer" and self.n_thought_tokens and self._is_silent:
            token, is_end = self._sample_unended(index), False  # the answer is never empty
        if is_end:
            return self._close_thought([]) if reasoning.phase == "thought" else self.end("stop")
        was_thinking = reasoning.phase != "answer"
        if reasoning.phase == "thought":
            self.n_thought_tokens += 1
        else:
            self.n_answer_tokens += 1
        if stop := self._show(self._characters.feed(self._llama.piece(token))):
            return Ending("stop", stop)
        todo = [token]
        if self._matcher is not None and reasoning.phase == "answer":
            if was_thinking:  # the blank line behind the tag is not the constraint's to allow
                todo += self._llama.tokenize("\n\n", control=True)
            elif self._matcher.is_complete:
                return self.end("stop")
        limit = self._request.max_tokens
        if n_held_tokens + 1 >= self._llama.n_ctx_tokens:
            return self.end("length")
        if reasoning.phase == "thought":
            if self.answers_now or self.n_thought_tokens >= self._thought_limit():
                return self._close_thought(todo)
        elif limit is not None and self.n_output_tokens >= limit:
            return self.end("length")
        return todo

    def end(self, reason: FinishReason) -> Ending:
        """Show what was held back, and end."""
        if (stop := self._show(self._characters.finish())) is None:
            for kind, piece in [*self._reasoning.finish(), ("answer", self._stops.finish())]:
                if piece:
                    self._tell(Text(self._request.id, kind, piece))
        return Ending(reason, stop)

    def close(self) -> None:
        self._sampler.close()

    def _sample(self, index: int) -> int:
        """The next token; its log-probability is told if that was asked for."""
        n_logprobs = self._request.n_logprobs
        logprobs = None if n_logprobs is None else log_softmax(self._llama.logits(index))
        token = self._chosen(index)
        if logprobs is not None and n_logprobs is not None:
            best = np.argsort(-logprobs, kind="stable")[:n_logprobs].tolist()
            top = tuple((self._text(other), float(logprobs[other])) for other in best)
            kind: Kind = "answer" if self._reasoning.phase == "answer" else "thought"
            self._tell(TokenLogprob(self._request.id, kind, self._text(token), float(logprobs[token]), top))
        return token

    def _chosen(self, index: int) -> int:
        """The next token, one that the constraint allows where the answer has begun."""
        matcher, reasoning = self._matcher, self._reasoning
        if matcher is not None and reasoning.phase == "start":
            # the model may open a thought itself; nothing else may stand before what the constraint allows
            token = self._llama.sample(self._sampler, index)
            if reasoning.may_open(self._text(token)):
                return token
            reasoning.answer()
        if matcher is None or reasoning.phase != "answer":
            return self._llama.sample(self._sampler, index)
        matcher.mask(self._llama.logits(index))
        token = self._llama.sample(self._sampler, index)
        matcher.accept(token)
        return token

    def _sample_unended(self, index: int) -> int:
        """Sample this step's output again with the end tokens banned."""
        sampler = self._llama.new_sampler(self._request.sampling, self._end_tokens)
        token = self._llama.sample(sampler, index)
        sampler.close()
        return token

    def _text(self, token: int) -> str:
        return self._llama.piece(token).decode("utf-8", "replace")

    def _thought_limit(self) -> int:
        """Thought tokens allowed: the request's own limit, and what leaves room for an answer."""
        room = self._llama.n_ctx_tokens - self._n_prompt_tokens
        total = room if self._request.max_tokens is None else min(room, self._request.max_tokens)
        limit = total - min(MIN_ANSWER_TOKENS, total // 2)
        asked = self._request.max_thought_tokens
        return limit if asked is None else min(limit, asked)

    def _close_thought(self, todo: list[int]) -> list[int]:
        """Feed the closing tag behind what is still to be fed, and go on with the answer."""
        self._show(self._characters.finish() + CLOSING)
        return todo + self._llama.tokenize(CLOSING, control=True)

    def _show(self, text: str) -> str | None:
        """Tell what can be shown; returns the stop string that ended the answer, if one did."""
        for kind, piece in self._reasoning.feed(text):
            if kind == "answer":
                piece, stop = self._stops.feed(piece)
                if piece:
                    self._is_silent = False
                    self._tell(Text(self._request.id, kind, piece))
                if stop is not None:
                    return stop
            else:
                self.answers_now |= self._loops.feed(piece)
                self._tell(Text(self._request.id, kind, piece))
        return None


def _reasoning(request: Generate) -> Reasoning:
    """Where a reply to request begins. One that goes on in the middle of a sentence keeps its first space."""
    goes_on: Kind | None = "thought" if request.inside_thought else None if request.thinks else "answer"
    phase: Literal["start", "thought", "answer"]
    if goes_on is not None:
        phase = goes_on
    else:
        phase = "thought" if opens_thought("".join(text for text, _ in request.segments[-2:])) else "start"
    return Reasoning(phase, _shown=goes_on)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural log-probabilities (n_vocab,) of logits (n_vocab,)."""
    shifted = logits - logits.max()
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum())
    return result
