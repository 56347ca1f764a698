"""Log-probabilities of a prompt's own tokens, which `echo` asks for and evaluation harnesses live on."""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property

import torch

from navtoken.checkpoints import LoadedModel
from navtoken.entropy import chunk_rows
from navtoken.hidden_states import BATCH_TOKENS, GivenResponse, batches, read_hidden
from navtoken.lm_head import LMHead


@dataclass(frozen=True)
class PromptScores:
    """Of one prompt, by position. Of the first token nothing is known."""

    logprobs: list[float | None]
    """Nats, T = 1, of the prompt's own token."""
    top: list[list[tuple[int, float]]]
    """The likeliest tokens with their log-probabilities, best first."""


@dataclass(eq=False)
class ScoredBy:
    """The model that scores prompts, with its LM head."""

    loaded: LoadedModel
    vocab_size: int
    """Tokens of the pair."""

    @cached_property
    def head(self) -> LMHead:
        return LMHead.of(self.loaded.model, self.vocab_size)

    def score(self, prompts: Seq[Seq[int]], num_top: int) -> Iterator[list[PromptScores] | None]:
        """Score prompts, those of about one length together: yields None after each batch, and all scores in the end."""
        rows = [GivenResponse(ids[:1], ids[1:]) for ids in prompts]
        found: dict[int, PromptScores] = {}
        for batch in batches(range(len(rows)), lambda index: rows[index].fed, BATCH_TOKENS):
            found |= zip(batch, self._score_batch([rows[index] for index in batch], num_top), strict=True)
            yield None
        yield [found.get(index, PromptScores([None], [[]])) for index in range(len(rows))]

    @torch.inference_mode()
    def _score_batch(self, rows: list[GivenResponse], num_top: int) -> list[PromptScores]:
        parts = read_hidden(self.loaded, rows).split([row.fed for row in rows])
        return [
            self._scores(hidden_TD, row.response, num_top) for hidden_TD, row in zip(parts, rows, strict=True)
        ]

    def _scores(self, hidden_TD: torch.Tensor, token_ids: Seq[int], num_top: int) -> PromptScores:
        scores = PromptScores([None], [[]])
        ids_T = torch.tensor(token_ids, device=hidden_TD.device)
        rows = chunk_rows(len(token_ids), self.head.vocabulary)
        for part_CD, ids_C in zip(hidden_TD.split(rows), ids_T.split(rows), strict=True):
            logits_CV = self.head.logits(part_CD)
            logprobs_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)).log_softmax(-1)
            own_C = logprobs_CV.gather(1, ids_C.to(logprobs_CV.device)[:, None])[:, 0]
            best = logprobs_CV.topk(num_top, dim=-1)
            scores.logprobs.extend(own_C.tolist())
            scores.top.extend(
                list(zip(ids, values, strict=True))
                for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            )
        return scores
