"""llama.cpp as a library: what it says, what it can compute on, how it ends. Knows no model.

Importing this file loads libllama, which may end its process: only the engine process and measuring children do.
"""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

import llama_cpp.llama_cpp as lib

FOLDER: Final = Path(lib.__file__).parent / "lib"  # where the shared libraries lie
DEVICE_KINDS: Final = {1: "gpu", 2: "igpu", 3: "accelerator"}  # enum ggml_backend_dev_type

_log: list[str] = []  # the library's last complaints, for the text of an error


def _keep_log(level: int, text: bytes, _data: object) -> None:
    if level in (2, 3) and text:  # warning, error
        _log.append(text.decode("utf-8", "replace").strip())
        del _log[:-20]


_log_callback = lib.llama_log_callback(_keep_log)  # kept: the library calls it for as long as the process lives
lib.llama_log_set(_log_callback, ctypes.c_void_p(0))


def last_complaint() -> str:
    """The library's last error line, without its function name."""
    return _log[-1].rpartition(": ")[2] if _log else "no reason given"


def has_complained(words: str) -> bool:
    """Whether one of its last complaints holds these words."""
    return any(words in line for line in _log)


def open_ggml(name: str) -> ctypes.CDLL:
    """One of the ggml libraries that libllama itself uses; the unversioned name would load a second copy."""
    file = f"lib{name}.0.dylib" if sys.platform == "darwin" else f"lib{name}.so.0"
    return ctypes.CDLL(str(FOLDER / file))


def system_info() -> str:
    """What the library was built with: CPU features and back ends."""
    return str(lib.llama_print_system_info().decode())


class _Properties(ctypes.Structure):
    """struct ggml_backend_dev_props."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("free", ctypes.c_size_t),
        ("total", ctypes.c_size_t),
        ("kind", ctypes.c_int),
        ("address", ctypes.c_char_p),  # on a bus; None without one
        ("capabilities", ctypes.c_bool * 5),
    ]


def devices() -> list[dict[str, Any]]:
    """What the library can compute on besides the CPU: name, description, kind, free_bytes, total_bytes.

    A GPU without an address on a bus (Apple's, a driver that computes in software) is an igpu, whatever ggml calls it.
    """
    ggml, base = open_ggml("ggml"), open_ggml("ggml-base")
    lib.llama_backend_init()
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes, ggml.ggml_backend_dev_get.restype = [ctypes.c_size_t], ctypes.c_void_p
    base.ggml_backend_dev_name.argtypes, base.ggml_backend_dev_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    base.ggml_backend_dev_get_props.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Properties)]
    base.ggml_backend_dev_get_props.restype = None
    found = []
    for i in range(ggml.ggml_backend_dev_count()):
        device, said = ggml.ggml_backend_dev_get(i), _Properties()
        base.ggml_backend_dev_get_props(device, ctypes.byref(said))
        assert said.name == base.ggml_backend_dev_name(device), "ggml_backend_dev_props has changed"
        if said.kind == 0:  # the CPU itself
            continue
        kind = DEVICE_KINDS.get(said.kind, "other")
        found.append(
            {
                "name": said.name.decode("utf-8", "replace"),
                "description": said.description.decode("utf-8", "replace"),
                "kind": "igpu" if kind == "gpu" and not said.address else kind,
                "free_bytes": said.free,
                "total_bytes": said.total,
            }
        )
    return found


def on_abort(report: Callable[[str], None]) -> Any:
    """Have ggml call report(reason) instead of printing a stack; the process ends after it. Keep what is returned."""
    base = open_ggml("ggml-base")
    callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda text: report((text or b"").decode("utf-8", "replace")))
    base.ggml_set_abort_callback.argtypes = [ctypes.c_void_p]
    base.ggml_set_abort_callback.restype = ctypes.c_void_p
    base.ggml_set_abort_callback(ctypes.cast(callback, ctypes.c_void_p))
    return callback
