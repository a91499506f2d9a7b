"""A model file told to a person and to a program."""

import json
from pathlib import Path

from edge.model.facts import describe, to_json
from edge.model.gguf import parse_header
from tests.hostile import gguf_files as files
from tests.hostile.gguf_files import ARRAY, F32, STRING, U32, changed_file


def told(changes=None):
    data = changed_file(changes or {})
    return parse_header(lambda offset, n: data[offset : offset + n], len(data), Path("m/tiny.gguf"))


def test_facts_come_in_order_with_units():
    assert describe(told()) == [
        ("file", "m/tiny.gguf"),
        ("size", f"{len(files.sound_file()) / 1e6:.1f} MB"),
        ("architecture", "qwen2"),
        ("name", "Tiny"),
        ("quantisation", "F32"),
        ("bits per weight", "32.00"),
        ("parameters", "26,272"),
        ("layers", "1, width 32, 4 heads, 2 for K and V"),
        ("context", "512 tokens trained"),
        ("vocabulary", "264 tokens"),
        ("KV cache", "0.3 MB for 4,096 tokens in f16"),
        ("read per token", "0.1 MB"),
        ("licence", "mit"),
        ("chat template", "yes"),
        ("thinks", "yes"),
        ("sampling", "temperature 0.5, top_k 20"),
        ("tensors", "15 F32"),
    ]


def test_what_is_missing_is_said():
    bare = {"general.license": None, "tokenizer.chat_template": None, "qwen2.context_length": (U32, 2**31)}
    facts = describe(told({**bare, "general.sampling.temp": None, "general.sampling.top_k": None}))
    assert ("licence", "not named") in facts
    assert ("chat template", "no") in facts
    assert ("sampling", "not named") in facts
    assert [value for name, value in facts if name == "note"] == [
        "claims a context of 2,147,483,648 tokens; 16,777,216 are believed",
        "carries no chat template",
    ]


def test_names_cannot_steer_the_terminal():
    facts = dict(describe(told({"general.name": (STRING, "Nice\x1b[2Jmodel\nsize  1 GB")})))
    assert facts["name"] == "Nice [2Jmodel size  1 GB"


def test_json_holds_every_key_and_tensor_and_is_strict():
    odd = {"x.many": (ARRAY, F32, [float("nan")] * 2000), "x.few": (ARRAY, F32, [float("inf"), 1.0])}
    document = json.loads(json.dumps(to_json(told(odd)), allow_nan=False))
    assert document["metadata"]["x.many"] == {"type": "float32", "count": 2000}
    assert document["metadata"]["x.few"] == ["inf", 1.0]
    assert set(document["metadata"]) == {str(key) for key in (*files.sound_metadata(), *odd)}
    assert document["kv_bytes_per_token"] == 64
    assert [tensor["name"] for tensor in document["tensors"]] == list(files.sound_shapes())
    assert document["tensors"][0]["shape"] == [32, 264]
