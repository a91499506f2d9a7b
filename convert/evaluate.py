"""The measuring child of `edge quality`: one model reads a text, and what it predicts goes into a file of records.

    python -m convert.evaluate JOB

Three kinds of job: "reference" keeps the predictions of a reference, a record per chunk; "compare" reads them and keeps
the scores of another model; "surprise" keeps how surprised a model is, without a reference. What the file has already
is not made again.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from convert import divergence
from convert.child import Json, Report, serve
from convert.chunks import Chunk, Reader
from convert.records import Records
from edge.errors import ModelFileError, NoSpaceError

KEPT_BYTES_PER_VALUE = 2 + 1 / 8  # at most: a code for each token of the vocabulary, and a bit that says it is there


def work(job: Json, report: Report) -> Json:
    """Make the records that are missing in job["records"]; returns how many chunks the text has."""
    with Records(Path(job["records"])) as records:
        reader = Reader(job, report)
        chunks = reader.chunks(job)
        n_scored = len(chunks[0].next_tokens)
        if job["kind"] == "reference":
            n_bytes = int((len(chunks) - len(records)) * n_scored * reader.llama.n_vocab * KEPT_BYTES_PER_VALUE)
            _check_room(records.path, n_bytes)
        base = Records(Path(job["reference"])) if job["kind"] == "compare" else None
        try:
            with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2) as pool:
                for i in range(len(records), len(chunks)):
                    report("read", i, len(chunks))
                    records.append(*_record(reader, chunks[i], base[i] if base else None, job, pool))
        finally:
            if base:
                base.close()
            reader.close()
    report("read", len(chunks), len(chunks))
    return {"n_chunks": len(chunks)}


def _record(reader: Reader, chunk: Chunk, base: bytes | None, job: Json, pool: Executor) -> list[bytes]:
    """A chunk's record in parts: of a reference its tokens and rows, else its scores."""
    parts = []
    tokens = np.array(chunk.tokens, np.uint32).tobytes()
    places = _batches(base, tokens, job) if base else None
    for next_tokens, logits in reader.logits(chunk):
        if job["kind"] == "reference":
            packed = divergence.pack(logits, next_tokens, pool)
            parts += [len(packed).to_bytes(8, "little"), packed]
        elif places is not None:
            parts.append(divergence.compare(logits, next_tokens, next(places), pool).tobytes())
        else:
            parts.append(divergence.surprises(logits, next_tokens, pool).tobytes())
    return [tokens, *parts] if job["kind"] == "reference" else parts


def _batches(record: bytes, tokens: bytes, job: Json) -> Iterator[memoryview]:
    """The packed rows of a reference's record, batch by batch. Raises ModelFileError if they are of other tokens."""
    if record[: len(tokens)] != tokens:
        problem = "reads the text in other tokens than the reference does"
        raise ModelFileError(Path(job["model"]), problem, "compare with the model it was made from")
    place = len(tokens)
    while place < len(record):
        n_bytes = int.from_bytes(record[place : place + 8], "little")
        yield memoryview(record)[place + 8 : place + 8 + n_bytes]
        place += 8 + n_bytes


def _check_room(path: Path, n_bytes: int) -> None:
    found = os.statvfs(path.parent)
    if n_bytes > found.f_bavail * found.f_frsize:
        raise NoSpaceError(path.parent, n_bytes, found.f_bavail * found.f_frsize)


if __name__ == "__main__":
    serve(work)
