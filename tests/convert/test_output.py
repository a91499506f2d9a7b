"""Whole or nothing: full disks, failing ones, signals, kills, meddlers. And nothing of ours is left running."""

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from convert.pipeline import Progress, convert
from edge.errors import CheckpointError, EdgeError, NoSpaceError, OutputError
from tests.convert import checkpoints
from tests.convert.checkpoints import Shape


class Faults:
    """Lets the n-th system call of a conversion fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
        self.error, self.fail_at, self.n_calls = error, 0, 0
        self._lock = threading.Lock()
        for name in ("pwrite", "fsync", "ftruncate", "link", "replace"):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def arm(self, fail_at: int) -> None:
        self.fail_at, self.n_calls = fail_at, 0

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **words: Any) -> Any:
            with self._lock:
                self.n_calls += 1
                due = self.n_calls == self.fail_at
            if due:
                raise OSError(self.error, os.strerror(self.error))
            return call(*arguments, **words)

        return wrapped


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("error", "raised"), [(errno.ENOSPC, NoSpaceError), (errno.EIO, OutputError)])
def test_each_failing_call_leaves_nothing(
    checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: int, raised: type[EdgeError]
) -> None:
    """Fail write 1, 2, … until the conversion succeeds. Story: a full card must not leave a file that looks whole."""
    faults = Faults(monkeypatch, error)
    before = snapshot(checkpoint)
    fail_at = 0
    while True:
        fail_at += 1
        faults.arm(fail_at)
        try:
            convert(checkpoint, ["Q4_0", "Q8_0"], out)
        except raised:
            assert list(out.iterdir()) == []
            assert snapshot(checkpoint) == before
        else:
            break
    assert fail_at > 30
    assert names(out) == [f"Tiny-R1-{kind}.gguf{end}" for kind in ("Q4_0", "Q8_0") for end in ("", ".json")]


def test_each_file_size_limit_leaves_nothing(checkpoint: Path, out: Path) -> None:
    """The kernel itself refuses to write on, at every 4 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    n_bytes = convert(checkpoint, ["Q4_0"], checkpoint)[0].n_bytes
    try:
        for limit in range(0, n_bytes, 4096):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(OutputError, match="File too large"):
                convert(checkpoint, ["Q4_0"], out)
            assert list(out.iterdir()) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("how", ["gone", "shorter", "newer"])
def test_source_that_changes_meanwhile_is_noticed(checkpoint: Path, out: Path, how: str) -> None:
    shard = checkpoint / "model.safetensors"

    def meddle(progress: Progress) -> None:
        if progress.phase == "convert":
            if how == "gone":
                shard.unlink(missing_ok=True)
            elif how == "shorter":
                os.truncate(shard, 1000)
            else:
                os.utime(shard, (1, 1))

    with pytest.raises(CheckpointError) as caught:
        convert(checkpoint, ["Q4_0"], out, progress=meddle)
    assert caught.value.path == shard
    assert "leave the checkpoint alone" in caught.value.remedy
    assert list(out.iterdir()) == []


