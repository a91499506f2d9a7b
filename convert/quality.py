"""What a quantised model lost: the measures of llama-perplexity against the model it was made from.

Reads a text with one model, then with the other, each in a process of its own: the two are never loaded at once. The
reference's predictions are kept in the cache folder, so that the next model is compared with them at the price of one.
"""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from convert import child, divergence
from convert.child import Json, Report, silent
from convert.divergence import SCORES, Divergence, Estimate, Scores
from convert.records import Records
from edge.config import cache_dir
from edge.errors import ModelFileError
from edge.model import shards
from edge.model.gguf import read_model_info

FORMAT = 2  # of what is kept
N_CTX_TOKENS = 512
N_CHUNKS = 20  # 5,100 scored tokens: the mean divergence of a Q4_K_M to about 3 %
N_KEPT_BYTES_MAX = 8 << 30  # references in the cache; the oldest go


@dataclass(frozen=True)
class Reading:
    """Which text, and how much of it."""

    text: Path
    n_ctx: int = N_CTX_TOKENS
    n_chunks: int | None = N_CHUNKS
    n_threads: int | None = None
    control: bool = False  # text such as <|im_end|> is its control token; llama.cpp's tools: --parse-special


@dataclass(frozen=True)
class Quality:
    """One model's measures. divergence: None without a reference."""

    model: Path
    against: Path | None
    text: Path
    n_chunks: int
    n_tokens: int
    perplexity: Estimate
    divergence: Divergence | None

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        return found | {name: str(found[name]) if found[name] else None for name in ("model", "against", "text")}


def measure(model: Path, against: Path | None, reading: Reading, report: Report = silent) -> Quality:
    """Measure `model` on a text, against a reference if there is one. Raises EdgeError. What was stopped goes on."""
    n_vocab = _check(model, against)
    text, name, *base_name = _hash([reading.text, model, *([against] if against else [])], report)
    key = f"{text}-{reading.n_ctx}" + ("-control" if reading.control else "")
    if against is None:
        n_chunks, scores = _evaluate("surprise", model, n_vocab, reading, _place(f"{key}-{name}"), report)
        surprise = np.concatenate([np.frombuffer(record) for record in scores])
        return Quality(model, None, reading.text, n_chunks, len(surprise), divergence.perplexity(surprise), None)
    base = _place(f"{key}-{base_name[0]}", "logits")
    _forget_the_oldest(base)
    _evaluate("reference", against, n_vocab, reading, base, report)
    # the same text and the same reference under another name is the same file
    path = _place(f"{base.stem}-{name}", "scores")
    n_chunks, scores = _evaluate("compare", model, n_vocab, reading, path, report, reference=str(base))
    values = np.concatenate([np.frombuffer(record).reshape(-1, len(SCORES)) for record in scores])
    found = Divergence.of(Scores(values))
    return Quality(model, against, reading.text, n_chunks, found.n_tokens, found.perplexity, found)


def cached(model: Path, name: str, report: Report = silent) -> Path:
    """Where something that depends on a model is kept."""
    return cache_dir() / "quality" / f"{_hash([model], report)[0]}-{name}"


def _evaluate(
    kind: str, model: Path, n_vocab: int, reading: Reading, path: Path, report: Report, **more: str
) -> tuple[int, list[bytes]]:
    """How many chunks there are, and the records of a kind for each; a reference's stay where they are."""
    job: Json = {
        "kind": kind,
        "model": str(model.absolute()),
        "n_vocab": n_vocab,
        "text": str(reading.text.absolute()),
        "n_ctx": reading.n_ctx,
        "n_chunks": reading.n_chunks,
        "n_threads": reading.n_threads,
        "control": reading.control,
        "records": str(path),
        **more,
    }
    done = child.run("convert.evaluate", job, lambda phase, n, of: report(f"{phase} {model.name}", n, of))
    if kind == "reference":
        return done["n_chunks"], []
    with Records(path) as records:
        return done["n_chunks"], [records[i] for i in range(done["n_chunks"])]


def _check(model: Path, against: Path | None) -> int:
    """Refuse in this process what a child might die of; returns how many tokens both know."""
    info = read_model_info(model)
    if against is None:
        return info.n_vocab
    reference = read_model_info(against)
    if (info.n_vocab, info.architecture) != (reference.n_vocab, reference.architecture):
        problem = f"is a {info.architecture} of {info.n_vocab:,} tokens"
        remedy = f"compare it with one like it: the reference is a {reference.architecture} of {reference.n_vocab:,}"
        raise ModelFileError(model, problem, remedy)
    return info.n_vocab


def _place(key: str, kind: str = "scores") -> Path:
    version = importlib.metadata.version("llama-cpp-python")
    return cache_dir() / "quality" / f"{key}-{version}-{FORMAT}.{kind}"


def _forget_the_oldest(keep: Path) -> None:
    """Make the kept references smaller than N_KEPT_BYTES_MAX."""
    found = sorted(keep.parent.glob("*.logits"), key=lambda path: path.stat().st_mtime)
    n_bytes = sum(path.stat().st_size for path in found)
    for path in found:
        if n_bytes <= N_KEPT_BYTES_MAX:
            return
        if path != keep:
            n_bytes -= path.stat().st_size
            path.unlink()


_digests: dict[tuple[str, int, int], str] = {}


def _hash(paths: Sequence[Path], report: Report) -> list[str]:
    """What files are called in the cache: the first digits of their SHA-256, made of several at the same time."""
    is_stopped = Event()
    with ThreadPoolExecutor(len(paths)) as pool:
        try:
            return list(pool.map(lambda path: _digest(path, report, is_stopped), paths))
        finally:
            is_stopped.set()  # the pool waits for its threads, and Ctrl-C shall not


def _digest(path: Path, report: Report, is_stopped: Event) -> str:
    """Of a model in several files, of all of them."""
    try:
        found = path.stat()
        key = (str(path.absolute()), found.st_size, found.st_mtime_ns)
        if key not in _digests:
            digest, n_done, n_bytes = hashlib.sha256(), 0, shards.n_bytes(path)
            for part in shards.siblings(path):
                with part.open("rb") as file:
                    while not is_stopped.is_set() and (data := file.read(1 << 22)):
                        digest.update(data)
                        n_done += len(data)
                        report(f"hash {path.name}", n_done, n_bytes)
            if is_stopped.is_set():
                return ""  # nobody waits for it any more
            _digests[key] = digest.hexdigest()[:16]
        return _digests[key]
    except OSError as error:
        raise ModelFileError(path, f"cannot be read ({error.strerror})", "check its name and permissions") from error
