"""A workload ready to be repeated: our measuring child, or llama.cpp's own llama-bench. One call, one sample."""

import json
import logging
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Literal, Protocol

from benchmarks import fingerprint, peers
from benchmarks.exchange import LOAD_MODES
from benchmarks.measure import Ended, Order, Ready
from benchmarks.record import USUAL, Gate, Model, Program, Sample, Settings
from benchmarks.schema import from_json, to_json
from benchmarks.workload import Workload
from edge.board.build import wrong_build
from edge.board.plan import Board, Plan, Wish, make_plan
from edge.board.topology import allowed_cpus, compute_cpus, n_compute_threads
from edge.errors import EngineError
from edge.model.gguf import ModelInfo, read_model_info

logger = logging.getLogger(__name__)
PACKAGE_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """A workload and what is to do it: a model file with our program or llama-bench, or a server."""

    workload: Workload
    path: Path | None = None
    url: str | None = None
    model: str | None = None  # a server's name for it
    key: str | None = None
    peer: Literal["llama-bench"] | None = None
    settings: Settings = USUAL

    @property
    def name(self) -> str:
        where = self.path.stem if self.path else self.url or ""
        return f"{where} {self.workload.name}" + (f" ({self.peer})" if self.peer else "")


def plan_of(path: Path, work: Workload, n_gpu_layers: int | None, *, force: bool, board: Board | None = None) -> Plan:
    """How a workload is run here and what it takes. n_gpu_layers: None for as many as fit. Raises NoMemoryError."""
    wish = Wish(work.n_ctx_tokens, work.n_streams, work.n_threads, n_gpu_layers, force)
    return make_plan(read_model_info(path), wish, board, use_tuned=False)


class Runner(Protocol):
    """A job that is set up. `close` whatever happens."""

    ready: Ready
    info: ModelInfo | None
    n_warmups_max: int

    def prepare(self) -> None:
        """What a repetition needs before its clock starts."""

    def repeat(self) -> Sample: ...

    def gate(self) -> Gate | None: ...

    def end(self) -> Ended: ...

    def close(self) -> None: ...

    def program(self) -> Program: ...

    def model(self) -> Model: ...


def start(job: Job, *, beside_peer: bool = False) -> Runner:
    """Set a job up: its model is loaded when this returns. beside_peer: llama-bench takes turns with it.

    Raises EdgeError.
    """
    if job.peer:
        return LlamaBench(job)
    return Afresh(job) if beside_peer else Child(job)


class Child:
    """Our measuring child (benchmarks.measure) in a fresh process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.n_warmups_max = job.workload.n_warmups_max
        # refuses a bad file before a child could die of it
        self.info: ModelInfo | None = read_model_info(job.path) if job.path else None
        self._stderr: deque[str] = deque(maxlen=20)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.measure"],
            cwd=PACKAGE_ROOT,  # python -m looks for modules there first: never in the user's folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()
        path = str(job.path.absolute()) if job.path else None
        try:
            order = Order(job.workload, path, job.url, job.model, job.key, job.settings)
            self.ready: Ready = from_json(Ready, self._ask(json.dumps(to_json(order))), "ready")
        except BaseException:
            self.close()
            raise

    def prepare(self) -> None:
        """It stays loaded."""

    def repeat(self) -> Sample:
        return from_json(Sample, self._ask("repeat"), "sample")

    def gate(self) -> Gate:
        return from_json(Gate, self._ask("gate"), "gate")

    def end(self) -> Ended:
        return from_json(Ended, self._ask("end"), "end")

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(5)  # it leaves at the end of its input, its engine with it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()

    def program(self) -> Program:
        if self.job.url is not None:
            return Program("server")
        return fingerprint.program(self.ready.features)

    def model(self) -> Model:
        if self.info is None:
            return Model(self.ready.model or "unnamed", weights="unknown")
        return fingerprint.model(self.info)

    def _ask(self, line: str) -> object:
        """The child's answer to a line. Raises EngineError with its error, or its last words."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait()
            self._listener.join()
            if code == -signal.SIGILL:
                raise wrong_build()
            last = next((words for words in reversed(self._stderr) if words.strip()), f"exit code {code}")
            raise EngineError(f"measuring {self.job.name} failed ({last.strip()})", "try `edge inspect` on the file")
        body: dict[str, object] = json.loads(answer)
        if "error" in body:
            problem, _, remedy = str(body["error"]).rpartition("; ")
            raise EngineError(problem, remedy)
        return body

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._stderr.append(line)
            logger.debug("%s", line.rstrip())


