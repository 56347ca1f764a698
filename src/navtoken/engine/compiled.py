"""A model's layers as few fused operations: `torch.compile` of its decoder, for a CPU that has a C++ compiler.

At few tokens a third of a small model's pass is dozens of small operations per layer (norms, rotary positions, gates), each
of which costs more to start than to compute. Attention and packed linear layers stay what they are: operations that the
compiler cannot look into, so there is one graph, and nothing in it depends on how long rows are. It is compiled twice, for
one token and for more, at the first pass of each kind.

CUDA has graphs instead (`graphs`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from navtoken.checkpoints import LoadedModel
from navtoken.engine.options import OptionError


class CompiledDecoder:
    """The part of a causal LM below its head, compiled; engines on one model share what was compiled."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Raises `OptionError` where a model, or this machine, cannot be compiled for."""
        if loaded.device.type != "cpu" or not loaded.is_whole or loaded.quantisation is not None:
            raise OptionError(
                f"torch_compile is for plain weights that lie whole on the CPU, which those of '{loaded.reference}' do "
                "not; leave it out"
            )
        if "isolate_recompiles" not in signature(torch.compile).parameters:
            raise OptionError(
                f"torch_compile needs torch 2.13, and this is {torch.__version__}; update it, or leave it out"
            )
        _check_compiler()
        decoder = loaded.model.get_decoder()
        if decoder not in _forwards:
            _forwards[decoder] = torch.compile(  # type: ignore[call-overload]  # torch's stubs lag behind
                type(decoder).forward,
                dynamic=True,
                isolate_recompiles=True,
                # The engine changes weights in place or not at all; looking at every one takes 2 ms a pass.
                options={"guard_filter_fn": torch.compiler.skip_guard_on_inbuilt_nn_modules_unsafe},
            )
        self._decoder = decoder

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model runs compiled for a while; it is untouched afterwards."""
        self._decoder.forward = partial(_forwards[self._decoder], self._decoder)
        try:
            yield
        finally:
            del self._decoder.forward


_forwards: WeakKeyDictionary[nn.Module, Callable[..., Any]] = WeakKeyDictionary()


@cache
def _check_compiler() -> None:
    """Compiles a trifle: what is missing (a compiler, Python's headers) shows now and not at the first pass."""
    try:
        torch.compile(_trifle)(torch.zeros(2))
    # Whatever inductor fails with, a person needs the same advice.
    except Exception as error:
        raise OptionError(
            f"torch_compile does not work on this machine ({str(error).splitlines()[0]}); it needs a C++ compiler and "
            "Python's headers (Debian: g++ and python3-dev). Install them, or leave torch_compile out"
        ) from error


def _trifle(x: Tensor) -> Tensor:
    return x.sin() + 1
