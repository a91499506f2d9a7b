"""Lines from the engine arrive whole however the socket cuts them; what never ends is an end."""

import asyncio

import pytest

from edge.config import EngineSettings
from edge.engine import process
from edge.engine.process import EngineProcess


def read(*pieces: bytes, hang_timeout_s: float = 5.0) -> tuple[list[bytes], str | None]:
    """The lines handed over, and why reading ended."""

    async def main() -> tuple[list[bytes], str | None]:
        reader = asyncio.StreamReader()
        lines: list[bytes] = []

        async def feed() -> None:
            for piece in pieces:
                reader.feed_data(piece)
                await asyncio.sleep(0)
            if hang_timeout_s >= 1:
                reader.feed_eof()

        feeding = asyncio.create_task(feed())
        settings = EngineSettings("model.gguf", hang_timeout_s=hang_timeout_s)
        why = await EngineProcess(settings)._read(reader, lines.append)
        await feeding
        return lines, why

    return asyncio.run(main())


def test_lines_are_whole_however_they_are_cut() -> None:
    text = b'{"a":1}\n{"b":"\xe6\x96\xb9"}\n{"c":3}\n'
    for n in range(1, len(text)):
        lines, why = read(*(text[i : i + n] for i in range(0, len(text), n)))
        assert lines == text.splitlines()
        assert why is None


def test_half_a_line_at_the_end_is_nothing() -> None:
    assert read(b"one\ntw") == ([b"one"], None)


def test_silence_is_named() -> None:
    assert read(b"one\n", hang_timeout_s=0.05) == ([b"one"], "it did not answer for 0 s")


def test_a_line_without_an_end_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LINE_LIMIT_BYTES", 1000)
    lines, why = read(b"one\n", b"x" * 2000)
    assert lines == [b"one"]
    assert why is not None
    assert why.startswith("it sent a line of more than")
