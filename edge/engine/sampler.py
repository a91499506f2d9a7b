"""How the next token is chosen: llama.cpp's chain of samplers, shown only the tokens that can be chosen."""

import ctypes
import os
from collections.abc import Iterable, Iterator
from typing import Any, Final

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from edge.config import Sampling

_GROUP: Final = 64  # values whose maximum is looked at first


class Sampler:
    """A chain of samplers in C. Where only the likeliest tokens can be chosen, it never sees the others."""

    _CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data

    def __init__(self, settings: Sampling, n_vocab: int, banned: Iterable[int] = ()) -> None:
        bias = [*settings.logit_bias, *((token, float("-inf")) for token in banned)]
        assert all(0 <= token < n_vocab for token, _ in bias)
        self._biased = np.array([token for token, _ in bias], np.intp)
        self._bias = np.array([added for _, added in bias], np.float32)
        penalties = (settings.repeat_penalty, settings.frequency_penalty, settings.presence_penalty)
        n_candidates = n_vocab
        if penalties == (1, 0, 0):  # else a token far down may come up
            n_candidates = 1 if settings.temperature <= 0 else min(settings.top_k or n_vocab, n_vocab)
        self._candidates = np.zeros(n_candidates, self._CANDIDATE)
        self._chain: Any = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for link in self._links(settings, n_vocab, penalties):
            lib.llama_sampler_chain_add(self._chain, link)

    @staticmethod
    def _links(settings: Sampling, n_vocab: int, penalties: tuple[float, float, float]) -> Iterator[Any]:
        """The samplers that settings ask for, in their order, behind the bias."""
        if penalties != (1, 0, 0):
            yield lib.llama_sampler_init_penalties(n_vocab, settings.n_penalized_tokens, *penalties)
        if settings.temperature <= 0:
            yield lib.llama_sampler_init_greedy()
            return
        if settings.top_k > 0:
            yield lib.llama_sampler_init_top_k(settings.top_k)
        if settings.typical_p < 1:
            yield lib.llama_sampler_init_typical(settings.typical_p, 1)
        if settings.top_p < 1:
            yield lib.llama_sampler_init_top_p(settings.top_p, 1)
        if settings.min_p > 0:
            yield lib.llama_sampler_init_min_p(settings.min_p, 1)
        yield lib.llama_sampler_init_temp(settings.temperature)
        seed = int.from_bytes(os.urandom(4), "little") if settings.seed is None else settings.seed
        yield lib.llama_sampler_init_dist(seed)

    def sample(self, logits: NDArray[np.float32]) -> int:
        """The next token by its logits (n_vocab,), which stay as they are; the chain takes note of it."""
        unbiased = logits[self._biased]
        logits[self._biased] += self._bias
        chosen = largest(logits, len(self._candidates))
        self._candidates["id"], self._candidates["logit"] = chosen, logits[chosen]
        logits[self._biased] = unbiased  # not a copy of them all: that costs more than the rest
        data = self._candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        array = lib.llama_token_data_array(data=data, size=len(chosen), selected=-1, sorted=False)
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        assert array.selected >= 0, "the last link of every chain selects"
        token = int(array.data[array.selected].id)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
            self._chain = None


def largest(values: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Where the k largest of values (n,) are, in no order.

    A group's maximum bounds its members, so the k best groups hold the k best values: of 152k logits 40 are found in a
    fifth of the time that a heap over all of them takes.
    """
    n, n_groups = len(values), len(values) // _GROUP
    if k >= n_groups:
        return np.argpartition(values, n - k)[n - k :] if k < n else np.arange(n)
    grouped = values[: n_groups * _GROUP].reshape(_GROUP, n_groups)  # member i of group j is value i * n_groups + j
    groups = np.argpartition(grouped.max(axis=0), n_groups - k)[n_groups - k :]
    members = (groups + np.arange(0, n_groups * _GROUP, n_groups)[:, None]).ravel()
    members = np.concatenate([members, np.arange(n_groups * _GROUP, n)])
    return members[np.argpartition(values[members], len(members) - k)[len(members) - k :]]
