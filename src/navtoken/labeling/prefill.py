"""What the SLM would have drafted at every token of the LLM's responses, and all that a router may look at there.

One prefill over the LLM's own ids: nothing is decoded and tokenised again, so every draft stands where the LLM's token stands.
A sampled draft is drawn as the engine would draw it there, by the response's own seed and sample number, so labels on sampled
drafts are labels on what that SLM would have written. Logits exist a few positions at a time.

Shapes: N positions, V vocabulary of the pair, D hidden size of the SLM, K logits recorded.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from navtoken.checkpoints import LoadedModel
from navtoken.engine.options import GREEDY, SamplingParams
from navtoken.engine.sampler import Draw, Places
from navtoken.engine.sequence import Sequence as Row
from navtoken.entropy import scores_from_logits
from navtoken.hidden_states import BATCH_TOKENS, GivenResponse, batches, read_hidden
from navtoken.lm_head import LMHead
from navtoken.model_card import text_config
from navtoken.policies import Purpose
from navtoken.policies.rules import SLMPolicy
from navtoken.trace import COLUMNS, Trace

__all__ = ["DraftReader", "ReadResponse"]

CHUNK_ELEMENTS = 2**24
"""Logits that exist at a time; drawing makes several tensors of their size."""
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class ReadResponse:
    """What the SLM made of one response."""

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """`draft_ids`, `entropy_slm`, `logprob_slm`, `margin_slm`, `argmax_slm` and the features, as a trace holds them."""
    error: str | None = None
    """Why there is nothing."""


class DraftReader:
    """An SLM that reads responses of the LLM."""

    def __init__(
        self,
        slm: LoadedModel,
        vocab_size: int,
        sampling: SamplingParams = GREEDY,
        num_logits: int = 100,
        features: bool = True,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        """`vocab_size` is the pair's, `sampling` how drafts are drawn; without `features` the router's inputs are left out.

        Raises `UnknownHeadError` for an architecture whose logits cannot be made from its hidden states.
        """
        rows = text_config(slm.model).vocab_size
        self.slm = slm
        self.head = LMHead.of(slm.model, min(vocab_size, rows))
        self.sampling = sampling
        self.num_logits = min(num_logits, self.head.vocabulary)
        self.features = features
        self.batch_tokens = batch_tokens

    def read(self, traces: Sequence[Trace]) -> Iterator[ReadResponse]:
        """Yields what the SLM makes of each response, in their order. A response that it cannot read has an error."""
        errors = [self._refusal(trace) for trace in traces]
        readable = [index for index, error in enumerate(errors) if error is None]
        found: dict[int, ReadResponse] = {}
        for batch in batches(readable, lambda index: _given(traces[index]).fed, self.batch_tokens):
            found.update(zip(batch, self._read([traces[index] for index in batch]), strict=True))
        for index, error in enumerate(errors):
            yield found.get(index, ReadResponse(error=error))

    def _refusal(self, trace: Trace) -> str | None:
        """Why a response cannot be read."""
        if not trace.response_ids:
            return "the response has no tokens"
        if not trace.prompt_ids:
            return "the prompt has no tokens, so nothing predicts the first one"
        low, high = (pick(*trace.prompt_ids, *trace.response_ids) for pick in (min, max))
        if low < 0 or high >= self.head.vocabulary:
            return f"token ids {low} to {high} leave the SLM's 0 to {self.head.vocabulary - 1}"
        if (fed := _given(trace).fed) > self.slm.card.context:
            return (
                f"prompt and response take {fed} tokens, '{self.slm.reference}' reads {self.slm.card.context}"
            )
        return None

    @torch.inference_mode()
    def _read(self, traces: list[Trace]) -> list[ReadResponse]:
        hidden_ND = read_hidden(self.slm, [_given(trace) for trace in traces], self.batch_tokens)
        ids_N = torch.tensor([token_id for trace in traces for token_id in trace.response_ids])
        rows, positions = _places(traces, self.sampling)
        chunk = max(1, CHUNK_ELEMENTS // self.head.vocabulary)
        parts = [
            self._look(
                hidden_ND[start : start + chunk],
                ids_N[start : start + chunk],
                Places(rows[start : start + chunk], positions[start : start + chunk]),
            )
            for start in range(0, len(ids_N), chunk)
        ]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return list(self._by_response(whole, [len(trace.response_ids) for trace in traces]))

    def _look(self, hidden_ND: Tensor, ids_N: Tensor, places: Places) -> dict[str, np.ndarray]:
        """Columns of some positions."""
        logits_NV = self.head.logits(hidden_ND)
        # As the engine widens them, so that drafts are drawn from the same numbers.
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        scores = scores_from_logits(logits_NV, ids_N.to(logits_NV.device))
        # What is no number is told by its entropy; drawing needs numbers.
        draw = Draw(
            logits_NV.nan_to_num() if bool(scores.entropy_N.isnan().any()) else logits_NV,
            places,
            tuple(self.slm.eos_token_ids),
            entropy_M=scores.entropy_N.double(),
        )
        assert scores.logprob_N is not None
        columns = {
            "draft_ids": draw.tokens(Purpose.DRAFT),
            "argmax_slm": scores.argmax_N,
            "entropy_slm": scores.entropy_N,
            "logprob_slm": scores.logprob_N,
            "margin_slm": scores.margin_N,
        }
        if self.features:
            top = logits_NV.topk(self.num_logits, dim=-1)
            columns |= {
                "slm_top_ids": top.indices,
                "slm_top_logits": top.values.clamp(-_HALF_MAX, _HALF_MAX),
                "slm_hidden": hidden_ND.float().clamp(-_HALF_MAX, _HALF_MAX),
            }
        return {name: _column(name, values) for name, values in columns.items()}

    def _by_response(self, whole: dict[str, np.ndarray], lengths: Iterable[int]) -> Iterator[ReadResponse]:
        start = 0
        for length in lengths:
            # Copies, so that keeping one response does not keep its batch.
            columns = {name: values[start : start + length].copy() for name, values in whole.items()}
            start += length
            bad = int(np.isnan(columns["entropy_slm"]).sum())
            if bad:
                yield ReadResponse(
                    error=f"'{self.slm.reference}' gives NaN logits at {bad} of {length} tokens in {self.slm.model.dtype}"
                )
            else:
                yield ReadResponse(columns)


def _given(trace: Trace) -> GivenResponse:
    return GivenResponse(trace.prompt_ids, trace.response_ids)


def _places(traces: Iterable[Trace], sampling: SamplingParams) -> tuple[list[Row], list[int]]:
    """Whose token each position decides: rows as the engine would have them, to be drawn for as it draws."""
    rows: list[Row] = []
    positions: list[int] = []
    for trace in traces:
        prompt_len, length = len(trace.prompt_ids), len(trace.response_ids)
        row = Row(
            sequence_id=0,
            token_ids=[*trace.prompt_ids, *trace.response_ids],
            prompt_len=prompt_len,
            sampling=sampling,
            max_len=prompt_len + length,
            seed=trace.seed,
            sample=trace.sample,
            policy=SLMPolicy(),
        )
        rows += [row] * length
        positions += range(prompt_len, prompt_len + length)
    return rows, positions


def _column(name: str, values: Tensor) -> Any:
    return values.cpu().numpy().astype(COLUMNS[name].dtype)
