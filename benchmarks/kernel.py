"""The kernel view: random tokens through the door to llama.cpp, no tokenising, no sampling, as llama-bench does it.

Runs in the measuring child. The KV cache is brought back to the workload's depth before each repetition, or a repeated
prompt would be found in it and not be computed.
"""

import os
import random
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil

from benchmarks.record import Gate, Loads, Memory, Sample, Settings
from benchmarks.workload import Workload
from edge.board.footprint import KV_TYPE_BYTES
from edge.board.topology import pin
from edge.engine.library import system_info
from edge.engine.llama import Llama, Loading
from edge.model.gguf import ModelInfo, read_model_info

N_GATE_PROMPTS, N_GATE_TOKENS = 4, 8
GATE_TOKENS = (256, 2048)  # ids that every vocabulary has, and whose rows a synthetic file fills
COLD_SHARE = 0.9  # of the file must come from the disk for a load to be called cold


class Kernel:
    """One loaded model and one workload."""

    def __init__(self, path: Path, workload: Workload, settings: Settings) -> None:
        """Load the model. Raises EdgeError."""
        self.workload, self._settings = workload, settings
        self.info = read_model_info(path)
        self.n_threads = pin(workload.n_threads, self.info.n_bytes)
        began_s = time.perf_counter()
        self._llama = Llama(path, _loading(workload, settings, self.n_threads))
        self.load_s = time.perf_counter() - began_s
        self._batch = self._llama.new_batch()
        self._draw = random.Random(workload.seed)
        self._is_deep = False

    @property
    def features(self) -> str:
        return system_info()

    def repeat(self) -> Sample:
        """Time the workload once."""
        work = self.workload
        prompts = [self._tokens(work.n_prompt_tokens) for _ in range(work.n_streams)]
        outputs = [self._tokens(work.n_streams) for _ in range(work.n_generated_tokens)]
        self._go_to_depth()
        begin_ns = time.perf_counter_ns()
        for stream, tokens in enumerate(prompts):
            self._read(tokens, work.n_depth_tokens, stream)
        gaps = []
        last_ns = time.perf_counter_ns()
        for i, step in enumerate(outputs, start=work.n_depth_tokens + work.n_prompt_tokens):
            self._step(step, i)
            now_ns = time.perf_counter_ns()
            gaps.append(now_ns - last_ns)
            last_ns = now_ns
        self._llama.wait()
        elapsed_ns = time.perf_counter_ns() - begin_ns
        return Sample(elapsed_ns, elapsed_ns - sum(gaps) if prompts[0] and gaps else None, tuple(gaps))

    def gate(self) -> Gate:
        """What the model makes of fixed tokens, one by one and as a whole."""
        draw = random.Random(0)
        low, high = GATE_TOKENS if self._llama.n_vocab >= GATE_TOKENS[1] else (0, self._llama.n_vocab)
        choices, n_agree = [], 0
        for _ in range(N_GATE_PROMPTS):
            tokens = [draw.randrange(low, high) for _ in range(N_GATE_TOKENS)]
            self._llama.clear()
            for i, token in enumerate(tokens):
                self._step([token], i)
                choices.append(self._first_choice())
            self._llama.clear()
            self._read(tokens, 0, 0)
            n_agree += self._first_choice() == choices[-1]
        self._is_deep = False
        return Gate(tuple(choices), n_agree, N_GATE_PROMPTS)

    def memory(self) -> Memory:
        return process_memory(kv_bytes(self.info, self._settings, self._llama.n_ctx_tokens))

    def close(self) -> None:
        self._llama.close()

    def _first_choice(self) -> int:
        return int(self._llama.logits(-1).argmax())

    def _tokens(self, n: int) -> list[int]:
        return [self._draw.randrange(self._llama.n_vocab) for _ in range(n)]

    def _go_to_depth(self) -> None:
        """Every stream has the workload's depth in the cache, and nothing more."""
        work = self.workload
        if not self._is_deep:
            self._llama.clear()
            self._read(self._tokens(work.n_depth_tokens), 0, 0)
            self._is_deep = True
        for stream in range(work.n_streams):
            self._llama.remove(stream, work.n_depth_tokens if stream == 0 else 0)
            if stream and work.n_depth_tokens:
                self._llama.copy(0, stream, work.n_depth_tokens)

    def _read(self, tokens: list[int], start: int, stream: int) -> None:
        """Decode a prompt, a full micro-batch at a time."""
        for begin in range(0, len(tokens), self._batch.n_tokens_max):
            self._batch.clear()
            for i, token in enumerate(tokens[begin : begin + self._batch.n_tokens_max], start=begin):
                self._batch.add(token, start + i, stream, output=i + 1 == len(tokens))
            self._decode()
        self._llama.wait()

    def _step(self, tokens: list[int], position: int) -> None:
        """Decode one token of each stream."""
        self._batch.clear()
        for stream, token in enumerate(tokens):
            self._batch.add(token, position, stream, output=True)
        self._decode()
        self._llama.wait()

    def _decode(self) -> None:
        code = self._llama.decode(self._batch)
        assert code == 0, f"decode returned {code} with room for all of the workload"


class Loader:
    """The load alone: once with the file out of the page cache, then as often as asked."""

    def __init__(self, path: Path, workload: Workload, settings: Settings) -> None:
        self.path, self.workload, self._settings = path, workload, settings
        self.info = read_model_info(path)
        self.n_threads = pin(workload.n_threads, self.info.n_bytes)
        for file in self.info.paths:
            _drop_from_page_cache(file)
        before = _bytes_from_disk()
        seconds = self._load()
        after = _bytes_from_disk()
        is_cold = before is not None and after is not None and after - before > COLD_SHARE * self.info.n_bytes
        self.cold_s = seconds if is_cold else None
        self._memory = process_memory(None)
        self._warm_s: list[float] = []

    @property
    def features(self) -> str:
        return system_info()

    def repeat(self) -> Sample:
        self._warm_s.append(self._load())
        return Sample(int(self._warm_s[-1] * 1e9))

    def memory(self) -> Memory:
        return self._memory

    def loads(self) -> Loads:
        return Loads(self.cold_s, tuple(self._warm_s[-self.workload.n_repetitions :]))

    def _load(self) -> float:
        began_s = time.perf_counter()
        llama = Llama(self.path, _loading(self.workload, self._settings, self.n_threads))
        elapsed_s = time.perf_counter() - began_s
        llama.close()
        return elapsed_s


def kv_bytes(info: ModelInfo, settings: Settings, n_ctx_tokens: int) -> int:
    """Of a KV cache that holds so many tokens."""
    share = KV_TYPE_BYTES[settings.kv_type] / KV_TYPE_BYTES["f16"]
    return round(share * info.kv_bytes_per_token * n_ctx_tokens)


def process_memory(n_kv_bytes: int | None) -> Memory:
    """Of this process. Python and numpy are 60 MB of it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    info = psutil.Process().memory_info()
    shared = getattr(info, "shared", 0)  # Linux: file-backed pages, those of libraries included
    return Memory(peak, info.rss - shared, shared, n_kv_bytes)


def _loading(workload: Workload, settings: Settings, n_threads: int) -> Loading:
    n_ctx, n_streams = workload.n_ctx_tokens, workload.n_streams
    base = Loading(n_ctx, min(workload.n_ubatch_tokens, n_ctx), n_streams, n_streams, n_threads)
    return replace(base, **vars(settings))


def _drop_from_page_cache(path: Path) -> None:
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes_from_disk() -> int | None:
    """Bytes this process had fetched from a disk so far."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)
