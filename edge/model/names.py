"""What a person types for a model: OWNER/REPO:QUANT, an address on the hub, or a short name. No network, no disk.

parse("deepseek-r1:1.5b")                      # the alias below
parse("unsloth/Qwen3-0.6B-GGUF:Q8_0")
parse("https://huggingface.co/o/r/blob/main/m-Q4_0.gguf")
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from edge.errors import HubError
from edge.model.shards import place, stem

DEFAULT_QUANT = "Q4_K_M"
FALLBACK_QUANTS = ("Q4_K_S", "Q4_0", "IQ4_XS", "Q5_K_M", "Q8_0")  # where nothing was asked for and Q4_K_M is not there
KEEPERS = ("ollama", "lmstudio", "llama.cpp")  # other programs that keep models; their names begin so
HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")

_OWNER_OR_REPO = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPO_ID = re.compile(rf"{_OWNER_OR_REPO}/{_OWNER_OR_REPO}")
_NAME = re.compile(rf"(?P<repo>{_OWNER_OR_REPO}/{_OWNER_OR_REPO})(?:[:@](?P<quant>[A-Za-z0-9_.-]{{1,40}}))?")
_TAGGED = re.compile(r"[a-z0-9][a-z0-9._-]*:[a-z0-9][a-z0-9._-]*", re.I)  # what Ollama calls its models
_QUANT = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|F16|F32|BF16|MXFP4(?:_MOE)?|TQ\d_\d))(?=[-._/]|$)", re.I
)


@dataclass(frozen=True)
class ModelName:
    """A model on the hub: the repository, and which of its files: by type, by name, or None for the usual one."""

    repo_id: str
    quant: str | None = None
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return (
            f"{self.repo_id}:{self.quant}"
            if self.quant
            else f"{self.repo_id}/{self.file}"
            if self.file
            else self.repo_id
        )


@dataclass(frozen=True)
class Alias:
    """A short name for a well-known model. Bytes are those of its Q4_K_M file, about; memory is with 4,096 tokens."""

    repo_id: str
    licence: str
    n_file_bytes: int
    n_memory_bytes: int


# Memory: the file, the f16 KV cache of 4,096 tokens, and 200 MB for buffers and the vocabulary.
ALIASES = {
    "deepseek-r1:1.5b": Alias("unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF", "mit", 1_120_000_000, 1_440_000_000),
    "deepseek-r1:7b": Alias("unsloth/DeepSeek-R1-Distill-Qwen-7B-GGUF", "mit", 4_680_000_000, 5_120_000_000),
    "llama3.2:1b": Alias("bartowski/Llama-3.2-1B-Instruct-GGUF", "llama3.2", 810_000_000, 1_150_000_000),
    "llama3.2:3b": Alias("bartowski/Llama-3.2-3B-Instruct-GGUF", "llama3.2", 2_020_000_000, 2_690_000_000),
    "qwen2.5:0.5b": Alias("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "apache-2.0", 490_000_000, 740_000_000),
    "qwen2.5:1.5b": Alias("Qwen/Qwen2.5-1.5B-Instruct-GGUF", "apache-2.0", 1_120_000_000, 1_440_000_000),
    "qwen3:0.6b": Alias("unsloth/Qwen3-0.6B-GGUF", "apache-2.0", 400_000_000, 1_070_000_000),
    "qwen3:1.7b": Alias("unsloth/Qwen3-1.7B-GGUF", "apache-2.0", 1_110_000_000, 1_780_000_000),
    "qwen3:4b": Alias("unsloth/Qwen3-4B-GGUF", "apache-2.0", 2_500_000_000, 3_300_000_000),
}


def parse(text: str) -> ModelName | None:
    """The model on the hub that `text` names; None if it has the form of a path or of nothing we know.

    Raises HubError for an address that leads elsewhere.
    """
    if alias := ALIASES.get(text.lower()):
        return ModelName(alias.repo_id)
    if text.startswith("hf://"):
        text = text.removeprefix("hf://").removeprefix("models/")
    elif "://" in text:
        return _parse_url(text)
    elif text.split("/", 1)[0].lower() in HOSTS:
        return _parse_url(f"https://{text}")
    file = None
    if text.count("/") > 1:  # OWNER/REPO/FILE.gguf
        owner, repo, file = text.split("/", 2)
        text = f"{owner}/{repo}"
    found = _NAME.fullmatch(text)
    if found is None or (file is not None and (found["quant"] or not is_plain(file) or not file.endswith(".gguf"))):
        return None
    if file is None and text.lower().endswith(".gguf"):  # models/tiny.gguf: a path, there or not
        return None
    return ModelName(found["repo"], _spelled(found["quant"]), file)


def is_name(text: str) -> bool:
    """Whether a word has the form of a model's name, and not of a path or of a prompt."""
    if text.startswith(("hf://", "https://", "http://", *(f"{keeper}:" for keeper in KEEPERS))):
        return True
    return _TAGGED.fullmatch(text) is not None or parse(text) is not None


