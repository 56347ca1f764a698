"""Standard errors of figures that stand in their files without one, from the responses of a small run.

LLM shares, quantiles of entropies and the share of certain tokens are of tokens, and tokens of one response are not independent: whole responses are
drawn again (bootstrap). A small run rarely has one of the few responses that run in circles to the length limit, so the error of an LLM share
comes out rather too small.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from navtoken.reference import parse_reference
from navtoken.trace import read_traces

Statistic = Callable[[Sequence[np.ndarray]], float]
RESAMPLES = 300
CERTAIN = 0.01
"""Nats under which a token is nearly certain."""
FILLED_IN = ("threshold", "weights", "every")
"""Options that a policy's traces name though nobody asked for them."""


def share_error(work: Path, folder: str, policy: str) -> float:
    """Of a policy's LLM share, mean over the families. `policy` is as it was asked for, `share=0.2` without the threshold found for it."""
    traces = work / folder
    families: dict[str, list[np.ndarray]] = {}
    for trace in read_traces(traces):
        if asked_for(trace.policy) == asked_for(policy):
            families.setdefault(trace.task, []).append(np.asarray(trace.writer))
    if not families:
        raise LookupError(f"{folder} holds no responses of {policy}")
    rng = np.random.default_rng(0)
    drawn = [
        resampled(chunks, lambda own: float(np.concatenate(own).mean()), rng) for chunks in families.values()
    ]
    return float(np.mean(drawn, axis=0).std(ddof=1))


def entropy_error(work: Path, model: str, task: str, statistic: Statistic) -> float:
    """Of a statistic of entropies, on a model's responses to a family's problems or to all."""
    chunks = [
        np.asarray(trace.columns[f"entropy_{model}"], dtype=np.float64)
        for trace in read_traces(work / "entropy_pattern" / model / "traces")
        if task in ("all", trace.task)
    ]
    return float(resampled(chunks, statistic, np.random.default_rng(0)).std(ddof=1))


def certain_share(chunks: Sequence[np.ndarray]) -> float:
    return float((np.concatenate(chunks) < CERTAIN).mean())


def percentile_80(chunks: Sequence[np.ndarray]) -> float:
    return float(np.quantile(np.concatenate(chunks), 0.8))


def asked_for(policy: str) -> str:
    """A policy's reference without what was found or filled in for it: with a share its threshold, else the defaults that traces name."""
    reference = parse_reference(policy)
    share = reference.options.get("share")
    if share is not None:
        return f"{reference.name},share={float(share):g}"
    asked = {name: value for name, value in reference.options.items() if name not in FILLED_IN}
    return str(replace(reference, options=asked))


def resampled(chunks: Sequence[np.ndarray], statistic: Statistic, rng: np.random.Generator) -> np.ndarray:
    """The statistic on as many chunks drawn with replacement, many times."""
    return np.array([statistic(drawn(chunks, rng)) for _ in range(RESAMPLES)])


def drawn(chunks: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    return [chunks[index] for index in rng.integers(len(chunks), size=len(chunks))]
