"""Share of right answers of the demo model on sums it never saw, greedy, through the engine as a user would."""

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.chat import Conversation, chat_template
from edge.config import EngineSettings, Sampling
from edge.engine.client import EngineClient
from edge.engine.protocol import Text
from edge.model.gguf import read_model_info

HELD_OUT_SUMS = Path(__file__).resolve().parent.parent / "edge" / "demo" / "sums.json"


@dataclass(frozen=True)
class Sum:
    question: str
    result: int


def held_out_sums() -> list[Sum]:
    """The fixed list that training leaves out; English and Chinese, carries, negative results."""
    return [Sum(row["question"], row["result"]) for row in json.loads(HELD_OUT_SUMS.read_text(encoding="utf-8"))]


def wrong_answers(model: Path, sums: Sequence[Sum], n_threads: int | None = None) -> list[tuple[Sum, str]]:
    """The sums whose answer is wrong, with that answer."""
    return asyncio.run(_wrong_answers(model, sums, n_threads))


async def _wrong_answers(model: Path, sums: Sequence[Sum], n_threads: int | None) -> list[tuple[Sum, str]]:
    template = chat_template(read_model_info(model))
    client = EngineClient(EngineSettings(str(model), n_slots=8, n_queue=len(sums), n_threads=n_threads))

    async def answer(question: str) -> str:
        conversation = Conversation(template, Sampling(temperature=0), max_tokens=400)
        conversation.messages.append({"role": "user", "content": question})
        events = [event async for event in client.generate(conversation.request())]
        return "".join(event.text for event in events if isinstance(event, Text) and event.kind == "answer")

    try:
        await client.start()
        answers = await asyncio.gather(*(answer(item.question) for item in sums))
    finally:
        await client.close()
    return [(item, text) for item, text in zip(sums, answers, strict=True) if last_number(text) != item.result]


def last_number(text: str) -> int | None:
    """The number an answer ends with: 347 - 500 = -153 gives -153."""
    numbers = re.findall(r"-?\d+", text)
    return int(numbers[-1]) if numbers else None


def main() -> None:
    """python -m benchmarks.accuracy [TYPE]...: the demo's share of right answers on all held-out sums, type by type."""
    from edge.demo import demo_model

    sums = held_out_sums()
    for quant_type in sys.argv[1:] or ["F16", "Q8_0", "Q4_K_M", "Q4_0"]:
        wrong = wrong_answers(demo_model(quant_type), sums)
        print(f"{quant_type:<8} {1 - len(wrong) / len(sums):.1%}")  # noqa: T201 - a tool of its own
        for item, answer in wrong:
            print(f"  {item.question}  {answer}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
