"""The tokenizer that comes out of a conversion splits text as the original does, or there is no conversion."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, TokenType

from convert.checkpoint import Checkpoint
from convert.pipeline import convert
from convert.tokenizer import BYTES
from convert.vocab import Vocabulary
from edge.errors import CheckpointError
from tests.convert import checkpoints, upstream
from tests.convert.checkpoints import BYTE_LEVEL, LLAMA3_SPLIT, TINY_ADDED, Shape
from tests.convert.upstream import Text

QWEN2_ADDED = (("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True))
R1_ADDED = (  # ids 151643 on, as in DeepSeek-R1-Distill-Qwen
    ("<｜end▁of▁sentence｜>", True), ("<｜User｜>", False), ("<｜Assistant｜>", False),
    ("<｜begin▁of▁sentence｜>", True), ("<|EOT|>", False), ("<think>", False), ("</think>", False),
)  # fmt: skip
# the text whose token ids upstream's converter hashes to tell tokenizers apart
CHECK_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 "
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? "
    "'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
CHECK_HASHES = {  # conversion/base.py of llama.cpp 0c1e57098
    "qwen2": "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea",
    "deepseek-r1-qwen": "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5",
    "gpt-2": "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454",
}


TINY_LLAMA = Shape("LlamaForCausalLM", embd=32, ff=32, layer=1, head=2, head_kv=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path / "model")


def read(folder: Path, n_tokens: int = 288) -> Vocabulary:
    with Checkpoint.open(folder) as checkpoint:
        return Vocabulary.read(checkpoint, n_tokens)


def refused(folder: Path, n_tokens: int = 288) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read(folder, n_tokens)
    return caught.value


def change_model(folder: Path, **values: Any) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    checkpoints.change(folder, "tokenizer.json", model={**tokenizer["model"], **values})


# against ids that others found


def real(tmp_path: Path, name: str) -> Path:
    """A GGUF with a real vocabulary, through our conversion."""
    split = None if name == "gpt-2" else checkpoints.QWEN2_SPLIT
    merges = checkpoints.lines("gpt-2-merges.txt.xz" if name == "gpt-2" else "qwen2-merges.txt.xz")
    added = {"qwen2": QWEN2_ADDED, "gpt-2": QWEN2_ADDED[:1], "deepseek-r1-qwen": R1_ADDED}[name]
    vocabulary = checkpoints.byte_level(merges, added, split)
    n_tokens = 50_257 if name == "gpt-2" else 151_936
    folder = checkpoints.with_vocabulary(tmp_path / name, vocabulary, n_tokens)
    is_r1 = name == "deepseek-r1-qwen"
    bos = "<｜begin▁of▁sentence｜>" if is_r1 else "<|endoftext|>"
    checkpoints.change(folder, "tokenizer_config.json", add_bos_token=is_r1, bos_token=bos, eos_token=added[0][0])
    return convert(folder, ["Q8_0"], tmp_path)[0].path


def sha256(ids: list[int]) -> str:
    return hashlib.sha256(str(ids).encode()).hexdigest()


@pytest.mark.parametrize("name", ["qwen2", "gpt-2"])
def test_ids_are_those_of_the_reference(tmp_path: Path, name: str) -> None:
    """Texts and ids come with llama.cpp; its tokenizer runs on the file we made."""
    texts = [*map(Text, checkpoints.reference_texts()), Text(CHECK_TEXT, special=True)]
    *ids, checked = upstream.tokenize(real(tmp_path, name), texts)
    assert ids == checkpoints.reference_ids(name)
    assert sha256(checked) == CHECK_HASHES[name]


def test_r1_distill_is_qwen2_with_a_bos(tmp_path: Path) -> None:
    """Upstream tells the two apart by the BOS in the hashed ids, and by nothing else. So do we."""
    path = real(tmp_path, "deepseek-r1-qwen")
    assert b"deepseek-r1-qwen" in path.read_bytes()
    texts = [
        *map(Text, checkpoints.reference_texts()),
        Text(CHECK_TEXT, add_bos=True, special=True),
        Text("<｜User｜>hi<think>\n</think>", special=True),
    ]
    *ids, checked, marks = upstream.tokenize(path, texts)
    assert ids == checkpoints.reference_ids("qwen2")
    assert checked[0] == 151646
    assert sha256(checked) == CHECK_HASHES["deepseek-r1-qwen"]
    assert marks == [151644, 6023, 151648, 198, 151649]


def test_sentence_piece_ids_are_those_of_the_reference(tmp_path: Path) -> None:
    """Llama 2's pieces through tokenizer.json, whose merges say in other words what the scores say."""
    folder = checkpoints.with_vocabulary(tmp_path / "phi-3", checkpoints.phi_3(), 32_064, TINY_LLAMA)
    checkpoints.change(folder, "tokenizer_config.json", bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>")
    path = convert(folder, ["Q8_0"], tmp_path)[0].path
    texts = [*map(Text, checkpoints.reference_texts()), Text("a<|end|>", add_bos=True, special=True)]
    *ids, marks = upstream.tokenize(path, texts)
    assert ids == checkpoints.reference_ids("phi-3")
    assert marks == [1, 263, 32007]


# SentencePiece

PIECES = ("<unk>", "<s>", "</s>", *BYTES, "he", "▁", "h", "e", "l", "▁he", "ll")
SCORES = {"▁he": 0.0, "he": -1.0, "ll": -2.0}


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """A tiny vocabulary whose ids are in no order of merging."""
    special = [("<unk>", True), ("<s>", True), ("</s>", True)]
    vocabulary = checkpoints.sentence_piece(PIECES, SCORES, special)
    found = checkpoints.with_vocabulary(tmp_path / "pieces", vocabulary, 288, TINY_LLAMA)
    texts = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
    checkpoints.change(found, "tokenizer_config.json", **texts)
    return found


def test_pieces_get_types_and_scores(pieces: Path) -> None:
    found = read(pieces)
    assert (found.model, found.pre, found.merges) == ("llama", "default", ())
    assert found.tokens[3:5] == ("<0x00>", "<0x01>")
    control, byte, normal, unused = TokenType.CONTROL, TokenType.BYTE, TokenType.NORMAL, TokenType.UNUSED
    assert found.types[:4] == (control, control, control, byte)
    assert found.types[258:261] == (byte, normal, normal)
    assert found.types[266:] == (unused,) * 22
    # the merge that comes first scores highest; what no merge makes cannot be merged to
    scores = {token: score for token, score in zip(found.tokens, found.scores, strict=True) if token in PIECES[259:]}
    assert scores == {"▁he": 0.0, "he": -1.0, "ll": -2.0, "▁": -1e9, "h": -1e9, "e": -1e9, "l": -1e9}
    assert found.scores[:4] == (-1000.0, -1000.0, -1000.0, 0.0)
    assert found.add_space_prefix is True
    assert dict(found.special_ids) == {"bos": 1, "eos": 2, "unk": 0}
    assert (found.add_bos, found.add_eos) == (True, False)


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "prefix"),
    [
        (None, METASPACE, True),
        (None, {**METASPACE, "prepend_scheme": "never"}, False),
        (MARK, None, False),
        ({"type": "Sequence", "normalizers": [MARK]}, None, False),
    ],
)
def test_space_in_front_is_recognised(pieces: Path, normalizer: object, pre_tokenizer: object, prefix: bool) -> None:
    checkpoints.change(pieces, "tokenizer.json", normalizer=normalizer, pre_tokenizer=pre_tokenizer)
    assert read(pieces).add_space_prefix is prefix


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [
        (None, None),
        ({"type": "NFKC"}, METASPACE),
        (None, {**METASPACE, "split": True}),
        (None, {**METASPACE, "replacement": "_"}),
        (MARK, METASPACE),
    ],
)
def test_unknown_ways_with_spaces_are_refused(pieces: Path, normalizer: object, pre_tokenizer: object) -> None:
    checkpoints.change(pieces, "tokenizer.json", normalizer=normalizer, pre_tokenizer=pre_tokenizer)
    assert refused(pieces).problem.startswith("splits text by a rule that is not known: ")


