"""The door to llama.cpp: one loaded model, one context, tokens in, tokens out.

Knows nothing of requests, chat roles or processes. Everything here may abort the process it runs in (libllama ends on
many inputs that look harmless), so only the engine process and a measuring child import it. What a caller may pass is
checked here once: token ids, positions and batch widths that libllama would abort on are assertions.
"""

import ctypes
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from edge.config import KvType, LoadMode, Sampling
from edge.engine.library import FOLDER, has_complained, last_complaint, system_info
from edge.engine.sampler import Sampler
from edge.engine.watcher import Watch, Watcher
from edge.errors import EngineError, ModelFileError
from edge.model import shards

MAX_SEQUENCES: Final = 64  # libllama aborts at 256
KV_TYPES: Final[dict[KvType, int]] = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0}


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
        self._watcher = Watcher(watch) if watch else None
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        # repacked weights go into a second buffer: with a memory map too, the model would be held twice
        is_mapped = loading.load_mode == "map"
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if is_mapped else lib.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = not is_mapped
        params.n_gpu_layers = loading.n_gpu_layers
        if loading.n_gpu_layers == 0:  # no device at all: else prompts are computed on it, in memory nobody planned
            params.split_mode, params.main_gpu = lib.LLAMA_SPLIT_MODE_NONE, -1
        callback = lib.llama_progress_callback(lambda share, _: _report(progress, share))
        params.progress_callback = callback
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            if loading.n_gpu_layers and has_complained("unable to allocate"):
                raise EngineError(
                    f"{loading.n_gpu_layers} layers do not fit into the GPU's memory",
                    "choose fewer with --gpu-layers or free some of it",
                )
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
    files = [(file.name, file.stat().st_size) for file in sorted(FOLDER.iterdir())]
    digest = hashlib.sha256()
    for part in shards.siblings(path):
        with part.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, part.stat().st_size - (1 << 20)))
            digest.update(file.read())
    layout = (loading.n_sequences, loading.kv_type, loading.flash_attention, loading.n_gpu_layers)
    digest.update(repr((shards.n_bytes(path), files, layout, system_info())).encode())
    return digest.hexdigest()
