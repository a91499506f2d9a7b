"""What is published of a folder of GGUF files: the files, proven by their manifests, and the model card. No network.

A file without a manifest is not published, because nobody could tell what it was made of; nor is one without a licence,
because nobody could tell what may be done with it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.manifest import manifest_path
from edge import __version__
from edge.errors import ModelFileError, OutputError
from edge.model.gguf import read_model_info
from edge.model.names import is_model

N_JSON_BYTES_MAX = 1 << 20
N_READ_BYTES = 1 << 22
# what the hub knows by these names; any other licence is "other" with its name beside
LICENCES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
    "cc-by-sa-4.0", "cc0-1.0", "gemma", "gpl-3.0", "lgpl-3.0", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3",
    "llama4", "mit", "mpl-2.0", "openrail", "unlicense",
}  # fmt: skip
REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
BESIDE = re.compile(r"LICEN[CS]E.*|NOTICE.*|.*\.passport\.(md|json|png|svg)|.*imatrix.*\.gguf", re.I)


@dataclass(frozen=True)
class Made:
    """One GGUF file and what its manifest says of it. quality: its line in a passport, if there is one."""

    path: Path
    manifest: Mapping[str, Any]
    quality: Mapping[str, Any] | None

    @property
    def type(self) -> str:
        return str(self.manifest["type"])

    @property
    def n_bytes(self) -> int:
        return int(self.manifest["file"]["n_bytes"])

    @property
    def sha256(self) -> str:
        return str(self.manifest["file"]["sha256"])


@dataclass(frozen=True)
class Publication:
    """What goes to the hub: the files by their name there, and the card."""

    base_model: str
    licence: str
    models: tuple[Made, ...]
    files: Mapping[str, Path]
    revision: str | None

    def card(self, repo_id: str) -> str:
        """README.md for the repository. The hub reads its head, people the rest."""
        known = self.licence.lower() in LICENCES
        licence = [f"license: {self.licence.lower()}"] if known else ["license: other", f"license_name: {self.licence}"]
        name = repo_id.split("/")[1]
        first = next((made for made in self.models if made.type == "Q4_K_M"), self.models[0]).type
        origin = f"[{self.base_model}](https://huggingface.co/{self.base_model})"
        at = f" at revision `{self.revision[:12]}`" if self.revision else ""
        passports = sorted(file for file in self.files if file.endswith(".passport.md"))
        return "\n".join(
            [
                "---",
                *licence,
                f"base_model: {self.base_model}",
                "base_model_relation: quantized",
                "library_name: gguf",
                "pipeline_tag: text-generation",
                "tags:",
                "- gguf",
                "- edge",
                "---",
                "",
                f"# {name}",
                "",
                f"GGUF files of {origin}{at}, made with edge {__version__}. The licence is that of the original.",
                "",
                *self._table(),
                "",
                *(
                    ["How this was measured: " + ", ".join(f"[{file}]({file})" for file in passports), ""]
                    if passports
                    else []
                ),
                "## Run it",
                "",
                "```",
                f"edge chat {repo_id}:{first}",
                f"llama-cli -hf {repo_id}:{first}",
                f"ollama run hf.co/{repo_id}:{first}",
                "```",
                "",
                "## SHA-256",
                "",
                *(f"- `{made.path.name}` `{made.sha256}`" for made in self.models),
                "",
                "Beside each file lies its manifest, `FILE.json`: what it was made of, and with which tools.",
                "",
            ]
        )

    def _table(self) -> list[str]:
        """A line per file; the columns of quality only where somebody measured."""
        is_measured = any(made.quality for made in self.models)
        head = [
            "type",
            "file",
            "MB",
            "bits/weight",
            *(["perplexity", "KL divergence", "same favourite"] if is_measured else []),
        ]
        rows = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
        for made in sorted(self.models, key=lambda made: -made.n_bytes):
            name = made.path.name
            row = [
                made.type,
                f"[{name}]({name})",
                f"{made.n_bytes / 1e6:,.0f}",
                f"{_number(made.manifest, 'bits_per_weight'):.2f}",
            ]
            if is_measured:
                row += _measured(made.quality)
            rows.append(row)
        return ["| " + " | ".join(row) + " |" for row in rows]


def collect(
    folder: Path,
    *,
    base_model: str | None = None,
    licence: str | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Publication:
    """What a folder holds, proven: each GGUF is read again and has the SHA-256 of its manifest. Raises EdgeError."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise OutputError(folder, f"cannot be read ({error.strerror})", "name a folder of GGUF files") from error
    paths = [folder / name for name in names if is_model(name)]
    if not paths:
        raise OutputError(folder, "holds no GGUF file", "make some with edge convert --out")
    measured = _measurements(folder, names)
    models = tuple(Made(path, _proven(path, on_bytes), measured.get(path.name)) for path in paths)
    # where they come from
    sources = [made.manifest.get("source") for made in models]
    origins = [source if isinstance(source, dict) else {} for source in sources]
    if len({origin.get("name") for origin in origins}) > 1:
        raise OutputError(folder, "holds files of several models", "publish each model from a folder of its own")
    base_model = base_model or _told(origins, "repo_id")
    licence = licence or _told(origins, "licence") or read_model_info(paths[0]).license
    if not licence or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,60}", licence):
        raise OutputError(folder, "names no licence", "look it up at the original model and give it with --licence")
    if not base_model or not REPO_ID.fullmatch(base_model):
        raise OutputError(folder, "does not tell its original model", "give it with --base-model OWNER/REPO")
    chosen = [*(made.path for made in models), *(manifest_path(made.path) for made in models)]
    files = {path.name: path for path in [*chosen, *(folder / name for name in names if BESIDE.fullmatch(name))]}
    return Publication(base_model, licence, models, files, _told(origins, "revision"))