def test_pieces_need_all_bytes_and_all_products(pieces: Path) -> None:
    """llama.cpp ends the process at a letter whose byte has no token."""
    whole = json.loads((pieces / "tokenizer.json").read_text())["model"]
    vocab = {text: token_id for text, token_id in whole["vocab"].items() if text != "<0x7F>"}
    change_model(pieces, vocab=vocab)
    assert refused(pieces).problem == "has no token <0x7F>"
    change_model(pieces, vocab=whole["vocab"], merges=["h l"])
    assert refused(pieces).problem == "merges 'h' and 'l' to a token that is not there"


# tokens and types


def test_tokens_types_and_padding(folder: Path) -> None:
    found = read(folder)
    assert found.tokens[:3] == ("!", '"', "#")
    assert found.tokens[256:264] == ("<eos>", "<bos>", "<｜User｜>", "<think>", "he", "ll", "hell", "hello")
    assert found.tokens[264:] == tuple(f"[PAD{i}]" for i in range(264, 288))
    control, user, normal = TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.NORMAL
    # <｜User｜> is not marked as special, and is all the same
    assert found.types[255:261] == (normal, control, control, control, user, normal)
    assert set(found.types[264:]) == {TokenType.UNUSED}
    assert found.merges == ("h e", "l l", "he ll", "hell o")


