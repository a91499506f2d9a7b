"""What will be written where, to the byte, before anything is written: types, sizes, places and heads of the files."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from gguf import GGML_QUANT_VERSION, GGUFType, GGUFWriter, Metadata, size_label
from gguf.gguf_writer import WriterState
from numpy.typing import NDArray

from convert import output
from convert.checkpoint import Checkpoint
from convert.families import Model, Weight, understand
from convert.importance import ImportanceMatrix
from convert.quantize import Kind, n_cores, row_bytes, values_per_s
from convert.recipes import RECIPES, Network, Recipe, Wishes, tensor_kinds
from convert.vocab import Vocabulary
from edge.board.memory import read_memory
from edge.errors import CheckpointError, ModelFileError, UnsupportedTypeError

N_ALIGNMENT = 32  # GGUF's default
SMALL_REFERENCE = "Q8_0"  # a mean divergence of about 0.001: enough to tell 4 bits from 5
REFERENCE_SHARE = 0.8  # of memory: a larger one would be read from the disk again for each piece of text


@dataclass(frozen=True)
class Reference:
    """A file that the others are measured against, in a folder of its own, and only for a while.

    It has the checkpoint's own type if that fits on the disk and into memory, else Q8_0. writes: it will write what all
    of them read, and so needs a chat template. n_bytes_beside: what else has to fit on the disk.
    """

    folder: Path
    writes: bool = False
    n_bytes_beside: int = 0


@dataclass(frozen=True)
class PlannedFile:
    """One file to come: its head, and for each tensor, in the order of the file, its type and where its rows start."""

    path: Path
    type: str
    head: bytes
    kinds: Mapping[str, Kind]
    offsets: Mapping[str, int]
    sizes: Mapping[str, int]
    n_bytes: int

    @property
    def tensor_types(self) -> Counter[str]:
        return Counter(kind.name for kind in self.kinds.values())


@dataclass(frozen=True)
class Plan:
    """Several files from one pass over a model."""

    name: str
    model: Model
    files: tuple[PlannedFile, ...]
    importance: ImportanceMatrix | None
    columns: Mapping[str, NDArray[np.float32]]  # importance by tensor, checked against the model

    @property
    def n_cores(self) -> int:
        return n_cores()

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self.files)

    @property
    def n_source_bytes(self) -> int:
        return sum(weight.source.n_bytes for weight in self.model.weights if weight.source)

    def bits_per_weight(self, file: PlannedFile) -> float:
        """Of the tensors; the vocabulary is not counted."""
        return 8 * sum(file.sizes.values()) / self.model.n_parameters

    def cpu_s(self) -> float:
        """Expected seconds of one core, from a short trial of each type on this machine. Disks are not counted."""
        work: Counter[tuple[Kind, bool]] = Counter()
        for weight in self.model.weights:
            for kind in {file.kinds[weight.name] for file in self.files}:
                work[kind, weight.name in self.columns] += weight.n_rows * weight.n_columns
        return sum(n_values / values_per_s(kind, weighted=weighted) for (kind, weighted), n_values in work.items())


def plan(
    checkpoint: Checkpoint,
    types: Sequence[str],
    out_dir: Path,
    *,
    wishes: Wishes | None = None,
    importance: ImportanceMatrix | None = None,
    reference: Reference | None = None,
) -> Plan:
    """What will be written where, to the byte; a reference last. Raises EdgeError for what cannot become that."""
    recipes = [_recipe(name) for name in dict.fromkeys(name.upper() for name in types)]
    model = understand(checkpoint)
    vocabulary = Vocabulary.read(checkpoint, model.dimensions.vocab)
    name = model_name(checkpoint.path)
    columns = _checked_columns(model, importance)
    files = [
        _plan_file(model, vocabulary, recipe, wishes, importance, name, out_dir / f"{name}-{recipe.name}.gguf")
        for recipe in recipes
    ]
    made = Plan(name, model, tuple(files), importance, columns)
    if reference is None:
        return made
    if reference.writes and vocabulary.chat_template is None:
        raise CheckpointError(checkpoint.path, "has no chat template", "name a text to measure with: --text FILE")
    for kind in (own_type(checkpoint), SMALL_REFERENCE):
        path = reference.folder / f"{name}-{kind}.gguf"
        other = _plan_file(model, vocabulary, RECIPES[kind], None, None, name, path)  # whatever the wishes
        both = replace(made, files=(*files, other))
        n_needed = both.n_bytes + reference.n_bytes_beside
        if n_needed <= n_bytes_free(checkpoint, both) and other.n_bytes <= REFERENCE_SHARE * _n_memory_bytes():
            break
    return both


def n_bytes_free(checkpoint: Checkpoint, made: Plan) -> int:
    """Bytes that may still be written; what a stopped run of a remote source has written counts as free."""
    n_free = output.n_bytes_free(made.files[0].path.parent)
    if checkpoint.is_remote:
        n_free += sum(output.n_bytes_resumable(file.path) for file in made.files)
    return n_free


def _n_memory_bytes() -> int:
    memory = read_memory()
    return memory.limit_bytes if memory else 1 << 62


def own_type(checkpoint: Checkpoint) -> str:
    """The type that holds a checkpoint's weights as they are: what others of it are compared with."""
    dtypes = {tensor.dtype for tensor in checkpoint.tensors.values() if len(tensor.shape) > 1}
    return dtypes.pop() if dtypes in ({"BF16"}, {"F16"}) else "F32"


