"""The record of one measurement: what was run, where, under which conditions, every raw sample, and whether to believe
it. Rates and medians are derived, never stored.

One line of JSON each, appended when its measurement ends. SCHEMA counts the versions of the form, and
record.schema.json describes the newest (`python -m benchmarks.record` writes it). Version 1 timed prompt and generation
in one record and knew no conditions; it is still read, as two suspect records.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.schema import ShapeError, from_json, json_schema, to_json
from benchmarks.stats import Summary, percentile, summarize
from benchmarks.workload import Workload
from edge.config import KvType, LoadMode
from edge.errors import FileError

SCHEMA = 2
SCHEMA_FILE = Path(__file__).with_name("record.schema.json")
RECORDS_BYTES_MAX = 256 << 20


class RecordError(FileError):
    """A file of records that cannot be read, or records that cannot be compared."""


@dataclass(frozen=True)
class Model:
    """The file that was measured; what a server does not tell is None."""

    name: str  # without a folder
    sha256: str | None = None
    n_bytes: int | None = None
    architecture: str | None = None
    file_type: str | None = None  # Q4_K_M …
    n_params: int | None = None
    bytes_read_per_token: int | None = None  # weights read for one generated token: all but the embedding table
    kv_bytes_per_token: int | None = None
    weights: Literal["file", "synthetic", "unknown"] = "file"  # synthetic: random blocks in a model's true shape


@dataclass(frozen=True)
class Program:
    """What computed."""

    name: str  # edge, llama-bench, or a server's own name
    version: str | None = None
    library: str | None = None  # llama.cpp's binding and its version
    features: str | None = None  # what the library says it was built with: CPU features and back ends


@dataclass(frozen=True)
class Settings:
    """How the model was run, as the plan for the board chose it; the defaults are those of a CPU with room."""

    load_mode: LoadMode = "read"
    kv_type: KvType = "f16"
    flash_attention: bool | None = None  # None: where the library has it for this model
    n_gpu_layers: int = 0


USUAL = Settings()


@dataclass(frozen=True)
class Cores:
    """Cores of one kind."""

    n: int
    frequency_max_mhz: float | None = None
    capacity: int | None = None  # 1024 is the fastest kind, where the kernel tells


@dataclass(frozen=True)
class Board:
    """The machine, without anything that names its owner."""

    name: str  # Raspberry Pi 5 Model B Rev 1.0; a processor's name where the board has none
    soc: str | None
    architecture: str  # aarch64, x86_64
    cores: tuple[Cores, ...]
    ram_bytes: int
    kernel: str
    governor: str | None
    is_virtual: bool = False
    read_bytes_per_s: float | None = None  # measured, by the cores that compute together
    read_by_all_bytes_per_s: float | None = None  # the same by every core, where not all compute


@dataclass(frozen=True)
class Sample:
    """One repetition. Time is nanoseconds of a steady clock."""

    elapsed_ns: int
    first_token_ns: int | None = None  # until the first generated token was there
    token_ns: tuple[int, ...] = ()  # each generated token after the one before, of the slowest stream
    n_tokens: int | None = None  # generated, where a server gave another number than was asked for


@dataclass(frozen=True)
class Moment:
    """What the sensors said at one moment of the run; None where there is no such sensor."""

    at_s: float  # since the first repetition began
    is_busy: bool  # while a repetition ran
    temperature_c: float | None = None
    frequency_mhz: float | None = None  # of the slowest core that computes
    throttled: tuple[str, ...] = ()  # what holds the processor back at this moment
    power_w: float | None = None
    rss_bytes: int | None = None  # of the processes measured


@dataclass(frozen=True)
class Conditions:
    """What else went on, summed over the repetitions."""

    moments: tuple[Moment, ...] = ()
    busy_s: float = 0.0  # that the repetitions took
    other_cores: float | None = None  # cores that other programs used meanwhile
    waited_share: float | None = None  # of its time on a core the program waited for one
    n_swapped_pages: int | None = None
    energy_j: float | None = None  # of the whole board
    idle_power_w: float | None = None


@dataclass(frozen=True)
class Memory:
    """Of the measured process, in bytes."""

    peak_rss_bytes: int
    anon_bytes: int  # weights, KV cache, buffers: must stay in RAM
    file_bytes: int  # mapped files: the kernel can drop them
    kv_bytes: int | None = None


@dataclass(frozen=True)
class Loads:
    """Seconds from the start of reading the file to a context that can decode."""

    cold_s: float | None  # with the file out of the page cache; None where the system did not drop it
    warm_s: tuple[float, ...]


@dataclass(frozen=True)
class Gate:
    """What the model answered to fixed tokens, so that a build that skips work cannot win."""

    first_choices: tuple[int, ...] = ()  # likeliest next token after each of the fixed tokens, fed one by one
    n_paths_agree: int | None = None  # of the prompts fed as a whole, with the choice of tokens fed one by one
    n_paths: int = 0
    agreement: float | None = None  # share of first choices that are the reference's; None without one
    reply_sha256: str | None = None  # end to end: the greedy reply to a fixed prompt


ReasonKind = Literal[
    "throttled", "background load", "frequency moved", "swapping", "spread too wide", "correctness gate failed",
    "too few repetitions", "conditions unknown",
]  # fmt: skip


@dataclass(frozen=True)
class Reason:
    """Why not to believe a result."""

    kind: ReasonKind
    text: str


@dataclass(frozen=True)
class Record:
    """One workload on one model, board and program."""

    workload: Workload
    model: Model
    program: Program
    board: Board
    n_threads: int | None
    started_at: str  # RFC 3339, UTC
    samples: tuple[Sample, ...]
    warmups: tuple[Sample, ...] = ()
    conditions: Conditions = Conditions()
    memory: Memory | None = None
    loads: Loads | None = None
    gate: Gate | None = None
    reasons: tuple[Reason, ...] = ()
    settings: Settings | None = None  # None: nobody told, such as a server
    cpus: tuple[int, ...] = ()  # those it was allowed to run on; () where the system does not tell

    @property
    def is_valid(self) -> bool:
        return not self.reasons

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens/s of each repetition; () for a load. End to end: of the generation, after its first token."""
        work = self.workload
        if work.view == "kernel":
            return tuple(work.n_tokens / (s.elapsed_ns / 1e9) for s in self.samples) if work.n_tokens else ()
        timed = [(s.elapsed_ns - (s.first_token_ns or 0), s.n_tokens or work.n_streams * work.n_generated_tokens)
                 for s in self.samples]  # fmt: skip
        return tuple((n - work.n_streams) / (ns / 1e9) for ns, n in timed if ns > 0 and n > work.n_streams)

    @property
    def tokens_per_s(self) -> Summary | None:
        return summarize(self.rates) if self.rates else None

    @property
    def token_ms(self) -> dict[str, float]:
        """p50, p90, p99 and the longest time from token to token."""
        gaps = [ns / 1e6 for sample in self.samples for ns in sample.token_ns]
        if not gaps:
            return {}
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        return {name: percentile(gaps, share) for name, share in shares.items()} | {"max": max(gaps)}

    @property
    def first_token_s(self) -> Summary | None:
        times = [s.first_token_ns / 1e9 for s in self.samples if s.first_token_ns]
        return summarize(times) if times else None

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes one generated token moves: the weights, and the KV cache as it is half way through the generation."""
        if self.model.bytes_read_per_token is None or (self.workload.view, self.workload.kind) != ("kernel", "tg"):
            return None
        n_deep = self.workload.n_depth_tokens + self.workload.n_generated_tokens / 2
        return self.model.bytes_read_per_token / self.workload.n_streams + n_deep * (self.model.kv_bytes_per_token or 0)

    @property
    def bytes_per_s(self) -> float | None:
        """Memory traffic that the generation speed stands for; compare it with the board's bandwidth."""
        rate, n_bytes = self.tokens_per_s, self.bytes_per_token
        return rate.median * n_bytes if rate and n_bytes is not None else None

    @property
    def energy_per_token_j(self) -> tuple[float, float | None] | None:
        """Joules a token, gross and with idle power taken off; None without a sensor."""
        has, n_tokens = self.conditions, self.workload.n_tokens * len(self.samples)
        if has.energy_j is None or not n_tokens:
            return None
        net = None if has.idle_power_w is None else (has.energy_j - has.idle_power_w * has.busy_s) / n_tokens
        return has.energy_j / n_tokens, net

    def line(self) -> str:
        """One line of JSON, with the medians for whoever reads it without us."""
        body = {"schema": SCHEMA, **to_json(self), "verdict": "valid" if self.is_valid else "suspect"}
        if self.tokens_per_s:
            body["summary"] = {"tokens_per_s": to_json(self.tokens_per_s)}
        return json.dumps(body, ensure_ascii=False)


