"""From a name to a file: on this machine if it is here, else fetched, after all that can be checked was checked.

resolve("deepseek-r1:1.5b")          # the path of its GGUF, which is pulled first if need be
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edge.errors import HubError
from edge.model.cache import COMPANIONS, Cache, find_found
from edge.model.cursor import ReadAt
from edge.model.download import Progress, check_room, download
from edge.model.fit import check_memory
from edge.model.gguf import ModelInfo, parse_header, read_model_info
from edge.model.hub import Hub, HubFile, Repository
from edge.model.names import ModelName, choose, is_name, parse

N_COMPANION_BYTES_MAX = 1 << 20

Show = Callable[[Progress], None]


def _silent(progress: Progress) -> None:
    pass


@dataclass(frozen=True)
class Remote:
    """A model on the hub, looked up: its parts, and what their headers say."""

    repository: Repository
    parts: tuple[HubFile, ...]
    info: ModelInfo

    @property
    def n_bytes(self) -> int:
        return sum(part.n_bytes for part in self.parts)

    @property
    def companions(self) -> tuple[HubFile, ...]:
        """Licence, model card and manifest: small, and wanted wherever the model goes."""
        parts = {part.name for part in self.parts}
        found = []
        for file in self.repository.files:
            path = PurePosixPath(file.name)
            is_ours = file.name.removesuffix(".json") in parts if path.suffix == ".json" else len(path.parts) == 1
            if is_ours and COMPANIONS.fullmatch(path.name) and file.n_bytes <= N_COMPANION_BYTES_MAX:
                found.append(file)
        return tuple(found)


def look_up(hub: Hub, name: ModelName) -> Remote:
    """What the hub has under a name. Reads some MB of each part; raises ModelFileError if it is no sound model."""
    repository = hub.repository(name.repo_id, name.revision)
    found = [repository.file(part) for part in choose([file.name for file in repository.files], name)]
    parts = tuple(file for file in found if file)
    first, cache = parts[0], Cache(hub.cache)
    if all(map(cache.is_here, parts)):  # only asked again whether it is still the same
        path, *_ = map(cache.link, parts)
        return Remote(repository, parts, read_model_info(path))
    files = {Path(str(part)): part for part in parts}

    def open_file(path: Path) -> tuple[ReadAt, int]:
        if path not in files:
            raise HubError(str(path), f"is a part of {first.name} and missing there", "choose another model")
        return hub.read_at(files[path]), files[path].n_bytes

    info = parse_header(hub.read_at(first), first.n_bytes, Path(str(first)), open_file)
    return Remote(repository, parts, info)


def pull(hub: Hub, name: ModelName, progress: Show = _silent, *, force: bool = False) -> list[Path]:
    """Fetch a model into the cache; returns its parts. force: even if it does not fit into memory."""
    remote = look_up(hub, name)
    if not force:
        check_memory(str(name), remote.n_bytes, remote.info)
    files = [*remote.companions, *remote.parts]
    check_room(Cache(hub.cache), files)
    return download(hub, remote.repository, files, progress)[len(remote.companions) :]


def find(text: str, hub: Hub) -> Path | None:
    """The file on this machine that `text` names: a path, a name in the cache, or a model another program keeps."""
    path = Path(text).expanduser()
    if path.exists():
        return path
    name = parse(text)
    if name and (parts := Cache(hub.cache).find(name)):
        return parts[0]
    model = find_found(text)
    return model.path if model else None


def local(text: str) -> Path:
    """The file on this machine that `text` names. Raises HubError for a model that would have to be fetched."""
    if Path(text).exists() or not is_name(text):
        return Path(text)
    path = find(text, Hub.from_environment())
    if path is None:
        raise HubError(text, "is not on this machine", f"fetch it with: edge pull {text}")
    return path


def resolve(text: str, hub: Hub | None = None, progress: Show = _silent) -> Path:
    """The file that `text` names, fetched if it is not here. What names nothing comes back as the path it may be."""
    if Path(text).expanduser().exists():
        return Path(text).expanduser()
    hub = hub or Hub.from_environment()
    if path := find(text, hub):
        return path
    name = parse(text)
    return pull(hub, name, progress)[0] if name else Path(text)


def read_info(text: str, hub: Hub | None = None) -> ModelInfo:
    """The header of the model that `text` names; of one on the hub only this much is read."""
    hub = hub or Hub.from_environment()
    path, name = find(text, hub), parse(text)
    if path is not None or name is None:
        return read_model_info(path or Path(text))
    return look_up(hub, name).info
