"""Every error a user can meet. Facts are fields; the text is one sentence that ends in the next step.

Raised where the fact is known, turned into an exit code (cli.py) or an HTTP status in one table only.
"""

from dataclasses import dataclass
from pathlib import Path


class EdgeError(Exception):
    """The world is not as we need it. Our own mistakes are assertions, never this."""


@dataclass(eq=False)
class ProblemError(EdgeError):
    """What is wrong, and what to do."""

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


@dataclass(eq=False)
class FileError(EdgeError):
    """A file or folder that cannot be used: what is wrong with it, and what to do."""

    path: Path
    problem: str
    remedy: str

    def __post_init__(self) -> None:
        self.path = Path(self.path)

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


class CheckpointError(FileError):
    """A Hugging Face checkpoint that is missing something, lies, or is not one."""


class ModelFileError(FileError):
    """A GGUF file that cannot be trusted or loaded."""


class TextError(FileError):
    """A text or a list of questions that a model cannot be measured with."""


class OutputError(FileError):
    """A place that cannot be written: it exists, is read-only, or has no room."""


@dataclass(eq=False)
class HubError(EdgeError):
    """A model that the hub does not give, or gives wrong. subject: what was asked for."""

    subject: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}; {self.remedy}"


@dataclass(eq=False)
class TooLargeError(EdgeError):
    """A model that needs more memory than the machine has. nearest: what would fit, in words."""

    name: str
    n_bytes_needed: int
    n_bytes_there: int
    nearest: str = "choose a smaller type or model"

    def __str__(self) -> str:
        need, there = self.n_bytes_needed / 1e9, self.n_bytes_there / 1e9
        return (
            f"{self.name} needs about {need:.1f} GB of memory, this machine has {there:.1f} GB for it; "
            f"{self.nearest}; add --force to fetch it all the same"
        )


@dataclass(eq=False)
class UnsupportedArchitectureError(EdgeError):
    architecture: str
    supported: tuple[str, ...]

    def __str__(self) -> str:
        return f"architecture {self.architecture} is not supported; convert one of: {', '.join(self.supported)}"


@dataclass(eq=False)
class UnsupportedTypeError(EdgeError):
    """A quantised type that cannot be made."""

    name: str
    supported: tuple[str, ...]

    def __str__(self) -> str:
        return f"type {self.name} cannot be made; choose one of: {', '.join(self.supported)}"


@dataclass(eq=False)
class NoSpaceError(EdgeError):
    path: Path
    n_bytes_needed: int
    n_bytes_free: int

    def __str__(self) -> str:
        need, free = self.n_bytes_needed / 1e6, self.n_bytes_free / 1e6
        return f"{self.path}: needs {need:,.0f} MB, {free:,.0f} MB are free; free some room or choose another folder"


@dataclass(eq=False)
class NoMemoryError(EdgeError):
    """A model that does not fit into what may be used of memory. nearest: what would fit, in words; place: whose,
    if not the machine's."""

    path: Path
    n_ctx_tokens: int
    n_bytes_needed: int
    n_bytes_usable: int
    nearest: str
    place: str = ""

    def __str__(self) -> str:
        need, usable = self.n_bytes_needed / 1e6, self.n_bytes_usable / 1e6
        where = f" on {self.place}" if self.place else ""
        return (
            f"{self.path}: needs {need:,.0f} MB{where} with a context of {self.n_ctx_tokens:,} tokens, "
            f"{usable:,.0f} MB can be used; {self.nearest}; free some memory, or try it all the same with --force"
        )


@dataclass(eq=False)
class ContextOverflowError(EdgeError):
    n_prompt_tokens: int
    n_ctx_tokens: int

    def __str__(self) -> str:
        return (
            f"the prompt has {self.n_prompt_tokens} tokens, the context holds {self.n_ctx_tokens}; "
            f"shorten it or start with a larger --ctx"
        )


@dataclass(eq=False)
class TemplateError(EdgeError):
    """A chat template that is broken, hostile or refuses these messages."""

    problem: str

    def __str__(self) -> str:
        return f"the model's chat template failed: {self.problem}; convert the model again from a checkpoint you trust"


@dataclass(eq=False)
class RefusedMessagesError(TemplateError):
    """A chat template that does not take these messages; problem is what it says itself."""

    def __str__(self) -> str:
        return f"the model's chat template refuses these messages: {self.problem}; change their roles or their order"


class EngineError(ProblemError):
    """The native library refused or failed."""


@dataclass(eq=False)
class BusyError(EdgeError):
    n_waiting: int

    def __str__(self) -> str:
        return f"{self.n_waiting} requests are waiting already; try again in a moment"


@dataclass(eq=False)
class EngineDiedError(EdgeError):
    """The engine process ended while it worked on this request."""

    reason: str

    def __str__(self) -> str:
        return f"the engine stopped ({self.reason}); it starts again by itself, send the request once more"


@dataclass(eq=False)
class EngineDownError(EdgeError):
    """The engine died too often and stays down."""

    reason: str

    def __str__(self) -> str:
        return f"the engine is down after dying again and again ({self.reason}); see the log, then start it again"


@dataclass(eq=False)
class WrongBuildError(EngineDownError):
    """A process stopped at an instruction that this CPU does not have. command: what makes the build that fits."""

    command: str

    def __str__(self) -> str:
        return f"{self.reason}; run: {self.command}"


@dataclass(eq=False)
class PoisonedRequestError(EdgeError):
    n_deaths: int

    def __str__(self) -> str:
        return f"the engine died {self.n_deaths} times on this very request; change the request, or report it"


@dataclass(eq=False)
class OutOfRangeError(EdgeError):
    """A number outside of what it may be."""

    name: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} is {self.value:g}; give a number from {self.low:g} to {self.high:g}"


@dataclass(eq=False)
class ConstraintError(EdgeError):
    """A schema, regex or list of choices that cannot be honoured."""

    kind: str
    problem: str

    def __str__(self) -> str:
        return f"the {self.kind} constraint cannot be used: {self.problem}; simplify it"


@dataclass(eq=False)
class ConstraintDeadEndError(EdgeError):
    """A constrained answer reached a point where no token may follow."""

    problem: str

    def __str__(self) -> str:
        return f"the answer cannot go on under its constraint ({self.problem}); loosen the constraint or logit_bias"


@dataclass(eq=False)
class UnknownConversationError(EdgeError):
    what: str  # conversation or message
    id: str

    def __str__(self) -> str:
        return f"there is no {self.what} {self.id[:32]!r}; it may have been deleted, list what there is"


@dataclass(eq=False)
class RevisionError(EdgeError):
    """Somebody else changed the conversation since it was read."""

    revision: int

    def __str__(self) -> str:
        return f"the conversation was changed elsewhere (it is at revision {self.revision}); load it again"


@dataclass(eq=False)
class ReplyRunningError(EdgeError):
    def __str__(self) -> str:
        return "a reply is still being written there; stop it or wait for its end"


@dataclass(eq=False)
class TransferError(EdgeError):
    """What was to be imported is no exported conversation."""

    problem: str

    def __str__(self) -> str:
        return f"this is no exported conversation: {self.problem}; export it again as JSON"


@dataclass(eq=False)
class DocumentError(EdgeError):
    """A file whose text cannot be attached."""

    name: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}; {self.remedy}"


class ServiceError(ProblemError):
    """A system service that cannot be written, started or found."""
