"""Records in the forms of others: CSV, llama-bench's JSON lines and SQL out; llama-bench's JSON in.

llama-bench's fields are those of its own output. What a record does not know of them is left at llama-bench's default.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from benchmarks.record import USUAL, Board, Model, Program, Reason, Record, RecordError, Sample, parse
from benchmarks.schema import ShapeError
from benchmarks.workload import Workload
from edge.config import LoadMode

LOAD_MODES: dict[LoadMode, str] = {"read": "none", "map": "mmap"}  # our words and llama-bench's
# name, SQL type, default
_LLAMA_BENCH: tuple[tuple[str, str, Any], ...] = (
    ("build_commit", "TEXT", "unknown"), ("build_number", "INTEGER", 0), ("cpu_info", "TEXT", ""),
    ("gpu_info", "TEXT", ""), ("backends", "TEXT", "CPU"), ("model_filename", "TEXT", ""), ("model_type", "TEXT", ""),
    ("model_size", "INTEGER", 0), ("model_n_params", "INTEGER", 0), ("n_batch", "INTEGER", 2048),
    ("n_ubatch", "INTEGER", 512), ("n_threads", "INTEGER", 0), ("cpu_mask", "TEXT", "0x0"),
    ("cpu_strict", "INTEGER", False), ("poll", "INTEGER", 50), ("type_k", "TEXT", "f16"), ("type_v", "TEXT", "f16"),
    ("n_gpu_layers", "INTEGER", 0), ("split_mode", "TEXT", "layer"), ("main_gpu", "INTEGER", 0),
    ("no_kv_offload", "INTEGER", False), ("flash_attn", "INTEGER", -1), ("tensor_split", "TEXT", "0.00"),
    ("load_mode", "TEXT", "none"), ("embeddings", "INTEGER", False), ("n_prompt", "INTEGER", 0),
    ("n_gen", "INTEGER", 0), ("n_depth", "INTEGER", 0), ("test_time", "TEXT", ""), ("avg_ns", "INTEGER", 0),
    ("stddev_ns", "INTEGER", 0), ("avg_ts", "REAL", 0.0), ("stddev_ts", "REAL", 0.0),
)  # fmt: skip


def llama_bench_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """What llama-bench would print of these records. It knows one stream of the kernel view; others are left out."""
    return [_row(r) for r in records if r.workload.view == "kernel" and r.workload.n_streams == 1 and r.rates]


def to_llama_bench_jsonl(records: Iterable[Record]) -> str:
    return "".join(json.dumps(row) + "\n" for row in llama_bench_rows(records))


def to_sql(records: Iterable[Record]) -> str:
    """A table llama_bench and a row for each record, as llama-bench -o sql."""
    columns = ",\n".join(f"  {name} {kind}" for name, kind, _ in _LLAMA_BENCH)
    names = [name for name, _, _ in _LLAMA_BENCH]
    lines = [f"CREATE TABLE IF NOT EXISTS llama_bench (\n{columns}\n);\n"]
    for row in llama_bench_rows(records):
        values = ", ".join(_quoted(row[name]) for name in names)
        lines.append(f"INSERT INTO llama_bench ({', '.join(names)}) VALUES ({values});")  # noqa: S608 - text for others
    return "\n".join(lines) + "\n"


def _quoted(value: Any) -> str:
    text = str(int(value)) if isinstance(value, bool) else str(value)
    return "'" + text.replace("'", "''") + "'"


def _row(record: Record) -> dict[str, Any]:
    times = [sample.elapsed_ns for sample in record.samples]
    rates, has = record.rates, record.settings or USUAL
    known = {
        "build_commit": record.program.library or "unknown",
        "cpu_info": record.board.name,
        "model_filename": record.model.name,
        "model_type": f"{record.model.architecture or '?'} {record.model.file_type or '?'}",
        "model_size": record.model.n_bytes or 0,
        "model_n_params": record.model.n_params or 0,
        "n_ubatch": record.workload.n_ubatch_tokens,
        "n_threads": record.n_threads or 0,
        "n_gpu_layers": has.n_gpu_layers,
        "type_k": has.kv_type,
        "type_v": has.kv_type,
        "load_mode": LOAD_MODES[has.load_mode],
        "n_prompt": record.workload.n_prompt_tokens,
        "n_gen": record.workload.n_generated_tokens,
        "n_depth": record.workload.n_depth_tokens,
        "test_time": record.started_at.replace("+00:00", "Z"),
        "avg_ns": round(sum(times) / len(times)),
        "stddev_ns": round(stdev(times)) if len(times) > 1 else 0,
        "avg_ts": round(sum(rates) / len(rates), 6),
        "stddev_ts": round(stdev(rates), 6) if len(rates) > 1 else 0.0,
    }
    row = {name: known.get(name, default) for name, _, default in _LLAMA_BENCH}
    return row | {"samples_ns": times, "samples_ts": [round(rate, 4) for rate in rates]}


def from_llama_bench(path: Path) -> list[Record]:
    """The records in a file of `llama-bench -o json` or `-o jsonl`. Raises RecordError."""
    remedy = "name a file of `llama-bench -o json` or `-o jsonl`"
    try:
        text = path.read_text(encoding="utf-8")
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(line) for line in text.splitlines() if line.strip()]
        found = [_imported(row) for row in rows]
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(path, f"cannot be read ({error})", remedy) from error
    except ShapeError as error:
        raise RecordError(path, f"is no output of llama-bench ({error})", remedy) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(path, "is not JSON", remedy) from error
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RecordError(path, f"is no output of llama-bench ({error} is missing or wrong)", remedy) from error
    if not found:
        raise RecordError(path, "holds no results", remedy)
    return found


def _imported(row: dict[str, Any]) -> Record:
    times = [int(ns) for ns in row.get("samples_ns") or [row["avg_ns"]]]
    if min(times) <= 0:
        raise KeyError("samples_ns")
    work = Workload(
        int(row["n_prompt"]),
        int(row["n_gen"]),
        int(row.get("n_depth", 0)),
        n_threads=int(row["n_threads"]),
        n_ubatch_tokens=int(row.get("n_ubatch", 512)),
        n_repetitions=len(times),
    )
    kind = str(row.get("model_type", ""))
    architecture, _, rest = kind.partition(" ")
    made = Record(
        workload=work,
        model=Model(
            Path(str(row["model_filename"])).name,
            n_bytes=int(row["model_size"]),
            architecture=architecture or None,
            file_type=rest or None,
            n_params=int(row["model_n_params"]),
        ),
        program=Program(
            "llama-bench", None, f"llama.cpp {row['build_commit']} ({row['build_number']})", row["backends"]
        ),
        board=Board(str(row["cpu_info"]), None, "unknown", (), 0, "unknown", None),
        n_threads=work.n_threads,
        started_at=str(row["test_time"]),
        samples=tuple(Sample(ns) for ns in times),
        reasons=(Reason("conditions unknown", "llama-bench keeps no conditions"),),
    )
    parse(json.loads(made.line()))  # what could not be read again is not taken in
    return made


_CSV = (
    "board", "model", "type", "weights", "program", "library", "view", "workload", "threads", "tokens_per_s",
    "mad_tokens_per_s", "spread", "first_token_s", "token_p50_ms", "token_p99_ms", "load_cold_s", "load_warm_s",
    "peak_rss_bytes", "anon_bytes", "file_bytes", "kv_bytes", "bytes_per_s", "share_of_limit", "energy_per_token_j",
    "net_energy_per_token_j", "temperature_max_c", "verdict", "reasons", "started_at", "model_sha256", "ram_bytes",
    "read_bytes_per_s", "governor", "kernel",
)  # fmt: skip


def to_csv(records: Sequence[Record]) -> str:
    """One row a record, plain numbers in the units of the header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: "" if value is None else value for name, value in _flat(record).items()})
    return out.getvalue()


