"""The measuring parent: each workload in a fresh child process, its samples into a record. Never loads libllama."""

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.record import Record, Samples
from benchmarks.workload import Workload
from edge.errors import EngineError
from edge.model.gguf import read_model_info

PACKAGE_ROOT = Path(__file__).resolve().parents[1]


def run(workload: Workload, report: Callable[[str], None] = lambda _: None) -> Record:
    """Measure one workload; report gets a line for each repetition. Raises EdgeError."""
    info = read_model_info(Path(workload.model))  # refuses a bad file before a child could die of it
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    absolute = replace(workload, model=str(Path(workload.model).absolute()))
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.measure", json.dumps(asdict(absolute))],
        cwd=PACKAGE_ROOT,  # python -m looks for modules there first: never in the user's folder
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert child.stderr is not None
    assert child.stdout is not None
    last = "it said nothing"
    try:
        for line in child.stderr:
            if line.strip():
                last = line.strip()
                report(last)
        output = child.stdout.read()
        code = child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if code != 0:
        raise EngineError(f"measuring {workload.model} failed ({last})", "try `edge inspect` on the file")
    samples = json.loads(output)
    for name in ("prompt_ns", "generation_ns"):
        samples[name] = tuple(samples[name])
    return Record(
        workload=workload,
        samples=Samples(**samples),
        file_bytes=info.n_bytes,
        file_type=info.file_type,
        bytes_read_per_token=info.bytes_read_per_token,
        cpu=cpu_name(),
        started_at=started_at,
    )


def cpu_name() -> str:
    """The board's or processor's own name for itself."""
    for path, key in (("/proc/device-tree/model", ""), ("/proc/cpuinfo", "model name")):
        try:
            text = Path(path).read_text(errors="replace")
        except OSError:
            continue
        if not key:
            return text.strip("\0 \n")
        if name := next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(key)), ""):
            return name
    return platform.processor() or platform.machine()
