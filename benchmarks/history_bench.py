"""How long the history takes to list and to search, with many messages in it.

    python -m benchmarks.history_bench                       2,000 and 50,000 messages, a table
    python -m benchmarks.history_bench --messages 2000 --check    exit 1 when a bar is missed

Texts are drawn from English and Chinese words with a fixed seed: a question of 20 words, an answer of 150, a thought of
400, 20 messages a conversation. Times are medians of 30 calls in one process; the clock includes everything that
History.find does, from the call to a list of conversations with snippets.
"""

import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import click

from edge.history import History
from edge.messages import Conversation, Message, Settings

WORDS = (
    *("sum", "carry", "tens", "ones", "hundred", "model", "board", "energy", "memory", "thread", "token", "answer"),
    *("question", "because", "therefore", "result", "the", "of", "and", "to", "in", "is", "it", "for", "was"),
    *("equation", "方程", "解方程", "数学", "函数", "等于", "结果", "因此", "我们", "可以", "模型", "内存", "问题"),
)
N_PER_CONVERSATION = 20
N_CALLS = 30
LIST_BAR_MS, SEARCH_BAR_MS, BAR_MESSAGES = 20.0, 50.0, 2000
QUERIES = {
    "list": "",
    "search, one rare word": "zebra",
    "search, in every message": "the",
    "search, 解方程": "解方程",
    "search, 方程 (two letters)": "方程",
    "search, two words": "therefore 数学",
    "search, nothing found": "nowhere at all",
}


def filled(path: Path, n_messages: int) -> History:
    """A history with n_messages in it."""
    draw = random.Random(7)

    def text(n_words: int) -> str:
        return " ".join(draw.choices(WORDS, k=n_words))

    history = History(path)
    for i in range(0, n_messages, N_PER_CONVERSATION):
        parent = None
        messages = []
        for j in range(N_PER_CONVERSATION):
            name, is_answer = f"{i + j:032x}", j % 2 == 1
            rare = " zebra" if i + j == n_messages // 3 else ""
            messages.append(
                Message(name, parent, "assistant" if is_answer else "user", text(150 if is_answer else 20) + rare,
                        float(i + j), text(400) if is_answer else None, "stop" if is_answer else None)
            )  # fmt: skip
            parent = name
        talk = Conversation(f"{i:032x}", text(6), None, False, float(i), float(i + j), parent, Settings(), 0, 1)
        history.insert(talk, messages)
    return history


def open_and_close(path: Path) -> None:
    History(path).close()


def time_ms(call: Callable[[], object]) -> float:
    """The median time of N_CALLS calls."""
    samples = []
    for _ in range(N_CALLS):
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e3)
    return median(samples)


@click.command()
@click.option("--messages", "counts", type=int, multiple=True, default=(BAR_MESSAGES, 50_000), show_default=True)
@click.option("--check", is_flag=True, help="Exit 1 when 2,000 messages take longer than the bars allow.")
def main(counts: tuple[int, ...], *, check: bool) -> None:
    """Print the median time of each query in ms."""
    slow = []
    for n_messages in counts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "history.db"
            filled(path, n_messages).close()
            click.echo(f"{n_messages:,} messages, {path.stat().st_size / 1e6:.1f} MB")
            click.echo(f"  {'open and check':<28}{time_ms(partial(open_and_close, path)):8.1f} ms")
            with History(path) as history:
                for name, query in QUERIES.items():
                    taken_ms = time_ms(partial(history.find, query))
                    bar_ms = LIST_BAR_MS if name == "list" else SEARCH_BAR_MS
                    slow += [name] if n_messages <= BAR_MESSAGES and taken_ms > bar_ms else []
                    click.echo(f"  {name:<28}{taken_ms:8.1f} ms")
    if check and slow:
        raise click.ClickException(f"over the bar: {', '.join(slow)}")


if __name__ == "__main__":
    main()