def test_merges_in_pairs_are_the_same_merges(folder: Path) -> None:
    change_model(folder, merges=[["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"]])
    assert read(folder).merges == ("h e", "l l", "he ll", "hell o")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"merges": []}, "has no merges"),
        ({"merges": None}, "has no merges"),
        ({"merges": ["h e", "l l l"]}, "merge 1 is 'l l l', not two parts"),
        ({"merges": [["h", "e"], ["l", 7]]}, "merge 1 is \"['l', 7]\", not two parts"),
        ({"merges": [["h", "\ud800"]]}, "has a merge that is not Unicode"),
        ({"vocab": None}, "has no object 'vocab'"),
        ({"vocab": {"a": "b"}}, "token 'a' has the id 'b'"),
        ({"vocab": {"a": 288}}, "token 'a' has the id 288, the embedding has 288 rows"),
        ({"vocab": {"a": -1}}, "token 'a' has the id -1, the embedding has 288 rows"),
        ({"vocab": {"a": 5, "b": 5}}, "the id 5 is given twice, to 'a' and 'b'"),
        ({"vocab": {"": 5}}, "token 5 is empty, too long or not Unicode"),
        ({"vocab": {"x" * 5000: 5}}, "token 5 is empty, too long or not Unicode"),
        ({"vocab": {"\ud800": 5}}, "token 5 is empty, too long or not Unicode"),
        ({"vocab": {"<eos>": 5}}, "token '<eos>' is there twice"),
        ({"vocab": {"[PAD7]": 5}}, "token '[PAD7]' is there twice"),
        ({"type": "Unigram"}, "model type 'Unigram' is not supported"),
        ({"type": "WordPiece"}, "model type 'WordPiece' is not supported"),
        ({"ignore_merges": True}, "ignores merges, which llama.cpp's qwen2 does not"),
    ],
)
def test_vocabularies_that_make_no_sense(folder: Path, values: dict[str, Any], problem: str) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    model = {key: value for key, value in {**tokenizer["model"], **values}.items() if value is not None}
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "model": model}))
    error = refused(folder)
    assert error.path == folder / "tokenizer.json"
    assert error.problem == problem


def test_added_tokens_that_make_no_sense(folder: Path) -> None:
    for token in ("x", {"id": "7", "content": "x"}, {"id": 270}, {"id": 256, "content": "again"}):
        tokenizer = checkpoints.tiny_vocabulary()
        tokenizer["added_tokens"].append(token)
        checkpoints.write_json(folder / "tokenizer.json", tokenizer)
        assert refused(folder).problem == f"added token {str(token)[:80]} makes no sense"


