"""The table that both papers' readers want: every rule on all three families, against what it costs, greedily and at T = 1.

    .venv/bin/python experiments/routing.py

writes `experiments/routing/`: `table.json` (rows of both samplings with findings, Pareto fronts, differences from the controls at equal
LLM share, LLM shares asked for and had, provenance), `table.md`, `readme.md` (some of its rows), and three pictures: `front.svg` (greedy accuracy against every
cost), `families.svg` (family by family) and `sampled.svg` (at T = 1). Traces and pages lie in `build/routing`; run again, it goes on
where it stopped. With `--only greedy` or `--only sampled` the other table stays as it is committed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from navtoken.checkpoints import ModelPair
from navtoken.commands.evaluate import as_json, print_table
from navtoken.commands.evaluate_page import (
    COSTS,
    cost_section,
    front_section,
    tasks_section,
    telling_traces,
    write_page,
)
from navtoken.engine import SamplingParams
from navtoken.evaluation import EvaluateOptions, Table, evaluate
from navtoken.generation import GenerationOptions
from navtoken.generation.options import FAMILIES
from navtoken.reference import parse_reference
from navtoken.report import write_svg
from navtoken.report.markup import write_whole

SHARES = (0.05, 0.1, 0.13, 0.15, 0.2, 0.3)
RANDOM_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Near enough for a control to be mixed at any share between them."""
GREEDY = (
    "slm",
    *(f"random:{share}" for share in RANDOM_SHARES),
    *(f"entropy,share={share}" for share in SHARES),
    *(f"router,share={share}" for share in (0.1, 0.13, 0.15, 0.18, 0.2)),
    *(f"margin,share={share}" for share in (0.1, 0.2)),
    "query,share=0.2",
    *(f"r-stitch:{threshold}" for threshold in (0.02, 0.05, 0.1)),
    *(f"hindsight:{eps}" for eps in (0.02, 0.1, 0.3)),
    "hindsight:0.1,router=pair",
    *(f"speculative:{drafts}" for drafts in (4, 8, 16)),
    "llm-prob:0.1",
    "oracle",
    "llm",
)
"""Where an LLM share is asked for, the threshold is found on training problems, or stored with the router."""
SAMPLED = (
    "slm",
    *(f"random:{share}" for share in (0.1, 0.2, 0.3)),
    *(f"entropy,share={share}" for share in (0.1, 0.15, 0.2, 0.3)),
    *(f"router,share={share}" for share in (0.1, 0.13, 0.15, 0.2)),
    "llm",
)


IN_README = (
    "slm",
    "random:0.2",
    "entropy,share=0.2",
    "query,share=0.2",
    "router,share=0.15",
    "router,share=0.18",
    "router,share=0.2",
    "hindsight:0.1",
    "hindsight:0.1,router=pair",
    "speculative:4",
    "speculative:16",
    "oracle",
    "llm",
)


@dataclass(frozen=True)
class Options:
    """The experiment's size."""

    num: int = 250
    """Test problems per family."""
    seed: int = 11
    """Fixes problems, noise and coins."""
    samples: int = 2
    """Responses a problem at T = 1."""
    greedy: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Policies of the greedy table in place of all; may be repeated."""
    sampled: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Policies of the table at T = 1 in place of all; may be repeated."""
    only: Literal["greedy", "sampled"] | None = None
    """Make one table anew, and keep the other as it is in `out`."""
    out: Path = Path("experiments/routing")
    """Folder of the results."""
    work: Path = Path("build/routing")
    """Folder of the responses and the pages."""


def main(options: Options) -> None:
    console, pair = Console(), EvaluateOptions().models.load()
    plans = {
        "greedy": (options.greedy or GREEDY, 0.0, 1),
        "sampled": (options.sampled or SAMPLED, 1.0, options.samples),
    }
    made = {
        name: table_of(options, name, *plan, pair)
        for name, plan in plans.items()
        if options.only in (None, name)
    }
    kept = json.loads((options.out / "table.json").read_text()) if options.only else {}
    result = kept | {name: as_json(table) | {"asked": asked_shares(table)} for name, table in made.items()}
    tables = {
        name: made.get(name) or Table(result[name]["rows"], result[name]["provenance"]) for name in plans
    }
    write_whole(options.out / "table.json", json.dumps(result, indent=1) + "\n")
    write_whole(options.out / "table.md", markdown(tables))
    write_whole(options.out / "readme.md", readme_markdown(result["greedy"]["rows"]))
    if greedy := made.get("greedy"):
        write_svg(front_section(greedy, (*COSTS[:2], *COSTS[-2:])), options.out / "front.svg", columns=2)
        write_svg(tasks_section(greedy), options.out / "families.svg")
    if sampled := made.get("sampled"):
        write_svg(cost_section(sampled, COSTS[0]), options.out / "sampled.svg")
    for table in made.values():
        print_table(console, table)


