"""What a systemd unit for `edge serve` says, and why. Knows no systemctl and writes nothing.

Only settings that systemd 249 (Ubuntu 22.04) knows, and only those that hold for this program. Left out on purpose:
MemoryDenyWriteExecute (ctypes callbacks need it), the @resources filter (the engine binds itself to cores).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edge.board.plan import Board, Plan

NAME = "edge.service"
MIB = 1 << 20
MARK = "# Written by `edge service install`"
MACHINE_SHARE = 0.9  # of its memory a service may have; the rest is the system's
N_FRONT_BYTES = 160 << 20  # server and template helper as they are
N_BESIDE_BYTES = 512 << 20  # and with all that they may hold: files sent to them, masks of constrained answers
SLACK = 1.2  # between what is used and the limit: it is there for leaks, not for a tight fit
STOP_TIMEOUT_S = 30
TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 - looked for, not written

# %S is /var/lib and %C is /var/cache; what the program would keep in a home goes there
SYSTEM_FOLDERS = (
    *("StateDirectory=edge", "CacheDirectory=edge", "StateDirectoryMode=0700", "CacheDirectoryMode=0700"),
    "Environment=HOME=%S/edge XDG_STATE_HOME=%S XDG_DATA_HOME=%S XDG_CACHE_HOME=%C",
)

Scope = Literal["system", "user"]


@dataclass(frozen=True)
class Unit:
    """One service. Text in, nothing hidden: str(unit) is the whole file."""

    scope: Scope
    command: tuple[str, ...]
    user: str | None  # who runs it; None: the caller (scope user), or one that systemd makes up (scope system)
    environment_file: Path  # keys and other settings; need not exist
    reads: tuple[Path, ...]  # the program and the model: a disk may have to be mounted for them
    writes: tuple[Path, ...]  # folders of the caller (scope user); the system's units get theirs from systemd
    cpus: tuple[int, ...]
    n_memory_bytes_max: int
    is_local: bool  # serves this machine only
    has_gpu: bool = False

    def __str__(self) -> str:
        is_system = self.scope == "system"
        unit = [
            "Description=edge, a server for language models",
            "After=network.target",
            *([f"RequiresMountsFor={_paths(self.reads)}"] if is_system else []),
            "# a start that fails is tried again for some minutes, then left alone",
            *("StartLimitIntervalSec=600", "StartLimitBurst=20"),
        ]
        service = [
            "Type=exec",
            f"ExecStart={' '.join(map(quoted, self.command))}",
            f"EnvironmentFile=-{str(self.environment_file).replace('%', '%%')}",
            *("Environment=PYTHONDONTWRITEBYTECODE=1", "UMask=0077"),
            *("Restart=always", "RestartSec=5", "RestartPreventExitStatus=2"),
            "# the server is told to stop and lets its streams end; the engine goes with it",
            *("KillMode=mixed", f"TimeoutStopSec={STOP_TIMEOUT_S}"),
            "",
            "# The kernel ends the engine first where memory runs out, and the server starts it again.",
            *(f"MemoryMax={self.n_memory_bytes_max >> 20}M", "OOMScoreAdjust=300", "OOMPolicy=continue"),
            *(f"CPUAffinity={' '.join(map(str, self.cpus))}", "TasksMax=256"),
            "",
            "# It reads its model and writes its own two folders. The engine forbids itself the network on top.",
            *self._identity(),
            *("NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes"),
            *([f"BindReadOnlyPaths={_paths(self.temporary)}"] if self.temporary else []),
            *(SYSTEM_FOLDERS if is_system else [f"ReadWritePaths={_paths(self.writes)}"]),
            *("LockPersonality=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes", "RestrictNamespaces=yes"),
            "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
            *("SystemCallArchitectures=native", "SystemCallFilter=@system-service seccomp"),
            "SystemCallErrorNumber=EPERM",
            *(self._system_only() if is_system else []),
        ]
        install = [f"WantedBy={'multi-user' if is_system else 'default'}.target"]
        parts = [f"{MARK}; to change it, install again."]
        for name, lines in (("Unit", unit), ("Service", service), ("Install", install)):
            parts += ["", f"[{name}]", *lines]
        return "\n".join(parts) + "\n"

    @property
    def temporary(self) -> tuple[Path, ...]:
        """Of what it reads, what lies in folders that PrivateTmp hides and a boot may empty."""
        return tuple(path for path in self.reads if any(path.is_relative_to(folder) for folder in TEMPORARY))

    def _identity(self) -> list[str]:
        if self.scope == "user":
            return ["PrivateUsers=yes"]  # without it a user's systemd can protect no folder
        return [f"User={self.user}", "PrivateUsers=yes"] if self.user else ["DynamicUser=yes", "PrivateUsers=yes"]

    def _system_only(self) -> list[str]:
        """What only the system's systemd can do."""
        in_homes = any(path.is_relative_to(home) for path in self.reads for home in ("/home", "/root", "/run/user"))
        return [
            f"ProtectHome={'read-only' if in_homes else 'yes'}",
            *([] if self.has_gpu else ["PrivateDevices=yes"]),
            *(["IPAddressAllow=localhost", "IPAddressDeny=any"] if self.is_local else []),
            *("ProtectClock=yes", "ProtectHostname=yes", "ProtectControlGroups=yes", "ProtectKernelLogs=yes"),
            *("ProtectKernelModules=yes", "ProtectKernelTunables=yes", "ProtectProc=invisible"),
            *("CapabilityBoundingSet=", "AmbientCapabilities=", "RemoveIPC=yes"),
        ]


def service_board(board: "Board") -> "Board":
    """What a service will find at boot: nobody else's memory but the system's, and its own server in it."""
    return board.alone(MACHINE_SHARE, N_FRONT_BYTES)


def memory_max(plan: "Plan") -> int:
    """A limit in bytes that a healthy service of this plan never meets, and inside of which it makes the same plan.

    Beside what the plan predicts, the KV cache counts once more: a saved beginning is copied on its way to the disk.
    """
    from edge.board.plan import READ_SHARE

    parts = plan.footprint
    needed = SLACK * (parts.total + parts.kv + N_BESIDE_BYTES)
    if plan.settings.load_mode == "read":  # in a smaller one the weights would be mapped
        needed = max(needed, parts.total / READ_SHARE)
    whole = math.ceil(needed / MIB) * MIB
    return whole if plan.board.memory is None else min(whole, plan.board.memory.limit_bytes)


def service_cpus(plan: "Plan") -> tuple[int, ...]:
    """The cores the engine is bound to, and one more for the server where there is one: the other slow cores of a board
    stay free for everything else. All of them where the plan binds the engine to none."""
    topology = plan.board.topology
    usable = [cpu for cluster in topology.clusters for cpu in cluster.cpus]
    engine = plan.settings.cpus or usable
    others = [cpu for cpu in (*topology.front_cpus, *usable) if cpu not in engine]
    return tuple(sorted([*engine, *others[:1]]))


def quoted(word: str) -> str:
    """A word of ExecStart: %, $ and quotes mean themselves."""
    return _word(word).replace("$", "$$")


def _word(word: str) -> str:
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return word if word and not any(c in word for c in " '\"\\;") else f'"{word}"'


def _paths(paths: tuple[Path, ...]) -> str:
    return " ".join(_word(str(path)) for path in paths)
