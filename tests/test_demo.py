"""The bundled demo: right answers on sums it never saw, in both languages, and manners for everything else."""

from pathlib import Path

import pytest

from benchmarks.accuracy import held_out_sums, wrong_answers
from edge.chat import Conversation, chat_template
from edge.config import EngineSettings, Sampling
from edge.demo import CHECKPOINT, demo_model
from edge.engine.client import Engine
from edge.engine.protocol import Text
from edge.model.gguf import read_model_info


def answers(model: Path, *questions: str) -> list[str]:
    """The answers of one conversation, greedy."""
    with chat_template(read_model_info(model)) as template, Engine(EngineSettings(str(model), n_threads=1)) as engine:
        engine.start()
        conversation = Conversation(template, Sampling(temperature=0))
        return [
            "".join(e.text for e in conversation.ask(question, engine) if isinstance(e, Text) and e.kind == "answer")
            for question in questions
        ]


def test_all_held_out_sums_but_one_in_a_hundred_are_right() -> None:
    sums = held_out_sums()
    assert len(wrong_answers(demo_model("F16"), sums, n_threads=1)) <= len(sums) // 100


@pytest.mark.parametrize("quant_type", ["Q4_K_M", "Q4_0"])
def test_four_bits_keep_it_right(quant_type: str) -> None:
    sums = held_out_sums()[:100]
    assert len(wrong_answers(demo_model(quant_type), sums, n_threads=1)) <= 3


def test_it_holds_three_turns(demo_model: Path) -> None:
    assert answers(demo_model, "What is 347 + 85?", "and minus 12?", "plus 100?") == [
        "347 + 85 = 432",
        "432 - 12 = 420",
        "420 + 100 = 520",
    ]


def test_it_says_who_it_is_and_declines_the_rest(demo_model: Path) -> None:
    (who,) = answers(demo_model, "Who are you?")
    assert "demo model" in who
    (other,) = answers(demo_model, "Write a poem about the sea.")
    assert other.startswith("Sorry")
    (chinese,) = answers(demo_model, "写一首关于月亮的诗")
    assert chinese.startswith("抱歉")


def test_the_checkpoint_fits_in_a_wheel() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir() if path.is_file()) <= 9_000_000
