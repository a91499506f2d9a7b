"""A text cut into chunks of equal length, and a model that reads them one by one, as llama.cpp's tools do it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.child import Json, Report, leave_with_reason
from convert.texts import read_text
from edge.board.memory import read_memory
from edge.board.topology import pin
from edge.engine import library
from edge.engine.llama import Llama, Loading
from edge.engine.watcher import Watch
from edge.errors import EngineError, TextError
from edge.model import shards

N_BATCH_TOKENS = 256  # at least; small vocabularies get larger batches, whose overhead counts most
N_OUTPUTS_MAX = 512
N_LOGITS = 128 * 151_936  # at a time: 78 MB, and as much again inside the library
READ_SHARE = 0.8  # of memory: a larger model is mapped, not copied


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
        """Load job["model"], which has job["n_vocab"] tokens, for chunks of job["n_ctx"] tokens."""
        path, n_ctx, n_bytes = Path(job["model"]), int(job["n_ctx"]), shards.n_bytes(Path(job["model"]))
        memory = read_memory()
        self._keep = library.on_abort(leave_with_reason)
        self.n_outputs = max(1, min(N_OUTPUTS_MAX, N_LOGITS // job["n_vocab"]))
        loading = Loading(
            n_ctx,
            self.n_outputs if watch else max(N_BATCH_TOKENS, self.n_outputs),  # who watches wants every row to the end
            n_sequences=1,
            n_outputs=self.n_outputs,
            n_threads=pin(job.get("n_threads"), n_bytes),
            load_mode="map" if memory and n_bytes > READ_SHARE * memory.limit_bytes else "read",
        )
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
        begin = 0
        while begin < last:
            end = min(last, begin + self._batch.n_tokens_max, max(begin, first) + self.n_outputs)
            self._decode(chunk.tokens, begin, end, first)
            if end > first:
                yield chunk.tokens[max(begin, first) + 1 : end + 1], self.llama.all_logits(self._batch)
            begin = end

    def read(self, chunk: Chunk) -> None:
        """Compute everything for every token, for the sake of who watches."""
        self.llama.clear()
        for begin in range(0, len(chunk.tokens), self.n_outputs):
            self._decode(chunk.tokens, begin, min(len(chunk.tokens), begin + self.n_outputs), 0)
        self.llama.wait()

    def _decode(self, tokens: list[int], begin: int, end: int, first_output: int) -> None:
        self._batch.clear()
        for i in range(begin, end):
            self._batch.add(tokens[i], i, 0, output=i >= first_output)
        code = self.llama.decode(self._batch)
        if code != 0:
            raise EngineError(f"the model cannot be computed (code {code})", "free some memory, then try again")

    def close(self) -> None:
        self.llama.close()
