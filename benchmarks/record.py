"""The record of one measurement: what was run, where, and every raw sample. Summaries are derived, never stored.

One JSON object; SCHEMA counts its versions. Version 1: the first.
"""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.stats import Summary, summarize
from benchmarks.workload import Workload

SCHEMA = 1


@dataclass(frozen=True)
class Samples:
    """What the measuring child saw."""

    load_time_s: float  # reading the file and making the context; the file may be in the page cache
    prompt_ns: tuple[int, ...]  # one per repetition, for n_prompt_tokens
    generation_ns: tuple[int, ...]  # one per repetition, for n_generated_tokens
    peak_rss_bytes: int  # of the whole child process
    rss_anon_bytes: int  # after the runs: weights, KV cache, buffers, Python
    rss_file_bytes: int  # after the runs: mapped files, which the kernel can drop
    n_threads: int
    system: str  # what the library was built with


@dataclass(frozen=True)
class Record:
    workload: Workload
    samples: Samples
    file_bytes: int
    file_type: str  # Q4_K_M …
    bytes_read_per_token: int  # weights read for one generated token: all but the embedding table
    cpu: str
    started_at: str  # RFC 3339, UTC

    @property
    def prompt_tokens_per_s(self) -> Summary:
        return summarize([self.workload.n_prompt_tokens / (ns / 1e9) for ns in self.samples.prompt_ns])

    @property
    def generation_tokens_per_s(self) -> Summary:
        return summarize([self.workload.n_generated_tokens / (ns / 1e9) for ns in self.samples.generation_ns])

    @property
    def weight_bytes_per_s(self) -> float:
        """Memory traffic that the generation speed stands for; compare it with the board's bandwidth."""
        return self.bytes_read_per_token * self.generation_tokens_per_s.median

    def to_json(self) -> dict[str, Any]:
        """Everything recorded, and the summaries for whoever reads it without us."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "summary": {
                "prompt_tokens_per_s": asdict(self.prompt_tokens_per_s),
                "generation_tokens_per_s": asdict(self.generation_tokens_per_s),
                "weight_bytes_per_s": self.weight_bytes_per_s,
            },
        }
