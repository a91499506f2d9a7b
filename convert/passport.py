"""The quality passport: what a quantised file lost and how anybody can find that again, for people and for programs.

Knows what to measure and how to tell it; the measures are those of convert.quality and convert.replies.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.child import Report, silent
from convert.importance import ImportanceMatrix
from convert.output import OutputFile, exists
from convert.plan import Reference, model_name
from convert.quality import Quality, Reading, measure
from convert.replies import N_REPLIES, grade, written
from convert.tasks import Score
from convert.tasks import read as read_task
from convert.texts import read_text
from edge import __version__
from edge.errors import OutputError
from edge.model.gguf import read_model_info

logger = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class Exam:
    """What every file of a passport goes through. against, text: of the reference."""

    against: Path
    text: Path
    text_origin: str
    control: bool = False  # control tokens are read in the text
    n_ctx: int = 512
    n_chunks: int = 20
    tasks: tuple[str, ...] = ()
    n_questions: int | None = None
    text_told: str = "TEXT"  # what the commands on the page call the text


@dataclass(frozen=True)
class Entry:
    """One file and its measures."""

    file: str
    type: str
    n_bytes: int
    bits_per_weight: float
    bytes_per_token: int
    sha256: str
    imatrix: str | None  # what the importance matrix was made from
    quality: Quality
    scores: tuple[Score, ...]

    @property
    def name(self) -> str:
        return self.type + (" + imatrix" if self.imatrix else "")


@dataclass(frozen=True)
class Passport:
    """Several files of one model against one reference."""

    model: str
    exam: Exam
    entries: tuple[Entry, ...]

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "passport": FORMAT,
            "model": self.model,
            "reference": self.exam.against.name,
            "text": {"origin": self.exam.text_origin, "sha256": _sha256(self.exam.text)},
            "n_ctx": self.exam.n_ctx,
            "files": [],
            "commands": self.commands(),
            "tool": {"edge-gguf": __version__, "llama-cpp-python": importlib.metadata.version("llama-cpp-python")},
        }
        for entry in self.entries:
            measures = {name: value for name, value in asdict(entry).items() if name not in ("quality", "scores")}
            quality = {"n_chunks": entry.quality.n_chunks, **asdict(entry.quality)["divergence"]}
            scores = [score.to_json() for score in entry.scores]
            found["files"].append(measures | {"quality": quality, "scores": scores})
        return found

    def to_markdown(self) -> str:
        """A page: the table, what its columns mean, and how to repeat it."""
        tasks = [score.task for score in self.entries[0].scores]
        head = ["file", "MB", "bits/weight", "MB/token", "perplexity", "KL divergence", "99 %", "same favourite"]
        rows = [[*head, *(f"right of {name}" for name in tasks)], ["---", *["---:"] * (len(head) - 1 + len(tasks))]]
        rows += [self._row(entry) for entry in self.entries]
        first = self.entries[0].quality
        assert first.divergence
        return "\n".join(
            [
                f"# {self.model}: quality passport",
                "",
                f"Against `{self.exam.against.name}`, on {self.exam.text_origin}: {first.n_chunks} chunks of "
                f"{self.exam.n_ctx} tokens, {first.n_tokens:,} of them scored. Definitions and numbers are those of "
                "llama-perplexity; ± is the standard error, ranges are 95 % confidence intervals.",
                "",
                *("| " + " | ".join(row) + " |" for row in rows),
                "",
                "- *MB/token*: what is read from memory for each generated token; speed on a small board goes by it.",
                "- *KL divergence*: how far the predictions are from the reference's, in nats: mean, and what 99 % of "
                "all tokens stay below.",
                "- *same favourite*: how often both think the same token the likeliest.",
                "",
                *self._origins(),
                "SHA-256:",
                "",
                *(f"- {entry.name}: `{entry.sha256}`" for entry in self.entries),
                "",
                "Measure it again:",
                "",
                *(f"    {command}" for command in self.commands()),
                "",
            ]
        )

    def commands(self) -> list[str]:
        """What to type to get the same numbers."""
        exam = self.exam
        options = f"--against {exam.against.name} --text {exam.text_told} --ctx {exam.n_ctx} --chunks {exam.n_chunks}"
        options += " --parse-special" if exam.control else ""
        tasks = "".join(f" --tasks {name}" for name in exam.tasks)
        tasks += f" --first {exam.n_questions}" if exam.tasks and exam.n_questions else ""
        return [f"edge quality {entry.file} {options}{tasks}" for entry in self.entries]

    def _row(self, entry: Entry) -> list[str]:
        lost = entry.quality.divergence
        assert lost
        cells = [
            entry.name,
            f"{entry.n_bytes / 1e6:,.1f}",
            f"{entry.bits_per_weight:.2f}",
            f"{entry.bytes_per_token / 1e6:,.1f}",
            f"{lost.perplexity.value:.4g} ± {lost.perplexity.error:.2g}",
            f"{lost.kld.value:.3g} ± {lost.kld.error:.1g}",
            f"{lost.kld_99:.3g}",
            f"{100 * lost.same_top.value:.2f} % ± {100 * lost.same_top.error:.2f}",
        ]
        for score in entry.scores:
            low, high = score.interval
            cells.append(f"{100 * score.share:.1f} % ({100 * low:.1f} … {100 * high:.1f})")
        return cells

    def _origins(self) -> list[str]:
        origins = sorted({entry.imatrix for entry in self.entries if entry.imatrix})
        return [f"Importance matrix from: {', '.join(origins)}.", ""] if origins else []


def examine(
    model: Path,
    exam: Exam,
    *,
    imatrix: Path | None = None,
    n_threads: int | None = None,
    report: Report = silent,
) -> Entry:
    """One file's line in a passport. imatrix: with which it was made. Raises EdgeError."""
    info = read_model_info(model)
    reading = Reading(exam.text, exam.n_ctx, exam.n_chunks, n_threads, exam.control)
    quality = measure(model, exam.against, reading, report)
    scores = tuple(
        grade(model, task, n_questions=exam.n_questions, n_threads=n_threads, report=report)[0] for task in exam.tasks
    )
    origin = ", ".join(ImportanceMatrix.read(imatrix).datasets) or imatrix.name if imatrix else None
    return Entry(
        file=model.name,
        type=info.file_type,
        n_bytes=info.n_bytes,
        bits_per_weight=round(info.bits_per_weight, 4),
        bytes_per_token=info.bytes_read_per_token,
        sha256=_sha256(model),
        imatrix=origin,
        quality=quality,
        scores=scores,
    )


