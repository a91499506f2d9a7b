"""Every message survives the wire; nothing else is one."""

from pathlib import Path

import pytest

from edge.config import EngineSettings, Sampling
from edge.engine import protocol
from edge.engine.protocol import Done, Failed, Generate, Load, Text, decode, encode
from edge.errors import ContextOverflowError, ModelFileError

MESSAGES = [
    Load(EngineSettings("m.gguf", n_ctx_tokens=512)),
    Generate(
        "1",
        (("<｜User｜>", True), ("line\nbreak \ud83d lone", False)),
        Sampling(seed=3, logit_bias=((5, -1.5),)),
        9,
        ("\n\n",),
    ),
    Generate("2", (), Sampling(), constraint=protocol.Constraint("regex", "a+"), stop_tokens=(5,)),
    protocol.Cancel("1"),
    protocol.AnswerNow("1"),
    protocol.Close(),
    protocol.Loading(0.5),
    protocol.Ready(4096, 4, 2, 0.5, "CPU"),
    protocol.Beat(2, 1, 700),
    protocol.Forget("c"),
    protocol.Tokenize("1", (("<｜User｜>", True), ("Hi", False))),
    protocol.Detokenize("1", (5, 6)),
    protocol.Tokens("1", (5, 6)),
    protocol.Detokenized("1", "Hi"),
    protocol.Phase("1", "running"),
    protocol.Progress("1", 5, 10, 0.1),
    Text("1", "answer", "方程\n"),
    protocol.TokenLogprob("1", "answer", "a", -0.5, (("a", -0.5), ("b", -1.0))),
    Done("1", "stop", 5, 2, 3, 4, 0.0, 0.5, 1.5),
    Failed.of("1", ContextOverflowError(5210, 4096)),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire(message: protocol.Event) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message


def test_the_list_above_is_complete() -> None:
    assert {type(message).__name__ for message in MESSAGES} == set(protocol._KINDS)


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"null", b"\xff", b'{"type":"Nothing"}', b'{"type":"Beat","x":1}'])
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(protocol.ProtocolError):
        decode(line)


def test_an_error_arrives_as_it_was_raised() -> None:
    raised = ModelFileError(Path("m.gguf"), "is cut short", "fetch it again")
    arrived = decode(encode(Failed.of("", raised))).exception()
    assert isinstance(arrived, ModelFileError)
    assert arrived.path == Path("m.gguf")
    assert str(arrived) == str(raised)


def test_rates_count_the_first_token_with_the_prompt() -> None:
    done = Done("1", "stop", 12, 2, 3, 4, queue_time_s=0.25, prefill_time_s=0.5, decode_time_s=1.5)
    assert done.time_to_first_token_s == 0.75
    assert done.prefill_tokens_per_s == 20
    assert done.decode_tokens_per_s == 4
