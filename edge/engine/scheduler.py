"""Continuous batching: requests join and leave between steps; each step is one decode of tokens of many of them.

One thread owns a Scheduler and its Llama. Order of a step: admit, fill the batch (generated tokens first, then prompt
chunks bounded by time), decode, sample, emit. Nobody's stream waits for somebody's prompt. Knows nothing of processes,
sockets or chat roles, and of a reply only which tokens it wants fed next.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from edge.config import EngineSettings
from edge.engine.door import Door
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
    Forget,
    Generate,
    Phase,
    Progress,
    Tokenize,
    Tokens,
)
from edge.engine.reply import Ending, Reply
from edge.engine.slots import MIN_SHARED_TOKENS, Slot, Slots, n_shared
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
N_CLIENTS_KNOWN = 1000


@dataclass(eq=False)
class Stream:
    """One request on its way: `todo` is fed to the model, then it generates one token a step."""

    request: Generate
    arrived_s: float
    todo: list[int]  # tokens not yet in the KV cache
    reply: Reply
    n_prompt_tokens: int
    n_question_tokens: int  # without the last piece of template, which opens the assistant's turn
    slot: Slot | None = None
    n_cached_tokens: int = 0
    started_s: float = 0.0
    first_token_s: float | None = None
    last_token_s: float = 0.0
    n_parked: int = 0
    fed: list[int] = field(default_factory=list)  # tokens in this step's batch
    output_index: int = -1  # where in the batch its logits are, -1: nowhere

    @property
    def is_prompt(self) -> bool:
        return self.first_token_s is None


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
        self._clock = clock
        self._batch = llama.new_batch()
        self._grammars = Grammars(llama)
        self._end_tokens = llama.end_tokens()
        self._slots = Slots(llama, settings.n_slots, prefixes)
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
        matcher = self._grammars.matcher(request.constraint) if request.constraint else None
        return Stream(
            request=request,
            arrived_s=self._clock(),
            todo=prompt,
            reply=Reply(self._llama, request, len(prompt), matcher, self._end_tokens, self._outbox.append),
            n_prompt_tokens=len(prompt),
            n_question_tokens=n_question or len(prompt),
        )

    def cancel(self, message: Cancel) -> None:
        """End a request wherever it is; its slot is free at once."""
        for stream in self._streams():
            if stream.request.id == message.id:
                self._finish(stream, Ending("cancelled"))

    def answer_now(self, message: AnswerNow) -> None:
        """Close a running request's thought at the next step."""
        for stream in self._streams():
            if stream.request.id == message.id:
                stream.reply.answers_now = True

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
        self._slots.forget(message.conversation, self._at_work)

    def beat(self) -> Beat:
        """How full it is."""
        return Beat(len(self._active), len(self._waiting) + len(self._parked), self._slots.n_tokens)

    @property
    def _at_work(self) -> list[Slot]:
        return [stream.slot for stream in self._active if stream.slot is not None]

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
        events = list(self._outbox)
        self._outbox.clear()  # the replies hold on to this list
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
            stream.slot = self._slots.take(stream.todo, self._at_work, stream.request.conversation)
            stream.slot.conversation = stream.request.conversation
            n_cached = len(stream.slot.tokens)
            del stream.todo[:n_cached]
            if stream.n_parked == 0:
                stream.n_cached_tokens = n_cached
                stream.started_s = self._clock()
                stream.slot.n_question_tokens = stream.n_question_tokens
            self._active.append(stream)
            self._outbox.append(Phase(stream.request.id, "running"))
        return self._drain()

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
        worth = self._slots.n_held(stream.todo) + MIN_SHARED_TOKENS
        return any(
            other.slot is not None and n_shared(other.slot.tokens + other.todo, stream.todo) >= worth
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
                self._go_on(stream)
            elif stream.is_prompt:
                left_s = len(stream.todo) * self._pace.s_per_row
                n_done = stream.n_prompt_tokens - len(stream.todo)
                self._outbox.append(Progress(stream.request.id, n_done, stream.n_prompt_tokens, left_s))

    def _go_on(self, stream: Stream) -> None:
        """Let the reply take this step's output, and feed what it says next."""
        assert stream.slot is not None
        try:
            outcome = stream.reply.next(stream.output_index, len(stream.slot.tokens))
        except ConstraintDeadEndError as error:
            self._outbox.append(Failed.of(stream.request.id, error))
            self._leave(stream)
            return
        stream.last_token_s = self._clock()
        if stream.first_token_s is None:
            stream.first_token_s = stream.last_token_s
        if isinstance(outcome, Ending):
            self._finish(stream, outcome)
        else:
            stream.todo = outcome

    # ---- endings

    def _finish(self, stream: Stream, ending: Ending) -> None:
        """Tell the end and free the slot; its tokens stay in the KV cache for whoever shares them."""
        first_s = stream.first_token_s
        now = self._clock()
        self._outbox.append(
            Done(
                id=stream.request.id,
                finish_reason=ending.reason,
                n_prompt_tokens=stream.n_prompt_tokens,
                n_cached_tokens=stream.n_cached_tokens,
                n_thought_tokens=stream.reply.n_thought_tokens,
                n_answer_tokens=stream.reply.n_answer_tokens,
                queue_time_s=(stream.started_s or now) - stream.arrived_s,
                prefill_time_s=(first_s or now) - stream.started_s if stream.started_s else 0.0,
                decode_time_s=stream.last_token_s - first_s if first_s is not None else 0.0,
                stop=ending.stop,
            )
        )
        self._leave(stream)

    def _leave(self, stream: Stream) -> None:
        stream.reply.close()
        for place in (self._active, self._waiting, self._parked):
            if stream in place:
                place.remove(stream)
        self._waiting.extendleft(self._parked)
        self._parked.clear()

    def _make_room(self) -> None:
        """The KV pool is full: undo this step, then drop what nobody uses, else park the youngest stream."""
        self._undo()
        if self._slots.empty_idle(self._at_work):
            return
        youngest = max(self._active, key=lambda stream: stream.arrived_s)
        if len(self._active) == 1:  # alone and still no room
            self._finish(youngest, youngest.reply.end("length"))
            return
        assert youngest.slot is not None
        youngest.todo = youngest.slot.tokens + youngest.todo
        self._slots.empty(youngest.slot)
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
            self._slots.empty(stream.slot)
            reason = {-2: "memory ran out while computing", -3: "the computation failed"}.get(code, f"code {code}")
            self._outbox.append(Failed.of(stream.request.id, EngineError(reason, "try a shorter prompt")))
            self._leave(stream)
