"""The engine process under its client: replies, and every way of losing the process, with the real library."""

import asyncio
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge.config import EngineSettings, Sampling
from edge.engine.client import Engine, EngineClient, choices
from edge.engine.protocol import Done, Event, Generate, Text, TokenLogprob
from edge.errors import (
    EngineDiedError,
    EngineDownError,
    ModelFileError,
    OutOfRangeError,
    PoisonedRequestError,
    WrongBuildError,
)

PROMPT = (("<｜begin▁of▁sentence｜><｜User｜>", True), ("What is 347 + 85?", False), ("<｜Assistant｜><think>\n", True))
GREEDY = Sampling(temperature=0)


def ask(name: str = "1", **options: object) -> Generate:
    return Generate(name, PROMPT, GREEDY, **options)  # type: ignore[arg-type]


def endless(name: str = "long") -> Generate:
    """A reply that runs until the context is full."""
    return ask(name, ignore_end=True)


def settings(demo: Path, **options: object) -> EngineSettings:
    return EngineSettings(str(demo), n_threads=1, **options)  # type: ignore[arg-type]


def answer(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Text) and e.kind == "answer")


def with_client(s: EngineSettings, work: Callable[[EngineClient], Awaitable[None]]) -> None:
    async def main() -> None:
        client = EngineClient(s)
        try:
            await client.start()
            await asyncio.wait_for(work(client), timeout=60)
        finally:
            await client.close()

    asyncio.run(main())


async def collect(stream: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in stream]


async def first_text(stream: AsyncIterator[Event]) -> None:
    async for event in stream:
        if isinstance(event, Text):
            return


def test_the_front_never_loads_libllama(demo_model: Path) -> None:
    front = """if True:
        import sys
        from pathlib import Path
        from tests.engine import test_client as test
        with test.Engine(test.settings(Path(sys.argv[1]))) as engine:
            engine.start()
            assert test.answer(list(engine.generate(test.ask()))).endswith("432")
            assert "libllama" not in Path("/proc/self/maps").read_text()"""
    subprocess.run([sys.executable, "-c", front, str(demo_model)], check=True)


def test_streams_of_one_batch_give_the_same_greedy_answer(demo_model: Path) -> None:
    async def work(client: EngineClient) -> None:
        many = await asyncio.gather(*(collect(client.generate(ask(str(i)))) for i in range(6)))
        assert {answer(events) for events in many} == {"347 + 85 = 432"}

    with_client(settings(demo_model, n_slots=4), work)


def test_the_same_seed_gives_the_same_reply(demo_model: Path) -> None:
    async def work(client: EngineClient) -> None:
        texts = []
        for i in range(2):
            await collect(client.generate(ask(f"before {i}", max_tokens=1)))  # both find the same tokens in the cache
            hot = replace(ask(str(i)), sampling=Sampling(temperature=1.5, seed=11), max_tokens=60)
            texts.append([event.text for event in await collect(client.generate(hot)) if isinstance(event, Text)])
        assert texts[0] == texts[1]

    with_client(settings(demo_model, n_slots=1), work)


def test_cancel_ends_a_running_reply(demo_model: Path) -> None:
    async def work(client: EngineClient) -> None:
        events: list[Event] = []
        async for event in client.generate(endless()):
            if not events:
                client.cancel("long")
            events.append(event)
        assert isinstance(events[-1], Done)
        assert events[-1].finish_reason == "cancelled"

    with_client(settings(demo_model), work)


def test_leaving_a_stream_frees_its_slot(demo_model: Path) -> None:
    async def work(client: EngineClient) -> None:
        stream = client.generate(endless())
        await first_text(stream)
        await stream.aclose()
        assert answer(await collect(client.generate(ask("2")))).endswith("432")

    with_client(settings(demo_model, n_slots=1), work)


