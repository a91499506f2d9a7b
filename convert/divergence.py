"""How far a model's predictions are from those of a reference: the measures of llama-perplexity, in numpy.

Knows rows of logits and no models. A row of the reference is kept as llama-perplexity keeps it, 16 bits per token of
the vocabulary between the best logit and 16 below, and then without those that cannot count (probability < e^-16).
"""

import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Row = NDArray[np.float32]

LOGIT_SPAN = np.float32(16)  # what lies further below the best logit is kept as this far
LOG_P_MIN = np.float32(-16)  # and what is less likely than this adds nothing to the divergence
_HEAD = struct.Struct("<ffHxxI")  # scale, log p of code 0, code of the next token, how many are kept
SCORES = ("nll", "nll_base", "kld", "p_diff", "same_top")


@dataclass(frozen=True)
class Scores:
    """Of each scored token: surprise of both models, divergence, difference of its probabilities, same favourite."""

    values: Floats  # (n_tokens, 5), columns as SCORES

    def __len__(self) -> int:
        return len(self.values)

    def of(self, name: str) -> Floats:
        return self.values[:, SCORES.index(name)]


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.error:.2g}"


@dataclass(frozen=True)
class Divergence:
    """Scores in numbers. Probabilities and shares from 0 to 1; divergences in nats."""

    n_tokens: int
    perplexity: Estimate
    perplexity_base: Estimate
    ln_perplexity_ratio: Estimate
    kld: Estimate
    kld_median: float
    kld_99: float
    kld_max: float
    p_diff_rms: Estimate
    same_top: Estimate

    @classmethod
    def of(cls, scores: Scores) -> "Divergence":
        n = len(scores)
        nll, base = scores.of("nll"), scores.of("nll_base")
        log_ppl, log_base = _mean(nll), _mean(base)
        covariance = (np.mean(nll * base) - log_ppl.value * log_base.value) / (n - 1)
        ratio_error = np.sqrt(max(0.0, log_ppl.error**2 + log_base.error**2 - 2 * covariance))
        kld, square, same = scores.of("kld"), _mean(scores.of("p_diff") ** 2), float(scores.of("same_top").mean())
        rms = float(np.sqrt(square.value))
        return cls(
            n_tokens=n,
            perplexity=_exp(log_ppl),
            perplexity_base=_exp(log_base),
            ln_perplexity_ratio=Estimate(log_ppl.value - log_base.value, float(ratio_error)),
            kld=_mean(kld),
            kld_median=float(np.median(kld)),
            kld_99=float(np.percentile(kld, 99)),
            kld_max=float(kld.max()),
            p_diff_rms=Estimate(rms, 0.5 / rms * square.error if rms else 0.0),
            same_top=Estimate(same, float(np.sqrt(same * (1 - same) / (n - 1)))),
        )


def perplexity(nll: Floats) -> Estimate:
    """e to the mean surprise. nll: of each scored token."""
    return _exp(_mean(nll))


def _mean(values: Floats) -> Estimate:
    mean = float(values.mean())
    variance = max(0.0, float(np.mean(values * values)) - mean * mean)
    return Estimate(mean, float(np.sqrt(variance / (len(values) - 1))))


def _exp(log: Estimate) -> Estimate:
    value = float(np.exp(log.value))
    return Estimate(value, value * log.error)


# rows of logits


def surprises(logits: Row, next_tokens: Sequence[int], pool: Executor) -> Floats:
    """-log p of each row's next token. logits: (n_tokens, n_vocab)."""
    found = pool.map(lambda i: _log_sum_exp(logits[i]) - float(logits[i][next_tokens[i]]), range(len(next_tokens)))
    return np.fromiter(found, np.float64, len(next_tokens))


def pack(logits: Row, next_tokens: Sequence[int], pool: Executor) -> bytes:
    """The reference's rows, for `compare`. logits: (n_tokens, n_vocab)."""
    return b"".join(pool.map(lambda i: _pack(logits[i], next_tokens[i]), range(len(next_tokens))))


def compare(logits: Row, next_tokens: Sequence[int], packed: memoryview | bytes, pool: Executor) -> Floats:
    """(n_tokens, 5) as SCORES. packed: the reference's rows of the same tokens."""
    places = list(_places(packed, logits.shape[1]))
    assert len(places) == len(next_tokens)
    found = pool.map(lambda i: _compare(logits[i], next_tokens[i], packed, places[i]), range(len(places)))
    return np.array(list(found), np.float64)


def _log_sum_exp(row: Row) -> float:
    best = row.max()
    return float(best) + float(np.log(np.exp(row - best).sum(dtype=np.float64)))


def _pack(row: Row, next_token: int) -> bytes:
    best = row.max()
    least = max(row.min(), best - LOGIT_SPAN)
    log_sum = np.float32(_log_sum_exp(row) - float(best))
    floor = least - best - log_sum
    scale = np.float32((best - least) / np.float32(65535))
    if scale:
        codes = np.rint((np.maximum(row, least) - least) * (np.float32(1) / scale)).astype(np.uint16)
    else:
        codes = np.zeros(len(row), np.uint16)
    kept = codes * scale + floor > LOG_P_MIN
    head = _HEAD.pack(scale, floor, codes[next_token], int(kept.sum()))
    return b"".join((head, np.packbits(kept).tobytes(), codes[kept].tobytes()))


def _places(packed: memoryview | bytes, n_vocab: int) -> Iterator[int]:
    """Where each row begins."""
    place = 0
    while place < len(packed):
        yield place
        place += _HEAD.size + -(-n_vocab // 8) + 2 * _HEAD.unpack_from(packed, place)[3]


def _compare(row: Row, next_token: int, packed: memoryview | bytes, place: int) -> tuple[float, ...]:
    # 1. the reference's row: log p of the tokens it has kept
    scale, floor, next_code, n_kept = _HEAD.unpack_from(packed, place)
    place += _HEAD.size
    bits = np.frombuffer(packed, np.uint8, -(-len(row) // 8), place)
    log_p_base = np.frombuffer(packed, np.uint16, n_kept, place + len(bits)) * np.float32(scale) + np.float32(floor)
    tokens = np.flatnonzero(np.unpackbits(bits, count=len(row)))
    # 2. the measures
    log_sum = np.float32(_log_sum_exp(row))
    nll, nll_base = float(log_sum - row[next_token]), -(next_code * scale + floor)
    kld = float(np.sum(np.exp(log_p_base) * (log_p_base - row[tokens] + log_sum), dtype=np.float64))
    same = row.argmax() == tokens[log_p_base.argmax()]
    return nll, nll_base, kld, float(np.exp(-nll) - np.exp(-nll_base)), float(same)
