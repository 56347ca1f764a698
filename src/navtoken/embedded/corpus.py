"""Training data of the embedded pair: reference traces of the three families, tokenised once and kept on disk."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from navtoken.embedded.tokenizer import ASSISTANT, EOS, USER
from navtoken.tasks.arithmetic import Arithmetic
from navtoken.tasks.base import GeneratedTask, Problem, Split
from navtoken.tasks.countdown import Countdown
from navtoken.tasks.knights import Knights

FAMILIES: tuple[GeneratedTask, ...] = (Countdown(), Knights(), Arithmetic())
"""What the pair is trained for, at each family's default level."""

EASY: tuple[GeneratedTask, ...] = (Countdown(level=1), Knights(), Arithmetic())
"""What its training begins with: small numbers in countdown, so that search is learned before long sums are."""


def draw_problems(task: GeneratedTask, split: Split, num: int, stream: str) -> Iterator[Problem]:
    """`num` problems of a split, drawn from a named stream; the same one may come again, with another trace."""
    rng = random.Random(stream)
    while num:
        problem = task.draw(rng)
        if task.split_of(problem) == split:
            num -= 1
            yield problem


def examples(tasks: Sequence[GeneratedTask], num: int, seed: int) -> Iterator[tuple[str, str]]:
    """`num` pairs (prompt, reference trace) of the training split, the tasks in turn."""
    sources = [draw_problems(task, "train", num, f"{_family(task)}|train|corpus{seed}") for task in tasks]
    rng = random.Random(f"traces|train|{seed}")
    for index in range(num):
        task = tasks[index % len(tasks)]
        problem = next(sources[index % len(tasks)])
        yield problem.prompt, task.reference(problem, rng)


def vocabulary_examples(seed: int) -> Iterator[tuple[str, str]]:
    """Examples of every family and level: what the tokenizer learns its merges from."""
    rng = random.Random(f"vocabulary|{seed}")
    for family in (Countdown, Knights, Arithmetic):
        for level in (1, 2, 3):
            task = family(level)
            stream = _family(task) + (f",level={level}" if level > 1 else "")
            for problem in draw_problems(task, "train", 600, f"{stream}|train|vocabulary{seed}"):
                yield problem.prompt, task.reference(problem, rng)


def _family(task: GeneratedTask) -> str:
    return task.name.partition(",")[0]


@dataclass(frozen=True)
class Corpus:
    """Token ids of every example end to end, where each starts, and where its response starts."""

    ids: np.ndarray
    starts: np.ndarray
    response_starts: np.ndarray

    def __len__(self) -> int:
        return len(self.response_starts)

    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def batch(self, rows: np.ndarray, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows padded on the right: (ids_BT, labels_BT), labels -100 on prompt and padding."""
        length = int(self.lengths()[rows].max())
        ids_BT = np.full((len(rows), length), pad_id, dtype=np.int64)
        labels_BT = np.full((len(rows), length), -100, dtype=np.int64)
        for place, row in enumerate(rows):
            tokens = self.ids[self.starts[row] : self.starts[row + 1]]
            ids_BT[place, : len(tokens)] = tokens
            begin = self.response_starts[row] - self.starts[row]
            labels_BT[place, begin : len(tokens)] = tokens[begin:]
        return torch.from_numpy(ids_BT), torch.from_numpy(labels_BT)


def tokenise(pairs: Iterator[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, max_length: int) -> Corpus:
    """Encode examples as the chat template renders them; those beyond `max_length` tokens are left out."""
    ids: list[int] = []
    starts, response_starts = [0], []
    while chunk := [pair for _, pair in zip(range(2000), pairs, strict=False)]:
        prompts = tokenizer([USER + prompt + ASSISTANT for prompt, _ in chunk])["input_ids"]
        responses = tokenizer([" " + trace + EOS for _, trace in chunk])["input_ids"]
        for prompt_ids, response_ids in zip(prompts, responses, strict=True):
            if len(prompt_ids) + len(response_ids) > max_length:
                continue
            response_starts.append(len(ids) + len(prompt_ids))
            ids += prompt_ids + response_ids
            starts.append(len(ids))
    return Corpus(np.array(ids, dtype=np.int16), np.array(starts), np.array(response_starts))


def save(corpus: Corpus, path: Path) -> None:
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, ids=corpus.ids, starts=corpus.starts, response_starts=corpus.response_starts)
    temporary.replace(path)


def load(path: Path) -> Corpus:
    with np.load(path, allow_pickle=False) as arrays:
        return Corpus(arrays["ids"], arrays["starts"], arrays["response_starts"])


def epoch_batches(corpus: Corpus, batch_tokens: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of about `batch_tokens` padded tokens, rows of like length together, in random order."""
    lengths = corpus.lengths()
    order = np.lexsort((rng.random(len(lengths)), lengths + rng.integers(0, 12, len(lengths))))
    batches: list[np.ndarray] = []
    current: list[int] = []
    longest = 0
    for row in order:
        longest = max(longest, int(lengths[row]))
        if current and longest * (len(current) + 1) > batch_tokens:
            batches.append(np.array(current))
            current, longest = [], int(lengths[row])
        current.append(row)
    batches.append(np.array(current))
    yield from (batches[index] for index in rng.permutation(len(batches)))
