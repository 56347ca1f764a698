"""From a model's logits to what becomes of each row's next token: sampling, evidence and the policy's verdicts.

Everything up to the one copy to the host is tensors on the model's device, and nothing waits for it: that small copy says
all that the engine must know. `weigh_drafts` and `weigh_writes` are that tensor work; a graph may have done it already.

Shapes: B rows, M places where logits were asked for (one a row, more where provisional tokens are judged), V vocabulary.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from navtoken.engine.dice import Dials, Dice
from navtoken.engine.evidence import Evidence, Judgement, as_table, gather_evidence, to_host
from navtoken.engine.runner import Extension
from navtoken.engine.sampler import Draw, Places, TemperatureHook, dials_of
from navtoken.engine.sequence import Said, Sequence
from navtoken.policies import Action, Drafts, Judged, Noise, Policy, Purpose, Verdicts, Writes
from navtoken.policies.rules import LLMPolicy

ALONE = LLMPolicy()
"""Judges rows that the LLM writes because routing does not pay."""
DECIDED, LOGPROB_SLM = 3, 5
"""Where `_columns` has the decided token and the SLM's log-probability of it."""


@dataclass(frozen=True)
class Sampling:
    """What drawing needs beside a row's own parameters."""

    eos_token_ids: tuple[int, ...] = ()
    num_alternatives: int = 0
    temperature_hook: TemperatureHook | None = None

    def draw(self, logits_MV: Tensor, places: Places, evidence: Evidence) -> Draw:
        entropy_M = evidence.entropy_B.double()
        if self.temperature_hook is None:
            return Draw(logits_MV, places, self.eos_token_ids, entropy_M=entropy_M)
        asked_M = dials_of(places.params, logits_MV).at(entropy_M).temperature_M
        return Draw(logits_MV, places, self.eos_token_ids, self.temperature_hook(entropy_M, asked_M))


class Decision(NamedTuple):
    """What one pass said about a row's next token, and what the policy made of it."""

    said: Said
    """What the model sampled."""
    action: Action
    token_id: int
    """The token that the verdict commits, if it commits one."""
    position: int
    """Response tokens that remain before it, or -1 for all."""
    logprob_slm: float
    logprob_llm: float
    """Of `token_id`, T = 1; NaN where not known."""
    p_divergent: float


class JudgedToken(NamedTuple):
    """What the LLM said about a provisional token."""

    entropy: float
    logprob: float
    """Of the token that was drafted."""


def judge_of(row: Sequence) -> Policy:
    """The policy that judges a row's next token."""
    return ALONE if row.alone else row.policy


def judge_drafts(
    extension: Extension, rows: Seq[Sequence], policy: Policy, sampling: Sampling
) -> tuple[list[Decision], Tensor]:
    """Decisions on rows that the SLM was run on, and its log-probabilities (B, V)."""
    judgement = extension.judgement
    if judgement is None:
        evidence, draw = _drawing(extension, rows, sampling)
        states = [row.policy_state for row in rows]
        judgement = weigh_drafts(extension, evidence, draw, policy, states)
    return _decisions(judgement.columns_BF.tolist()), judgement.logprobs_BV


def judge_writes(
    extension: Extension, rows: Seq[Sequence], policy: Policy, sampling: Sampling
) -> list[Decision]:
    """Decisions on rows that the LLM was run on."""
    judgement = extension.judgement
    if judgement is None:
        evidence, draw = _drawing(extension, rows, sampling)
        states = [row.policy_state for row in rows]
        draft_ids_B = torch.tensor(draft_ids(rows), device=extension.logits_MV.device)
        judgement = weigh_writes(extension, evidence, draw, policy, states, draft_ids_B)
    _add_slm_logprobs(judgement.columns_BF, rows)
    return _decisions(judgement.columns_BF.tolist())


def draft_ids(rows: Seq[Sequence]) -> list[int]:
    """What the SLM had drafted for each row's next token; -1 where it had not."""
    return [row.draft.token_id if row.draft else -1 for row in rows]


