"""What the README quotes is what the program prints, and what it names exists."""

import re
from pathlib import Path

from edge.cli import cli
from tests.test_cli import edge

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_quoted_answer_is_the_one_given() -> None:
    done = edge("run", "What is 347 + 85?", "--temp", "0")
    thought = done.stderr.rpartition("So 432.")[0] + "So 432."
    quoted = f'$ .venv/bin/edge run "What is 347 + 85?"\n{thought.strip()}\n\n{done.stdout}'
    assert quoted in README


def test_every_command_in_the_readme_exists() -> None:
    context = cli.make_context("edge", ["inspect"], resilient_parsing=True)
    named = set(re.findall(r"\.venv/bin/edge (\w[\w-]*)", README))
    assert named <= set(cli.list_commands(context))
    assert named == set(cli.list_commands(context)), "the README shows every command"


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert len(links) >= 3
    assert all((ROOT / link).exists() for link in links)
