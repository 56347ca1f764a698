"""What sharing prefixes saves labelling: continuations that fork from one cached response against each from its first token.

    python benchmarks/labeling.py --json

`embedded` is labelling as it is: the embedded LLM's greedy responses of 100 tokens and more to training problems, continued from
the SLM's token at every position where it differs, to the end of the sentence. `random` is a larger model with random weights
on responses of 1,000 tokens and more, at random positions (as many as differ in R2R's paper), for as many tokens as sentences have there.
Tokens are those of the engine's ledger; both ways run the same engine, batch alike, and must write the same continuations.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from transformers import Qwen3Config

from measuring import (
    Bar,
    BenchmarkError,
    bars_table,
    console_for,
    finish,
    interleaved,
    paired_ratio,
    run_script,
    set_threads,
    spread,
    table,
)
from navtoken.checkpoints import ModelPair, load_pair
from navtoken.engine import Engine, EngineOptions
from navtoken.generation.options import FAMILIES
from navtoken.labeling.continuations import Ask, EngineContinuer
from navtoken.labeling.prefill import DraftReader
from navtoken.labeling.sentences import SentenceEnds
from navtoken.policies import make_policy
from navtoken.tasks import load_task
from navtoken.tasks.prompts import render
from navtoken.trace import Trace
from pairs import random_model

LEAST = 100
"""Tokens of the shortest response of the embedded pair that counts."""
LONGEST = 512
"""Responses that are cut off here are left out, as labelling does: they run in circles."""
DIFFERING = 0.11
"""Share of tokens at which the SLM's draft is another, in R2R's paper."""
SENTENCE = (6, 40)
"""Tokens of a continuation on the random model: the shortest and the longest."""
WAYS = ("shared", "from scratch")


@dataclass(frozen=True)
class Options:
    """How many tokens of the LLM, and how much time, do shared prefixes save?"""

    problems: int = 40
    """Of each embedded family."""
    responses: int = 4
    """Responses of random tokens."""
    tokens: tuple[int, int] = (1000, 1600)
    """Their lengths: the shortest and the longest."""
    prompt_tokens: int = 128
    """Of each prompt of theirs."""
    hidden: int = 256
    """Hidden size of the random model."""
    layers: int = 8
    """Its layers."""
    rows: int = 64
    """Continuations decoded together."""
    repeats: int = 3
    """Interleaved rounds."""
    threads: int = 0
    """Torch threads; 0 leaves torch's choice."""
    json: bool = False
    """Only the JSON line goes to standard output; tables go to standard error."""
    out: Path | None = None
    """Also write the result to this file."""


@dataclass(frozen=True)
class Workload:
    """What is continued."""

    name: str
    pair: ModelPair
    asks: Sequence[Ask]
    lengths: Sequence[int]
    """Of the responses."""


