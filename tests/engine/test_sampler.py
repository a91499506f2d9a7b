"""Samplers: what they leave unseen never changes the choice."""

import numpy as np
import pytest

from edge.config import Sampling
from edge.engine.sampler import Sampler, largest

N_VOCAB = 5000


def logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, N_VOCAB).astype(np.float32)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 640, 5000, 5001])
@pytest.mark.parametrize("k", [1, 2, 40, 64, 77, 78, 79, 5000])
def test_largest_finds_what_a_full_sort_finds(n, k):
    values = np.random.default_rng(n).normal(size=n).astype(np.float32)
    k = min(k, n)
    found = largest(values, k)
    assert len(set(found.tolist())) == k
    assert sorted(values[found]) == sorted(np.sort(values)[n - k :])


def test_largest_counts_equal_values_and_banned_ones():
    values = np.full(1000, -np.inf, np.float32)
    values[[3, 999]] = 1
    found = largest(values, 40)
    assert len(set(found.tolist())) == 40
    assert {3, 999} <= set(found.tolist())


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(),
        Sampling(temperature=0),
        Sampling(top_k=5, temperature=1.5, top_p=1),
        Sampling(min_p=0.05, typical_p=0.9),
        Sampling(logit_bias=((17, 20.0), (18, -3.0), (19, float("-inf")))),
        Sampling(repeat_penalty=1.5, presence_penalty=1, temperature=2),
    ],
    ids=repr,
)
def test_few_candidates_and_the_whole_vocabulary_give_the_same_tokens(settings):
    def tokens(whole):
        sampler = Sampler(Sampling(**{**vars(settings), "seed": 7}), N_VOCAB, banned=[int(logits(0).argmax())])
        if whole:
            sampler._candidates = np.zeros(N_VOCAB, Sampler._CANDIDATE)
        chosen = [sampler.sample(logits(i // 3)) for i in range(60)]
        sampler.close()
        return chosen

    assert tokens(whole=False) == tokens(whole=True)


def test_a_banned_token_never_comes_and_the_logits_stay_as_they_were():
    before = logits(1)
    after = before.copy()
    best = int(before.argmax())
    sampler = Sampler(Sampling(temperature=0), N_VOCAB, banned=[best])
    assert sampler.sample(after) == int(np.argsort(before)[-2])
    sampler.close()
    assert (before == after).all()
