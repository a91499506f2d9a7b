"""From a checkpoint to GGUF files, in order: open, plan, check the disk, stream, verify, rename.

One pass over the source makes all types at once; a weight is read once, and encoded once per type. No tensor is ever
whole in memory. Files appear under their names only when all of them are whole on the disk. From a source far away
(Checkpoint.is_remote) the bytes come as one stream, and what is finished when it breaks off is kept for the next run.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

from convert import output, quantize
from convert.blocks import Encoder, Target, cut, filled
from convert.checkpoint import Checkpoint
from convert.importance import ImportanceMatrix
from convert.journal import Journal, fingerprint
from convert.manifest import Origin, manifest, manifest_path, tools
from convert.output import OutputFile
from convert.plan import Plan, PlannedFile, Reference, n_bytes_free, plan
from convert.readback import ReadBack
from convert.recipes import Wishes, file_order
from convert.stops import Stop, safe_stops
from edge.errors import CheckpointError, EngineError, NoSpaceError, OutputError


@dataclass(frozen=True)
class Progress:
    """How far a conversion is. Bytes of the source while converting, of the results while verifying."""

    phase: Literal["convert", "verify"]
    n_bytes_done: int
    n_bytes_total: int


@dataclass(frozen=True)
class Conversion:
    """One finished file. bits_per_weight counts tensors only; seconds is the whole run, which may have made others."""

    path: Path
    manifest: Path
    type: str
    source: Path
    n_source_bytes: int
    n_bytes: int
    n_tensors: int
    n_parameters: int
    bits_per_weight: float
    sha256: str
    seconds: float


def _silent(progress: Progress) -> None:
    pass


def convert(
    src: Path | Checkpoint,
    types: Sequence[str],
    out_dir: Path | None = None,
    *,
    progress: Callable[[Progress], None] = _silent,
    overwrite: bool = False,
    wishes: Wishes | None = None,
    imatrix: Path | None = None,
    reference: Reference | None = None,
) -> list[Conversion]:
    """Make one GGUF per type from the checkpoint in `src`, named `<folder>-<TYPE>.gguf`, in `out_dir` or here.

    Beside each lies its manifest, `<folder>-<TYPE>.gguf.json`. Raises EdgeError; whatever is raised, signals included,
    no new file is left and the source is as it was. From a remote source hidden files stay, to go on from.

    reference: make this from the same pass too; it comes last.
    """
    start = time.perf_counter()
    with _enough_memory(), ExitStack() as stack:
        stop = stack.enter_context(safe_stops())
        # 1. open
        checkpoint = stack.enter_context(Checkpoint.open(src) if isinstance(src, Path) else src)
        importance = ImportanceMatrix.read(imatrix) if imatrix else None
        # 2. plan
        made = plan(checkpoint, types, out_dir or Path.cwd(), wishes=wishes, importance=importance, reference=reference)
        # 3. check the disk
        for folder in dict.fromkeys(file.path.parent for file in made.files):
            _make_folder(stack, folder)
        _check_targets(checkpoint, made, overwrite=overwrite)
        # 4. stream
        files = [_open(stack, file.path, file.n_bytes, is_resumable=checkpoint.is_remote) for file in made.files]
        manifests = [_open(stack, manifest_path(file.path), 0) for file in made.files]
        journals = [
            stack.enter_context(_journal(checkpoint, made, file)) for file in made.files if checkpoint.is_remote
        ]
        try:
            with _read_back([] if checkpoint.is_remote else files) as readbacks:
                _stream(checkpoint, made, files, journals, readbacks, progress, stop)
        except CheckpointError:  # another try would come to the same end
            for file, journal in zip(files, journals, strict=False):
                file.is_resumable = False
                journal.remove()
            raise
        # 5. verify
        hashes = _verify(files, progress, stop)
        checkpoint.check_unchanged()
        # 6. rename, the manifests last: a model without one is whole, one without a model is a riddle
        _write_manifests(checkpoint, made, hashes, manifests)
        stop.check()
        for old in manifests if overwrite else []:
            old.path.unlink(missing_ok=True)  # the old one speaks of the old model
        for file in (*files, *manifests):
            file.publish(overwrite=overwrite)
        for file in (*files, *manifests):
            file.keep()
        for journal in journals:
            journal.remove()
        seconds = time.perf_counter() - start
        return [
            _conversion(made, file, sha256, checkpoint.path, seconds)
            for file, sha256 in zip(made.files, hashes, strict=True)
        ]


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise EngineError("there is not enough memory to convert", "close other programs, then try again") from error


def dry_run(
    src: Path | Checkpoint,
    types: Sequence[str],
    out_dir: Path | None = None,
    *,
    wishes: Wishes | None = None,
    imatrix: Path | None = None,
    reference: Reference | None = None,
) -> Plan:
    """What `convert` would make, to the byte. Everything is checked but the weights themselves and the targets."""
    with Checkpoint.open(src) if isinstance(src, Path) else src as checkpoint:
        importance = ImportanceMatrix.read(imatrix) if imatrix else None
        return plan(checkpoint, types, out_dir or Path.cwd(), wishes=wishes, importance=importance, reference=reference)


def _make_folder(stack: ExitStack, folder: Path) -> None:
    """Make the target folder if it is not there; it is taken away again if nothing comes to lie in it."""
    if folder.exists():
        return
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise OutputError(folder, f"cannot be made ({error.strerror})", "choose another folder with --out") from error
    stack.callback(_remove_if_empty, folder)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _check_targets(checkpoint: Checkpoint, made: Plan, *, overwrite: bool) -> None:
    """Refuse before the first byte what cannot end well."""
    for folder in {file.path.parent for file in made.files}:
        if not folder.is_dir():
            raise OutputError(folder, "is not a folder", "choose another one with --out")
    for path in [path for file in made.files for path in (file.path, manifest_path(file.path))]:
        if not os.path.lexists(path):
            continue
        if path.exists() and any(path.samefile(source) for source in checkpoint.files):
            raise OutputError(path, "is a file of the checkpoint itself", "choose another folder with --out")
        if path.is_dir():
            raise OutputError(path, "is a folder", "choose another folder with --out")
        if not overwrite:
            raise output.exists(path)
    n_free = n_bytes_free(checkpoint, made)
    if made.n_bytes > n_free:
        raise NoSpaceError(made.files[0].path.parent, made.n_bytes, n_free)


def _open(stack: ExitStack, path: Path, n_bytes: int, *, is_resumable: bool = False) -> OutputFile:
    """A file that goes away with the stack unless it is kept."""
    file = OutputFile(path, n_bytes, is_resumable=is_resumable)
    stack.callback(file.discard)
    return file


@contextmanager
def _journal(checkpoint: Checkpoint, made: Plan, file: PlannedFile) -> Iterator[Journal]:
    """The journal of one file: it holds for this head, these source files, these weights of columns."""
    origin = Origin.of(checkpoint, made.name)
    columns = [name.encode() + values.tobytes() for name, values in sorted(made.columns.items())]
    journal = Journal(file.path, fingerprint([file.head, repr((origin, tools())).encode(), *columns]))
    try:
        yield journal
    finally:
        journal.close()


def _write_manifests(
    checkpoint: Checkpoint, made: Plan, hashes: Sequence[str], manifests: Sequence[OutputFile]
) -> None:
    origin = Origin.of(checkpoint, made.name)
    for planned, sha256, file in zip(made.files, hashes, manifests, strict=True):
        text = manifest(
            model=planned.path,
            n_bytes=planned.n_bytes,
            sha256=sha256,
            kind=planned.type,
            architecture=made.model.architecture,
            n_parameters=made.model.n_parameters,
            bits_per_weight=made.bits_per_weight(planned),
            tensor_types=planned.tensor_types,
            origin=origin,
            importance=made.importance,
        )
        file.n_bytes = len(text)
        file.write(memoryview(text), 0)
        file.finish()


# streaming


def _stream(
    checkpoint: Checkpoint,
    made: Plan,
    files: Sequence[OutputFile],
    journals: Sequence[Journal],
    readbacks: Sequence[ReadBack],
    progress: Callable[[Progress], None],
    stop: Stop,
) -> None:
    # 1. what is there already
    done = _recall(made, files, journals)
    n_done = sum(weight.source.n_bytes for weight in made.model.weights if weight.source and weight.name in done)
    for planned, file in zip(made.files, files, strict=True):
        file.write(memoryview(planned.head), 0)
    # 2. the rest, in the order of the result, or of a source that comes as a stream
    n_threads = quantize.n_cores()
    quantize.prepare({kind for file in made.files for kind in file.kinds.values()})
    weights = [weight for weight in made.model.weights if weight.name not in done]
    weights.sort(key=lambda weight: file_order(weight.name))
    blocks = cut(weights, n_threads)
    if checkpoint.is_remote:
        blocks = filled(checkpoint, sorted(blocks, key=lambda block: block.place), stop.check, is_whole=not done)
    # 3. encode and write
    targets = [Target(file, planned.kinds, planned.offsets) for planned, file in zip(made.files, files, strict=True)]
    with closing(quantize.in_parallel(Encoder(checkpoint, made.columns, targets), blocks, n_threads)) as results:
        for block in results:
            stop.check()
            n_done += block.n_source_bytes
            progress(Progress("convert", n_done, made.n_source_bytes))
            if block.is_last:
                for planned, readback in zip(made.files, readbacks, strict=False):
                    readback.reach(_span(planned, block.weight.name)[1])
                for planned, file, journal in zip(made.files, files, journals, strict=False):
                    journal.add(block.weight.name, file.written(*_span(planned, block.weight.name)))


def _recall(made: Plan, files: Sequence[OutputFile], journals: Sequence[Journal]) -> set[str]:
    """The tensors that an earlier run has brought into every file."""
    done = {weight.name for weight in made.model.weights} if journals else set()
    for planned, file, journal in zip(made.files, files, journals, strict=False):
        entries = journal.done.items()
        kept = {name for name, pieces in entries if name in done and file.recall(pieces, *_span(planned, name))}
        if not kept:
            file.clear()
        done &= kept
    return done


def _span(planned: PlannedFile, name: str) -> tuple[int, int]:
    """From and to which byte a tensor lies in its file."""
    return planned.offsets[name], planned.offsets[name] + planned.sizes[name]


@contextmanager
def _read_back(files: Sequence[OutputFile]) -> Iterator[list[ReadBack]]:
    """One for each file, whose weights come in its own order."""
    with ExitStack() as stack:
        readbacks = []
        for file in files:
            readbacks.append(ReadBack(file))
            stack.callback(readbacks[-1].close)
        yield readbacks
    for readback in readbacks:
        readback.check()


def _verify(files: Sequence[OutputFile], progress: Callable[[Progress], None], stop: Stop) -> list[str]:
    """SHA-256 of each file, once it is on the disk and reads back as it was written; several files at the same time."""
    n_total = sum(file.n_bytes for file in files)
    n_done = sum(file.n_bytes_verified for file in files)
    one_at_a_time = Lock()

    def on_progress(n_bytes: int) -> None:
        nonlocal n_done
        stop.check()
        with one_at_a_time:
            n_done += n_bytes
            progress(Progress("verify", n_done, n_total))

    def verify(file: OutputFile) -> str:
        file.finish()
        stop.check()
        file.verify(on_progress=on_progress)
        return file.sha256

    with closing(quantize.in_parallel(verify, files, quantize.n_cores())) as hashes:
        return list(hashes)


def _conversion(made: Plan, file: PlannedFile, sha256: str, src: Path, seconds: float) -> Conversion:
    return Conversion(
        path=file.path,
        manifest=manifest_path(file.path),
        type=file.type,
        source=src,
        n_source_bytes=made.n_source_bytes,
        n_bytes=file.n_bytes,
        n_tensors=len(file.kinds),
        n_parameters=made.model.n_parameters,
        bits_per_weight=made.bits_per_weight(file),
        sha256=sha256,
        seconds=seconds,
    )
