"""The scheduler against a scripted model: laws of batching, fairness, endings and full memory. No model, no clock."""

from collections.abc import Callable

import pytest

from edge.config import EngineSettings, Sampling
from edge.engine.protocol import AnswerNow, Cancel, Constraint, Done, Event, Failed, Forget, Generate, Progress, Text
from edge.engine.reasoning import CLOSING
from edge.engine.scheduler import Scheduler
from tests.fakes import FakeLlama, replies


def scheduler(llama: FakeLlama, **settings: object) -> Scheduler:
    return Scheduler(llama, EngineSettings("fake", **settings), clock=llama.clock)  # type: ignore[arg-type]


def request(name: str, prompt: str, **options: object) -> Generate:
    options.setdefault("thinks", False)
    return Generate(name, ((prompt, True),), Sampling(), **options)  # type: ignore[arg-type]


def run(s: Scheduler, watch: Callable[[list[Event]], None] = lambda _: None, n_steps_max: int = 20000) -> list[Event]:
    """Step until there is nothing left to do."""
    events: list[Event] = []
    for _ in range(n_steps_max):
        if not s.has_work:
            return events
        new = s.admit() + s.step()
        events += new
        watch(new)
    raise AssertionError("never finished")


def text(events: list[Event], name: str, kind: str = "answer") -> str:
    return "".join(e.text for e in events if isinstance(e, Text) and (e.id, e.kind) == (name, kind))


def done(events: list[Event], name: str) -> Done:
    (found,) = [e for e in events if isinstance(e, Done) and e.id == name]
    return found


def test_streams_of_a_batch_get_each_their_own_reply() -> None:
    pairs = [(f"q{i}:", f"reply {i} 方程👩‍👧 " * (i + 1)) for i in range(7)]
    s = scheduler(FakeLlama(replies(*pairs)), n_slots=3)
    for prompt, _ in pairs:
        s.submit(request(prompt, prompt))
    events = run(s)
    for prompt, reply in pairs:
        assert text(events, prompt) == reply.rstrip()
        assert done(events, prompt).finish_reason == "stop"


def test_every_sampler_is_closed_once() -> None:
    llama = FakeLlama(replies(("a", "xyz")))
    s = scheduler(llama)
    for i in range(3):
        s.submit(request(str(i), "a"))
    s.cancel(Cancel("1"))
    run(s)
    assert [sampler.is_closed for sampler in llama.samplers] == [True] * 3


def test_max_tokens_is_kept() -> None:
    s = scheduler(FakeLlama(replies(("a", "x" * 100))))
    s.submit(request("1", "a", max_tokens=7))
    events = run(s)
    assert text(events, "1") == "x" * 7
    assert (done(events, "1").finish_reason, done(events, "1").n_answer_tokens) == ("length", 7)


def test_a_stop_string_ends_the_answer_and_is_not_in_it() -> None:
    s = scheduler(FakeLlama(replies(("a", "one\n\ntwo"))))
    s.submit(request("1", "a", stops=("\n\n", "zzz")))
    events = run(s)
    assert text(events, "1") == "one"
    assert done(events, "1").finish_reason == "stop"


def test_a_shared_beginning_is_not_read_twice() -> None:
    llama = FakeLlama(replies(("system text. ", "ok")))
    llama.script = lambda text: None if text.endswith(b"k") else b"ok"[text.endswith(b"o") :][:1]
    s = scheduler(llama, n_slots=2)
    s.submit(request("1", "system text. first?"))
    run(s)
    s.submit(request("2", "system text. second?"))
    s.submit(request("3", "system text. first?"))
    events = run(s)
    assert done(events, "2").n_cached_tokens == len("system text. ")
    assert done(events, "3").n_cached_tokens == len("system text. first?") - 1  # "2" left the other's slot alone


def test_the_whole_prompt_in_the_cache_still_decodes_its_last_token() -> None:
    s = scheduler(FakeLlama(replies(("abc", "x"))), n_slots=1)
    for name in "12":
        s.submit(request(name, "abc"))
    events = run(s)
    assert done(events, "2").n_cached_tokens == 2
    assert text(events, "2") == "x"


def test_two_conversations_in_turn_keep_what_was_read_of_each() -> None:
    texts = ["<u>" + letter * 300 for letter in "ab"]
    s = scheduler(FakeLlama(replies(*((text, "x" * 9) for text in texts))), n_slots=2)
    for i in range(4):
        s.submit(request(str(i), texts[i % 2]))
        events = run(s)
        assert done(events, str(i)).n_cached_tokens == (0 if i == 0 else 3 if i == 1 else 302)


