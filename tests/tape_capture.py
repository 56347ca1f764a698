"""A capture that behaves like a CUDA graph, on a CPU: tensor operations are put on tape once, and replayed from the tape.

A replay runs no Python of what was captured. So whatever was read from a list, a number or a fresh tensor while recording
stays what it was, as in a real graph, and results appear at the addresses of the first ones. What a real capture refuses
(waiting for a value, shapes that depend on values, tensors made out of Python numbers) is refused here.

`attend_by_tensors` stands in for flash attention: what it computes follows from tensors only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from navtoken.engine.packing import Packed
from navtoken.engine.runner import Extension

REFUSED = {"aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh", "aten::is_nonzero"}


class Recorder(TorchDispatchMode):
    """Puts operations on tape."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.name().split(".")[0] in REFUSED:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.name()}")
        out = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, out))
        return out


def replay(tape: list[tuple[Any, tuple, dict, Any]]) -> None:
    """Run all operations again, each result where the first one lies."""
    for func, args, kwargs, out in tape:
        again = func(*args, **kwargs)
        for first, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
            if (
                isinstance(first, Tensor)
                and first.untyped_storage().data_ptr() != new.untyped_storage().data_ptr()
            ):
                assert first.shape == new.shape
                first.copy_(new)


class TapeCapture:
    """What `CudaCapture` is on CUDA; counts what it did."""

    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0

    def __call__(self, work: Callable[[], Extension]) -> tuple[Callable[[], None], Extension]:
        self.num_captures += 1
        work()
        with Recorder() as recorder:
            said = work()

        def counted() -> None:
            self.num_replays += 1
            replay(recorder.tape)

        return counted, said


def attend_by_tensors(
    query_TQH: Tensor, layer: int, packed: Packed, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Flash attention's semantics: causal at the bottom right, used lengths, a block table, nothing read beyond."""
    assert softcap is None and not packed.cache.heads_first
    return attend_paged(
        query_TQH,
        packed.cache.keys[layer],
        packed.cache.values[layer],
        packed.offsets,
        packed.used_B,
        packed.table,
        scale,
        window,
    )


def attend_paged(
    query_TQH: Tensor,
    keys_CLKH: Tensor,
    values_CLKH: Tensor,
    offsets: Tensor,
    used_B: Tensor,
    table_BP: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """(T, Q, H) queries to outputs of the same shape."""
    num, groups = len(query_TQH), query_TQH.shape[1] // keys_CLKH.shape[2]
    tokens_T = torch.arange(num)
    rows_T = torch.searchsorted(offsets[1:].contiguous(), tokens_T, right=True)
    positions_T = used_B[rows_T] - (offsets[rows_T + 1] - tokens_T)
    table_TP = table_BP[rows_T]
    keys_TSQH = keys_CLKH[table_TP].flatten(1, 2).repeat_interleave(groups, 2)
    values_TSQH = values_CLKH[table_TP].flatten(1, 2).repeat_interleave(groups, 2)
    keys_S = torch.arange(keys_TSQH.shape[1])
    seen_TS = keys_S <= positions_T[:, None]
    if window is not None:
        seen_TS &= keys_S > positions_T[:, None] - window
    scores_TSQ = torch.einsum("tqh,tsqh->tsq", query_TQH, keys_TSQH) * scale
    probs_TSQ = scores_TSQ.masked_fill(~seen_TS[..., None], -torch.inf).softmax(1)
    return torch.einsum("tsq,tsqh->tqh", probs_TSQ, values_TSQH.masked_fill(~seen_TS[..., None, None], 0.0))
