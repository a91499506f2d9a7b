"""tokenizer.json and its companions, asked for one thing at a time; whatever they say is checked before it is told.

Two kinds: byte-level BPE (GPT-2, Qwen, Llama 3), and BPE over SentencePiece's letters (Llama 2, TinyLlama, Phi-3).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from convert import split
from edge.errors import CheckpointError

Json = dict[str, Any]

N_TOKEN_BYTES_MAX = 4096
N_TEMPLATE_BYTES_MAX = 1_000_000  # the longest in the field has 30 kB
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
KNOWN = ", ".join(sorted({*split.BYTE_LEVEL.values(), "SentencePiece BPE"}))

_AGAIN = "download the checkpoint again"
_OTHER_MODEL = f"convert a model with one of the tokenizers {KNOWN}"


class Tokenizer:
    """One checkpoint's tokenizer. Methods raise CheckpointError that names the file and the fault."""

    def __init__(self, folder: Path, tokenizer: Json, config: Json, model_config: Json) -> None:
        self.folder = folder
        self.json = tokenizer
        self.config = config
        self.model_config = model_config
        self.model = self._object("model")
        self.vocab = self._vocab()
        self.added = self._added_tokens()
        if self.model.get("type", "BPE") != "BPE":
            raise self._wrong(f"model type {self.model.get('type')!r} is not supported", _OTHER_MODEL)

    @property
    def is_sentence_piece(self) -> bool:
        """Unknown letters become <0xXX> tokens, rather than every letter being bytes."""
        return self.model.get("byte_fallback") is True

    def tokens(self, n_tokens: int) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
        """Text and type of each id. Ids that nobody uses are padding."""
        texts: dict[int, str] = {}
        types: dict[int, TokenType] = {}
        for text, token_id in self.vocab.items():
            if token_id in texts:
                raise self._wrong(f"the id {token_id} is given twice, to {texts[token_id][:40]!r} and {text[:40]!r}")
            texts[token_id] = text
            types[token_id] = TokenType.NORMAL
        if self.is_sentence_piece:
            types |= dict.fromkeys(self._byte_ids(), TokenType.BYTE)
        for token_id, token in self.added.items():
            text = token["content"]
            is_control = bool(token.get("special")) or _looks_special(text)
            texts[token_id] = text if is_control else text.replace("▁", " ")
            types[token_id] = TokenType.CONTROL if is_control else TokenType.USER_DEFINED
        self._check_texts(texts, n_tokens)
        tokens = tuple(texts.get(i, f"[PAD{i}]") for i in range(n_tokens))
        if len(set(tokens)) < n_tokens:
            raise self._wrong(f"token {Counter(tokens).most_common(1)[0][0][:40]!r} is there twice")
        return tokens, tuple(types.get(i, TokenType.UNUSED) for i in range(n_tokens))

    def merges(self) -> tuple[str, ...]:
        """`left right` in order of rank. A space inside a part is written as byte-level BPE writes it, Ġ."""
        pairs = tuple(f"{left.replace(' ', 'Ġ')} {right.replace(' ', 'Ġ')}" for left, right in self._merges())
        if not _is_unicode("".join(pairs)):
            raise self._wrong("has a merge that is not Unicode")
        return pairs

    def scores(self, types: tuple[TokenType, ...]) -> tuple[float, ...]:
        """Rank of each token as SentencePiece scores: what merges first is 0, what merges later is less.

        llama.cpp joins the neighbours whose joint token scores highest, so the order is all that matters. (Upstream's
        converter gives every token of a tokenizer.json the same score, and with it the order is lost.)
        """
        ranks: dict[int, int] = {}
        for left, right in self._merges():
            token_id = self.vocab.get(left + right)
            if token_id is None:
                raise self._wrong(f"merges {left[:20]!r} and {right[:20]!r} to a token that is not there")
            ranks.setdefault(token_id, len(ranks))
        others = {TokenType.BYTE: 0.0, TokenType.NORMAL: -1e9, TokenType.UNUSED: -10000.0}
        return tuple(-float(ranks[i]) if i in ranks else others.get(kind, -1000.0) for i, kind in enumerate(types))

    def pre(self) -> str:
        """llama.cpp's name for the way text is split before merging."""
        if self.is_sentence_piece:
            return "default"
        steps = split.byte_level_steps(self.json)
        name = split.BYTE_LEVEL.get(steps)
        if name is None:
            raise self._unknown(steps)
        if self.model.get("ignore_merges") and name != "llama-bpe":
            raise self._wrong(f"ignores merges, which llama.cpp's {name} does not", _OTHER_MODEL)
        # One rule, two names: upstream goes by a hash of the ids of a text, and with a BOS in front those are others.
        return "deepseek-r1-qwen" if name == "qwen2" and self.adds_bos() else name

    def adds_space_prefix(self) -> bool | None:
        """Whether a space is put in front of a text; None where the question does not arise."""
        if not self.is_sentence_piece:
            return None
        steps = split.sentence_piece_steps(self.json)
        if steps not in split.SENTENCE_PIECE:
            raise self._unknown(steps)
        return split.SENTENCE_PIECE[steps]

    def adds_bos(self) -> bool:
        """Whether BOS is put in front of a text."""
        single = self._template()
        if len(single) > 1:  # the template says what is added
            return _special(single[0]) is not None and _special(single[0]) == self._special_text("bos")
        return self.config.get("add_bos_token") is True

    def adds_eos(self) -> bool:
        """Whether EOS is put behind a text."""
        single = self._template()
        if len(single) > 1:
            return _special(single[-1]) is not None and _special(single[-1]) == self._special_text("eos")
        return self.config.get("add_eos_token") is True

    def special_ids(self, n_tokens: int) -> dict[str, int]:
        """By the text in tokenizer_config.json, else by the id in config.json. End of turn is found by llama.cpp."""
        ids = {token["content"]: token_id for token_id, token in reversed(self.added.items())}
        found: dict[str, int] = {}
        for name in SPECIAL:
            token_id = ids.get(self._special_text(name) or "")
            token_id = self.model_config.get(f"{name}_token_id") if token_id is None else token_id
            if type(token_id) is not int:
                continue
            if not 0 <= token_id < n_tokens:
                problem = f"{name}_token_id is {token_id}, the vocabulary has {n_tokens} tokens"
                raise CheckpointError(self.folder / "config.json", problem, _AGAIN)
            found[name] = token_id
        return found

    def chat_template(self, beside: str | None) -> str | tuple[Mapping[str, str], ...] | None:
        """Jinja source, or several by name. beside: that of chat_template.jinja, which counts if there is no other."""
        template = self.config.get("chat_template")
        if template is None:
            return beside
        if _is_template(template):
            return str(template)
        if isinstance(template, list) and template and all(_is_named_template(entry) for entry in template):
            return tuple({"name": entry["name"], "template": entry["template"]} for entry in template)
        path = self.folder / "tokenizer_config.json"
        raise CheckpointError(path, f"chat_template is a {type(template).__name__} of no known form", _AGAIN)

    # what the files say, checked

    def _vocab(self) -> dict[str, int]:
        vocab = self.model.get("vocab")
        if not isinstance(vocab, dict):
            raise self._wrong("has no object 'vocab'")
        for text, token_id in vocab.items():
            if type(token_id) is not int:
                raise self._wrong(f"token {text[:40]!r} has the id {str(token_id)[:40]!r}")
        return vocab

    def _added_tokens(self) -> dict[int, Json]:
        found: dict[int, Json] = {}
        added = self.json.get("added_tokens") or []
        for token in added if isinstance(added, list) else []:
            token_id = token.get("id") if isinstance(token, dict) else None
            if type(token_id) is not int or token_id in found or not isinstance(token.get("content"), str):
                raise self._wrong(f"added token {str(token)[:80]} makes no sense")
            found[token_id] = token
        return found

    def _merges(self) -> Iterator[tuple[str, str]]:
        """Newer files store pairs, older ones `left right`."""
        merges = self.model.get("merges")
        if not isinstance(merges, list) or not merges:
            raise self._wrong("has no merges")
        for i, merge in enumerate(merges):
            parts = merge.split(" ") if isinstance(merge, str) else merge
            left, right = parts if isinstance(parts, list) and len(parts) == 2 else ("", "")
            if not isinstance(left, str) or not isinstance(right, str) or not left or not right:
                raise self._wrong(f"merge {i} is {str(merge)[:60]!r}, not two parts")
            yield left, right

    def _byte_ids(self) -> list[int]:
        missing = [text for text in BYTES if text not in self.vocab]
        if missing:  # llama.cpp would end the process at the first text that needs it
            raise self._wrong(f"has no token {missing[0]}", _AGAIN)
        return [self.vocab[text] for text in BYTES]

    def _check_texts(self, texts: dict[int, str], n_tokens: int) -> None:
        for token_id, text in texts.items():
            if not 0 <= token_id < n_tokens:
                raise self._wrong(f"token {text[:40]!r} has the id {token_id}, the embedding has {n_tokens} rows")
            if not 1 <= len(text) <= N_TOKEN_BYTES_MAX or not _is_unicode(text):
                raise self._wrong(f"token {token_id} is empty, too long or not Unicode")

    def _special_text(self, name: str) -> str | None:
        token = self.config.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        return text if isinstance(text, str) else None

    def _template(self) -> list[Any]:
        """What a single text becomes: its special tokens and itself."""
        processor = self.json.get("post_processor")
        steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
        for step in steps if isinstance(steps, list) else []:
            if isinstance(step, dict) and step.get("type") == "TemplateProcessing":
                single = step.get("single")
                return single if isinstance(single, list) else []
        return []

    def _object(self, key: str) -> Json:
        value = self.json.get(key)
        if not isinstance(value, dict):
            raise self._wrong(f"has no object {key!r}")
        return value

    def _unknown(self, steps: tuple[str, ...]) -> CheckpointError:
        rule = " + ".join(steps) or "none"
        return self._wrong(f"splits text by a rule that is not known: {rule[:300]}", _OTHER_MODEL)

    def _wrong(self, problem: str, remedy: str = _AGAIN) -> CheckpointError:
        return CheckpointError(self.folder / "tokenizer.json", problem, remedy)


def _special(part: Any) -> str | None:
    """The text of a special token in a template, None for anything else."""
    token = part.get("SpecialToken") if isinstance(part, dict) else None
    text = token.get("id") if isinstance(token, dict) else None
    return text if isinstance(text, str) else None


def _looks_special(text: str) -> bool:
    """Some checkpoints forget to mark these."""
    ends = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    known = text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    return known or any(text.startswith(start) and text.endswith(end) for start, end in ends)


def _is_unicode(text: str) -> bool:
    """JSON may spell half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_template(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= N_TEMPLATE_BYTES_MAX and _is_unicode(text)


def _is_named_template(entry: Any) -> bool:
    return isinstance(entry, dict) and all(_is_template(entry.get(key)) for key in ("name", "template"))