def test_a_rewritten_question_takes_the_slot_of_its_conversation() -> None:
    s = scheduler(FakeLlama(replies(("abcd", "x"), ("abef", "y"), ("zz", "w"))), n_slots=2)
    asked = (("zz", "theirs"), ("abcd", "mine"), ("abef", "mine"), ("zz", "theirs"))
    for i, (prompt, conversation) in enumerate(asked):
        s.submit(request(str(i), prompt, conversation=conversation))
        events = run(s)
    assert done(events, "3").n_cached_tokens == 1


def test_running_streams_wait_no_longer_than_a_time_slice_for_a_long_prompt() -> None:
    llama = FakeLlama(replies(("short", "y" * 400), ("long" * 700, "z")), n_batch_tokens=512, second_per_token=0.01)
    s = scheduler(llama, n_slots=4, step_time_s=0.2)
    for i in range(3):
        s.submit(request(str(i), "short"))
    for _ in range(20):
        s.admit()
        s.step()
    s.submit(request("long", "long" * 700))
    gaps: list[float] = []
    last = llama.now_s

    def watch(events: list[Event]) -> None:
        nonlocal last
        if any(isinstance(e, Text) and e.id == "0" for e in events):
            gaps.append(llama.now_s - last)
            last = llama.now_s

    events = run(s, watch)
    assert done(events, "long").n_prompt_tokens == 2800
    assert max(gaps) <= 0.25


def test_a_prompt_alone_is_read_in_full_micro_batches_with_progress() -> None:
    llama = FakeLlama(replies(("p" * 1000, "z")), n_batch_tokens=256)
    s = scheduler(llama)
    s.submit(request("1", "p" * 1000))
    events = run(s)
    assert llama.widths[:4] == [256, 256, 256, 232]
    progress = [e for e in events if isinstance(e, Progress)]
    assert [p.n_done_tokens for p in progress] == [256, 512, 768]
    assert all(p.n_prompt_tokens == 1000 and p.seconds_left >= 0 for p in progress)


def test_a_cancelled_request_frees_its_slot_within_one_step() -> None:
    s = scheduler(FakeLlama(replies(("a", "x" * 1000), ("b", "y"))), n_slots=1)
    s.submit(request("1", "a"))
    s.submit(request("2", "b"))
    s.admit()
    s.step()
    s.cancel(Cancel("1"))
    s.admit()
    events = s.step() + run(s)
    assert text(events, "2") == "y"
    assert done(events, "2").finish_reason == "stop"


def test_cancel_reaches_a_waiting_request_and_one_in_its_prompt() -> None:
    s = scheduler(FakeLlama(replies(("p" * 1000, "x"))), n_slots=1)
    s.submit(request("1", "p" * 1000))
    s.submit(request("2", "p" * 1000))
    s.admit()
    s.step()
    s.cancel(Cancel("1"))
    s.cancel(Cancel("2"))
    events = run(s)
    assert {done(events, "1").finish_reason, done(events, "2").finish_reason} == {"cancelled"}


def test_a_full_pool_parks_the_youngest_and_everyone_still_finishes() -> None:
    pairs = [(f"{i}" * 30, f"{i}" * 60) for i in range(4)]
    llama = FakeLlama(replies(*pairs), n_ctx_tokens=100, n_room=200)
    s = scheduler(llama, n_slots=4)
    for prompt, _ in pairs:
        s.submit(request(prompt[0], prompt))
    events = run(s)
    for prompt, reply in pairs:
        assert text(events, prompt[0]) == reply
    assert sum(map(len, llama.kv.values())) <= 200


def test_a_reply_ends_with_length_when_the_context_is_full() -> None:
    s = scheduler(FakeLlama(replies(("a" * 50, "x" * 500)), n_ctx_tokens=64, n_room=64))
    s.submit(request("1", "a" * 50))
    events = run(s)
    assert done(events, "1").finish_reason == "length"
    assert text(events, "1") == "x" * 14


def test_a_failed_decode_fails_only_the_requests_in_it() -> None:
    llama = FakeLlama(replies(("a", "x" * 5), ("b", "y")), codes=[0, -3])
    s = scheduler(llama, n_slots=1)
    s.submit(request("1", "a"))
    s.submit(request("2", "b"))
    events = run(s)
    (failed,) = [e for e in events if isinstance(e, Failed)]
    assert failed.id == "1"
    assert text(events, "2") == "y"


def test_too_long_and_empty_prompts_fail_with_their_numbers() -> None:
    s = scheduler(FakeLlama(replies(), n_ctx_tokens=64))
    s.submit(request("1", "a" * 64))
    s.submit(request("2", ""))
    first, second = [e.exception() for e in run(s) if isinstance(e, Failed)]
    assert str(first).startswith("the prompt has 64 tokens, the context holds 64; shorten it")
    assert str(second) == "the prompt is empty; type a question"


