"""Constraints against a byte vocabulary: what is allowed, what is refused by name, what happens at a dead end."""

import json
from collections.abc import Iterable

import numpy as np
import pytest

from edge.engine.grammar import Grammars, Matcher
from edge.engine.protocol import Constraint
from edge.errors import ConstraintDeadEndError, ConstraintError
from tests.fakes import END, FakeLlama, replies

GRAMMARS = Grammars(FakeLlama(replies()))


def schema(**keys: object) -> Constraint:
    return Constraint("json_schema", json.dumps(keys))


def allowed(matcher: Matcher) -> set[int]:
    logits = np.zeros(matcher._n_vocab, np.float32)
    matcher.mask(logits)
    return set(np.flatnonzero(logits == 0).tolist())


def accepts(constraint: Constraint, text: str) -> bool:
    """True if every byte of text may follow the one before, and the end may follow the last."""
    return accepts_tokens(GRAMMARS.matcher(constraint), text.encode())


def accepts_tokens(matcher: Matcher, tokens: Iterable[int]) -> bool:
    for token in tokens:
        if matcher.is_complete or token not in allowed(matcher):
            return False
        matcher.accept(token)
    return matcher.is_complete or END in allowed(matcher)


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (Constraint("regex", r"[0-9]{2,3}"), "123", "1"),
        (Constraint("choice", '["yes", "no", "方程"]'), "方程", "maybe"),
        (Constraint("json"), '{"a": [1, null, "x"]}', '"text"'),
        (schema(type="integer", minimum=3, maximum=5), "4", "6"),
        (schema(type="string", maxLength=2000), '"' + "a" * 2000 + '"', '"' + "a" * 2001 + '"'),
        (schema(enum=["red", 7]), "7", "8"),
        (
            schema(type="object", properties={"n": {"type": "integer"}}, required=["n"], additionalProperties=False),
            '{"n": -5}',
            '{"m": 5}',
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Constraint) else None,
)
def test_only_what_the_constraint_says_may_be_said(constraint: Constraint, good: str, bad: str) -> None:
    assert accepts(constraint, good)
    assert not accepts(constraint, bad)


@pytest.mark.parametrize(
    ("constraint", "named"),
    [
        (schema(type="object", unevaluatedProperties=False), "unevaluatedProperties"),
        (schema(**{"not": {"type": "string"}}), "not"),
        (schema(type="array", uniqueItems=True), "uniqueItems"),
        (schema(type="strange"), "strange"),
        (schema(**{"$ref": "#/nowhere"}), "nowhere"),
        (schema(type="string", pattern="("), "unclosed group"),
        (schema(type="string", format="postcode"), "postcode"),
        (Constraint("json_schema", "[1]"), "not an object"),
        (Constraint("json_schema", "{"), "not JSON"),
        (Constraint("json_schema", '{"items":' * 100 + "{}" + "}" * 100), "deeper than 64"),
        (Constraint("json_schema", " " * 70000), "more than 65536"),
        (Constraint("regex", "(a|b"), "unclosed group"),
        (Constraint("choice", "[]"), "not a list of texts"),
        (Constraint("lark", "start: nothing"), "nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_not_understood_is_refused_by_name(constraint: Constraint, named: str) -> None:
    with pytest.raises(ConstraintError) as refused:
        GRAMMARS.matcher(constraint)
    assert refused.value.kind == constraint.kind
    assert named in refused.value.problem


def test_a_ban_on_every_allowed_token_is_a_dead_end_not_a_crash() -> None:
    matcher = GRAMMARS.matcher(Constraint("choice", '["a"]'))
    logits = np.zeros(END + 1, np.float32)
    logits[ord("a")] = -np.inf
    with pytest.raises(ConstraintDeadEndError):
        matcher.mask(logits)


def test_white_space_in_json_comes_to_an_end() -> None:
    assert accepts(Constraint("json"), '{\n  "a": 1\n}')
    assert not accepts(Constraint("json"), "{" + " " * 40 + "}")
    assert not accepts(Constraint("json"), "{" + "\n" * 40 + "}")


def test_control_tokens_are_never_allowed() -> None:
    matcher = GRAMMARS.matcher(Constraint("regex", ".*"))
    matcher.accept(ord("x"))
    assert END in allowed(matcher), "as the end of the text, not as its spelling"
