"""Plans: what was asked for is kept or refused with numbers, what was left open is chosen to fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge.board import plan as planning
from edge.board import tuned
from edge.board.footprint import footprint
from edge.board.library import Device
from edge.board.memory import Memory, read_memory
from edge.board.options import ALL_LAYERS
from edge.board.plan import Board, Plan, Wish, make_plan
from edge.board.topology import read_topology
from edge.board.tuned import Tuned
from edge.config import N_CTX_TOKENS
from edge.errors import NoMemoryError
from edge.model.gguf import ModelInfo, read_model_info
from tests.board.trees import build

MB, GB = 1_000_000, 1_000_000_000
DEVICES = json.loads((Path(__file__).parent / "devices.json").read_text())


@pytest.fixture
def info(demo_model: Path) -> ModelInfo:
    return read_model_info(demo_model)


@pytest.fixture
def board(tmp_path: Path) -> Callable[[str], Board]:
    def make(name: str) -> Board:
        root = build(name, tmp_path / name)
        return Board(replace(read_topology(root), is_pinnable=True), read_memory(root))

    return make


def with_memory(board: Board, limit: int, available: int) -> Board:
    return replace(board, memory=Memory(limit, available, limit, None, 0, 0, 0, 4096))


def test_the_default_fits_a_usual_board(info: ModelInfo, board: Callable[[str], Board]) -> None:
    plan = make_plan(info, board=board("raspberry-pi-5"))
    settings = plan.settings
    assert (settings.n_ctx_tokens, settings.n_slots, settings.load_mode, settings.kv_type) == (4096, 1, "read", "f16")
    assert settings.n_gpu_layers == 0
    assert plan.remaining_bytes == (plan.board.usable_bytes or 0) - plan.footprint.total
    assert plan.notes == ()


def test_a_big_model_gets_the_big_cores_and_leaves_the_others(
    info: ModelInfo, board: Callable[[str], Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelInfo, "tensor_bytes", 10**9)
    plan = make_plan(info, board=board("rk3588"))
    assert (plan.settings.n_threads, plan.settings.cpus) == (4, (4, 5, 6, 7))
    assert plan.to_json()["front_cpus"] == [0, 1, 2, 3]
    assert make_plan(info, board=board("raspberry-pi-5")).settings.cpus == ()  # nothing to be kept away from
    quota = make_plan(info, board=board("docker-v1-quota")).settings
    assert quota.n_threads == 1


def test_more_threads_than_fast_cores_are_not_bound_to_them(info: ModelInfo, board: Callable[[str], Board]) -> None:
    settings = make_plan(info, Wish(n_threads=8), board("rk3588")).settings
    assert (settings.n_threads, settings.cpus) == (8, ())


def test_a_model_of_most_of_the_memory_is_mapped(info: ModelInfo, board: Callable[[str], Board]) -> None:
    total = make_plan(info, board=board("raspberry-pi-5")).footprint.total
    tight = with_memory(board("rk3566"), int(total / 0.55), int(total / 0.55) - 10 * MB)
    assert make_plan(info, board=tight).settings.load_mode == "read"
    tighter = with_memory(board("rk3588"), int(total / 0.65), int(total / 0.65) - 1)
    assert tighter.usable_bytes is not None
    if tighter.usable_bytes >= total:
        found = make_plan(info, board=tighter)
        assert found.settings.load_mode == "map"
        assert "weights are mapped" in found.notes[0]


def fitting(info: ModelInfo, board: Board, n_ctx: int, extra: int) -> Board:
    """Memory in which a context of n_ctx mapped just fits."""
    base = make_plan(info, Wish(n_ctx, 1, 1), with_memory(board, 1 << 40, 1 << 40)).settings
    need = footprint(info, replace(base, load_mode="map"), board.topology.features).total + extra
    return with_memory(board, need + planning.RESERVE_BYTES, need + planning.RESERVE_BYTES)


def test_an_open_context_shrinks_until_it_fits(info: ModelInfo, board: Callable[[str], Board]) -> None:
    small = fitting(info, board("raspberry-pi-3"), 1024, 0)
    plan = make_plan(info, board=small, default_slots=4)
    assert plan.settings.n_ctx_tokens < N_CTX_TOKENS
    assert plan.footprint.total <= (small.usable_bytes or 0)
    assert any("for want of memory" in note for note in plan.notes)
    assert plan.settings.n_slots <= plan.settings.n_ctx_tokens // 512


def test_a_context_that_was_asked_for_is_kept_or_refused(info: ModelInfo, board: Callable[[str], Board]) -> None:
    small = fitting(info, board("raspberry-pi-3"), 1024, 0)
    with pytest.raises(NoMemoryError) as error:
        make_plan(info, Wish(n_ctx_tokens=65536), small)
    assert error.value.n_ctx_tokens == 65536
    assert error.value.n_bytes_usable == small.usable_bytes
    assert error.value.n_bytes_needed > error.value.n_bytes_usable
    assert "a context of 1,024 tokens" in error.value.nearest
    assert str(error.value).endswith("try it all the same with --force")
    forced = make_plan(info, Wish(n_ctx_tokens=65536, force=True), small)
    assert (forced.settings.n_ctx_tokens, forced.settings.load_mode) == (65536, "map")
    assert "forced" in forced.notes[-1]


def test_a_file_too_large_is_answered_with_a_smaller_one(
    info: ModelInfo, board: Callable[[str], Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = 300  # as if every matrix had so many times more rows
    big = replace(info, tensors=tuple(replace(t, shape=(t.shape[0], t.shape[-1] * scale), n_bytes=t.n_bytes * scale)
                                      for t in info.tensors))  # fmt: skip
    with pytest.raises(NoMemoryError) as error:
        make_plan(big, board=with_memory(board("raspberry-pi-3"), 1080 * MB, 1030 * MB))
    assert "Q4_K_M of this model fits" in error.value.nearest
    with pytest.raises(NoMemoryError) as error:
        make_plan(big, board=with_memory(board("raspberry-pi-3"), 400 * MB, 300 * MB))
    assert "a model with a file of up to" in error.value.nearest


def test_a_cgroup_counts_as_the_machine(info: ModelInfo, board: Callable[[str], Board]) -> None:
    lxc = board("lxc-cpuset")
    assert lxc.usable_bytes is not None
    assert lxc.usable_bytes < 2 << 30


def test_an_unknown_memory_refuses_nothing(info: ModelInfo, board: Callable[[str], Board]) -> None:
    plan = make_plan(info, Wish(n_ctx_tokens=1 << 20), board("no-sys"))
    assert plan.settings.load_mode == "read"
    assert plan.remaining_bytes is None
    assert plan.to_json()["memory"] is None


def with_devices(board: Board, name: str) -> Board:
    """A board with the devices of a recorded list."""
    found = DEVICES[name]
    return replace(board, devices=[Device(**device) for device in found["devices"]], gpu_backends=found["backends"])


def as_large_as(info: ModelInfo, n_bytes: int) -> ModelInfo:
    """The same layers with matrices so many times taller that the file has about n_bytes."""
    scale = n_bytes // info.tensor_bytes
    tensors = tuple(
        replace(t, shape=(t.shape[0], t.shape[-1] * scale), n_bytes=t.n_bytes * scale) for t in info.tensors
    )
    return replace(info, tensors=tensors)


def test_gpu_layers_are_as_many_as_fit_a_card(info: ModelInfo, board: Callable[[str], Board]) -> None:
    def on(free: int, n_layers: int | None = None, *, force: bool = False) -> Plan:
        here = replace(board("amd-5800x"), devices=[Device("CUDA0", "Some GPU", "gpu", free, free)])
        return make_plan(info, Wish(n_gpu_layers=n_layers, force=force), here)

    every = info.n_layers + 1
    assert on(8 << 30).settings.n_gpu_layers == every
    assert on(8 << 30).notes == ("all layers on Some GPU",)
    all_bytes = on(8 << 30).footprint.device
    room = planning.DEVICE_RESERVE_BYTES + all_bytes
    assert on(room).settings.n_gpu_layers == every
    some = on(room - 1)
    assert 0 < some.settings.n_gpu_layers < every
    assert some.footprint.device < all_bytes
    assert some.notes == (f"{some.settings.n_gpu_layers} of {every} layers on Some GPU",)
    none = on(planning.DEVICE_RESERVE_BYTES)
    assert none.settings.n_gpu_layers == 0
    assert none.notes == ("no layer fits into what Some GPU has free",)
    assert on(8 << 30, 0).notes == ()
    assert on(8 << 30, ALL_LAYERS).settings.n_gpu_layers == every


def test_layers_that_were_asked_for_are_kept_or_refused(info: ModelInfo, board: Callable[[str], Board]) -> None:
    def on(free: int, n_layers: int, *, force: bool = False) -> Plan:
        here = replace(board("amd-5800x"), devices=[Device("CUDA0", "Some GPU", "gpu", free, free)])
        return make_plan(info, Wish(n_gpu_layers=n_layers, force=force), here)

    three = on(8 << 30, 3)
    assert three.settings.n_gpu_layers == 3
    room = planning.DEVICE_RESERVE_BYTES + three.footprint.device
    with pytest.raises(NoMemoryError) as error:
        on(room, ALL_LAYERS)
    assert (error.value.n_bytes_usable, error.value.nearest) == (three.footprint.device, "--gpu-layers 3 fits")
    assert error.value.n_bytes_needed == on(8 << 30, ALL_LAYERS).footprint.device
    assert "MB on Some GPU with a context of 4,096 tokens" in str(error.value)
    assert on(room, ALL_LAYERS, force=True).settings.n_gpu_layers == info.n_layers + 1


def test_memory_that_a_gpu_shares_is_counted_once(info: ModelInfo, board: Callable[[str], Board]) -> None:
    here, large = board("amd-5800x"), as_large_as(info, GB)
    on_cpu = make_plan(large, Wish(n_gpu_layers=0), here).footprint
    shared = make_plan(large, Wish(), with_devices(here, "lavapipe"))
    assert shared.settings.n_gpu_layers == info.n_layers + 1
    parts = shared.footprint
    assert parts.total == parts.weights + parts.kv + parts.compute + parts.logits + parts.engine + parts.device
    assert on_cpu.total < parts.total < on_cpu.total + 0.1 * GB
    assert shared.remaining_bytes == (here.usable_bytes or 0) - parts.total
    card = make_plan(large, Wish(), with_devices(here, "rtx-2060-with-a-desktop")).footprint
    assert (card.device, card.total) == (parts.device, parts.total - parts.device)
    assert card.total < 0.3 * GB


def test_what_lies_on_a_shared_gpu_must_fit_beside_the_rest(info: ModelInfo, board: Callable[[str], Board]) -> None:
    large = as_large_as(info, GB)

    def on(n_bytes: int, n_layers: int | None = None) -> Plan:
        here = with_devices(with_memory(board("amd-5800x"), n_bytes, n_bytes), "lavapipe")
        return make_plan(large, Wish(n_gpu_layers=n_layers), here)

    assert on(2 * GB).notes == ("all layers on llvmpipe (LLVM 15.0.6, 256 bits)",)  # 2 GB more are free, it says
    tight = on(int(1.3 * GB))
    assert (tight.settings.n_gpu_layers, tight.settings.load_mode) == (0, "map")  # of a map pages can be dropped
    assert "left alone" in tight.notes[0]
    assert on(int(1.3 * GB), ALL_LAYERS).settings.n_gpu_layers == info.n_layers + 1
    with pytest.raises(NoMemoryError) as error:
        on(GB, ALL_LAYERS)
    assert error.value.n_bytes_needed > GB
    with pytest.raises(NoMemoryError) as error:  # its heap is smaller than the machine
        make_plan(
            as_large_as(info, 3 * GB),
            Wish(n_gpu_layers=ALL_LAYERS),
            with_devices(with_memory(board("amd-5800x"), 16 * GB, 16 * GB), "lavapipe"),
        )
    assert (error.value.place, error.value.n_bytes_usable) == ("llvmpipe (LLVM 15.0.6, 256 bits)", 2 << 30)


@pytest.mark.parametrize(
    ("devices", "n_bytes", "where"),
    [
        ("rtx-3080-ti-and-pro-4000", 1 * GB, "all layers on NVIDIA RTX PRO 4000 Blackwell SFF Edition"),
        ("rtx-2060-with-a-desktop", 4 * GB, "all layers on NVIDIA GeForce RTX 2060"),
        ("rtx-2060-with-a-desktop", 8 * GB, "3 of 5 layers on NVIDIA GeForce RTX 2060"),
        ("laptop-with-two", 1 * GB, "all layers on NVIDIA GeForce RTX 3050 Laptop GPU"),
        ("jetson-orin-nano", 1 * GB, "all layers on Orin"),
        ("apple-m1", 1 * GB, "all layers on Apple M1"),
        ("rk3588-mali", 1 * GB, "Mali-G610 is left alone: those of Arm boards are slower than their CPU"),
    ],
)
def test_recorded_devices_get_the_layers_that_fit(
    info: ModelInfo, board: Callable[[str], Board], devices: str, n_bytes: int, where: str
) -> None:
    machine = {"jetson-orin-nano": "jetson-orin-nano", "apple-m1": "rk3588", "rk3588-mali": "rk3588"}
    here = with_memory(board(machine.get(devices, "amd-5800x")), 16 * GB, 12 * GB)
    plan = make_plan(as_large_as(info, n_bytes), board=with_devices(here, devices))
    assert plan.notes == (where,)
    assert plan.warnings == ()


def test_a_mali_is_used_when_it_is_asked_for(info: ModelInfo, board: Callable[[str], Board]) -> None:
    here = with_devices(board("rk3588"), "rk3588-mali")
    assert make_plan(info, Wish(n_gpu_layers=2), here).settings.n_gpu_layers == 2


def test_a_gpu_that_is_not_there_is_said_once(info: ModelInfo, board: Callable[[str], Board]) -> None:
    gone = with_devices(board("amd-5800x"), "driver-gone")
    for n_layers in (None, 3):
        plan = make_plan(info, Wish(n_gpu_layers=n_layers), gone)
        assert plan.settings.n_gpu_layers == 0
        (warning,) = plan.warnings
        assert plan.notes == (warning,)
        assert warning.startswith("llama.cpp found no GPU with its cuda back end")
    assert make_plan(info, Wish(n_gpu_layers=0), gone).notes == ()
    plain = board("rk3566")
    assert make_plan(info, board=plain).warnings == ()
    (warning,) = make_plan(info, Wish(n_gpu_layers=9), plain).warnings
    assert "built without a GPU back end" in warning


def test_what_tune_found_is_used_unless_threads_are_asked_for(info: ModelInfo, board: Callable[[str], Board]) -> None:
    here = board("rk3588")
    tuned.save(Tuned(n_threads=3, cpus=(4, 5, 6), flash_attention=False, n_ubatch_tokens=128), info, here.topology)
    try:
        settings = make_plan(info, board=here).settings
        assert (settings.n_threads, settings.cpus, settings.flash_attention) == (3, (4, 5, 6), False)
        assert settings.n_ubatch_tokens == 128
        assert make_plan(info, Wish(n_threads=2), here).settings.n_threads == 2
        assert make_plan(info, board=here, use_tuned=False).settings.flash_attention is None
        assert make_plan(info, board=board("raspberry-pi-5")).settings.flash_attention is None  # another board
        tuned.path_of(info, here.topology).write_text('{"n_threads": ')
        assert make_plan(info, board=here).settings.flash_attention is None  # a damaged record is none
    finally:
        tuned.forget(info, here.topology)
