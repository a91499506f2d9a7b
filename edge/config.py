"""Every default, once. The command line, the server and the library read them from here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

QUANT_TYPES = ("Q4_K_M", "Q4_0")  # what `edge convert` makes when nothing is said
N_CTX_TOKENS = 4096
MIN_ANSWER_TOKENS = 512  # a thought is closed while at least this much room is left for the answer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Defaults: DeepSeek-R1's recommendation; top_k first spares a full sort."""

    temperature: float = 0.6  # 0 is greedy
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    seed: int | None = None  # None draws one

    def updated(self, values: Mapping[str, Any]) -> "Sampling":
        """These settings with every value that is not None put in; unknown names fail."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})


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
    hang_timeout_s: float = 60.0  # an engine silent for this long is dead; one micro-batch must fit in it


def cache_dir() -> Path:
    """Where converted models and measurements are kept: EDGE_CACHE, else the user's cache folder."""
    if path := os.environ.get("EDGE_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge"
