"""Labelled traces made by hand for tests of router training: random features, of which some tell the label."""

from pathlib import Path
from typing import Any

import numpy as np

from navtoken.provenance import provenance
from navtoken.trace import Trace, TraceWriter

VOCAB_SIZE, HIDDEN, NUM_LOGITS = 96, 32, 12
FINGERPRINTS = {"slm": "aa", "llm": "bb", "tokenizer": "cc"}


def labelled_trace(
    problem: int, seed: int = 0, length: int = 12, num_logits: int = NUM_LOGITS, task: str = "countdown"
) -> Trace:
    """A response whose drafts are divergent where the hidden state's first number is high, and neutral where it is middling.

    Every 10th token is invalid, every 15th was not looked at.
    """
    rng = np.random.default_rng([problem, seed])
    hidden = rng.normal(size=(length, HIDDEN)).astype(np.float16)
    label = np.digitize(hidden[:, 0], [0.3, 0.8]).astype(np.int8)
    place = np.arange(length) + problem
    label[place % 10 == 0] = 3
    label[place % 15 == 0] = -1
    ids = np.stack([rng.permutation(VOCAB_SIZE)[:num_logits] for _ in range(length)]).astype(np.int32)
    logits = -np.sort(-rng.normal(0, 2, (length, num_logits))).astype(np.float16)
    response = rng.integers(2, VOCAB_SIZE, length)
    columns = {
        "label": label,
        "draft_ids": ids[:, 0],
        "entropy_slm": rng.exponential(0.5, length).astype(np.float32),
        "slm_top_ids": ids,
        "slm_top_logits": logits,
        "slm_hidden": hidden,
    }
    return Trace(
        task=task,
        problem_id=f"p{problem}",
        sample=0,
        prompt="?",
        prompt_ids=[2 + problem % 60, 3 + problem // 60, 4],
        response_ids=response.tolist(),
        text="",
        finish_reason="stop",
        seed=0,
        policy="llm",
        writer=[1] * length,
        correct=True,
        columns=columns,
    )


def labels(
    folder: Path,
    num: int = 60,
    draft: str = "greedy",
    fingerprints: dict[str, str] | None = None,
    tasks: tuple[str, ...] = ("countdown", "knights"),
    split: str | None = "train",
    first: int = 0,
    **changes: Any,
) -> Path:
    """A folder of labelled responses to problems p0, p1, ... or those from `first` on, tasks in turn."""
    arguments: dict[str, Any] = {"draft": draft, "split": split}
    if draft == "sampled":
        arguments |= {"temperature": 1.0}
    record = provenance(fingerprints or FINGERPRINTS, **arguments)
    with TraceWriter(folder, record, shard_rows=16) as writer:
        for problem in range(first, first + num):
            seed = 0 if draft == "greedy" else 1
            writer.write(labelled_trace(problem, seed, task=tasks[problem % len(tasks)], **changes))
    return folder
