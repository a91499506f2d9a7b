"""The smallest type of a checkpoint that fits a board and still says what the checkpoint says, found by trying.

Types are made one after the other, smallest first, in a folder that goes away, until one is good enough.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from convert import output
from convert.checkpoint import Checkpoint
from convert.child import Report, silent
from convert.manifest import manifest_path
from convert.pipeline import convert, dry_run
from convert.plan import Plan, PlannedFile, Reference
from convert.quality import Reading, measure
from convert.replies import N_REPLIES, written
from edge.config import N_CTX_TOKENS
from edge.errors import EngineError, NoSpaceError

CANDIDATES = ("Q4_0", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
N_SYSTEM_BYTES = 500_000_000  # what the rest of a small Linux takes
N_ENGINE_BYTES = 200_000_000  # beside weights and KV cache: compute buffers, the library, Python


@dataclass(frozen=True)
class Trial:
    """One type, and why it was taken or not. same_top: None if it was not tried."""

    type: str
    n_bytes: int
    n_memory_bytes: int
    same_top: float | None
    verdict: str


@dataclass(frozen=True)
class Choice:
    """The file that was made, what it was measured against, and every type that was looked at, smallest first."""

    path: Path
    type: str
    against: Path
    trials: tuple[Trial, ...]


def choose(
    source: Path | Checkpoint,
    out: Path,
    reference: Reference,
    *,
    n_ram_bytes: int,
    min_same_top: float,
    text: Path | None = None,
    imatrix: Path | None = None,
    overwrite: bool = False,
    report: Report = silent,
) -> Choice:
    """Make the smallest file that passes, in `out`. Raises EngineError with every trial if none does.

    A checkpoint on the hub is read once for each trial, so its weights are fetched into the hub's cache first.
    """
    made = dry_run(source, CANDIDATES, out, imatrix=imatrix)
    files = sorted(made.files, key=lambda file: file.n_bytes)
    for file in files:
        if file.path.exists() and not overwrite:
            raise output.exists(file.path)
    trials = [
        Trial(file.type, file.n_bytes, memory(made, file), None, "needs too much memory")
        for file in files
        if memory(made, file) > n_ram_bytes
    ]
    fitting = files[: len(files) - len(trials)]  # what is larger needs more
    if not fitting:
        raise _none_passes(trials)
    n_largest = fitting[-1].n_bytes
    reference = replace(reference, n_bytes_beside=n_largest + _n_bytes_to_fetch(source, out))
    _check_room(dry_run(source, [], out, reference=reference), reference)
    checkpoint = source if isinstance(source, Path) else source.fetch(report)
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".choosing-") as name:
        folder = Path(name)
        base = convert(checkpoint, [], reference=replace(reference, n_bytes_beside=n_largest))[0].path
        reading = Reading(text or written(base, N_REPLIES, report=report), control=text is None)
        tried: list[Trial] = []
        for file in fitting:
            model = convert(checkpoint, [file.type], folder, imatrix=imatrix)[0].path
            lost = measure(model, base, reading, report).divergence
            assert lost
            same = lost.same_top.value
            verdict = "the smallest that passes" if same >= min_same_top else f"below {min_same_top:.3f}"
            tried.append(Trial(file.type, file.n_bytes, memory(made, file), same, verdict))
            if same >= min_same_top:
                for path in (model, manifest_path(model)):
                    path.replace(out / path.name)
                return Choice(out / model.name, file.type, base, tuple(tried))
            model.unlink()
    raise _none_passes([*tried, *trials])


def _n_bytes_to_fetch(source: Path | Checkpoint, out: Path) -> int:
    """What fetching the source takes of the disk that `out` lies on."""
    if isinstance(source, Path) or source.path.stat().st_dev != output.existing(out).stat().st_dev:
        return 0
    return source.n_bytes_to_fetch


def _check_room(made: Plan, reference: Reference) -> None:
    n_needed, n_free = made.n_bytes + reference.n_bytes_beside, output.n_bytes_free(made.files[0].path.parent)
    if n_needed > n_free:
        raise NoSpaceError(output.existing(made.files[0].path.parent), n_needed, n_free)


def _none_passes(trials: Sequence[Trial]) -> EngineError:
    return EngineError(f"no type passes: {told(trials)}", "lower --min-top1, or give it more --ram")


def memory(made: Plan, file: PlannedFile) -> int:
    """Bytes of RAM that a board needs to run a file with the default context."""
    has = made.model.dimensions
    n_cache_bytes = N_CTX_TOKENS * has.layer * has.head_kv * has.head_dim * 2 * 2  # K and V in f16
    return file.n_bytes + n_cache_bytes + N_ENGINE_BYTES + N_SYSTEM_BYTES


def told(trials: Sequence[Trial]) -> str:
    """Each trial in some words."""
    return ", ".join(
        f"{trial.type} {trial.verdict}" if trial.same_top is None else f"{trial.type} has {trial.same_top:.3f}"
        for trial in trials
    )


def document(choice: Choice) -> str:
    trials = [vars(trial) for trial in choice.trials]
    return json.dumps({"path": str(choice.path), "type": choice.type, "trials": trials}, indent=1)