def test_disk_that_loses_data_is_noticed(checkpoint: Path, out: Path) -> None:
    """SD cards lie about what they have written."""

    def lose(progress: Progress) -> None:
        for partial in out.glob(".*.gguf.partial"):
            with partial.open("r+b") as file:
                file.seek(-100, os.SEEK_END)
                file.write(b"x")

    with pytest.raises(OutputError) as caught:
        convert(checkpoint, ["Q4_0"], out, progress=lose)
    assert "reads back differently at byte" in caught.value.problem
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)],
)
@pytest.mark.parametrize("phase", ["convert", "verify"])
def test_signals_leave_nothing(
    checkpoint: Path, out: Path, number: signal.Signals, raised: type[BaseException], phase: str
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.phase == phase:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(raised) as caught:
        convert(checkpoint, ["Q4_0", "Q8_0"], out, progress=interrupt)
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 128 + number
    assert list(out.iterdir()) == []
    assert signal.getsignal(number) == handler


def test_ignored_signals_stay_ignored(checkpoint: Path, out: Path) -> None:
    """`nohup edge convert … &` outlives its terminal."""

    def hang_up(progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert convert(checkpoint, ["Q4_0"], out, progress=hang_up)[0].path.is_file()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_outside_the_main_thread_are_left_alone(checkpoint: Path, out: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(convert, checkpoint, ["Q4_0"], out).result()[0].path.is_file()


def test_failing_progress_leaves_nothing(checkpoint: Path, out: Path) -> None:
    def fail(progress: Progress) -> None:
        raise RuntimeError("the bar is broken")

    with pytest.raises(RuntimeError, match="the bar is broken"):
        convert(checkpoint, ["Q4_0"], out, progress=fail)
    assert list(out.iterdir()) == []


_CHILD = "import sys; from pathlib import Path; from convert.pipeline import convert; print('ready', flush=True)\n" + (
    "while True: convert(Path(sys.argv[1]), ['Q4_0'], Path(sys.argv[2]), overwrite=True)"
)


def test_kill_leaves_old_or_new_and_the_next_run_cleans_up(checkpoint: Path, out: Path) -> None:
    """A child converts for ever; it is killed at eight odd moments."""
    whole = convert(checkpoint, ["Q4_0"], out)[0].sha256
    path = out / "Tiny-R1-Q4_0.gguf"
    for i in range(8):
        child = subprocess.Popen([sys.executable, "-c", _CHILD, checkpoint, out], stdout=subprocess.PIPE)
        assert child.stdout
        child.stdout.readline()
        time.sleep(0.03 + 0.0037 * i)
        child.kill()
        child.wait()
        child.stdout.close()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == whole
    convert(checkpoint, ["Q4_0"], out, overwrite=True)
    assert names(out) == [path.name, f"{path.name}.json"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from convert.pipeline import convert

n_calls, die_at = 0, 0

def wrapped(call):
    def counting(*arguments, **words):
        global n_calls
        n_calls += 1
        if n_calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **words)
    return counting

for name in ("open", "pwrite", "fsync", "ftruncate", "link", "replace", "unlink"):
    setattr(os, name, wrapped(getattr(os, name)))
for line in sys.stdin:  # one process for each kill, without starting Python each time
    n_calls, die_at = 0, int(line)
    child = os.fork()
    if child == 0:
        convert(Path(sys.argv[1]), ["Q4_0"], Path(sys.argv[2]))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="fork is not safe there")
def test_kill_at_each_call_leaves_nothing_under_the_name_or_the_whole_file(checkpoint: Path, out: Path) -> None:
    whole = convert(checkpoint, ["Q4_0"], checkpoint)[0].sha256
    before = snapshot(checkpoint)
    arguments = [sys.executable, "-c", _KILLED, str(checkpoint), str(out)]
    path = out / "Tiny-R1-Q4_0.gguf"
    n_kills = n_whole = 0
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin
        assert parent.stdout
        while True:
            print(n_kills + 1, file=parent.stdin, flush=True)
            code = int(parent.stdout.readline())
            assert snapshot(checkpoint) == before
            if path.exists():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == whole
                n_whole += code != 0
                path.unlink()  # the leftovers stay for the next one
                path.with_name(f"{path.name}.json").unlink(missing_ok=True)
            if code == 0:
                break
            n_kills += 1
    assert n_kills > 30
    assert 0 < n_whole < 10
    assert list(out.iterdir()) == []


def test_two_at_once_do_not_mix(checkpoint: Path, out: Path) -> None:
    def second(progress: Progress) -> None:
        if progress.phase == "verify":
            with pytest.raises(OutputError) as caught:
                convert(checkpoint, ["Q4_0"], out)
            assert caught.value.problem == "is being written by another process"

    convert(checkpoint, ["Q4_0"], out, progress=second)
    assert names(out) == ["Tiny-R1-Q4_0.gguf", "Tiny-R1-Q4_0.gguf.json"]


_HUNGRY = (
    "import sys, resource; from pathlib import Path; from convert.pipeline import convert; from edge.errors import *\n"
    "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
    "resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]), -1))\n"
    "try: convert(Path(sys.argv[1]), ['Q4_0'], Path(sys.argv[2]), overwrite=True)\n"
    "except EdgeError as error: print(error)\n"
)


@pytest.mark.parametrize("n_bytes", [0, 1 << 20, 12 << 20, 30 << 20])
def test_too_little_memory_is_said(tmp_path: Path, out: Path, n_bytes: int) -> None:
    checkpoint = checkpoints.write(tmp_path / "model", Shape(embd=1024, ff=2048, vocab=2048, head=8))
    arguments = [sys.executable, "-c", _HUNGRY, str(checkpoint), str(out), str(n_bytes)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "memory" in done.stdout or "thread" in done.stdout
    assert list(out.iterdir()) == []
