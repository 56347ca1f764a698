"""Options of the engine and of one request, as frozen dataclasses from which the command line derives."""

from dataclasses import dataclass


class OptionError(ValueError):
    """An option outside its range."""


@dataclass(frozen=True)
class EngineOptions:
    """How the engine batches and what it records. No option here changes which tokens come out."""

    max_rows: int = 64
    """Rows decoded together; further sequences wait for a free row."""
    llm_min_rows: int = 8
    """The batching rule: the LLM runs once so many rows wait for it, or nothing else is ready."""
    num_alternatives: int = 0
    """Record so many most probable tokens, with log-probabilities, of the model that wrote each token."""

    def __post_init__(self) -> None:
        _at_least("max_rows", self.max_rows, 1)
        _at_least("llm_min_rows", self.llm_min_rows, 1)
        _at_least("num_alternatives", self.num_alternatives, 0)


@dataclass(frozen=True)
class SamplingParams:
    """How a token is drawn from logits; honoured for both models. The defaults are greedy decoding."""

    temperature: float = 0.0
    """Softmax temperature; 0 takes the most probable token."""
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

    def __post_init__(self) -> None:
        _at_least("temperature", self.temperature, 0.0)
        _at_least("top_k", self.top_k, 0)
        if not 0.0 < self.top_p <= 1.0:
            raise OptionError(f"top_p is {self.top_p}; give a number above 0 and at most 1")
        if not 0.0 <= self.min_p <= 1.0:
            raise OptionError(f"min_p is {self.min_p}; give a number from 0 to 1")
        if not self.repetition_penalty > 0.0:
            raise OptionError(
                f"repetition_penalty is {self.repetition_penalty}; give a number above 0 (1 is off)"
            )

    @property
    def has_penalties(self) -> bool:
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise OptionError(f"{name} is {value}; give at least {least}")


GREEDY = SamplingParams()
"""Take the most probable token."""
DEFAULTS = EngineOptions()