def test_control_token_text_typed_by_a_person_stays_text(demo_model: Path) -> None:
    async def work(client: EngineClient) -> None:
        async def n_tokens(segments: tuple[tuple[str, bool], ...]) -> int:
            events = await collect(client.generate(Generate("n", segments, GREEDY, max_tokens=1)))
            assert isinstance(events[-1], Done)
            return events[-1].n_prompt_tokens

        assert await n_tokens((("<｜User｜>", True),)) == 1
        assert await n_tokens((("<｜User｜>", False),)) > 1
        # between control tokens, template and user text are read as one text
        whole = await n_tokens((("What is this thing, please? Subtract", False),))
        assert await n_tokens((("What is thi", True), ("s thing, please? Sub", False), ("tract", True))) == whole

    with_client(settings(demo_model), work)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_death_fails_the_running_stream_and_spares_the_queue(demo_model: Path, how: signal.Signals) -> None:
    async def work(client: EngineClient) -> None:
        running = client.generate(endless())
        await first_text(running)
        queued = asyncio.create_task(collect(client.generate(ask("queued"))))
        await asyncio.sleep(0.05)  # let it reach the engine's queue
        assert client.pid is not None
        os.kill(client.pid, how)
        with pytest.raises(EngineDiedError) as died:
            await collect(running)
        assert how.name in died.value.reason
        assert answer(await queued).endswith("432")
        assert client.n_deaths == 1
        assert client.state == "ok"

    with_client(settings(demo_model, n_slots=1), work)


def test_a_silent_engine_counts_as_dead(demo_model: Path) -> None:
    async def work(client: EngineClient) -> None:
        running = client.generate(endless())
        await first_text(running)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGSTOP)
        with pytest.raises(EngineDiedError) as died:
            await collect(running)
        assert "did not answer for 2 s" in died.value.reason
        assert answer(await collect(client.generate(ask("2")))).endswith("432")

    with_client(settings(demo_model, hang_timeout_s=2.0), work)


def test_a_request_seen_at_two_deaths_is_refused(demo_model: Path) -> None:
    async def work(client: EngineClient) -> None:
        for i in range(2):
            running = client.generate(endless(str(i)))
            await first_text(running)
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            with pytest.raises(EngineDiedError):
                await collect(running)
        with pytest.raises(PoisonedRequestError) as refused:
            await collect(client.generate(endless("3")))
        assert refused.value.n_deaths == 2
        assert answer(await collect(client.generate(ask("innocent")))).endswith("432")

    with_client(settings(demo_model), work)


def test_five_deaths_leave_it_down_with_the_reason(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.engine.client.BACKOFF_S", (0.0,))

    async def work(client: EngineClient) -> None:
        for i in range(5):
            running = client.generate(replace(endless(str(i)), max_tokens=3000 + i))
            await first_text(running)
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            with pytest.raises(EngineDiedError):
                await collect(running)
        while client.state != "down":
            await asyncio.sleep(0.01)
        with pytest.raises(EngineDownError) as down:
            await collect(client.generate(ask("late")))
        assert "SIGKILL" in down.value.reason

    with_client(settings(demo_model), work)


def test_a_library_for_another_cpu_is_not_started_again(demo_model: Path) -> None:
    async def work(client: EngineClient) -> None:
        running = client.generate(endless("1"))
        await first_text(running)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGILL)
        with pytest.raises((EngineDiedError, EngineDownError)):
            await collect(running)
        while client.state != "down":
            await asyncio.sleep(0.01)
        assert client.n_deaths == 0
        with pytest.raises(WrongBuildError) as wrong:
            await collect(client.generate(ask("late")))
        assert "built for another CPU" in wrong.value.reason
        assert wrong.value.command.startswith("bash scripts/build-llama.sh --target ")

    with_client(settings(demo_model), work)


def test_a_model_that_cannot_be_loaded_is_an_error_not_a_death(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 60)

    async def main() -> None:
        client = EngineClient(EngineSettings(str(path), n_threads=1))
        with pytest.raises(ModelFileError) as error:
            await client.start()
        assert error.value.path == path
        await client.close()

    asyncio.run(main())


