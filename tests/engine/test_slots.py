"""Slots against a KV cache that keeps books: who goes on from what, and what has to go."""

from collections.abc import Sequence

from edge.engine.slots import Slot, Slots, n_shared
from tests.fakes import FakeLlama, replies

SYSTEM = [ord(c) for c in "system text. "]


def slots(n: int) -> tuple[Slots, FakeLlama]:
    llama = FakeLlama(replies())
    return Slots(llama, n), llama


def fill(found: Slots, llama: FakeLlama, tokens: list[int], at_step: int, at_work: Sequence[Slot] = ()) -> Slot:
    """Take a slot for tokens and read them, as a scheduler does."""
    slot = found.take(tokens, at_work)
    llama.kv.setdefault(slot.sequence, []).extend(tokens[len(slot.tokens) :])
    slot.tokens, slot.last_used = list(tokens), at_step
    return slot


def test_shared_is_counted_from_the_beginning() -> None:
    assert n_shared([1, 2, 3], [1, 2, 4, 3]) == 2
    assert n_shared([], [1]) == n_shared([2], [1]) == 0
    assert n_shared([1, 2], [1, 2, 3]) == n_shared([1, 2, 3], [1, 2]) == 2


def test_a_beginning_in_a_busy_slot_is_copied_to_a_free_one() -> None:
    found, llama = slots(2)
    fill(found, llama, [*SYSTEM, 1], at_step=1)
    busy = found.take([*SYSTEM, 1, 5], [])
    other = found.take([*SYSTEM, 2], [busy])
    assert other is not busy
    assert other.tokens == llama.kv[other.sequence] == SYSTEM


def test_the_last_token_of_a_prompt_is_always_left_to_decode() -> None:
    found, llama = slots(1)
    fill(found, llama, SYSTEM, at_step=1)
    assert found.take(SYSTEM, []).tokens == SYSTEM[:-1]


def test_beside_busy_slots_the_one_not_used_for_longest_is_taken() -> None:
    found, llama = slots(3)
    first = fill(found, llama, [1, 1], at_step=3)
    second = fill(found, llama, [2, 2], at_step=1, at_work=[first])
    fill(found, llama, [3, 3], at_step=2, at_work=[first, second])
    assert found.take([1, 9], [first]) is second
    assert found.n_held([3, 3, 9]) == 2, "what was used later is still there"


def test_room_is_made_of_idle_slots_alone() -> None:
    found, llama = slots(2)
    busy = fill(found, llama, [1, 1], at_step=1)
    fill(found, llama, [2, 2, 2], at_step=2, at_work=[busy])
    assert found.n_tokens == 5
    assert found.empty_idle([busy])
    assert found.n_tokens == 2
    assert not found.empty_idle([busy]), "nothing is left to empty"