def test_a_full_queue_says_busy() -> None:
    s = scheduler(FakeLlama(replies(("a", "x"))), n_queue=2)
    for i in range(3):
        s.submit(request(str(i), "a"))
    events = run(s)
    (failed,) = [e for e in events if isinstance(e, Failed)]
    assert (failed.id, failed.error) == ("2", "BusyError")


# ---------------------------------------------------------------- thought and answer


def thinker(thought: str, answer: str, **options: object) -> FakeLlama:
    """Thinks, closes the thought by itself or after it was closed for it, and answers."""

    def script(text: bytes) -> bytes | None:
        said = text.split(b"<think>\n", 1)[1].decode()
        reply = said.split("</think>", 1)
        if len(reply) == 1:
            full = f"{thought}\n</think>\n\n{answer}"
            return full[len(said) :][:1].encode() or None
        return f"\n\n{answer}"[len(reply[1]) :][:1].encode() or None

    return FakeLlama(script, **options)  # type: ignore[arg-type]


def test_thought_and_answer_travel_apart_and_are_counted() -> None:
    s = scheduler(thinker("7+5=12", "12"))
    s.submit(request("1", "q<think>\n", thinks=True))
    events = run(s)
    assert text(events, "1", "thought") == "7+5=12"
    assert text(events, "1") == "12"
    assert done(events, "1").n_thought_tokens == len("7+5=12\n</think>")
    assert done(events, "1").n_answer_tokens == len("\n\n12")


@pytest.mark.parametrize("limit", [1, 5, 40])
def test_a_thought_budget_closes_the_thought_and_the_answer_follows(limit: int) -> None:
    s = scheduler(thinker("".join(map(str, range(200))), "42"))
    s.submit(request("1", "q<think>\n", thinks=True, max_thought_tokens=limit))
    events = run(s)
    assert text(events, "1", "thought") == "".join(map(str, range(200)))[:limit]
    assert text(events, "1") == "42"


def test_answer_now_closes_the_thought_at_once() -> None:
    s = scheduler(thinker("".join(map(str, range(200))), "42"))
    s.submit(request("1", "q<think>\n", thinks=True))
    s.admit()
    events = s.step() + s.step() + s.step()
    s.answer_now(AnswerNow("1"))
    events += run(s)
    assert text(events, "1", "thought") == "0123"
    assert text(events, "1") == "42"


def test_a_thought_that_goes_in_circles_is_ended() -> None:
    s = scheduler(thinker("Wait, is it 42? " * 200, "42"))
    s.submit(request("1", "q<think>\n", thinks=True))
    events = run(s)
    assert len(text(events, "1", "thought")) < 1000
    assert text(events, "1") == "42"


def test_room_for_the_answer_is_kept_whatever_the_thought() -> None:
    s = scheduler(thinker("".join(map(str, range(2000))), "42", n_ctx_tokens=1100))
    s.submit(request("1", "q<think>\n", thinks=True))
    events = run(s)
    assert text(events, "1") == "42"
    assert done(events, "1").n_prompt_tokens + done(events, "1").n_thought_tokens <= 1100 - 512


def test_a_model_that_ends_inside_its_thought_still_answers() -> None:
    def script(text: bytes) -> bytes | None:
        said = text.split(b"<think>\n", 1)[1].decode()
        if CLOSING in "\n" + said:
            return None  # and then has nothing to say
        return b"hm"[len(said) :][:1] or None

    s = scheduler(FakeLlama(script))
    s.submit(request("1", "q<think>\n", thinks=True))
    events = run(s)
    assert text(events, "1", "thought") == "hm"
    assert text(events, "1") == "!", "the end token is banned until something was said"


# ---------------------------------------------------------------- constraints and fairness


def test_a_constraint_applies_after_the_thought() -> None:
    s = scheduler(thinker("7+5=12", "twelve"))
    s.submit(request("1", "q<think>\n", thinks=True, constraint=Constraint("choice", '["12"]')))
    events = run(s)
    assert text(events, "1", "thought") == "7+5=12"
    assert text(events, "1") == "12"
    assert done(events, "1").finish_reason == "stop"


def test_a_constraint_binds_the_first_letter_of_a_model_that_does_not_think() -> None:
    """The prompt opens no thought and the model none: what it says first was let through, then the constraint began."""
    s = scheduler(FakeLlama(replies(("q", "twelve"))))
    s.submit(request("1", "q", thinks=True, constraint=Constraint("choice", '["12"]')))
    events = run(s)
    assert text(events, "1") == "12"
    assert done(events, "1").finish_reason == "stop"


