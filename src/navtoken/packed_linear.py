"""Linear layers whose weights lie in memory the way the CPU's kernel reads them.

A decode pass over a few rows costs what reading the weights costs. `F.linear` reads bfloat16 weights row by row, as
checkpoints store them, and reaches about half of the memory's bandwidth; from a layout of its own oneDNN reaches most
of it, and is nowhere slower up to 128 rows, so one layout serves every pass and the dense weights can go.

A packed weight keeps its name, shape and dtype and stays a parameter, so that counts of parameters and bytes are those
of the dense model; but its layout is opaque (`torch._mkldnn`), and what would index it or copy into it raises. (Not all
that would write into it does: `zero_` on such a tensor corrupts memory in torch 2.13.) A weight that others read, the
LM head's and one tied to it, also stays in dense form, beside its packed copy.

Packed layers are for inference. Weights change through `load_state_dict`, which packs the new ones, or between
`unpack_linears` and `pack_linears`. `state_dict`, `copy.deepcopy` and pickles carry dense weights.
"""

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

PACKED_DTYPES = frozenset((torch.bfloat16,))
"""Where packing was measured to pay."""


class PackedTrainingError(RuntimeError):
    """A gradient wanted of weights that are packed for inference."""


class PackedLinear(nn.Module):
    """An `nn.Linear` for inference whose weight lies in oneDNN's layout."""

    def __init__(self, linear: nn.Linear, keep_dense: bool = False) -> None:
        """Take over a layer's weight and bias; `keep_dense` leaves its weight readable, for twice the bytes."""
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.keep_dense = keep_dense
        self.weight = linear.weight
        self.bias = linear.bias
        self.train(linear.training)
        self._pack()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out). Raises `PackedTrainingError` where a gradient would have to pass."""
        if torch.compiler.is_compiling():
            # A compiler cannot hold tensors of an opaque layout.
            return torch.ops.navtoken.packed_linear(x, self._packed_number, self.out_features)
        if torch.is_grad_enabled() and x.requires_grad:
            raise PackedTrainingError(
                "a gradient cannot pass weights that are packed for inference; call "
                "navtoken.packed_linear.unpack_linears(model) before training"
            )
        return self._multiply(x)

    def _multiply(self, x: Tensor) -> Tensor:
        if self.keep_dense and self._is_stale():
            self._pack()
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y

    def dense_weight(self) -> Tensor:
        """(out, in), bit for bit what was packed; a copy unless it was kept."""
        return self.weight.detach() if self.keep_dense else self._packed.to_dense()

    def unpack(self) -> nn.Linear:
        """An ordinary layer with the same weight and bias."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = self.weight if self.keep_dense else _frozen(self.dense_weight())
        linear.bias = self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )

    def _pack(self) -> None:
        if not hasattr(self, "_packed_number"):
            self._packed_number = next(_numbers)
            _numbered[self._packed_number] = self
        # The op's hint of how many rows to expect makes no difference that could be measured (1 to 128).
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        if self.keep_dense:
            self._packed_from = (self.weight, _version(self.weight))
        else:
            self.weight = _frozen(self._packed)

    def _is_stale(self) -> bool:
        """Was the dense weight replaced, or written into, since it was packed?"""
        weight, version = self._packed_from
        return weight is not self.weight or _version(weight) != version

    def _restore_dense(self) -> None:
        if not self.keep_dense:
            self.weight = _frozen(self.dense_weight())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.keep_dense:
            destination[prefix + "weight"] = self.dense_weight()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._restore_dense()
        super()._load_from_state_dict(*args, **kwargs)
        self._pack()

    def __getstate__(self) -> dict[str, Any]:
        # torch can neither copy nor pickle tensors of an opaque layout.
        state = {name: value for name, value in self.__dict__.items() if not name.startswith("_packed")}
        if not self.keep_dense:
            state["_parameters"] = self._parameters | {"weight": _frozen(self.dense_weight())}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pack()


_numbers = count()
_numbered: WeakValueDictionary[int, PackedLinear] = WeakValueDictionary()
"""Layers by the number under which compiled models ask for them."""
_operations = torch.library.Library("navtoken", "FRAGMENT")
_operations.define("packed_linear(Tensor x, int number, int out_features) -> Tensor")
_operations.impl("packed_linear", lambda x, number, _: _numbered[number]._multiply(x), "CPU")
_operations.impl("packed_linear", lambda x, _, out: x.new_empty(*x.shape[:-1], out), "Meta")


def can_pack(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Does packing work, and pay, for weights of this dtype on this device of this machine?"""
    return (
        dtype in PACKED_DTYPES
        and torch.device(device).type == "cpu"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def pack_linears(model: nn.Module) -> int:
    """Replace a model's linear layers by packed ones, in place, and say how many.

    What cannot be packed stays as it is: other dtypes and devices, subclasses of `nn.Linear` and of its parameters
    (quantised, sharded), layers with hooks (offloaded, tensor-parallel), and experts stored as one tensor of three dimensions.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    read_elsewhere = _shared_parameters(model) | ({id(head.weight)} if isinstance(head, nn.Linear) else set())
    places = _places(model, _is_packable)
    for names in places:
        linear: Any = model.get_submodule(names[0])
        packed = PackedLinear(linear, keep_dense=id(linear.weight) in read_elsewhere)
        for name in names:
            model.set_submodule(name, packed)
    return len(places)


def unpack_linears(model: nn.Module) -> int:
    """Put ordinary layers back, in place, with the weights that were packed, and say how many."""
    places = _places(model, lambda module: isinstance(module, PackedLinear))
    for names in places:
        packed: Any = model.get_submodule(names[0])
        linear = packed.unpack()
        for name in names:
            model.set_submodule(name, linear)
    return len(places)


def _is_packable(module: nn.Module) -> bool:
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and can_pack(module.weight.dtype, module.weight.device)
        and module.weight.numel() > 0
        and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
    )


def _places(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> list[list[str]]:
    """Names of each wanted module; names only, so that a replaced layer's memory is free at once."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name and wanted(module):
            names.setdefault(id(module), []).append(name)
    return list(names.values())


def _shared_parameters(model: nn.Module) -> set[int]:
    """Identities of the parameters that more than one module holds."""
    holders = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return {identity for identity, count in holders.items() if count > 1}


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def _version(weight: Tensor) -> int:
    """Counts writes into a tensor; tensors made in inference mode do not."""
    return 0 if weight.is_inference() else weight._version