def table_of(
    options: Options, name: str, policies: Sequence[str], temperature: float, samples: int, pair: ModelPair
) -> Table:
    """`navtoken evaluate --out` at one temperature, its page included."""
    folder = options.work / name
    generation = GenerationOptions(
        task=FAMILIES,
        policy=tuple(policies),
        num=options.num,
        seed=options.seed,
        samples=samples,
        sampling=SamplingParams(temperature=temperature),
    )
    table = evaluate(EvaluateOptions(generation=generation, out=folder), pair, Console(stderr=True))
    write_page(folder / "index.html", table, telling_traces(table, folder), pair.tokenizer)
    return table


def asked_shares(table: Table) -> list[dict[str, Any]]:
    """Of every policy given by an LLM share: the share asked for, and the one it had on the test problems."""
    return [
        {"policy": row["policy"], "task": row["task"], "asked": asked, "had": row["llm_share"]}
        for row in table.rows
        if (asked := asked_share(row["policy"])) is not None
    ]


def asked_share(policy: str) -> float | None:
    """The LLM share in a policy's reference, of tokens whatever the rule; None where it has none."""
    share = parse_reference(policy).options.get("share")
    return None if share is None else float(share)


def markdown(tables: dict[str, Table]) -> str:
    """Both tables, and how far LLM shares are from those asked for."""
    parts = []
    for name, table in tables.items():
        title = "Greedy" if name == "greedy" else "At T = 1"
        parts.append(f"{title}, {table.rows[-1]['num_problems']} test problems.\n\n{rows_markdown(table)}")
    parts.append(f"LLM shares asked for and had, over all families.\n\n{shares_markdown(tables)}")
    return "\n\n".join(parts) + "\n"


def rows_markdown(table: Table) -> str:
    """Accuracy by family, and what the mean over them costs."""
    by_key = {(row["policy"], row["task"]): row for row in table.rows}
    names = (
        *FAMILIES,
        "mean accuracy (%)",
        "gap recovered (%)",
        "LLM share (%)",
        "activated parameters (M)",
        "total cost (M)",
        "the same, all computed (M)",
        "FLOPs per token (M)",
        "LLM passes per token",
        "discarded per token",
        "tokens/s",
    )
    lines = [f"| policy | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    for policy in dict.fromkeys(row["policy"] for row in table.rows):
        mean = by_key[policy, "mean"]
        cells = [
            *(f"{100 * by_key[policy, task]['accuracy']:.1f}" for task in FAMILIES),
            with_error(mean, "accuracy", 1),
            with_error(mean, "recovered", 0),
            f"{100 * mean['llm_share']:.1f}",
            f"{mean['average_activated_parameters'] / 1e6:.2f}",
            f"{mean['total_cost'] / 1e6:.1f}",
            f"{mean['computed_cost'] / 1e6:.1f}",
            f"{mean['flops_per_token'] / 1e6:.2f}",
            f"{mean['llm_passes_per_token']:.2f}",
            f"{mean['discarded_per_token']:.2f}",
            f"{mean['tokens_per_second']:,.0f}",
        ]
        lines.append(f"| `{policy}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_error(row: Mapping[str, Any], name: str, digits: int) -> str:
    """A fraction in percent ± its standard error, as far as they are there: an en dash where there is no figure."""
    value, error = row[name], row[f"{name}_se"]
    if value is None or not isfinite(value):
        return "–"
    spread = "" if error is None or not isfinite(error) else f" ± {100 * error:.{digits}f}"
    return f"{100 * value:.{digits}f}{spread}"


def readme_markdown(rows: list[dict[str, Any]]) -> str:
    """Greedy means over the families of the rules that say most."""
    lines = [
        "| policy | accuracy (%) | gap recovered (%) | LLM share (%) | LLM passes per token | FLOPs per token (M) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    means = {row["policy"]: row for row in rows if row["task"] == "mean"}
    for policy in (each for each in IN_README if each in means):
        mean = means[policy]
        cells = [
            with_error(mean, "accuracy", 1),
            with_error(mean, "recovered", 0),
            f"{100 * mean['llm_share']:.1f}",
            f"{mean['llm_passes_per_token']:.2f}",
            f"{mean['flops_per_token'] / 1e6:.2f}",
        ]
        lines.append(f"| `{policy}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shares_markdown(tables: dict[str, Table]) -> str:
    lines = [
        "| policy | sampling | asked (%) | had (%) | farthest off in a family (points) |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, table in tables.items():
        asked = asked_shares(table)
        for row in (each for each in asked if each["task"] == "mean"):
            own = [each for each in asked if each["policy"] == row["policy"] and each["task"] != "mean"]
            off = max(abs(each["had"] - each["asked"]) for each in own)
            lines.append(
                f"| `{row['policy']}` | {name} | {100 * row['asked']:.0f} | {100 * row['had']:.1f} | {100 * off:.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
