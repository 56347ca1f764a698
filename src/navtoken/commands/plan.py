"""`navtoken plan` in a shell: what routing would bring for models that you know only the step times of."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from navtoken.planner import (
    Placement,
    PlanError,
    Prediction,
    StepTimes,
    Workload,
    best_min_rows,
    best_num_drafts,
    predict,
    roofline,
    simulate,
    speculative_rate,
)

__all__ = ["PlanOptions", "run"]

Row = dict[str, Any]

# Up to so many rules are all shown; of more, the powers of two and the best.
_NUM_SHOWN = 16
_MAX_DRAFTS = 16


@dataclass(frozen=True)
class PlanOptions:
    """Predict how fast two models decode together, from nothing but their step times."""

    slm_ms: str
    """Milliseconds of an SLM pass: one number, or points NEW_TOKENS:MS,... such as 1:6,64:7.5."""
    llm_ms: str
    """Milliseconds of an LLM pass, likewise; it feeds some 1 / share new tokens a row, so give points."""
    share: float
    """LLM share: the part of the tokens that the LLM writes."""
    concurrency: int = 1
    """Rows decoded together."""
    placement: Placement = "turns"
    """Do the models take turns on one device, or run side by side on two?"""
    acceptance: float | None = None
    """Predict speculative decoding too, each draft being accepted with this probability."""
    simulate: bool = False
    """Play every rule with coins as well, for comparison."""
    seed: int = 0
    """Seed of the simulation."""


def run(options: PlanOptions, console: Console) -> dict[str, Any]:
    """Predict every batching rule, print the table and what follows from it, return both."""
    workload = Workload(
        slm=parse_step_times(options.slm_ms, "--slm-ms"),
        llm=parse_step_times(options.llm_ms, "--llm-ms"),
        share=options.share,
        rows=options.concurrency,
        placement=options.placement,
    )
    speculative = _speculative_rows(workload, options.acceptance)
    best = best_min_rows(workload)
    rows = [_row(workload, options, min_rows) for min_rows in _shown(options.concurrency, best)]
    result = {
        "rows": rows,
        "best_min_rows": best,
        "pays": predict(workload, best).pays,
        "llm_alone": workload.llm_alone,
        "roofline": roofline(workload),
        "speculative": speculative,
        "workload": asdict(workload),
    }
    _print_rules(console, result)
    _print_verdict(console, result)
    if speculative:
        _print_speculative(console, speculative)
    return result


def parse_step_times(text: str, flag: str) -> StepTimes:
    """Seconds out of milliseconds, `27.9` or `1:27.9,8:28.3`. Raises `PlanError` naming flag and part."""
    parts = [part.strip() for part in text.split(",")]
    points: dict[float, float] = {}
    for part in parts:
        num_tokens, colon, milliseconds = part.rpartition(":")
        if not colon and len(parts) > 1:
            raise PlanError(
                f"{flag} '{text}': '{part}' is no point; write NEW_TOKENS:MS, or one number alone"
            )
        try:
            point = (float(num_tokens) if colon else 1.0, float(milliseconds) / 1000)
        except ValueError as error:
            raise PlanError(
                f"{flag} '{text}': '{part}' is no time; write milliseconds (27.9) or points (1:27.9,64:60)"
            ) from error
        if point[0] in points:
            raise PlanError(f"{flag} '{text}': {point[0]:g} new tokens are given twice")
        points[point[0]] = point[1]
    try:
        return StepTimes.of(points)
    except PlanError as error:
        raise PlanError(f"{flag} '{text}': {error}") from error


def _shown(concurrency: int, best: int) -> list[int]:
    if concurrency <= _NUM_SHOWN:
        return list(range(1, concurrency + 1))
    powers = (2**power for power in range(concurrency.bit_length()))
    return sorted({*powers, best, concurrency})


def _row(workload: Workload, options: PlanOptions, min_rows: int) -> Row:
    row = _as_row(predict(workload, min_rows))
    if options.simulate:
        row["simulated"] = _as_row(simulate(workload, min_rows, seed=options.seed))
    return row


def _as_row(prediction: Prediction) -> Row:
    return {**asdict(prediction), "times_llm_alone": prediction.times_llm_alone}


def _speculative_rows(workload: Workload, acceptance: float | None) -> list[Row]:
    """Powers of two and the best number of drafts, which is marked; none without an acceptance."""
    if acceptance is None:
        return []
    best = best_num_drafts(workload, acceptance, _MAX_DRAFTS)
    return [
        {
            "num_drafts": num_drafts,
            "tokens_per_second": (rate := speculative_rate(workload, acceptance, num_drafts)),
            "times_llm_alone": rate / workload.llm_alone,
            "best": num_drafts == best,
        }
        for num_drafts in sorted({1, 2, 4, 8, 16, best})
    ]


def _print_rules(console: Console, result: dict[str, Any]) -> None:
    headings = ["B", "tokens/s", "times LLM", "LLM passes\n/token", "rows of an\nLLM pass"]
    simulated = "simulated" in result["rows"][0]
    table = _table([*headings, "simulated\ntokens/s"] if simulated else headings)
    for row in result["rows"]:
        best = row["min_rows"] == result["best_min_rows"]
        cells = [
            f"{'* ' if best else ''}{row['min_rows']}",
            _with_error(row),
            f"{row['times_llm_alone']:.2f}",
            f"{row['llm_passes_per_token']:.3f}",
            f"{row['mean_llm_rows']:.1f}",
        ]
        if simulated:
            cells.append(_with_error(row["simulated"]))
        table.add_row(*cells, style="bold" if best else None)
    console.print(table)


def _with_error(row: Row) -> str:
    error = f" ± {row['standard_error']:.1f}" if row["standard_error"] else ""
    return f"{row['tokens_per_second']:.1f}{error}"


def _print_verdict(console: Console, result: dict[str, Any]) -> None:
    best = next(row for row in result["rows"] if row["min_rows"] == result["best_min_rows"])
    pays = "pays" if result["pays"] else "does not pay"
    console.print(
        f"Routing {pays} at concurrency {result['workload']['rows']}: "
        f"B = {best['min_rows']} makes {best['tokens_per_second']:.1f} tokens/s, "
        f"{best['times_llm_alone']:.2f} times the {result['llm_alone']:.1f} of the LLM alone"
        f"{'.' if result['pays'] else '; let the LLM write.'}"
    )


def _print_speculative(console: Console, rows: Sequence[Row]) -> None:
    table = _table(["drafts", "tokens/s", "times LLM"])
    for row in rows:
        table.add_row(
            f"{'* ' if row['best'] else ''}{row['num_drafts']}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['times_llm_alone']:.2f}",
            style="bold" if row["best"] else None,
        )
    console.print("Speculative decoding, which writes what the LLM alone would:")
    console.print(table)


def _table(headings: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
