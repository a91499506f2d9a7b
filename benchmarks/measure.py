"""The measuring child: one workload in a fresh process, one JSON line out.

    python -m benchmarks.measure '{"model": "model.gguf", "n_repetitions": 3}'

A fresh process because peak memory belongs to a process's lifetime. The clock includes decoding and nothing else: no
tokenising, no sampling, as llama-bench does it. The KV cache is emptied before each repetition, or a repeated prompt
would be found in it and not be computed.
"""

import json
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import psutil

from benchmarks.record import Samples
from benchmarks.workload import Workload
from edge.board.topology import pin
from edge.engine.llama import Batch, Llama, Loading, system_info


def measure(workload: Workload, report: Callable[[str], None] = lambda _: None) -> Samples:
    """Run the workload in this process. Raises EdgeError if the model cannot be loaded."""
    n_threads = pin(workload.n_threads, Path(workload.model).stat().st_size)
    n_ctx = max(workload.n_prompt_tokens, workload.n_generated_tokens, 64)
    started_s = time.perf_counter()
    llama = Llama(
        Path(workload.model),
        Loading(
            n_ctx,
            workload.n_ubatch_tokens,
            n_sequences=1,
            n_outputs=1,
            n_threads=n_threads,
            load_mode=workload.load_mode,
            kv_type=workload.kv_type,
            flash_attention=workload.flash_attention,
            n_gpu_layers=workload.n_gpu_layers,
        ),
    )
    load_time_s = time.perf_counter() - started_s
    batch = llama.new_batch()
    draw = random.Random(workload.seed)

    def repeat(name: str, run: Callable[[], int]) -> tuple[int, ...]:
        samples = []
        for i in range(-workload.n_warmups, workload.n_repetitions):
            report(f"{name}, {'warm-up' if i < 0 else f'{i + 1} of {workload.n_repetitions}'}")
            samples.append(run())
        return tuple(samples[workload.n_warmups :])

    def tokens(n: int) -> list[int]:
        return [draw.randrange(llama.n_vocab) for _ in range(n)]

    prompt_ns = repeat("prompt", lambda: prompt(llama, batch, tokens(workload.n_prompt_tokens)))
    generation_ns = repeat("generation", lambda: generation(llama, batch, tokens(workload.n_generated_tokens)))
    peak_bytes, anon_bytes, file_bytes = memory()
    return Samples(load_time_s, prompt_ns, generation_ns, peak_bytes, anon_bytes, file_bytes, n_threads, system_info())


def prompt(llama: Llama, batch: Batch, tokens: list[int]) -> int:
    """Nanoseconds to read the tokens into an empty context, a full micro-batch at a time."""
    llama.clear()
    start_ns = time.perf_counter_ns()
    for begin in range(0, len(tokens), batch.n_tokens_max):
        batch.clear()
        for i, token in enumerate(tokens[begin : begin + batch.n_tokens_max], start=begin):
            batch.add(token, i, 0, output=i + 1 == len(tokens))
        decode(llama, batch)
    llama.wait()
    return time.perf_counter_ns() - start_ns


def generation(llama: Llama, batch: Batch, tokens: list[int]) -> int:
    """Nanoseconds to decode the tokens one after the other from an empty context."""
    llama.clear()
    start_ns = time.perf_counter_ns()
    for i, token in enumerate(tokens):
        batch.clear()
        batch.add(token, i, 0, output=True)
        decode(llama, batch)
        llama.wait()
    return time.perf_counter_ns() - start_ns


def decode(llama: Llama, batch: Batch) -> None:
    code = llama.decode(batch)
    assert code == 0, f"decode returned {code} on an empty context"


def memory() -> tuple[int, int, int]:
    """Peak resident, anonymous and file-backed bytes of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    info = psutil.Process().memory_info()
    shared = getattr(info, "shared", 0)  # Linux: file-backed pages, those of libraries included
    return peak, info.rss - shared, shared


def main() -> None:
    workload = Workload(**json.loads(sys.argv[1]))
    samples = measure(workload, report=lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
    print(json.dumps(asdict(samples)), flush=True)  # noqa: T201 - the line the parent reads


if __name__ == "__main__":
    main()
