"""Shapes that passes are rounded up to, so that one captured graph serves all passes of a bucket, and the graph's inputs.

A bucket counts new tokens, whoever's they are, not rows by length: with catch-up lengths as they are, rows padded to the
longest would compute two to four times the tokens. Padding is tokens that are nobody's: of more than 16, a third at most.

Every new token attends by itself, as a row of one query over its own used keys. One query a row is what flash attention
splits over long keys; a few queries a row it does not, and then walks through all keys one block after the other. The price
is that a row's keys are read once per new token, mostly from the L2 cache.

Shapes: T new tokens of a bucket, M places at which logits are asked for, P blocks of a row, N purposes of noise.
"""

from bisect import bisect_left
from collections.abc import Collection
from collections.abc import Sequence as Seq
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from navtoken.engine.attention import Kernel
from navtoken.engine.kv_cache import KVCache
from navtoken.engine.packing import LONG, Feed, Packed
from navtoken.policies import Purpose

TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Few, as each costs a capture: up to some 200 tokens (H200) a pass is bound by reading weights, so that padding is nearly
free. Above 256 it takes the device longer than its launches take the host, and a graph gains nothing."""
FEWEST_ASKED, FEWEST_BLOCKS = 8, 4
"""Below so many, a bucket more saves less than its capture costs."""
NOBODYS_DIALS = ((0.0,), (1.0,), (1.0,), (0.0,), (inf,), (0.0,))
"""Of places that are nobody's, as `dice.Dials` has them: numbers that every step can work with."""


class Bucket(NamedTuple):
    """One shape of a pass."""

    num_tokens: int
    num_asked: int
    """Places at which logits are asked for."""
    num_blocks: int
    """Width of the block table. Kernels split keys by what it could hold, so that it should not be far too wide."""

    @classmethod
    def of(cls, feeds: Seq[Feed], block_size: int) -> "Bucket | None":
        """The smallest that holds a pass; None where it is to be run eagerly: many tokens, or a prompt."""
        num_tokens = sum(len(feed.token_ids) for feed in feeds)
        if num_tokens > TOKENS[-1] or max(len(feed.token_ids) for feed in feeds) > LONG:
            return None
        rounded_tokens = TOKENS[bisect_left(TOKENS, num_tokens)]
        num_asked = sum(feed.num_logits for feed in feeds)
        rounded_asked = rounded_tokens if num_asked == num_tokens else _up(num_asked, FEWEST_ASKED, 2)
        num_blocks = max(-(-feed.end // block_size) for feed in feeds)
        return cls(rounded_tokens, min(rounded_tokens, rounded_asked), _up(num_blocks, FEWEST_BLOCKS, 4))


def _up(count: int, least: int, factor: int) -> int:
    """The first of `least`, `least` * `factor`, ... that is not below."""
    while least < count:
        least *= factor
    return least


class Inputs:
    """What one graph reads: written on the host, sent in one copy, always at the same addresses.

    Eight bytes a number; dials and noise are float64 in the same buffer.
    """

    def __init__(self, bucket: Bucket, cache: KVCache, device: torch.device) -> None:
        self.bucket = bucket
        self.cache = cache
        tokens, asked, blocks = bucket
        shapes = {
            "token_ids": (tokens,),
            "positions": (tokens,),
            "places": (tokens,),
            "asked": (asked,),
            "draft_ids": (asked,),
            "used": (tokens,),
            "table": (tokens, blocks),
            "dials": (len(NOBODYS_DIALS), asked),
            "noise": (len(Purpose), asked),
        }
        total = sum(int(np.prod(shape)) for shape in shapes.values())
        on_cuda = device.type == "cuda"
        self._host = torch.zeros(total, dtype=torch.int64, pin_memory=on_cuda)
        self._there = torch.zeros(total, dtype=torch.int64, device=device)
        self._sent = torch.cuda.Event() if on_cuda else None
        self.arrays: dict[str, np.ndarray] = {}
        self.tensors: dict[str, Tensor] = {}
        first = 0
        for name, shape in shapes.items():
            span = slice(first, first + int(np.prod(shape)))
            array, tensor = self._host.numpy()[span], self._there[span]
            if name in ("dials", "noise"):
                array, tensor = array.view(np.float64), tensor.view(torch.float64)
            self.arrays[name], self.tensors[name] = array.reshape(shape), tensor.view(shape)
            first = span.stop

    def write_feeds(self, feeds: Seq[Feed]) -> None:
        """Say what is fed. Tokens that are nobody's go to the scratch block, and see themselves only."""
        self._wait()
        size, scratch, table = self.cache.block_size, self.cache.scratch, self.arrays["table"]
        table[:] = scratch
        first = 0
        for feed in feeds:
            last, blocks = first + len(feed.token_ids), feed.table[: -(-feed.end // size)]
            table[first:last, : len(blocks)] = blocks
            first = last
        positions = np.array([at for feed in feeds for at in range(feed.start, feed.end)])
        own_places = table[np.arange(first), positions // size] * size + positions % size
        nobodys_places = scratch * size + np.arange(self.bucket.num_tokens - first) % size
        self._put("token_ids", [token for feed in feeds for token in feed.token_ids], 0)
        self._put("positions", positions, 0)
        self._put("used", positions + 1, 1)
        self._put("places", np.concatenate([own_places, nobodys_places]), 0)
        self._put("asked", _asked(feeds), 0)

    def write_draws(self, dials: Seq[Seq[float]], draft_ids: Seq[int]) -> None:
        """Say what tokens are drawn with, and what the SLM had drafted."""
        self.arrays["dials"][:, : len(draft_ids)] = dials
        self.arrays["dials"][:, len(draft_ids) :] = NOBODYS_DIALS
        self._put("draft_ids", draft_ids, 0)

    def write_noise(self, purpose: Purpose, noise: np.ndarray) -> None:
        """Say each place's uniform numbers for a purpose."""
        self.arrays["noise"][purpose, : len(noise)] = noise

    def send(self) -> None:
        """Bring everything over."""
        self._there.copy_(self._host, non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._there.device))

    def packed(self, kernel: Kernel) -> Packed:
        """The pass as the model reads it. Part of what is captured, so that nothing in it is of one pass only."""
        tensors, (num_tokens, _, num_blocks) = self.tensors, self.bucket
        packed = Packed(
            self.cache,
            (),
            tensors["token_ids"],
            tensors["positions"],
            tensors["places"],
            tensors["asked"],
            kernel,
        )
        packed.used_B = tensors["used"].int()
        packed.table = tensors["table"].int()
        packed.offsets = torch.arange(num_tokens + 1, dtype=torch.int32, device=self._there.device)
        packed.used_offsets = torch.cat([packed.offsets[:1], packed.used_B.cumsum(0, dtype=torch.int32)])
        packed.max_new, packed.max_used = 1, num_blocks * self.cache.block_size
        return packed

    def _put(self, name: str, values: Collection[int] | np.ndarray, nobodys: int) -> None:
        array = self.arrays[name]
        array[: len(values)] = values
        array[len(values) :] = nobodys

    def _wait(self) -> None:
        """Until what was sent before has arrived: it must not be overwritten on its way."""
        if self._sent is not None:
            self._sent.synchronize()


def _asked(feeds: Seq[Feed]) -> list[int]:
    """Indices of new tokens at which logits are asked for."""
    asked: list[int] = []
    end = 0
    for feed in feeds:
        end += len(feed.token_ids)
        asked += range(end - feed.num_logits, end)
    return asked
