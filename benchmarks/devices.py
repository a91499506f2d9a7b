"""Known devices: how fast their memory is at most, and what share of it programs were seen to reach.

Peak = transfers/s x bus width, from the maker's data sheet; the text of `memory` is the sum done. Knows no models.
"""

from dataclasses import dataclass

from edge.errors import EngineError


@dataclass(frozen=True)
class Device:
    """name: what `--device` takes. Bandwidth in GB/s = 1e9 bytes/s."""

    name: str
    title: str
    peak_gb_per_s: float
    memory: str  # where the peak comes from
    share: tuple[float, float] | None = None  # of the peak that token generation reached, published: low, high
    evidence: str = ""  # who measured that share
    gops: float | None = None  # 8-bit multiply-adds x 2, all fast cores together, 1e9/s
    compute: str = ""  # where that comes from
    n_ram_bytes: int | None = None


def _transfers(mt_per_s: float, n_bits: int, kind: str) -> tuple[float, str]:
    return mt_per_s * n_bits / 8 / 1000, f"{kind}-{mt_per_s:.0f}, {n_bits} bit: {mt_per_s:.0f} MT/s x {n_bits // 8} B"


_A76_DOT = "{n} Cortex-A76 at {ghz} GHz: 2 pipes x 16 8-bit multiply-adds (SDOT) x 2 operations"
_DEVICES = (
    Device(
        "pi-4", "Raspberry Pi 4", *_transfers(3200, 32, "LPDDR4"),
        share=(0.27, 0.35), evidence="TinyLlama Q8_0 at 3 tokens/s, llama.cpp, 2024 (Mozilla llamafile's tables)",
    ),
    Device(
        "pi-5", "Raspberry Pi 5", *_transfers(4267, 32, "LPDDR4X"),
        share=(0.55, 0.63), evidence="9.8 to 10.6 GB/s at all types, Qwen2.5-0.5B class (llama.cpp issue 26484)",
        gops=4 * 2.4 * 64, compute=_A76_DOT.format(n=4, ghz=2.4),
    ),
    Device(
        "rk3588-lpddr4x", "RK3588, LPDDR4X", *_transfers(4267, 64, "LPDDR4X"),
        share=(0.41, 0.56), evidence="14 to 19 GB/s on the four A76 (rk-llama.cpp issue 9, llama.cpp issue 7176)",
        gops=4 * 2.4 * 64, compute=_A76_DOT.format(n=4, ghz=2.4),
    ),
    Device(
        "rk3588", "RK3588, LPDDR5", *_transfers(5500, 64, "LPDDR5"),
        share=(0.34, 0.48), evidence="15 to 21 GB/s on the four A76 (rk-llama.cpp issue 9)",
        gops=4 * 2.4 * 64, compute=_A76_DOT.format(n=4, ghz=2.4),
    ),
    Device("orin-nano", "Jetson Orin Nano", *_transfers(4250, 128, "LPDDR5")),
    Device(
        "orin-nano-super", "Jetson Orin Nano Super", *_transfers(6400, 128, "LPDDR5"),
        share=(0.35, 0.45), evidence="LFM2.5-1.2B at 54 tokens/s at 25 W, about 40 GB/s (smolhub's Jetson table)",
    ),
    Device(
        "a17-pro", "Apple A17 Pro", *_transfers(6400, 64, "LPDDR5"),
        share=(0.45, 0.75), evidence="the newer A19 Pro moves 46 GB/s with MLX (russet benchmark)",
    ),
    Device("m1", "Apple M1", *_transfers(4266, 128, "LPDDR4X")),
    Device("m2", "Apple M2", *_transfers(6400, 128, "LPDDR5")),
    Device("m3", "Apple M3", *_transfers(6400, 128, "LPDDR5")),
    Device(
        "m4", "Apple M4", *_transfers(7500, 128, "LPDDR5X"),
        share=(0.80, 0.88), evidence="8B Q4_K_M at 20.9 tokens/s, 103 GB/s (normiebench issue 3)",
    ),
    Device("laptop-ddr4", "Laptop, DDR4 in two channels", *_transfers(3200, 128, "DDR4")),
    Device("laptop-lpddr5", "Laptop, LPDDR5 in two channels", *_transfers(6400, 128, "LPDDR5")),
    Device(
        "rtx-3060", "Nvidia RTX 3060 12 GB", *_transfers(15000, 192, "GDDR6"),
        share=(0.52, 0.74), evidence="TinyLlama to 14B, Q4_K_M (geerlingguy/ai-benchmarks)",
    ),
)  # fmt: skip
DEVICES = {device.name: device for device in _DEVICES}


def known_device(name: str) -> Device:
    """A device by its name in any case. Raises EngineError with those there are."""
    if name.lower() not in DEVICES:
        hint = f"choose one of: {', '.join(DEVICES)}; or give its --bandwidth in GB/s"
        raise EngineError(f"no device {name} is known", hint)
    return DEVICES[name.lower()]
