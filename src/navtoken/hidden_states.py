"""What a model thinks at every token of given responses: last hidden states, each response read once, memory bounded.

The tokens are known, so nothing is decoded. A pass reads so many tokens, padding counted; what is longer is read in pieces
behind a KV cache. Logits are nobody's business here: whoever wants them makes them a few positions at a time
(`navtoken.lm_head`).

Padding stands on the right, where a causal model never looks. So no mask is needed, and attention keeps the kernels that hold no
tensor of tokens x tokens.

Shapes: B rows of a batch, T tokens of its longest row, N response positions of a batch, D hidden size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from navtoken.checkpoints import LoadedModel

__all__ = ["BATCH_TOKENS", "GivenResponse", "batches", "read_hidden", "windows"]

BATCH_TOKENS = 8192
"""Tokens of a forward pass, padding counted."""
WINDOW_BATCHES = 16
"""Of so many batches' tokens the responses are sorted by length, to be padded little."""

Item = TypeVar("Item")


class GivenResponse(NamedTuple):
    """One response behind its prompt."""

    prompt: Sequence[int]
    response: Sequence[int]

    @property
    def fed(self) -> int:
        """Tokens to be read: nothing is asked after the last one."""
        return len(self.prompt) + len(self.response) - 1 if len(self.response) else 0

    def ids(self) -> Tensor:
        return torch.tensor([*self.prompt, *self.response][: self.fed])


def windows(
    items: Iterable[Item], size: Callable[[Item], int], batch_tokens: int, num_batches: int = WINDOW_BATCHES
) -> Iterator[list[Item]]:
    """Consecutive items of about `num_batches` batches."""
    window: list[Item] = []
    total = 0
    for item in items:
        window.append(item)
        total += size(item)
        if total >= num_batches * batch_tokens:
            yield window
            window, total = [], 0
    if window:
        yield window


def batches(window: Iterable[Item], fed: Callable[[Item], int], batch_tokens: int) -> Iterator[list[Item]]:
    """Items with something to read by length, longest first: what is too much for the memory is so at once."""
    batch: list[Item] = []
    for item in sorted((item for item in window if fed(item)), key=fed, reverse=True):
        if batch and (len(batch) + 1) * fed(batch[0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def read_hidden(
    loaded: LoadedModel, rows: Sequence[GivenResponse], batch_tokens: int = BATCH_TOKENS
) -> Tensor:
    """(N, D) what the LM head is fed where it predicts the rows' response tokens, one row after the other."""
    ids_BT = torch.zeros(len(rows), max(row.fed for row in rows), dtype=torch.long)
    for ids_T, row in zip(ids_BT, rows, strict=True):
        ids_T[: row.fed] = row.ids()
    hidden_BTD = _read(loaded.model, ids_BT.to(loaded.device), batch_tokens)
    return torch.cat(
        [hidden_TD[len(row.prompt) - 1 : row.fed] for hidden_TD, row in zip(hidden_BTD, rows, strict=True)]
    )


def _read(model: Any, ids_BT: Tensor, batch_tokens: int) -> Tensor:
    """(B, T, D) last hidden states; a row longer than a batch is read in pieces, each behind the KV cache of those before."""
    if ids_BT.shape[1] <= batch_tokens:
        whole: Tensor = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return whole
    cache = DynamicCache(config=model.config)
    pieces = [
        model.base_model(input_ids=piece, past_key_values=cache, use_cache=True).last_hidden_state
        for piece in ids_BT.split(batch_tokens, dim=1)
    ]
    return torch.cat(pieces, dim=1)
