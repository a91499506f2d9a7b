"""The door to llama.cpp: one loaded model, one context, tokens in, tokens out. The only file in edge/ that imports it.

Knows nothing of requests, chat roles or processes. Everything here may abort the process it runs in (libllama ends on
many inputs that look harmless), so only the engine process and a measuring child import it. What a caller may pass is
checked here once: token ids, positions and batch widths that libllama would abort on are assertions.
"""

import ctypes
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from edge.config import KvType, LoadMode, Sampling
from edge.errors import EngineError, ModelFileError
from edge.model import shards

DEVICE_KINDS: Final = {1: "gpu", 2: "igpu", 3: "accelerator"}  # enum ggml_backend_dev_type
MAX_SEQUENCES: Final = 64  # libllama aborts at 256
_GROUP: Final = 64  # values whose maximum is looked at first
KV_TYPES: Final[dict[KvType, int]] = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0}

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


def open_ggml(name: str) -> ctypes.CDLL:
    """One of the ggml libraries that libllama itself uses; the unversioned name would load a second copy."""
    folder = Path(lib.__file__).parent / "lib"
    file = f"lib{name}.0.dylib" if sys.platform == "darwin" else f"lib{name}.so.0"
    return ctypes.CDLL(str(folder / file))


def system_info() -> str:
    """What the library was built with: CPU features and back ends."""
    return str(lib.llama_print_system_info().decode())