def weigh_drafts(
    extension: Extension, evidence: Evidence, dice: Dice, policy: Policy, states: Seq[Any]
) -> Judgement:
    """What becomes of the SLM's drafts, as tensor work without a wait: run eagerly, or captured with the pass."""
    token_ids_B = dice.tokens(Purpose.DRAFT)
    drafts = Drafts(
        token_ids_B=token_ids_B,
        logits_BV=extension.logits_MV,
        logprobs_BV=evidence.logprobs_BV,
        hidden_BD=extension.hidden_MD,
        entropy_B=evidence.entropy_B,
        noise=dice.noise,
        probs=dice.probs,
        states=states,
    )
    verdicts = policy.judge_drafts(drafts)
    decided_B = _decided(verdicts, token_ids_B, token_ids_B)
    slm_B = _logprob(evidence.logprobs_BV, decided_B)
    columns = _columns(token_ids_B, evidence, verdicts, decided_B, slm_B, torch.full_like(slm_B, nan))
    return Judgement(as_table(columns), evidence.logprobs_BV)


def weigh_writes(
    extension: Extension,
    evidence: Evidence,
    dice: Dice,
    policy: Policy,
    states: Seq[Any],
    draft_ids_B: Tensor,
) -> Judgement:
    """What becomes of the LLM's tokens, likewise; the SLM's log-probabilities are added later."""
    token_ids_B = dice.tokens(Purpose.LLM_WRITE)
    writes = _writes(extension, evidence, states, token_ids_B, draft_ids_B, dice.noise)
    verdicts = policy.judge_writes(writes)
    decided_B = _decided(verdicts, draft_ids_B, token_ids_B)
    llm_B = _logprob(evidence.logprobs_BV, decided_B)
    columns = _columns(token_ids_B, evidence, verdicts, decided_B, torch.full_like(llm_B, nan), llm_B)
    return Judgement(as_table(columns), evidence.logprobs_BV)


def judge_provisional(
    extension: Extension, rows: Seq[Sequence], policy: Policy, sampling: Sampling
) -> tuple[list[Decision], list[list[JudgedToken]]]:
    """Decisions on rows whose provisional tokens the LLM was run on, and what it said about each of those."""
    places, device = Places.judged_of(rows), extension.logits_MV.device
    evidence = gather_evidence(extension.logits_MV, sampling.num_alternatives)
    draw = sampling.draw(extension.logits_MV, places, evidence)
    token_ids_M = torch.tensor([token for row in rows for token in (*_provisional(row), 0)], device=device)
    logprob_M = _logprob(evidence.logprobs_BV, token_ids_M)
    counts, totals = [row.num_provisional for row in rows], [row.num_response for row in rows]
    judged = Judged(
        counts, totals, token_ids_M, logprob_M, places.noise(device), draw.probs, partial(_written_at, draw)
    )
    first = [0, *accumulate(count + 1 for count in counts)][:-1]
    last = [start + count for start, count in zip(first, counts, strict=True)]
    writes = _writes(
        Extension(extension.logits_MV[last], extension.hidden_MD[last]),
        _part(evidence, last),
        [row.policy_state for row in rows],
        torch.full((len(rows),), -1, device=device),
        torch.tensor(draft_ids(rows), device=device),
        Places.next_of(rows).noise(device),
        judged,
    )
    verdicts = policy.judge_writes(writes)
    assert verdicts.tokens_B is not None and verdicts.positions_B is not None
    # From a row's position in its response to its place among M.
    shift = [start + count - total for start, count, total in zip(first, counts, totals, strict=True)]
    at_stop = _part(evidence, verdicts.positions_B + torch.tensor(shift, device=device))
    table_BF = _stopped(verdicts, at_stop, rows)
    told = to_host([evidence.entropy_B, logprob_M])
    judged_tokens = [
        [JudgedToken(*told[start + index]) for index in range(count)]
        for start, count in zip(first, counts, strict=True)
    ]
    return _decisions(table_BF.tolist()), judged_tokens


def _provisional(row: Sequence) -> list[int]:
    """The tokens that the LLM has still to judge."""
    return row.token_ids[len(row.token_ids) - row.num_provisional :]


def _part(evidence: Evidence, places: Tensor | list[int]) -> Evidence:
    return Evidence(*(column[places] for column in vars(evidence).values()))


def _written_at(draw: Draw, places_B: Tensor) -> Tensor:
    """What the LLM writes at some of the places, without drawing at the others."""
    dials = Dials(draw.dials.values_6M[:, places_B], draw.dials.steps)
    dice = Dice(draw.logits_MV[places_B], dials, lambda purpose: draw.noise(purpose)[places_B])
    return dice.tokens(Purpose.LLM_WRITE)


