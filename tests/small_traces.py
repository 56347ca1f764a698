"""Traces made by hand for tests of analyses: random columns, no model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from navtoken.provenance import provenance
from navtoken.trace import Trace, TraceWriter

RECORD = provenance({"slm": "aa", "llm": "bb", "tokenizer": "cc"}, slm="embedded:slm", llm="embedded:llm")


def small_trace(ids: Sequence[int], sample: int = 0, **changes: Any) -> Trace:
    """A response of these tokens; `changes` are fields, or columns by name."""
    columns = {name: changes.pop(name) for name in list(changes) if name.startswith(("entropy", "label"))}
    own: dict[str, Any] = {
        "task": "countdown",
        "problem_id": f"p{sample}",
        "sample": sample,
        "prompt": "?",
        "prompt_ids": [1, 2],
        "response_ids": list(ids),
        "text": "",
        "finish_reason": "stop",
        "seed": 0,
        "policy": "llm",
        "writer": [1] * len(ids),
        "correct": True,
    }
    return Trace(**(own | changes), columns=columns)


def random_traces(num: int, seed: int = 0, vocabulary: int = 40) -> list[Trace]:
    """Responses of 0 to 60 tokens, most entropies near 0, verdicts of all kinds."""
    rng = np.random.default_rng(seed)
    traces = []
    for sample in range(num):
        length = int(rng.integers(0, 60))
        ids = rng.integers(0, vocabulary, length)
        entropy = (rng.exponential(0.5, length) * (ids % 3 == 0) + 1e-4 * ids).astype(np.float32)
        correct = (True, False, None)[sample % 3]
        task = "countdown" if sample % 2 else "knights"
        traces.append(small_trace(ids.tolist(), sample, entropy_llm=entropy, correct=correct, task=task))
    return traces


def written(
    folder: Path, traces: Sequence[Trace], shard_rows: int = 4, record: dict[str, Any] = RECORD
) -> Path:
    """The folder with the traces in shards of `shard_rows`."""
    with TraceWriter(folder, record, shard_rows=shard_rows) as writer:
        for trace in traces:
            writer.write(trace)
    return folder
