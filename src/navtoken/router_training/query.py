"""Examples for whole-query routing: will the SLM's own response be wrong, and the LLM's right?

Both models' responses are there as traces; what the router reads of a prompt is what the SLM's first draft gives it in decoding,
so prompts go through the engine, one step each.

Shapes: N examples, K logits, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine
from navtoken.labeling.labels import Label
from navtoken.policies import BasePolicy, Drafts, Verdicts, Writer
from navtoken.router.splits import PARTS, part_of
from navtoken.router_training.examples import Examples, ExamplesError, PromptOf
from navtoken.trace import read_traces

Answered = tuple[str, str, int, str]
"""Task, problem, sample, and how tokens were drawn."""


@dataclass(frozen=True)
class Seen:
    """What the SLM makes of a prompt, at its last token."""

    ids_K: np.ndarray
    """Token ids of the highest logits, the most probable first."""
    logits_K: np.ndarray
    hidden_D: np.ndarray
    draft: int
    entropy: float


@dataclass(frozen=True)
class _Looking(BasePolicy):
    """Keeps what a router would read of every prompt's first draft."""

    num_logits: int
    """Highest logits kept; 0 keeps none."""
    seen: dict[tuple[int, ...], Seen] = field(default_factory=dict, compare=False)
    reference: str = "looking"
    models = frozenset((Writer.SLM,))

    def start(self, prompt_ids: Sequence[int]) -> Any:
        return tuple(prompt_ids)

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        best = drafts.logits_BV.topk(self.num_logits, dim=-1)
        for row, prompt_ids in enumerate(drafts.states):
            self.seen[prompt_ids] = Seen(
                best.indices[row].int().cpu().numpy(),
                best.values[row].half().cpu().numpy(),
                drafts.hidden_BD[row].half().cpu().numpy(),
                int(drafts.token_ids_B[row]),
                float(drafts.entropy_B[row]),
            )
        return Verdicts(drafts.token_ids_B * 0)


@dataclass(frozen=True)
class _Pairing:
    """Who was right on which prompt."""

    prompts: dict[tuple[str, str], PromptOf]
    answered: dict[Answered, dict[str, bool]]
    """Policy -> correct."""

    def both(self) -> list[tuple[Answered, bool]]:
        """What both models answered, with whether only the LLM was right."""
        return [
            (key, by["llm"] and not by["slm"])
            for key, by in self.answered.items()
            if {"slm", "llm"} <= by.keys()
        ]


def gather_queries(
    folders: Sequence[Path], pair: ModelPair, num_logits: int, tell: Callable[[int], object] = lambda _: None
) -> Examples:
    """Examples out of traces of policies `slm` and `llm`, with so many logits; 0 keeps none.

    Raises `ExamplesError` where no problem has both.
    """
    pairing = _pairing(folders, tell)
    both = pairing.both()
    if not both:
        raise ExamplesError(
            f"no response in {', '.join(map(str, folders))} was written by both slm and llm and verified; write some with "
            "`navtoken generate --policy slm --policy llm --split train`"
        )
    num_logits = min(num_logits, pair.vocab_size)
    seen = look(pair, {pairing.prompts[key[:2]].prompt_ids for key, _ in both}, num_logits)
    problems = {key: number for number, key in enumerate(pairing.prompts)}
    modes = tuple(dict.fromkeys(key[3] for key, _ in both))
    rows = [seen[pairing.prompts[key[:2]].prompt_ids] for key, _ in both]
    ids_NK, logits_NK = (np.stack([getattr(row, name) for row in rows]) for name in ("ids_K", "logits_K"))
    whole = num_logits == pair.vocab_size
    return Examples(
        logits_NK=np.take_along_axis(logits_NK, np.argsort(ids_NK, axis=1), axis=1) if whole else logits_NK,
        ids_NK=None if whole else ids_NK,
        hidden_ND=np.stack([row.hidden_D for row in rows]),
        draft_N=np.array([row.draft for row in rows], dtype=np.int32),
        entropy_N=np.array([row.entropy for row in rows], dtype=np.float32),
        label_N=np.array(
            [Label.DIVERGENT if needed else Label.IDENTICAL for _, needed in both], dtype=np.int8
        ),
        part_N=np.array([PARTS.index(part_of(key[1])) for key, _ in both], dtype=np.int8),
        problem_N=np.array([problems[key[:2]] for key, _ in both], dtype=np.int32),
        mode_N=np.array([modes.index(key[3]) for key, _ in both], dtype=np.int16),
        problems=tuple(pairing.prompts.values()),
        modes=modes,
        vocab_size=pair.vocab_size,
        num_left_out=len(pairing.answered) - len(both),
    )


def look(
    pair: ModelPair, prompts: Iterable[tuple[int, ...]], num_logits: int = 0
) -> dict[tuple[int, ...], Seen]:
    """What the SLM makes of each prompt."""
    policy = _Looking(num_logits)
    engine = Engine(pair, policy)
    for prompt_ids in sorted(prompts):
        engine.add(prompt_ids, max_tokens=1)
    for _ in engine.run():
        pass
    return policy.seen


def _pairing(folders: Sequence[Path], tell: Callable[[int], object]) -> _Pairing:
    pairing = _Pairing({}, {})
    for folder in folders:
        for trace in read_traces(folder, columns=()):
            tell(1)
            if trace.policy not in ("slm", "llm") or trace.correct is None:
                continue
            prompt = PromptOf(trace.task, trace.problem_id, tuple(trace.prompt_ids))
            before = pairing.prompts.setdefault((trace.task, trace.problem_id), prompt)
            if before != prompt:
                raise ExamplesError(
                    f"problem {trace.problem_id} of {trace.task} was put in two ways in {folder}; give traces with one prompt"
                )
            temperature = float(trace.sampling.get("temperature", 0.0))
            mode = "greedy" if temperature == 0 else f"sampled T={temperature:g}"
            key = (trace.task, trace.problem_id, trace.sample, mode)
            pairing.answered.setdefault(key, {})[trace.policy] = trace.correct
    return pairing
