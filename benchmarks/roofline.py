"""What memory allows: bytes a token reads, against bytes a second; and a verdict on a claim, with the arithmetic.

One token of one stream reads every weight once, and all of the KV cache. No program can be faster than that; prompts
and several streams share one reading, so for them arithmetic is the limit.
"""

from dataclasses import dataclass
from typing import Literal

from benchmarks.devices import Device
from benchmarks.shapes import Layout

Answer = Literal["possible", "implausible", "impossible", "false", "true", "unsupported"]
SIZE_TOLERANCE = 0.03  # of a file's size: rounding, and what the vocabulary adds
# Published losses of 4-bit weights on models of 1 to 2 B that reason, as shares of the score.
PUBLISHED_LOSS = (0.0, 0.06)
LOSS_EVIDENCE = (
    "published for this size: about 6 % of the reasoning average with 4-bit weights by GPTQ (Neural Magic), "
    "none to speak of in arXiv 2504.04823"
)


@dataclass(frozen=True)
class Finding:
    """The answer to a claim; lines: its arithmetic."""

    answer: Answer
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([*self.lines, self.answer])


def tokens_per_s_max(made: Layout, gb_per_s: float, n_depth_tokens: int = 0) -> float:
    """The most tokens/s that one stream can generate with so many GB/s."""
    return gb_per_s * 1e9 / bytes_per_token(made, n_depth_tokens)


def bytes_per_token(made: Layout, n_depth_tokens: int) -> int:
    return made.bytes_read_per_token + n_depth_tokens * made.kv_bytes_per_token


def limits(made: Layout, device: Device, n_depth_tokens: int = 0) -> list[str]:
    """The most that one stream can generate, with the arithmetic, and what is to be expected of such a device."""
    n_bytes = bytes_per_token(made, n_depth_tokens)
    limit = tokens_per_s_max(made, device.peak_gb_per_s, n_depth_tokens)
    lines = [
        *_read(made, n_depth_tokens),
        f"{device.title}: {device.peak_gb_per_s:.1f} GB/s at most ({device.memory})",
        f"limit: {device.peak_gb_per_s:.1f} / {n_bytes / 1e9:.3f} = {limit:.1f} tokens/s",
    ]
    if device.share:
        low, high = (share * limit for share in device.share)
        lines.append(f"predicted: {low:.1f} to {high:.1f} tokens/s; {device.evidence}")
    return lines


def judge_generation(made: Layout, device: Device, claim: float, n_depth_tokens: int = 0) -> Finding:
    """A claim of tokens/s for one stream."""
    limit = tokens_per_s_max(made, device.peak_gb_per_s, n_depth_tokens)
    needed = claim * bytes_per_token(made, n_depth_tokens) / 1e9
    lines = [
        *limits(made, device, n_depth_tokens),
        f"claimed: {claim:g} tokens/s, {claim / limit:.2f} of the limit, {needed:.1f} GB/s",
    ]
    if claim > limit:
        return Finding("impossible", tuple(lines))
    is_beyond = device.share is not None and claim > 1.15 * device.share[1] * limit
    return Finding("implausible" if is_beyond else "possible", tuple(lines))


def judge_prompt(made: Layout, device: Device, claim: float) -> Finding:
    """A claim of tokens/s for reading a prompt: two operations for each weight in the layers."""
    n_table = made.shape.n_vocab * made.shape.n_embd
    n_weights = made.n_params - n_table * (1 if made.shape.is_tied else 2)
    gops = 2 * n_weights / 1e9
    lines = [f"a prompt token takes 2 x {n_weights / 1e9:.3f} G weights = {gops:.2f} G operations"]
    if device.gops is None:
        lines.append(f"{device.title}: its arithmetic peak is not in the table, so nothing speaks against the claim")
        return Finding("possible", tuple(lines))
    limit = device.gops / gops
    lines += [
        f"{device.title}: {device.gops:.0f} G operations/s at most ({device.compute})",
        f"limit: {device.gops:.0f} / {gops:.2f} = {limit:.0f} tokens/s; claimed {claim:g}, {claim / limit:.2f} of it",
    ]
    return Finding("impossible" if claim > limit else "possible", tuple(lines))


def judge_size(made: Layout, claim_gb: float) -> Finding:
    """A claim of a file's size in GB."""
    n_bits = 8 * claim_gb * 1e9 / made.n_params
    table = made.shape.n_vocab * made.shape.n_embd
    line = (
        f"{made.n_params / 1e9:.3f} G weights, as {made.type} {made.n_bytes / 1e9:.2f} GB; {claim_gb:g} GB would be "
        f"{n_bits:.1f} bits a weight"
    )
    tables = (
        f"the {'one table' if made.shape.is_tied else 'two tables'} of the vocabulary, {made.shape.n_vocab:,} x "
        f"{made.shape.n_embd:,}, hold {table * (1 if made.shape.is_tied else 2) / 1e9:.3f} G of them"
    )
    is_right = abs(claim_gb * 1e9 - made.n_bytes) <= SIZE_TOLERANCE * made.n_bytes
    return Finding("true" if is_right else "false", (line, tables))


def judge_loss(claim_percent: float) -> Finding:
    """A claim of how much of a score 4-bit weights cost, in percent. No roofline: what was published is the measure."""
    low, high = (100 * share for share in PUBLISHED_LOSS)
    line = f"claimed: 4-bit weights cost {claim_percent:g} % of the score; {LOSS_EVIDENCE}"
    return Finding("possible" if low <= claim_percent <= 1.5 * high else "unsupported", (line,))


def _read(made: Layout, n_depth_tokens: int) -> list[str]:
    n_bytes = made.bytes_read_per_token
    left_out = "" if made.shape.is_tied else f", all of the file's {made.n_bytes / 1e9:.3f} but the embedding table"
    lines = [f"{made.shape.name} {made.type}: a token reads {n_bytes / 1e9:.3f} GB of weights{left_out}"]
    if n_depth_tokens:
        n_kv = n_depth_tokens * made.kv_bytes_per_token
        lines.append(
            f"and of the KV cache {n_depth_tokens:,} x {made.kv_bytes_per_token:,} B = {n_kv / 1e9:.3f} GB: "
            f"{bytes_per_token(made, n_depth_tokens) / 1e9:.3f} GB"
        )
    return lines
