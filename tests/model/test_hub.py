"""Against a hub on this machine: every fault ends in the right bytes or one sentence, and the token stays at home."""

import json
from email.utils import formatdate

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoFile

from edge.errors import HubError
from edge.model.hub import N_TRIES, Hub
from tests.hub_server import Fault, HubServer, git_sha1, sha256

DATA = bytes(range(256)) * 1000
NAME = "m-Q4_K_M.gguf"


@pytest.fixture
def repo(server):
    return server.add("owner/repo", {NAME: DATA, "README.md": b"# m\n"}, card={"license": "mit", "base_model": "a/b"})


def read(hub, start=0, stop=None, name=NAME):
    return b"".join(hub.stream(hub.repository("owner/repo").file(name), start, stop))


def test_the_server_is_one_to_the_client_library(server, repo, tmp_path):
    api = HfApi(endpoint=server.url(), token=server.token)
    hashes = {entry.path: entry.lfs for entry in api.list_repo_tree("owner/repo") if isinstance(entry, RepoFile)}
    assert str(hashes[NAME]).count(sha256(DATA)) == 1
    assert api.model_info("owner/repo", files_metadata=True).sha == repo.sha
    path = hf_hub_download("owner/repo", NAME, endpoint=server.url(), token=server.token, cache_dir=tmp_path)
    with open(path, "rb") as file:  # noqa: PTH123
        assert file.read() == DATA


def test_a_repository_tells_files_hashes_and_licence(hub, repo):
    found = hub.repository("owner/repo")
    assert (found.revision, found.licence, found.base_model) == (repo.sha, "mit", "a/b")
    assert found.file(NAME).etag == sha256(DATA)
    assert found.file("README.md").etag == git_sha1(b"# m\n")
    assert hub.repository("owner/repo", repo.sha).revision == repo.sha


def test_a_range_is_these_bytes_and_no_others(hub, repo):
    assert read(hub) == DATA
    assert read(hub, 1000, 5000) == DATA[1000:5000]
    assert read(hub, 5, 5) == b""


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(cut_after=70_000), Fault(cut_after=0), Fault(cut_after=100_000)],
        [Fault(status=503), Fault(status=500), Fault(status=502), Fault(status=504), Fault(status=408)],
        [Fault(status=429, retry_after="7")],
        [Fault(ignore_range=True, cut_after=150_000), Fault(ignore_range=True)],
        [Fault(wrong_range=True), Fault(gzip=True)],
        [Fault(total=5), Fault(total=10**9)],
        [Fault(status=416), Fault(more=5000)],
        [Fault(hang_s=1.5)],
    ],
    ids=["cut", "5xx", "429", "no ranges", "other range", "other length", "416", "silence"],
)
def test_faults_that_pass_cost_time_only(hub, server, repo, faults):
    server.faults += faults
    assert read(hub, 3, 200_000) == DATA[3:200_000]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(cut_after=0), "the connection failed .* 6 times in a row"),
        (Fault(status=503), "the hub has a fault .503., 6 times"),
        (Fault(status=429, retry_after="1"), "asked too often .429., 6 times"),
        (Fault(status=416), "fewer bytes there than the hub says"),
        (Fault(total=5), "has 5 bytes there, the hub's list says 256,000"),
        (Fault(gzip=True), "comes compressed"),
        (Fault(wrong_range=True), "another part of it came"),
    ],
)
def test_faults_that_stay_end_in_a_sentence(hub, server, repo, fault, says):
    server.faults += [fault] * N_TRIES
    with pytest.raises(HubError, match=says):
        read(hub)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, None, "renew HF_TOKEN at"),
        (403, None, "give HF_TOKEN the right"),
        (404, "EntryNotFound", "is not there"),
        (403, "GatedRepo", "accept them at .*/owner/repo"),
        (418, None, "refuses it .418"),
    ],
)
def test_refusals_are_not_asked_twice(hub, server, repo, status, code, says):
    server.faults += [Fault(status=status, error_code=code)]
    with pytest.raises(HubError, match=says):
        read(hub)
    assert len([seen for seen in server.seen if seen.origin == "cdn"]) == 1


def test_a_wait_is_as_long_as_the_hub_asks(hub, server, repo, waits):
    server.api_faults += [Fault(status=429, retry_after="7"), Fault(status=503, retry_after=formatdate(0))]
    server.api_faults += [Fault(status=503, retry_after="soon"), Fault(status=429, retry_after="-3")]
    hub.repository("owner/repo")
    assert waits == [7.0, 0.0, 4.0, 0.0]


