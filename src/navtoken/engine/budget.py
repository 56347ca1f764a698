"""How much KV cache there is: one budget for both models, dealt out so that each can hold the same number of tokens."""

from collections.abc import Collection

import psutil
import torch

from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.engine.blocks import BlockPool
from navtoken.engine.kv_cache import KVCache
from navtoken.engine.options import EngineOptions, OptionError
from navtoken.placement import agree
from navtoken.policies import Writer

GIB = 2**30
CPU_PART, ACCELERATOR_PART = 0.5, 0.9
"""Of the memory that is free when the engine is made, where no budget is given."""
CPU_BLOCK, CUDA_BLOCK = 64, 256
"""Tokens per block. On CUDA a multiple of what flash attention over pages takes."""


def make_caches(
    pair: ModelPair, options: EngineOptions, running: Collection[Writer] = tuple(Writer)
) -> tuple[tuple[BlockPool, BlockPool], tuple[KVCache, KVCache]]:
    """Bookkeeping and storage for both models, of which those in `running` count. Raises `OptionError` where the budget holds no block."""
    num_tokens = cache_tokens(pair, options, running)
    pools, caches = [], []
    for loaded in (pair.slm, pair.llm):
        size = options.block_size or block_size(loaded)
        num_blocks = num_tokens // size
        scratch = 1 if loaded.device.type == "cuda" else 0
        if num_blocks < 2 + scratch:
            raise OptionError(
                f"the KV caches have room for {num_tokens} tokens, less than {2 + scratch} blocks of {size}; "
                "give more cache_gib"
            )
        pools.append(BlockPool(num_blocks - scratch, size))
        caches.append(KVCache(num_blocks, size, loaded.device))
    return (pools[0], pools[1]), (caches[0], caches[1])


def cache_tokens(pair: ModelPair, options: EngineOptions, running: Collection[Writer] = tuple(Writer)) -> int:
    """Tokens that both models' caches hold: the largest common number, but no more than all rows could fill.

    One model that stands for both halves of the pair, and runs as one of them only, fills one cache: nothing is left for another.
    """
    alone = pair.slm is pair.llm and len(running) == 1
    models = (pair.llm,) if alone else (pair.slm, pair.llm)
    sizes = [options.block_size or block_size(loaded) for loaded in models]
    # A block more per row than its context: a shared prefix's last block is copied by whoever goes on.
    most = max(loaded.card.context + 2 * size for loaded, size in zip(models, sizes, strict=True))
    wanted = options.max_rows * most
    if options.cache_gib is not None:
        bytes_per_token = sum(_bytes_per_token(loaded) for loaded in models)
        return min(wanted, int(options.cache_gib * GIB) // bytes_per_token)
    devices: dict[torch.device, int] = {}
    for loaded in models:
        devices[loaded.device] = devices.get(loaded.device, 0) + _bytes_per_token(loaded)
    held = min(wanted, *(free_bytes(device) // each for device, each in devices.items()))
    # Ranks that share a model must put back the same rows.
    return agree(held, min) if pair.shards > 1 else held


def _bytes_per_token(loaded: LoadedModel) -> int:
    """Of the keys and values that this rank holds."""
    return loaded.card.kv_bytes // loaded.card.shards


def block_size(loaded: LoadedModel) -> int:
    return CUDA_BLOCK if loaded.device.type == "cuda" else CPU_BLOCK


def free_bytes(device: torch.device) -> int:
    """Memory of a device that caches may take."""
    if device.type == "cuda":
        # What an engine before this one has left to torch is as good as free.
        left = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(ACCELERATOR_PART * (torch.cuda.mem_get_info(device)[0] + left))
    return int(CPU_PART * psutil.virtual_memory().available)