def model_name(folder: Path) -> str:
    """The folder's name; in the Hugging Face cache that of the repository."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.split("--")[-1]
    return folder.resolve().name


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnsupportedTypeError(name, tuple(RECIPES))
    return RECIPES[name]


def _checked_columns(model: Model, importance: ImportanceMatrix | None) -> dict[str, NDArray[np.float32]]:
    if importance is None:
        return {}
    found = {weight.name: importance.of(weight.name, weight.n_columns) for weight in _matrices(model)}
    columns = {name: values for name, values in found.items() if values is not None}
    if not columns:
        raise ModelFileError(importance.path, "knows no tensor of this model", "name the matrix made from this model")
    return columns


def _matrices(model: Model) -> list[Weight]:
    return [weight for weight in model.weights if len(weight.shape) > 1]


def _plan_file(
    model: Model,
    vocabulary: Vocabulary,
    recipe: Recipe,
    wishes: Wishes | None,
    importance: ImportanceMatrix | None,
    name: str,
    path: Path,
) -> PlannedFile:
    has = model.dimensions
    network = Network(model.architecture, has.layer, has.head, has.head_kv, has_imatrix=importance is not None)
    weights = {weight.name: weight for weight in model.weights}
    kinds = tensor_kinds(recipe, {name: weight.shape for name, weight in weights.items()}, network, wishes)
    sizes = {name: weights[name].n_rows * row_bytes(kind, weights[name].n_columns) for name, kind in kinds.items()}
    # the head
    writer = GGUFWriter(None, model.architecture)
    _describe_origin(writer, name, model, vocabulary)
    model.describe(writer)
    vocabulary.describe(writer)
    _describe_types(writer, recipe, importance)
    for tensor, kind in kinds.items():
        shape = weights[tensor].shape
        writer.add_tensor_info(tensor, shape, np.dtype(np.float32), sizes[tensor], raw_dtype=kind)
    head = head_bytes(writer)
    # the places
    offsets, end = {}, len(head)
    for tensor, n_bytes in sizes.items():
        offsets[tensor] = end
        end += GGUFWriter.ggml_pad(n_bytes, N_ALIGNMENT)
    return PlannedFile(path, recipe.name, head, kinds, offsets, sizes, end)


def _describe_origin(writer: GGUFWriter, name: str, model: Model, vocabulary: Vocabulary) -> None:
    """general.*, in the order of upstream's converter and with its way of taking a model's name apart."""
    name = name.encode(errors="replace").decode()  # a folder's name may be any bytes
    full_name, _, basename, finetune, version, label = Metadata.get_model_id_components(name, model.n_parameters)
    writer.add_type(GGUFType.MODEL)
    vocabulary.describe_sampling(writer)
    writer.add_name(Metadata.id_to_title(full_name or name))  # type: ignore[no-untyped-call]
    if version:
        writer.add_version(version)
    if finetune:
        writer.add_finetune(finetune)
    if basename:
        writer.add_basename(basename)
    writer.add_size_label(label or size_label(model.n_parameters, model.n_parameters, 0, 0))


def _describe_types(writer: GGUFWriter, recipe: Recipe, importance: ImportanceMatrix | None) -> None:
    """At the end and in the order in which llama-quantize sets these keys: so its files and ours are the same."""
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(recipe.file_type)
    if importance is not None:
        writer.add_string("quantize.imatrix.file", importance.path.name)
        if importance.datasets:
            writer.add_string("quantize.imatrix.dataset", importance.datasets[0])
        writer.add_uint32("quantize.imatrix.entries_count", len(importance.columns))
        writer.add_uint32("quantize.imatrix.chunks_count", importance.n_chunks)


def head_bytes(writer: GGUFWriter) -> bytes:
    """All of the file before its first tensor, padding included."""
    buffer = io.BytesIO()
    writer.fout, writer.state = [cast(io.BufferedWriter, buffer)], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    head = buffer.getvalue()
    return head.ljust(GGUFWriter.ggml_pad(len(head), N_ALIGNMENT), b"\0")
