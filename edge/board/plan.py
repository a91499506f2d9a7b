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
from edge.board.footprint import Footprint, device_layers, footprint
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
DEVICE_RESERVE_BYTES = 256 << 20  # of a GPU's memory: its compute buffers, and the desktop


@dataclass(frozen=True)
class Board:
    """What a plan is made for."""

    topology: Topology
    memory: Memory | None  # None: unknown, then nothing is refused
    devices: Sequence[Device] = ()

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
    return Board(read_topology(), read_memory(), library.devices())


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
    notes += gpu_notes
    first = None
    for settings, why in _choices(base, wish):
        found = footprint(info, settings, topology.features)
        first = first or (settings, found)
        if _fits(found, settings, board):
            return Plan(settings, found, board, (*notes, *why))
    assert first is not None
    settings, found = first
    if not wish.force:
        assert board.usable_bytes is not None
        nearest = _nearest(info, base, board)
        raise NoMemoryError(
            path=Path(info.path),
            n_ctx_tokens=base.n_ctx_tokens,
            n_bytes_needed=min(found.total, footprint(info, _mapped(settings), topology.features).total),
            n_bytes_usable=board.usable_bytes,
            nearest=nearest,
        )
    forced = _mapped(settings)
    notes.append("does not fit and was forced: expect it to be slow, or to be ended by the kernel")
    return Plan(forced, footprint(info, forced, topology.features), board, tuple(notes))


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
    """As many layers on a GPU as were asked for, or as fit into what is free there."""
    gpus = [device for device in board.devices if device.kind in ("gpu", "igpu")]
    n_most = info.n_layers + 1
    if wish.n_gpu_layers is not None:
        notes = [] if gpus or wish.n_gpu_layers == 0 else ["no GPU was found: --gpu-layers does nothing"]
        return replace(base, n_gpu_layers=min(wish.n_gpu_layers, n_most) if gpus else 0), notes
    discrete = [device for device in gpus if device.kind == "gpu"]  # an integrated one takes the same memory
    free = max((device.free_bytes for device in discrete), default=0) - DEVICE_RESERVE_BYTES
    for n_layers in range(n_most if free > 0 else 0, 0, -1):
        settings = replace(base, n_gpu_layers=n_layers)
        if footprint(info, settings, board.topology.features).device <= free:
            where = "all" if n_layers == n_most else f"{len(device_layers(info, n_layers))} of {n_most}"
            return settings, [f"{where} layers on {discrete[0].description}"]
    return base, []


def _nearest(info: ModelInfo, base: EngineSettings, board: Board) -> str:
    """What would fit, in words: a smaller context, fewer slots, a smaller file."""
    usable, features = board.usable_bytes or 0, board.topology.features
    for n_slots in dict.fromkeys((base.n_slots, 1)):
        n_ctx = base.n_ctx_tokens
        while n_ctx >= MIN_CTX_TOKENS:
            settings = replace(_mapped(base), n_ctx_tokens=n_ctx, n_slots=n_slots)
            if footprint(info, settings, features).total <= usable:
                slots = f" and {n_slots} slot" if n_slots < base.n_slots else ""
                return f"a context of {n_ctx:,} tokens{slots} fits"
            n_ctx = 1 << (n_ctx - 1).bit_length() - 1
    smallest = footprint(info, replace(_mapped(base), n_ctx_tokens=MIN_CTX_TOKENS, n_slots=1), features)
    room = usable - (smallest.total - smallest.weights)
    quants = (("Q4_K_M", 4.95), ("Q4_0", 4.65), ("Q3_K_M", 4.0), ("Q2_K", 3.4))  # bits a weight, output matrix included
    for name, bits in quants:
        if info.n_params * bits / 8 <= room and bits < info.bits_per_weight - 0.3:
            return f"a {name} of this model fits, about {info.n_params * bits / 8e6:,.0f} MB"
    if room <= 0:
        return "no model of this vocabulary fits"
    return f"a model with a file of up to {room / 1e6:,.0f} MB fits"