@dataclass(frozen=True)
class Run:
    """All continuations of a workload, one way."""

    seconds: float
    llm_tokens: int
    passes: int
    continuations: dict[Any, tuple[int, ...]]


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print; returns what the JSON line says."""
    options = tyro.cli(Options, description=__doc__, args=args)
    set_threads(options.threads)
    console = console_for(options.json)
    results = []
    for workload in (embedded(options), random_weights(options)):
        ways = {way: partial(_run, workload, way == "shared", options) for way in WAYS}
        results.append(_summed_up(workload, interleaved(ways, options.repeats)))
        console.print(_table(results[-1]))
    bars = [
        Bar("LLM tokens from scratch / shared, embedded pair, 100+ tokens", 3.0, results[0]["token_ratio"]),
        Bar("LLM tokens from scratch / shared, 1,000+ tokens", 3.0, results[1]["token_ratio"]),
        Bar("seconds from scratch / shared, 1,000+ tokens", 1.0, results[1]["time_ratio"]["median"]),
    ]
    console.print(bars_table(bars))
    result = {"workloads": results, "bars": [bar.as_json() for bar in bars]}
    return finish("labeling", options, result, options.out)


def embedded(options: Options) -> Workload:
    """Labelling as it is."""
    pair = load_pair()
    traces = [trace for trace in _responses(pair, options) if len(trace.response_ids) >= LEAST]
    if not traces:
        raise BenchmarkError(
            f"no response of {LEAST} tokens among {options.problems} problems; ask for more problems"
        )
    reader = DraftReader(pair.slm, pair.vocab_size, features=False)
    ends = SentenceEnds(pair.tokenizer)
    asks = []
    for trace, read in zip(traces, reader.read(traces), strict=True):
        ids = [*trace.prompt_ids, *trace.response_ids]
        drafts = read.columns["draft_ids"]
        for position in np.flatnonzero(drafts != np.asarray(trace.response_ids)).tolist():
            length = len(trace.prompt_ids) + position
            asks.append(Ask((trace.problem_id, position), ids, length, int(drafts[position]), 64, ends))
    return Workload("embedded", pair, asks, [len(trace.response_ids) for trace in traces])


def _responses(pair: ModelPair, options: Options) -> Iterator[Trace]:
    """Greedy ones of the LLM."""
    engine = Engine(pair, make_policy("llm"), EngineOptions(max_rows=options.rows))
    rows = {}
    for name in FAMILIES:
        task = load_task(name)
        for problem in task.problems("train", options.problems, 0):
            prompt = render(pair.tokenizer, task, problem)
            rows[problem.problem_id] = engine.add(prompt.ids, max_tokens=LONGEST)
    for _ in engine.run():
        pass
    for problem_id, row in rows.items():
        if row.finish_reason != "stop":
            continue
        prompt_ids, response_ids = row.token_ids[: row.prompt_len], row.response_ids
        yield Trace(
            "embedded", problem_id, 0, "", prompt_ids, response_ids, "", "stop", 0, "llm", row.record.writer
        )


def random_weights(options: Options) -> Workload:
    """Long responses; what the model says does not matter to how long it takes."""
    config = Qwen3Config(
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 32,
        num_key_value_heads=max(1, options.hidden // 64),
        head_dim=32,
        vocab_size=4096,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        eos_token_id=None,
    )
    model = random_model(config, 1, "cpu", "random:labeling", "float32")
    model.model.generation_config.eos_token_id = []
    rng = np.random.default_rng(0)
    lengths = np.linspace(*options.tokens, options.responses).round().astype(int).tolist()
    asks = []
    for number, length in enumerate(lengths):
        ids = rng.integers(2, config.vocab_size, options.prompt_tokens + length).tolist()
        positions = np.flatnonzero(rng.random(length) < DIFFERING).tolist()
        sizes = rng.integers(*SENTENCE, len(positions), endpoint=True).tolist()
        for position, size in zip(positions, sizes, strict=True):
            draft = int(rng.integers(2, config.vocab_size))
            asks.append(Ask((number, position), ids, options.prompt_tokens + position, draft, size))
    return Workload("random", ModelPair(model, model), asks, lengths)


def _run(workload: Workload, share: bool, options: Options, _: int) -> Run:
    continuer = EngineContinuer(workload.pair, EngineOptions(max_rows=options.rows), share)
    start = time.perf_counter()
    found = list(continuer.continue_all(workload.asks))
    seconds = time.perf_counter() - start
    if failed := next((each.error for each in found if each.error), None):
        raise BenchmarkError(f"a continuation failed: {failed}")
    llm = continuer.ledger.llm
    return Run(seconds, llm.tokens, llm.passes, {each.key: tuple(each.token_ids) for each in found})


def _summed_up(workload: Workload, runs: dict[str, list[Run]]) -> dict[str, Any]:
    shared, scratch = (runs[way] for way in WAYS)
    same = sum(shared[0].continuations[key] == ids for key, ids in scratch[0].continuations.items())
    continued = sum(map(len, shared[0].continuations.values()))
    return {
        "workload": workload.name,
        "parameters": workload.pair.llm.card.parameters,
        "responses": len(workload.lengths),
        "mean_length": sum(workload.lengths) / len(workload.lengths),
        "continuations": len(workload.asks),
        "mean_continuation": continued / len(workload.asks),
        # Batches round differently, and two tokens may be as good as equally probable.
        "same_continuations": same,
        "rows": [
            {
                "way": way,
                "llm_tokens": runs[way][0].llm_tokens,
                "llm_passes": runs[way][0].passes,
                "seconds": spread([run.seconds for run in runs[way]])._asdict(),
            }
            for way in WAYS
        ],
        "token_ratio": scratch[0].llm_tokens / shared[0].llm_tokens,
        "time_ratio": paired_ratio(
            [run.seconds for run in scratch], [run.seconds for run in shared]
        )._asdict(),
    }


def _table(result: dict[str, Any]) -> Any:
    cells = [
        (row["way"], row["llm_tokens"], row["llm_passes"], row["seconds"]["median"]) for row in result["rows"]
    ]
    cells.append(("from scratch / shared", result["token_ratio"], None, result["time_ratio"]["median"]))
    title = (
        f"{result['workload']}: {result['continuations']} continuations of {result['mean_continuation']:.0f} tokens in "
        f"{result['responses']} responses of {result['mean_length']:.0f}"
    )
    return table(title, ("", "LLM tokens", "passes", "seconds"), cells)


if __name__ == "__main__":
    run_script(main)