def largest(values: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Where the k largest of values (n,) are, in no order.

    A group's maximum bounds its members, so the k best groups hold the k best values: of 152k logits 40 are found in a
    fifth of the time that a heap over all of them takes.
    """
    n, n_groups = len(values), len(values) // _GROUP
    if k >= n_groups:
        return np.argpartition(values, n - k)[n - k :] if k < n else np.arange(n)
    grouped = values[: n_groups * _GROUP].reshape(_GROUP, n_groups)  # member i of group j is value i * n_groups + j
    groups = np.argpartition(grouped.max(axis=0), n_groups - k)[n_groups - k :]
    members = (groups + np.arange(0, n_groups * _GROUP, n_groups)[:, None]).ravel()
    members = np.concatenate([members, np.arange(n_groups * _GROUP, n)])
    return members[np.argpartition(values[members], len(members) - k)[len(members) - k :]]


def devices() -> list[dict[str, Any]]:
    """What the library can compute on besides the CPU: name, description, kind, free_bytes, total_bytes."""
    ggml, base = open_ggml("ggml"), open_ggml("ggml-base")
    lib.llama_backend_init()
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes, ggml.ggml_backend_dev_get.restype = [ctypes.c_size_t], ctypes.c_void_p
    for name in ("name", "description"):
        function = getattr(base, f"ggml_backend_dev_{name}")
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
    base.ggml_backend_dev_type.argtypes, base.ggml_backend_dev_type.restype = [ctypes.c_void_p], ctypes.c_int
    pointer = ctypes.POINTER(ctypes.c_size_t)
    base.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, pointer, pointer]
    found = []
    for i in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(i)
        if (kind := base.ggml_backend_dev_type(device)) == 0:  # the CPU itself
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(
            {
                "name": base.ggml_backend_dev_name(device).decode("utf-8", "replace"),
                "description": base.ggml_backend_dev_description(device).decode("utf-8", "replace"),
                "kind": DEVICE_KINDS.get(kind, "other"),
                "free_bytes": free.value,
                "total_bytes": total.value,
            }
        )
    return found


class Sampler:
    """A chain of samplers in C. Where only the likeliest tokens can be chosen, it never sees the others."""

    _CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data

    def __init__(self, settings: Sampling, n_vocab: int, banned: Iterable[int] = ()) -> None:
        bias = [*settings.logit_bias, *((token, float("-inf")) for token in banned)]
        assert all(0 <= token < n_vocab for token, _ in bias)
        self._biased = np.array([token for token, _ in bias], np.intp)
        self._bias = np.array([added for _, added in bias], np.float32)
        penalties = (settings.repeat_penalty, settings.frequency_penalty, settings.presence_penalty)
        n_candidates = n_vocab
        if penalties == (1, 0, 0):  # else a token far down may come up
            n_candidates = 1 if settings.temperature <= 0 else min(settings.top_k or n_vocab, n_vocab)
        self._candidates = np.zeros(n_candidates, self._CANDIDATE)
        self._chain: Any = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for link in self._links(settings, n_vocab, penalties):
            lib.llama_sampler_chain_add(self._chain, link)

    @staticmethod
    def _links(settings: Sampling, n_vocab: int, penalties: tuple[float, float, float]) -> Iterator[Any]:
        """The samplers that settings ask for, in their order, behind the bias."""
        if penalties != (1, 0, 0):
            yield lib.llama_sampler_init_penalties(n_vocab, settings.n_penalized_tokens, *penalties)
        if settings.temperature <= 0:
            yield lib.llama_sampler_init_greedy()
            return
        if settings.top_k > 0:
            yield lib.llama_sampler_init_top_k(settings.top_k)
        if settings.typical_p < 1:
            yield lib.llama_sampler_init_typical(settings.typical_p, 1)
        if settings.top_p < 1:
            yield lib.llama_sampler_init_top_p(settings.top_p, 1)
        if settings.min_p > 0:
            yield lib.llama_sampler_init_min_p(settings.min_p, 1)
        yield lib.llama_sampler_init_temp(settings.temperature)
        seed = int.from_bytes(os.urandom(4), "little") if settings.seed is None else settings.seed
        yield lib.llama_sampler_init_dist(seed)

    def sample(self, logits: NDArray[np.float32]) -> int:
        """The next token by its logits (n_vocab,), which stay as they are; the chain takes note of it."""
        unbiased = logits[self._biased]
        logits[self._biased] += self._bias
        chosen = largest(logits, len(self._candidates))
        self._candidates["id"], self._candidates["logit"] = chosen, logits[chosen]
        logits[self._biased] = unbiased  # not a copy of them all: that costs more than the rest
        data = self._candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        array = lib.llama_token_data_array(data=data, size=len(chosen), selected=-1, sorted=False)
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        assert array.selected >= 0, "the last link of every chain selects"
        token = int(array.data[array.selected].id)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
            self._chain = None


class Batch:
    """The arrays of one decode call, made once and filled again for every step."""

    def __init__(self, n_tokens_max: int) -> None:
        self.n_tokens_max = n_tokens_max
        self.n_outputs = 0
        self.raw = lib.llama_batch_init(n_tokens_max, 0, 1)
        self.raw.n_tokens = 0

    def clear(self) -> None:
        self.raw.n_tokens = 0
        self.n_outputs = 0

    def __len__(self) -> int:
        return int(self.raw.n_tokens)

    @property
    def n_free(self) -> int:
        return self.n_tokens_max - len(self)

    def add(self, token: int, position: int, sequence: int, *, output: bool) -> int:
        """Add one token; returns its index in the batch, which is what `Llama.sample` takes."""
        i = len(self)
        assert i < self.n_tokens_max, "batch is full"
        assert 0 <= sequence < MAX_SEQUENCES
        raw = self.raw
        raw.token[i] = token
        raw.pos[i] = position
        raw.n_seq_id[i] = 1
        raw.seq_id[i][0] = sequence
        raw.logits[i] = output
        raw.n_tokens = i + 1
        self.n_outputs += output
        return i

    def close(self) -> None:
        if self.raw is not None:
            lib.llama_batch_free(self.raw)
            self.raw = None


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


Watch = Callable[[str, NDArray[np.float32]], None]  # a weight's name, and the rows (n_tokens, n_columns) it meets


class _Watcher:
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


@dataclass(frozen=True)
class Loading:
    """How a model is opened. See docs of EngineSettings for the choices."""

    n_ctx_tokens: int
    n_ubatch_tokens: int
    n_sequences: int
    n_outputs: int
    n_threads: int
    load_mode: LoadMode = "read"
    kv_type: KvType = "f16"
    flash_attention: bool | None = None
    n_gpu_layers: int = 0


class Llama:
    """One model and one context. One thread owns it. Sequences share one KV pool of n_ctx_tokens."""

    def __init__(
        self,
        path: Path,
        loading: Loading,
        progress: Callable[[float], None] | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Load path. progress gets the share done, 0 … 1; watch what each weight is multiplied with in `decode`.

        Raises ModelFileError, EngineError.
        """
        assert 1 <= loading.n_sequences <= MAX_SEQUENCES
        assert 1 <= loading.n_threads <= 512
        self._model: Any = None
        self._context: Any = None
        self._watcher = _Watcher(watch) if watch else None
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        # repacked weights go into a second buffer: with a memory map too, the model would be held twice
        is_mapped = loading.load_mode == "map"
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if is_mapped else lib.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = not is_mapped
        params.n_gpu_layers = loading.n_gpu_layers
        callback = lib.llama_progress_callback(lambda share, _: _report(progress, share))
        params.progress_callback = callback
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ModelFileError(path, f"cannot be loaded ({last_complaint()})", "convert or fetch the model again")
        self._vocab: Any = lib.llama_model_get_vocab(self._model)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        self._open_context(loading)
        self._pieces: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(1024)

    def _open_context(self, loading: Loading) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = loading.n_ctx_tokens
        params.n_batch = params.n_ubatch = min(loading.n_ubatch_tokens, loading.n_ctx_tokens)
        params.n_seq_max = loading.n_sequences
        # the default reserves logits for a whole batch: 300 MB with a vocabulary of 152k
        params.n_outputs_max = loading.n_outputs
        params.n_threads = params.n_threads_batch = loading.n_threads
        params.type_k = params.type_v = KV_TYPES[loading.kv_type]
        if loading.flash_attention is not None:
            params.flash_attn_type = int(loading.flash_attention)
        params.kv_unified = True
        params.no_perf = True
        if self._watcher:
            params.cb_eval = self._watcher.callback
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            complaint = last_complaint()
            self.close()
            raise EngineError(
                f"no context of {loading.n_ctx_tokens} tokens could be made ({complaint})",
                "try a smaller --ctx or free some memory",
            )
        self.n_ctx_tokens: int = lib.llama_n_ctx(self._context)
        self.n_batch_tokens: int = lib.llama_n_batch(self._context)
        self._memory: Any = lib.llama_get_memory(self._context)

    def reopen(self, loading: Loading) -> None:
        """A new, empty context for the same model. What it holds in memory and on a GPU stays as it was loaded."""
        lib.llama_free(self._context)
        self._context = None
        self._open_context(loading)

    # ---- vocabulary

    def tokenize(self, text: str, *, control: bool) -> list[int]:
        """Token ids of text. control: text such as <｜User｜> becomes its control token; without, it stays text."""
        if control:
            return self._tokenize(text, control=True)
        # the library reads "user defined" tokens (DeepSeek's <｜User｜> is one) in any text: cut them behind their head
        parts = self._user_defined.sub(lambda found: f"{found[0][0]}\0{found[0][1:]}", text.replace("\0", " "))
        return [token for part in parts.split("\0") for token in self._tokenize(part, control=False)]

    def tokenize_segments(self, segments: Sequence[tuple[str, bool]]) -> list[int]:
        """Token ids of a prompt in (text, is_template) pieces. Control tokens are read in template text only.

        What lies between two control tokens is tokenised as one text, as the model saw it in training.
        """
        tokens: list[int] = []
        plain = ""
        for text, is_template in segments:
            pieces = self._control.split(text) if is_template else [text]  # plain, control, plain, …
            for i, piece in enumerate(pieces):
                if i % 2 == 0:
                    plain += piece
                else:
                    tokens += self.tokenize(plain, control=False) + self._tokenize(piece, control=True)
                    plain = ""
        return tokens + self.tokenize(plain, control=False)

    def tokenize_document(self, text: str, *, control: bool) -> list[int]:
        """Token ids of a text as llama.cpp's own tools read a file: the model's BOS in front."""
        return self._tokenize(text, control=control, special=True)

    @property
    def chunk_start(self) -> int | None:
        """The token that every chunk of a text begins with, if the model wants one."""
        return int(lib.llama_vocab_bos(self._vocab)) if lib.llama_vocab_get_add_bos(self._vocab) else None

    def _tokenize(self, text: str, *, control: bool, special: bool = False) -> list[int]:
        data = text.encode("utf-8", "replace")
        n_max = len(data) + 8
        tokens = (lib.llama_token * n_max)()
        n = lib.llama_tokenize(self._vocab, data, len(data), tokens, n_max, special, control)
        assert 0 <= n <= n_max, "a token stands for at least one byte"
        return list(tokens[:n])

    @cached_property
    def _user_defined(self) -> re.Pattern[str]:
        """Matches the text of every user-defined token that is more than white space."""
        return self._any_of(lib.LLAMA_TOKEN_ATTR_USER_DEFINED, least=2)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Matches, as its one group, the text of every token that is read in template text only."""
        return self._any_of(lib.LLAMA_TOKEN_ATTR_USER_DEFINED | lib.LLAMA_TOKEN_ATTR_CONTROL, least=1)

    def _any_of(self, attributes: int, least: int) -> re.Pattern[str]:
        marked = (i for i in range(self.n_vocab) if lib.llama_vocab_get_attr(self._vocab, i) & attributes)
        texts = (self.piece(token).decode("utf-8", "replace") for token in marked)
        longest_first = sorted((text for text in texts if len(text.strip()) >= least), key=len, reverse=True)
        return re.compile("(" + ("|".join(map(re.escape, longest_first)) or r"(?!)") + ")")

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; control tokens are spelled out."""
        known = self._pieces.get(token)
        if known is not None:
            return known
        assert 0 <= token < self.n_vocab, token  # libllama aborts on others
        n = lib.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, True)
        if n < 0:
            self._buffer = ctypes.create_string_buffer(-n)
            n = lib.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, True)
        piece = self._pieces[token] = self._buffer.raw[:n]
        return piece

    def is_end(self, token: int) -> bool:
        """True for every token that ends a reply (end of text, end of turn)."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    def end_tokens(self) -> list[int]:
        return [token for token in range(self.n_vocab) if self.is_end(token)]

    def control_tokens(self) -> list[int]:
        """Tokens that are not text: control tokens, and user-defined ones in angle brackets such as <think>."""
        found = []
        for token in range(self.n_vocab):
            attribute = lib.llama_vocab_get_attr(self._vocab, token)
            if attribute & lib.LLAMA_TOKEN_ATTR_CONTROL or (
                attribute & lib.LLAMA_TOKEN_ATTR_USER_DEFINED and re.fullmatch(rb"<.+>", self.piece(token))
            ):
                found.append(token)
        return found

    # ---- decoding

    def new_batch(self) -> Batch:
        return Batch(self.n_batch_tokens)

    def new_sampler(self, settings: Sampling, banned: Iterable[int] = ()) -> Sampler:
        return Sampler(settings, self.n_vocab, banned)

    def decode(self, batch: Batch) -> int:
        """0 done; 1 no room in the KV cache, nothing changed; < 0 failed: -1 invalid, -2 out of memory, -3 compute."""
        assert 0 < len(batch) <= self.n_batch_tokens
        code = int(lib.llama_decode(self._context, batch.raw))
        if self._watcher and self._watcher.error:
            raise self._watcher.error
        return code

    def sample(self, sampler: Sampler, index: int) -> int:
        """The next token of the output at batch index; the sampler takes note of it."""
        return sampler.sample(self.logits(index))

    def logits(self, index: int) -> NDArray[np.float32]:
        """The logits (n_vocab,) of the output at batch index: a view, what is written there is what is sampled from."""
        pointer = lib.llama_get_logits_ith(self._context, index)
        assert pointer, "no logits there"
        return np.ctypeslib.as_array(pointer, (self.n_vocab,))

    def all_logits(self, batch: Batch) -> NDArray[np.float32]:
        """The logits (n_outputs, n_vocab) of every output of the batch just decoded, in its order: a view."""
        pointer = lib.llama_get_logits(self._context)  # waits for the computation
        assert pointer, "no logits there"
        logits: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (batch.n_outputs, self.n_vocab))
        return logits

    def wait(self) -> None:
        """Return when every queued computation is done (a GPU works behind our back)."""
        lib.llama_synchronize(self._context)

    # ---- KV memory

    def clear(self) -> None:
        lib.llama_memory_clear(self._memory, False)

    def remove(self, sequence: int, start: int = 0, end: int = -1) -> bool:
        """Drop positions [start, end) of a sequence; end -1 is its end."""
        return bool(lib.llama_memory_seq_rm(self._memory, sequence, start, end))

    def copy(self, source: int, target: int, end: int) -> None:
        """Let target share the first `end` positions of source; costs no memory in a shared pool."""
        lib.llama_memory_seq_cp(self._memory, source, target, 0, end)

    def save_sequence(self, sequence: int) -> bytes:
        """The KV state of a sequence, for load_sequence of the same model, library and settings."""
        n_bytes = lib.llama_state_seq_get_size(self._context, sequence)
        state = (ctypes.c_uint8 * n_bytes)()
        n_written = lib.llama_state_seq_get_data(self._context, state, n_bytes, sequence)
        return bytes(memoryview(state)[:n_written])

    def load_sequence(self, sequence: int, state: bytes) -> bool:
        """Put a saved state into an empty sequence; False if it does not fit. libllama aborts on a damaged one:
        give only what save_sequence made, whole."""
        data = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return bool(lib.llama_state_seq_set_data(self._context, data, len(state), sequence))

    def close(self) -> None:
        if self._context:
            lib.llama_free(self._context)
        if self._model:
            lib.llama_model_free(self._model)
        self._context = self._model = None


def _report(progress: Callable[[float], None] | None, share: float) -> bool:
    if progress is not None:
        progress(share)
    return True


def fingerprint(path: Path, loading: Loading) -> str:
    """Names what a saved state depends on: the model file, the library, the settings that shape the KV cache."""
    folder = Path(lib.__file__).parent / "lib"
    library = [(file.name, file.stat().st_size) for file in sorted(folder.iterdir())]
    digest = hashlib.sha256()
    for part in shards.siblings(path):
        with part.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, part.stat().st_size - (1 << 20)))
            digest.update(file.read())
    layout = (loading.n_sequences, loading.kv_type, loading.flash_attention, loading.n_gpu_layers)
    facts = repr((shards.n_bytes(path), library, layout, lib.llama_print_system_info()))
    digest.update(facts.encode())
    return digest.hexdigest()


def on_abort(report: Callable[[str], None]) -> Any:
    """Have ggml call report(reason) instead of printing a stack; the process ends after it. Keep what is returned."""
    base = open_ggml("ggml-base")
    callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda text: report((text or b"").decode("utf-8", "replace")))
    base.ggml_set_abort_callback.argtypes = [ctypes.c_void_p]
    base.ggml_set_abort_callback.restype = ctypes.c_void_p
    base.ggml_set_abort_callback(ctypes.cast(callback, ctypes.c_void_p))
    return callback
