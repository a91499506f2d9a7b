"""What the engine process gives up before it reads a model: the network, and its claim on memory when there is none.

Nothing here needs root. The network goes by a seccomp filter rather than a network namespace, because containers,
hardened units and Ubuntu refuse namespaces to ordinary users, and none of them refuses a filter. What is open already,
the socket to the front, stays open.
"""

import ctypes
import os
import platform
import socket
import struct
import sys
from pathlib import Path

OOM_SCORE = 800  # of 1000: the kernel ends the engine, which comes back, before the front or anybody's ssh

# linux/audit.h and each machine's unistd.h: AUDIT_ARCH, socket, seccomp
MACHINES = {"x86_64": (0xC000003E, 41, 317), "aarch64": (0xC00000B7, 198, 277)}
IO_URING_SETUP = 425  # on every machine; a ring opens sockets without the system call
X32_BIT = 0x40000000  # x86-64's second table of system calls
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # BPF: word of the call's data; two jumps; verdict
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # with EPERM
AT_NUMBER, AT_MACHINE, AT_FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data


def forbid_network() -> str | None:
    """Refuse every new socket but those of this machine's own files (AF_UNIX: GPU drivers use them), in all threads of
    this process and in its children, for good. None when that holds, else why it does not."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return f"no filter is known for {sys.platform} on {platform.machine()}"
    _, _, seccomp = MACHINES[platform.machine()]
    program = _program(platform.machine())
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))  # struct sock_fprog
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    if libc.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))):
        return f"no_new_privs: {os.strerror(ctypes.get_errno())}"
    mode = (ctypes.c_long(SECCOMP_SET_MODE_FILTER), ctypes.c_long(SECCOMP_FILTER_FLAG_TSYNC))
    if libc.syscall(ctypes.c_long(seccomp), *mode, header):
        return f"seccomp: {os.strerror(ctypes.get_errno())}"
    return None


def volunteer_for_oom() -> None:
    """Where memory runs out, be the process that the kernel ends first."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    except OSError:  # not Linux, or /proc is read-only: then the kernel chooses by size, which is mostly us as well
        return


def _program(machine: str) -> bytes:
    """The filter. A jump names how many instructions to skip: when it holds, when it does not."""
    audit_arch, socket_call, _ = MACHINES[machine]
    instructions = [
        (LOAD, 0, 0, AT_MACHINE),
        (EQUAL, 0, 7, audit_arch),  # 32-bit calls have other numbers: all refused
        (LOAD, 0, 0, AT_NUMBER),
        (AT_LEAST, 5, 0, X32_BIT),
        (EQUAL, 4, 0, IO_URING_SETUP),
        (EQUAL, 0, 2, socket_call),
        (LOAD, 0, 0, AT_FIRST_ARGUMENT),
        (EQUAL, 0, 1, socket.AF_UNIX),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
