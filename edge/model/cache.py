"""The models on this machine: the shared Hugging Face cache, and what llama.cpp, Ollama and LM Studio keep. No network.

The cache's layout is the hub library's: models--OWNER--REPO/ with blobs/HASH, snapshots/REVISION/NAME (links to the
blobs) and refs/BRANCH. We read and write that one; the others' folders are only read.
"""

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.errors import FileError, HubError
from edge.model import shards
from edge.model.hub import HubFile
from edge.model.names import ModelName, choose, is_model, is_plain, parse, quant_of
from edge.model.shards import siblings, stem

N_MANIFEST_BYTES_MAX = 1 << 20
N_FOUND_MAX = 10_000  # files of one foreign folder: an accident, such as a link to /, ends
CHECKPOINT_TEXTS = (".json", ".jinja")  # of a checkpoint: nothing without its weights
COMPANIONS = re.compile(r"(LICEN[CS]E|NOTICE|README)([-._].*)?|.*\.gguf\.json", re.I)  # small files that go along


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine. name: what a command takes for it. n_bytes counts all its parts."""

    name: str
    path: Path
    n_bytes: int
    keeper: str  # "hub", "ollama", "llama.cpp" or "lmstudio"
    repo_id: str | None = None
    revision: str | None = None

    @property
    def quant(self) -> str | None:
        return quant_of(self.path.name)


@dataclass(frozen=True)
class Partial:
    """A download that was broken off: how much of which content is there."""

    repo_id: str
    path: Path
    n_bytes: int


class Cache:
    """The hub library's cache folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # ---- places

    def repo_folder(self, repo_id: str) -> Path:
        return self.folder / f"models--{repo_id.replace('/', '--')}"

    def blob(self, file: HubFile) -> Path:
        return self.repo_folder(file.repo_id) / "blobs" / file.etag

    def partial(self, file: HubFile) -> Path:
        return self.blob(file).with_name(f"{file.etag}.incomplete")

    def pointer(self, file: HubFile) -> Path:
        """The file under its own name."""
        return self.repo_folder(file.repo_id) / "snapshots" / file.revision / file.name

    def lock(self, file: HubFile) -> Path:
        """The library's own lock: its downloads and ours keep out of each other's way."""
        return self.folder / ".locks" / self.repo_folder(file.repo_id).name / f"{file.etag}.lock"

    def is_here(self, file: HubFile) -> bool:
        """Whether the whole file is here, under its name or as a blob that only needs one."""
        return any(_n_bytes(path) == file.n_bytes for path in (self.pointer(file), self.blob(file)))

    def link(self, file: HubFile) -> Path:
        """Give a whole blob its name; on a file system without links the blob itself moves there."""
        blob, pointer = self.blob(file), self.pointer(file)
        if _n_bytes(pointer) == file.n_bytes:
            return pointer
        pointer.parent.mkdir(parents=True, exist_ok=True)
        new = pointer.with_name(f".{pointer.name}.{os.getpid()}.new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        try:
            new.symlink_to(os.path.relpath(blob, pointer.parent))
            new.replace(pointer)
        except OSError:  # FAT
            blob.replace(pointer)
        return pointer

    def remember(self, repo_id: str, ref: str, revision: str) -> None:
        """Note which revision a branch has, as the library does, for those who ask without a network."""
        if ref == revision or not is_plain(ref):
            return
        path = self.repo_folder(repo_id) / "refs" / ref
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        new.write_text(revision, encoding="ascii")
        new.replace(path)

    # ---- what is there

    def find(self, name: ModelName) -> list[Path] | None:
        """The parts of a model that is whole in the cache, of the newest revision that has it; None if it is not."""
        folder = self._existing(name.repo_id)
        for snapshot in _snapshots(folder, name.revision):
            with contextlib.suppress(HubError):
                return [snapshot / part for part in choose(_files(snapshot), name)]
        return None

    def weights(self, name: ModelName) -> list[Path]:
        """The safetensors of a checkpoint, fetched to be converted; none if the repository has models here."""
        if name.quant or name.file:
            return []
        folder = self._existing(name.repo_id)
        files = [snapshot / file for snapshot in _snapshots(folder, name.revision) for file in _files(snapshot)]
        return [] if any(is_model(file.name) for file in files) else [f for f in files if f.suffix == ".safetensors"]

    def models(self) -> Iterator[LocalModel]:
        """Every whole GGUF model, the newest revision first; one that two revisions share is told once."""
        for folder in self._repo_folders():
            seen: set[Path] = set()
            for snapshot in _snapshots(folder, None):
                names = [name for name in _files(snapshot) if is_model(name)]
                for key in sorted({stem(name) for name in names}):
                    first = min(name for name in names if stem(name) == key)
                    path = (snapshot / first).resolve()
                    if path not in seen and all(map(_n_bytes, siblings(snapshot / first))):
                        seen.add(path)
                        n_bytes = shards.n_bytes(snapshot / first)
                        same = [name for name in names if quant_of(name) == quant_of(first) and stem(name) != key]
                        short = f"{_repo_id(folder)}:{quant_of(first)}" if quant_of(first) and not same else None
                        name = short or f"{_repo_id(folder)}/{first}"
                        yield LocalModel(name, snapshot / first, n_bytes, "hub", _repo_id(folder), snapshot.name)

    def partials(self) -> Iterator[Partial]:
        for folder in self._repo_folders():
            for path in sorted(_entries(folder / "blobs")):
                if path.suffix == ".incomplete" and (n_bytes := _n_bytes(path)):
                    yield Partial(_repo_id(folder), path, n_bytes)

    def remove(self, name: ModelName) -> int:
        """Take a model's files away, and what was broken off; returns the bytes that are free now.

        Other files of the repository stay, but what only goes along with GGUF files goes with the last of them.
        """
        folder = self._existing(name.repo_id)
        parts = self.find(name) or self.weights(name)
        partials = [partial.path for partial in self.partials() if partial.path.parent.parent == folder]
        if not parts and not partials:
            raise HubError(str(name), "is not in the cache", "edge ls shows what is")
        n_bytes_before = _n_disk_bytes(folder)
        try:
            for path in partials:
                path.unlink(missing_ok=True)
            for part in parts:
                self._remove_content(folder, part)
            left = [file.rpartition("/")[2] for snapshot in _snapshots(folder, None) for file in _files(snapshot)]
            goes = CHECKPOINT_TEXTS if any(part.suffix == ".safetensors" for part in parts) else ()
            if all(COMPANIONS.fullmatch(file) or file.endswith(goes) for file in left):
                shutil.rmtree(folder)
        except OSError as error:
            raise FileError(folder, f"cannot be removed ({error.strerror})", "check its permissions") from error
        return n_bytes_before - _n_disk_bytes(folder)

    def _remove_content(self, folder: Path, part: Path) -> None:
        """The names of this content in all revisions, and then the content."""
        blob = part.resolve()
        for snapshot in _snapshots(folder, None):
            for name in _files(snapshot):
                if (snapshot / name).resolve() == blob and (snapshot / name).is_symlink():
                    (snapshot / name).unlink()
        part.unlink(missing_ok=True)
        if blob.parent == (folder / "blobs").resolve():
            blob.unlink(missing_ok=True)

    def _existing(self, repo_id: str) -> Path:
        """The folder of a repository, whose name may be there in other letters: the hub takes both."""
        folder = self.repo_folder(repo_id)
        alike = (path for path in self._repo_folders() if path.name.lower() == folder.name.lower())
        return folder if folder.exists() else next(alike, folder)

    def _repo_folders(self) -> list[Path]:
        return sorted(path for path in _entries(self.folder) if path.name.startswith("models--") and path.is_dir())


# ---- found: folders of other programs, never written to


def found_models() -> Iterator[LocalModel]:
    """What Ollama, LM Studio and llama.cpp keep on this machine, at the places they use."""
    home = Path.home()
    for folder in _first_existing("OLLAMA_MODELS", home / ".ollama/models", Path("/usr/share/ollama/.ollama/models")):
        yield from _ollama(folder)
    for folder in _first_existing(None, home / ".lmstudio/models", home / ".cache/lm-studio/models"):
        yield from _files_of(folder, "lmstudio")
    old = home / "Library/Caches/llama.cpp" if sys.platform == "darwin" else _xdg_cache() / "llama.cpp"
    for folder in _first_existing("LLAMA_CACHE", old):
        yield from _files_of(folder, "llama.cpp")


def find_found(text: str) -> LocalModel | None:
    """A found model by its name in the list, or by what its keeper calls it, or as OWNER/REPO:QUANT."""
    wanted = parse(text) if "://" not in text else None
    for model in found_models():
        if text in (model.name, model.name.partition(":")[2]):
            return model
        same_repo = wanted and model.repo_id and wanted.repo_id.lower() == model.repo_id.lower()
        if same_repo and wanted and model.quant == (wanted.quant or model.quant):
            return model
    return None


def _ollama(folder: Path) -> Iterator[LocalModel]:
    """manifests/REGISTRY/OWNER/NAME/TAG is a list of layers; the layer of the model is a GGUF under blobs/."""
    root = folder / "manifests"
    for manifest in _walk(root):
        parts = manifest.relative_to(root).parts
        if len(parts) != 4:
            continue
        try:
            with manifest.open("rb") as file:
                layers = json.loads(file.read(N_MANIFEST_BYTES_MAX))["layers"]
            digests = [
                layer["digest"] for layer in layers if layer["mediaType"] == "application/vnd.ollama.image.model"
            ]
            found = [re.fullmatch(r"sha256:([0-9a-f]{64})", digest) for digest in digests]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        owner, name, tag = parts[1:]
        short = f"{name}:{tag}" if owner == "library" else f"{owner}/{name}:{tag}"
        if len(found) == 1 and found[0] and (n_bytes := _n_bytes(path := folder / "blobs" / f"sha256-{found[0][1]}")):
            yield LocalModel(f"ollama:{short}", path, n_bytes, "ollama")


def _files_of(folder: Path, keeper: str) -> Iterator[LocalModel]:
    """A folder of GGUF files; OWNER/REPO/FILE, where they lie so deep, names the repository."""
    for path in _walk(folder):
        place = path.relative_to(folder)
        parts = siblings(path)
        if is_model(place.name) and path == parts[0] and all(map(_n_bytes, parts)):
            repo_id = "/".join(place.parts[:2]) if len(place.parts) == 3 else None
            yield LocalModel(f"{keeper}:{stem(place.as_posix())}", path, shards.n_bytes(path), keeper, repo_id)


def _first_existing(variable: str | None, *folders: Path) -> list[Path]:
    """The folder that the variable names, else those of the usual ones that exist."""
    if variable and (named := os.environ.get(variable)):
        folders = (Path(named).expanduser(),)
    return [folder for folder in folders if folder.is_dir()]


def _xdg_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


# ---- folders that may be anything


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in order; links to folders are not followed."""
    n_left = N_FOUND_MAX
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            n_left -= 1
            if n_left < 0:
                return
            yield Path(parent, name)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _repo_id(folder: Path) -> str:
    return folder.name.removeprefix("models--").replace("--", "/", 1)


def _snapshots(folder: Path, ref: str | None) -> list[Path]:
    """The revisions of a repository: that of the branch main first, then the newest. ref: this one only."""
    snapshots = sorted(_entries(folder / "snapshots"), key=_changed_ns, reverse=True)
    try:
        revision = (
            (folder / "refs" / (ref or "main")).read_text(encoding="ascii").strip() if is_plain(ref or "main") else ""
        )
    except (OSError, ValueError):
        revision = ref or ""
    if ref:
        return [snapshot for snapshot in snapshots if snapshot.name == revision]
    return sorted(snapshots, key=lambda snapshot: snapshot.name != revision)


def _files(snapshot: Path) -> list[str]:
    """The names of whole files in a snapshot."""
    return [path.relative_to(snapshot).as_posix() for path in _walk(snapshot) if path.is_file()]


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _n_bytes(path: Path) -> int | None:
    """The length of a file, through links; None if there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _n_disk_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in _walk(folder) if not path.is_symlink())
