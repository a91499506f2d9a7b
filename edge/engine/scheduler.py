"""Continuous batching: requests join and leave between steps; each step is one decode of tokens of many of them.

One thread owns a Scheduler and its Llama. Order of a step: admit, fill the batch (generated tokens first, then prompt
chunks bounded by time), decode, sample, emit. Nobody's stream waits for somebody's prompt. Knows nothing of processes,
sockets or chat roles; `FakeLlama` in the tests stands in for the model.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.config import MIN_ANSWER_TOKENS, EngineSettings
from edge.engine.grammar import Grammars
from edge.engine.pace import Pace
from edge.engine.prefix import PrefixStore
from edge.engine.protocol import (
    AnswerNow,
    Beat,
    Cancel,
    Detokenize,
    Detokenized,
    Done,
    Event,
    Failed,
    FinishReason,
    Forget,
    Generate,
    Kind,
    Phase,
    Progress,
    Text,
    Tokenize,
    TokenLogprob,
    Tokens,
)
from edge.engine.reasoning import CLOSING, Reasoning, opens_thought
from edge.engine.stream import Door, Slot, Stream
from edge.errors import (
    BusyError,
    ConstraintDeadEndError,
    ContextOverflowError,
    EdgeError,
    EngineError,
    OutOfRangeError,
)

NO_ROOM = 1  # decode code: the KV pool is full, nothing was changed
MIN_CHUNK_TOKENS = 4  # a prompt moves on by this many a step, however slow the machine is
# Weights are multiplied with rows in groups of 4, left-over rows one by one: on a 1.5B Q4_0 model and two cores a
# step of 3 rows took 171 ms, one of 4 rows 129 ms.
ROW_GROUP = 4
MIN_SHARED_TOKENS = 32  # a shared beginning worth waiting for, or loading
N_CLIENTS_KNOWN = 1000
MIN_KEPT_TOKENS = 256  # a shared beginning worth writing to disk


class Scheduler:
    """Owns the model between load and close. Call `step` for as long as `has_work`."""

    def __init__(
        self,
        llama: Door,
        settings: EngineSettings,
        prefixes: PrefixStore | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._llama = llama
        self._settings = settings
        self._prefixes = prefixes
        self._clock = clock
        self._batch = llama.new_batch()
        self._grammars = Grammars(llama)
        self._end_tokens = llama.end_tokens()
        self._slots = [Slot(i) for i in range(settings.n_slots)]
        self._spare = settings.n_slots  # a sequence that is nobody's, for rows that only fill a group
        self._waiting: deque[Stream] = deque()
        self._active: list[Stream] = []
        self._parked: list[Stream] = []  # had to give their KV room away; back as soon as somebody leaves
        self._outbox: list[Event] = []
        self._n_steps = 0
        self._turns: dict[str, int] = {}  # client -> number of its last admission, the longest ago first
        self._n_admitted = 0
        self._pace = Pace()

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._active or self._parked or self._outbox)

    # ---- requests

    def submit(self, request: Generate) -> None:
        """Queue a request; a request that can never run fails at once, as an event."""
        try:
            self._waiting.append(self._stream(request))
            self._outbox.append(Phase(request.id, "waiting"))
        except EdgeError as error:
            self._outbox.append(Failed.of(request.id, error))

    def _stream(self, request: Generate) -> Stream:
        if len(self._waiting) >= self._settings.n_queue:
            raise BusyError(n_waiting=len(self._waiting))
        prompt = self._llama.tokenize_segments(request.segments)
        n_question = len(self._llama.tokenize_segments(request.segments[:-1]))
        n_ctx = self._llama.n_ctx_tokens
        if not prompt:
            raise EngineError("the prompt is empty", "type a question")
        if len(prompt) + min(request.min_reply_tokens, n_ctx // 4) >= n_ctx:
            raise ContextOverflowError(len(prompt), n_ctx)
        # a reply that goes on in the middle of a sentence: its first space counts
        goes_on: Kind | None = "thought" if request.inside_thought else None if request.thinks else "answer"
        if goes_on is not None:
            phase: Literal["start", "thought", "answer"] = goes_on
        else:
            phase = "thought" if opens_thought("".join(text for text, _ in request.segments[-2:])) else "start"
        return Stream(
            request=request,
            arrived_s=self._clock(),
            todo=prompt,
            reasoning=Reasoning(phase, _shown=goes_on),
            sampler=self._llama.new_sampler(request.sampling, self._end_tokens if request.ignore_end else []),
            matcher=self._grammars.matcher(request.constraint) if request.constraint else None,
            n_prompt_tokens=len(prompt),
            n_question_tokens=n_question or len(prompt),
        )

    def cancel(self, message: Cancel) -> None:
        """End a request wherever it is; its slot is free at once."""
        for stream in self._streams():
            if stream.request.id == message.id:
                self._finish(stream, "cancelled", flush=False)

    def answer_now(self, message: AnswerNow) -> None:
        """Close a running request's thought at the next step."""
        for stream in self._streams():
            if stream.request.id == message.id:
                stream.answers_now = True

    def tokens(self, message: Tokenize) -> Event:
        """The tokens of a text."""
        return Tokens(message.id, tuple(self._llama.tokenize_segments(message.segments)))

    def text(self, message: Detokenize) -> Event:
        """The text of tokens, control tokens spelled out; Failed if one is not in the vocabulary."""
        n_vocab = self._llama.n_vocab
        for token in message.tokens:
            if not 0 <= token < n_vocab:
                return Failed.of(message.id, OutOfRangeError("token", token, 0, n_vocab - 1))
        return Detokenized(message.id, b"".join(map(self._llama.piece, message.tokens)).decode("utf-8", "replace"))

    def forget(self, message: Forget) -> None:
        """Empty every slot that holds a conversation's text and is not at work."""
        at_work = [stream.slot for stream in self._active]
        for slot in self._slots:
            if slot.conversation and slot.conversation == message.conversation and slot not in at_work:
                self._llama.remove(slot.sequence)
                slot.tokens, slot.conversation = [], ""

    def beat(self) -> Beat:
        """How full it is."""
        n_kv_tokens = sum(len(slot.tokens) for slot in self._slots)
        return Beat(len(self._active), len(self._waiting) + len(self._parked), n_kv_tokens)

    def _streams(self) -> list[Stream]:
        return [*self._waiting, *self._parked, *self._active]

    # ---- one step

    def step(self) -> list[Event]:
        """Move every admitted request on by one decode. Returns what happened, in order."""
        self._n_steps += 1
        if self._active:
            self._fill()
            started_s = self._clock()
            code = self._llama.decode(self._batch)
            self._llama.remove(self._spare)
            if code == 0:
                self._advance(self._clock() - started_s)
            elif code == NO_ROOM:
                self._make_room()
            else:
                self._fail_batch(code)
        return self._drain()

    def _drain(self) -> list[Event]:
        events, self._outbox = self._outbox, []
        return events

    def admit(self) -> list[Event]:
        """Give waiting requests a free slot, the one that already holds most of their beginning."""
        while self._waiting and len(self._active) < len(self._slots):
            stream = self._next_waiting()
            if stream is None:
                break
            self._waiting.remove(stream)
            self._turns.pop(stream.request.client, None)
            self._turns[stream.request.client] = self._n_admitted = self._n_admitted + 1
            if len(self._turns) > N_CLIENTS_KNOWN:
                del self._turns[next(iter(self._turns))]
            stream.slot = self._slot_for(stream.todo)
            stream.slot.conversation = stream.request.conversation
            n_shared = len(stream.slot.tokens)
            del stream.todo[:n_shared]
            if stream.n_parked == 0:
                stream.n_cached_tokens = n_shared
                stream.started_s = self._clock()
                stream.slot.n_question_tokens = stream.n_question_tokens
            self._active.append(stream)
            self._outbox.append(Phase(stream.request.id, "running"))
        return self._drain()

    def _slot_for(self, tokens: list[int]) -> Slot:
        """A free slot that holds as much of the beginning of tokens as any slot or the disk has."""
        free = [slot for slot in self._slots if all(other.slot is not slot for other in self._active)]
        best = max(self._slots, key=lambda slot: _shared(slot.tokens, tokens))
        # the last prompt token is always decoded: its logits are needed
        n_shared = min(_shared(best.tokens, tokens), len(tokens) - 1)
        is_branch = n_shared < best.n_question_tokens  # else it is the next turn of the same conversation
        slot = best if best in free else min(free, key=lambda slot: slot.last_used)
        if slot is best:
            self._llama.remove(slot.sequence, n_shared)
        else:
            self._llama.remove(slot.sequence)
            if n_shared:
                self._llama.copy(best.sequence, slot.sequence, n_shared)
        slot.tokens = tokens[:n_shared]
        if self._prefixes is not None:
            self._restore(slot, tokens, self._prefixes)
            if is_branch and n_shared >= MIN_KEPT_TOKENS and len(slot.tokens) == n_shared:
                self._keep(slot, self._prefixes)
        return slot

    def _restore(self, slot: Slot, tokens: list[int], prefixes: PrefixStore) -> None:
        """Put a beginning from disk into the slot if it is worth it."""
        entry = prefixes.longest(tokens)
        if entry is None or entry.n_tokens < len(slot.tokens) + MIN_SHARED_TOKENS:
            return
        if (state := prefixes.load(entry)) is None:
            return
        self._llama.remove(slot.sequence)
        if self._llama.load_sequence(slot.sequence, state):
            slot.tokens = tokens[: entry.n_tokens]
        else:  # no room in the pool, or libllama would not have it
            self._llama.remove(slot.sequence)
            slot.tokens = []

    def _keep(self, slot: Slot, prefixes: PrefixStore) -> None:
        """Save the slot's tokens: two different requests began with them."""
        if prefixes.wants(slot.tokens):
            prefixes.save(slot.tokens, self._llama.save_sequence(slot.sequence))

    def _next_waiting(self) -> Stream | None:
        """The oldest request of the client with the fewest running, the one served longest ago among equals; none if
        all had better wait a little.

        A request that shares much with a prompt being read waits for it: what is read once need not be read again.
        """
        running = Counter(stream.request.client for stream in self._active)
        ready = [stream for stream in self._waiting if not self._is_being_read(stream)]
        return min(
            ready,
            key=lambda stream: (running[stream.request.client], self._turns.get(stream.request.client, 0)),
            default=None,
        )

    def _is_being_read(self, stream: Stream) -> bool:
        held = max(_shared(slot.tokens, stream.todo) for slot in self._slots)
        return any(
            other.slot is not None and _shared(other.slot.tokens + other.todo, stream.todo) >= held + MIN_SHARED_TOKENS
            for other in self._active
            if other.is_prompt
        )

    def _fill(self) -> None:
        """First one token for every generating stream, then prompt chunks, shortest remaining prompt first."""
        batch = self._batch
        batch.clear()
        for stream in self._active:
            stream.fed, stream.output_index = [], -1
        generating = [stream for stream in self._active if len(stream.todo) == 1 and not stream.is_prompt]
        reading = sorted((s for s in self._active if s not in generating), key=lambda s: len(s.todo))
        for stream in generating:
            self._put(stream, 1)
        n_rows_max = batch.n_tokens_max
        if generating:
            n_in_time = self._pace.n_rows_within(self._settings.step_time_s) // ROW_GROUP
            n_at_least = -(-(len(generating) + MIN_CHUNK_TOKENS) // ROW_GROUP)
            n_rows_max = min(n_rows_max, max(n_at_least, n_in_time) * ROW_GROUP)
        for stream in reading:
            if (n_free := n_rows_max - len(batch)) > 0:
                self._put(stream, min(n_free, len(stream.todo)))
        if len(batch) % ROW_GROUP == ROW_GROUP - 1 and batch.n_free:
            batch.add(0, 0, self._spare, output=False)  # a full group costs less than one row short of it

    def _put(self, stream: Stream, n_tokens: int) -> None:
        """Add the first n_tokens of todo; logits are wanted only behind its last token."""
        slot = stream.slot
        assert slot is not None
        stream.fed, stream.todo = stream.todo[:n_tokens], stream.todo[n_tokens:]
        index = -1
        for i, token in enumerate(stream.fed, start=1):
            wanted = i == n_tokens and not stream.todo
            index = self._batch.add(token, len(slot.tokens), slot.sequence, output=wanted)
            slot.tokens.append(token)
        stream.output_index = -1 if stream.todo else index
        slot.last_used = self._n_steps

    def _advance(self, elapsed_s: float) -> None:
        """After a good decode: sample where a prompt is complete, report progress where it is not."""
        n_tokens = len(self._batch)
        if n_tokens >= 2 * ROW_GROUP:  # in smaller batches reading the weights takes the time, not the rows
            self._pace.observe(n_tokens, elapsed_s)
        for stream in list(self._active):
            if stream.output_index >= 0:
                try:
                    self._take(stream, self._sample(stream))
                except ConstraintDeadEndError as error:
                    self._outbox.append(Failed.of(stream.request.id, error))
                    self._leave(stream)
            elif stream.is_prompt:
                left_s = len(stream.todo) * self._pace.s_per_row
                n_done = stream.n_prompt_tokens - len(stream.todo)
                self._outbox.append(Progress(stream.request.id, n_done, stream.n_prompt_tokens, left_s))

    def _sample(self, stream: Stream) -> int:
        """The next token, one that the constraint allows; its log-probability is told if that was asked for."""
        matcher = stream.matcher if stream.reasoning.phase == "answer" else None
        n_logprobs = stream.request.n_logprobs
        logprobs = None if n_logprobs is None else log_softmax(self._llama.logits(stream.output_index))
        if matcher is not None:
            matcher.mask(self._llama.logits(stream.output_index))
        token = self._llama.sample(stream.sampler, stream.output_index)
        if matcher is not None:
            matcher.accept(token)
        if logprobs is not None and n_logprobs is not None:
            best = np.argsort(-logprobs, kind="stable")[:n_logprobs].tolist()
            top = tuple((self._text(other), float(logprobs[other])) for other in best)
            kind: Kind = "answer" if stream.reasoning.phase == "answer" else "thought"
            logprob = TokenLogprob(stream.request.id, kind, self._text(token), float(logprobs[token]), top)
            self._outbox.append(logprob)
        return token

    def _text(self, token: int) -> str:
        return self._llama.piece(token).decode("utf-8", "replace")

    def _take(self, stream: Stream, token: int) -> None:
        """One sampled token: show its text, decide how the stream goes on."""
        reasoning = stream.reasoning
        is_end = self._llama.is_end(token) or token in stream.request.stop_tokens
        if is_end and reasoning.phase == "answer" and stream.n_thought_tokens and stream.is_silent:
            token, is_end = self._sample_unended(stream), False  # the answer is never empty
        stream.last_token_s = self._clock()
        if stream.first_token_s is None:
            stream.first_token_s = stream.last_token_s
        if is_end:
            if reasoning.phase == "thought":
                self._close_thought(stream)
            else:
                self._finish(stream, "stop")
            return
        was_thinking = reasoning.phase != "answer"
        if reasoning.phase == "thought":
            stream.n_thought_tokens += 1
        else:
            stream.n_answer_tokens += 1
        if stop := self._show(stream, stream.characters.feed(self._llama.piece(token))):
            self._finish(stream, "stop", flush=False, stop=stop)
            return
        stream.todo = [token]
        if stream.matcher is not None and reasoning.phase == "answer":
            if was_thinking:  # the blank line behind the tag is not the constraint's to allow
                stream.todo += self._llama.tokenize("\n\n", control=True)
            elif stream.matcher.is_complete:
                self._finish(stream, "stop")
                return
        assert stream.slot is not None
        limit = stream.request.max_tokens
        if len(stream.slot.tokens) + 1 >= self._llama.n_ctx_tokens:
            self._finish(stream, "length")
        elif reasoning.phase == "thought":
            if stream.answers_now or stream.n_thought_tokens >= self._thought_limit(stream):
                self._close_thought(stream)
        elif limit is not None and stream.n_output_tokens >= limit:
            self._finish(stream, "length")

    def _sample_unended(self, stream: Stream) -> int:
        """Sample this step's output again with the end tokens banned."""
        sampler = self._llama.new_sampler(stream.request.sampling, self._end_tokens)
        token = self._llama.sample(sampler, stream.output_index)
        sampler.close()
        return token

    def _thought_limit(self, stream: Stream) -> int:
        """Thought tokens allowed: the request's own limit, and what leaves room for an answer."""
        room = self._llama.n_ctx_tokens - stream.n_prompt_tokens
        total = room if stream.request.max_tokens is None else min(room, stream.request.max_tokens)
        limit = total - min(MIN_ANSWER_TOKENS, total // 2)
        asked = stream.request.max_thought_tokens
        return limit if asked is None else min(limit, asked)

    def _close_thought(self, stream: Stream) -> None:
        """Feed the closing tag behind what is still to be fed, and go on with the answer."""
        stream.todo = stream.todo + self._llama.tokenize(CLOSING, control=True)
        self._show(stream, stream.characters.finish() + CLOSING)

    def _show(self, stream: Stream, text: str) -> str | None:
        """Emit what can be shown; returns the stop string that ended the answer, if one did."""
        for kind, piece in stream.reasoning.feed(text):
            if kind == "answer":
                piece, stop = stream.stops.feed(piece)
                if piece:
                    stream.is_silent = False
                    self._outbox.append(Text(stream.request.id, kind, piece))
                if stop is not None:
                    return stop
            else:
                stream.answers_now |= stream.loops.feed(piece)
                self._outbox.append(Text(stream.request.id, kind, piece))
        return None

    # ---- endings

    def _finish(self, stream: Stream, reason: FinishReason, *, flush: bool = True, stop: str | None = None) -> None:
        """Tell the end and free the slot; its tokens stay in the KV cache for whoever shares them.

        flush: show what was held back, unless a stop string or the user ended the reply.
        """
        if flush and (stop := self._show(stream, stream.characters.finish())) is None:
            held = [*stream.reasoning.finish(), ("answer", stream.stops.finish())]
            self._outbox += [Text(stream.request.id, kind, piece) for kind, piece in held if piece]
        first_s = stream.first_token_s
        now = self._clock()
        self._outbox.append(
            Done(
                id=stream.request.id,
                finish_reason=reason,
                n_prompt_tokens=stream.n_prompt_tokens,
                n_cached_tokens=stream.n_cached_tokens,
                n_thought_tokens=stream.n_thought_tokens,
                n_answer_tokens=stream.n_answer_tokens,
                queue_time_s=(stream.started_s or now) - stream.arrived_s,
                prefill_time_s=(first_s or now) - stream.started_s if stream.started_s else 0.0,
                decode_time_s=stream.last_token_s - first_s if first_s is not None else 0.0,
                stop=stop,
            )
        )
        self._leave(stream)

    def _leave(self, stream: Stream) -> None:
        stream.sampler.close()
        for place in (self._active, self._waiting, self._parked):
            if stream in place:
                place.remove(stream)
        self._waiting.extendleft(self._parked)
        self._parked.clear()

    def _make_room(self) -> None:
        """The KV pool is full: undo this step, then drop what nobody uses, else park the youngest stream."""
        self._undo()
        idle = [slot for slot in self._slots if slot.tokens and all(s.slot is not slot for s in self._active)]
        if idle:
            slot = min(idle, key=lambda slot: slot.last_used)
            self._llama.remove(slot.sequence)
            slot.tokens = []
            return
        youngest = max(self._active, key=lambda stream: stream.arrived_s)
        if len(self._active) == 1:  # alone and still no room
            self._finish(youngest, "length")
            return
        assert youngest.slot is not None
        self._llama.remove(youngest.slot.sequence)
        youngest.todo = youngest.slot.tokens + youngest.todo
        youngest.slot.tokens = []
        youngest.slot = None
        youngest.n_parked += 1
        self._active.remove(youngest)
        self._parked.append(youngest)

    def _undo(self) -> None:
        """Take this step's tokens back out of the books; the library did not keep them."""
        for stream in self._active:
            assert stream.slot is not None
            del stream.slot.tokens[len(stream.slot.tokens) - len(stream.fed) :]
            stream.todo = stream.fed + stream.todo

    def _fail_batch(self, code: int) -> None:
        """A failed decode: only the requests in it are lost, and their sequences are emptied."""
        for stream in [stream for stream in self._active if stream.fed]:
            assert stream.slot is not None
            self._llama.remove(stream.slot.sequence)
            stream.slot.tokens = []
            reason = {-2: "memory ran out while computing", -3: "the computation failed"}.get(code, f"code {code}")
            self._outbox.append(Failed.of(stream.request.id, EngineError(reason, "try a shorter prompt")))
            self._leave(stream)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural log-probabilities (n_vocab,) of logits (n_vocab,)."""
    shifted = logits - logits.max()
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum())
    return result


def _shared(held: list[int], wanted: list[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    n = min(len(held), len(wanted))
    if held[:n] == wanted[:n]:
        return n
    return next(i for i in range(n) if held[i] != wanted[i])
