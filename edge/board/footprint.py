"""How many bytes the engine will take, by part, from a model's header alone. Reserves nothing and loads nothing.

The sums follow what libllama reserves (llama-context.cpp, llama-kv-cache.cpp, ggml-cpu/repack.cpp); tests compare them
with what it says it reserved, benchmarks/plan_bench.py with the measured peak of the engine process.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from edge.config import EngineSettings
from edge.model.cursor import StoredArray
from edge.model.gguf import ModelInfo
from edge.model.header import TensorInfo

MIB = 1 << 20
KV_TYPE_BYTES = {"f16": 2.0, "q8_0": 34 / 32}
KV_PAD_TOKENS = 256  # a context is rounded up to this
# Pages of libraries (Python's, numpy's, llama.cpp's) in the engine process: 25 to 33 MiB, since the kernel maps more of
# a library at once where it was written to the disk a short while ago.
LIBRARY_BYTES = 31 * MIB
# Measured: those, Python's objects and the libraries' buffers with a vocabulary of 1,024 tokens.
ENGINE_BYTES = LIBRARY_BYTES + 30 * MIB
# Of GPUs, measured with Vulkan on Mesa's software device:
BACKEND_BYTES = 9 * MIB  # a back end's own library, layers or not
PROGRAMS_BYTES = 80 * MIB  # compiled for the GPU; the first time, compiling takes up to 140 MB more
N_STREAMED = 2  # matrices of those layers on the GPU at a time: long prompts are computed there all the same
TOKEN_BYTES = 150  # a token in libllama's vocabulary: its text twice, score, attributes, a hash node
MERGE_BYTES = 165  # a merge of two tokens: both texts and a hash node
ROW_BYTES = 24  # token, position, places in K and V, of each row of a batch


@dataclass(frozen=True)
class Footprint:
    """Peak bytes of the engine process, and what lies on a GPU."""

    weights: int  # in memory; a map holds the same bytes as pages of the file
    repacked: int  # of the weights, those laid out anew for this CPU's fast kernels
    kv: int
    compute: int  # intermediate results of one micro-batch
    logits: int
    engine: int  # Python, libraries, vocabulary
    device: int  # on a GPU: its layers' weights and KV, and their intermediate results
    shares_memory: bool = False  # that GPU with the processor

    @property
    def total(self) -> int:
        """Of the engine process in the machine's memory. What is repacked is part of the weights."""
        on_host = self.weights + self.kv + self.compute + self.logits + self.engine
        return on_host + self.device if self.shares_memory else on_host

    def to_json(self) -> dict[str, int]:
        names = ("weights", "repacked", "kv", "compute", "logits", "engine", "device", "total")
        return {f"{name}_bytes": getattr(self, name) for name in names}


