"""What a model costs: parameters, FLOPs and bytes from its shapes alone, so that any ledger can be priced.

"Average activated parameters", the cost in the R2R paper, needs one number per model. What decoding really costs
needs more: which parameters are multiplied per token, how attention grows with context, what a pass reads.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ModelCard:
    """What a model costs, from its shapes alone."""

    parameters: int
    """All parameters, tied ones once."""
    active_parameters: int
    """Parameters used for one token: all but the experts that a mixture leaves out."""
    embedding_parameters: int
    """Of `parameters`, the input embedding table: looked up, not multiplied (unless the LM head is tied to it)."""
    head_parameters: int
    """The LM head's matrix, also where it is tied to the embedding."""
    tied: bool
    """Is the LM head the embedding table?"""
    attention_flops: int
    """FLOPs per token and token attended to, all layers: scores and weighted values."""
    kv_bytes: int
    """Bytes that one token takes in the KV cache."""
    weight_bytes: int
    """Bytes of all weights."""
    context: int
    """Longest sequence that the model takes, in tokens."""

    @property
    def body_parameters(self) -> int:
        """Active parameters that every token is multiplied with, LM head left out."""
        return self.active_parameters - self.embedding_parameters - (0 if self.tied else self.head_parameters)

    def flops(self, tokens: int, attended_tokens: int, head_tokens: int) -> float:
        """FLOPs of feeding `tokens` that attend to `attended_tokens` in sum, with the head at `head_tokens`."""
        dense = 2.0 * (self.body_parameters * tokens + self.head_parameters * head_tokens)
        return dense + float(self.attention_flops) * attended_tokens

    def flops_per_token(self, context: int) -> float:
        """FLOPs of one decode step of one row that attends to `context` tokens."""
        return self.flops(1, context, 1)

    def bytes(self, passes: int, tokens: int, read_tokens: int) -> int:
        """Bytes moved: weights once a pass, `read_tokens` KV entries read and `tokens` written.

        A mixture's experts count in full: a pass over many rows touches nearly all of them.
        """
        table = 0 if self.tied else self.embedding_parameters * self.weight_bytes // max(1, self.parameters)
        return passes * (self.weight_bytes - table) + (read_tokens + tokens) * self.kv_bytes

    def bytes_per_pass(self, rows: int, context: int) -> int:
        """Bytes moved by one decode pass over `rows` rows that attend to `context` tokens each."""
        return self.bytes(1, rows, rows * context)

    @classmethod
    def of(cls, model: nn.Module) -> "ModelCard":
        """Read the card off a loaded causal LM."""
        config: Any = text_config(model)
        parameters = {id(p): p for p in model.parameters()}.values()
        total = sum(p.numel() for p in parameters)
        embedding = model.get_input_embeddings().weight  # type: ignore[operator]
        head = model.get_output_embeddings().weight  # type: ignore[operator]
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        layers = config.num_hidden_layers
        return cls(
            parameters=total,
            active_parameters=total - _idle_expert_parameters(model, config),
            embedding_parameters=embedding.numel(),
            head_parameters=head.numel(),
            tied=head is embedding,
            attention_flops=4 * layers * heads * head_dim,
            kv_bytes=2 * layers * kv_heads * head_dim * embedding.element_size(),
            weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
            context=int(config.max_position_embeddings),
        )


def text_config(model: Any) -> Any:
    """The config of the language model proper, also of multimodal checkpoints."""
    return model.config.get_text_config()


def _idle_expert_parameters(model: nn.Module, config: Any) -> int:
    """Parameters of the experts that a token does not visit."""
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    visited = getattr(config, "num_experts_per_tok", None)
    if not experts or not visited:
        return 0
    inside = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    return inside - inside * visited // experts