def test_a_model_that_opens_its_thought_itself_is_bound_behind_it() -> None:
    s = scheduler(FakeLlama(replies(("q", "<think>\n7+5=12\n</think>\n\n12"))))
    s.submit(request("1", "q", thinks=True, constraint=Constraint("choice", '["12"]')))
    events = run(s)
    assert text(events, "1", "thought") == "7+5=12"
    assert text(events, "1") == "12"


def test_a_bad_schema_fails_its_request_alone() -> None:
    s = scheduler(FakeLlama(replies(("a", "x"))))
    s.submit(request("1", "a", constraint=Constraint("json_schema", '{"not": {}}')))
    s.submit(request("2", "a"))
    events = run(s)
    (failed,) = [e for e in events if isinstance(e, Failed)]
    assert (failed.id, failed.error) == ("1", "ConstraintError")
    assert text(events, "2") == "x"


def test_a_stop_token_ends_the_reply() -> None:
    s = scheduler(FakeLlama(replies(("a", "one.two"))))
    s.submit(request("1", "a", stop_tokens=(ord("."),)))
    assert text(run(s), "1") == "one"


def test_a_client_with_many_requests_does_not_starve_another() -> None:
    s = scheduler(FakeLlama(replies(("a", "x" * 10))), n_slots=2)
    for i in range(20):
        s.submit(request(f"many {i}", "a", client="many"))
    s.submit(request("one", "a", client="one"))
    order = [e.id for e in run(s) if isinstance(e, Done)]
    assert order.index("one") <= 3


def test_requests_with_a_common_beginning_read_it_once() -> None:
    beginning = "a long common beginning, " * 20
    llama = FakeLlama(lambda text: None if text.endswith(b"!") else b"!", n_batch_tokens=64)
    s = scheduler(llama, n_slots=4)
    for i in range(4):
        s.submit(request(str(i), f"{beginning}question {i}"))
    events = run(s)
    cached = [done(events, str(i)).n_cached_tokens for i in range(4)]
    assert cached[0] == 0
    assert min(cached[1:]) >= len(beginning)


def test_a_group_of_rows_is_filled_rather_than_left_one_short() -> None:
    llama = FakeLlama(replies(("a", "x" * 30)))
    s = scheduler(llama, n_slots=3)
    for i in range(3):
        s.submit(request(str(i), "a"))
    events = run(s)
    assert all(text(events, str(i)) == "x" * 30 for i in range(3))
    assert max(llama.widths) == 4
    assert 3 not in llama.widths
    assert not llama.kv[3], "the spare sequence is emptied after each step"


# ---------------------------------------------------------------- conversations


def test_a_forgotten_conversation_leaves_the_kv_memory_and_others_stay() -> None:
    llama = FakeLlama(replies(("one:", "x" * 20), ("two:", "y" * 20)))
    s = scheduler(llama)
    for name in ("one", "two"):
        s.submit(request(name, f"{name}:", conversation=name))
    run(s)
    n_before = s.beat().n_kv_tokens
    s.forget(Forget("one"))
    assert sorted(bytes(kv)[:4] for kv in llama.kv.values() if kv) == [b"two:"]
    assert 0 < s.beat().n_kv_tokens < n_before
    s.submit(request("again", "one:", conversation="one"))
    assert done(run(s), "again").n_cached_tokens == 0, "it is really read again"


def test_a_conversation_at_work_is_not_forgotten_under_its_feet() -> None:
    s = scheduler(FakeLlama(replies(("a", "x" * 50))))
    s.submit(request("1", "a", conversation="c"))
    events = s.admit() + s.step()
    s.forget(Forget("c"))
    assert text(events + run(s), "1") == "x" * 50


def test_a_prompt_that_leaves_less_room_than_wanted_is_refused() -> None:
    s = scheduler(FakeLlama(replies(("p" * 80, "x")), n_ctx_tokens=100))
    s.submit(request("roomy", "p" * 80, min_reply_tokens=19))
    s.submit(request("tight", "p" * 80, min_reply_tokens=20))
    s.submit(request("greedy", "p" * 74, min_reply_tokens=10**6))
    events = s.step()
    assert {e.id: e.facts for e in events if isinstance(e, Failed)} == {
        "tight": {"n_prompt_tokens": 80, "n_ctx_tokens": 100}
    }


def test_a_reply_goes_on_in_the_middle_of_a_thought_or_of_a_sentence() -> None:
    s = scheduler(FakeLlama(replies(("in thought", " goes on\n</think>\n\nso"), ("in answer", " goes on"))))
    s.submit(request("1", "in thought", thinks=True, inside_thought=True))
    s.submit(request("2", "in answer"))
    events = run(s)
    assert (text(events, "1", "thought"), text(events, "1")) == (" goes on", "so")
    assert text(events, "2") == " goes on"
