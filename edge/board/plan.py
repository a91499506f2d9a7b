"""How a model is best run on this board: a model's header and the board in, engine settings and predicted bytes out.

Every command that starts an engine asks here first, so a model that does not fit is refused with the numbers before a
byte of it is read, and before it is downloaded: a header is enough. What the user asked for is kept or refused, never
changed; what was left open is chosen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edge.board import library, tuned
from edge.board.footprint import Footprint, footprint
from edge.board.library import Device
from edge.board.memory import Memory, read_memory
from edge.board.topology import Topology, n_compute_threads, read_topology
from edge.config import N_CTX_TOKENS, EngineSettings
from edge.errors import NoMemoryError
from edge.model.gguf import ModelInfo

READ_SHARE = 0.6  # of memory: a larger model is mapped, so that the kernel can drop its pages when others need room
RESERVE_SHARE, RESERVE_BYTES = 0.04, 48 << 20  # kept free of what is available now: others grow as well
MIN_CTX_TOKENS = 512
SLOT_CTX_TOKENS = 512  # a slot with less of the shared context cannot hold a question and its answer
DEVICE_RESERVE_BYTES = 256 << 20  # of a card's memory: the driver's own, workspaces of its libraries, the desktop


@dataclass(frozen=True)
class Board:
    """What a plan is made for."""

    topology: Topology
    memory: Memory | None  # None: unknown, then nothing is refused
    devices: Sequence[Device] = ()
    gpu_backends: Sequence[str] = ()  # what llama.cpp was built with, whether or not there is a device
    driver_bytes: int = 0  # that their drivers take in the engine process, layers or not

    @cached_property
    def gpu(self) -> Device | None:
        """Where layers go: a card before a GPU that shares the machine's memory, of several cards the roomiest."""
        cards = [device for device in self.devices if device.kind == "gpu"]
        shared = (device for device in self.devices if device.kind == "igpu")
        return max(cards, key=lambda card: card.free_bytes) if cards else next(shared, None)

    @cached_property
    def usable_bytes(self) -> int | None:
        """Memory an engine may take now, so that neither this process nor another one runs short."""
        if self.memory is None:
            return None
        reserve = max(RESERVE_BYTES, int(RESERVE_SHARE * self.memory.limit_bytes))
        return max(0, self.memory.available_bytes - reserve)

    def alone(self, share: float = 1.0, n_used_bytes: int = 0) -> "Board":
        """The same machine with nothing else running: a share of its memory to use, n_used_bytes of it taken."""
        if self.memory is None:
            return self
        limit = int(share * self.memory.limit_bytes) >> 20 << 20  # units give limits in MiB
        available = max(0, limit - n_used_bytes)
        return replace(self, memory=replace(self.memory, limit_bytes=limit, available_bytes=available))

    def needs(self, info: ModelInfo, settings: EngineSettings) -> Footprint:
        """What an engine takes here."""
        is_shared = self.gpu is not None and self.gpu.kind == "igpu"
        return footprint(
            info, settings, self.topology.features, shares_memory=is_shared, driver_bytes=self.driver_bytes
        )


@dataclass(frozen=True)
class Wish:
    """What the user asked for; None is for us to choose."""

    n_ctx_tokens: int | None = None
    n_slots: int | None = None
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    force: bool = False  # start what is predicted not to fit


@dataclass(frozen=True)
class Plan:
    settings: EngineSettings
    footprint: Footprint
    board: Board
    notes: tuple[str, ...]  # what was chosen otherwise than by default, and why
    warnings: tuple[str, ...] = ()  # of the notes, those that are said unasked

    @property
    def remaining_bytes(self) -> int | None:
        """What stays usable for others."""
        return None if self.board.usable_bytes is None else self.board.usable_bytes - self.footprint.total

    def to_json(self) -> dict[str, Any]:
        settings, memory, topology = self.settings, self.board.memory, self.board.topology
        return {
            "model": settings.model,
            "board": topology.name,
            "n_threads": settings.n_threads,
            "engine_cpus": list(settings.cpus or ()),
            "front_cpus": list(topology.front_cpus),
            "n_ctx_tokens": settings.n_ctx_tokens,
            "n_slots": settings.n_slots,
            "n_ubatch_tokens": settings.n_ubatch_tokens,
            "n_outputs_max": settings.n_slots + 1,
            "load_mode": settings.load_mode,
            "kv_type": settings.kv_type,
            "flash_attention": settings.flash_attention,
            "n_gpu_layers": settings.n_gpu_layers,
            "environment": dict(settings.environment),
            "predicted": self.footprint.to_json(),
            "memory": None if memory is None else {
                "total_bytes": memory.total_bytes,
                "limit_bytes": memory.limit_bytes,
                "available_bytes": memory.available_bytes,
                "usable_bytes": self.board.usable_bytes,
                "remaining_bytes": self.remaining_bytes,
            },
            "devices": [vars(device) for device in self.board.devices],
            "notes": list(self.notes),
        }  # fmt: skip


