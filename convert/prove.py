"""`edge quality` and `edge imatrix`: what a quantised model lost, and what its weights are used for.

Nothing but click is imported until a command runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from convert.child import Report
    from convert.quality import Quality
    from convert.tasks import Score

FILE = click.Path(path_type=Path)
THREADS = click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="[one per fast core]")
CTX = click.option(
    "--ctx", type=click.IntRange(32, 1 << 16), default=512, show_default=True, metavar="N",
    help="Tokens in a chunk of text; llama.cpp's tools have the same default.",
)  # fmt: skip
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
CONTROL = click.option(
    "--parse-special", "control", is_flag=True,
    help="Read control tokens such as <|im_end|> in the text; replies of a model are always read so.",
)  # fmt: skip
QUESTIONS = click.option(
    "--questions", metavar="TASK", help="What it replies to: `sums`, or a task file.  [a mixture of 24]"
)
QUALITY_EXAMPLES = """\b
Examples:
  edge quality model-Q4_K_M.gguf --against model-F16.gguf --text book.txt
  edge quality model-Q4_K_M.gguf --against model-F16.gguf --replies 30
  edge quality model-Q4_0.gguf --tasks sums
  edge quality model-Q4_0.gguf --tasks gsm8k.jsonl --first 100 --json
"""
IMATRIX_EXAMPLES = """\b
Examples:
  edge imatrix model-F16.gguf --text calibration.txt
  edge imatrix model-F16.gguf --self 64 -o model.imatrix.gguf
  edge convert ./model -t Q4_K_M --imatrix model.imatrix.gguf
"""


@click.command(epilog=QUALITY_EXAMPLES)
@click.argument("model")
@click.option("--against", metavar="REF", help="The model it was made from, in F16 or BF16.")
@click.option("--text", type=FILE, metavar="FILE", help="What both read.")
@click.option(
    "--replies", type=click.IntRange(2, 10_000), metavar="N",
    help="Let REF write N replies, and measure on those.  [24, where no --text and no --tasks is named]",
)  # fmt: skip
@QUESTIONS
@CONTROL
@click.option(
    "--chunks", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Read at most N chunks."
)
@CTX
@click.option(
    "--tasks", multiple=True, metavar="TASK",
    help="Count right answers: `sums`, or a file of JSON lines with question and answer. May be given again.",
)  # fmt: skip
@click.option("--first", "n_questions", type=click.IntRange(1), metavar="N", help="Only the first N of each task.")
@click.option("--checker", type=FILE, metavar="FILE.py", help="Your own check(answer, expected) for the tasks.")
@THREADS
@AS_JSON
def quality(
    model: str,
    against: str | None,
    text: Path | None,
    replies: int | None,
    questions: str | None,
    control: bool,
    chunks: int,
    ctx: int,
    tasks: tuple[str, ...],
    n_questions: int | None,
    checker: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure what MODEL lost: perplexity, divergence from REF, right answers.

    The measures are those of llama-perplexity, and equal to its own. The two models are read one after the other;
    what is stopped goes on where it was.
    """
    from convert import quality as measures
    from convert.bar import progress
    from convert.replies import N_REPLIES, grade, written

    if text and (replies or questions):
        raise click.UsageError("--text, or --replies with its --questions, not both")
    if (n_questions or checker) and not tasks:
        raise click.UsageError("--first and --checker are for --tasks; name one, such as --tasks sums")
    found: Quality | None = None
    scores = []
    with progress() as report:
        file, base = _found(model, report), _found(against, report) if against else None
        if text or replies or not tasks:
            control = control or not text
            text = text or written(base or file, replies or N_REPLIES, task=questions, n_threads=threads, report=report)
            found = measures.measure(file, base, measures.Reading(text, ctx, chunks, threads, control), report)
        for task in tasks:
            score, _ = grade(file, task, checker=checker, n_questions=n_questions, n_threads=threads, report=report)
            scores.append(score)
    if as_json:
        document = (found.to_json() if found else {"model": str(model)}) | {"tasks": [one.to_json() for one in scores]}
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
        return
    rows = [*(_facts(found) if found else []), *map(_fact, scores)]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def _found(model: str, report: Report) -> Path:
    """The file that a MODEL argument names, fetched if it is not here."""
    from edge.model.names import is_name

    if Path(model).exists() or not is_name(model):
        return Path(model)
    from edge.model.pull import resolve

    return resolve(model, progress=lambda at: report(f"{at.phase} {at.file}", at.n_bytes_done, at.n_bytes_total))


