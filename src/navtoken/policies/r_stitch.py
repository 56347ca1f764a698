"""R-Stitch (Chen et al., arXiv 2507.17307): control goes back and forth between the models by entropy.

The SLM has control at first. A draft at which its entropy is above the threshold is discarded: the LLM writes that token, and goes
on writing until its own entropy is at or below the threshold; then the SLM has control again. So unlike `entropy`, a rule
that hands over one token, the LLM writes runs.

The threshold is on the normalised entropy, H / log V at T = 1, V being the size of the vocabulary: a number from 0 to 1,
as in the paper's equation since its second version (the first one took the probability of the most probable token instead). The
paper's thresholds lie around 0.02 and 0.03; at V = 152,000 and 0.03 that is 0.36 nats. R-Stitch+, which learns the
rule by reinforcement, is not here.

A share is the share of tokens that the LLM writes, as everywhere. Every token is decided by one entropy, that of the SLM's
draft or, where the LLM kept control, that of the LLM's token before it; calibration listens to these.

Shapes: B rows in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any, Self

from navtoken.policies.arguments import check_options, number
from navtoken.policies.base import Drafts, PairView, Verdicts, Writer, Writes
from navtoken.policies.rules import ThresholdPolicy
from navtoken.reference import Reference


@dataclass
class Control:
    """A row's state."""

    writer: Writer = Writer.SLM
    """Who has control."""


@dataclass(frozen=True)
class RStitchPolicy(ThresholdPolicy):
    """The LLM takes over where the SLM is unsure, and hands back where it is sure itself."""

    log_vocab: float = 1.0
    """Largest entropy there can be, in nats; given by the pair."""

    name = "r-stitch"
    llm_above = True

    def joined(self, pair: PairView) -> Self:
        return replace(self, log_vocab=log(pair.vocab_size))

    def start(self, prompt_ids: Sequence[int]) -> Control:
        return Control()

    def next_writer(self, state: Any) -> Writer:
        writer: Writer = state.writer
        return writer

    def committed(self, state: Any, token_id: int, writer: Writer, entropy: float) -> None:
        """What the SLM wrote was sure enough; what the LLM wrote says who goes on."""
        assert self.threshold is not None, "check_ready comes before the first draft"
        keeps = writer is Writer.LLM and entropy / self.log_vocab > self.threshold
        state.writer = Writer.LLM if keeps else Writer.SLM

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        return self.route_by(drafts.entropy_B.double() / self.log_vocab)

    def judge_writes(self, writes: Writes) -> Verdicts:
        if self.listener is not None:
            assert self.threshold is not None
            signal_B = writes.entropy_B.double() / self.log_vocab
            self.listener(signal_B[signal_B > self.threshold])
        return super().judge_writes(writes)


def make(reference: Reference) -> RStitchPolicy:
    """`r-stitch:0.03`, or `r-stitch,share=0.13`."""
    check_options(reference, ("share",))
    return RStitchPolicy(
        number(reference.target, reference), number(reference.options.get("share"), reference)
    )