def _stopped(verdicts: Verdicts, at_stop: Evidence, rows: Seq[Sequence]) -> Tensor:
    """The columns of judged rows: what is committed behind the tokens that are kept, (B, F)."""
    assert verdicts.tokens_B is not None and verdicts.positions_B is not None
    llm_B = _logprob(at_stop.logprobs_BV, verdicts.tokens_B)
    nothing_B = torch.full_like(llm_B, nan)
    columns = _columns(verdicts.tokens_B, at_stop, verdicts, verdicts.tokens_B, nothing_B, llm_B)
    table_BF = as_table(columns)
    _add_slm_logprobs(table_BF, rows)
    # A draft is of the position behind all provisional tokens.
    ends_B = torch.tensor([row.num_response for row in rows], device=llm_B.device)
    taken_back_B = verdicts.positions_B < ends_B
    table_BF[:, LOGPROB_SLM] = table_BF[:, LOGPROB_SLM].masked_fill(taken_back_B, nan)
    return table_BF


def _drawing(extension: Extension, rows: Seq[Sequence], sampling: Sampling) -> tuple[Evidence, Dice]:
    """What is said about each row's next token, and how it is drawn."""
    evidence = gather_evidence(extension.logits_MV, sampling.num_alternatives)
    return evidence, sampling.draw(extension.logits_MV, Places.next_of(rows), evidence)


def _add_slm_logprobs(columns_BF: Tensor, rows: Seq[Sequence]) -> None:
    """Fill in what the SLM said about the decided tokens, where it drafted."""
    drafted = [index for index, row in enumerate(rows) if row.draft_logprobs_V is not None]
    if not drafted:
        return
    stored = [row.draft_logprobs_V for row in rows if row.draft_logprobs_V is not None]
    stored_DV = torch.stack([each.to(columns_BF.device) for each in stored])
    decided_D = columns_BF[drafted, DECIDED].long()
    columns_BF[drafted, LOGPROB_SLM] = _logprob(stored_DV, decided_D).double()


def _writes(
    extension: Extension,
    evidence: Evidence,
    states: Seq[Any],
    token_ids_B: Tensor,
    draft_ids_B: Tensor,
    noise: Noise,
    judged: Judged | None = None,
) -> Writes:
    return Writes(
        token_ids_B=token_ids_B,
        logprobs_BV=evidence.logprobs_BV,
        hidden_BD=extension.hidden_MD,
        entropy_B=evidence.entropy_B,
        draft_ids_B=draft_ids_B,
        noise=noise,
        states=states,
        judged=judged,
    )


def _decided(verdicts: Verdicts, draft_ids_B: Tensor, llm_ids_B: Tensor) -> Tensor:
    """The token that each verdict commits."""
    kept_B = torch.where(verdicts.actions_B == Action.KEEP, draft_ids_B, llm_ids_B)
    if verdicts.tokens_B is None:
        return kept_B
    return torch.where(verdicts.actions_B == Action.REPLACE, verdicts.tokens_B, kept_B)


def _logprob(logprobs_BV: Tensor, token_ids_B: Tensor) -> Tensor:
    return logprobs_BV.gather(1, token_ids_B.clamp(min=0)[:, None])[:, 0]


def _columns(
    token_ids_B: Tensor,
    evidence: Evidence,
    verdicts: Verdicts,
    decided_B: Tensor,
    slm_B: Tensor,
    llm_B: Tensor,
) -> list[Tensor]:
    positions_B, p_divergent_B = verdicts.positions_B, verdicts.p_divergent_B
    return [
        token_ids_B,
        evidence.entropy_B,
        verdicts.actions_B,
        decided_B,
        torch.full_like(decided_B, -1) if positions_B is None else positions_B,
        slm_B,
        llm_B,
        torch.full_like(slm_B, nan) if p_divergent_B is None else p_divergent_B,
        evidence.top_ids_BA,
        evidence.top_logprobs_BA,
    ]


def _decisions(host: list[list[float]]) -> list[Decision]:
    decisions = []
    for token_id, entropy, action, decided, position, slm, llm, p_divergent, *top in host:
        half = len(top) // 2
        said = Said(int(token_id), entropy, [int(each) for each in top[:half]], top[half:])
        decisions.append(
            Decision(said, Action(int(action)), int(decided), int(position), slm, llm, p_divergent)
        )
    return decisions
