"""The cost ledger: counts every token that goes through a model, so that no cost of routing can hide.

Catch-up makes the LLM compute every committed token up to its last write: routing saves its passes and their memory
traffic, but few of its FLOPs. The paper's cost, average activated parameters, does not show that; `flops` and `bytes` here do.
"""

from dataclasses import asdict, dataclass, field
from math import nan

from navtoken.model_card import ModelCard
from navtoken.policies.base import Writer


@dataclass
class ModelLedger:
    """What went through one model. Every fed token is in exactly one of the first three counts."""

    prefill_tokens: int = 0
    """Prompt tokens fed."""
    decode_tokens: int = 0
    """Response tokens fed in order to predict the next token: at most one per row and pass."""
    catchup_tokens: int = 0
    """Other response tokens fed: tokens that the other model wrote, which this model's KV cache lacked."""
    head_tokens: int = 0
    """Positions at which the LM head was computed."""
    attended_tokens: int = 0
    """Sum over fed tokens of how many tokens each attends to, itself included, windows not considered."""
    row_passes: int = 0
    """Sum over passes of the rows that took part."""
    read_tokens: int = 0
    """Sum over passes and rows of the row's length: KV cache entries read."""
    passes: int = 0
    """Forward passes. Of a sequence: passes in which it took part."""

    @property
    def tokens(self) -> int:
        """All tokens fed."""
        return self.prefill_tokens + self.decode_tokens + self.catchup_tokens

    def record(self, start: int, end: int, prompt_len: int, num_logits: int) -> None:
        """Count one row's tokens [start, end) of which those before `prompt_len` are the prompt."""
        prefill = max(0, min(end, prompt_len) - start)
        # A part of a row that is fed in parts predicts nothing.
        decode = 1 if end > prompt_len and num_logits else 0
        self.prefill_tokens += prefill
        self.decode_tokens += decode
        self.catchup_tokens += end - start - prefill - decode
        self.head_tokens += num_logits
        self.attended_tokens += (end * (end + 1) - start * (start + 1)) // 2
        self.row_passes += 1
        self.read_tokens += end


ROUTER_BYTES = 4
"""Bytes of a router's parameter: it computes in float32."""

COUNTS = (
    "discarded_drafts",
    "rolled_back_tokens",
    "router_calls",
    "verifications",
    "judged_drafts",
    "accepted_drafts",
    "fallback_tokens",
)
"""Counts that belong to neither model."""


