"""What a model costs: parameters, FLOPs and bytes from its shapes alone, so that any ledger can be priced.

"Average activated parameters", the cost in the R2R paper, needs one number per model. What decoding really costs
needs more: which parameters are multiplied per token, how attention grows with context, what a pass reads.

The card is of the whole model, however it is stored: parameters are counted by the shapes that the layers multiply
with, quantised or not, bytes by what is stored for them, and where ranks share a model both are the sum over ranks.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from navtoken.weights import Weight, weights_of


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
    """Bytes of all weights as they are stored, scales and zero points of quantised ones included."""
    context: int
    """Longest sequence that the model takes, in tokens."""
    embedding_bytes: int | None = None
    """Bytes of the input embedding table; None where all weights have one type, so that its share of them says it."""
    held_bytes: int | None = None
    """Bytes of weights that this process keeps on its devices; None is all. Less where ranks share or parts are offloaded."""
    shards: int = 1
    """Ranks that share every layer; each holds so many-th part of `kv_bytes` per token."""

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
        return passes * (self.weight_bytes - self._table_bytes) + (read_tokens + tokens) * self.kv_bytes

    def bytes_per_pass(self, rows: int, context: int) -> int:
        """Bytes moved by one decode pass over `rows` rows that attend to `context` tokens each."""
        return self.bytes(1, rows, rows * context)

    @property
    def _table_bytes(self) -> int:
        """Bytes that a pass leaves out, but for the few rows that it looks up."""
        if self.tied:
            return 0
        if self.embedding_bytes is not None:
            return self.embedding_bytes
        return self.embedding_parameters * self.weight_bytes // max(1, self.parameters)

    @classmethod
    def of(cls, model: nn.Module) -> "ModelCard":
        """Read the card off a loaded causal LM."""
        config: Any = text_config(model)
        weights = weights_of(model)
        total = sum(weight.parameters for weight in weights)
        table: Any = model.get_input_embeddings()  # type: ignore[operator]
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        embedding, matrix = weights_of(table)[0], weights_of(head)[0]
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        layers = config.num_hidden_layers
        return cls(
            parameters=total,
            active_parameters=total - _idle_expert_parameters(weights, config),
            embedding_parameters=embedding.parameters,
            head_parameters=matrix.parameters,
            tied=getattr(head, "weight", None) is table.weight,
            attention_flops=4 * layers * heads * head_dim,
            kv_bytes=2 * layers * kv_heads * head_dim * table.weight.dtype.itemsize,
            weight_bytes=sum(weight.bytes for weight in weights),
            context=int(config.max_position_embeddings),
            embedding_bytes=embedding.bytes,
            held_bytes=sum(weight.held_bytes for weight in weights),
            shards=getattr(model, "tp_size", None) or 1,
        )


def text_config(model: Any) -> Any:
    """The config of the language model proper, also of multimodal checkpoints."""
    return model.config.get_text_config()


def _idle_expert_parameters(weights: list[Weight], config: Any) -> int:
    """Parameters of the experts that a token does not visit."""
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    visited = getattr(config, "num_experts_per_tok", None)
    if not experts or not visited:
        return 0
    inside = sum(weight.parameters for weight in weights if ".experts." in weight.name)
    return inside - inside * visited // experts
