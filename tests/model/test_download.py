"""The right file under its name, or none: whatever broke off, whatever arrived."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir
from huggingface_hub.utils._fixes import WeakFileLock

from edge.errors import FileError, HubError, NoSpaceError
from edge.model import download as downloads
from edge.model.cache import Cache
from edge.model.download import Progress, download
from tests.hub_server import Fault, sha256

DATA = random.Random(0).randbytes(400_000)
NAME = "m-Q4_K_M.gguf"


@pytest.fixture
def repo(server):
    return server.add("owner/repo", {NAME: DATA, "LICENSE": b"MIT\n", "empty.txt": b""})


def fetch(hub, *names, progress=lambda _: None):
    repository = hub.repository("owner/repo")
    return download(hub, repository, [repository.file(name) for name in names or (NAME,)], progress)


def final_files(hub):
    """Every file that has a final name: blobs and snapshots."""
    return [path for path in hub.cache.rglob("*") if path.is_file() and path.suffix not in (".incomplete", ".lock")]


def test_files_lie_where_the_client_library_looks(hub, server, repo):
    paths = fetch(hub, NAME, "LICENSE", "empty.txt")
    assert [path.read_bytes() for path in paths] == [DATA, b"MIT\n", b""]
    n_seen = len(server.seen)
    theirs = hf_hub_download("owner/repo", NAME, endpoint=server.url(), token=server.token, cache_dir=hub.cache)
    assert Path(theirs) == paths[0]
    assert [seen.method for seen in server.seen[n_seen:]] == ["HEAD"]  # nothing was fetched again
    assert hf_hub_download("owner/repo", NAME, cache_dir=hub.cache, local_files_only=True) == theirs
    (found,) = scan_cache_dir(hub.cache).repos
    assert (found.repo_id, found.nb_files, found.size_on_disk) == ("owner/repo", 3, len(DATA) + 4)
    assert scan_cache_dir(hub.cache).warnings == []


def test_what_the_client_library_fetched_is_not_fetched_again(hub, server, repo):
    theirs = hf_hub_download("owner/repo", NAME, endpoint=server.url(), token=server.token, cache_dir=hub.cache)
    n_sent = server.n_bytes_sent
    assert fetch(hub) == [Path(theirs)]
    assert server.n_bytes_sent - n_sent < 5000


def test_a_broken_download_goes_on_where_it_stopped(hub, server, repo):
    server.faults += [Fault(cut_after=300_000), *[Fault(status=503)] * 5]
    with pytest.raises(HubError, match="what is here already is kept"):
        fetch(hub)
    assert not final_files(hub)
    assert Cache(hub.cache).partial(hub.repository("owner/repo").file(NAME)).stat().st_size == 300_000
    server.seen.clear()
    (path,) = fetch(hub)
    assert path.read_bytes() == DATA
    assert [seen.range for seen in server.seen if seen.origin == "cdn"] == ["bytes=300000-399999"]


def test_a_wrong_byte_never_gets_the_name(hub, server, repo):
    server.faults += [Fault(flip=True)]
    with pytest.raises(HubError, match="another hash than the hub tells"):
        fetch(hub)
    assert not final_files(hub)
    assert not list(hub.cache.rglob("*.incomplete"))
    assert fetch(hub)[0].read_bytes() == DATA


@pytest.mark.parametrize("name", [NAME, "LICENSE"])
def test_rubbish_left_behind_is_found_out_and_fetched_anew(hub, repo, name):
    """After a power cut the file may hold zeros; both kinds of hash notice."""
    cache, file = Cache(hub.cache), hub.repository("owner/repo").file(name)
    for rubbish in (b"\0" * (file.n_bytes // 2), b"\0" * file.n_bytes, b"\0" * (file.n_bytes + 9)):
        cache.partial(file).parent.mkdir(parents=True, exist_ok=True)
        cache.partial(file).write_bytes(rubbish)
        (path,) = fetch(hub, name)
        assert path.read_bytes() == repo.files[name]
        path.resolve().unlink()
        path.unlink()


def test_a_truncated_blob_is_replaced(hub, repo):
    (path,) = fetch(hub)
    blob = path.resolve()
    os.truncate(blob, 1000)
    assert fetch(hub)[0].read_bytes() == DATA


def test_no_room_is_told_before_the_first_byte(hub, server, repo, monkeypatch):
    class Full:
        f_bavail, f_frsize = 1000, 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    with pytest.raises(NoSpaceError) as caught:
        fetch(hub)
    assert caught.value.n_bytes_free == 4_096_000
    assert all(seen.origin == "hub" for seen in server.seen)


def test_a_folder_that_cannot_be_written_is_told(hub, repo):
    hub.cache.parent.mkdir(parents=True, exist_ok=True)
    hub.cache.write_text("a file")
    with pytest.raises(FileError, match="HF_HOME"):
        fetch(hub)


def test_two_at_a_time_keep_out_of_each_others_way(hub, repo, monkeypatch):
    monkeypatch.setattr(downloads, "LOCK_WAIT_S", 0.1)
    cache, file = Cache(hub.cache), hub.repository("owner/repo").file(NAME)
    cache.lock(file).parent.mkdir(parents=True)
    with WeakFileLock(cache.lock(file)), pytest.raises(HubError, match="another process; wait for it"):
        fetch(hub)
    assert fetch(hub)[0].read_bytes() == DATA


def test_a_file_system_without_links_holds_the_file_once(hub, repo, monkeypatch):
    monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError(1, "not permitted")))
    (path,) = fetch(hub)
    assert path.read_bytes() == DATA
    assert not path.is_symlink()
    assert set(final_files(hub)) == {path, hub.cache / "models--owner--repo/refs/main"}
    assert fetch(hub) == [path]


def test_progress_goes_from_nothing_to_all(hub, repo):
    seen: list[Progress] = []
    fetch(hub, "LICENSE", NAME, progress=seen.append)
    fetched = [progress.n_bytes_done for progress in seen if progress.phase == "fetch"]
    assert fetched == sorted(fetched)
    assert (fetched[0], fetched[-1]) == (0, len(DATA) + 4)
    assert {progress.n_bytes_total for progress in seen} == {len(DATA) + 4}


CHILD = """
import sys
from pathlib import Path
from edge.model.download import download
from edge.model.hub import Hub
hub = Hub(sys.argv[1], sys.argv[2], Path(sys.argv[3]), pause=lambda _: None)
repository = hub.repository("owner/repo")
print("ready", flush=True)
download(hub, repository, [repository.file(sys.argv[4])])
"""


def test_killed_twenty_times_it_ends_with_the_right_file(hub, server, repo):
    """kill -9 at random moments, with faults between: never a wrong file under its name, and the last run finishes."""
    rng = random.Random(1)
    repo.files[NAME] = rng.randbytes(3_000_000)
    server.bytes_per_s = 4e6
    command = [sys.executable, "-c", CHILD, server.url(), server.token, str(hub.cache), NAME]
    n_killed = 0
    while n_killed < 20:
        server.faults.clear()
        if rng.random() < 0.5:
            server.faults += [rng.choice([Fault(cut_after=50_000), Fault(status=503), Fault(ignore_range=True)])]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            try:
                child.wait(rng.random() * 0.1)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                n_killed += 1
            else:  # it was done: begin anew
                (path,) = fetch(hub)
                assert sha256(path.read_bytes()) == sha256(repo.files[NAME])
                repo.files[NAME] = rng.randbytes(3_000_000)
        for path in final_files(hub):
            if path.stat().st_size == 3_000_000:
                assert path.is_symlink() or sha256(path.read_bytes()) == path.name
    server.bytes_per_s = 0
    server.faults.clear()
    (path,) = fetch(hub)
    assert path.read_bytes() == repo.files[NAME]
