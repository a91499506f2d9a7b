"""A name means one thing, whatever it is written like; what leads elsewhere is refused."""

import pytest

from edge.errors import HubError
from edge.model.names import ALIASES, ModelName, choose, is_name, is_plain, parse, quant_of

REPO = "unsloth/Qwen3-0.6B-GGUF"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (REPO, ModelName(REPO)),
        (f"{REPO}:q8_0", ModelName(REPO, "Q8_0")),
        (f"{REPO}@Q8_0", ModelName(REPO, "Q8_0")),
        (f"hf://{REPO}:Q8_0", ModelName(REPO, "Q8_0")),
        (f"hf.co/{REPO}:Q8_0", ModelName(REPO, "Q8_0")),
        (f"https://huggingface.co/{REPO}", ModelName(REPO)),
        (f"https://huggingface.co/{REPO}/blob/main/a/m-Q4_0.gguf", ModelName(REPO, None, "a/m-Q4_0.gguf", "main")),
        (f"https://hf.co/{REPO}/resolve/main/m.gguf?download=true", ModelName(REPO, None, "m.gguf", "main")),
        (f"{REPO}/m-Q4_0.gguf", ModelName(REPO, None, "m-Q4_0.gguf")),
        ("DeepSeek-R1:1.5b", ModelName("unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF")),
    ],
)
def test_every_spelling_is_understood(text, meant):
    assert parse(text) == meant
    assert is_name(text)


@pytest.mark.parametrize(
    "text",
    ["model.gguf", "./a/b", "/a/b", "models/m.gguf", "../x/y", "a/../b", "o/r/../../x.gguf", "o//r", "o/r:", "o/r:a/b",
     "-o/r", "o/.r", "", "o/r\n", "Summarize:", "Why is the sky blue?", "o/r:Q4 K", "o\\r/x"],
)  # fmt: skip
def test_paths_and_prompts_are_no_names(text):
    assert parse(text) is None
    assert not is_name(text)


@pytest.mark.parametrize(
    "text", ["https://example.org/o/r", "ftp://huggingface.co/o/r", "https://huggingface.co/o", "https://huggingface.co/",
             "https://huggingface.co.evil.org/o/r", "https://user@evil.org/huggingface.co/o/r"],
)  # fmt: skip
def test_other_addresses_are_refused(text):
    with pytest.raises(HubError, match="OWNER/REPO"):
        parse(text)


def test_the_host_of_the_endpoint_is_a_hub_too(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org")
    assert parse("https://mirror.example.org/o/r/blob/main/m.gguf") == ModelName("o/r", None, "m.gguf", "main")


@pytest.mark.parametrize("name", ["m.gguf", "a/b/m.gguf", "模型.gguf", "a b.gguf", "..m.gguf"])
def test_plain_names_are_taken(name):
    assert is_plain(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../m", "a/../m", "/m", "a//m", "a/", "a\\m", "C:m", "m\0", "m\n", "\x1b[2J", "a/./m", "x" * 600,
     "é" * 200],
)  # fmt: skip
def test_names_that_could_leave_their_folder_are_not(name):
    assert not is_plain(name)


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("m-Q4_K_M.gguf", "Q4_K_M"), ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"), ("m.IQ4_XS.gguf", "IQ4_XS"),
        ("m-Q8_0-00001-of-00002.gguf", "Q8_0"), ("Q4_0/m.gguf", "Q4_0"), ("m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("m-f16.gguf", "F16"), ("QwQ-32B.gguf", None), ("m.gguf", None),
    ],
)  # fmt: skip
def test_a_file_name_tells_its_type(name, quant):
    assert quant_of(name) == quant


FILES = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf", "imatrix_m.gguf", "README.md"]


def test_q4_k_m_is_the_usual_type():
    assert choose(FILES, ModelName(REPO)) == ["m-Q4_K_M.gguf"]
    assert choose(["m-Q8_0.gguf", "m-Q4_0.gguf", "m-Q2_K.gguf"], ModelName(REPO)) == ["m-Q4_0.gguf"]
    assert choose(["only.gguf"], ModelName(REPO)) == ["only.gguf"]


def test_a_named_type_or_file_is_the_one():
    assert choose(FILES, ModelName(REPO, "Q8_0")) == ["m-Q8_0.gguf"]
    assert choose(FILES, ModelName(REPO, file="m-Q8_0.gguf")) == ["m-Q8_0.gguf"]


def test_all_parts_come_in_order():
    parts = [f"m-Q4_K_M-{i:05d}-of-00003.gguf" for i in (3, 1, 2)]
    assert choose(parts, ModelName(REPO)) == sorted(parts)
    assert choose(parts, ModelName(REPO, file=parts[0])) == sorted(parts)


@pytest.mark.parametrize(
    ("files", "name", "says"),
    [
        (["model.safetensors"], ModelName(REPO), f"edge convert {REPO}"),
        (FILES, ModelName(REPO, "Q2_K"), "choose one of: Q4_K_M, Q8_0"),
        (FILES, ModelName(REPO, file="x.gguf"), "no such file"),
        (["a-Q4_0.gguf", "b-Q4_0.gguf"], ModelName(REPO, "Q4_0"), f"name the file, such as {REPO}/a-Q4_0.gguf"),
        (["a-Q2_K.gguf", "a-Q3_K_S.gguf"], ModelName(REPO), "choose one of: Q2_K, Q3_K_S"),
        (["m-Q4_0-00001-of-00002.gguf"], ModelName(REPO), "holds no GGUF"),
    ],
)
def test_what_is_not_one_model_is_told(files, name, says):
    with pytest.raises(HubError, match=says):
        choose(files, name)


def test_aliases_name_repositories_and_their_sizes():
    for text, alias in ALIASES.items():
        assert parse(text) == ModelName(alias.repo_id)
        assert alias.n_file_bytes < alias.n_memory_bytes < 3 * alias.n_file_bytes
