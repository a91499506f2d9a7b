"""What a scheduler moves: a request on its way (Stream), the KV sequence it lives in (Slot), the model (Door)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.config import Sampling
from edge.engine.grammar import Matcher
from edge.engine.loops import LoopDetector
from edge.engine.protocol import Generate
from edge.engine.reasoning import Reasoning
from edge.text import CharacterStream, StopMatcher


class Door(Protocol):
    """What the scheduler asks of a model; edge.engine.llama.Llama is the real one."""

    n_vocab: int
    n_ctx_tokens: int
    n_batch_tokens: int

    def tokenize(self, text: str, *, control: bool) -> list[int]: ...
    def tokenize_segments(self, segments: Sequence[tuple[str, bool]]) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...
    def is_end(self, token: int) -> bool: ...
    def end_tokens(self) -> list[int]: ...
    def new_batch(self) -> Any: ...
    def new_sampler(self, settings: Sampling, banned: list[int]) -> Any: ...
    def control_tokens(self) -> list[int]: ...
    def decode(self, batch: Any) -> int: ...
    def logits(self, index: int) -> NDArray[np.float32]: ...
    def sample(self, sampler: Any, index: int) -> int: ...
    def remove(self, sequence: int, start: int = 0, end: int = -1) -> bool: ...
    def copy(self, source: int, target: int, end: int) -> None: ...
    def save_sequence(self, sequence: int) -> bytes: ...
    def load_sequence(self, sequence: int, state: bytes) -> bool: ...


@dataclass
class Slot:
    """One KV sequence: the tokens it holds, and when it was last used."""

    sequence: int
    tokens: list[int] = field(default_factory=list)
    n_question_tokens: int = 0  # the last request's prompt, but for what opens the assistant's turn
    last_used: int = 0  # number of the step
    conversation: str = ""  # whose text it holds


@dataclass(eq=False)
class Stream:
    """One request on its way: `todo` is fed to the model, then it generates one token a step."""

    request: Generate
    arrived_s: float
    todo: list[int]  # tokens not yet in the KV cache
    reasoning: Reasoning
    sampler: Any
    matcher: Matcher | None
    n_prompt_tokens: int
    n_question_tokens: int  # without the last piece of template, which opens the assistant's turn
    slot: Slot | None = None
    n_cached_tokens: int = 0
    started_s: float = 0.0
    first_token_s: float | None = None
    last_token_s: float = 0.0
    n_thought_tokens: int = 0
    n_answer_tokens: int = 0
    answers_now: bool = False  # the thought has to end: asked for, or it goes round in circles
    is_silent: bool = True  # no answer text was shown yet
    n_parked: int = 0
    fed: list[int] = field(default_factory=list)  # tokens in this step's batch
    output_index: int = -1  # where in the batch its logits are, -1: nowhere
    loops: LoopDetector = field(default_factory=LoopDetector)
    characters: CharacterStream = field(default_factory=CharacterStream)
    stops: StopMatcher = field(init=False)

    def __post_init__(self) -> None:
        self.stops = StopMatcher(self.request.stops)

    @property
    def is_prompt(self) -> bool:
        return self.first_token_s is None

    @property
    def n_output_tokens(self) -> int:
        return self.n_thought_tokens + self.n_answer_tokens
