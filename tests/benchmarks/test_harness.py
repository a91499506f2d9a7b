"""The harness repeats what it is told to, in every shape a workload can have, and passes errors on in one sentence."""

from pathlib import Path

import pytest

from benchmarks import bandwidth, fingerprint, harness, runner
from benchmarks.record import USUAL, Record, Settings
from benchmarks.runner import Job
from benchmarks.workload import Workload
from edge.board.memory import Memory
from edge.board.plan import RESERVE_BYTES, Board
from edge.board.topology import allowed_cpus, read_topology
from edge.config import N_CTX_TOKENS
from edge.errors import EdgeError, EngineError

SMALL = {"n_threads": 1, "n_repetitions": 2, "n_warmups_max": 2}


def measure(path: Path, workload: Workload) -> Record:
    (record,) = harness.run([[Job(workload, path)]])
    return record


@pytest.mark.parametrize(
    ("workload", "n_gaps"),
    [
        (Workload(20, **SMALL), 0),  # type: ignore[arg-type]
        (Workload(20, n_depth_tokens=30, **SMALL), 0),  # type: ignore[arg-type]
        (Workload(0, 6, n_depth_tokens=30, **SMALL), 6),  # type: ignore[arg-type]
        (Workload(0, 6, n_depth_tokens=30, n_streams=3, **SMALL), 6),  # type: ignore[arg-type]
        (Workload(20, 6, n_streams=2, **SMALL), 6),  # type: ignore[arg-type]
    ],
    ids=lambda value: value.name if isinstance(value, Workload) else "",
)
def test_every_kind_of_workload_gives_its_samples(demo_model: Path, workload: Workload, n_gaps: int) -> None:
    record = measure(demo_model, workload)
    assert len(record.samples) == 2
    assert 1 <= len(record.warmups) <= 2
    for sample in record.samples:
        assert len(sample.token_ns) == n_gaps
        assert sum(sample.token_ns) <= sample.elapsed_ns
        assert (sample.first_token_ns is not None) == (workload.kind == "pp+tg")
    assert record.memory is not None
    assert record.memory.kv_bytes == record.model.kv_bytes_per_token * max(256, workload.n_ctx_tokens)  # type: ignore[operator]
    assert record.gate is not None
    assert record.gate.n_paths_agree == record.gate.n_paths
    assert record.cpus
    assert set(record.cpus) <= set(allowed_cpus())


def test_a_load_is_timed_cold_where_the_system_drops_the_file_and_warm(demo_model: Path) -> None:
    record = measure(demo_model, Workload(**SMALL))  # type: ignore[arg-type]
    assert record.loads is not None
    assert len(record.loads.warm_s) == 2
    assert all(seconds > 0 for seconds in (record.loads.cold_s or 1, *record.loads.warm_s))
    assert record.tokens_per_s is None


def test_a_sustained_run_goes_on_for_its_time(demo_model: Path) -> None:
    record = measure(demo_model, Workload(0, 8, duration_s=0.1, n_threads=1, n_warmups_max=1))
    *before, last = (sample.elapsed_ns for sample in record.samples)
    assert sum(before) < 1e8 <= sum(before) + last
    assert "spread too wide" not in {reason.kind for reason in record.reasons}


def test_end_to_end_tells_the_first_token_and_the_engines_memory(demo_model: Path) -> None:
    record = measure(demo_model, Workload(16, 8, n_streams=2, view="end-to-end", **SMALL))
    assert record.first_token_s is not None
    assert record.memory is not None
    assert record.memory.peak_rss_bytes >= record.memory.anon_bytes
    assert record.gate is not None
    assert len(record.gate.reply_sha256 or "") == 64
    assert record.model.kv_bytes_per_token is not None
    assert record.memory.kv_bytes == N_CTX_TOKENS * record.model.kv_bytes_per_token
    assert set(record.cpus) <= set(allowed_cpus())
    assert record.bytes_per_s is None  # what a client sees is not held against the memory bus


