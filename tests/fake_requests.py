"""Requests of every kind for the fake engine, as hypothesis strategies and at random."""

from random import Random
from typing import Any

from hypothesis import strategies as st

from fake_engine import VOCAB
from navtoken.engine import SamplingParams

POLICIES = (
    "slm",
    "llm",
    "random:0",
    "random:0.15",
    "random:0.5",
    "random:1",
    "speculative:1",
    "speculative:3",
    "speculative:8",
    "speculative:auto",
    "r-stitch:0.85",
    "hindsight:0.03,every=3",
    "hindsight:0.08,entropy=2.1",
    "hindsight:0.05,random=0.2,every=5",
)

CHOICES: dict[str, tuple] = {
    "temperature": (0.0, 1.0),
    "top_p": (0.7, 1.0),
    "frequency_penalty": (0.0, 0.5),
    "repetition_penalty": (1.0, 1.3),
    "min_tokens": (0, 0, 6),
    "stop": ((), (), ("abc", "a b"), ("\u00e9",), ("ab", "abc", "cab")),
    "logit_bias": ((), ((3, 1.5), (0, -2.0))),
    "ignore_eos": (True, False),
}
"""Values of sampling parameters; stop strings lie across tokens, and within one character's halves."""

sampling = st.builds(SamplingParams, **{name: st.sampled_from(values) for name, values in CHOICES.items()})
request = st.fixed_dictionaries(
    {
        "prompt_ids": st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=12),
        "max_tokens": st.one_of(st.none(), st.integers(1, 20)),
        "seed": st.integers(0, 2**40),
        "sample": st.integers(0, 3),
        "sampling": sampling,
    }
)
policy = st.sampled_from(POLICIES)


def random_request(random: Random) -> dict[str, Any]:
    """What `Engine.add` takes, but for the policy."""
    return {
        "prompt_ids": [random.randint(1, VOCAB - 1) for _ in range(random.randint(1, 12))],
        "max_tokens": random.choice((None, random.randint(1, 20))),
        "seed": random.getrandbits(40),
        "sampling": SamplingParams(**{name: random.choice(values) for name, values in CHOICES.items()}),
    }
