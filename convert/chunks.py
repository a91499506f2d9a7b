"""A text cut into chunks of equal length, and a model that reads them one by one, as llama.cpp's tools do it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.child import Json, Report, leave_with_reason
from edge.board.topology import pin
from edge.engine import library
from edge.engine.llama import Llama, Loading
from edge.engine.watcher import Watch
from edge.errors import EngineError, TextError

N_BATCH_TOKENS = 256
N_OUTPUTS = 128  # rows of logits at a time: 78 MB for a vocabulary of 152k, and as much again inside the library
N_TEXT_BYTES_MAX = 64 << 20


@dataclass(frozen=True)
class Chunk:
    """n_ctx token ids; the first is the model's BOS if it wants one."""

    tokens: list[int]

    @property
    def first_scored(self) -> int:
        """The first half is context only."""
        return len(self.tokens) // 2

    @property
    def next_tokens(self) -> list[int]:
        """What each scored position should predict."""
        return self.tokens[self.first_scored + 1 :]


class Reader:
    """One model, in this process. Use in a child."""

    def __init__(self, job: Json, report: Report, watch: Watch | None = None) -> None:
        """Load job["model"] for chunks of job["n_ctx"] tokens."""
        path, n_ctx = Path(job["model"]), int(job["n_ctx"])
        n_threads = pin(job.get("n_threads"), path.stat().st_size)
        self._keep = library.on_abort(leave_with_reason)
        n_batch = N_OUTPUTS if watch else N_BATCH_TOKENS  # who watches wants every row computed to the end
        loading = Loading(n_ctx, n_batch, n_sequences=1, n_outputs=N_OUTPUTS, n_threads=n_threads)
        self.llama = Llama(path, loading, lambda share: report("load", int(100 * share), 100), watch)
        self._batch = self.llama.new_batch()

    def chunks(self, job: Json) -> list[Chunk]:
        """The text job["text"] in at most job["n_chunks"] chunks; job["control"]: control tokens are read in it.

        Raises TextError.
        """
        path, n_ctx = Path(job["text"]), int(job["n_ctx"])
        tokens = self.llama.tokenize_document(read_text(path), control=bool(job.get("control")))
        if len(tokens) < 2 * n_ctx:
            problem = f"has {len(tokens):,} tokens for this model, and two chunks of {n_ctx} are the least"
            raise TextError(path, problem, "name a longer text")
        n_chunks = min(len(tokens) // n_ctx, job.get("n_chunks") or len(tokens))
        start = self.llama.chunk_start
        head = [] if start is None else [start]
        return [Chunk(head + tokens[i * n_ctx + len(head) : (i + 1) * n_ctx]) for i in range(n_chunks)]

    def logits(self, chunk: Chunk) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Of each scored position, some at a time: the tokens that follow, and a view (n, n_vocab) of the logits."""
        self.llama.clear()
        first, last = chunk.first_scored, len(chunk.tokens) - 1  # what follows the last is not known
        for begin in range(0, first, N_BATCH_TOKENS):
            self._decode(chunk.tokens, begin, min(first, begin + N_BATCH_TOKENS), output=False)
        for begin in range(first, last, N_OUTPUTS):
            end = min(last, begin + N_OUTPUTS)
            self._decode(chunk.tokens, begin, end, output=True)
            yield chunk.tokens[begin + 1 : end + 1], self.llama.all_logits(self._batch)

    def read(self, chunk: Chunk) -> None:
        """Compute everything for every token, for the sake of who watches."""
        self.llama.clear()
        for begin in range(0, len(chunk.tokens), N_OUTPUTS):
            self._decode(chunk.tokens, begin, min(len(chunk.tokens), begin + N_OUTPUTS), output=True)
        self.llama.wait()

    def _decode(self, tokens: list[int], begin: int, end: int, *, output: bool) -> None:
        self._batch.clear()
        for i in range(begin, end):
            self._batch.add(tokens[i], i, 0, output=output)
        code = self.llama.decode(self._batch)
        if code != 0:
            raise EngineError(f"the model cannot be computed (code {code})", "free some memory, then try again")

    def close(self) -> None:
        self.llama.close()


def read_text(path: Path) -> str:
    """A text file, without the line end at its end, as llama.cpp's tools read it. Raises TextError."""
    try:
        with path.open("rb") as file:
            data = file.read(N_TEXT_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TextError(path, f"cannot be read ({reason})", "name a text file") from error
    if len(data) > N_TEXT_BYTES_MAX:
        raise TextError(path, f"has more than {N_TEXT_BYTES_MAX:,} bytes", "name a shorter text")
    try:
        return data.removesuffix(b"\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(path, f"is not UTF-8 text (byte {error.start})", "name a text file") from error
