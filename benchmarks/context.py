"""What one more token costs as the context grows, to 32k: it should grow by what its keys and values take to read, no faster.

    python benchmarks/context.py --json

A model small enough that attention is all there is to see, with random weights. Beside the engine's decode step: a bare
forward of one token at that context, and the linear bound: the bare step at the shortest context, plus the further
keys and values at the memory's measured bandwidth.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from transformers import Qwen3Config

from bare import BareModel
from measuring import BenchmarkError, console_for, finish, memory_bandwidth, run_script, set_threads, table
from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.policies import make_policy
from pairs import PairSource, packed_pair, random_model, source_named


@dataclass(frozen=True)
class Options:
    """What does a decode step cost against its context?"""

    contexts: str = "1024,2048,4096,8192,16384,32768"
    """Tokens of the prompt, comma-separated, ascending."""
    tokens: int = 32
    """Decode steps timed at each."""
    pair: str = ""
    """A pair of `pairs.py` instead of the small one; its LLM is measured."""
    threads: int = 0
    """Of torch; 0 leaves its own choice."""
    json: bool = False
    """Only the JSON line goes to standard output; tables go to standard error."""
    out: Path | None = None
    """Also write the result to this file."""

    @property
    def lengths(self) -> list[int]:
        return [int(each) for each in self.contexts.split(",")]


def small_pair(device: str) -> ModelPair:
    """Two models of about the embedded LLM's size, with room for 64k tokens."""
    shape = Qwen3Config(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=1 << 16,
        tie_word_embeddings=True,
    )
    slm, llm = (random_model(shape, seed, device, f"random:context-{seed}", "float32") for seed in (1, 2))
    return ModelPair(slm, llm)


SMALL = PairSource("small", small_pair, {})


def main(args: Sequence[str] | None = None, source: PairSource | None = None) -> dict[str, Any]:
    """Parse, measure, print; returns what the JSON line says."""
    options = tyro.cli(Options, description=__doc__, args=args)
    set_threads(options.threads)
    pair = packed_pair(source or (source_named(options.pair) if options.pair else SMALL))
    if max(options.lengths) + options.tokens > pair.llm.card.context:
        raise BenchmarkError(
            f"contexts up to {max(options.lengths)} and {options.tokens} tokens pass the {pair.llm.card.context} of "
            f"'{pair.llm.reference}'; give shorter ones"
        )
    bandwidth = memory_bandwidth(str(pair.llm.model.device))
    rows = measure(pair, options, bandwidth)
    columns = ("context", "step (ms)", "bare (ms)", "of it", "linear bound (ms)", "of it")
    cells = [
        (str(row["context"]), row["step_ms"], row["bare_ms"], row["bare_fraction"], row["linear_ms"], row["linear_fraction"])
        for row in rows
    ]  # fmt: skip
    console_for(options.json).print(table("One decode step of one row", columns, cells))
    return finish("context", options, {"bandwidth_bytes_per_second": bandwidth, "rows": rows}, options.out)


def measure(pair: ModelPair, options: Options, bandwidth: float) -> list[dict[str, Any]]:
    """All contexts, shortest first."""
    bare = [bare_step(pair, length) for length in options.lengths]
    rows = []
    for length, bare_seconds in zip(options.lengths, bare, strict=True):
        seconds = decode_step(pair, length, options.tokens)
        further = (length - options.lengths[0]) * pair.llm.card.kv_bytes
        linear = bare[0] + further / bandwidth
        rows.append(
            {
                "context": length,
                "step_ms": 1e3 * seconds,
                "bare_ms": 1e3 * bare_seconds,
                "bare_fraction": bare_seconds / seconds,
                "linear_ms": 1e3 * linear,
                "linear_fraction": linear / seconds,
            }
        )
    return rows


def decode_step(pair: ModelPair, length: int, num_tokens: int) -> float:
    """Median seconds of the steps after the prompt was read."""
    engine = Engine(pair, make_policy("llm"), EngineOptions(max_rows=1))
    prompt = [2 + index % (pair.vocab_size - 2) for index in range(length)]
    # The first token comes with the last of the prompt.
    engine.add(prompt, SamplingParams(ignore_eos=True), num_tokens + 1)
    seconds = []
    while engine.has_work:
        read = engine.ledger.llm.prefill_tokens
        start = time.perf_counter()
        engine.step()
        if engine.ledger.llm.prefill_tokens == read:
            seconds.append(time.perf_counter() - start)
    return median(seconds)


def bare_step(pair: ModelPair, length: int) -> float:
    """Median seconds of a bare forward of one token at this context."""
    bare = BareModel(pair.llm, (1,), length)
    for _ in range(3):
        bare.round()
    return bare.times()(1)


if __name__ == "__main__":
    run_script(main)