def footprint(
    info: ModelInfo,
    settings: EngineSettings,
    features: Collection[str],
    *,
    shares_memory: bool = False,
    driver_bytes: int = 0,
) -> Footprint:
    """Predict what an engine with these settings takes. features: the CPU's, in llama.cpp's words; shares_memory: the
    GPU with the processor; driver_bytes: what drivers of GPUs take where no layer lies on one."""
    n_ctx = -(-settings.n_ctx_tokens // KV_PAD_TOKENS) * KV_PAD_TOKENS
    n_sequences = settings.n_slots + 1  # the scheduler keeps a spare one
    n_rows = min(n_ctx, settings.n_ubatch_tokens)
    n_rows = -(-n_rows // n_sequences) * n_sequences
    on_device = device_layers(info, settings.n_gpu_layers)
    is_laid_out = settings.load_mode == "read" and not on_device  # a GPU's back end wants rows as they are

    weights = repacked = device = 0
    for tensor in info.tensors:
        if _layer(tensor, info) in on_device:
            device += tensor.n_bytes
            continue
        weights += tensor.n_bytes
        if is_laid_out and repacks(tensor, features):
            repacked += tensor.n_bytes
    if (tied := _tied_output(info)) is not None:
        if info.n_layers in on_device:  # the output layer: a copy goes there
            device += tied.n_bytes
        elif is_laid_out and repacks(tied, features, is_output=True):  # the table stays as it is, the matrix is a copy
            weights += tied.n_bytes
            repacked += tied.n_bytes

    kv_layer_bytes = [heads * (info.head_dim + info.head_dim_v) * KV_TYPE_BYTES[settings.kv_type] * n_ctx
                      for heads in heads_kv(info)]  # fmt: skip
    kv_device = sum(n_bytes for layer, n_bytes in enumerate(kv_layer_bytes) if layer in on_device)
    logit_bytes = 4 * info.n_vocab * n_sequences
    row_bytes = _row_bytes(info, n_ctx, settings.flash_attention)
    gpu_bytes = BACKEND_BYTES + driver_bytes if driver_bytes else 0
    if on_device:
        gpu_bytes += PROGRAMS_BYTES
        compute = n_rows * _host_row_bytes(info, n_ctx, settings.flash_attention)
        device += max(n_rows * (row_bytes - 8 * info.n_embd), logit_bytes)
        if len(on_device) <= info.n_layers:
            device += N_STREAMED * _largest_matrix(info, on_device) + round(max(kv_layer_bytes))
    else:
        compute = max(n_rows * row_bytes, logit_bytes) + _work_bytes(info, n_rows)
    return Footprint(
        weights=weights,
        repacked=repacked,
        kv=round(sum(kv_layer_bytes) - kv_device),
        compute=compute,
        logits=logit_bytes,
        engine=ENGINE_BYTES + gpu_bytes + info.n_vocab * TOKEN_BYTES + _n_merges(info) * MERGE_BYTES,
        device=round(device + kv_device),
        shares_memory=shares_memory,
    )


def device_layers(info: ModelInfo, n_gpu_layers: int) -> range:
    """The layers on a GPU: the last ones; number n_layers is the output layer."""
    return range(max(0, info.n_layers + 1 - n_gpu_layers), info.n_layers + 1)


def heads_kv(info: ModelInfo) -> list[int]:
    """Heads for K and V of each layer."""
    value: Any = info.key("attention.head_count_kv")
    if value is None:
        value = info.key("attention.head_count") or 0
    return [int(n) for n in value] if isinstance(value, tuple) else [int(value)] * info.n_layers


def repacks(tensor: TensorInfo, features: Collection[str], *, is_output: bool = False) -> bool:
    """Does the CPU back end lay this matrix out anew? As ggml-cpu/repack.cpp decides, by type, rows and features."""
    is_matrix = len([n for n in tensor.shape if n > 1]) == 2 or "_exps." in tensor.name
    if not is_matrix or not tensor.name.endswith(".weight") or ("_embd." in tensor.name and not is_output):
        return False
    avx2, arm = "AVX2" in features, "DOTPROD" in features or "MATMUL_INT8" in features
    by_8, by_4 = tensor.shape[1] % 8 == 0, tensor.shape[1] % 4 == 0
    match tensor.type_name:
        case "Q4_0":
            return (avx2 and by_8) or (arm and by_4)
        case "Q4_K":
            return (avx2 or arm) and by_8
        case "IQ4_NL" | "MXFP4":
            return (avx2 and by_8) or ("DOTPROD" in features and by_4)
        case "Q5_K" | "Q6_K":
            return arm and by_8
        case "Q8_0":
            return arm and by_4
        case "Q2_K":
            return "AVX512" in features and by_8
    return False


def _largest_matrix(info: ModelInfo, on_device: range) -> int:
    """Bytes of the largest matrix of the layers that are not on a GPU."""
    return max(
        (t.n_bytes for t in info.tensors if (layer := _layer(t, info)) is not None and layer not in on_device),
        default=0,
    )


def _layer(tensor: TensorInfo, info: ModelInfo) -> int | None:
    """The layer a tensor belongs to; n_layers for the output layer, None for what stays in memory (the input)."""
    if tensor.name.startswith("blk."):
        number = tensor.name.split(".")[1]
        return int(number) if number.isdigit() else None
    return info.n_layers if tensor.name.startswith("output") else None


def _tied_output(info: ModelInfo) -> TensorInfo | None:
    """The embedding table, where it is the output matrix as well."""
    by_name = {tensor.name: tensor for tensor in info.tensors}
    return None if "output.weight" in by_name else by_name.get("token_embd.weight")


def _row_bytes(info: ModelInfo, n_ctx: int, flash_attention: bool | None) -> int:
    """Intermediate results for one row, at the widest place of a layer: the feed-forward part, or attention.

    Feed-forward holds gate, up and their product, and four vectors of the model's width. Attention holds Q, K and V
    before and after rotation; without flash attention also a score for each head and token of the context.
    """
    q, kv = info.n_heads * info.head_dim, info.n_heads_kv * max(info.head_dim, info.head_dim_v)
    attention = 2 * info.n_embd + 3 * q + 3 * kv
    widest = max(_feed_forward(info), attention)
    if flash_attention is False:
        return ROW_BYTES + max(4 * widest + 2 * n_ctx, 4 * (attention + n_ctx * (info.n_heads + 1)))
    return ROW_BYTES + 4 * widest + 2 * n_ctx  # the mask, in f16


def _host_row_bytes(info: ModelInfo, n_ctx: int, flash_attention: bool | None) -> int:
    """Of one row in the machine's memory where a GPU computes: the token's embedding twice, and the mask."""
    if flash_attention is False:
        return ROW_BYTES + 12 * info.n_embd + 4 * n_ctx
    return ROW_BYTES + 8 * info.n_embd + 2 * n_ctx


def _feed_forward(info: ModelInfo) -> int:
    """Values of one row; with experts, two for each place in those it uses, and for each of their results."""
    dense = 3 * _dense_width(info) + 4 * info.n_embd
    n_used, width = _experts(info)
    return max(dense, 2 * n_used * (width + info.n_embd)) if n_used else dense


def _dense_width(info: ModelInfo) -> int:
    widths = info.key("feed_forward_length")
    return max((int(n) for n in widths), default=0) if isinstance(widths, tuple) else _whole(widths)


def _experts(info: ModelInfo) -> tuple[int, int]:
    """How many experts a row uses, and how wide they are."""
    return _whole(info.key("expert_used_count")), _whole(info.key("expert_feed_forward_length")) or _dense_width(info)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _work_bytes(info: ModelInfo, n_rows: int) -> int:
    """Rows quantised for the product with a matrix: one byte a value, and a scale for each 32."""
    n_used, width = _experts(info)
    return n_rows * max(_dense_width(info), n_used * width, info.n_embd) * 9 // 8


def _n_merges(info: ModelInfo) -> int:
    merges = info.metadata.get("tokenizer.ggml.merges")
    return merges.count if isinstance(merges, StoredArray) else len(merges) if isinstance(merges, tuple) else 0
