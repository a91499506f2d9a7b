"""Any OpenAI server is measured as our engine is: what it does not understand is left out, what it breaks is said."""

import asyncio
from pathlib import Path

import pytest

from benchmarks import harness, load
from benchmarks.endpoint import EngineEndpoint, UrlEndpoint, words, words_per_token
from benchmarks.load import Level, Mix
from benchmarks.runner import Job
from benchmarks.workload import Workload
from edge.config import EngineSettings
from edge.errors import EngineError
from tests.benchmarks.openai_server import Manners, openai_server


async def reply_of(endpoint: UrlEndpoint, n_tokens: int = 5) -> tuple[int, int, str]:
    await endpoint.start()
    reply = await endpoint.reply("one two three", n_tokens)
    assert reply.asked_ns < reply.text_ns[0] <= reply.text_ns[-1] <= reply.end_ns
    await endpoint.close()
    return reply.n_tokens, reply.n_prompt_tokens, reply.text


@pytest.mark.parametrize("has_completions", [True, False])
def test_a_reply_is_timed_token_by_token(has_completions: bool) -> None:
    manners = Manners()
    manners.completions = has_completions
    with openai_server(manners) as url:
        assert asyncio.run(reply_of(UrlEndpoint(url))) == (5, 6, "word " * 5)
    assert manners.asked[-1]["model"] == "tiny"
    assert ("prompt" in manners.asked[-1]) == has_completions
    assert manners.asked[-1]["ignore_eos"] is True


@pytest.mark.parametrize("unknown", [("ignore_eos",), ("ignore_eos", "stream_options")])
def test_what_a_server_refuses_is_left_out(unknown: tuple[str, ...]) -> None:
    manners = Manners()
    manners.unknown = unknown
    with openai_server(manners) as url:
        n_tokens, n_prompt, _ = asyncio.run(reply_of(UrlEndpoint(url)))
    assert n_tokens == 5  # counted, where the server does not say
    assert n_prompt == (0 if "stream_options" in unknown else 6)
    assert not set(unknown) & set(manners.asked[-1])


def test_a_key_is_sent_and_its_absence_is_named() -> None:
    manners = Manners()
    manners.key = "secret"
    with openai_server(manners) as url:
        assert asyncio.run(reply_of(UrlEndpoint(url, key="secret")))[0] == 5
        with pytest.raises(EngineError, match=r"401.*give its key with --key"):
            asyncio.run(reply_of(UrlEndpoint(url)))


@pytest.mark.parametrize(("says", "said"), [("noise", "no OpenAI event"), ("error", "out of memory")])
def test_a_stream_that_breaks_is_an_error(says: str, said: str) -> None:
    manners = Manners()
    manners.says = says
    with openai_server(manners) as url, pytest.raises(EngineError, match=said):
        asyncio.run(reply_of(UrlEndpoint(url)))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://a..b/v1"])
def test_an_address_where_nothing_answers_is_said(url: str) -> None:
    with pytest.raises(EngineError, match="cannot be reached"):
        asyncio.run(reply_of(UrlEndpoint(url, "m")))


@pytest.mark.parametrize("url", ["localhost:8080", "http://127.0.0.1:abc/v1", "http://h:99999/v1", "http://[::1/v1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(EngineError, match="no address of a server; give one such as"):
        UrlEndpoint(url)


def test_texts_have_their_length_and_another_beginning_each() -> None:
    assert len(words(50, 3).split()) == 50
    assert words(50, 3) == words(50, 3)
    assert len({words(4, seed)[:12] for seed in range(50)}) > 45


def test_a_server_and_the_engine_take_turns_in_one_run(demo_model: Path) -> None:
    work = Workload(8, 4, view="end-to-end", n_threads=1, n_repetitions=2, n_warmups_max=1)
    with openai_server(Manners()) as url:
        ours, theirs = harness.run([[Job(work, demo_model), Job(work, url=url, key="unused")]])
    assert (ours.program.name, theirs.program.name) == ("edge", "server")
    assert (theirs.model.name, theirs.model.weights) == ("tiny", "unknown")
    assert len(ours.rates) == len(theirs.rates) == 2
    assert theirs.conditions.other_cores is None
    assert "127.0.0.1" not in theirs.line()
    assert "unused" not in theirs.line()


def test_closed_and_open_load_count_what_was_asked_and_answered(demo_model: Path) -> None:
    steps: list[str] = []

    async def levels() -> list[Level]:
        endpoint = EngineEndpoint(EngineSettings(str(demo_model), n_slots=4, n_threads=1))
        await endpoint.start()
        assert await words_per_token(endpoint) > 0
        found = await load.run(endpoint, Mix((8, 32), 8), 0.5, clients=(1, 3), rates=(20,), report=steps.append)
        await endpoint.close()
        return found

    one, three, opened = asyncio.run(levels())
    assert [step.partition(" for 0.5 s, ")[::2] for step in steps] == [
        ("1 client(s)", "level 1 of 3"), ("3 client(s)", "level 2 of 3"), ("20 requests/s", "level 3 of 3")
    ]  # fmt: skip
    for level in (one, three, opened):
        assert level.n_asked >= level.n_answered > 0
        assert level.n_failed == 0
        assert level.tokens_per_s > 0
        assert level.longest_stall_s is not None
        assert level.token_s["p50"] <= level.token_s["p99"] <= level.longest_stall_s
    assert (one.n_clients, three.n_clients, opened.n_clients) == (1, 3, None)
    assert opened.n_asked == pytest.approx(10, abs=9)  # a Poisson process of a fixed seed, cut by the clock


def level(n_asked: int = 10, n_answered: int = 10, tokens_per_s: float = 1, **kind: float) -> Level:
    shape = {"n_clients": None, "rate_per_s": None} | kind
    return Level(duration_s=1, n_asked=n_asked, n_answered=n_answered, n_failed=0, tokens_per_s=tokens_per_s,
                 first_token_s={}, token_s={}, longest_stall_s=None, **shape)  # type: ignore[arg-type]  # fmt: skip


def test_saturation_is_where_more_brings_nothing() -> None:
    grows = [level(n_clients=n, tokens_per_s=rate) for n, rate in ((1, 10), (2, 18), (4, 18.2), (8, 18.1))]
    assert load.saturation(grows) == "full with 2 client(s)"
    assert load.saturation(grows[:2]) == "not full with 2 clients"
    opened = [level(rate_per_s=1), level(rate_per_s=2, n_answered=4)]
    assert load.saturation(opened) == "keeps up with 1 requests/s, falls behind at 2 requests/s"


def test_a_rate_at_which_nothing_arrived_is_not_judged() -> None:
    none = level(n_asked=0, n_answered=0, rate_per_s=0.01)
    assert load.saturation([none]) == "nothing arrived at 0.01 requests/s: give more --seconds"
    both = load.saturation([none, level(rate_per_s=2)])
    assert both == "keeps up with 2 requests/s, nothing arrived at 0.01 requests/s: give more --seconds"
