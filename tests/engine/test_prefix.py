"""Saved prompt beginnings: found again, never believed when damaged or foreign, bounded in size and in writing."""

from dataclasses import replace
from pathlib import Path

import pytest

from edge.config import EngineSettings
from edge.engine.prefix import PrefixStore
from edge.engine.protocol import Done
from edge.engine.scheduler import Scheduler
from tests.engine.test_scheduler import done, request, run
from tests.fakes import FakeLlama

TOKENS = list(range(300))
STATE = b"state of three hundred tokens" * 100


def store(folder: Path, fingerprint: str = "model a", **limits: object) -> PrefixStore:
    options = {"n_bytes_max": 1 << 20, "n_bytes_per_day": 1 << 20, "now": lambda: 1e9, **limits}
    return PrefixStore(folder, fingerprint, **options)  # type: ignore[arg-type]


def saved(folder: Path, **options: object) -> Path:
    s = store(folder, **options)  # type: ignore[arg-type]
    s.save(TOKENS, STATE)
    s.finish()
    (path,) = folder.glob("*.kv")
    return path


def test_a_saved_beginning_is_found_by_the_next_process(tmp_path: Path) -> None:
    saved(tmp_path)
    s = store(tmp_path)
    entry = s.longest([*TOKENS, 7, 8, 9])
    assert entry is not None
    assert entry.n_tokens == 300
    assert s.load(entry) == STATE
    assert s.longest(TOKENS) is None, "the last token of a prompt is always decoded"
    assert s.longest([*TOKENS[:299], 5, 6]) is None


def test_another_model_does_not_see_it(tmp_path: Path) -> None:
    saved(tmp_path)
    assert store(tmp_path, "model b").longest([*TOKENS, 7]) is None


@pytest.mark.parametrize("share", [0, 0.001, 0.2, 0.5, 0.95, 0.999])
def test_a_cut_file_is_ignored(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert store(tmp_path).longest([*TOKENS, 7]) is None


def test_a_flipped_byte_is_ignored_and_the_file_dropped(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    s = store(tmp_path)
    entry = s.longest([*TOKENS, 7])
    assert entry is not None
    assert s.load(entry) is None
    assert s.longest([*TOKENS, 7]) is None
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"{}\n", b"not json\n", b'{"version": 99}\n', b"\xff" * 5000])
def test_a_file_of_somebody_else_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.kv").write_bytes(content)
    assert store(tmp_path).longest([*TOKENS, 7]) is None


def test_the_longest_unused_go_when_room_is_needed(tmp_path: Path) -> None:
    import os

    s = store(tmp_path, n_bytes_max=3 * (len(STATE) + 2000))
    for i in range(5):
        s.save([i, *TOKENS], STATE)
        s.finish()
        newest = max(tmp_path.glob("*.kv"), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (i, i))
    assert s.longest([0, *TOKENS, 7]) is None
    assert s.longest([4, *TOKENS, 7]) is not None
    assert sum(path.stat().st_size for path in tmp_path.glob("*.kv")) <= 3 * (len(STATE) + 2000)


def test_the_daily_budget_is_kept_across_processes(tmp_path: Path) -> None:
    for i in range(5):
        s = store(tmp_path, n_bytes_per_day=2 * (len(STATE) + 2000))
        s.save([i, *TOKENS], STATE)
        s.finish()
    assert len(list(tmp_path.glob("*.kv"))) == 2
    tomorrow = store(tmp_path, n_bytes_per_day=2 * (len(STATE) + 2000), now=lambda: 1e9 + 90000)
    assert tomorrow.wants([9, *TOKENS])


def test_a_folder_that_cannot_be_written_only_costs_the_saving(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    s = store(tmp_path / "file" / "folder")
    s.save(TOKENS, STATE)
    s.finish()
    assert s.longest([*TOKENS, 7]) is None


def test_a_beginning_shared_by_two_requests_survives_a_restart(tmp_path: Path) -> None:
    beginning = "a long system prompt, the same for all. " * 10

    def answers(names: str) -> list[Done]:
        llama = FakeLlama(lambda text: None if text.endswith(b"!") else b"!")
        prefixes = store(tmp_path)
        s = Scheduler(llama, EngineSettings("fake", n_slots=1), prefixes, clock=llama.clock)
        results = []
        for name in names:
            s.submit(request(name, f"{beginning}{name} asks something"))
            results.append(done(run(s), name))
        prefixes.finish()
        return results

    first, second = answers("ab")
    assert (first.n_cached_tokens, second.n_cached_tokens) == (0, len(beginning))
    (third,) = answers("c")
    assert third.n_cached_tokens == len(beginning)


def test_a_conversation_that_goes_on_writes_nothing(tmp_path: Path) -> None:
    llama = FakeLlama(lambda text: None if text.endswith(b"!") else b"!")
    prefixes = store(tmp_path)
    s = Scheduler(llama, EngineSettings("fake", n_slots=1), prefixes, clock=llama.clock)
    prompt = "first question, rather long " * 12
    for turn in range(4):
        s.submit(replace(request(str(turn), prompt), segments=((prompt, False), ("<assistant><think>", True))))
        run(s)
        prompt += "<assistant>! and then another question " * 3
    prefixes.finish()
    assert not list(tmp_path.glob("*.kv"))
