"""Constrained output: JSON schema, regex, choices -> which tokens may come next. Fails closed: what is not understood
is refused by name, never loosened.

llguidance does the work; a bad grammar is an error text there, where llama.cpp's own grammars end the process.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance._tokenizer import TokenizerWrapper
from numpy.typing import NDArray

from edge.config import JSON_WHITESPACE
from edge.engine.door import Vocabulary
from edge.engine.protocol import Calls, Constraint
from edge.errors import ConstraintDeadEndError, ConstraintError

N_BYTES_MAX = 65536
N_LEVELS_MAX = 64
SILENT = 0  # log level


class Grammars:
    """Makes matchers for one vocabulary. The table of its tokens is built at the first constraint (about a second)."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    @cached_property
    def _tokens(self) -> "_Tokens":
        return _Tokens(self._vocabulary)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(self._tokens))

    def matcher(self, constraint: Constraint) -> "Matcher":
        """Raises ConstraintError with what is wrong or not supported."""
        grammar = self._grammar(constraint)
        problem = LLMatcher.validate_grammar(grammar, self._tokenizer)
        if problem:
            raise ConstraintError(constraint.kind, _line(problem))
        return Matcher(LLMatcher(self._tokenizer, grammar, log_level=SILENT), self._vocabulary.n_vocab)

    def _grammar(self, constraint: Constraint) -> str:
        """The constraint in llguidance's own notation."""
        if len(constraint.value) > N_BYTES_MAX:
            raise ConstraintError(constraint.kind, f"it has more than {N_BYTES_MAX} characters")
        match constraint.kind:
            case "json":
                return LLMatcher.grammar_from_json_schema({"type": "object"}, {"whitespace_pattern": JSON_WHITESPACE})
            case "regex":
                return LLMatcher.grammar_from_regex(constraint.value)
            case "lark":
                return LLMatcher.grammar_from_lark(constraint.value)
            case "json_schema":
                schema = _parsed(constraint)
                if not isinstance(schema, dict):
                    raise ConstraintError(constraint.kind, "it is not an object")
                return LLMatcher.grammar_from_json_schema(schema, {"whitespace_pattern": JSON_WHITESPACE})
            case "choice":
                choices = _parsed(constraint)
                if not (isinstance(choices, list) and choices and all(isinstance(c, str) and c for c in choices)):
                    raise ConstraintError(constraint.kind, "it is not a list of texts")
                return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(c) for c in choices))
            case "tools":
                return LLMatcher.grammar_from_lark(self._calls(_parsed(constraint)))

    def _calls(self, calls: Calls) -> str:
        """Calls in Lark, bare or between marks. What is free begins like neither."""
        schema = {**calls["schema"], "x-guidance": {"whitespace_pattern": JSON_WHITESPACE}}
        rules = [f"call: %json {json.dumps(schema)}"]
        ways = ["call"]
        if calls["marks"]:
            opening, closing = map(self._spelled, calls["marks"])
            rules += [f"marked: {opening} LINE call LINE {closing}", r"LINE: /\n?/"]
            ways.append("marked")
        if calls["is_free"]:
            rules.append(rf"TEXT: /[^{'<' if calls['marks'] else ''}{{\s](.|\n)*/")
            ways.append("TEXT")
        return "\n".join([f"start: {' | '.join(ways)}", *rules])

    def _spelled(self, mark: str) -> str:
        """A mark in Lark: its control token where the vocabulary has one, else its letters."""
        tokens = self._vocabulary.tokenize(mark, control=True)
        is_control = len(tokens) == 1 and tokens[0] in self._tokens.special_token_ids
        return f"<[{tokens[0]}]>" if is_control else json.dumps(mark)


@dataclass
class Matcher:
    """Where one constrained answer stands."""

    _matcher: LLMatcher
    _n_vocab: int

    @property
    def is_complete(self) -> bool:
        """Nothing but the end may follow."""
        return bool(self._matcher.is_stopped())

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Set the logits (n_vocab,) of every forbidden token to -inf. Raises ConstraintDeadEndError if none is left."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: self._n_vocab].astype(bool)
        if self._matcher.is_error() or not (allowed & (logits > -np.inf)).any():
            raise ConstraintDeadEndError(_line(self._matcher.get_error()) or "every token that could follow is banned")
        logits[~allowed] = -np.inf

    def accept(self, token: int) -> None:
        """Take note of the token that was sampled."""
        if not self._matcher.consume_token(token):
            raise ConstraintDeadEndError(_line(self._matcher.get_error()))


def _line(problem: str) -> str:
    """What llguidance says, without its state, our grammar that it prints below, and where in that a schema stood."""
    said = re.split(r"<state>|\n\s*\d+ \| ", problem)[0].rpartition("failed to compile JSON schema: ")[2]
    return " ".join(said.split())[:300]


class _Tokens:
    """A vocabulary as llguidance wants it. Control tokens are not text, so a grammar never allows them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        ends = vocabulary.end_tokens()
        self.tokens = [vocabulary.piece(token) for token in range(vocabulary.n_vocab)]
        self.eos_token_id = ends[0]
        self.bos_token_id = None
        self.special_token_ids = sorted({*vocabulary.control_tokens(), *ends})
        self._vocabulary = vocabulary

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._vocabulary.tokenize(plain, control=False)


def _parsed(constraint: Constraint) -> Any:
    """The JSON in a constraint, its nesting bounded before anything walks it."""
    depth = deepest = 0
    for character in constraint.value:  # brackets inside strings count too: a schema has no such many
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    if deepest > N_LEVELS_MAX:
        raise ConstraintError(constraint.kind, f"it is nested deeper than {N_LEVELS_MAX} levels")
    try:
        return json.loads(constraint.value)
    except ValueError as error:
        raise ConstraintError(constraint.kind, f"it is not JSON ({error})") from error