def _proven(path: Path, on_bytes: Callable[[int], None]) -> dict[str, Any]:
    """The manifest of a file that is what its manifest says."""
    beside = manifest_path(path)
    if not beside.exists():
        raise ModelFileError(path, "has no manifest", f"make {path.name} with edge convert, which writes {beside.name}")
    found = _json(beside)
    file = found.get("file")
    expected = (file.get("name"), file.get("n_bytes"), file.get("sha256")) if isinstance(file, dict) else ()
    read_model_info(path)
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while data := opened.read(N_READ_BYTES):
            digest.update(data)
            on_bytes(len(data))
    if expected != (path.name, path.stat().st_size, digest.hexdigest()) or not isinstance(found.get("type"), str):
        raise ModelFileError(path, f"is not the file that {beside.name} describes", "convert it again")
    return found


def _measurements(folder: Path, names: list[str]) -> dict[str, Mapping[str, Any]]:
    """The lines of all passports in a folder, by file name."""
    found: dict[str, Mapping[str, Any]] = {}
    for name in names:
        entries = _json(folder / name).get("files") if name.endswith(".passport.json") else None
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("quality"), dict):
                found[str(entry.get("file"))] = entry["quality"]
    return found


def _measured(quality: Mapping[str, Any] | None) -> list[str]:
    def told(key: str, form: str) -> str:
        value = (quality or {}).get(key)
        value = value.get("value") if isinstance(value, dict) else value
        return format(value, form) if isinstance(value, int | float) else "–"

    return [told("perplexity", ".4g"), told("kld", ".3g"), told("same_top", ".2%")]


def _number(document: Mapping[str, Any], key: str) -> float:
    value = document.get(key)
    return value if isinstance(value, int | float) else 0.0


def _told(origins: list[dict[str, Any]], key: str) -> str | None:
    """What all of them say, if they agree."""
    found = {origin.get(key) for origin in origins}
    value = found.pop() if len(found) == 1 else None
    return value if isinstance(value, str) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(N_JSON_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelFileError(path, "is no JSON object", "convert the model again")
    return found
