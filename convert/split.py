"""How a tokenizer cuts and prepares text before its merges, recognised by the rule itself. Never guessed.

A tokenizer that splits differently gives a model that talks nonsense now and then, and nobody finds out why.
"""

from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES, _BYTES_AND_SPLIT = "bytes", "bytes after GPT-2's split"
BYTE_LEVEL = {  # the steps of a byte-level pre-tokenizer, and llama.cpp's name for them
    (_WORDS + r"\p{N}" + _REST, _BYTES): "qwen2",
    (_WORDS + r"\p{N}{1,3}" + _REST, _BYTES): "llama-bpe",
    ("each digit", _BYTES_AND_SPLIT): "smollm",
    (_BYTES_AND_SPLIT,): "gpt-2",
}
_MARK, _PREFIX = "spaces to ▁", "a ▁ in front"
SENTENCE_PIECE = {  # the steps of a SentencePiece normaliser, and whether they put a space in front of the text
    (_PREFIX, _MARK): True,
    (_MARK, _PREFIX): True,
    (_MARK,): False,
}


def byte_level_steps(tokenizer: dict[str, Any]) -> tuple[str, ...]:
    """The way of text through a byte-level tokenizer.json, in words that BYTE_LEVEL may know."""
    normalizer = tokenizer.get("normalizer")
    # llama.cpp leaves text as it is; most text is NFC already
    nfc = isinstance(normalizer, dict) and normalizer.get("type") == "NFC"
    before = () if normalizer is None or nfc else (f"normaliser {normalizer}",)
    return before + tuple(word for step in _flat(tokenizer.get("pre_tokenizer")) for word in _byte_level_words(step))


def sentence_piece_steps(tokenizer: dict[str, Any]) -> tuple[str, ...]:
    """The way of text through a SentencePiece-like tokenizer.json, in words that SENTENCE_PIECE may know."""
    steps = _flat(tokenizer.get("normalizer")) + _flat(tokenizer.get("pre_tokenizer"))
    return tuple(word for step in steps for word in _sentence_piece_words(step))


def _flat(step: Any) -> list[Any]:
    """The steps of a Sequence within Sequences."""
    if step is None:
        return []
    parts = (step.get("normalizers") or step.get("pretokenizers")) if isinstance(step, dict) else None
    return [flat for part in parts for flat in _flat(part)] if isinstance(parts, list) else [step]


def _byte_level_words(step: Any) -> tuple[str, ...]:
    match step:
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}:
            return (regex,)
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Removed", "invert": True}:
            return (regex,)
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return (_BYTES_AND_SPLIT,) if step.get("use_regex", True) else (_BYTES,)
        case {"type": "Digits", "individual_digits": True}:
            return ("each digit",)
    return (str(step),)


def _sentence_piece_words(step: Any) -> tuple[str, ...]:
    match step:
        case {"type": "Prepend", "prepend": "▁"}:
            return (_PREFIX,)
        case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
            return (_MARK,)
        case {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": "first" | "always"}:
            return (_PREFIX, _MARK)
        case {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": "never"}:
            return (_MARK,)
    return (str(step),)
