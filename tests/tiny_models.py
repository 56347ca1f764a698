"""Tiny checkpoints with random weights, one per kind of architecture that the engine must serve.

They are made in memory in milliseconds. Weights are large, so that greedy responses vary and near-ties are rare.
"""

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from navtoken.checkpoints import LoadedModel, ModelPair

VOCAB_SIZE = 96
"""Tokens that the tokenizer knows."""
PADDED_VOCAB_SIZE = 104
"""Rows of the LM heads: the last ones are padding."""
EOS = 1
CONTEXT = 192
WINDOW = 12
"""Sliding window of the Gemma-2 model."""

SHAPE = {
    "vocab_size": PADDED_VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": EOS,
    "bos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "initializer_range": 0.6,
}

KINDS: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "llama": {},
    "gemma2": {
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 6.0,
        "query_pre_attn_scalar": 8,
    },
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3, "embedding_multiplier": 2.0},
    "qwen3_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}
"""What each architecture adds to `SHAPE`."""


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single characters with `VOCAB_SIZE` tokens; id 0 is padding, id `EOS` ends."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCAB_SIZE - 2]
    vocab = {token: index for index, token in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def tiny_model(kind: str, seed: int = 0, dtype: torch.dtype | None = None, **overrides: Any) -> LoadedModel:
    """A random model; weights depend on `seed` only. float64, where the architecture's kernels have that."""
    dtype = dtype or (torch.float32 if kind == "qwen3_moe" else torch.float64)
    shape = SHAPE | KINDS[kind] | overrides
    config = CONFIG_MAPPING[kind](**shape)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = 0
    return LoadedModel(model, tiny_tokenizer(), f"tiny:{kind}-{seed}")


@cache
def tiny_pair(kind: str = "qwen3") -> ModelPair:
    """Two models of one kind and different depths and weights. Shared between tests: do not change it."""
    return ModelPair(tiny_model(kind, seed=1, num_hidden_layers=1), tiny_model(kind, seed=2))


def near_pair(
    kind: str = "qwen3",
    noise: float = 0.04,
    slm_eos: tuple[int, ...] = (EOS,),
    llm_eos: tuple[int, ...] = (EOS,),
) -> ModelPair:
    """An LLM, and an SLM whose weights are the LLM's and some noise: many of its drafts are what the LLM would write.

    `noise` is in standard deviations of each weight. The end tokens can be chosen; random models rarely end otherwise.
    """
    slm, llm = tiny_model(kind, seed=2), tiny_model(kind, seed=2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in slm.model.parameters():
            if weight.dim() > 1:
                weight += noise * weight.std() * torch.randn(weight.shape, generator=generator).to(weight)
    for loaded, eos in ((slm, slm_eos), (llm, llm_eos)):
        loaded.model.generation_config.eos_token_id = list(eos)
    return ModelPair(slm, llm)


def prompts(num: int, seed: int = 0, shortest: int = 3, longest: int = 20) -> list[list[int]]:
    """Random prompts of mixed lengths, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (num,), generator=generator).tolist()
    return [torch.randint(2, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]
