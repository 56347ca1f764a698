"""Quantised checkpoints: which method made the weights, what reads them, and as which type they compute.

`transformers` loads them; here stands only what would otherwise fail late or obscurely: a package that is missing, a
method that it does not know (it would start such a model from random weights), a type that the kernels do not take.
"""

from importlib.util import find_spec
from typing import Any

import torch

from navtoken.checkpoint_errors import QuantisationError

PACKAGES = {
    "torchao": {"torchao": "torchao"},
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "hqq": {"hqq": "hqq"},
    "quanto": {"optimum.quanto": "optimum-quanto"},
}
"""What reads each method's weights, besides accelerate: module and name for pip. Other methods' needs `transformers` names."""

UNSHARED = frozenset(("torchao", "gptq", "awq", "bitsandbytes"))
"""Methods whose saved weights `transformers` does not cut into shards."""

HALF_ONLY = frozenset(("gptq", "awq"))
"""Methods whose kernels compute in float16 or bfloat16 only."""


def quantisation_of(config: Any) -> dict[str, Any] | None:
    """The quantisation config of a checkpoint, `quant_method` filled in; None where its weights are plain."""
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if found is None:
        return None
    plain = dict(found if isinstance(found, dict) else found.to_dict())
    if plain.get("load_in_4bit") or plain.get("load_in_8bit"):
        plain["quant_method"] = "bitsandbytes"
    method = plain.get("quant_method")
    return plain | {"quant_method": str(getattr(method, "value", method))}


def check_quantisation(config: Any, dtype: torch.dtype | str, reference: str, tp: int = 1) -> None:
    """Raise `QuantisationError` where a quantised checkpoint cannot be read here, to compute as `dtype` on `tp` ranks."""
    quantised = quantisation_of(config)
    if quantised is None:
        return
    method = quantised["quant_method"]
    _check_known(method, reference)
    needed = {"accelerate": "accelerate", **PACKAGES.get(method, {})}
    if missing := [name for module, name in needed.items() if not _is_there(module)]:
        raise QuantisationError(
            f"'{reference}' is quantised by {method}, which needs {' and '.join(missing)}; pip install {' '.join(missing)}"
        )
    if method in UNSHARED and tp > 1:
        raise QuantisationError(
            f"'{reference}' is quantised by {method}, whose weights ranks cannot share; give tp 1, and for a model larger "
            "than one device a device map such as auto"
        )
    if method in HALF_ONLY and dtype in (torch.float32, torch.float64):
        raise QuantisationError(
            f"'{reference}' is quantised by {method}, whose kernels do not compute in {_name(dtype)}; give dtype float16, "
            "bfloat16 or auto"
        )
    made = _stored_dtype(config)
    if method == "torchao" and isinstance(dtype, torch.dtype) and made not in (None, dtype):
        raise QuantisationError(
            f"'{reference}' is quantised by torchao to compute in {_name(made)}, not {_name(dtype)}; give dtype "
            f"{_name(made)} or auto"
        )


def _check_known(method: str, reference: str) -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    if method not in {
        name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING
    }:
        raise QuantisationError(
            f"'{reference}' is quantised by '{method}', which this transformers does not know; install one that does, or "
            "give a checkpoint of another method"
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _stored_dtype(config: Any) -> torch.dtype | None:
    """The type that the checkpoint's own config names."""
    made = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return getattr(torch, made, None) if isinstance(made, str) else made


def _name(dtype: torch.dtype | str | None) -> str:
    return str(dtype).removeprefix("torch.")
