"""The measures against their definitions, written out in double precision."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from convert import divergence
from convert.divergence import Divergence, Scores

POOL = ThreadPoolExecutor(2)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    found: NDArray[np.float64] = (
        wide - np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1, keepdims=True)) - wide.max(1, keepdims=True)
    )
    return found


def rows(n_tokens: int, n_vocab: int, spread: float, seed: int = 0) -> NDArray[np.float32]:
    found = np.random.default_rng(seed).standard_normal((n_tokens, n_vocab), dtype=np.float32)
    found *= np.float32(spread)
    return found


@pytest.mark.parametrize("n_vocab", [7, 8, 1024, 32_003])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_scores_are_what_their_names_say(n_vocab: int, spread: float) -> None:
    base = rows(30, n_vocab, spread)
    other = base + rows(30, n_vocab, 0.2, seed=1)
    tokens = np.random.default_rng(2).integers(0, n_vocab, 30).tolist()
    found = Scores(divergence.compare(other, tokens, divergence.pack(base, tokens, POOL), POOL))
    p, q = log_softmax(base), log_softmax(other)
    index = np.arange(30), np.array(tokens)
    assert found.of("nll") == pytest.approx(-q[index], abs=1e-4)
    assert found.of("kld") == pytest.approx((np.exp(p) * (p - q)).sum(1), abs=3e-4)
    assert found.of("same_top").tolist() == (p.argmax(1) == q.argmax(1)).tolist()
    likely = p[index] > -15  # what is less likely is kept as that unlikely
    assert found.of("nll_base")[likely] == pytest.approx(-p[index][likely], abs=3e-4)
    assert found.of("p_diff") == pytest.approx(np.exp(q[index]) - np.exp(p[index]), abs=1e-4)
    assert divergence.surprises(other, tokens, POOL) == pytest.approx(-q[index], abs=1e-5)


def test_a_model_is_like_itself() -> None:
    base = rows(50, 500, 2.0)
    tokens = base.argmax(1).tolist()
    found = Divergence.of(Scores(divergence.compare(base, tokens, divergence.pack(base, tokens, POOL), POOL)))
    assert found.same_top.value == 1
    assert abs(found.kld.value) < 1e-5
    assert abs(found.ln_perplexity_ratio.value) < 1e-4
    assert found.p_diff_rms.value < 1e-4


def test_flat_logits_are_no_division_by_zero() -> None:
    flat = np.zeros((4, 16), np.float32)
    found = divergence.compare(flat, [1] * 4, divergence.pack(flat, [1] * 4, POOL), POOL)
    assert np.isfinite(found).all()
    assert found[:, 0] == pytest.approx(np.log(16))


def test_what_cannot_count_is_not_kept() -> None:
    """A confident model of a large vocabulary: a bit for each token, and two bytes for the few that can come."""
    sharp = rows(4, 100_000, 1.0)
    sharp[:, :10] += 25
    assert len(divergence.pack(sharp, [0] * 4, POOL)) < 4 * (100_000 / 8 + 1000)


def test_errors_shrink_with_the_square_root_of_the_tokens() -> None:
    values = np.random.default_rng(0).random((40_000, 5))
    few, many = Divergence.of(Scores(values[:400])), Divergence.of(Scores(values))
    assert few.kld.error / many.kld.error == pytest.approx(10, rel=0.1)
    assert many.kld.error == pytest.approx(np.sqrt(1 / 12 / 40_000), rel=0.02)
