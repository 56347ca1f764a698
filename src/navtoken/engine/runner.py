"""One operation per model: `extend` feeds each row's tokens from `cached_len` on.

Prompt prefill, single-token decode and catch-up are the same call with other lengths, for either model. `Runner` keeps
the books and `ModelRunner` runs the model, so the books are tested with a fake model and no weights.

Shapes: M positions at which logits were asked for, V vocabulary of the pair, D hidden size, T packed tokens.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from navtoken.checkpoints import LoadedModel
from navtoken.engine.attention import Kernel, paged
from navtoken.engine.compiled import CompiledDecoder
from navtoken.engine.evidence import Judgement
from navtoken.engine.kv_cache import KVCache
from navtoken.engine.ledger import Ledger
from navtoken.engine.packing import Feed, Packed
from navtoken.engine.sequence import Sequence
from navtoken.model_card import text_config
from navtoken.policies.base import Writer


class BadLogitsError(ArithmeticError):
    """A model whose logits are not numbers."""


class Extension(NamedTuple):
    """What a model says at the asked positions, rows one after the other."""

    logits_MV: Tensor
    """After soft-cap and scaling, padded rows of the head cut off; float32 at least."""
    hidden_MD: Tensor
    """What the LM head was fed."""
    judgement: Judgement | None = None
    """What became of each row, where one graph computes that too."""


class Runner:
    """Bookkeeping of one model of the pair; subclasses run the model."""

    def __init__(self, model: Writer, ledger: Ledger) -> None:
        self.model = model
        self.ledger = ledger

    def extend(self, dealt: Seq[tuple[Sequence, int]], copies: Seq[tuple[int, int]] = ()) -> Extension:
        """Feed each (row, end) its tokens up to `end`, after copying blocks.

        Logits are had for rows that are fed to their end: at the last position, and at those of provisional tokens
        where the LLM judges them.
        """
        feeds = [self._feed(row, end) for row, end in dealt]
        extension = self.run([row for row, _ in dealt], feeds, copies)
        total = self.ledger.models[self.model]
        total.passes += 1
        for (row, end), feed in zip(dealt, feeds, strict=True):
            row.cached_len[self.model] = end
            mine = row.ledger.models[self.model]
            mine.passes += 1
            mine.record(feed.start, end, row.prompt_len, feed.num_logits)
            total.record(feed.start, end, row.prompt_len, feed.num_logits)
        return extension

    def run(self, rows: Seq[Sequence], feeds: Seq[Feed], copies: Seq[tuple[int, int]]) -> Extension:
        """Compute what these rows are fed; only who judges it at once needs the rows."""
        return self.forward(feeds, copies)

    def forward(self, feeds: Seq[Feed], copies: Seq[tuple[int, int]]) -> Extension:
        """Compute."""
        raise NotImplementedError

    def refuse(self, num_bad: int, num_logits: int) -> BadLogitsError:
        """What to raise for NaN logits."""
        return BadLogitsError(f"the {self.model.name} gave NaN logits at {num_bad} of {num_logits} positions")

    def _feed(self, row: Sequence, end: int) -> Feed:
        start = row.cached_len[self.model]
        token_ids = row.token_ids[start:end]
        assert token_ids, "nothing to feed: the row was extended twice without a new token"
        judged = row.num_provisional if self.model is Writer.LLM else 0
        num_logits = judged + 1 if end == len(row.token_ids) else 0
        assert num_logits <= len(token_ids), "logits are only known at positions that are fed"
        return Feed(row.tables[self.model], start, token_ids, num_logits)


class ModelRunner(Runner):
    """Runs a `transformers` causal LM on a paged KV cache."""

    def __init__(
        self,
        model: Writer,
        ledger: Ledger,
        loaded: LoadedModel,
        vocab_size: int,
        cache: KVCache,
        kernel: Kernel | None = None,
        compiled: CompiledDecoder | None = None,
    ) -> None:
        """`kernel` None lets every call of attention choose by its tensors; `compiled` None runs the model as it is."""
        super().__init__(model, ledger)
        self.loaded = loaded
        self.vocab_size = vocab_size
        self.cache = cache
        self.kernel = kernel
        self.compiled = compiled

    @torch.inference_mode()
    def forward(self, feeds: Seq[Feed], copies: Seq[tuple[int, int]]) -> Extension:
        self.cache.copy_blocks(copies)
        packed = Packed.of(feeds, self.cache, self.loaded.device)
        packed.kernel = self.kernel
        return self.compute(packed)

    def compute(self, packed: Packed) -> Extension:
        """One forward of the model: tensors in, tensors out."""
        model = self.loaded.model
        fused = self.compiled.in_use() if self.compiled else nullcontext()
        with paged(text_config(model), packed), _head_input(model) as captured, fused:
            output = model(
                input_ids=packed.token_ids_T[None],
                position_ids=packed.positions_T[None],
                use_cache=False,
                logits_to_keep=packed.asked_M,
                packed=packed,
            )
        hidden_MD = captured[0][0].to(output.logits.device)
        # Half precision is widened once, here: its argmax and softmax take several times as long on a CPU.
        wide = torch.promote_types(output.logits.dtype, torch.float32)
        return Extension(output.logits[0, :, : self.vocab_size].to(wide), hidden_MD)

    def refuse(self, num_bad: int, num_logits: int) -> BadLogitsError:
        """What to raise for NaN logits."""
        return BadLogitsError(
            f"the {self.model.name} '{self.loaded.reference}' gave NaN logits at {num_bad} of {num_logits} "
            f"positions in {self.loaded.model.dtype}; check its weights, or load it with --dtype float32 (float16 "
            "overflows in models trained in bfloat16)"
        )


@contextmanager
def _head_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the LM head is fed, so that hidden states need no second pass and no model-specific code."""
    captured: list[Tensor] = []
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    try:
        yield captured
    finally:
        handle.remove()
