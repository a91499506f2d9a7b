"""Stand-ins written by hand: a scripted model behind the scheduler's door, and a clock that only it moves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.config import Sampling

END = 256  # the one end token; all others are bytes
NO_ROOM = 1


@dataclass
class FakeSampler:
    settings: Sampling
    banned: frozenset[int]
    is_closed: bool = False

    def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True


class FakeBatch:
    def __init__(self, n_tokens_max: int) -> None:
        self.n_tokens_max = n_tokens_max
        self.rows: list[tuple[int, int, int, bool]] = []

    def clear(self) -> None:
        self.rows = []

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_free(self) -> int:
        return self.n_tokens_max - len(self.rows)

    def add(self, token: int, position: int, sequence: int, *, output: bool) -> int:
        assert self.n_free > 0, "libllama would abort"
        self.rows.append((token, position, sequence, output))
        return len(self.rows) - 1


@dataclass
class FakeLlama:
    """A model whose tokens are bytes. script(text so far) gives the bytes of the next token, or None for the end.

    Keeps the books of a real KV cache: positions must follow each other, and n_room tokens fit in all sequences.
    """

    script: Callable[[bytes], bytes | None]
    n_ctx_tokens: int = 4096
    n_batch_tokens: int = 256
    n_room: int | None = None
    second_per_token: float = 0.001
    n_vocab: int = 257
    now_s: float = 0.0
    kv: dict[int, list[int]] = field(default_factory=dict)
    widths: list[int] = field(default_factory=list)  # tokens of each decode
    codes: list[int] = field(default_factory=list)  # what the next decodes return, before 0 again
    samplers: list[FakeSampler] = field(default_factory=list)
    _logits: NDArray[np.float32] | None = None

    def clock(self) -> float:
        return self.now_s

    def tokenize(self, text: str, *, control: bool) -> list[int]:
        return list(text.encode())

    def tokenize_segments(self, segments: Sequence[tuple[str, bool]]) -> list[int]:
        return [token for text, control in segments for token in self.tokenize(text, control=control)]

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < END else b"<end>"

    def is_end(self, token: int) -> bool:
        return token == END

    def end_tokens(self) -> list[int]:
        return [END]

    def control_tokens(self) -> list[int]:
        return [END]

    def new_batch(self) -> FakeBatch:
        return FakeBatch(self.n_batch_tokens)

    def new_sampler(self, settings: Sampling, banned: Sequence[int] = ()) -> FakeSampler:
        self.samplers.append(FakeSampler(settings, frozenset(banned)))
        return self.samplers[-1]

    def decode(self, batch: FakeBatch) -> int:
        assert batch.rows, "an empty batch is invalid"
        if self.codes and (code := self.codes.pop(0)):
            return code
        if self.n_room is not None and sum(map(len, self.kv.values())) + len(batch) > self.n_room:
            return NO_ROOM
        for token, position, sequence, _ in batch.rows:
            held = self.kv.setdefault(sequence, [])
            assert position == len(held), f"position {position} in a sequence of {len(held)}"
            held.append(token)
        self.widths.append(len(batch))
        self.now_s += self.second_per_token * len(batch)
        self._rows = list(batch.rows)
        return 0

    def logits(self, index: int) -> NDArray[np.float32]:
        """As if every token were as likely as any other; what is masked here may not be sampled."""
        self._logits = np.zeros(self.n_vocab, np.float32)
        return self._logits

    def sample(self, sampler: FakeSampler, index: int) -> int:
        assert not sampler.is_closed
        if self._logits is not None:
            logits, self._logits = self._logits, None
            return int(np.argmax(logits))
        _, _, sequence, output = self._rows[index]
        assert output, "no logits there: libllama would abort"
        piece = self.script(bytes(self.kv[sequence]))
        if piece is None and END in sampler.banned:
            return ord("!")
        return END if piece is None else piece[0]

    def remove(self, sequence: int, start: int = 0, end: int = -1) -> bool:
        assert end == -1
        del self.kv.setdefault(sequence, [])[start:]
        return True

    def copy(self, source: int, target: int, end: int) -> None:
        assert not self.kv.get(target), "the target is emptied first"
        self.kv[target] = self.kv[source][:end]

    def save_sequence(self, sequence: int) -> bytes:
        return bytes(self.kv[sequence])

    def load_sequence(self, sequence: int, state: bytes) -> bool:
        assert not self.kv.get(sequence), "the sequence is emptied first"
        self.kv[sequence] = list(state)
        return True


def replies(*pairs: tuple[str, str]) -> Callable[[bytes], bytes | None]:
    """A script: after this prompt, that reply, then the end. Text fed in between by the scheduler is stepped over."""
    table = [(prompt.encode(), reply.encode()) for prompt, reply in pairs]

    def script(text: bytes) -> bytes | None:
        for prompt, reply in table:
            if text.startswith(prompt):
                said = text[len(prompt) :]
                if reply.startswith(said):
                    return reply[len(said) : len(said) + 1] or None
                return None
        raise AssertionError(f"no reply is written for {text!r}")

    return script
