"""What is measured: so many prompt tokens, generated tokens, depth, streams. Knows nothing of clocks or processes.

Two views that are never mixed: "kernel" decodes random tokens and does nothing else, as llama-bench does; "end-to-end"
is what a person at a chat gets, through tokeniser, scheduler and sampler, on the client's clock.
"""

from dataclasses import dataclass, replace
from typing import Literal

View = Literal["kernel", "end-to-end"]
DEPTHS = (0, 1024, 3584)  # of a context of 4,096 tokens: empty, a page, nearly full
STREAMS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Workload:
    """One measurement in one fresh process. No prompt and no generation: the load of the model itself."""

    n_prompt_tokens: int = 0
    n_generated_tokens: int = 0  # of each stream
    n_depth_tokens: int = 0  # already in the KV cache when the clock starts
    n_streams: int = 1  # that generate at the same time
    view: View = "kernel"
    n_threads: int | None = None  # None: one per core of the fast cluster
    n_ubatch_tokens: int = 512  # llama-bench's own, so that the numbers compare
    n_repetitions: int = 5
    n_warmups_max: int = 5  # warm until two runs in a row differ by less than 1 %
    duration_s: float = 0.0  # repeat for this long instead of n_repetitions times
    seed: int = 0  # of the random token ids; their values do not change the work

    @property
    def kind(self) -> str:
        """pp, tg, pp+tg as llama-bench calls them; load."""
        names = [("pp", self.n_prompt_tokens), ("tg", self.n_generated_tokens)]
        return "+".join(name for name, n in names if n) or "load"

    @property
    def name(self) -> str:
        """Such as pp512, tg128 @ d1024, tg128 x4."""
        sizes = [("pp", self.n_prompt_tokens), ("tg", self.n_generated_tokens)]
        name = "+".join(f"{label}{n}" for label, n in sizes if n) or "load"
        name += f" @ d{self.n_depth_tokens}" if self.n_depth_tokens else ""
        name += f" x{self.n_streams}" if self.n_streams > 1 else ""
        name += f", {self.duration_s:g} s" if self.duration_s else ""
        return name if self.view == "kernel" else f"chat {name}"

    @property
    def n_tokens(self) -> int:
        """Tokens that one repetition works on while the clock runs."""
        return self.n_streams * (self.n_prompt_tokens + self.n_generated_tokens)

    @property
    def n_ctx_tokens(self) -> int:
        """Room in the KV cache that it needs."""
        each = self.n_prompt_tokens + self.n_generated_tokens
        return max(64, self.n_depth_tokens + self.n_streams * each)


def preset(name: str, n_threads: int | None = None) -> tuple[Workload, ...]:
    """quick: under two minutes for a 1.5B model on a Raspberry Pi 5. standard: what a report is made of. sustained:
    ten minutes of generation, which shows what heat does."""
    kernel = Workload(n_threads=n_threads)
    chat = replace(kernel, view="end-to-end")
    presets = {
        "quick": (
            replace(kernel, n_prompt_tokens=128, n_warmups_max=2),
            replace(kernel, n_generated_tokens=32, n_warmups_max=2),
        ),
        "standard": (
            kernel,
            *(replace(kernel, n_prompt_tokens=512, n_depth_tokens=depth) for depth in DEPTHS),
            *(replace(kernel, n_generated_tokens=128, n_depth_tokens=depth) for depth in DEPTHS),
            replace(kernel, n_prompt_tokens=512, n_generated_tokens=128),
            *(replace(kernel, n_generated_tokens=64, n_streams=n) for n in STREAMS[1:]),
            replace(chat, n_prompt_tokens=512, n_generated_tokens=128),
        ),
        "sustained": (replace(kernel, n_generated_tokens=32, duration_s=600.0),),
    }
    return presets[name]


PRESETS = ("quick", "standard", "sustained")
