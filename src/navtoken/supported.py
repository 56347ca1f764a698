"""Which models the engine can serve, judged from their config before any weight is read."""

from typing import Any

from navtoken.checkpoint_errors import UnsupportedModelError

ATTENTION_KINDS = frozenset(("full_attention", "sliding_attention"))
"""Kinds of layers whose past is a KV cache that the engine can keep."""

BATCH_DEPENDENT_ROPE = frozenset(("dynamic", "longrope"))
"""Position scalings whose frequencies follow the longest row of a batch."""


def check_supported(config: Any, model_class: type | None, reference: str) -> None:
    """Raise `UnsupportedModelError` unless the model's whole past is an attention KV cache the engine can keep."""
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"'{reference}' ({config.model_type}) has an encoder; give a decoder-only model"
        )
    odd = set(getattr(text, "layer_types", None) or ()) - ATTENTION_KINDS
    if odd or getattr(model_class, "_is_stateful", False) or not hasattr(text, "num_attention_heads"):
        raise UnsupportedModelError(
            f"'{reference}' ({config.model_type}) keeps {', '.join(sorted(odd)) or 'recurrent'} state, which cannot "
            "be rolled back or caught up like a KV cache; give a model with full or sliding-window attention only"
        )
    scaled = {kind for kind in rope_types(text) if kind in BATCH_DEPENDENT_ROPE}
    if scaled:
        raise UnsupportedModelError(
            f"'{reference}' ({config.model_type}) scales its positions by the longest row of a batch "
            f"(rope_type {', '.join(sorted(scaled))}), so a row would depend on its neighbours; set another rope_type in its config"
        )
    if model_class is not None and not getattr(model_class, "_supports_attention_backend", False):
        raise UnsupportedModelError(
            f"'{reference}' ({config.model_type}) does not route its attention through transformers' attention "
            "interface, so its KV cache cannot be served; give a model that does (Llama, Qwen, Gemma, Granite, ...)"
        )


def rope_types(text_config: Any) -> set[str]:
    """Kinds of position scaling that a config asks for; some models have one per kind of layer."""
    found: Any = (
        getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
    )
    nested = [found, *(value for value in found.values() if isinstance(value, dict))]
    return {str(each["rope_type"]) for each in nested if "rope_type" in each}
