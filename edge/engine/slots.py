"""The KV cache as slots: what each holds, and which one a new prompt goes on from. Knows no requests, only tokens.

The longest beginning that any slot or the disk holds is shared without being read again.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from edge.engine.door import Door
from edge.engine.prefix import PrefixStore

MIN_SHARED_TOKENS = 32  # a shared beginning worth waiting for, or loading
MIN_KEPT_TOKENS = 256  # a shared beginning worth writing to disk


@dataclass(eq=False)
class Slot:
    """One KV sequence: the tokens it holds, and when it was last used."""

    sequence: int
    tokens: list[int] = field(default_factory=list)
    n_question_tokens: int = 0  # the last request's prompt, but for what opens the assistant's turn
    last_used: int = 0  # number of the step
    conversation: str = ""  # whose text it holds


class Slots:
    """The slots of one context. at_work: those that a request moves; they stay as they are."""

    def __init__(self, llama: Door, n_slots: int, prefixes: PrefixStore | None = None) -> None:
        self._llama = llama
        self._prefixes = prefixes
        self._all = [Slot(i) for i in range(n_slots)]

    def __len__(self) -> int:
        return len(self._all)

    @property
    def n_tokens(self) -> int:
        """Held in all; what slots share counts for each."""
        return sum(len(slot.tokens) for slot in self._all)

    def n_held(self, tokens: list[int]) -> int:
        """How many of the first tokens the best slot holds already."""
        return max(n_shared(slot.tokens, tokens) for slot in self._all)

    def take(self, tokens: list[int], at_work: Collection[Slot], conversation: str = "") -> Slot:
        """A free slot that holds as much of the beginning of tokens as any slot or the disk has.

        What goes on from a slot's text, or rewrites its own conversation, gets that slot. What merely begins alike gets
        a copy of the beginning in the slot unused for longest, so that two conversations in turn keep theirs.
        """
        free = [slot for slot in self._all if slot not in at_work]
        best = max(self._all, key=lambda slot: n_shared(slot.tokens, tokens))
        # the last prompt token is always decoded: its logits are needed
        n = min(n_shared(best.tokens, tokens), len(tokens) - 1)
        is_branch = n < best.n_question_tokens  # else it is the next turn of the same conversation
        is_its_own = not is_branch or (conversation and conversation == best.conversation)
        slot = best if best in free and is_its_own else min(free, key=lambda slot: slot.last_used)
        if slot is best:
            self._llama.remove(slot.sequence, n)
        else:
            self._llama.remove(slot.sequence)
            if n:
                self._llama.copy(best.sequence, slot.sequence, n)
        slot.tokens = tokens[:n]
        if self._prefixes is not None:
            self._restore(slot, tokens, self._prefixes)
            if is_branch and n >= MIN_KEPT_TOKENS and len(slot.tokens) == n:
                self._keep(slot, self._prefixes)
        return slot

    def _restore(self, slot: Slot, tokens: list[int], prefixes: PrefixStore) -> None:
        """Put a beginning from disk into the slot if it is worth it."""
        entry = prefixes.longest(tokens)
        if entry is None or entry.n_tokens < len(slot.tokens) + MIN_SHARED_TOKENS:
            return
        if (state := prefixes.load(entry)) is None:
            return
        self._llama.remove(slot.sequence)
        if self._llama.load_sequence(slot.sequence, state):
            slot.tokens = tokens[: entry.n_tokens]
        else:  # no room in the pool, or libllama would not have it
            self.empty(slot)

    def _keep(self, slot: Slot, prefixes: PrefixStore) -> None:
        """Save the slot's tokens: two different requests began with them."""
        if prefixes.wants(slot.tokens):
            prefixes.save(slot.tokens, self._llama.save_sequence(slot.sequence))

    def empty(self, slot: Slot) -> None:
        self._llama.remove(slot.sequence)
        slot.tokens = []

    def empty_idle(self, at_work: Collection[Slot]) -> bool:
        """Empty the slot that was not used for longest. False if all that hold something are at work."""
        idle = [slot for slot in self._all if slot.tokens and slot not in at_work]
        if idle:
            self.empty(min(idle, key=lambda slot: slot.last_used))
        return bool(idle)

    def forget(self, conversation: str, at_work: Collection[Slot]) -> None:
        """Empty every slot that holds a conversation's text and is not at work."""
        for slot in self._all:
            if slot.conversation and slot.conversation == conversation and slot not in at_work:
                self.empty(slot)
                slot.conversation = ""


def n_shared(held: list[int], wanted: list[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    n = min(len(held), len(wanted))
    if held[:n] == wanted[:n]:
        return n
    return next(i for i in range(n) if held[i] != wanted[i])
