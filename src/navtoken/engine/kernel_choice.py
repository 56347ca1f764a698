"""How each model of a pair is run, decided once when the engine is made: which attention, and with graphs or without.

On CUDA in half precision flash attention reads keys through the block table. Whether it can is tried, not looked up: it
depends on `torch`, the device, the head size and the block size, and some releases write wrong rows without a word. What
comes out is compared with the slow, obvious version.
"""

import warnings
from collections.abc import Sequence as Seq
from typing import Any

import torch

from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.engine.attention import Kernel, attend_gathered, attend_varlen
from navtoken.engine.compiled import CompiledDecoder
from navtoken.engine.graphs import Capture, CudaCapture, GraphRunner
from navtoken.engine.judging import Sampling
from navtoken.engine.kv_cache import KVCache
from navtoken.engine.ledger import Ledger
from navtoken.engine.options import EngineOptions
from navtoken.engine.packing import Feed, Packed
from navtoken.engine.runner import ModelRunner, Runner
from navtoken.model_card import text_config
from navtoken.policies import Writer

SCALE, TOLERANCE = 0.5, 0.05
"""Of a trial: few keys have most of the weight, so that outputs are about 1; half precision rounds them by 0.01 or 0.02."""
WIDER = 8
"""A trial's block table is so many times as wide as its rows need."""
HALF = (torch.bfloat16, torch.float16)


def make_runners(
    pair: ModelPair, ledger: Ledger, caches: Seq[KVCache], sampling: Sampling, options: EngineOptions
) -> tuple[Runner, Runner]:
    """The SLM's and the LLM's."""
    captures: dict[torch.device, Capture] = {}
    slm, llm = (
        _make_runner(model, ledger, pair, caches[model], sampling, options, captures) for model in Writer
    )
    return slm, llm


def _make_runner(
    model: Writer,
    ledger: Ledger,
    pair: ModelPair,
    cache: KVCache,
    sampling: Sampling,
    options: EngineOptions,
    captures: dict[torch.device, Capture],
) -> Runner:
    loaded, size = pair[model], pair.vocab_size
    kernel = paged_kernel(loaded, cache)
    if kernel is attend_varlen and options.cuda_graphs and loaded.is_whole:
        if loaded.device not in captures:
            captures[loaded.device] = CudaCapture(loaded.device)
        capture = captures[loaded.device]
        return GraphRunner(model, ledger, loaded, size, cache, kernel, sampling, capture)
    compiled = CompiledDecoder(loaded) if options.torch_compile else None
    return ModelRunner(model, ledger, loaded, size, cache, kernel, compiled)


def paged_kernel(loaded: LoadedModel, cache: KVCache) -> Kernel | None:
    """Flash attention where it works, the obvious version with a warning where it should; None lets tensors choose."""
    config: Any = text_config(loaded.model)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    if loaded.device.type != "cuda":
        return None
    if loaded.model.dtype not in HALF or capped:
        why = "soft-caps its scores" if capped else f"is in {loaded.model.dtype}"
        warnings.warn(
            f"'{loaded.reference}' {why}: its attention is computed row by row, slowly and without CUDA graphs"
            + ("" if capped else "; load it with --dtype bfloat16"),
            stacklevel=2,
        )
        return None
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    problem = find_problem(attend_varlen, (heads, kv_heads, width), cache, loaded.model.dtype)
    if problem is None:
        return attend_varlen
    warnings.warn(
        f"flash attention cannot serve '{loaded.reference}' here ({problem}); a slow attention does, without CUDA graphs. "
        "It needs torch 2.13, an Ampere GPU or newer, heads of at most 256 and blocks of a multiple of 256 tokens",
        stacklevel=2,
    )
    return attend_gathered


@torch.inference_mode()
def find_problem(
    kernel: Kernel, shape: tuple[int, int, int], cache: KVCache, dtype: torch.dtype
) -> str | None:
    """What is wrong with a kernel on (query heads, key/value heads, head size) in a cache like this; None if nothing is.

    Tried on rows with one query and with several, shorter and longer than a block, with a window and without.
    """
    size, device = cache.block_size, cache.device
    trial, wide = (KVCache(4, size, device, cache.heads_first) for _ in range(2))
    wide_dtype = torch.promote_types(dtype, torch.float32)
    generator = torch.Generator().manual_seed(0)

    def some(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator).to(device, dtype)

    new = some(4 * size, *shape[1:]), some(4 * size, *shape[1:])
    places = torch.arange(4 * size, device=device)
    trial.write(0, places, *new)
    wide.write(0, places, *(each.to(wide_dtype) for each in new))
    for lengths in ([1, 1, 1], [1, 5, 7]):
        rows = _trial_rows(lengths, size)
        query_TQH = some(sum(lengths), *shape[::2])
        for window in (None, size // 2):
            packed = Packed.of(rows, trial, device)
            # As wide as a graph's table: blocks that no row has used may be split off, but not counted.
            packed.table, packed.max_used = packed.table.repeat(1, WIDER), packed.max_used * WIDER
            try:
                ours = kernel(query_TQH, 0, packed, SCALE, window, None)
            except (ImportError, RuntimeError, TypeError, ValueError) as error:
                return f"it refuses: {str(error).splitlines()[0]}"
            oracle = Packed.of(rows, wide, device)
            exact = attend_gathered(query_TQH.to(wide_dtype), 0, oracle, SCALE, window, None)
            off = (ours.to(wide_dtype) - exact).abs().max().item()
            if not off < TOLERANCE:
                return f"its outputs are off by {off:.2g}"
    return None


def _trial_rows(lengths: Seq[int], size: int) -> list[Feed]:
    """Three rows with so many new tokens."""
    tables, ends = ([2, 0], [1, 3], [3]), (2 * size - 3, 2 * size, 7)
    rows = zip(tables, ends, lengths, strict=True)
    return [Feed(table, end - length, [0] * length) for table, end, length in rows]