def this_board() -> Board:
    """The machine we are on. A few milliseconds; half a second where the library has a GPU back end to ask."""
    return Board(read_topology(), read_memory(), library.devices(), library.gpu_backends(), library.driver_bytes())


def make_plan(
    info: ModelInfo, wish: Wish = Wish(), board: Board | None = None, default_slots: int = 1, *, use_tuned: bool = True
) -> Plan:
    """Choose settings for a model. Raises NoMemoryError, with what would fit, unless wish.force."""
    board = board or this_board()
    topology = board.topology
    record = tuned.load(info, topology) if use_tuned else None
    notes = []
    base = EngineSettings(str(info.path))
    if record is not None and record.changes():
        base = replace(base, **record.changes())  # type: ignore[arg-type] # names and types are EngineSettings' own
        notes.append("uses what edge tune measured to be best")
    n_ctx = wish.n_ctx_tokens or min(N_CTX_TOKENS, max(info.n_ctx_train, MIN_CTX_TOKENS))
    n_slots = wish.n_slots or default_slots
    base = replace(base, n_ctx_tokens=n_ctx, n_slots=n_slots, **_threads(info, wish, topology, base))
    base, gpu_notes = _with_gpu(info, base, wish, board)
    warnings = _without_gpu(wish, board)
    notes += [*gpu_notes, *warnings]
    first = None
    for settings, why in _choices(base, wish):
        found = board.needs(info, settings)
        first = first or (settings, found)
        if _fits(found, settings, board):
            return Plan(settings, found, board, (*notes, *why), warnings)
    assert first is not None
    settings, found = first
    if not wish.force:
        assert board.usable_bytes is not None
        nearest = _nearest(info, base, board)
        raise NoMemoryError(
            path=Path(info.path),
            n_ctx_tokens=base.n_ctx_tokens,
            n_bytes_needed=min(found.total, board.needs(info, _mapped(settings)).total),
            n_bytes_usable=board.usable_bytes,
            nearest=nearest,
        )
    forced = _mapped(settings)
    notes.append("does not fit and was forced: expect it to be slow, or to be ended by the kernel")
    return Plan(forced, board.needs(info, forced), board, tuple(notes), warnings)