def _facts(found: Quality) -> list[tuple[str, str]]:
    rows = [("text", f"{found.text.name}, {found.n_chunks} chunks, {found.n_tokens:,} tokens scored")]
    rows.append(("perplexity", str(found.perplexity)))
    if lost := found.divergence:
        rows += [
            ("perplexity of the reference", str(lost.perplexity_base)),
            ("ln of their ratio", str(lost.ln_perplexity_ratio)),
            ("KL divergence, mean", str(lost.kld)),
            ("KL divergence, median", f"{lost.kld_median:.6g}"),
            ("KL divergence, 99 %", f"{lost.kld_99:.6g}"),
            ("KL divergence, most", f"{lost.kld_max:.6g}"),
            ("same favourite token", f"{100 * lost.same_top.value:.3f} % ± {100 * lost.same_top.error:.2g}"),
            (
                "RMS of probability differences",
                f"{100 * lost.p_diff_rms.value:.3f} % ± {100 * lost.p_diff_rms.error:.2g}",
            ),
        ]
    return rows


def _fact(score: Score) -> tuple[str, str]:
    low, high = score.interval
    told = f"{100 * score.share:.1f} % right of {score.n} (95 %: {100 * low:.1f} to {100 * high:.1f})"
    return score.task, f"{told}; {score.n_wrong} wrong, {score.n_cut} not finished"


@click.command(epilog=IMATRIX_EXAMPLES)
@click.argument("model")
@click.option("--text", type=FILE, metavar="FILE", help="What the model reads.")
@click.option(
    "--self", "n_replies", type=click.IntRange(2, 10_000), metavar="N", help="Or N replies that it writes itself."
)
@QUESTIONS
@CONTROL
@click.option("--chunks", type=click.IntRange(1), metavar="N", help="Read at most N chunks.  [all]")
@CTX
@click.option(
    "-o", "--out", type=FILE, metavar="FILE", help="[MODEL.imatrix.gguf beside MODEL, or here if that was fetched]"
)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@THREADS
@AS_JSON
def imatrix(
    model: str,
    text: Path | None,
    n_replies: int | None,
    questions: str | None,
    control: bool,
    chunks: int | None,
    ctx: int,
    out: Path | None,
    force: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find out which weights of MODEL matter, for `edge convert --imatrix`.

    MODEL should be the F16 or BF16 one. The file is that of llama-imatrix, and so are its numbers.
    """
    from convert.bar import progress
    from convert.imatrix import collect
    from convert.replies import written
    from edge.model.shards import stem

    if (text is None) == (n_replies is None):
        raise click.UsageError("name a --text FILE, or let it write one with --self N")
    if text and questions:
        raise click.UsageError("--questions is for --self; leave it away")
    with progress() as report:
        file = _found(model, report)
        if out is None and file != Path(model):  # fetched: the cache is no place for it
            out = Path(f"{stem(file.name)}.imatrix.gguf")
        dataset = f"{n_replies} replies of {file.name}" if n_replies else None
        text = text or written(file, n_replies or 0, task=questions, n_threads=threads, report=report)
        made = collect(
            file, text, out, dataset=dataset, n_ctx=ctx, n_chunks=chunks,
            control=control or bool(n_replies), overwrite=force, n_threads=threads, report=report,
        )  # fmt: skip
    if as_json:
        document: dict[str, Any] = {**vars(made), "path": str(made.path), "model": str(made.model)}
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        click.echo(f"{made.path}: {made.n_tensors} tensors from {made.n_chunks} chunks of {made.dataset}")
