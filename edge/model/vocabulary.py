"""The vocabulary that a GGUF header carries: is it one that libllama can live with, and which tokens are special.

Sees the metadata and the raw bytes of the tokens; knows nothing of files, tensors or chat.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from edge.model.cursor import HeaderError, StoredArray, Value, shown

MAX_VOCAB = 1 << 20
TOKENS_KEY = "tokenizer.ggml.tokens"
ENDING_TOKENS = ("bos", "eos", "eot", "eom")  # must exist; a bad padding id, common in old files, is only noted
DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2}, "gpt2": {"bos": 11, "eos": 11}}  # libllama's, by tokenizer


def check_vocabulary(metadata: Mapping[str, Value], tokens: tuple[bytes, ...]) -> Mapping[str, str]:
    """Return the text of each special token. Raises HeaderError for a vocabulary that libllama would end at."""
    tokenizer = metadata.get("tokenizer.ggml.model")
    if not tokens or not isinstance(tokenizer, str) or tokenizer in ("none", "no_vocab"):  # tokenising asserts one
        raise HeaderError("carries no vocabulary", "convert the model again with its tokenizer")
    n_vocab = len(tokens)
    if n_vocab > MAX_VOCAB:
        raise HeaderError(f"has a vocabulary of {n_vocab:,} tokens, {MAX_VOCAB:,} at most are read")
    for name in ("scores", "token_type"):
        values = metadata.get(f"tokenizer.ggml.{name}")
        if values is not None and (not isinstance(values, StoredArray | tuple) or len(values) < n_vocab):
            raise HeaderError(f"tokenizer.ggml.{name} is {shown(values)}, there are {n_vocab} tokens")
    _check_distinct(tokens, is_spm=tokenizer == "llama")

    # special tokens
    texts = {}
    for name, number in special_ids(metadata):
        if number < n_vocab:
            texts[name] = tokens[number].decode("utf-8", "replace")
        elif name in ENDING_TOKENS:
            raise HeaderError(f"the {name} token is {number}, the vocabulary ends at {n_vocab - 1}")
    for name in ("bos", "eos"):
        if metadata.get(f"tokenizer.ggml.add_{name}_token") is True and special_id(metadata, name, n_vocab) is None:
            raise HeaderError(f"asks for a {name} token at every prompt but names none")  # asserted
    for name, number in DEFAULT_IDS.get(tokenizer, {}).items():
        if tokenizer == "llama" and number < n_vocab:
            texts.setdefault(name, tokens[number].decode("utf-8", "replace"))
    return MappingProxyType(texts)


def _check_distinct(tokens: tuple[bytes, ...], is_spm: bool) -> None:
    """libllama asserts that no two tokens are the same text, as C sees it: up to a NUL, and never empty."""
    texts = list(tokens)
    if any(b"\0" in text or not text for text in texts):
        texts = [text.split(b"\0", 1)[0] or b"[EMPTY_%d]" % i for i, text in enumerate(texts)]
    distinct = set(texts)
    if len(distinct) != len(texts):
        text, n = Counter(texts).most_common(1)[0]
        raise HeaderError(f"has the token {shown(text.decode('utf-8', 'replace'))} {n} times in its vocabulary")
    if is_spm:  # a byte that no token covers is an exception nobody catches, whenever a user types it
        missing = [n for n in range(256) if b"<0x%02X>" % n not in distinct and bytes((n,)) not in distinct]
        if missing:
            raise HeaderError(f"has no token for {len(missing)} of 256 bytes, such as <0x{missing[0]:02X}>")


def special_ids(metadata: Mapping[str, Value]) -> Iterator[tuple[str, int]]:
    """Yield (name, id) of each tokenizer.ggml.<name>_token_id."""
    for key, value in metadata.items():
        if found := re.fullmatch(r"tokenizer\.ggml\.(\w+)_token_id", key):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise HeaderError(f"{key} is {shown(value)}, not the number of a token")
            yield found[1], value


def special_id(metadata: Mapping[str, Value], name: str, n_vocab: int) -> int | None:
    """The id of a special token, named by the file or libllama's default; None if it is not in the vocabulary."""
    number = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if not isinstance(number, int):
        number = DEFAULT_IDS.get(str(metadata.get("tokenizer.ggml.model")), {}).get(name)
    return number if number is not None and number < n_vocab else None
