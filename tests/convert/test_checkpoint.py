"""A checkpoint is what its files say, or an error that names the file, the fault and the next step."""

import json
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.checkpoint import Checkpoint
from edge.errors import CheckpointError
from tests.convert import checkpoints

AGAIN = "download the checkpoint again"
Header = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path / "model")


def refused(folder: Path) -> CheckpointError:
    """The error of opening it; its text is its fields in one sentence."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    error = caught.value
    assert str(error) == f"{error.path}: {error.problem}; {error.remedy}"
    return error


# what is right


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_rows_are_the_numbers_that_were_stored(tmp_path: Path, dtype: str, n_shards: int) -> None:
    shape = checkpoints.Shape(dtype=dtype)
    expected = checkpoints.tensors(shape)
    with Checkpoint.open(checkpoints.write(tmp_path / "model", shape, n_shards=n_shards)) as opened:
        assert set(opened.tensors) == set(expected)
        assert len(opened.files) == n_shards
        for name, values in expected.items():
            raw = checkpoints.encode(values, dtype)
            if dtype == "BF16":
                stored = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                stored = np.frombuffer(raw, checkpoints.NUMPY[dtype]).astype(np.float32)
            assert opened.tensors[name].shape == values.shape
            assert np.array_equal(opened.rows(name).reshape(-1), stored)


def test_a_block_of_rows_is_that_part_of_the_whole(folder: Path) -> None:
    with Checkpoint.open(folder) as opened:
        whole = opened.rows("lm_head.weight")
        assert np.array_equal(opened.rows("lm_head.weight", 17, 5), whole[17:22])


def test_shards_without_an_index_are_taken_by_name(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "model", n_shards=2)
    (folder / "model.safetensors.index.json").unlink()
    with Checkpoint.open(folder) as opened:
        assert len(opened.tensors) == len(checkpoints.tensors(checkpoints.Shape()))


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    """A file with a hole of 40 GB opens at once."""
    folder = checkpoints.write(tmp_path / "model")
    header = json.dumps({"w": {"dtype": "F32", "shape": [100_000, 100_000], "data_offsets": [0, 40_000_000_000]}})
    path = folder / "model.safetensors"
    path.write_bytes(checkpoints.raw_safetensors(header, b""))
    os.truncate(path, path.stat().st_size + 40_000_000_000)
    with Checkpoint.open(folder) as opened:
        assert opened.rows("w", 99_999, 1).shape == (1, 100_000)


def test_no_descriptor_is_left_open(folder: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    Checkpoint.open(folder).close()
    (folder / "model.safetensors").write_bytes(b"junk that is long enough")
    refused(folder)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# what is missing


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    error = refused(tmp_path / "nowhere")
    assert error.path == tmp_path / "nowhere"
    assert error.problem == "cannot be read (No such file or directory)"
    assert error.remedy == "name the folder that holds config.json and *.safetensors"


def test_folder_that_is_a_file(folder: Path) -> None:
    assert refused(folder / "config.json").problem == "is a file, not a checkpoint folder"


def test_empty_folder(tmp_path: Path) -> None:
    assert refused(tmp_path).problem == "is an empty folder"


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    error = refused(folder)
    assert (error.path, error.problem, error.remedy) == (folder, "has no config.json", AGAIN)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refused(folder).problem == "holds no model*.safetensors"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_never_opened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / name)  # opening it would wait for ever
    error = refused(folder)
    assert error.problem == f"holds its weights as a pickle ({name}), which can run code when it is opened"
    assert error.remedy == "get the safetensors version of this checkpoint"


def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for name in ("modeling_x.py", "tokenization_x.py", "configuration_x.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')")
    checkpoints.change(
        folder, "config.json", auto_map={"AutoModel": "modeling_x.X", "AutoTokenizer": "tokenization_x.X"}
    )
    Checkpoint.open(folder).close()
    assert not marker.exists()


def test_git_lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3554214752\n"
    )
    error = refused(folder)
    assert error.path == folder / "model.safetensors"
    assert error.remedy == "run `git lfs pull` in the folder"


# JSON


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not valid JSON (Expecting value"),
        ("[1]", "holds a list, not an object"),
        ('{"a": 1, "a": 2}', "is not valid JSON (key 'a' appears twice)"),
        ('{"a": NaN}', "is not valid JSON (NaN is not a number)"),
        ('{"a": ' + "[" * 100_000, "is nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "is not valid JSON (Exceeds the limit"),
    ],
)
def test_config_that_is_no_json_object(folder: Path, text: str, problem: str) -> None:
    (folder / "config.json").write_text(text)
    error = refused(folder)
    assert error.path == folder / "config.json"
    assert error.problem.startswith(problem)


def test_config_that_is_no_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"a": "\xff"}')
    assert refused(folder).problem == "is not UTF-8 text (byte 7)"


def test_config_that_is_too_long(folder: Path) -> None:
    os.truncate(folder / "config.json", 600_000_000)
    assert refused(folder).problem == "has 600,000,000 bytes, more than the 8,000,000 such a file may have"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pipes_and_devices_do_not_block(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert refused(folder).problem == "is not a regular file"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    error = refused(folder)
    assert error.path == folder / name
    assert error.problem == "is a link that leads out of the folder"


def test_links_inside_the_folder_are_fine(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    Checkpoint.open(folder).close()


def test_link_to_itself(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    assert "config.json" in str(refused(folder))


# headers


def header_of(folder: Path) -> tuple[Header, bytes]:
    raw = (folder / "model.safetensors").read_bytes()
    (n_bytes,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + n_bytes]), raw[8 + n_bytes :]


def rewrite(folder: Path, edit: Callable[[Header], Any]) -> None:
    header, data = header_of(folder)
    edit(header)
    (folder / "model.safetensors").write_bytes(checkpoints.raw_safetensors(header, data))


@pytest.mark.parametrize("n_bytes", [0, 1, 7])
def test_file_shorter_than_its_prefix(folder: Path, n_bytes: int) -> None:
    os.truncate(folder / "model.safetensors", n_bytes)
    assert refused(folder).problem == f"has {n_bytes} bytes, too few for a safetensors header"


@pytest.mark.parametrize("n_header_bytes", [2**63, 2**64 - 1, 16_000_001, 10_000_000])
def test_header_longer_than_the_file(folder: Path, n_header_bytes: int) -> None:
    header, data = header_of(folder)
    raw = checkpoints.raw_safetensors(header, data, n_header_bytes)
    (folder / "model.safetensors").write_bytes(raw)
    error = refused(folder)
    assert error.problem.startswith(f"says its header has {n_header_bytes:,} bytes, in {len(raw):,}")


def test_header_that_is_no_json(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(checkpoints.raw_safetensors(b"\xff\xfe{}", b""))
    assert refused(folder).problem == "has a header that is not UTF-8 (byte 0)"
    (folder / "model.safetensors").write_bytes(checkpoints.raw_safetensors(b"{'a': 1}", b""))
    assert refused(folder).problem.startswith("is not valid JSON (")
    (folder / "model.safetensors").write_bytes(checkpoints.raw_safetensors(b"[" * 50_000, b""))
    assert refused(folder).problem == "is nested too deeply"


def test_tensor_named_twice(folder: Path) -> None:
    entry = '"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    (folder / "model.safetensors").write_bytes(checkpoints.raw_safetensors(f"{{{entry}, {entry}}}", bytes(4)))
    assert refused(folder).problem == "is not valid JSON (key 'w' appears twice)"


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"dtype": "Q4"}, f"tensor {NORM} has the unknown dtype 'Q4'"),
        ({"dtype": 5}, f"tensor {NORM} has the unknown dtype '5'"),
        ({"shape": [256, 2]}, f"tensor {NORM} needs 1,024 bytes for BF16 (256, 2), has 512"),
        ({"shape": [2**62, 2**62]}, f"tensor {NORM} needs {2**125:,} bytes for BF16 {(2**62, 2**62)}, has 512"),
        ({"shape": [-256]}, f"tensor {NORM} has the impossible shape [-256]"),
        ({"shape": [256.0]}, f"tensor {NORM} has the impossible shape [256.0]"),
        ({"shape": [True]}, f"tensor {NORM} has the impossible shape [True]"),
        ({"shape": [0, 256]}, f"tensor {NORM} has the impossible shape [0, 256]"),
        ({"shape": []}, f"tensor {NORM} has the impossible shape []"),
        ({"shape": [256, 1, 1, 1, 1]}, f"tensor {NORM} has the impossible shape [256, 1, 1, 1, 1]"),
        ({"shape": "256"}, f"tensor {NORM} has the impossible shape 256"),
        ({"data_offsets": [512, 0]}, f"tensor {NORM} needs 512 bytes for BF16 (256,), has -512"),
        ({"data_offsets": [2**64, 2**64 + 512]}, f"tensor {NORM} has the impossible offsets [{2**64}, {2**64 + 512}]"),
        ({"data_offsets": [0]}, f"tensor {NORM} has the impossible offsets [0]"),
        ({"data_offsets": None}, f"tensor {NORM} has the impossible offsets None"),
    ],
)
def test_entry_that_lies(folder: Path, change: Header, problem: str) -> None:
    rewrite(folder, lambda header: header[NORM].update(change))
    error = refused(folder)
    assert error.path == folder / "model.safetensors"
    assert error.problem == problem


def test_entry_that_is_no_object(folder: Path) -> None:
    rewrite(folder, lambda header: header.update({NORM: [1]}))
    assert refused(folder).problem == f"describes tensor {NORM} with a list"


def test_overlap_and_hole(folder: Path) -> None:
    header, data = header_of(folder)
    last = max(header.values(), key=lambda entry: entry.get("data_offsets", [0])[0])
    first, end = last["data_offsets"]
    for offsets, word in (((first - 2, end - 2), "overlaps the tensor"), ((first + 2, end + 2), "leaves a hole")):
        last["data_offsets"] = list(offsets)
        (folder / "model.safetensors").write_bytes(checkpoints.raw_safetensors(header, data + bytes(2)))
        assert word in refused(folder).problem


def test_truncated_and_lengthened_files(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for part in range(1, 20):
        path.write_bytes(whole[: len(whole) * part // 20])
        assert refused(folder).path == path
    path.write_bytes(whole[:-1])
    assert refused(folder).problem == f"is incomplete: it needs {len(whole):,} bytes and has {len(whole) - 1:,}"
    path.write_bytes(whole + b"more")
    assert refused(folder).problem == "has 4 bytes after its last tensor"


@pytest.mark.parametrize("name", ["", "../../etc/x", "a/b", "a\0b", "n" * 257, "a b", "é"])
def test_names_that_are_none(folder: Path, name: str) -> None:
    rewrite(folder, lambda header: header.update({name: header.pop(NORM)}))
    assert refused(folder).problem == f"has a tensor name that is none: {name[:80]!r}"


def test_too_many_tensors(folder: Path) -> None:
    header = {f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(20_001)}
    (folder / "model.safetensors").write_bytes(checkpoints.raw_safetensors(header, bytes(20_001)))
    assert refused(folder).problem == "lists 20,001 tensors, more than 20,000"


# shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path / "model", n_shards=2)


INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "a/x.safetensors", "x.bin", ".x.safetensors", "x\0.safetensors", 7, None],
)
def test_shard_names_are_plain(shards: Path, name: object) -> None:
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    checkpoints.change(shards, INDEX, weight_map={**weight_map, NORM: name})
    error = refused(shards)
    assert error.path == shards / INDEX
    assert error.problem == f"names a shard {str(name)!r}, which is not a plain *.safetensors file name"


def test_missing_shard(shards: Path) -> None:
    (shards / SECOND).unlink()
    error = refused(shards)
    assert (error.path, error.problem) == (shards / INDEX, f"names the shard {SECOND}, which is not there")


def test_shard_that_leads_out(shards: Path, tmp_path: Path) -> None:
    (shards / SECOND).rename(tmp_path / "elsewhere")
    (shards / SECOND).symlink_to(tmp_path / "elsewhere")
    assert refused(shards).path == shards / SECOND


def test_tensor_in_two_shards(shards: Path) -> None:
    values = checkpoints.tensors(checkpoints.Shape())
    names = list(values)
    second = [*names[-(-len(names) // 2) :], names[0]]
    checkpoints.write_safetensors(shards / SECOND, {name: values[name] for name in second})
    assert refused(shards).problem == f"tensor {names[0]} is in {FIRST} too"


def test_index_and_shards_disagree(shards: Path) -> None:
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    checkpoints.change(shards, INDEX, weight_map={**weight_map, "ghost": SECOND})
    assert refused(shards).problem == f"says tensor ghost is in {SECOND}, and it is not"
    checkpoints.change(shards, INDEX, weight_map={name: weight_map[name] for name in weight_map if name != NORM})
    assert refused(shards).problem == f"does not list tensor {NORM}, which is in {SECOND}"
    nothing: tuple[object, ...] = ({}, [], "x")
    for weights in nothing:
        checkpoints.change(shards, INDEX, weight_map=weights)
        assert refused(shards).problem == "has no weight_map"


# reading


def test_file_that_shrinks_is_an_error_not_a_crash(folder: Path) -> None:
    """With a memory map this would be SIGBUS."""
    with Checkpoint.open(folder) as opened:
        os.truncate(folder / "model.safetensors", 5000)
        with pytest.raises(CheckpointError, match=r"ends inside tensor model\.norm\.weight"):
            opened.rows(NORM)
        with pytest.raises(CheckpointError, match="has changed during the conversion"):
            opened.check_unchanged()


def test_disk_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> int:
        raise OSError(5, "Input/output error")

    with Checkpoint.open(folder) as opened:
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(CheckpointError) as caught:
            opened.rows(NORM)
    assert caught.value.problem == f"tensor {NORM} cannot be read (Input/output error)"
    assert caught.value.remedy == "check the disk, then convert again"


def test_threads_may_read_at_the_same_time(folder: Path) -> None:
    with Checkpoint.open(folder) as opened:
        expected = opened.rows("lm_head.weight")
        wrong: list[int] = []

        def read(first: int) -> None:
            if not np.array_equal(opened.rows("lm_head.weight", first, 8), expected[first : first + 8]):
                wrong.append(first)

        threads = [threading.Thread(target=read, args=(first,)) for first in range(0, 280, 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
