"""How far a model's predictions are from those of a reference: the measures of llama-perplexity, in numpy.

Knows rows of logits and no models. A row of the reference is kept as llama-perplexity keeps it, 16 bits per token of
the vocabulary between the best logit and 16 below, and then without those that cannot count (probability < e^-16).
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from threading import local

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Row = NDArray[np.float32]

LOGIT_SPAN = np.float32(16)  # what lies further below the best logit is kept as this far
LOG_P_MIN = np.float32(-16)  # and what is less likely than this adds nothing to the divergence
N_BLOCK_VALUES = 1 << 17  # of logits: one row of a large vocabulary, many of a small one
# of each row of a block: its scale, log p of code 0, code of the next token, how many are kept. Behind the heads of a
# block a bit for each token of each row, whether it is kept, and then the codes of those that are
_HEAD = np.dtype([("scale", "<f4"), ("floor", "<f4"), ("next_code", "<u2"), ("_", "<u2"), ("n_kept", "<u4")])
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


# rows of logits, some at a time, so that what is made of them stays in a core's cache


def surprises(logits: Row, next_tokens: Sequence[int], pool: Executor) -> Floats:
    """-log p of each row's next token. logits: (n_tokens, n_vocab)."""
    tokens = np.asarray(next_tokens)
    found = pool.map(lambda rows: _log_sum_exp(logits[rows]) - _at(logits[rows], tokens[rows]), _blocks(logits))
    return np.concatenate(list(found)).astype(np.float64)


def pack(logits: Row, next_tokens: Sequence[int], pool: Executor) -> bytes:
    """The reference's rows, for `compare`. logits: (n_tokens, n_vocab)."""
    tokens = np.asarray(next_tokens)
    return b"".join(pool.map(lambda rows: _pack(logits[rows], tokens[rows]), _blocks(logits)))


def compare(logits: Row, next_tokens: Sequence[int], packed: memoryview | bytes, pool: Executor) -> Floats:
    """(n_tokens, 5) as SCORES. packed: the reference's rows of the same tokens."""
    tokens, blocks = np.asarray(next_tokens), list(_blocks(logits))
    places = list(_places(packed, [logits[rows].size for rows in blocks], [rows.stop - rows.start for rows in blocks]))
    found = pool.map(lambda rows, place: _compare(logits[rows], tokens[rows], packed, place), blocks, places)
    return np.concatenate(list(found))


def _blocks(logits: Row) -> Iterator[slice]:
    n_rows, n_vocab = logits.shape
    step = max(1, N_BLOCK_VALUES // n_vocab)
    return (slice(first, min(n_rows, first + step)) for first in range(0, n_rows, step))


def _at(logits: Row, tokens: NDArray[np.int64]) -> Row:
    """The logit of one token in each row."""
    found: Row = logits[np.arange(len(logits)), tokens]
    return found


def _log_sum_exp(logits: Row) -> Row:
    """Of each row."""
    best = logits.max(axis=1)
    values = _scratch.floats("values", logits.size).reshape(logits.shape)
    np.subtract(logits, best[:, None], out=values)
    np.exp(values, out=values)
    found: Row = best + np.log(values.sum(axis=1, dtype=np.float64)).astype(np.float32)
    return found


def _pack(logits: Row, next_tokens: NDArray[np.int64]) -> bytes:
    # 1. the scale of each row: code 0 is its least logit, or what lies LOGIT_SPAN below its best
    best = logits.max(axis=1)
    least = np.maximum(logits.min(axis=1), best - LOGIT_SPAN)
    heads = np.zeros(len(logits), _HEAD)
    heads["scale"] = scale = (best - least) / np.float32(65535)
    heads["floor"] = floor = least - _log_sum_exp(logits)
    # 2. the codes
    values = _scratch.floats("values", logits.size).reshape(logits.shape)
    np.subtract(logits, least[:, None], out=values)
    np.maximum(values, 0, out=values)
    values *= np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)[:, None]
    np.rint(values, out=values)
    codes = _scratch.codes("codes", logits.size).reshape(logits.shape)
    np.copyto(codes, values, casting="unsafe")
    # 3. which of them can count
    kept = codes >= _least_code(scale, floor)[:, None]
    heads["next_code"] = codes[np.arange(len(codes)), next_tokens]
    heads["n_kept"] = [np.count_nonzero(row) for row in kept]
    places = np.flatnonzero(kept)  # a mask as an index takes four times as long
    return b"".join((heads.tobytes(), np.packbits(kept).tobytes(), codes.ravel().take(places, mode="clip").tobytes()))