@pytest.mark.parametrize(
    "workload",
    [Workload(0, 8, **SMALL), Workload(8, 8, view="end-to-end", **SMALL)],  # type: ignore[arg-type]
    ids=lambda work: work.name,
)
def test_settings_reach_the_library_and_the_record(demo_model: Path, workload: Workload) -> None:
    usual = measure(demo_model, workload)
    assert usual.settings == USUAL
    settings = Settings(load_mode="map", kv_type="q8_0")
    (mapped,) = harness.run([[Job(workload, demo_model, settings=settings)]])
    assert mapped.settings == settings
    assert mapped.memory is not None
    assert usual.memory is not None
    assert mapped.memory.file_bytes - usual.memory.file_bytes > 0.8 * demo_model.stat().st_size, "the file is mapped"


def test_llama_bench_gets_the_same_settings(demo_model: Path) -> None:
    settings = Settings("map", "q8_0", None, 3)
    made = runner.LlamaBench(Job(Workload(0, 8, n_threads=1), demo_model, peer="llama-bench", settings=settings))
    assert "-lm mmap -ngl 3 -ctk q8_0 -ctv q8_0" in " ".join(made.options)


def test_llama_bench_is_not_asked_for_what_it_does_not_know(demo_model: Path) -> None:
    for workload in (Workload(0, 8, n_streams=2), Workload(16, 8, view="end-to-end"), Workload()):
        with pytest.raises(EngineError, match="leave this one out"):
            runner.start(Job(workload, demo_model, peer="llama-bench"))


def test_a_peer_that_is_not_built_is_named_with_its_command(demo_model: Path) -> None:
    with pytest.raises(EngineError, match=r"scripts/build-peers\.sh llama-bench"):
        harness.run([[Job(Workload(0, 8), demo_model, peer="llama-bench")]])


def test_models_that_do_not_fit_together_do_not_take_turns(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(Workload(0, 8), demo_model)
    n_bytes = runner.plan_of(demo_model, job.workload, 0, force=True).footprint.total
    memory = Memory(1 << 34, int(1.5 * n_bytes) + RESERVE_BYTES, 1 << 30, None, 0, 0, 0, 4096)
    monkeypatch.setattr(harness, "this_board", lambda: Board(read_topology(), memory))
    jobs = [job, job]
    with pytest.raises(EngineError, match="leave out --interleave"):
        harness.run([jobs])


def test_a_model_that_dies_in_the_child_is_one_sentence(demo_model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(demo_model.read_bytes()[:-1000])
    with pytest.raises(EdgeError, match=str(cut)):
        measure(cut, Workload(0, 8))


def test_a_board_is_told_from_its_files_and_names_nobody(tmp_path: Path) -> None:
    tree = tmp_path / "sys/firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"Radxa ROCK 5B\0")
    (tree / "compatible").write_bytes(b"radxa,rock-5b\0rockchip,rk3588\0")
    for cpu, (capacity, khz) in enumerate([(530, 1800000)] * 4 + [(1024, 2400000)] * 4):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}"
        (folder / "cpufreq").mkdir(parents=True)
        (folder / "cpu_capacity").write_text(f"{capacity}\n")
        (folder / "cpufreq/cpuinfo_max_freq").write_text(f"{khz}\n")
        (folder / "cpufreq/scaling_governor").write_text("schedutil\n")
    board = fingerprint.board(tmp_path, cpus=range(8))
    assert (board.name, board.soc, board.governor) == ("Radxa ROCK 5B", "rockchip,rk3588", "schedutil")
    assert [(kind.n, kind.capacity, kind.frequency_max_mhz) for kind in board.cores] == [
        (4, 1024, 2400),
        (4, 530, 1800),
    ]


def test_memory_is_read_faster_than_a_disk_and_slower_than_a_cache() -> None:
    assert 2e8 < bandwidth.measure([0]) < 5e11
