"""One operation per model: `extend` feeds each row's tokens from `cached_len` on.

Prompt prefill, single-token decode and catch-up are the same call with other lengths, for either model. `Runner` keeps
the books and `ModelRunner` runs the model, so the books are tested with a fake model and no weights.

Shapes: N positions at which logits were asked for, V vocabulary of the pair, D hidden size, T packed tokens.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from navtoken.checkpoints import LoadedModel
from navtoken.engine.attention import Feed, Plan, slotted
from navtoken.engine.kv_cache import KVCache
from navtoken.engine.ledger import Ledger
from navtoken.engine.sequence import Sequence
from navtoken.model_card import text_config
from navtoken.policies.base import Writer


class BadLogitsError(ArithmeticError):
    """A model whose logits are not numbers."""


class Extension(NamedTuple):
    """What a model says at the asked positions, rows one after the other."""

    logits_NV: Tensor
    """After soft-cap and scaling, padded rows of the head cut off."""
    hidden_ND: Tensor
    """What the LM head was fed."""


class Runner:
    """Bookkeeping of one model of the pair; subclasses run the model."""

    def __init__(self, model: Writer, ledger: Ledger) -> None:
        self.model = model
        self.ledger = ledger

    def extend(self, rows: Seq[Sequence], num_logits: int = 1) -> Extension:
        """Feed what the model lacks of each row; logits at each row's last `num_logits` positions."""
        feeds = [_feed(row, self.model) for row in rows]
        extension = self.forward(feeds, num_logits)
        self.ledger.models[self.model].passes += 1
        for row, feed in zip(rows, feeds, strict=True):
            row.mark_cached(self.model)
            row.ledger.models[self.model].passes += 1
            for ledger in (self.ledger, row.ledger):
                ledger.models[self.model].record(feed.start, feed.end, row.prompt_len, num_logits)
        return extension

    def forward(self, feeds: Seq[Feed], num_logits: int) -> Extension:
        """Compute; `feeds` are all different slots."""
        raise NotImplementedError

    def copy_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copy a cached prefix into another slot."""
        raise NotImplementedError


class ModelRunner(Runner):
    """Runs a `transformers` causal LM on slotted KV caches."""

    def __init__(self, model: Writer, ledger: Ledger, loaded: LoadedModel, vocab_size: int) -> None:
        super().__init__(model, ledger)
        self.loaded = loaded
        self.vocab_size = vocab_size
        self.cache = KVCache()

    @torch.inference_mode()
    def forward(self, feeds: Seq[Feed], num_logits: int) -> Extension:
        model = self.loaded.model
        device = model.device
        self.cache.reserve(1 + max(feed.slot for feed in feeds), max(feed.end for feed in feeds))
        plan = Plan.of(feeds, self.cache, device)
        token_ids_T = torch.tensor([token for feed in feeds for token in feed.token_ids], device=device)
        with slotted(text_config(model)), _head_input(model) as captured:
            output = model(
                input_ids=token_ids_T[None],
                position_ids=plan.positions_T[None],
                use_cache=False,
                logits_to_keep=_last_positions(feeds, num_logits).to(device),
                plan=plan,
            )
        logits_NV = output.logits[0, :, : self.vocab_size]
        if bool(logits_NV.isnan().any()):
            raise self._bad_logits(logits_NV, num_logits)
        return Extension(logits_NV, captured[0][0])

    def copy_slot(self, source: int, target: int, num_tokens: int) -> None:
        self.cache.copy(source, target, num_tokens)

    def _bad_logits(self, logits_NV: Tensor, num_logits: int) -> BadLogitsError:
        num_bad = int(logits_NV.isnan().any(-1).sum())
        return BadLogitsError(
            f"the {self.model.name} '{self.loaded.reference}' gave NaN logits at {num_bad} of {len(logits_NV)} "
            f"positions in {logits_NV.dtype}; check its weights, or load it with --dtype float32 (float16 overflows "
            "in models trained in bfloat16)"
        )


def _feed(row: Sequence, model: Writer) -> Feed:
    assert row.slot is not None, "only rows with a slot can be extended"
    pending = row.pending_ids(model)
    assert pending, "nothing to feed: the row was extended twice without a new token"
    return Feed(row.slot, row.cached_len[model], pending)


def _last_positions(feeds: Seq[Feed], num_logits: int) -> Tensor:
    """Indices of each row's last positions among the packed tokens, shape (N,)."""
    positions: list[int] = []
    end = 0
    for feed in feeds:
        end += len(feed.token_ids)
        assert num_logits <= len(feed.token_ids), "logits are only known at positions that are fed"
        positions += range(end - num_logits, end)
    return torch.tensor(positions)


@contextmanager
def _head_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the LM head is fed, so that hidden states need no second pass and no model-specific code."""
    captured: list[Tensor] = []
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    try:
        yield captured
    finally:
        handle.remove()
