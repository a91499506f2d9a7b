"""Making an importance matrix: which text, where to, and the process that does it. Knows neither libllama nor GGUF."""

from dataclasses import dataclass
from pathlib import Path

from convert import child, output
from convert.child import Json, Report, silent
from edge.errors import OutputError
from edge.model.gguf import read_model_info
from edge.model.shards import stem

N_CTX_TOKENS = 512


@dataclass(frozen=True)
class Matrix:
    """One finished file."""

    path: Path
    model: Path
    dataset: str
    n_chunks: int
    n_tensors: int


def collect(
    model: Path,
    text: Path,
    out: Path | None = None,
    *,
    dataset: str | None = None,
    n_ctx: int = N_CTX_TOKENS,
    n_chunks: int | None = None,
    control: bool = False,
    overwrite: bool = False,
    n_threads: int | None = None,
    report: Report = silent,
) -> Matrix:
    """Write the importance matrix of a model, MODEL.imatrix.gguf beside it if no place is named. Raises EdgeError.

    dataset: what the file says the text is; None: the text's name. control: control tokens are read in the text.
    """
    info = read_model_info(model)  # refuses in this process what a child might die of
    out = (out or model.with_name(f"{stem(model.name)}.imatrix.gguf")).absolute()
    if out.exists() and not overwrite:
        raise output.exists(out)
    if not out.parent.is_dir():
        raise OutputError(out.parent, "is not a folder", "choose another one with --out")
    job: Json = {
        "model": str(model.absolute()),
        "n_vocab": info.n_vocab,
        "text": str(text.absolute()),
        "n_ctx": n_ctx,
        "n_chunks": n_chunks,
        "n_threads": n_threads,
        "control": control,
        "out": str(out),
        "overwrite": overwrite,
        "dataset": dataset or text.name,
    }
    done = child.run("convert.collect", job, lambda phase, n, of: report(f"{phase} {model.name}", n, of))
    return Matrix(out, model, job["dataset"], done["n_chunks"], done["n_tensors"])
