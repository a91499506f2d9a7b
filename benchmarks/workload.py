"""What is measured: one model file, a prompt, a generation, how often. Knows nothing of clocks or processes."""

from dataclasses import dataclass

from edge.config import KvType, LoadMode


@dataclass(frozen=True)
class Workload:
    """One measurement in one fresh process. Prompt and generation are timed apart, each on an empty context."""

    model: str  # path of the GGUF file
    n_prompt_tokens: int = 512
    n_generated_tokens: int = 128
    n_repetitions: int = 5
    n_warmups: int = 1
    n_threads: int | None = None  # None: one per core of the fast cluster
    n_ubatch_tokens: int = 512  # llama-bench's own, so that the numbers compare
    load_mode: LoadMode = "read"
    kv_type: KvType = "f16"
    flash_attention: bool | None = None
    n_gpu_layers: int = 0
    seed: int = 0  # of the random token ids; their values do not change the work
