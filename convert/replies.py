"""A model's replies to many questions, several at a time: graded, or joined to a text to calibrate and measure with."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

from convert import tasks
from convert.child import Report, silent
from convert.quality import cached
from convert.tasks import Question, Score
from edge.chat import Conversation, chat_template
from edge.config import EngineSettings, Sampling
from edge.engine.client import EngineClient
from edge.engine.protocol import Done, Text
from edge.engine.reasoning import CLOSING, OPEN, opens_thought
from edge.model.gguf import read_model_info

N_SLOTS = 8
N_REPLIES = 24  # in a text where nobody says how many
SEED = 20251  # of the first reply of a text


@dataclass(frozen=True)
class Budget:
    """How long a reply may be, and how long its thought."""

    max_tokens: int = 2048
    max_thought_tokens: int = 1536


@dataclass(frozen=True)
class Reply:
    """prompt: the question in the model's template. cut: the thought or the answer came to the end of its budget."""

    prompt: str
    thought: str
    answer: str
    cut: bool


def replies(
    model: Path,
    questions: Sequence[str],
    sampling: Sampling,
    budget: Budget | None = None,
    *,
    n_threads: int | None = None,
    report: Report = silent,
) -> list[Reply]:
    """One reply for each question, in order; the i-th with the seed of `sampling` + i. Raises EdgeError."""
    return asyncio.run(_replies(model, questions, sampling, budget or Budget(), n_threads, report))


async def _replies(
    model: Path,
    questions: Sequence[str],
    sampling: Sampling,
    budget: Budget,
    n_threads: int | None,
    report: Report,
) -> list[Reply]:
    info = read_model_info(model)
    template = chat_template(info)
    n_slots = max(1, min(N_SLOTS, len(questions)))
    n_ctx = n_slots * min(budget.max_tokens + 512, info.n_ctx_train)
    client = EngineClient(
        EngineSettings(
            str(model), n_ctx_tokens=n_ctx, n_slots=n_slots, n_queue=max(64, len(questions)), n_threads=n_threads
        )
    )
    n_done = 0

    async def reply(i: int, question: str) -> Reply:
        nonlocal n_done
        seed = None if sampling.seed is None else (sampling.seed + i) % 2**32
        conversation = Conversation(template, replace(sampling, seed=seed), max_tokens=budget.max_tokens)
        conversation.messages.append({"role": "user", "content": question})
        said = {"thought": "", "answer": ""}
        cut = False
        request = replace(conversation.request(), max_thought_tokens=budget.max_thought_tokens)
        async for event in client.generate(request):
            if isinstance(event, Text):
                said[event.kind] += event.text
            elif isinstance(event, Done):
                cut = event.finish_reason == "length" or event.n_thought_tokens >= budget.max_thought_tokens
        n_done += 1
        report(f"ask {model.name}", n_done, len(questions))
        prompt = "".join(text for text, _ in request.segments)
        return Reply(prompt, said["thought"], said["answer"], cut)

    try:
        await client.start()
        return list(await asyncio.gather(*(reply(i, question) for i, question in enumerate(questions))))
    finally:
        await client.close()


def _whole(reply: Reply) -> str:
    if not reply.thought:
        return reply.prompt + reply.answer
    opening = "" if opens_thought(reply.prompt) else f"{OPEN}\n"
    return f"{reply.prompt}{opening}{reply.thought}{CLOSING}{reply.answer}"


def grade(
    model: Path,
    task: str,
    *,
    checker: Path | None = None,
    n_questions: int | None = None,
    n_threads: int | None = None,
    report: Report = silent,
) -> tuple[Score, list[tuple[Question, Reply]]]:
    """The score of a model on a task, greedy, and what it got wrong or could not finish."""
    questions = tasks.read(task)[:n_questions]
    check = tasks.checker(checker)
    texts = [question.text for question in questions]
    found = replies(model, texts, Sampling(temperature=0), n_threads=n_threads, report=report)
    missed = [pair for pair in zip(questions, found, strict=True) if not check(pair[1].answer, pair[0].expected)]
    n_cut = sum(reply.cut for _, reply in missed)
    return Score(tasks.name(task), len(found) - len(missed), len(missed) - n_cut, n_cut), missed


def written(
    model: Path, n: int, *, task: str | None = None, n_threads: int | None = None, report: Report = silent
) -> Path:
    """A text of n questions, thoughts and answers as the model met them, control tokens spelled out; kept in the cache.

    task: where the questions come from; None: a mixture of ours.
    """
    asked = [question.text for question in tasks.read(task)] if task else tasks.MIXTURE
    asked = list(islice(cycle(asked), n))
    digest = hashlib.sha256("\0".join(asked).encode("utf-8", "replace")).hexdigest()[:16]
    path = cached(model, f"{digest}-replies.txt", report)
    if not path.exists():
        info = read_model_info(model)
        sampling = Sampling(seed=SEED).updated(info.sampling)
        found = replies(model, asked, sampling, n_threads=n_threads, report=report)
        text = "".join(_whole(reply) + (info.eos_text or "\n") for reply in found)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    return path