class Afresh:
    """Our child, loaded and warmed up anew for each repetition as llama-bench is.

    Where a process's memory lies makes some percent of its speed: one child against many processes of a peer would
    compare its luck with their mean.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.n_warmups_max = 0
        self._child = Child(job)
        self._is_used = False
        self.ready: Ready = self._child.ready
        self.info: ModelInfo | None = self._child.info

    def prepare(self) -> None:
        if self._is_used:
            self._child.close()
            self._child = Child(self.job)
            self.ready = self._child.ready
        self._is_used = True
        self._child.repeat()

    def repeat(self) -> Sample:
        return self._child.repeat()

    def gate(self) -> Gate:
        return self._child.gate()

    def end(self) -> Ended:
        return self._child.end()

    def close(self) -> None:
        self._child.close()

    def program(self) -> Program:
        return self._child.program()

    def model(self) -> Model:
        return self._child.model()


class LlamaBench:
    """llama-bench, a fresh process for each repetition: it warms up by itself and cannot be held in between."""

    def __init__(self, job: Job) -> None:
        assert job.path is not None
        work = job.workload
        if work.view != "kernel" or work.n_streams > 1 or not work.n_tokens:
            raise EngineError(f"llama-bench has no workload {work.name}", "leave this one out for it")
        self.info: ModelInfo | None = read_model_info(job.path)
        self.path = job.path
        self.n_warmups_max = 1  # to have its file in the page cache
        cpus = compute_cpus()
        n_threads = work.n_threads or n_compute_threads(len(cpus), job.path.stat().st_size)
        self.ready = Ready(n_threads, (), cpus=tuple(cpus))
        sizes = (work.n_prompt_tokens, work.n_generated_tokens)
        self.options = ["-p", str(sizes[0]), "-n", str(sizes[1])]
        if all(sizes):
            self.options = ["-p", "0", "-n", "0", "-pg", f"{sizes[0]},{sizes[1]}"]
        self.options += ["-d", str(work.n_depth_tokens), "-t", str(n_threads), "-ub", str(work.n_ubatch_tokens)]
        has = job.settings
        self.options += ["-lm", LOAD_MODES[has.load_mode], "-ngl", str(has.n_gpu_layers)]
        self.options += ["-ctk", has.kv_type, "-ctv", has.kv_type]
        if n_threads <= len(cpus) < len(allowed_cpus()):
            self.options += ["-C", hex(sum(1 << cpu for cpu in cpus))]
        self._row: dict[str, object] = {}

    def prepare(self) -> None:
        """It warms up by itself."""

    def repeat(self) -> Sample:
        self._row = peers.bench(self.path, *self.options)
        samples = self._row["samples_ns"]
        assert isinstance(samples, list)
        return Sample(int(samples[0]))

    def gate(self) -> None:
        """It shows no logits."""
        return

    def end(self) -> Ended:
        return Ended(None, None)

    def close(self) -> None:
        pass

    def program(self) -> Program:
        build = f"{self._row.get('build_commit')} ({self._row.get('build_number')})"
        return Program("llama-bench", None, f"llama.cpp {build}", str(self._row.get("backends", "")) or None)

    def model(self) -> Model:
        assert self.info is not None
        return fingerprint.model(self.info)
