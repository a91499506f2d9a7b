"""The build of llama.cpp that fits this machine: a target of scripts/build-llama.sh, and the command that makes it."""

from pathlib import Path

from edge.board.topology import Topology, read_topology
from edge.errors import WrongBuildError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build-llama.sh"
FROM_SOURCE = "pip install --force-reinstall --no-deps --no-cache-dir --no-binary :all: llama-cpp-python==0.3.36"


def build_target(topology: Topology) -> str:
    """The name of the target for a machine."""
    name, features = topology.name, topology.features
    if not topology.is_pinnable and "NEON" in features:  # a Mac
        return "metal"
    if "NEON" in features:
        if "Raspberry Pi 5" in name:
            return "pi5"
        if "Raspberry Pi 4" in name:
            return "pi4"
        if any(cluster.name == "Cortex-A76" for cluster in topology.clusters) and len(topology.clusters) > 1:
            return "rk3588"
        if "MATMUL_INT8" in features:
            return "armv8.6-i8mm"
        return "armv8.2-dotprod" if {"DOTPROD", "FP16_VA"} <= features else "armv8.0"
    return "native"


def build_command(topology: Topology) -> str:
    """What to run on a machine to have the build that fits it."""
    if not SCRIPT.is_file():  # edge was installed without its source folder
        return FROM_SOURCE
    return f"bash scripts/{SCRIPT.name} --target {build_target(topology)} --install"


def wrong_build() -> WrongBuildError:
    """What the death of a process by SIGILL means, on this machine."""
    reason = "llama.cpp was built for another CPU and stopped at an instruction that this one does not have"
    return WrongBuildError(reason, build_command(read_topology()))