def test_tokenizer_larger_than_the_embedding(folder: Path) -> None:
    assert refused(folder, 260).problem == "token 'he' has the id 260, the embedding has 260 rows"


def test_missing_and_huge_tokenizers(folder: Path) -> None:
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(500_000_000)
    assert refused(folder).problem.startswith("has 500,000,000 bytes, more than the 48,000,000")
    (folder / "tokenizer.json").unlink()
    assert refused(folder).problem == "has no tokenizer.json"


# the split rule


def with_steps(folder: Path, *steps: object) -> None:
    checkpoints.change(folder, "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": list(steps)})


def split(regex: str, **changes: object) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False, **changes}


DIGITS = {"type": "Digits", "individual_digits": True}
WITH_SPLIT = {**BYTE_LEVEL, "use_regex": True}


@pytest.mark.parametrize(
    ("steps", "pre"),
    [
        ((split(checkpoints.QWEN2_SPLIT), BYTE_LEVEL), "qwen2"),
        ((split(checkpoints.QWEN2_SPLIT, behavior="Removed", invert=True), BYTE_LEVEL), "qwen2"),
        ((split(LLAMA3_SPLIT), BYTE_LEVEL), "llama-bpe"),
        ((DIGITS, WITH_SPLIT), "smollm"),
        ((WITH_SPLIT,), "gpt-2"),
    ],
)
def test_known_rules(folder: Path, steps: tuple[object, ...], pre: str) -> None:
    with_steps(folder, *steps)
    checkpoints.change(folder, "tokenizer_config.json", add_bos_token=False)
    assert read(folder).pre == pre


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((), "none"),
        ((BYTE_LEVEL,), "bytes"),
        ((split(r"\s+"), BYTE_LEVEL), r"\s+ + bytes"),
        ((split(checkpoints.QWEN2_SPLIT, behavior="Removed"), BYTE_LEVEL), "{'type': 'Split'"),
        ((split(checkpoints.QWEN2_SPLIT), {**BYTE_LEVEL, "add_prefix_space": True}), "'add_prefix_space': True"),
        (({"type": "Whitespace"}, BYTE_LEVEL), "{'type': 'Whitespace'} + bytes"),
        (({"type": "Digits", "individual_digits": False}, WITH_SPLIT), "'individual_digits': False"),
        ((split(checkpoints.QWEN2_SPLIT), split(r"\s+"), BYTE_LEVEL), r"\s+ + bytes"),
    ],
)
def test_unknown_rules_are_named_not_guessed(folder: Path, steps: tuple[object, ...], said: str) -> None:
    with_steps(folder, *steps)
    error = refused(folder)
    assert error.problem.startswith("splits text by a rule that is not known: ")
    assert said in error.problem
    assert "qwen2" in error.remedy


def test_normalisers_that_llama_cpp_does_not_have(folder: Path) -> None:
    checkpoints.change(folder, "tokenizer.json", normalizer={"type": "NFC"})
    read(folder)
    checkpoints.change(folder, "tokenizer.json", normalizer={"type": "Lowercase"})
    assert "rule that is not known: normaliser {'type': 'Lowercase'} + (?i:'s" in refused(folder).problem


# special tokens


def template(*parts: str) -> dict[str, object]:
    single = [{"Sequence": {"id": "A"}} if part == "A" else {"SpecialToken": {"id": part}} for part in parts]
    return {"type": "Sequence", "processors": [BYTE_LEVEL, {"type": "TemplateProcessing", "single": single}]}


@pytest.mark.parametrize(
    ("processor", "flag", "adds"),
    [
        (None, True, True),
        (None, False, False),
        (None, None, False),
        (BYTE_LEVEL, True, True),  # R1-Distill: LlamaTokenizerFast goes by the flag
        (template("<bos>", "A"), False, True),
        (template("A", "<eos>"), True, False),
        (template("A"), True, True),
        (template("<eos>", "A"), True, False),  # in front, but no BOS
    ],
)
def test_bos_is_added_as_the_tokenizer_adds_it(folder: Path, processor: object, flag: object, adds: bool) -> None:
    checkpoints.change(folder, "tokenizer.json", post_processor=processor)
    checkpoints.change(folder, "tokenizer_config.json", add_bos_token=flag)
    assert read(folder).add_bos is adds