def _least_code(scale: Row, floor: Row) -> NDArray[np.uint16]:
    """The first code of each row that stands for more than LOG_P_MIN."""
    about = np.divide(LOG_P_MIN - floor, scale, out=np.zeros_like(scale), where=scale > 0)
    codes = np.clip(np.floor(about)[:, None] + np.arange(-1, 3, dtype=np.float32), 0, 65535)
    counts = codes * scale[:, None] + floor[:, None] > LOG_P_MIN
    found: NDArray[np.uint16] = codes[np.arange(len(codes)), counts.argmax(axis=1)].astype(np.uint16)
    return found


def _places(packed: memoryview | bytes, sizes: Sequence[int], counts: Sequence[int]) -> Iterator[int]:
    """Where each block begins. sizes: of each block, its logits; counts: its rows."""
    place = 0
    for size, n_rows in zip(sizes, counts, strict=True):
        yield place
        n_kept = int(np.frombuffer(packed, _HEAD, n_rows, place)["n_kept"].sum())
        place += n_rows * _HEAD.itemsize + -(-size // 8) + 2 * n_kept
    assert place == len(packed)


def _compare(logits: Row, next_tokens: NDArray[np.int64], packed: memoryview | bytes, place: int) -> Floats:
    # 1. the reference's rows
    n_rows, n_vocab = logits.shape
    heads = np.frombuffer(packed, _HEAD, n_rows, place)
    bits = np.frombuffer(packed, np.uint8, -(-logits.size // 8), place + heads.nbytes)
    places = np.flatnonzero(np.unpackbits(bits, count=logits.size).view(np.bool_))
    codes = np.frombuffer(packed, np.uint16, int(heads["n_kept"].sum()), place + heads.nbytes + bits.nbytes)
    # 2. divergence and favourites, row by row: each has kept another number of tokens
    log_sums, favourites = _log_sum_exp(logits), logits.argmax(axis=1)
    found = np.empty((n_rows, len(SCORES)))
    start = 0
    for i, (scale, floor, _, _, n_kept) in enumerate(heads.tolist()):
        there = slice(start, start + n_kept)
        log_p_base, excess = _scratch.floats("values", n_kept), _scratch.floats("excess", n_kept)
        np.multiply(codes[there], np.float32(scale), out=log_p_base)
        log_p_base += np.float32(floor)
        logits.ravel().take(places[there], out=excess, mode="clip")
        np.subtract(log_p_base, excess, out=excess)
        excess += log_sums[i]
        np.exp(log_p_base, out=log_p_base)
        excess *= log_p_base
        found[i, 2] = excess.sum(dtype=np.float64)
        found[i, 4] = favourites[i] == places[start + codes[there].argmax()] - i * n_vocab
        start += n_kept
    # 3. the token that came
    found[:, 0] = nll = (log_sums - _at(logits, next_tokens)).astype(np.float64)
    found[:, 1] = nll_base = -(heads["next_code"] * heads["scale"] + heads["floor"]).astype(np.float64)
    found[:, 3] = np.exp(-nll) - np.exp(-nll_base)
    return found


class _Scratch(local):
    """Arrays that each thread keeps: fresh ones cost more than the work on them."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def _bytes(self, name: str, n_bytes: int) -> NDArray[np.uint8]:
        if name not in self._arrays or self._arrays[name].size < n_bytes:
            self._arrays[name] = np.empty(n_bytes, np.uint8)
        return self._arrays[name][:n_bytes]

    def floats(self, name: str, n: int) -> Row:
        return self._bytes(name, 4 * n).view(np.float32)

    def codes(self, name: str, n: int) -> NDArray[np.uint16]:
        return self._bytes(name, 2 * n).view(np.uint16)


_scratch = _Scratch()
