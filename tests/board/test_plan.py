"""Plans: what was asked for is kept or refused with numbers, what was left open is chosen to fit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge.board import plan as planning
from edge.board import tuned
from edge.board.footprint import footprint
from edge.board.library import Device
from edge.board.memory import Memory, read_memory
from edge.board.plan import Board, Plan, Wish, make_plan
from edge.board.topology import read_topology
from edge.board.tuned import Tuned
from edge.config import N_CTX_TOKENS
from edge.errors import NoMemoryError
from edge.model.gguf import ModelInfo, read_model_info
from tests.board.trees import build

MB = 1_000_000


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


def test_gpu_layers_are_as_many_as_fit(info: ModelInfo, board: Callable[[str], Board]) -> None:
    def on(free: int, kind: str = "gpu", n_layers: int | None = None) -> Plan:
        here = replace(board_1, devices=[Device("GPU0", "Some GPU", kind, free, free)])
        return make_plan(info, Wish(n_gpu_layers=n_layers), here)

    board_1 = board("raspberry-pi-5")
    every = info.n_layers + 1
    assert on(8 << 30).settings.n_gpu_layers == every
    assert "all layers on Some GPU" in on(8 << 30).notes
    all_bytes = on(8 << 30).footprint.device
    some = on(planning.DEVICE_RESERVE_BYTES + all_bytes * 2 // 3)
    assert 0 < some.settings.n_gpu_layers < every
    assert some.footprint.device <= all_bytes * 2 // 3
    assert on(planning.DEVICE_RESERVE_BYTES).settings.n_gpu_layers == 0
    assert on(8 << 30, kind="igpu").settings.n_gpu_layers == 0  # it shares the memory: nothing is won unasked
    assert on(8 << 30, kind="igpu", n_layers=2).settings.n_gpu_layers == 2
    nothing = make_plan(info, Wish(n_gpu_layers=9), board("rk3566"))
    assert nothing.settings.n_gpu_layers == 0
    assert "no GPU was found" in nothing.notes[0]


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