def check_writable(path: Path) -> None:
    """Raise RecordError where no record could be added. Leaves nothing behind."""
    is_new = not path.exists()
    try:
        with path.open("a", encoding="utf-8"):
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        raise RecordError(path, f"cannot be written ({error.strerror})", "choose another file with --out") from error


def append(path: Path, record: Record) -> None:
    """Add a record to a file of records; it is on the disk when this returns. Raises RecordError."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(record.line() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RecordError(path, f"cannot be written ({error.strerror})", "choose another file with --out") from error


def read(paths: Iterable[Path]) -> list[Record]:
    """The records of some files, in order. Raises RecordError that names file, line and field."""
    return [record for path in paths for record in _read_file(path)]


def _read_file(path: Path) -> Iterator[Record]:
    try:
        if path.stat().st_size > RECORDS_BYTES_MAX:
            raise RecordError(path, "is too large for a file of records", "name a file that edge bench --out wrote")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise RecordError(path, f"cannot be read ({reason})", "name a file that edge bench --out wrote") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield from parse(json.loads(line))
            except (ValueError, RecursionError) as error:  # ShapeError and broken JSON are ValueErrors
                what = str(error) if isinstance(error, ShapeError) else "not JSON"
                hint = "name a file of `edge bench --out`; `edge bench import` reads those of llama-bench"
                raise RecordError(path, f"line {number} is no record ({what})", hint) from error


def parse(body: Any) -> list[Record]:
    """The records in one parsed line: one, or two of version 1. Raises ShapeError."""
    version = body.get("schema") if isinstance(body, dict) else None
    if version == 1:
        return _parse_first(body)
    if version != SCHEMA:
        raise ShapeError(f"record.schema is {version!r}, this program reads 1 to {SCHEMA}")
    record = from_json(Record, body)
    work = record.workload
    if not all(0 < sample.elapsed_ns < 1 << 62 for sample in (*record.samples, *record.warmups)):
        raise ShapeError("record.samples: elapsed_ns must be above 0")
    if min(work.n_prompt_tokens, work.n_generated_tokens, work.n_depth_tokens) < 0 or work.n_streams < 1:
        raise ShapeError("record.workload: a number of tokens or streams is out of range")
    return [record]


def _parse_first(body: dict[str, Any]) -> list[Record]:
    """A record of version 1, as two."""
    try:
        ran, saw = body["workload"], body["samples"]
        load_s = float(saw["load_time_s"])
        model = Model(
            Path(str(ran["model"])).name,
            n_bytes=int(body["file_bytes"]),
            file_type=str(body["file_type"]),
            bytes_read_per_token=int(body["bytes_read_per_token"]),
        )
        common = Record(
            Workload(n_ubatch_tokens=int(ran["n_ubatch_tokens"]), seed=int(ran["seed"])),
            model,
            Program("edge", features=str(saw["system"])),
            Board(str(body["cpu"]), None, "unknown", (), 0, "unknown", None),
            int(saw["n_threads"]),
            str(body["started_at"]),
            (),
            memory=Memory(int(saw["peak_rss_bytes"]), int(saw["rss_anon_bytes"]), int(saw["rss_file_bytes"])),
            loads=Loads(None, (load_s,)),
            reasons=(Reason("conditions unknown", "this version of the record kept no conditions"),),
        )
        parts = [
            (replace(common.workload, n_prompt_tokens=int(ran["n_prompt_tokens"])), saw["prompt_ns"]),
            (replace(common.workload, n_generated_tokens=int(ran["n_generated_tokens"])), saw["generation_ns"]),
        ]
        if not all(0 < ns < 1 << 62 for _, times in parts for ns in times) or not 0 < load_s < math.inf:
            raise ShapeError("record of version 1: times must be above 0")
        return [
            replace(
                common,
                workload=replace(workload, n_repetitions=len(times)),
                samples=tuple(Sample(int(ns)) for ns in times),
            )
            for workload, times in parts
        ]
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ShapeError(f"record of version 1 lacks {error}") from error


def schema_text() -> str:
    """The JSON Schema of a line, as it lies in record.schema.json."""
    schema = json_schema(Record)
    top = schema["$defs"]["Record"]
    top["properties"] = {"schema": {"const": SCHEMA}} | top["properties"] | {"verdict": {"enum": ["valid", "suspect"]}}
    top["required"] = ["schema", *top["required"], "verdict"]
    return json.dumps({"title": "One measurement of edge bench", **schema}, indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
