"""Watches a model compute: each weight of a block, and the rows that it is multiplied with."""

import ctypes
from collections.abc import Callable
from typing import Any, ClassVar, Final

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from edge.engine.library import open_ggml
from edge.errors import EngineError

Watch = Callable[[str, NDArray[np.float32]], None]  # a weight's name, and the rows (n_tokens, n_columns) it meets


class _Tensor(ctypes.Structure):
    """struct ggml_tensor, as far as a watcher of the computation reads it; its size is compared."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    ]


class Watcher:
    """Shows each weight of a block, and what it is multiplied with, to `watch` while the model computes."""

    N_ROWS_MIN: Final = 16  # llama-imatrix leaves smaller ones out: they are the ends of a text
    F32: Final = 0

    def __init__(self, watch: Watch) -> None:
        self.error: BaseException | None = None  # of the watcher; C cannot carry it
        self._watch = watch
        self._base = base = open_ggml("ggml-base")
        base.ggml_op_name.restype, base.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
        base.ggml_tensor_overhead.restype = ctypes.c_size_t
        base.ggml_backend_buffer_is_host.restype = ctypes.c_bool
        base.ggml_backend_buffer_is_host.argtypes = [ctypes.c_void_p]
        base.ggml_backend_tensor_get.restype = None
        base.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        n_object_bytes = 32  # GGML_OBJECT_SIZE
        assert ctypes.sizeof(_Tensor) == base.ggml_tensor_overhead() - n_object_bytes, "ggml_tensor has changed"
        ops = {base.ggml_op_name(i): i for i in range(64)}
        self._multiply, self._multiply_expert = ops[b"MUL_MAT"], ops[b"MUL_MAT_ID"]
        self.callback = lib.ggml_backend_sched_eval_callback(self._see)

    def _see(self, address: int, ask: bool, _data: object) -> bool:
        """Twice for each step of the graph: whether we want to see it, and then what it is."""
        try:
            return self._wants(address) if ask else self._show(address)
        except BaseException as error:  # noqa: BLE001 - nothing may leave through C
            self.error = self.error or error
            return False

    def _wants(self, address: int) -> bool:
        node = _Tensor.from_address(address)
        if node.op == self._multiply_expert:
            raise EngineError("mixtures of experts cannot be watched", "choose a model without experts")
        if node.op != self._multiply:
            return False
        rows = _Tensor.from_address(node.src[1])
        return bool(self._name(node).startswith("blk.") and rows.ne[1] >= self.N_ROWS_MIN and rows.type == self.F32)

    def _show(self, address: int) -> bool:
        node = _Tensor.from_address(address)
        self._watch(self._name(node), self._values(node.src[1]))
        return True

    @staticmethod
    def _name(node: _Tensor) -> str:
        """blk.0.attn_k.weight; on a GPU it may be called CUDA0#blk.0.attn_k.weight#0."""
        name: str = _Tensor.from_address(node.src[0]).name.decode("utf-8", "replace")
        return name.split("#")[1] if "#" in name else name

    def _values(self, address: int) -> NDArray[np.float32]:
        tensor = _Tensor.from_address(address)
        n_columns, *counts = tensor.ne
        n_bytes = 4 * n_columns + sum((n - 1) * step for n, step in zip(counts, tensor.nb[1:], strict=True))
        memory = ctypes.c_char * n_bytes
        if self._base.ggml_backend_buffer_is_host(tensor.buffer):
            found = memory.from_address(tensor.data)
        else:
            found = memory()
            self._base.ggml_backend_tensor_get(address, found, 0, n_bytes)
        shape, strides = (*counts[::-1], n_columns), (*list(tensor.nb)[:0:-1], 4)
        rows: NDArray[np.float32] = np.ndarray(shape, np.float32, found, strides=strides).reshape(-1, n_columns)
        return rows