def _choices(base: EngineSettings, wish: Wish) -> Iterator[tuple[EngineSettings, tuple[str, ...]]]:
    """Settings to try, best first: weights copied, mapped (slower prompts), q8_0 KV (slower still), less context."""
    slots, ctx = base.n_slots, base.n_ctx_tokens
    contexts = [ctx]
    if wish.n_ctx_tokens is None:
        while contexts[-1] // 2 >= MIN_CTX_TOKENS:
            contexts.append(contexts[-1] // 2)
    for n_ctx in contexts:
        n_slots = slots if wish.n_slots else max(1, min(slots, n_ctx // SLOT_CTX_TOKENS))
        shorter = (f"context {n_ctx:,} instead of {ctx:,} tokens, for want of memory",) if n_ctx < ctx else ()
        fewer = (f"{n_slots} slots instead of {slots}: each needs {SLOT_CTX_TOKENS} tokens",) if n_slots < slots else ()
        settings = replace(base, n_ctx_tokens=n_ctx, n_slots=n_slots)
        yield settings, shorter + fewer
        if settings.load_mode == "read":
            yield _mapped(settings), (*shorter, *fewer, "weights are mapped, not copied: prompts are read more slowly")
        smaller = replace(_mapped(settings), kv_type="q8_0")
        if settings.flash_attention is not False:  # llama.cpp has no quantised V without it
            yield smaller, (*shorter, *fewer, "weights are mapped and the KV cache is q8_0: prompts are read slowly")


def _mapped(settings: EngineSettings) -> EngineSettings:
    return replace(settings, load_mode="map")


def _fits(found: Footprint, settings: EngineSettings, board: Board) -> bool:
    if board.usable_bytes is None or board.memory is None:
        return True
    if settings.load_mode == "read" and found.total > READ_SHARE * board.memory.limit_bytes:
        return False
    return found.total <= board.usable_bytes


def _threads(info: ModelInfo, wish: Wish, topology: Topology, base: EngineSettings) -> dict[str, Any]:
    """Threads, and the cores they are bound to; () binds to nothing."""
    cpus = topology.compute_cpus
    n_threads = wish.n_threads or base.n_threads or n_compute_threads(topology.n_threads_max, info.tensor_bytes)
    if wish.n_threads is None and base.cpus is not None:
        return {"n_threads": n_threads, "cpus": base.cpus}
    n_usable = sum(len(cluster.cpus) for cluster in topology.clusters)
    is_bound = topology.is_pinnable and n_threads <= len(cpus) < n_usable
    return {"n_threads": n_threads, "cpus": cpus if is_bound else ()}


def _with_gpu(info: ModelInfo, base: EngineSettings, wish: Wish, board: Board) -> tuple[EngineSettings, list[str]]:
    """As many layers on a GPU as were asked for, or as fit into what is free there. Raises NoMemoryError."""
    gpu, n_most = board.gpu, info.n_layers + 1
    if gpu is None or wish.n_gpu_layers == 0:
        return base, []
    if wish.n_gpu_layers is not None:
        settings = replace(base, n_gpu_layers=min(wish.n_gpu_layers, n_most))
        n_fitting = _n_fitting(info, settings, gpu, board)
        if n_fitting < settings.n_gpu_layers and not wish.force:
            raise NoMemoryError(
                path=Path(info.path),
                n_ctx_tokens=base.n_ctx_tokens,
                n_bytes_needed=board.needs(info, settings).device,
                n_bytes_usable=_device_room(gpu),
                nearest=f"--gpu-layers {n_fitting} fits",
                place=gpu.description,
            )
        return settings, []
    if gpu.kind == "igpu" and gpu.name.startswith("Vulkan") and "NEON" in board.topology.features:
        return base, [f"{gpu.description} is left alone: those of Arm boards are slower than their CPU"]
    settings = replace(base, n_gpu_layers=_n_fitting(info, replace(base, n_gpu_layers=n_most), gpu, board))
    if gpu.kind == "igpu" and not _fits(board.needs(info, settings), settings, board):
        return base, [f"{gpu.description} is left alone: what lies there cannot give way when memory is short"]
    if settings.n_gpu_layers == 0:
        return base, [f"no layer fits into what {gpu.description} has free"]
    where = "all" if settings.n_gpu_layers == n_most else f"{settings.n_gpu_layers} of {n_most}"
    return settings, [f"{where} layers on {gpu.description}"]


def _n_fitting(info: ModelInfo, settings: EngineSettings, gpu: Device, board: Board) -> int:
    """How many of the layers that settings ask for fit into what is free on a GPU."""
    for n_layers in range(settings.n_gpu_layers, 0, -1):
        if board.needs(info, replace(settings, n_gpu_layers=n_layers)).device <= _device_room(gpu):
            return n_layers
    return 0


def _device_room(gpu: Device) -> int:
    reserve = DEVICE_RESERVE_BYTES if gpu.kind == "gpu" else 0  # the machine's memory has a reserve of its own
    return max(0, gpu.free_bytes - reserve)


def _without_gpu(wish: Wish, board: Board) -> tuple[str, ...]:
    """What to say where a GPU was expected and there is none."""
    if board.gpu is not None or wish.n_gpu_layers == 0:
        return ()
    if board.gpu_backends:
        named = " and ".join(board.gpu_backends)
        return (f"llama.cpp found no GPU with its {named} back end, so the CPU computes all; see edge doctor",)
    if wish.n_gpu_layers:
        return ("llama.cpp was built without a GPU back end: --gpu-layers does nothing; see docs/gpu.md",)
    return ()


def _nearest(info: ModelInfo, base: EngineSettings, board: Board) -> str:
    """What would fit, in words: a smaller context, fewer slots, a smaller file."""
    usable = board.usable_bytes or 0
    if base.n_gpu_layers and board.needs(info, replace(_mapped(base), n_gpu_layers=0)).total <= usable:
        return "--gpu-layers 0 fits"
    for n_slots in dict.fromkeys((base.n_slots, 1)):
        n_ctx = base.n_ctx_tokens
        while n_ctx >= MIN_CTX_TOKENS:
            settings = replace(_mapped(base), n_ctx_tokens=n_ctx, n_slots=n_slots)
            if board.needs(info, settings).total <= usable:
                slots = f" and {n_slots} slot" if n_slots < base.n_slots else ""
                return f"a context of {n_ctx:,} tokens{slots} fits"
            n_ctx = 1 << (n_ctx - 1).bit_length() - 1
    smallest = board.needs(info, replace(_mapped(base), n_ctx_tokens=MIN_CTX_TOKENS, n_slots=1))
    room = usable - (smallest.total - smallest.weights)
    quants = (("Q4_K_M", 4.95), ("Q4_0", 4.65), ("Q3_K_M", 4.0), ("Q2_K", 3.4))  # bits a weight, output matrix included
    for name, bits in quants:
        if info.n_params * bits / 8 <= room and bits < info.bits_per_weight - 0.3:
            return f"a {name} of this model fits, about {info.n_params * bits / 8e6:,.0f} MB"
    if room <= 0:
        return "no model of this vocabulary fits"
    return f"a model with a file of up to {room / 1e6:,.0f} MB fits"