def is_plain(name: str) -> bool:
    """Whether a file name from the hub is a relative path that stays in its folder, here and on every system."""
    parts = name.split("/")
    return (
        len(name) <= 512
        and name.isprintable()
        and "\\" not in name
        and ":" not in name
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    )


def quant_of(name: str) -> str | None:
    """The type in a file's name, such as Q4_K_M; the last one where there are several."""
    found = _QUANT.findall(stem(name))
    return _spelled(found[-1]) if found else None


def choose(names: Iterable[str], wanted: ModelName) -> list[str]:
    """The files of the one model among `names` that is wanted, its parts in order. Raises HubError if it is not one."""
    models: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        if is_model(name):
            models[stem(name)].append(name)
    whole = {key: parts for key, parts in models.items() if _has_all_parts(parts)}
    shown = ", ".join(sorted({quant_of(key) or key for key in whole})[:20])
    if wanted.file is not None:
        if wanted.file in models[stem(wanted.file)]:
            return models[stem(wanted.file)]
        raise HubError(str(wanted), "has no such file", f"choose one of: {shown or 'another repository'}")
    if not whole:
        raise HubError(str(wanted), "holds no GGUF file", f"convert it: edge convert {wanted.repo_id}")
    if wanted.quant:
        found = [key for key in whole if quant_of(key) == wanted.quant]
    else:
        found = list(whole) if len(whole) == 1 else []
        for quant in (DEFAULT_QUANT, *FALLBACK_QUANTS):
            found = found or [key for key in whole if quant_of(key) == quant]
    if not found:
        what = f"has no {wanted.quant}" if wanted.quant else "holds several models"
        raise HubError(str(wanted), what, f"choose one of: {shown}")
    if len(found) > 1:
        remedy = f"name the file, such as {wanted.repo_id}/{whole[found[0]][0]}"
        raise HubError(str(wanted), f"holds {len(found)} models of that type", remedy)
    return whole[found[0]]


def is_model(name: str) -> bool:
    """A GGUF that is a model and no vision encoder or importance matrix, which lie beside some."""
    base = name.rpartition("/")[2].lower()
    return base.endswith(".gguf") and not base.startswith("mmproj") and "imatrix" not in base


def _has_all_parts(parts: list[str]) -> bool:
    places = [place(name) for name in parts]
    if places == [None]:
        return True
    n = len(parts)
    return [found[1:] for found in places if found] == [(i + 1, n) for i in range(n)]


def _spelled(quant: str | None) -> str | None:
    return quant.upper() if quant else None


def _parse_url(text: str) -> ModelName:
    """https://huggingface.co/OWNER/REPO, with or without /blob/REVISION/FILE or /resolve/REVISION/FILE."""
    url = urlsplit(text)
    path, _, quant = unquote(url.path).strip("/").partition(":")
    owner, repo, *rest = [*path.split("/"), ""]
    plain = _NAME.fullmatch(f"{owner}/{repo}")
    if url.scheme not in ("https", "http") or (url.hostname or "").lower() not in _hosts() or plain is None:
        raise HubError(text, "is no address of a model on the hub", f"name it as OWNER/REPO or {HOSTS[0]}/OWNER/REPO")
    file = revision = None
    if rest[:1] in (["blob"], ["resolve"]) and len(rest) > 3:
        revision, file = rest[1], "/".join(rest[2:-1])
    if file is not None and not (is_plain(file) and file.endswith(".gguf")):
        raise HubError(text, "names no GGUF file", "name a .gguf file, or the repository")
    return ModelName(f"{owner}/{repo}", _spelled(quant) if not file else None, file, revision)


def _hosts() -> set[str]:
    """The hub's own names, and the host of the endpoint in use."""
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname
    return {*HOSTS, *([endpoint.lower()] if endpoint else [])}
