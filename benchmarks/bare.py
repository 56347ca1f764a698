"""Bare model forwards, timed outside the engine: the ceiling that the engine's speed is held against.

One pass is n new tokens of one packed row, with the keys and values of what precedes them in memory, and the LM head at
one position. The bound of a run is the sum of bare times over the passes that it made, each with as many new tokens as
the ledger counted, catch-up and prefill included. It is strict on purpose: all tokens belong to one row that ends at the shortest
context of the run, nothing is sampled, nothing is copied to the host, and no cache grows by concatenation.

* `logits_to_keep` is an index tensor. With a number, `transformers` slices, and from two positions on the slice makes the
  LM head's product copy its weights.
* The cache is allocated once and read through a view: `StaticCache` attends to its whole length under a mask, and
  `DynamicCache` copies everything it holds at every step.
* Attention is the model's own or `grouped`, whichever is faster for the number of new tokens: on a CPU the former takes several
  times as long where query heads share keys.
* On CUDA a pass is replayed from a graph: its launches are the engine's to hide, too.

Shapes: T new tokens, Q query heads, K key/value heads, G query heads per key/value head, S positions attended to, H head size.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer

from measuring import synchronize
from navtoken.checkpoints import LoadedModel
from navtoken.engine import Engine, Ledger
from navtoken.model_card import text_config
from navtoken.planner import StepTimes
from navtoken.policies import Writer

GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
"""Numbers of new tokens that are timed; between them times are interpolated, above them the last slope goes on."""

SHORTEST_SAMPLE = 0.02
"""Seconds: shorter passes are repeated within a round, up to `MOST_REPEATS` times."""
MOST_REPEATS = 20


GROUPED = "navtoken-bare"
"""Under which `transformers` knows `grouped`."""


def grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    mask_GTS: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one row's (1, Q, T, H) queries as (1, T, Q, H), heads that share keys as queries of one head."""
    _, heads, num_tokens, size = query.shape
    shared = query.reshape(1, key.shape[1], heads // key.shape[1] * num_tokens, size)
    out = scaled_dot_product_attention(shared, key, value, attn_mask=mask_GTS, scale=scaling)
    return out.view(1, heads, num_tokens, -1).transpose(1, 2), None


AttentionInterface.register(GROUPED, grouped)


class PreallocatedLayer(DynamicLayer):
    """A layer's keys and values in place, read as a view up to the last token: no cache can cost less."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Room for one row; what it holds before the new tokens is noise, as good as any text for a clock."""
        rows, heads, _, size = key_states.shape
        self.keys = torch.randn(rows, heads, self.capacity, size).to(key_states)
        self.values = torch.randn(rows, heads, self.capacity, value_states.shape[-1]).to(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the (1, K, T, H) of the new tokens; returns all up to them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[-2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length


class BareModel:
    """Times passes of one model; samples of all rounds are kept, and their medians make the step times."""

    def __init__(self, loaded: LoadedModel, grid: Sequence[int] = GRID, context: int = 128) -> None:
        """`context`: tokens that a pass ends at, its new ones included; longer passes begin with an empty cache."""
        self.model = loaded.model
        self.device = str(self.model.device)
        self.context = context
        self.samples: dict[int, list[float]] = {num: [] for num in grid}
        layers = text_config(self.model).num_hidden_layers
        self.cache = Cache(layers=[PreallocatedLayer(max(context, *grid)) for _ in range(layers)])
        self._passes: dict[int, Callable[[], object]] = {num: self._prepared(num) for num in grid}

    def round(self) -> None:
        """Time each number of new tokens, short passes several times."""
        for num, run in self._passes.items():
            seconds = self._timed(run)
            repeats = min(MOST_REPEATS, int(SHORTEST_SAMPLE / seconds))
            self.samples[num] += [seconds, *(self._timed(run) for _ in range(repeats))]

    def forget(self) -> None:
        """Drop all samples: what was timed minutes ago is no word on now."""
        for samples in self.samples.values():
            samples.clear()

    def times(self) -> StepTimes:
        """Medians; where a longer pass was timed as faster, the shorter one takes that time too (a bound errs downwards)."""
        points = sorted((num, median(seconds)) for num, seconds in self.samples.items() if seconds)
        lowered = list(accumulate((seconds for _, seconds in reversed(points)), min))[::-1]
        return StepTimes.of({num: seconds for (num, _), seconds in zip(points, lowered, strict=True)})

    def _prepared(self, num_tokens: int) -> Callable[[], Tensor]:
        """A pass over so many new tokens, warmed up, by the faster attention."""
        ids_1T = torch.arange(num_tokens, device=self.device)[None] % 64 + 2
        start = max(0, self.context - num_tokens)
        ways = [self.forward(ids_1T, start, attention) for attention in (None, GROUPED)]
        return min(ways, key=self._timed)

    @torch.inference_mode()
    def forward(self, ids_1T: Tensor, start: int, attention: str | None) -> Callable[[], Tensor]:
        """A pass that feeds tokens at positions from `start` on and gives the last one's logits, (1, 1, V); run once."""
        num_tokens = ids_1T.shape[1]
        positions_1T = torch.arange(start, start + num_tokens, device=self.device)[None]
        last = torch.tensor([num_tokens - 1], device=self.device)
        more: dict[str, Any] = {} if attention is None else {"mask_GTS": self._mask(start, num_tokens)}

        @torch.inference_mode()
        def forward() -> Tensor:
            for layer in self.cache.layers:
                layer.length = start
            with _attending(text_config(self.model), attention):
                logits_11V: Tensor = self.model(
                    input_ids=ids_1T,
                    position_ids=positions_1T,
                    past_key_values=self.cache,
                    use_cache=True,
                    logits_to_keep=last,
                    **more,
                ).logits
            return logits_11V

        forward()
        return _captured(forward) if self.device.startswith("cuda") else forward

    def _mask(self, start: int, num_tokens: int) -> Tensor | None:
        """Additive (1, 1, G * T, S) for causal attention; None where the only query sees everything."""
        if num_tokens == 1:
            return None
        config = text_config(self.model)
        num_groups = config.num_attention_heads // (config.num_key_value_heads or config.num_attention_heads)
        seen_TS = torch.ones(num_tokens, start + num_tokens, dtype=torch.bool, device=self.device).tril(start)
        return additive_mask(seen_TS, self.model.dtype).repeat(num_groups, 1)[None, None]

    def _timed(self, run: Callable[[], object]) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        run()
        synchronize(self.device)
        return time.perf_counter() - start


@contextmanager
def _attending(config: Any, attention: str | None) -> Iterator[None]:
    """Let a model attend through another attention for a while; None leaves its own."""
    own = config._attn_implementation
    config._attn_implementation = attention or own
    try:
        yield
    finally:
        config._attn_implementation = own


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, -inf elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)


@torch.inference_mode()
def _captured(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The pass as a CUDA graph, whose logits are overwritten by the next replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits_11V = forward()

    def replay() -> Tensor:
        graph.replay()
        return logits_11V

    return replay


@dataclass(frozen=True)
class Passes:
    """Forward passes that one model made within one engine step."""

    model: Writer
    num_passes: int
    num_tokens: int
    """New tokens of all of them together."""


@dataclass(frozen=True)
class PassLog:
    """The passes of a run, and the ledger of that run alone."""

    passes: Sequence[Passes]
    ledger: Ledger

    def of(self, model: Writer) -> int:
        """How many passes a model made."""
        return sum(each.num_passes for each in self.passes if each.model is model)


def bare_seconds(passes: Iterable[Passes], times: Sequence[StepTimes]) -> float:
    """The same passes, of the same numbers of new tokens, as bare forwards; `times` by model.

    Several passes of a model within one engine step (a speculating SLM) count as equally long.
    """
    return sum(
        each.num_passes * times[each.model](each.num_tokens / each.num_passes)
        for each in passes
        if each.num_passes
    )


@contextmanager
def recorded_passes(engine: Engine) -> Iterator[list[Passes]]:
    """Collect the passes of every `engine.step()` inside, read off the ledger, whose counts hooks on the models confirm."""
    passes: list[Passes] = []
    step = engine.step

    def recording() -> list[Any]:
        before = _counts(engine)
        events = step()
        for model, (old, new) in enumerate(zip(before, _counts(engine), strict=True)):
            if new[0] > old[0]:
                passes.append(Passes(Writer(model), new[0] - old[0], new[1] - old[1]))
        return events

    engine.step = recording  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        del engine.step


def ledger_since(before: dict[str, float], ledger: Ledger) -> Ledger:
    """What a ledger counted after `before` (its `as_dict` of then)."""
    return Ledger.from_dict({name: value - before[name] for name, value in ledger.as_dict().items()})


def _counts(engine: Engine) -> list[tuple[int, int]]:
    """Passes and new tokens so far, by model."""
    return [(model.passes, model.tokens) for model in engine.ledger.models]
