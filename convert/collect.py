"""The collecting child of `edge imatrix`: a model reads a text, and what each weight is multiplied with is summed up.

python -m convert.collect JOB
"""

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert import importance
from convert.child import Json, Report, serve
from convert.chunks import Reader
from convert.output import OutputFile
from edge.errors import ModelFileError


class Sums:
    """The squares of what each column of each weight met, summed in double precision, and how many rows that were."""

    def __init__(self) -> None:
        self.squares: dict[str, NDArray[np.float64]] = {}
        self.counts: Counter[str] = Counter()

    def __call__(self, name: str, rows: NDArray[np.float32]) -> None:
        found = np.einsum("ij,ij->j", rows, rows)  # float32 over some hundred rows: errors of 1e-6
        if name not in self.squares:
            self.squares[name] = np.zeros(len(found))
        self.squares[name] += found
        self.counts[name] += len(rows)


def work(job: Json, report: Report) -> Json:
    """Write the matrix to job["out"]; returns how many chunks and tensors went into it."""
    sums = Sums()
    reader = Reader(job, report, watch=sums)
    try:
        chunks = reader.chunks(job)
        for i, chunk in enumerate(chunks):
            report("read", i, len(chunks))
            reader.read(chunk)
    finally:
        reader.close()
    for name, values in sums.squares.items():
        if not np.isfinite(values).all():
            raise ModelFileError(Path(job["model"]), f"computes no numbers at {name}", "convert the model again")
    content = importance.document(sums.squares, sums.counts, job["dataset"], job["n_ctx"])
    file = OutputFile(Path(job["out"]), len(content))
    try:
        file.write(memoryview(content), 0)
        file.finish()
        file.verify()
        file.publish(overwrite=job["overwrite"])
        file.keep()
    finally:
        file.discard()
    report("read", len(chunks), len(chunks))
    return {"n_chunks": len(chunks), "n_tensors": len(sums.squares)}


if __name__ == "__main__":
    serve(work)
