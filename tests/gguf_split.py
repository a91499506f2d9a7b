"""A model cut into several files, as llama-gguf-split does it: all metadata in the first, the tensors shared out."""

from pathlib import Path

from gguf import GGUFReader

from tests.hostile.gguf_files import I32, U16, Typed, entry, joined, tensor

HEAD_BYTES = 24  # magic, version, counts


def split(model: Path, folder: Path, n_tensors: tuple[int, ...], **changes: Typed | None) -> list[Path]:
    """Write `model` as so many files, the i-th with n_tensors[i] of its tensors; what is left goes into the last.

    changes: other values for the keys of the split, in every file; dots are written as __.
    """
    data, reader = model.read_bytes(), GGUFReader(model)
    metadata = data[HEAD_BYTES : reader.tensors[0].field.offset]
    n_keys = int.from_bytes(data[16:24], "little")
    count, paths = len(n_tensors), []
    for i, n in enumerate(n_tensors):
        start = sum(n_tensors[:i])
        chosen = reader.tensors[start : start + n if i < count - 1 else None]
        keys: dict[str, Typed | None] = {
            "split.no": (U16, i),
            "split.count": (U16, count),
            "split.tensors.count": (I32, len(reader.tensors)),
            **{key.replace("__", "."): typed for key, typed in changes.items()},
        }
        own = [entry(key, typed) for key, typed in keys.items() if typed is not None]
        table, content, place = [], b"", 0
        for found in chosen:
            shape = tuple(int(n) for n in found.shape)
            table.append(tensor(found.name, shape, int(found.tensor_type), place))
            block = data[found.data_offset : found.data_offset + int(found.n_bytes)]
            content += block + bytes(-len(block) % 32)
            place = len(content)
        entries = [metadata, *own] if i == 0 else own
        head = joined(entries, table, n_keys=len(own) + (n_keys if i == 0 else 0))
        paths.append(folder / f"{model.stem}-{i + 1:05d}-of-{count:05d}.gguf")
        folder.mkdir(parents=True, exist_ok=True)
        paths[-1].write_bytes(head + content)
    return paths