def _flat(r: Record) -> dict[str, Any]:
    rate, memory, loads = r.tokens_per_s, r.memory, r.loads
    gross_j, net_j = r.energy_per_token_j or (None, None)
    limit = r.board.read_bytes_per_s
    heat = [m.temperature_c for m in r.conditions.moments if m.temperature_c is not None]
    return {
        "board": r.board.name, "model": r.model.name, "type": r.model.file_type, "weights": r.model.weights,
        "program": r.program.name, "library": r.program.library, "view": r.workload.view, "workload": r.workload.name,
        "threads": r.n_threads, "tokens_per_s": rate and rate.median, "mad_tokens_per_s": rate and rate.mad,
        "spread": rate and rate.spread, "first_token_s": r.first_token_s and r.first_token_s.median,
        "token_p50_ms": r.token_ms.get("p50"), "token_p99_ms": r.token_ms.get("p99"),
        "load_cold_s": loads and loads.cold_s, "load_warm_s": loads and loads.warm_s and sorted(loads.warm_s)[0],
        "peak_rss_bytes": memory and memory.peak_rss_bytes, "anon_bytes": memory and memory.anon_bytes,
        "file_bytes": memory and memory.file_bytes, "kv_bytes": memory and memory.kv_bytes,
        "bytes_per_s": r.bytes_per_s, "share_of_limit": r.bytes_per_s / limit if r.bytes_per_s and limit else None,
        "energy_per_token_j": gross_j, "net_energy_per_token_j": net_j,
        "temperature_max_c": max(heat, default=None), "verdict": "valid" if r.is_valid else "suspect",
        "reasons": "; ".join(f"{reason.kind}: {reason.text}" for reason in r.reasons), "started_at": r.started_at,
        "model_sha256": r.model.sha256, "ram_bytes": r.board.ram_bytes or None, "read_bytes_per_s": limit,
        "governor": r.board.governor, "kernel": r.board.kernel,
    }  # fmt: skip
