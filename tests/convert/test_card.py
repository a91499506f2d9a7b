"""What is published is proven, has a licence, and arrives whole; the card says what the hub and people need."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from convert import pipeline, push
from convert.card import collect
from edge.errors import EdgeError, HubError, ModelFileError, OutputError
from edge.model.hub import Hub
from tests.convert import checkpoints
from tests.convert.checkpoints import Shape
from tests.hub_server import HubServer, sha256

REPO = "me/Tiny-R1-GGUF"
BASE = "owner/Tiny-R1"


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(server.url(), server.token, tmp_path / "hub", timeout_s=2.0, pause=lambda _: None)


@pytest.fixture
def made(tmp_path: Path, out: Path) -> Path:
    """Two files made from a folder that lies like one of the hub's cache, with a card that names its licence."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    source = tmp_path / "hub" / "models--owner--Tiny-R1" / "snapshots" / revision
    checkpoints.write(source, Shape(embd=64, ff=96, head=2, head_kv=1, layer=1))
    (source / "README.md").write_text('---\nlicense: "mit"\ntags:\n- x\n---\n# Tiny\n')
    pipeline.convert(source, ["Q8_0", "Q4_0"], out)
    (out / "LICENSE").write_text("MIT\n")
    (out / "notes.txt").write_text("not for the world\n")
    return out


def test_licence_and_original_come_from_the_manifests(made):
    found = collect(made)
    assert (found.licence, found.base_model) == ("mit", BASE)
    names = {f"Tiny-R1-{kind}.gguf{end}" for kind in ("Q8_0", "Q4_0") for end in ("", ".json")}
    assert set(found.files) == names | {"LICENSE"}


def test_the_head_of_the_card_is_what_the_hub_reads(made):
    card = ModelCard(collect(made).card(REPO))  # the hub's own reader
    head = card.data.to_dict()
    assert (head["license"], head["base_model"], head["base_model_relation"]) == ("mit", BASE, "quantized")
    assert head["library_name"] == "gguf"
    for command in (f"edge chat {REPO}:Q4_0", f"llama-cli -hf {REPO}:Q4_0", f"ollama run hf.co/{REPO}:Q4_0"):
        assert command in card.text
    for kind in ("Q8_0", "Q4_0"):
        name = f"Tiny-R1-{kind}.gguf"
        assert f"| {kind} | [{name}]({name}) |" in card.text
        assert sha256((made / name).read_bytes()) in card.text


def test_a_licence_of_its_own_is_named(made):
    head = ModelCard(collect(made, licence="Falcon LLM").card(REPO)).data.to_dict()
    assert (head["license"], head["license_name"]) == ("other", "Falcon LLM")


def test_what_was_measured_stands_in_the_table(made):
    quality = {"perplexity": {"value": 9.876, "error": 0.1}, "kld": {"value": 0.0123}, "same_top": {"value": 0.987}}
    passport = {"files": [{"file": "Tiny-R1-Q8_0.gguf", "quality": quality}, {"file": 5}, 6]}
    (made / "Tiny-R1-Q8_0.passport.json").write_text(json.dumps(passport))
    (made / "Tiny-R1-Q8_0.passport.md").write_text("# passport\n")
    found = collect(made)
    assert "| 9.876 | 0.0123 | 98.70% |" in found.card(REPO)
    assert "| – | – | – |" in found.card(REPO)
    assert "[Tiny-R1-Q8_0.passport.md](Tiny-R1-Q8_0.passport.md)" in found.card(REPO)
    assert "Tiny-R1-Q8_0.passport.json" in found.files


def test_without_a_licence_nothing_is_published(tmp_path, out):
    source = checkpoints.write(tmp_path / "Tiny", Shape(embd=64, ff=96, head=2, head_kv=1, layer=1))
    pipeline.convert(source, ["Q4_0"], out)
    with pytest.raises(OutputError, match="--licence"):
        collect(out, base_model=BASE)
    with pytest.raises(OutputError, match="--base-model"):
        collect(out, licence="mit")
    with pytest.raises(OutputError, match="--licence"):
        collect(out, base_model=BASE, licence="mit\nbase_model: evil/x")
    assert collect(out, base_model=BASE, licence="mit").licence == "mit"


def test_without_its_manifest_no_file_is_published(made):
    (made / "Tiny-R1-Q4_0.gguf.json").unlink()
    with pytest.raises(ModelFileError, match="has no manifest"):
        collect(made)


@pytest.mark.parametrize("change", ["byte", "manifest", "rubbish"])
def test_a_file_that_is_not_the_manifests_is_refused(made, change):
    path = made / "Tiny-R1-Q4_0.gguf"
    if change == "byte":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        (made / f"{path.name}.json").write_text("{}" if change == "manifest" else "[")
    with pytest.raises(ModelFileError, match="convert"):
        collect(made)


def test_an_empty_folder_and_a_mixed_one_are_refused(tmp_path, made):
    with pytest.raises(OutputError, match="holds no GGUF"):
        collect(tmp_path)
    other = checkpoints.write(tmp_path / "Other", Shape(embd=64, ff=96, head=2, head_kv=1, layer=1))
    pipeline.convert(other, ["Q4_0"], made)
    with pytest.raises(OutputError, match="several models"):
        collect(made)


def upload(hub, folder, **options):
    publication = collect(folder)
    card = push.card_of(publication, REPO, folder)
    return push.push(hub, publication, REPO, card, **{"private": False, "told": lambda _: None, **options})


def test_everything_arrives_and_can_be_pulled(hub, server, made):
    from edge.model.names import ModelName
    from edge.model.pull import pull

    assert upload(hub, made).startswith(server.url())
    files = server.repos[REPO].files
    for name in ("Tiny-R1-Q8_0.gguf", "Tiny-R1-Q4_0.gguf", "Tiny-R1-Q4_0.gguf.json", "LICENSE"):
        assert files[name] == (made / name).read_bytes()
    assert b"base_model_relation: quantized" in files["README.md"]
    assert "notes.txt" not in files
    assert server.commits[0]["summary"] == f"Add Q4_0, Q8_0 of {BASE}"
    (path,) = pull(hub, ModelName(REPO, "Q4_0"))
    assert path.read_bytes() == (made / path.name).read_bytes()
    assert {seen.token for seen in server.seen if seen.origin == "cdn"} == {None}


def test_what_the_hub_has_is_not_sent_twice(hub, server, made):
    upload(hub, made)
    n_uploads = len([seen for seen in server.seen if seen.method == "PUT"])
    upload(hub, made)
    assert len([seen for seen in server.seen if seen.method == "PUT"]) == n_uploads == 2


def test_a_readme_of_ones_own_is_taken(hub, server, made):
    (made / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    upload(hub, made)
    assert server.repos[REPO].files["README.md"].endswith(b"# Mine\n")


def test_a_new_repository_can_be_private(hub, server, made):
    upload(hub, made, private=True)
    assert server.repos[REPO].private


def test_no_token_or_a_wrong_one_is_told(server, made, tmp_path):
    with pytest.raises(HubError, match="set HF_TOKEN"):
        upload(Hub(server.url(), None, tmp_path), made)
    with pytest.raises(HubError, match="renew HF_TOKEN"):
        upload(Hub(server.url(), "hf_old", tmp_path), made)
    assert not server.commits


@pytest.mark.parametrize("name", ["me", "me/a/b", "../x", "me/x y"])
def test_no_other_names_are_pushed_to(hub, name):
    with pytest.raises(EdgeError, match="OWNER/REPO"):
        push.check(hub, name)