def test_the_engine_dies_with_its_front(demo_model: Path) -> None:
    import subprocess
    import sys
    import time

    code = (
        "import sys, time; from edge.engine.client import Engine; from edge.config import EngineSettings;"
        "e = Engine(EngineSettings(sys.argv[1], n_threads=1)); e.start(); print(e.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(demo_model)], stdout=subprocess.PIPE, text=True) as front:
        assert front.stdout is not None
        pid = int(front.stdout.readline())
        front.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the engine outlived its front"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", float("nan")), ("top_p", 0), ("top_k", -1), ("seed", -5), ("min_p", 2.0)]
)
def test_a_number_out_of_range_is_refused_by_name(demo_model: Path, name: str, value: float) -> None:
    client = EngineClient(settings(demo_model))
    request = replace(ask(), sampling=replace(GREEDY, **{name: value}))  # type: ignore[arg-type]
    with pytest.raises(OutOfRangeError) as refused:
        asyncio.run(collect(client.generate(request)))
    assert refused.value.name == name
    assert str(refused.value).startswith(f"{name} is ")


def test_a_shared_beginning_outlives_the_engine(demo_model: Path, tmp_path: Path) -> None:
    system = "Answer as a careful calculator would. " * 30

    def question(i: int) -> Generate:
        prompt = (
            ("<｜begin▁of▁sentence｜>", True),
            (system, False),
            ("<｜User｜>", True),
            (f"What is {i} + 1?", False),
        )
        return Generate(str(i), (*prompt, ("<｜Assistant｜><think>\n", True)), GREEDY, max_tokens=80)

    def cached(numbers: range) -> list[int]:
        counts = []
        with Engine(settings(demo_model, n_slots=1, prefix_dir=str(tmp_path))) as engine:
            engine.start()
            for i in numbers:
                (done,) = [e for e in engine.generate(question(i)) if isinstance(e, Done)]
                counts.append(done.n_cached_tokens)
        return counts

    first, second, _ = cached(range(3))
    assert first == 0 < second
    assert cached(range(7, 8)) == [second]


def test_a_module_in_the_users_folder_is_never_run(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    with Engine(settings(demo_model)) as engine:
        engine.start()
    assert not (tmp_path / "ran").exists()


def test_logprobs_are_a_distribution_and_name_the_greedy_token(demo_model: Path) -> None:
    async def work(client: EngineClient) -> None:
        events = await collect(client.generate(ask(n_logprobs=20)))
        logprobs = [e for e in events if isinstance(e, TokenLogprob)]
        assert "".join(e.text for e in logprobs if e.kind == "answer").strip() == "347 + 85 = 432<｜end▁of▁sentence｜>"
        for logprob in logprobs:
            assert logprob.top[0] == (logprob.text, logprob.logprob)
            total = sum(math.exp(value) for _, value in logprob.top)
            assert 0.5 < total <= 1.0001
            assert [value for _, value in logprob.top] == sorted((value for _, value in logprob.top), reverse=True)

    with_client(settings(demo_model), work)


def test_choices_of_one_prompt_differ_by_seed_and_read_it_once(demo_model: Path) -> None:
    async def work(client: EngineClient) -> None:
        hot = replace(ask(), sampling=Sampling(temperature=2.0, seed=3), max_tokens=40)
        long = replace(hot, segments=(("Tell me a story. " * 20, False), *PROMPT[1:]))
        replies = await asyncio.gather(*(collect(client.generate(choice)) for choice in choices(long, 3)))
        texts = {"".join(e.text for e in events if isinstance(e, Text)) for events in replies}
        assert len(texts) == 3
        cached = sorted(e.n_cached_tokens for events in replies for e in events if isinstance(e, Done))
        assert cached[0] == 0
        assert cached[1] > 50

    with_client(settings(demo_model), work)


def test_a_cleared_conversation_frees_its_kv_memory(demo_model: Path) -> None:
    async def work(client: EngineClient) -> None:
        await collect(client.generate(ask("1", conversation="c")))
        client.forget("other")
        assert await beat_after(client) > 30
        client.forget("c")
        assert await beat_after(client) == 0

    async def beat_after(client: EngineClient) -> int:
        """Tokens held, as told behind everything asked so far."""
        await client.tokenize((("x", False),))
        return client.beat.n_kv_tokens

    with_client(settings(demo_model), work)


def test_tokens_of_a_text_are_counted_as_a_prompt_is_read(demo_model: Path) -> None:
    with Engine(settings(demo_model)) as engine:
        engine.start()
        n_tokens = len(engine.tokenize(PROMPT))
        (done,) = [event for event in engine.generate(ask()) if isinstance(event, Done)]
    assert n_tokens == done.n_prompt_tokens