def models(source: Path | Checkpoint, types: Sequence[str], out: Path) -> list[Path]:
    """The files that a conversion is going to make."""
    name = model_name(source if isinstance(source, Path) else source.path)
    return [out / f"{name}-{kind.upper()}.gguf" for kind in types]


def check(models: Sequence[Path], text: Path | None, tasks: Sequence[str], *, overwrite: bool) -> None:
    """Raise before anything is converted what would stop `issue`."""
    for model in models:
        for path in paths(model):
            if path.exists() and not overwrite:
                raise exists(path)
    if text:
        read_text(text)
    for task in tasks:
        read_task(task)


@contextmanager
def reference_beside(source: Path | Checkpoint, out: Path, *, writes: bool) -> Iterator[Reference]:
    """A hidden folder for what the files made in `out` are measured against. It goes away.

    Of a source far away it stays where the conversion broke off, and the same command goes on with what is in it.
    """
    name = model_name(source if isinstance(source, Path) else source.path)
    folder, is_new = out / f".{name}.reference", not out.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise OutputError(folder, f"cannot be made ({error.strerror})", "choose another folder with --out") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        remedy = "wait for it, or choose another folder with --out"
        raise OutputError(folder, "is in use by another process", remedy) from error
    except OSError:
        logger.info("%s: this file system knows no locks", folder)
    try:
        for path in [] if _is_unfinished(folder) else folder.iterdir():
            path.unlink()  # left by a process that was killed while it measured
        yield Reference(folder, writes)
    finally:
        if not _is_unfinished(folder):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        if is_new:
            with suppress(OSError):
                out.rmdir()  # if nothing has come to lie in it


def _is_unfinished(folder: Path) -> bool:
    return any(folder.glob(".*.journal"))


def issue(
    against: Path,
    models: Sequence[Path],
    *,
    text: Path | None = None,
    tasks: tuple[str, ...] = (),
    imatrix: Path | None = None,
    overwrite: bool = False,
    report: Report = silent,
) -> list[Path]:
    """Measure files of one checkpoint against a larger one of it; write MODEL.passport.md and .json beside each.

    text: what they read; None: what the larger one itself writes.
    """
    check(models, text, tasks, overwrite=overwrite)
    origin = text.name if text else f"{N_REPLIES} replies of the reference"
    exam = Exam(against, text or written(against, N_REPLIES, report=report), origin, text is None, tasks=tasks)
    made = []
    for model in models:
        entry = examine(model, exam, imatrix=imatrix, report=report)
        made += write(Passport(entry.file.removesuffix(".gguf"), exam, (entry,)), model, overwrite=overwrite)
    return made


def paths(model: Path) -> tuple[Path, Path]:
    """Where a model's passport lies, for people and for programs."""
    stem = model.name.removesuffix(".gguf")
    return model.with_name(f"{stem}.passport.md"), model.with_name(f"{stem}.passport.json")


def write(passport: Passport, model: Path, *, overwrite: bool = False) -> list[Path]:
    """MODEL.passport.md and MODEL.passport.json beside a model, whole or not at all. Raises OutputError."""
    check([model], None, (), overwrite=overwrite)
    markdown, document = paths(model)
    texts = {
        markdown: passport.to_markdown(),
        document: json.dumps(passport.to_json(), indent=1, ensure_ascii=False) + "\n",
    }
    for path, text in texts.items():
        content = text.encode()
        file = OutputFile(path, len(content))
        try:
            file.write(memoryview(content), 0)
            file.finish()
            file.publish(overwrite=overwrite)
            file.keep()
        finally:
            file.discard()
    return list(texts)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 22):
            digest.update(data)
    return digest.hexdigest()
