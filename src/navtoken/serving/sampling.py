"""From a request's fields to the engine's sampling parameters."""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from navtoken.checkpoints import LoadedModel
from navtoken.engine import SamplingParams
from navtoken.serving.errors import BadRequest
from navtoken.serving.requests import Request

LEAST_TEMPERATURE = 1e-5
"""Below this a temperature counts as 0, as in vLLM: logits divided by it would no longer be numbers."""
FROM_CONFIG = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def model_defaults(loaded: LoadedModel) -> dict[str, Any]:
    """What a model's generation config says of sampling, as vLLM takes it; temperature 1 where it says nothing."""
    config = getattr(loaded.model, "generation_config", None)
    said: Mapping[str, Any] = config.to_diff_dict() if config is not None else {}
    found = {name: said[name] for name in FROM_CONFIG if said.get(name) is not None}
    return {"temperature": 1.0} | found


def default_sampling(defaults: Mapping[str, Any]) -> SamplingParams:
    """How tokens are drawn for a request that says nothing of it."""
    temperature = float(defaults["temperature"])
    return SamplingParams(
        temperature=temperature if temperature >= LEAST_TEMPERATURE else 0.0,
        top_k=max(0, int(defaults.get("top_k", 0))),
        top_p=float(defaults.get("top_p", 1.0)),
        min_p=float(defaults.get("min_p", 0.0)),
        repetition_penalty=float(defaults.get("repetition_penalty", 1.0)),
    )


def sampling_of(request: Request, defaults: Mapping[str, Any], vocab_size: int) -> SamplingParams:
    """How a request's tokens are drawn. Raises `BadRequest` for a bias on what is no token."""
    given = {name: getattr(request, name) for name in FROM_CONFIG}
    values = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    return replace(
        default_sampling(values),
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        ignore_eos=bool(request.ignore_eos),
        min_tokens=request.min_tokens or 0,
        stop=request.stops,
        logit_bias=_biases(request, vocab_size),
    )


def seed_of(request: Request) -> int:
    """The request's seed, or one drawn for it: small enough for clients whose numbers are floats (JavaScript's)."""
    return secrets.randbits(48) if request.seed is None else request.seed


def _biases(request: Request, vocab_size: int) -> tuple[tuple[int, float], ...]:
    biases = {}
    for key, value in (request.logit_bias or {}).items():
        # `isdecimal` alone takes digits of other scripts, and int() takes signs and spaces.
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size):
            raise BadRequest(f"logit_bias names '{key}', token ids are 0 to {vocab_size - 1}", "logit_bias")
        biases[int(key)] = value
    return tuple(biases.items())