def test_nobody_waits_for_hours(hub, server, repo, waits):
    server.api_faults += [Fault(status=429, retry_after="7200")]
    with pytest.raises(HubError, match="wait for 120 minutes; try again then"):
        hub.repository("owner/repo")
    assert waits == []


def test_private_and_missing_look_the_same_without_a_token(server, repo, tmp_path):
    repo.private = True
    stranger = Hub(server.url(), None, tmp_path)
    for name in ("owner/repo", "owner/none"):
        with pytest.raises(HubError, match=r"does not exist or is private; .* set HF_TOKEN"):
            stranger.repository(name)
    with pytest.raises(HubError, match="check the name"):
        Hub(server.url(), server.token, tmp_path).repository("owner/none")
    with pytest.raises(HubError, match="renew HF_TOKEN"):
        Hub(server.url(), "hf_old", tmp_path).repository("owner/repo")


def test_a_gated_repository_names_the_page_to_accept(server, repo, tmp_path):
    repo.gated = True
    with pytest.raises(HubError, match=f"accept them at {server.url()}/owner/repo, then set HF_TOKEN"):
        read(Hub(server.url(), None, tmp_path))


def test_an_unknown_revision_is_told(hub, repo):
    with pytest.raises(HubError, match="no such revision"):
        hub.repository("owner/repo", "v9")


def test_the_token_never_leaves_the_endpoint(hub, server, repo):
    """Not to the CDN, not to a stranger a redirect names, not to another port of this host."""
    read(hub)
    with HubServer() as stranger:
        stranger.repos = server.repos
        server.location = f"{stranger.url()}/owner/repo/resolve/main/README.md"
        with pytest.raises(HubError):
            read(hub)
        assert stranger.seen
        assert {seen.token for seen in stranger.seen} == {None}
    assert {seen.token for seen in server.seen if seen.origin == "cdn"} == {None}
    assert {seen.token for seen in server.seen if seen.origin == "hub"} == {server.token}
    assert server.token not in repr(hub)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://[", "gopher://x/", "//"])
def test_redirects_to_nowhere_end_in_a_sentence(hub, server, repo, location):
    server.location = location
    with pytest.raises(HubError):
        read(hub)


def test_a_redirect_in_a_circle_ends(hub, server, repo):
    server.location = hub.url(hub.repository("owner/repo").file(NAME))
    with pytest.raises(HubError, match="cannot be reached"):
        read(hub)


def sibling(**changes):
    return {"rfilename": NAME, "size": 5, "blobId": "0" * 40, "lfs": {"sha256": "0" * 64}, **changes}


@pytest.mark.parametrize(
    "info",
    [
        {"sha": "../../x"}, {"sha": None}, {"siblings": None}, {"siblings": "x"}, {"siblings": [1]},
        *({"siblings": [sibling(**{key: value})]} for key, value in [
            ("rfilename", "../../evil.gguf"), ("rfilename", "/etc/passwd"), ("rfilename", "a\\..\\m.gguf"),
            ("rfilename", "\x1b[2J.gguf"), ("rfilename", 5), ("size", -1), ("size", "5"), ("size", None),
            ("blobId", "../x"), ("blobId", None), ("lfs", {"sha256": "../../x"}), ("lfs", {"sha256": 5}),
        ]),
    ],
)  # fmt: skip
def test_a_hostile_description_is_refused(hub, server, repo, info):
    repo.info = info
    with pytest.raises(HubError):
        hub.repository("owner/repo")


def test_a_card_of_any_shape_is_survived(hub, repo):
    cards: list[object] = [[], "x", {"license": 5}, {"license": ["mit", "x"]}, {"license": "\x1b[2J"}]
    for card in cards:
        repo.info = {"cardData": card}
        assert hub.repository("owner/repo").licence in (None, "mit")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"[" * 100_000, b"\xff"])
def test_something_else_than_a_hub_is_told(hub, server, repo, body, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *_, **__: body.decode("latin-1"))
    with pytest.raises(HubError, match="check HF_ENDPOINT"):
        hub.repository("owner/repo")


def test_a_hub_that_is_not_there_is_told(tmp_path, waits):
    with pytest.raises(HubError, match="check the network"):
        Hub("http://127.0.0.1:9", None, tmp_path, pause=waits.append).repository("o/r")
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        Hub("huggingface.co", None, tmp_path)


def test_no_name_is_a_path(hub):
    for name in ("../x/y", "o/r/x", "o--x/r", "o/..", "o/r?x"):
        with pytest.raises(HubError, match="name it as OWNER/REPO"):
            hub.repository(name)
