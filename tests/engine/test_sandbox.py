"""What the engine process cannot do any more, asked of real processes."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge.config import EngineSettings
from edge.engine import sandbox
from edge.engine.client import Engine

linux = pytest.mark.skipif(sys.platform != "linux", reason="seccomp and /proc are Linux")

TRY = """
import socket, threading
from edge.engine import sandbox
ready, done = threading.Event(), threading.Event()
def early():  # a thread older than the filter
    ready.wait()
    try: socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    except PermissionError: print("early: refused")
    done.set()
threading.Thread(target=early).start()
ours, theirs = socket.socketpair()
print(sandbox.forbid_network())
ready.set(), done.wait()
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
    try: socket.socket(family, socket.SOCK_DGRAM)
    except PermissionError: print(family.name, "refused")
socket.socket(socket.AF_UNIX), print("AF_UNIX open")
ours.send(b"kept"), print(theirs.recv(9))
import subprocess, sys
child = "import socket\\ntry: socket.socket()\\nexcept PermissionError: print('child: refused')"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout.strip())
import ctypes
ring = ctypes.CDLL(None, use_errno=True).syscall(425, 1, ctypes.create_string_buffer(120))
print("io_uring", ring, ctypes.get_errno())
"""


@linux
def test_every_thread_and_child_is_refused_a_network_socket() -> None:
    done = subprocess.run([sys.executable, "-c", TRY], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "None",
        "early: refused",
        "AF_INET refused",
        "AF_INET6 refused",
        "AF_NETLINK refused",
        "AF_UNIX open",
        "b'kept'",
        "child: refused",
        "io_uring -1 1",
    ], done.stderr


@linux
def test_the_running_engine_is_filtered_in_every_thread_and_first_to_go(demo_model: Path) -> None:
    with Engine(EngineSettings(str(demo_model), n_threads=2)) as engine:
        assert engine.start().network == ""
        process = Path(f"/proc/{engine.pid}")
        for thread in (process / "task").iterdir():
            status = (thread / "status").read_text()
            assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)
            assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        assert (process / "oom_score_adj").read_text() == f"{sandbox.OOM_SCORE}\n"


def test_a_machine_without_a_known_filter_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert sandbox.forbid_network() == f"no filter is known for {sys.platform} on vax"


@linux
def test_the_numbers_are_those_of_the_kernel_headers() -> None:
    """A wrong number would leave the network open."""
    machine = platform.machine()
    arch = {"x86_64": "AUDIT_ARCH_X86_64", "aarch64": "AUDIT_ARCH_AARCH64"}[machine]
    source = f"#include <sys/syscall.h>\n#include <linux/audit.h>\nSYS_socket SYS_seccomp SYS_io_uring_setup\n{arch}\n"
    done = subprocess.run(["cc", "-E", "-P", "-"], input=source, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no kernel headers")
    calls, expression = done.stdout.splitlines()[-2:]
    value = sum(int(number, 0) for number in re.findall(r"\w+", expression))  # (62|0x80000000|0x40000000)
    assert (value, *map(int, calls.split())) == (*sandbox.MACHINES[machine], sandbox.IO_URING_SETUP)
