"""Will a model fit into this machine's memory? Asked before it is fetched."""

import psutil

from edge.config import N_CTX_TOKENS
from edge.errors import TooLargeError
from edge.model.gguf import ModelInfo

N_OTHER_BYTES = 200_000_000  # compute buffers, vocabulary, the program itself; measured with a 1.5B


def n_memory_bytes(n_file_bytes: int, info: ModelInfo | None = None) -> int:
    """What running a model takes with the usual context; without its header the KV cache is left out."""
    n_kv_bytes = info.kv_bytes_per_token * min(N_CTX_TOKENS, info.n_ctx_train) if info else 0
    return n_file_bytes + n_kv_bytes + N_OTHER_BYTES


def check_memory(name: str, n_file_bytes: int, info: ModelInfo | None) -> None:
    """Raise TooLargeError if the machine could not hold the model even with nothing else running."""
    n_needed, n_there = n_memory_bytes(n_file_bytes, info), psutil.virtual_memory().total
    if n_needed > n_there:
        raise TooLargeError(name, n_needed, n_there)
