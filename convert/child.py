"""Work with libllama in a process of its own: a job goes out as JSON, progress comes back line by line, then a result.

The parent never loads libllama; when the child dies of it, that is an error with the child's last words. A child is
`python -m MODULE`, never a fork, and dies with its parent.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.board.build import wrong_build
from edge.engine.protocol import Failed
from edge.errors import EdgeError, EngineError

Json = dict[str, Any]
Report = Callable[[str, int, int], None]  # phase, done, total

PACKAGE_ROOT = Path(__file__).resolve().parents[1]
ABORT_EXIT_CODE = 70


def silent(phase: str, n_done: int, n_total: int) -> None:
    pass


def run(module: str, job: Json, report: Report = silent) -> Json:
    """The result of `module`'s work on a job. Raises what it raised; EngineError if the process died."""
    with tempfile.TemporaryFile() as words:  # a pipe that nobody reads would stop the child when it is full
        child = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(job)],
            cwd=PACKAGE_ROOT,  # python -m looks for modules there first: never in the user's folder
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            errors="replace",
        )
        assert child.stdout
        try:
            for line in child.stdout:
                message = json.loads(line)
                if "error" in message:
                    raise Failed("", message["error"], message["facts"]).exception()
                if "result" in message:
                    result: Json = message["result"]
                    return result
                report(message["phase"], message["n_done"], message["n_total"])
            code = child.wait()
            words.seek(0)
            said = words.read().decode("utf-8", "replace").split("\n")
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
    if code == -signal.SIGILL:
        raise wrong_build()
    last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
    reason = signal.Signals(-code).name if code < 0 else last
    raise EngineError(f"the work on {Path(job['model']).name} ended early ({reason})", "try `edge inspect` on it")


def serve(work: Callable[[Json, Report], Json]) -> None:
    """The child's main: do the work that the command line holds, and say how it goes on stdout."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: killed when the parent dies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        result = work(json.loads(sys.argv[1]), lambda phase, done, total: _say(phase=phase, n_done=done, n_total=total))
    except EdgeError as error:
        failed = Failed.of("", error)
        _say(error=failed.error, facts=failed.facts)
    else:
        _say(result=result)


def leave_with_reason(reason: str) -> None:
    """For `edge.engine.library.on_abort`: one line instead of a stack."""
    os.write(2, f"{reason.strip()}\n".encode("utf-8", "replace"))
    os._exit(ABORT_EXIT_CODE)


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)  # noqa: T201 - the line the parent reads
