"""The truth outside us: libllama itself, in a process of its own, because it may abort."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_QUANTIZE = """
import ctypes, json, sys, llama_cpp
job = json.load(sys.stdin)
wishes = job["wishes"]
tensor_types = [(name.encode(), kind) for name, kind in wishes.get("tensor_types", [])] + [(None, 0)]
overrides = (llama_cpp.llama_model_tensor_override * len(tensor_types))(*tensor_types)
importance = wishes.get("importance", {})
columns = [(ctypes.c_float * len(values))(*values) for values in importance.values()]
entries = (llama_cpp.llama_model_imatrix_data * (len(columns) + 1))()
for entry, name, values in zip(entries, importance, columns):
    entry.name, entry.data, entry.size = name.encode(), values, len(values)
for path, file_type in job["targets"].items():
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    for name in ("output_tensor_type", "token_embedding_type", "pure"):
        if name in wishes:
            setattr(params, name, wishes[name])
    if "tensor_types" in wishes:
        params.tt_overrides = overrides
    if importance:
        params.imatrix = entries
    code = llama_cpp.llama_model_quantize(job["source"].encode(), path.encode(), ctypes.byref(params))
    assert code == 0, path
"""

_TOKENIZE = """
import json, sys, llama_cpp
job = json.load(sys.stdin)
model = llama_cpp.Llama(job["path"], vocab_only=True, verbose=False)
ids = [model.tokenize(text.encode(), add_bos=bos, special=special) for text, bos, special in job["texts"]]
json.dump(ids, sys.stdout)
"""

_LOGITS = """
import json, sys, llama_cpp
job = json.load(sys.stdin)
model = llama_cpp.Llama(job["path"], n_ctx=64, logits_all=True, n_threads=1, verbose=False)
model.eval(job["tokens"])
json.dump(model.scores[: len(job["tokens"])].tolist(), sys.stdout)
"""


def quantize(source: Path, targets: Mapping[Path, int], **wishes: Any) -> None:
    """What llama_model_quantize makes of a GGUF, for each target its file type."""
    job = {"source": str(source), "targets": {str(path): int(kind) for path, kind in targets.items()}, "wishes": wishes}
    _run(_QUANTIZE, job)


def logits(path: Path, tokens: Sequence[int]) -> list[list[float]]:
    """What libllama says after each token, (n_tokens, n_vocab)."""
    found: list[list[float]] = json.loads(_run(_LOGITS, {"path": str(path), "tokens": list(tokens)}))
    return found


@dataclass(frozen=True)
class Text:
    """What to tokenize, and how."""

    text: str
    add_bos: bool = False
    special: bool = False


def tokenize(path: Path, texts: Sequence[Text]) -> list[list[int]]:
    """The ids of each text, by llama.cpp's tokenizer on the vocabulary in a GGUF."""
    job = {"path": str(path), "texts": [(text.text, text.add_bos, text.special) for text in texts]}
    ids: list[list[int]] = json.loads(_run(_TOKENIZE, job))
    return ids


def _run(script: str, job: object) -> str:
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(job), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
