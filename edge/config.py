"""Every default, once. The command line, the server and the library read them from here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

QUANT_TYPES = ("Q4_K_M", "Q4_0")  # what `edge convert` makes when nothing is said
N_CTX_TOKENS = 4096
HOST, PORT = "127.0.0.1", 8080  # where the server listens: this machine only
# Between the parts of constrained JSON: nothing, a space, or a new line and its indent. In free white space a small
# model goes on for ever.
JSON_WHITESPACE = r"( |\n {0,16})"
MIN_ANSWER_TOKENS = 512  # a thought is closed while at least this much room is left for the answer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, in this order. Defaults: DeepSeek-R1's recommendation.

    top_k stands before what needs sorted candidates, so that never the whole vocabulary is sorted.
    """

    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, added to its logit); -inf bans it
    repeat_penalty: float = 1.0  # 1 is off; this and the next two look at the last n_penalized_tokens
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    n_penalized_tokens: int = 64
    top_k: int = 40  # 0 is off
    typical_p: float = 1.0  # 1 is off
    top_p: float = 0.95  # 1 is off
    min_p: float = 0.0
    temperature: float = 0.6  # 0 is greedy
    seed: int | None = None  # None draws one

    def updated(self, values: Mapping[str, Any]) -> "Sampling":
        """These settings with every value that is not None put in; unknown names fail."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})


SAMPLING_RANGES: dict[str, tuple[float, float]] = {
    "repeat_penalty": (0.01, 10),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "n_penalized_tokens": (0, 1 << 20),
    "top_k": (0, 1000),
    "typical_p": (0.001, 1),
    "top_p": (0.001, 1),
    "min_p": (0, 1),
    "temperature": (0, 5),
    "seed": (0, 2**32 - 1),
}


@dataclass(frozen=True)
class EngineSettings:
    """What the engine process loads and how."""

    model: str  # path of the GGUF file
    n_ctx_tokens: int = N_CTX_TOKENS  # one pool shared by all slots
    n_slots: int = 4  # streams that generate at the same time
    n_ubatch_tokens: int = 256  # prefill is within 3 % of its peak from 128 rows on; the compute buffer grows with it
    n_threads: int | None = None  # None: one per core of the fast cluster
    step_time_s: float = 0.2  # a prompt chunk may hold up running streams for this long
    n_queue: int = 64  # waiting requests before "busy"
    prefix_dir: str | None = None  # where states of shared prompt beginnings are kept; None: nowhere
    n_prefix_bytes_max: int = 1 << 30
    n_prefix_bytes_per_day: int = 2 << 30  # an SD card is worn out by writing
    hang_timeout_s: float = 60.0  # an engine silent for this long is dead; one micro-batch must fit in it


def cache_dir() -> Path:
    """Where converted models and measurements are kept: EDGE_CACHE, else the user's cache folder."""
    if path := os.environ.get("EDGE_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge"


def data_dir() -> Path:
    """Where conversations and typed lines are kept: EDGE_DATA, else the user's data folder."""
    if path := os.environ.get("EDGE_DATA"):
        return Path(path)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "edge"
