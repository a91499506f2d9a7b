"""The reader of GGUF headers: what it reads is what others wrote, and nothing hostile gets past it or holds it up."""

import os
import random
import socket
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from edge.errors import ModelFileError
from edge.model import gguf as reader
from edge.model.cursor import StoredArray
from edge.model.gguf import ModelInfo, parse_header, read_model_info
from edge.model.header import TENSOR_TYPES
from tests.hostile import gguf_files as files
from tests.hostile.gguf_files import ARRAY, BAD_FILES, BOOL, F32, I32, STRING, U32, BadFile, changed_file

N_QWEN_TOKENS = 151_936


def parsed(data: bytes) -> ModelInfo:
    return parse_header(lambda offset, n: data[offset : offset + n], len(data), Path("some.gguf"))


def changed(**changes) -> ModelInfo:
    """The sound model with keys of its architecture changed: changed(block_count=(U32, 1))."""
    return parsed(changed_file({f"qwen2.{key.replace('__', '.')}": typed for key, typed in changes.items()}))


# ---- sound files


def test_sound_file_reads_as_it_was_written(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(files.sound_file())
    info = read_model_info(path)
    assert (info.path, info.n_bytes, info.version) == (path, path.stat().st_size, 3)
    assert (info.architecture, info.name, info.license, info.file_type) == ("qwen2", "Tiny", "mit", "F32")
    assert (info.n_layers, info.n_embd, info.n_heads, info.n_heads_kv, info.head_dim) == (1, 32, 4, 2, 8)
    assert (info.n_ctx_train, info.n_vocab, info.n_params) == (512, files.N_VOCAB, 26_272)
    assert (info.bos_id, info.bos_text, info.eos_id, info.eos_text) == (258, "<|begin|>", 257, "<|end|>")
    assert info.add_bos is False
    assert info.sampling == {"temperature": 0.5, "top_k": 20}
    assert info.thinks
    assert info.notes == ()


def test_every_gguf_type_reads_as_gguf_py_reads_it(tmp_path):
    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    for name, number in (("uint8", 255), ("int8", -128), ("uint16", 65535), ("int16", -32768), ("uint32", 2**32 - 1)):
        getattr(writer, f"add_{name}")(f"x.{name}", number)
    for name, number in (("int32", -(2**31)), ("uint64", 2**64 - 1), ("int64", -(2**63))):
        getattr(writer, f"add_{name}")(f"x.{name}", number)
    writer.add_float32("x.float32", 0.1)
    writer.add_float64("x.float64", 0.1)
    writer.add_bool("x.bool", True)
    writer.add_string("x.string", "naïve 模型\n\0 end")
    writer.add_array("x.few", [1, 2, 3])
    writer.add_array("x.words", ["a", "", "模型"])
    writer.add_array("x.many", [float(n) for n in range(5000)])
    _add_model(writer, files.vocabulary())
    shapes = {"F32": (3, 5), "F16": (2, 3, 4, 5), "Q4_0": (7, 64), "Q8_0": (2, 32), "Q4_K": (2, 512), "Q6_K": (1, 256)}
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType[name]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        data = np.zeros((*shape[:-1], shape[-1] // block * block_bytes), dtype=np.uint8)
        plain = {"F32": np.float32, "F16": np.float16}.get(name)
        writer.add_tensor(f"t.{name}", np.zeros(shape, plain) if plain else data, raw_dtype=None if plain else kind)
    _write(writer)

    info, theirs = read_model_info(path), gguf.GGUFReader(path)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            value = info.metadata[key]
            ours = list(info.array(key)) if isinstance(value, tuple | StoredArray) else value
            assert ours == field.contents(), key
    assert isinstance(info.metadata["x.many"], StoredArray)
    assert [(t.name, t.shape, t.type_name, t.n_bytes, t.offset, t.n_elements) for t in info.tensors] == [
        (t.name, tuple(map(int, t.shape)), t.tensor_type.name, t.n_bytes, t.data_offset, t.n_elements)
        for t in theirs.tensors
    ]


def test_tensor_and_file_types_are_those_of_gguf_py():
    ours = {name: sizes for name, *sizes in TENSOR_TYPES.values()}
    for kind, sizes in gguf.GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":  # gguf-py kept its old size; ggml's block_q8_1 has 36 bytes
            assert TENSOR_TYPES[kind][0] == kind.name
            assert ours[kind.name] == list(sizes), kind.name
    for recipe in gguf.LlamaFileType:
        if recipe.name != "GUESSED":
            assert reader.FILE_TYPES[recipe] == recipe.name.removeprefix("MOSTLY_").removeprefix("ALL_")


def test_vocabulary_of_qwen_size_is_quick_and_small(tmp_path):
    path = tmp_path / "big.gguf"
    tokens = [f"tok{n}" for n in range(N_QWEN_TOKENS)]
    arrays = {
        "tokens": (ARRAY, STRING, tokens),
        "token_type": (ARRAY, I32, [1] * N_QWEN_TOKENS),
        "merges": (ARRAY, STRING, [f"a{n} b{n}" for n in range(151_387)]),
    }
    path.write_bytes(changed_file({f"tokenizer.ggml.{key}": typed for key, typed in arrays.items()}))

    start = time.perf_counter()
    info = read_model_info(path)
    assert time.perf_counter() - start < 5  # 0.2 s on a free core; the margin is for a busy or emulated one
    assert info.n_vocab == N_QWEN_TOKENS
    assert info.eos_text == "tok257"
    assert _growth_bytes(path) < 40e6
    assert isinstance(info.metadata["tokenizer.ggml.tokens"], StoredArray)
    assert info.array("tokenizer.ggml.tokens") == tuple(tokens)
    assert info.array("tokenizer.ggml.token_type") == (1,) * N_QWEN_TOKENS
    assert info.array("no.such.key") == ()


def test_range_source_is_read_forwards_in_few_requests():
    data = files.sound_file()
    asked = []

    def read_at(offset: int, n: int) -> bytes:
        asked.append((offset, n))
        return data[offset : offset + n]

    parse_header(read_at, len(data), Path("hub.gguf"))
    assert asked == [(0, 64 if len(data) < 64 else len(data))]


def test_heads_may_differ_by_layer():
    heads = (ARRAY, U32, [4, 4, 2])
    info = changed(block_count=(U32, 3), attention__head_count=(U32, 4), attention__head_count_kv=heads)
    assert info.n_heads_kv == 4
    assert info.kv_bytes_per_token == (4 + 4 + 2) * (8 + 8) * 2


def test_token_reads_all_weights_but_an_untied_embedding():
    info = parsed(files.sound_file())
    embedding = 4 * files.N_EMBD * files.N_VOCAB
    assert info.bytes_read_per_token == info.tensor_bytes - embedding
    entries = [files.entry(key, typed) for key, typed in files.sound_metadata().items()]
    tied = parsed(files.joined(entries, [files.tensor("token_embd.weight", (32, files.N_VOCAB), 0, 0)], embedding))
    assert tied.bytes_read_per_token == tied.tensor_bytes == embedding


def test_token_reads_only_the_experts_it_uses():
    metadata = {**files.sound_metadata(), "qwen2.expert_count": (U32, 8), "qwen2.expert_used_count": (U32, 2)}
    entries = [files.entry(key, typed) for key, typed in metadata.items()]
    info = parsed(files.joined(entries, [files.tensor("blk.0.ffn_up_exps.weight", (32, 32, 8), 0, 0)], 4 * 32 * 32 * 8))
    assert info.bytes_read_per_token == 4 * 32 * 32 * 2


@pytest.mark.parametrize("n_tokens", [2**32 - 1, 200_000_000])
def test_absurd_context_is_clamped_and_noted(n_tokens):
    info = changed(context_length=(U32, n_tokens))
    assert info.n_ctx_train == 1 << 24
    assert info.notes == (f"claims a context of {n_tokens:,} tokens; 16,777,216 are believed",)


def test_bad_padding_id_is_only_noted():
    info = parsed(changed_file({"tokenizer.ggml.padding_token_id": (U32, 2**32 - 1)}))
    assert info.notes == ("the padding token 4294967295 is outside the vocabulary and ignored",)
    assert "padding" not in info.special_tokens


def test_missing_file_type_is_told_by_the_tensors():
    assert parsed(changed_file({"general.file_type": None})).file_type == "mostly F32"
    assert parsed(changed_file({"general.file_type": (U32, 1024)})).file_type == "mostly F32"


def test_missing_name_is_the_file_s():
    assert parsed(changed_file({"general.name": None})).name == "some"


def test_spm_vocabulary_has_default_special_tokens():
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    changes: dict[str, files.Typed | None] = {"bos_token_id": None, "eos_token_id": None, "padding_token_id": None}
    changes |= {"model": (STRING, "llama"), "add_bos_token": None}
    changes |= {"tokens": (ARRAY, STRING, tokens), "token_type": (ARRAY, I32, [1] * 259)}
    info = parsed(changed_file({f"tokenizer.ggml.{key}": typed for key, typed in changes.items()}))
    assert (info.bos_text, info.eos_text, info.bos_id, info.eos_id, info.add_bos) == ("<s>", "</s>", 1, 2, None)


# ---- hostile files


@pytest.mark.parametrize("bad", BAD_FILES, ids=lambda bad: bad.name)
def test_bad_file_is_refused_quickly_in_one_sentence(bad: BadFile, tmp_path):
    path = bad.write(tmp_path)
    start = time.perf_counter()
    with pytest.raises(ModelFileError) as caught:
        read_model_info(path)
    assert time.perf_counter() - start < 5  # 0.5 s at most on a free core; the margin is for a busy or emulated one
    assert caught.value.path == path
    assert bad.says in caught.value.problem
    assert caught.value.remedy
    assert str(caught.value).isprintable()
    assert len(caught.value.problem) < 200


@pytest.mark.parametrize(
    "name", ["n_keys_in_a_hole", "string_in_a_hole", "array_of_bytes_10_12_in_a_hole", "dims_overflow"]
)
def test_bad_file_takes_little_memory(name, tmp_path):
    path = next(bad for bad in BAD_FILES if bad.name == name).write(tmp_path)
    tracemalloc.start()
    with pytest.raises(ModelFileError):
        read_model_info(path)
    n_bytes_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_bytes_peak < 4e6


def test_file_truncated_at_any_byte_is_refused():
    data = files.sound_file()
    n_header_bytes = len(data) - files.sound_tensors()[1]
    for n in (*range(n_header_bytes), *range(n_header_bytes, len(data) - 32, 997)):
        with pytest.raises(ModelFileError):
            parsed(data[:n])


def test_incomplete_data_is_told_with_both_numbers():
    data = files.sound_file()
    with pytest.raises(ModelFileError) as caught:
        parsed(data[:-4096])
    assert f"ends at byte {len(data)}, the file has {len(data) - 4096}" in caught.value.problem


def test_random_mutations_are_read_or_refused():
    rng = random.Random(20261121)
    data = files.sound_file()
    n_header_bytes = len(data) - files.sound_tensors()[1]
    n_refused = 0
    for _ in range(4000):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(n_header_bytes)
            kind = rng.randrange(4)
            if kind == 0:
                mutated[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                mutated[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            elif kind == 2:
                mutated[at : at + 8] = rng.choice((bytes(8), b"\xff" * 8, (1 << 62).to_bytes(8, "little")))
            else:
                del mutated[at : at + rng.randrange(1, 64)]
        try:
            info = parsed(bytes(mutated))
        except ModelFileError:
            n_refused += 1
        else:
            _ask_everything(info)
    assert 1000 < n_refused < 4000


def _ask_everything(info: ModelInfo) -> None:
    """Whatever was accepted answers every question."""
    for name in dir(ModelInfo):
        if not name.startswith("_"):
            getattr(info, name)
    for key in info.metadata:
        info.array(key)


def test_things_that_are_not_files_are_refused(tmp_path):
    fifo, listener = tmp_path / "fifo.gguf", socket.socket(socket.AF_UNIX)
    os.mkfifo(fifo)
    listener.bind(str(tmp_path / "socket"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, says in (
        (fifo, "pipe"),
        (tmp_path / "socket", "socket"),
        (Path("/dev/zero"), "device"),
        (tmp_path, "folder"),
        (tmp_path / "loop", "cannot be read"),
        (tmp_path / "absent.gguf", "does not exist"),
        (fifo / "x", "cannot be read"),
        (Path("a\0b"), "null byte"),
    ):
        with pytest.raises(ModelFileError, match=says):
            read_model_info(path)
    listener.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_refused(tmp_path):
    path = tmp_path / "secret.gguf"
    path.write_bytes(files.sound_file())
    path.chmod(0)
    with pytest.raises(ModelFileError, match="Permission denied"):
        read_model_info(path)


def test_read_error_is_the_file_s_fault():
    def read_at(offset: int, n: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(ModelFileError, match="Input/output error"):
        parse_header(read_at, 1000, Path("worn.gguf"))


def test_source_that_gives_less_than_it_has_is_refused():
    data = files.sound_file()
    with pytest.raises(ModelFileError, match="became shorter"):
        parse_header(lambda offset, n: data[offset : offset + n][:100], len(data), Path("short.gguf"))


def test_file_changed_after_reading_is_noticed(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(changed_file({"x.many": (ARRAY, F32, [0.0] * 2000)}))
    info = read_model_info(path)
    assert len(info.array("x.many")) == 2000
    os.truncate(path, 5000)
    with pytest.raises(ModelFileError, match="changed while it was in use"):
        info.array("x.many")
    path.unlink()
    os.mkfifo(path)  # must not wait for a writer
    with pytest.raises(ModelFileError, match="changed while it was in use"):
        info.array("x.many")


def test_add_bos_needs_a_bos():
    keys = {"tokenizer.ggml.add_bos_token": (BOOL, True), "tokenizer.ggml.bos_token_id": None}
    few = {**keys, "tokenizer.ggml.tokens": (ARRAY, STRING, list("abc")), "tokenizer.ggml.eos_token_id": (U32, 1)}
    with pytest.raises(ModelFileError, match="asks for a bos token"):
        parsed(changed_file(few))


def _growth_bytes(path: Path) -> float:
    """By how much a fresh process grows at most when it reads the file."""
    script = """if True:
        import resource, sys
        from pathlib import Path
        from edge.model.gguf import read_model_info
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read_model_info(Path(sys.argv[1]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def _add_model(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(257)


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