def test_special_ids_by_text_then_by_config(folder: Path) -> None:
    found = read(folder)
    assert dict(found.special_ids) == {"bos": 257, "eos": 256, "pad": 256}
    checkpoints.change(folder, "tokenizer_config.json", bos_token=None, eos_token="nobody")
    checkpoints.change(folder, "config.json", bos_token_id=258, eos_token_id=[256, 257])
    assert dict(read(folder).special_ids) == {"bos": 258, "pad": 256}
    checkpoints.change(folder, "config.json", bos_token_id=288)
    error = refused(folder)
    assert error.path == folder / "config.json"
    assert error.problem == "bos_token_id is 288, the vocabulary has 288 tokens"


# template and sampling


def test_chat_template_from_each_place(folder: Path) -> None:
    assert str(read(folder).chat_template).startswith("{{ bos_token }}")
    (folder / "chat_template.jinja").write_text("from a file of its own")
    assert str(read(folder).chat_template).startswith("{{ bos_token }}")
    checkpoints.change(folder, "tokenizer_config.json", chat_template=None)
    assert read(folder).chat_template == "from a file of its own"
    (folder / "chat_template.jinja").unlink()
    assert read(folder).chat_template is None


def test_several_chat_templates_keep_their_names(folder: Path) -> None:
    templates = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    checkpoints.change(folder, "tokenizer_config.json", chat_template=templates)
    writer = GGUFWriter(None, "qwen2")
    read(folder).describe(writer)
    assert writer.kv_data[0]["tokenizer.chat_template"].value == "one"
    assert writer.kv_data[0]["tokenizer.chat_template.tool_use"].value == "two"


@pytest.mark.parametrize("value", [7, [], ["x"], [{"name": "a"}], "x" * 1_000_001, "\ud800"])
def test_chat_templates_that_are_none(folder: Path, value: object) -> None:
    config = checkpoints.tokenizer_config() | {"chat_template": value}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    error = refused(folder)
    assert error.path == folder / "tokenizer_config.json"
    assert error.problem == f"chat_template is a {type(value).__name__} of no known form"


def test_chat_template_is_data(folder: Path) -> None:
    """It is copied, not run."""
    hostile = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**10) %}{% endfor %}"
    checkpoints.change(folder, "tokenizer_config.json", chat_template=hostile)
    assert read(folder).chat_template == hostile


def test_sampling_defaults_are_kept(folder: Path) -> None:
    checkpoints.write_json(
        folder / "generation_config.json",
        {"temperature": 1, "top_p": 0.8, "top_k": 20, "min_p": None, "repetition_penalty": 1.05, "do_sample": True},
    )
    found = read(folder)
    assert found.sampling == {"top_k": 20, "top_p": 0.8, "temp": 1.0, "penalty_repeat": 1.05}
    writer = GGUFWriter(None, "qwen2")
    found.describe_sampling(writer)
    assert writer.kv_data[0]["general.sampling.top_k"].value == 20
    (folder / "generation_config.json").unlink()
    assert read(folder).sampling == {}


@pytest.mark.parametrize(("key", "value"), [("temperature", "hot"), ("top_p", 1.5), ("top_k", -1), ("top_p", True)])
def test_sampling_defaults_are_checked(folder: Path, key: str, value: object) -> None:
    checkpoints.change(folder, "generation_config.json", **{key: value})
    error = refused(folder)
    assert error.path == folder / "generation_config.json"
    assert error.problem.startswith(f"{key} is {str(value)!r}, not a number from 0")


def test_tiny_vocabulary_is_what_these_tests_think() -> None:
    assert [text for text, _ in TINY_ADDED] == ["<eos>", "<bos>", "<｜User｜>", "<think>"]
