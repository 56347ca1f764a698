"""The recipe of the embedded pair: shapes and options, from which data, tokenizer and weights follow."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerFast, Qwen3Config

CONTEXT = 1024
"""Longest prompt and response together, in tokens."""


@dataclass(frozen=True)
class Shape:
    """Width and depth of a Qwen3 model, and how long it is trained."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    steps: int
    """Optimiser steps, enough for a flat validation loss."""
    easy_steps: int
    """The first of them, on easy problems."""

    def config(self, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
        return Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.hidden_size // self.num_heads,
            max_position_embeddings=CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )


SHAPES = {
    "slm": Shape(32, 2, 2, 1, 80, steps=9_000, easy_steps=3_000),
    "llm": Shape(128, 6, 4, 2, 352, steps=5_500, easy_steps=2_000),
}


@dataclass(frozen=True)
class PairOptions:
    """How the embedded pair is made."""

    out: Path = Path("src/navtoken/embedded")
    """Folder that receives `slm`, `llm` and `base`."""
    work: Path = Path("build/pair")
    """Folder of data, checkpoints and logs while training goes on."""
    model: Literal["all", "slm", "llm", "export"] = "all"
    """What to do: everything, one model's training, or only the export of what is trained."""
    seed: int = 20251122
    """Seeds data, initial weights and batch order."""
    num_easy_examples: int = 330_000
    """Easy training examples, a third of each family."""
    num_examples: int = 240_000
    """Training examples, a third of each family."""
    num_validation: int = 3_000
    """Validation examples, of the training split too but drawn with another seed."""
    batch_tokens: int = 4096
    """Padded tokens in a batch."""
    lr: float = 6e-3
    """Peak learning rate of Muon (update RMS matched to AdamW's) and AdamW."""
    warmup: int = 100
    """Steps of linear warm-up."""
    decay: float = 0.7
    """Last share of the steps, in which the learning rate falls linearly to zero."""
    save_every: int = 250
    """Steps between checkpoints."""
    threads: int = 2
    """Torch threads."""
    max_length: int = 400
    """Longest example, in tokens; longer ones are left out."""
    base_accuracy: float = 0.4
    """`base` is the LLM's first snapshot with this accuracy at T = 1, mean of the families, on training problems."""
    base_problems: int = 80
    """Problems of each family on which `base` is chosen."""
