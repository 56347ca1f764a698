"""Options of the engine and of one request, as frozen dataclasses from which the command line derives."""

from dataclasses import dataclass
from math import inf
from typing import Literal


class OptionError(ValueError):
    """An option outside its range."""


@dataclass(frozen=True)
class EngineOptions:
    """How the engine batches and what it records.

    No option but `when_unprofitable` changes which tokens come out, except where two tokens are as good as equally
    probable: other batches round differently, and `auto` batches by measured times.
    """

    max_rows: int = 64
    """Rows decoded together; further sequences wait for a free row."""
    llm_min_rows: int | Literal["auto"] = "auto"
    """The batching rule: the LLM runs once so many rows wait for it, or nothing else is ready. `auto` plans the number
    from measured step times and the running LLM share."""
    when_unprofitable: Literal["route", "llm"] = "route"
    """`llm` lets the LLM write everything while routing is predicted slower than that. Responses then depend on load: for
    serving only."""
    prefill_chunk: int = 2048
    """Tokens per pass that rows which lack many (long prompts) share; the rest goes in between other rows' steps."""
    cache_gib: float | None = None
    """Memory for both KV caches in GiB; None takes most of what an accelerator has free, or half of what a CPU has."""
    block_size: int | None = None
    """Tokens per block of the KV caches; None takes what the device's attention wants."""
    cuda_graphs: bool = True
    """Capture decode steps on CUDA as graphs."""
    torch_compile: bool = False
    """Fuse the models' small operations, on a CPU with a C++ compiler: the first passes take 10 to 30 s longer, later
    ones a tenth to a quarter less where models are small."""
    num_alternatives: int = 0
    """Record so many most probable tokens, with log-probabilities, of the model that wrote each token."""

    def __post_init__(self) -> None:
        _at_least("max_rows", self.max_rows, 1)
        if self.llm_min_rows != "auto":
            _at_least("llm_min_rows", self.llm_min_rows, 1)
        _at_least("prefill_chunk", self.prefill_chunk, 1)
        _at_least("num_alternatives", self.num_alternatives, 0)
        if self.block_size is not None:
            _at_least("block_size", self.block_size, 1)
        if self.cache_gib is not None and not self.cache_gib > 0:
            raise OptionError(f"cache_gib is {self.cache_gib}; give a number above 0, or leave it out")


@dataclass(frozen=True)
class SamplingParams:
    """How a token is drawn from logits; honoured for both models. The defaults are greedy decoding."""

    temperature: float = 0.0
    """Softmax temperature; 0 takes the most probable token. With fork_threshold, that of tokens that do not fork."""
    fork_threshold: float | None = None
    """Entropy in nats (T = 1, of the model that draws) above which a token forks and is drawn at fork_temperature; None
    draws all alike."""
    fork_temperature: float | None = None
    """Softmax temperature of forking tokens; 0 takes the most probable token."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most probable tokens whose probability reaches top_p."""
    min_p: float = 0.0
    """Drop tokens less probable than min_p times the most probable one."""
    repetition_penalty: float = 1.0
    """Divide positive and multiply negative logits of tokens in prompt or response by this; 1 is off."""
    frequency_penalty: float = 0.0
    """Subtract this from a token's logit for each time it is in the response."""
    presence_penalty: float = 0.0
    """Subtract this from the logit of each token that is in the response."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token."""
    min_tokens: int = 0
    """Response tokens before which no end-of-sequence token is drawn and no stop string counts."""
    stop: tuple[str, ...] = ()
    """Strings that end the response where they appear, across token borders too; they are not part of its text."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids and what is added to their logits."""

    def __post_init__(self) -> None:
        _at_least("temperature", self.temperature, 0.0)
        self._check_forks()
        _at_least("top_k", self.top_k, 0)
        _at_least("min_tokens", self.min_tokens, 0)
        if not all(self.stop):
            raise OptionError("a stop string is empty; leave it out")
        if not 0.0 < self.top_p <= 1.0:
            raise OptionError(f"top_p is {self.top_p}; give a number above 0 and at most 1")
        if not 0.0 <= self.min_p <= 1.0:
            raise OptionError(f"min_p is {self.min_p}; give a number from 0 to 1")
        if not self.repetition_penalty > 0.0:
            raise OptionError(
                f"repetition_penalty is {self.repetition_penalty}; give a number above 0 (1 is off)"
            )

    def _check_forks(self) -> None:
        threshold, temperature = self.fork_threshold, self.fork_temperature
        if (threshold is None) != (temperature is None):
            raise OptionError(
                f"fork_threshold is {threshold} and fork_temperature {temperature}; give both, or neither"
            )
        # A threshold of 0 would count as an option that is off where runs are compared.
        if threshold is not None and not 0.0 < threshold < inf:
            raise OptionError(f"fork_threshold is {threshold}; give a number of nats above 0")
        if temperature is not None:
            _at_least("fork_temperature", temperature, 0.0)

    @property
    def has_penalties(self) -> bool:
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise OptionError(f"{name} is {value}; give at least {least}")


GREEDY = SamplingParams()
"""Take the most probable token."""
DEFAULTS = EngineOptions()
