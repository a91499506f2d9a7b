"""Other programs read what we write: sqlite the SQL, csv the table; llama-bench's own lines come in and go out."""

import csv
import io
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import exchange
from benchmarks import record as records
from benchmarks.cli import bench
from benchmarks.record import Conditions, RecordError
from tests.benchmarks.records import GENERATION, MODEL, PROMPT, record

# one line as `llama-bench -p 16 -r 2 -o jsonl` printed it
THEIRS = (
    '{"build_commit": "unknown", "build_number": 0, "cpu_info": "Intel(R) Xeon(R) Processor", '
    '"gpu_info": "", "backends": "CPU", "model_filename": "/models/demo-Q4_K_M.gguf", '
    '"model_type": "qwen2 ?B Q4_K - Medium", "model_size": 2267648, "model_n_params": 3674368, '
    '"n_batch": 2048, "n_ubatch": 512, "n_threads": 1, "cpu_mask": "0x0", "cpu_strict": false, "poll": 50, '
    '"type_k": "f16", "type_v": "f16", "n_gpu_layers": -1, "split_mode": "layer", "main_gpu": 0, '
    '"no_kv_offload": false, "flash_attn": -1, "tensor_split": "0.00", "load_mode": "auto", '
    '"embeddings": false, "n_prompt": 16, "n_gen": 0, "n_depth": 0, "test_time": "2026-11-22T00:42:54Z", '
    '"avg_ns": 1764788, "stddev_ns": 86226, "avg_ts": 9077.079254, "stddev_ts": 443.498241, '
    '"samples_ns": [ 1825759, 1703817 ],"samples_ts": [ 8763.48, 9390.68 ]}'
)
OURS = [record(PROMPT, (1.0, 1.1, 0.9)), record(GENERATION, (10.0,) * 5), record(replace(GENERATION, n_streams=4))]


def test_a_line_of_llama_bench_becomes_a_record_and_the_same_line_again(tmp_path: Path) -> None:
    path = tmp_path / "theirs.jsonl"
    path.write_text(THEIRS + "\n")
    (made,) = exchange.from_llama_bench(path)
    assert made.model.name == "demo-Q4_K_M.gguf"  # no folder
    assert made.workload.name == "pp16"
    assert not made.is_valid
    again, theirs = json.loads(exchange.to_llama_bench_jsonl([made])), json.loads(THEIRS)
    for name in ("n_prompt", "n_gen", "avg_ns", "stddev_ns", "samples_ns", "n_threads", "model_size", "model_n_params"):
        assert again[name] == theirs[name]
    assert again["avg_ts"] == pytest.approx(theirs["avg_ts"], rel=1e-6)
    assert again["stddev_ts"] == pytest.approx(theirs["stddev_ts"], rel=1e-4)
    assert set(again) <= set(theirs)


def test_sqlite_takes_the_sql() -> None:
    base = sqlite3.connect(":memory:")
    named = replace(OURS[1], model=replace(MODEL, name="it's; DROP TABLE llama_bench.gguf"))
    base.executescript(exchange.to_sql([OURS[0], named]))
    rows = base.execute("SELECT model_filename, n_prompt, n_gen, avg_ns, typeof(avg_ts) FROM llama_bench").fetchall()
    assert rows[0] == ("model-Q4_0.gguf", 500, 0, 10**9, "real")
    assert rows[1][0] == "it's; DROP TABLE llama_bench.gguf"


def test_llama_bench_knows_one_stream() -> None:
    assert [row["n_gen"] for row in exchange.llama_bench_rows(OURS)] == [0, 100]


def test_csv_has_a_row_for_each_record() -> None:
    rows = list(csv.DictReader(io.StringIO(exchange.to_csv(OURS))))
    assert [row["workload"] for row in rows] == ["pp500", "tg100", "tg100 x4"]
    assert float(rows[1]["tokens_per_s"]) == 10
    assert rows[0]["verdict"] == "valid"
    assert rows[0]["energy_per_token_j"] == rows[0]["net_energy_per_token_j"] == rows[0]["share_of_limit"] == ""


def test_csv_tells_the_machine_the_file_and_what_they_drew() -> None:
    made = record(conditions=Conditions(busy_s=50.0, energy_j=300.0, idle_power_w=2.0))
    (row,) = csv.DictReader(io.StringIO(exchange.to_csv([made])))
    assert (float(row["energy_per_token_j"]), float(row["net_energy_per_token_j"])) == (300 / 500, 200 / 500)
    assert float(row["share_of_limit"]) == pytest.approx(10 * (900 + 50 * 32) / 12e9)
    assert (row["ram_bytes"], row["read_bytes_per_s"]) == (str(8 << 30), "12000000000.0")
    assert (row["governor"], row["kernel"], row["model_sha256"]) == ("ondemand", "Linux 6.12", "ab" * 32)


BAD = {
    "samples": THEIRS.replace("1825759", "Infinity"),
    "prompt": THEIRS.replace('"n_prompt": 16', '"n_prompt": -16'),
    "backends": THEIRS.replace('"CPU"', "7"),
}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[", "{}", "[]x", '[{"n_prompt": 1}]', "7", '{"samples_ns": [0], "n_prompt": 1}', *BAD.values()],
)
def test_what_is_no_output_of_llama_bench_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(RecordError, match="llama-bench -o json"):
        exchange.from_llama_bench(path)


def test_import_adds_records_that_report_reads(tmp_path: Path) -> None:
    theirs, out = tmp_path / "theirs.jsonl", tmp_path / "records.jsonl"
    theirs.write_text(THEIRS + "\n")
    assert CliRunner().invoke(bench, ["import", str(theirs), "--out", str(out)]).exit_code == 0
    assert len(records.read([out])) == 1
    assert "| pp16 |" in CliRunner().invoke(bench, ["report", str(out)]).output


def test_import_takes_all_files_or_none(tmp_path: Path) -> None:
    theirs, empty, out = tmp_path / "theirs.jsonl", tmp_path / "empty.jsonl", tmp_path / "records.jsonl"
    theirs.write_text(THEIRS + "\n")
    empty.write_text("")
    with pytest.raises(RecordError, match="holds no results") as caught:
        CliRunner().invoke(bench, ["import", str(theirs), str(empty), "--out", str(out)], catch_exceptions=False)
    assert caught.value.path == empty
    assert not out.exists()
    done = CliRunner().invoke(bench, ["import", str(theirs), str(theirs), "--out", str(out)])
    assert f"2 record(s): {out}" in done.output


@pytest.mark.parametrize("ending", [".jsonl", ".sql"])
def test_what_llama_bench_has_no_row_for_is_not_left_out_in_silence(tmp_path: Path, ending: str) -> None:
    path, out = tmp_path / "records.jsonl", tmp_path / f"out{ending}"
    words = ["report", str(path), "--out", str(out)]
    records.append(path, OURS[2])
    with pytest.raises(RecordError, match="write a"):
        CliRunner().invoke(bench, words, catch_exceptions=False)
    assert not out.exists()
    records.append(path, OURS[0])
    assert "1 of 2 records left out" in CliRunner().invoke(bench, words).output
    assert out.stat().st_size
