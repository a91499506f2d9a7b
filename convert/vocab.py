"""The vocabulary that goes into a GGUF: tokens, types, merges or scores, special ids, chat template, sampling.

Reads tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json as data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFWriter, TokenType

from convert.checkpoint import Checkpoint
from convert.folder import read_json, read_json_if_there, read_text_if_there
from convert.tokenizer import N_TEMPLATE_BYTES_MAX, Tokenizer
from edge.errors import CheckpointError

N_TOKENIZER_BYTES_MAX = 48_000_000  # Gemma 3's, with 262,144 tokens, has 33 MB
SAMPLING = {  # generation_config.json: the writer's method, least and most
    "top_k": ("top_k", 0, 1_000_000),
    "top_p": ("top_p", 0.0, 1.0),
    "min_p": ("min_p", 0.0, 1.0),
    "temperature": ("temp", 0.0, 100.0),
    "repetition_penalty": ("penalty_repeat", 0.0, 100.0),
}


@dataclass(frozen=True)
class Vocabulary:
    """What the tokenizer.* and general.sampling.* keys will say."""

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]  # byte-level BPE goes by these
    scores: tuple[float, ...]  # SentencePiece goes by these
    special_ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool | None
    chat_template: str | tuple[Mapping[str, str], ...] | None
    sampling: Mapping[str, float]

    @classmethod
    def read(cls, checkpoint: Checkpoint, n_tokens: int) -> "Vocabulary":
        """The vocabulary, padded to the `n_tokens` rows of the embedding. CheckpointError names file and fault."""
        folder = checkpoint.path
        config = read_json_if_there(folder, "tokenizer_config.json")
        values = read_json(folder, "tokenizer.json", n_bytes_max=N_TOKENIZER_BYTES_MAX)
        tokenizer = Tokenizer(folder, values, config, checkpoint.config)
        template = read_text_if_there(folder, "chat_template.jinja", n_bytes_max=N_TEMPLATE_BYTES_MAX)
        tokens, types = tokenizer.tokens(n_tokens)
        return cls(
            model="llama" if tokenizer.is_sentence_piece else "gpt2",
            pre=tokenizer.pre(),
            tokens=tokens,
            types=types,
            merges=() if tokenizer.is_sentence_piece else tokenizer.merges(),
            scores=tokenizer.scores(types) if tokenizer.is_sentence_piece else (),
            special_ids=tokenizer.special_ids(n_tokens),
            add_bos=tokenizer.adds_bos(),
            add_eos=tokenizer.adds_eos(),
            add_space_prefix=tokenizer.adds_space_prefix(),
            chat_template=tokenizer.chat_template(template),
            sampling=_sampling(folder),
        )

    def describe_sampling(self, writer: GGUFWriter) -> None:
        for name, value in self.sampling.items():
            getattr(writer, f"add_sampling_{name}")(value)

    def describe(self, writer: GGUFWriter) -> None:
        """Add the tokenizer's metadata, in the order of upstream's converter."""
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, token_id in self.special_ids.items():
            getattr(writer, f"add_{name}_token_id")(token_id)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def _sampling(folder: Path) -> dict[str, float]:
    """What the model's makers recommend, in the order of general.sampling.*"""
    found: dict[str, float] = {}
    config = read_json_if_there(folder, "generation_config.json")
    for key, (name, least, most) in SAMPLING.items():
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            problem = f"{key} is {str(value)[:40]!r}, not a number from {least} to {most}"
            raise CheckpointError(folder / "generation_config.json", problem, "download the checkpoint again")
        found[name] = int(value) if name == "top_k" else float(value)
    return found
