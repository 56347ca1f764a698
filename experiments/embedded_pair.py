"""What the embedded pair is like: accuracy against LLM share under every simple rule, and the patterns of both papers.

    .venv/bin/python experiments/embedded_pair.py

writes `experiments/embedded_pair/`: `table.json` (rows and patterns with provenance), `table.md` (the README's table) and
`accuracy_against_share.svg` (its picture). Run again, it goes on where it stopped.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console

from navtoken.checkpoints import ModelPair, load_pair
from navtoken.entropy import exact_quantiles
from navtoken.evaluation import EvaluateOptions, evaluate
from navtoken.generation import GenerationOptions
from navtoken.generation.options import FAMILIES
from navtoken.report import ScatterPoint, ScatterSection, write_svg
from navtoken.report.markup import write_whole
from navtoken.trace import Trace, read_traces

SHARES = (0.05, 0.1, 0.2, 0.4)
POLICIES = (
    "slm",
    *(f"random:{share}" for share in SHARES),
    *(f"entropy,share={share}" for share in SHARES[1:]),
    *(f"margin,share={share}" for share in SHARES[1:3]),
    "llm-prob:0.1",
    "llm",
)
IN_README = (
    "slm",
    "random:0.1",
    "random:0.2",
    "entropy,share=0.1",
    "entropy,share=0.2",
    "llm-prob:0.1",
    "llm",
)


@dataclass(frozen=True)
class Options:
    """The experiment's size."""

    num: int = 200
    """Test problems per family."""
    seed: int = 11
    """Fixes the problems and the coin of random routing."""
    out: Path = Path("experiments/embedded_pair")
    """Folder of the results."""
    traces: Path = Path("build/embedded_pair_traces")
    """Folder of the responses."""


def main(options: Options) -> None:
    console = Console()
    generation = GenerationOptions(task=FAMILIES, policy=POLICIES, num=options.num, seed=options.seed)
    table = evaluate(EvaluateOptions(generation=generation, out=options.traces), console=console)
    patterns = measure_patterns(options.traces, load_pair())
    result = table.as_json() | {"patterns": patterns}
    write_whole(options.out / "table.json", json.dumps(result, indent=1) + "\n")
    write_whole(options.out / "table.md", markdown(result["rows"]))
    write_svg(scatter(result["rows"]), options.out / "accuracy_against_share.svg", columns=2)
    console.print(markdown(result["rows"]), json.dumps(patterns, indent=1))


def measure_patterns(traces: Path, pair: ModelPair) -> dict[str, dict[str, float]]:
    """On the LLM's own greedy responses, by family and over all: entropy quantiles in nats (T = 1), the share of tokens
    under 0.01 nats, and the share at which the SLM's argmax is another token than the LLM's."""
    entropies: dict[str, list[np.ndarray]] = defaultdict(list)
    differs: dict[str, list[np.ndarray]] = defaultdict(list)
    for trace in read_traces(traces):
        if trace.policy == "llm":
            for name in (trace.task, "all"):
                entropies[name].append(np.asarray(trace.columns["entropy_llm"], dtype=np.float64))
                differs[name].append(argmax_differs(trace, pair))
    return {name: pattern(entropies[name], np.concatenate(differs[name])) for name in entropies}


def pattern(chunks: list[np.ndarray], differs: np.ndarray) -> dict[str, float]:
    pool = np.concatenate(chunks)
    median, q80, q95 = exact_quantiles(pool, (0.5, 0.8, 0.95))
    return {
        "num_tokens": len(pool),
        "entropy_median": median,
        "entropy_q80": q80,
        "entropy_q95": q95,
        "share_under_0.01": float((pool < 0.01).mean()),
        "share_argmax_differs": float(differs.mean()),
    }


@torch.inference_mode()
def argmax_differs(trace: Trace, pair: ModelPair) -> np.ndarray:
    """Per response token, whether the SLM would have written another one greedily. One forward over the LLM's own ids."""
    ids_1T = torch.tensor([[*trace.prompt_ids, *trace.response_ids]])
    logits_TV = pair.slm.model(ids_1T).logits[0, len(trace.prompt_ids) - 1 : -1]
    return (logits_TV.argmax(-1).numpy() != np.asarray(trace.response_ids)).astype(bool)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The README's table: accuracy by family, and what the mean costs."""
    by_key = {(row["policy"], row["task"]): row for row in rows}
    lines = [
        "| policy | countdown | knights | arithmetic | mean accuracy | LLM share | activated parameters | FLOPs per token |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for policy in IN_README:
        mean = by_key[policy, "mean"]
        families = " | ".join(f"{100 * by_key[policy, task]['accuracy']:.1f}" for task in FAMILIES)
        lines.append(
            f"| `{policy}` | {families} | {100 * mean['accuracy']:.1f} ± {100 * mean['accuracy_se']:.1f} | "
            f"{100 * mean['llm_share']:.1f} % | {mean['average_activated_parameters'] / 1e6:.2f} M | "
            f"{mean['flops_per_token'] / 1e6:.2f} M |"
        )
    return "\n".join(lines) + "\n"


def scatter(rows: list[dict[str, Any]]) -> ScatterSection:
    panels: dict[str, list[ScatterPoint]] = defaultdict(list)
    for row in rows:
        point = ScatterPoint(row["policy"], row["llm_share"], row["accuracy"], row["accuracy_se"])
        panels["mean of the families" if row["task"] == "mean" else row["task"]].append(point)
    return ScatterSection("Accuracy against LLM share", panels)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
