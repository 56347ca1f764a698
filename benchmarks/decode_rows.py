"""A row of `decode.py`'s result: its speed, and for the engine's rows what stands beside it."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from bare import PassLog, bare_seconds
from candidates import EngineCandidate
from decode_point import PEERS, ROUTED, SPECULATIVE, Point
from measuring import paired_ratio, spread
from navtoken.engine import Costs
from navtoken.policies import Writer
from planned import Rate, acceptance_of


def describe(point: Point, name: str) -> dict[str, Any]:
    """A row of the result."""
    candidate = point.candidates[name]
    if name in point.errors:
        return {"row": name, "settings": candidate.settings, "error": point.errors[name]}
    runs = point.runs[name]
    row = {
        "row": name,
        "settings": candidate.settings,
        "tokens": sum(run.num_tokens for run in runs),
        "seconds": [run.seconds for run in runs],
        "tokens_per_second": spread([run.tokens_per_second for run in runs])._asdict(),
    }
    return row if name in PEERS else row | _against_ceilings(point, name)


def _against_ceilings(point: Point, name: str) -> dict[str, Any]:
    """What only an engine's row has: its passes, and what they should have cost."""
    runs, times, pair = point.runs[name], point.times, point.bench.pair
    logs = _logs(point, name)
    bare = [bare_seconds(log.passes, times) for log in logs]
    costs = Costs(pair.slm.card, pair.llm.card)
    moved = [costs.bytes(log.ledger) / point.bench.bandwidth for log in logs]
    planned = _planned(point, name)
    return {
        "roofline_tokens_per_second": median(r.num_tokens / s for r, s in zip(runs, bare, strict=True)),
        "roofline_fraction": median(s / r.seconds for r, s in zip(runs, bare, strict=True)),
        "bytes_fraction": median(s / r.seconds for r, s in zip(runs, moved, strict=True)),
        "planned_tokens_per_second": planned,
        "planned_fraction": median(run.tokens_per_second for run in runs) / planned,
        "llm_share": median(log.ledger.llm_share for log in logs),
        "passes": {model.name.lower(): sum(log.of(model) for log in logs) for model in Writer},
        "rows_per_llm_pass": median(_rows_per_pass(log.ledger.llm) for log in logs),
        "acceptance_length": _acceptance_length(logs) if name in SPECULATIVE else None,
        "fallback_share": _fallback_share(logs),
        "min_rows": _min_rows(point, name),
        "planned_min_rows": point.planner.best_min_rows(ROUTED[name], point.rows) if name in ROUTED else None,
    }


def _planned(point: Point, name: str) -> float:
    """Tokens per second that the planner expects of a row for this load."""
    rate, models = _rate(point, name)
    requests = point.requests(0)
    seconds = point.planner.seconds(requests, point.rows, rate, models)
    return sum(request.num_tokens for request in requests) / seconds


def _rate(point: Point, name: str) -> tuple[Rate, Sequence[Writer]]:
    """The planner's steady rate for a row, and the models that read its prompts."""
    planner = point.planner
    if name in ("slm", "llm"):
        model = Writer[name.upper()]
        return planner.alone(model), (model,)
    if name in SPECULATIVE:
        return planner.speculative(_acceptance(point, name), SPECULATIVE[name]), tuple(Writer)
    kind = name.split(":")[0]
    if kind == "fallback":
        return planner.with_fallback(ROUTED[name]), tuple(Writer)
    asked = point.bench.options.min_rows
    fixed = 1 if kind == "lockstep" else None if asked == "auto" else int(asked)
    return planner.routed(_share(_logs(point, name)), fixed), tuple(Writer)


def _logs(point: Point, name: str) -> list[PassLog]:
    return [run.log for run in point.runs[name] if run.log is not None]


def _share(logs: Sequence[PassLog]) -> float:
    """The LLM share that the coins gave: with few tokens it is off the one asked for."""
    written = sum(log.ledger.written[Writer.LLM] for log in logs)
    return max(1e-3, written / max(1, sum(sum(log.ledger.written) for log in logs)))


def _acceptance(point: Point, name: str) -> float:
    """Of a draft, from drafts of one length where such a row ran: `auto` changes K as it goes."""
    known = next((row for row in SPECULATIVE if point.runs.get(row)), name)
    logs = _logs(point, known)
    judged = sum(log.ledger.judged_drafts for log in logs)
    num_drafts = round(judged / max(1, sum(log.ledger.verifications for log in logs)))
    return acceptance_of(_acceptance_length(logs), max(1, num_drafts))


def _acceptance_length(logs: Sequence[PassLog]) -> float:
    """Tokens per verification as vLLM counts them: 1 + accepted drafts."""
    accepted = sum(log.ledger.accepted_drafts for log in logs)
    return 1 + accepted / max(1, sum(log.ledger.verifications for log in logs))


def _fallback_share(logs: Sequence[PassLog]) -> float:
    """Part of the tokens that the LLM wrote because routing was predicted not to pay."""
    return sum(log.ledger.fallback_tokens for log in logs) / max(
        1, sum(sum(log.ledger.written) for log in logs)
    )


def _min_rows(point: Point, name: str) -> int | None:
    """B of the batching rule, as it stands after the runs."""
    candidate = point.candidates[name]
    return candidate.min_rows if isinstance(candidate, EngineCandidate) and name in ROUTED else None


def _rows_per_pass(counts: Any) -> float:
    return counts.row_passes / max(1, counts.passes)


def ratios(point: Point) -> dict[str, Any]:
    """Every row over the LLM alone and over each peer, round by round."""
    done = {name: [run.tokens_per_second for run in runs] for name, runs in point.runs.items() if runs}
    below = [name for name in ("llm", "lockstep:0.13", *PEERS) if name in done and name not in point.errors]
    return {
        name: {other: paired_ratio(done[name], done[other])._asdict() for other in below if other != name}
        for name in done
        if name not in point.errors
    }
