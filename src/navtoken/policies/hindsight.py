"""Hindsight: the LLM, when it catches up, takes back what it would hardly have written.

In R2R (arXiv 2505.21600) the LLM computes its own distribution at every token that the SLM has written since its last
word, and throws it away. Here it counts. Tokens of the SLM are provisional until the LLM has run over them; the first one to which
the LLM gives less probability than EPS (T = 1, before sampling parameters) is rolled back with all behind it, and the LLM writes
that position. Where it doubts none, it writes the next token itself: its word on that one is there anyway.

A base rule says when the LLM is called: by the SLM's entropy or margin, by a router, by a coin, or every K tokens. It is a dial with
plain routing at one end (EPS 0: nothing is ever taken back) and the LLM alone at the other (EPS above 1: everything is). Near
to it lies speculative decoding, which takes back at random so that the LLM's distribution comes out; `hindsight:EPS,every=K` takes back
what is improbable and keeps the rest, so it follows neither model's distribution, and needs fewer passes.

The end of a response is judged too, so that no token of a finished response went unseen.

Shapes: B rows in the batch, M places at which the LLM was asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any, Self

import torch

from navtoken.policies import router
from navtoken.policies.arguments import check_options, number, whole_number
from navtoken.policies.base import BasePolicy, Drafts, PairView, Policy, Verdicts, Writer, Writes
from navtoken.policies.rules import EntropyPolicy, MarginPolicy, PolicyError, RandomPolicy, spelled
from navtoken.reference import Reference, parse_reference

EVERY = 16
"""Provisional tokens before the LLM is called where no rule calls it; needs no router, and no threshold of a pair's."""
MOST_PROVISIONAL = 256
"""Provisional tokens before the LLM is called although a base rule does not: streams wait for it, and logits at each take
memory."""
PAIRS_ROUTER = "pair"
"""`router=pair` is the router that belongs to the pair."""
RULES = ("entropy", "margin", "random", "router")
ROUTER_OPTIONS = ("threshold", "weights")


@dataclass
class Unseen:
    """A row's state."""

    num_tokens: int = 0
    """Tokens that the SLM has written since the LLM's last word."""


@dataclass(frozen=True)
class HindsightPolicy(BasePolicy):
    """The SLM writes, a base rule calls the LLM, and the LLM takes back what it finds improbable."""

    eps: float
    """Probability (T = 1) that the LLM must give a token of the SLM's for it to stay."""
    every: int
    """Provisional tokens after which the LLM is called in any case."""
    base: Policy | None = None
    """The rule that calls it before; None has none."""
    verifies = True

    def __post_init__(self) -> None:
        if isnan(self.eps) or self.eps < 0:
            raise PolicyError(
                f"hindsight:{self.eps} is no probability; give one from 0 (nothing is taken back), say 0.05"
            )
        if not 1 <= self.every <= MOST_PROVISIONAL:
            raise PolicyError(f"hindsight,every={self.every} is out of range; give 1 to {MOST_PROVISIONAL}")

    @property
    def reference(self) -> str:
        parts = [f"hindsight:{spelled(self.eps)}"]
        if self.base is not None:
            parts += _options_of(self.base)
        if self.base is None or self.every != MOST_PROVISIONAL:
            parts.append(f"every={self.every}")
        return ",".join(parts)

    @property
    def lookback(self) -> int:
        return self.every

    @property
    def router_parameters(self) -> int:  # type: ignore[override]
        return 0 if self.base is None else self.base.router_parameters

    @property
    def capturable(self) -> bool:
        """Drafts are judged by the base rule alone; judging provisional tokens is never captured."""
        return self.base is None or self.base.capturable

    def check_ready(self) -> None:
        if self.base is not None:
            self.base.check_ready()

    def joined(self, pair: PairView) -> Self:
        return self if self.base is None else replace(self, base=self.base.joined(pair))

    def start(self, prompt_ids: Sequence[int]) -> Unseen:
        return Unseen()

    def next_writer(self, state: Any) -> Writer:
        return Writer.LLM if state.num_tokens >= self.every else Writer.SLM

    def committed(self, state: Any, token_id: int, writer: Writer, entropy: float) -> None:
        state.num_tokens = state.num_tokens + 1 if writer is Writer.SLM else 0

    def settle(self, state: Any, num_kept: int, num_judged: int) -> None:
        state.num_tokens = 0

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        if self.base is None:
            return Verdicts(torch.zeros_like(drafts.token_ids_B))
        return self.base.judge_drafts(drafts)

    def judge_writes(self, writes: Writes) -> Verdicts:
        judged = writes.judged
        assert judged is not None
        # So that what is no number is doubted, and seen.
        doubted_M = ~(judged.logprob_M.double().exp() >= self.eps)
        kept_B, stop_B = judged.split(doubted_M)
        return judged.keep(kept_B, judged.written_at(stop_B))


def make(reference: Reference) -> HindsightPolicy:
    """`hindsight:0.05`, `hindsight:0.05,every=4`, `hindsight:0.05,entropy=0.67`, `hindsight:0.05,router=FOLDER,threshold=0.4`."""
    check_options(reference, (*RULES, "every", *ROUTER_OPTIONS))
    eps = number(reference.target, reference)
    if eps is None:
        raise PolicyError(f"'{reference}': write hindsight:0.05, or another probability")
    base = _base_of(reference)
    every = whole_number(reference.options.get("every"), reference)
    if every is None:
        every = EVERY if base is None else MOST_PROVISIONAL
    return HindsightPolicy(eps, every, base)


def _base_of(reference: Reference) -> Policy | None:
    named = [name for name in RULES if name in reference.options]
    if len(named) > 1:
        raise PolicyError(
            f"'{reference}' names {' and '.join(named)}; one rule calls the LLM, leave out the others"
        )
    options = {key: reference.options[key] for key in ROUTER_OPTIONS if key in reference.options}
    if options and named != ["router"]:
        raise PolicyError(f"'{reference}': {' and '.join(options)} belong to router=FOLDER; give that too")
    if not named:
        return None
    if named == ["router"]:
        return _router(reference.options["router"], options)
    value = number(reference.options[named[0]], reference)
    assert value is not None
    if named == ["random"]:
        return RandomPolicy(value)
    return EntropyPolicy(value) if named == ["entropy"] else MarginPolicy(value)


def _router(folder: str, options: dict[str, str]) -> Policy:
    return router.make(Reference("router", None if folder == PAIRS_ROUTER else folder, options))


def _options_of(base: Policy) -> list[str]:
    """A base rule as options of this policy: `entropy:0.67` is `entropy=0.67`."""
    spelt = parse_reference(base.reference)
    target = PAIRS_ROUTER if spelt.target is None else spelt.target
    return [f"{spelt.name}={target}", *(f"{key}={value}" for key, value in spelt.options.items())]