@dataclass
class Ledger:
    """Costs of one sequence, or of all that an engine did."""

    models: tuple[ModelLedger, ModelLedger] = field(default_factory=lambda: (ModelLedger(), ModelLedger()))
    """Indexed by `Writer`."""
    written: list[int] = field(default_factory=lambda: [0, 0])
    """Committed tokens by writer; those that were rolled back later are taken off."""
    discarded_drafts: int = 0
    """Drafts of the SLM that were not committed."""
    rolled_back_tokens: int = 0
    """Committed tokens that a policy took back."""
    router_calls: int = 0
    """Drafts that a router network judged."""
    verifications: int = 0
    """LLM passes over a row that judged its provisional tokens."""
    judged_drafts: int = 0
    """Provisional tokens that they judged."""
    accepted_drafts: int = 0
    """Of these, how many were kept."""
    fallback_tokens: int = 0
    """Committed tokens that the LLM wrote because routing was predicted not to pay."""

    @property
    def slm(self) -> ModelLedger:
        return self.models[Writer.SLM]

    @property
    def llm(self) -> ModelLedger:
        return self.models[Writer.LLM]

    @property
    def llm_share(self) -> float:
        """Committed tokens written by the LLM / all committed tokens; 0 if there are none."""
        return self.written[Writer.LLM] / max(1, sum(self.written))

    @property
    def acceptance_length(self) -> float:
        """Tokens per verification as vLLM counts them: 1 + accepted drafts per verification; NaN without any."""
        return 1 + self.accepted_drafts / self.verifications if self.verifications else nan

    @property
    def acceptance(self) -> float:
        """Provisional tokens that were kept / those that the LLM judged; NaN without any."""
        return self.accepted_drafts / self.judged_drafts if self.judged_drafts else nan

    @property
    def llm_passes_per_token(self) -> float:
        """LLM passes over a row, its prompt's included, per committed token: what waits for the LLM's weights."""
        return self.llm.row_passes / max(1, sum(self.written))

    @property
    def discarded_per_token(self) -> float:
        """Tokens that were made in vain, drafts discarded and tokens rolled back, per committed token."""
        return (self.discarded_drafts + self.rolled_back_tokens) / max(1, sum(self.written))

    def as_dict(self) -> dict[str, float]:
        """Flat counts, as a trace keeps them: `slm_prefill_tokens`, ..., `llm_passes`, `discarded_drafts`, ..."""
        flat: dict[str, float] = {}
        for name, model, written in zip(("slm", "llm"), self.models, self.written, strict=True):
            flat |= {f"{name}_{key}": value for key, value in asdict(model).items()}
            flat[f"{name}_written"] = written
        return flat | {name: getattr(self, name) for name in COUNTS}

    @classmethod
    def from_dict(cls, flat: dict[str, float]) -> "Ledger":
        """The inverse of `as_dict`."""
        counts = {key: int(value) for key, value in flat.items()}
        models = [
            ModelLedger(**{key: counts[f"{name}_{key}"] for key in asdict(ModelLedger())})
            for name in ("slm", "llm")
        ]
        return cls(
            models=(models[0], models[1]),
            written=[counts["slm_written"], counts["llm_written"]],
            **{name: counts.get(name, 0) for name in COUNTS},
        )

    def add(self, other: "Ledger") -> None:
        """Add another ledger's counts; passes of sequences that shared a pass are then counted once per sequence."""
        for mine, theirs in zip(self.models, other.models, strict=True):
            for key, value in asdict(theirs).items():
                setattr(mine, key, getattr(mine, key) + value)
        self.written = [mine + theirs for mine, theirs in zip(self.written, other.written, strict=True)]
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class Costs:
    """Turns a ledger into the three costs that the comparison table shows."""

    slm: ModelCard
    llm: ModelCard
    router_parameters: int = 0

    def average_activated_parameters(self, ledger: Ledger) -> float:
        """The R2R paper's cost per committed token: (n_slm*P_slm + n_llm*P_llm) / (n_slm + n_llm), with its router.

        P are active parameters, embeddings included. Prefill, catch-up and discarded drafts are not in it.
        """
        slm, llm = ledger.written
        activated = slm * self.slm.active_parameters + llm * self.llm.active_parameters
        return (activated + ledger.router_calls * self.router_parameters) / max(1, slm + llm)

    def flops(self, ledger: Ledger) -> float:
        """FLOPs of all that was computed: both models and the router."""
        models = sum(
            card.flops(count.tokens, count.attended_tokens, count.head_tokens)
            for card, count in zip((self.slm, self.llm), ledger.models, strict=True)
        )
        return models + 2.0 * ledger.router_calls * self.router_parameters

    def bytes(self, ledger: Ledger) -> float:
        """Bytes of weights and KV cache read. Of a sequence's ledger: as if it had run alone.

        The router's weights are read once per SLM pass in which it judged anything. A sequence has one draft judged in such a
        pass, so its calls are those passes, exactly. Of an engine's ledger they are at most its SLM passes: an upper bound where
        only some of them ask the router, the exact number where all do.
        """
        models = sum(
            card.bytes(count.passes, count.tokens, count.read_tokens)
            for card, count in zip((self.slm, self.llm), ledger.models, strict=True)
        )
        router_passes = min(ledger.router_calls, ledger.slm.passes)
        return float(models + router_passes * self.router_parameters * ROUTER_BYTES)
