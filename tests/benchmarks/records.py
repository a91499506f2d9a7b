"""Records made by hand, for tests of what is done with records."""

from dataclasses import replace
from typing import Any

from benchmarks.record import Board, Cores, Memory, Model, Program, Record, Sample
from benchmarks.workload import Workload

PI = Board(
    "Raspberry Pi 5 Model B Rev 1.0", "brcm,bcm2712", "aarch64", (Cores(4, 2400.0),), 8 << 30, "Linux 6.12", "ondemand",
    read_bytes_per_s=12e9,
)  # fmt: skip
MODEL = Model("model-Q4_0.gguf", "ab" * 32, 1000, "qwen2", "Q4_0", 1600, 900, 32)
PROMPT, GENERATION = Workload(n_prompt_tokens=500), Workload(n_generated_tokens=100)


def record(workload: Workload = GENERATION, elapsed_s: tuple[float, ...] = (10.0,) * 5, **changes: Any) -> Record:
    made = Record(
        workload=workload,
        model=MODEL,
        program=Program("edge", "0.1.0", "llama-cpp-python 0.3.36", "NEON = 1"),
        board=PI,
        n_threads=4,
        started_at="2026-01-01T00:00:00+00:00",
        samples=tuple(Sample(round(seconds * 1e9)) for seconds in elapsed_s),
        memory=Memory(300, 200, 100, 64),
    )
    return replace(made, **changes)
