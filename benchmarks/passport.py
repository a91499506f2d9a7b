"""The demo's quality passport: seven files of one checkpoint on one page, with a plot.

    python -m benchmarks.passport [FOLDER]        # docs/demo-passport.md, .json and .svg

Reads replies of the demo to held-out sums, and counts its right answers on all of these. The importance matrix is made
from its replies to other sums. Both texts are kept in tests/data; --new-texts lets the demo write them again, and no
two machines write quite the same. Needs matplotlib (the extra `report`).
"""

import json
import random
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.accuracy import held_out_sums
from convert.bar import progress
from convert.child import Report
from convert.imatrix import collect
from convert.passport import Entry, Exam, Passport, examine
from convert.pipeline import convert
from convert.replies import written
from edge.demo import CHECKPOINT

TYPES = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0")
WEIGHTED = ("Q4_K_M", "Q4_0")
N_REPLIES = 96
N_CTX_TOKENS, N_CHUNKS = 128, 80  # a chunk is about one of its conversations; longer ones it has not seen
N_CALIBRATION = 200
NAME = "demo-passport"
DATA = Path("tests/data")  # from the project's folder, as in the commands on the page
TEXT, CALIBRATION = DATA / "demo_replies.txt", DATA / "demo_calibration.txt"
PREFACE = f"""
The demo is a model of 3.7 million parameters that does sums; a small model suffers most from few bits, and a sum is
right or wrong. Made by `python -m benchmarks.passport` in the project's folder. The files, one by one:

    edge convert edge/demo -t BF16 {" ".join(f"-t {kind}" for kind in TYPES)}
    edge imatrix demo-BF16.gguf --text {CALIBRATION} --parse-special -o demo.imatrix.gguf
    edge convert edge/demo {" ".join(f"-t {kind}" for kind in WEIGHTED)} --imatrix demo.imatrix.gguf -o weighted
"""


def write_texts(report: Report) -> None:
    """Let the demo reply to held-out sums and to others."""
    with TemporaryDirectory() as name:
        reference = convert(CHECKPOINT, ["BF16"], Path(name))[0].path
        task = Path(name) / "other-sums.jsonl"
        task.write_text("\n".join(json.dumps({"question": question, "answer": "-"}) for question in other_sums()))
        shutil.copyfile(written(reference, N_REPLIES, task="sums", report=report), TEXT)
        shutil.copyfile(written(reference, N_CALIBRATION, task=str(task), report=report), CALIBRATION)


def entries(folder: Path, report: Report) -> tuple[Exam, list[Entry]]:
    """Convert, calibrate and examine; F16 first."""
    reference = convert(CHECKPOINT, ["BF16"], folder)[0].path
    origin = f"{N_REPLIES} replies of the reference to held-out sums ({TEXT})"
    exam = Exam(reference, TEXT, origin, True, N_CTX_TOKENS, N_CHUNKS, ("sums",), text_told=str(TEXT))
    found = [examine(made.path, exam, report=report) for made in convert(CHECKPOINT, TYPES, folder)]
    matrix = collect(reference, CALIBRATION, folder / "demo.imatrix.gguf", control=True, report=report).path
    (folder / "weighted").mkdir()
    for made in convert(CHECKPOINT, WEIGHTED, folder / "weighted", imatrix=matrix):
        found.append(examine(made.path, exam, imatrix=matrix, report=report))
    return exam, sorted(found, key=lambda entry: (-entry.n_bytes, entry.name))


def other_sums() -> list[str]:
    """Questions that are not among the held-out ones."""
    draw, held_out = random.Random(5), {item.question for item in held_out_sums()}
    forms = ("What is {} + {}?", "What is {} - {}?", "{} 加 {} 等于多少？", "{} 减 {} 等于多少？")
    found = [draw.choice(forms).format(draw.randrange(1000), draw.randrange(1000)) for _ in range(2 * N_CALIBRATION)]
    return [question for question in found if question not in held_out][:N_CALIBRATION]


def plot(passport: Passport, path: Path) -> None:
    """Divergence against bytes per token: down is better, left is faster."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for entry in passport.entries:
        lost = entry.quality.divergence
        assert lost
        at = entry.bytes_per_token / 1e6, max(lost.kld.value, 1e-7)
        marker, color = ("D", "#c44e52") if entry.imatrix else ("o", "#4c72b0")
        axes.errorbar(*at, yerr=lost.kld.error, fmt=marker, color=color, capsize=3)
        left, below = entry.type == TYPES[-1], entry.imatrix is not None  # the two smallest lie close together
        offset, side = (-9 if left else 9, -9 if below else 5), "right" if left else "left"
        axes.annotate(entry.name, at, xytext=offset, textcoords="offset points", ha=side, fontsize=9)
    axes.set_yscale("log")
    axes.set_xlabel("MB read per token")
    axes.set_ylabel("mean KL divergence from the reference, nats")
    axes.margins(x=0.3, y=0.15)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, metadata={"Date": None})


def page(passport: Passport) -> str:
    title, _, rest = passport.to_markdown().partition("\n")
    picture = f"\n![divergence against bytes per token]({NAME}.svg)\n"
    return f"{title}\n{PREFACE}{picture}{rest}"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("docs"))
@click.option("--new-texts", is_flag=True, help="Let the demo write the texts anew.")
def main(folder: Path, new_texts: bool) -> None:
    """Write the demo's passport into FOLDER."""
    with TemporaryDirectory() as scratch, progress() as report:
        if new_texts:
            write_texts(report)
        exam, found = entries(Path(scratch), report)
        passport = Passport("demo", exam, tuple(found))
        document: dict[str, Any] = passport.to_json()
        (folder / f"{NAME}.md").write_text(page(passport), encoding="utf-8")
        (folder / f"{NAME}.json").write_text(
            json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        plot(passport, folder / f"{NAME}.svg")
    click.echo(page(passport))


if __name__ == "__main__":
    main()
