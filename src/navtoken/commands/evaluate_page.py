"""The page of an evaluation: accuracy against each cost with its Pareto front, what is clear and what is not, all rows, responses.

Rules that run the LLM at every token to choose (`llm-prob`, `oracle`) are drawn but stand on no front. Policies under which the LLM
judges every token afterwards (`speculative`, `hindsight`) stand on no front of LLM share or of costs that follow from it, which
are not theirs, and are held against others at equal LLM passes per token.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from navtoken.evaluation import Estimate, Paired, Table, pareto_front
from navtoken.evaluation.evaluate import MEAN
from navtoken.evaluation.paired import errors_of
from navtoken.reference import parse_reference
from navtoken.report import (
    Column,
    Page,
    PanelsSection,
    ScatterPoint,
    ScatterSection,
    Section,
    TableSection,
    TextSection,
    TracesSection,
    build_page,
    decode_of,
)
from navtoken.report.markup import percent
from navtoken.report.scatter import LEGEND
from navtoken.trace import Trace, read_traces

Row = Mapping[str, Any]

OFFLINE = ("llm-prob", "oracle")
"""Rules that look at the LLM's view of every token: what a perfect choice would reach, at no saving."""
CONTROLS = ("random", "entropy")
"""Rules that every other one is held against at its own LLM share, or LLM passes per token."""
BASES = ("entropy", "margin", "random", "router")
"""Rules that another one may build on (hindsight)."""
OWN = ("auto", "pair")
"""Words after a rule's name that are settings of it, as numbers are, and no other router or verifier."""
TELLING = 0.8
"""Part of the gap that the title's policy recovers, less two standard errors."""
SHOWN_PROBLEMS = 2
"""Of each task, problems whose responses are on the page."""
MOST_SHOWN = 10
"""Policies whose responses are on the page."""
_TALL = 430


@dataclass(frozen=True)
class Cost:
    """One horizontal axis."""

    key: str
    """Field of the rows."""
    words: str
    """Its name, where it is counted with its unit."""
    hundred: str = ""
    """Of what goes from 0 to 1: the axis's name, in hundredths. Empty for what is counted, on a logarithmic axis."""
    written: bool = False
    """Does it count only who wrote each token, and not what else was computed?"""


SHARE = Cost("llm_share", "LLM share", "tokens written by the LLM (%)", written=True)
PASSES = Cost("llm_passes_per_token", "LLM passes per token", "LLM passes per 100 tokens")
COSTS = (
    SHARE,
    PASSES,
    Cost("average_activated_parameters", "activated parameters per token", written=True),
    Cost("total_cost", "parameters x tokens written, per response", written=True),
    Cost("computed_cost", "parameters x tokens computed, per response"),
    Cost("flops_per_token", "FLOPs per token"),
    Cost("bytes_per_token", "bytes per token"),
)

_INTRO = (
    "A small model (SLM) writes, and a policy hands some of its tokens to a large one (LLM). What does each policy get right, and at what "
    "cost? The tokens that the LLM writes are one cost; what both models compute and read is another: the LLM computes every token "
    "that it catches up on, whoever wrote it.\n\n"
    "llm-prob and oracle look at the LLM's view of every token, so they save nothing: they show what a perfect choice would reach, "
    "and stand on no front. What the oracle's continuations cost is not counted."
)

_COLUMNS = (
    Column("policy", "policy", "code"),
    Column("accuracy", "accuracy (%)", "percent", error="accuracy_se", bar=True, help="Right answers, ± one standard error over problems."),
    Column("recovered", "recovered (%)", "percent", digits=0, error="recovered_se", help="Part of the gap from the SLM alone to the LLM alone, ± one standard error, problem by problem."),
    Column("llm_share", "LLM share (%)", "percent", help="Tokens written by the LLM."),
    Column("average_activated_parameters", "activated parameters", "metric", help="Mean over tokens of the parameters of the model that wrote each, and the router's."),
    Column("total_cost", "total cost", "metric", help="Activated parameters x tokens of a response: the R2R paper's cost."),
    Column("computed_cost", "the same, all computed", "metric", help="Parameters x tokens that went through each model: prompts, catch-up and discarded tokens included."),
    Column("flops_per_token", "FLOPs per token", "metric", help="All that was computed, prompts and catch-up included, per token of the response."),
    Column("bytes_per_token", "bytes per token", "metric", help="Weights and KV cache read for a response decoded alone, per token of it."),
    Column("llm_passes_per_token", "LLM passes per token", "number", digits=2, help="LLM passes in which a response took part, per token of it: what latency is made of."),
    Column("discarded_per_token", "discarded per token", "number", digits=2, help="Drafts that were not kept and tokens that were rolled back, per token of the response."),
    Column("acceptance", "accepted (%)", "percent", help="Of the tokens that the LLM judged afterwards, those it let stand."),
    Column("tokens_per_second", "tokens/s", "count", help="On this machine, many responses at once."),
    Column("mean_length", "tokens per response", "number"),
    Column("cut_share", "cut off (%)", "percent", help="Responses that reached the longest length."),
)  # fmt: skip


def write_page(path: Path, table: Table, traces: Sequence[Trace], tokenizer: Any) -> Path:
    """Write the page: findings, accuracy against each cost, per task, all rows, responses side by side."""
    rows = sorted(table.rows, key=lambda row: row["task"] == MEAN)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    grouped = [row for task in tasks for row in rows if row["task"] == task]
    sections: list[Section] = [
        TextSection("What it shows", "\n\n".join(findings(table))),
        front_section(table),
        *([tasks_section(table)] if len(tasks) > 1 else []),
        TableSection("All policies", _COLUMNS, grouped, group_by="task"),
    ]
    if traces:
        title = "The same problems, under the best policy of each rule"
        sections.append(TracesSection(title, traces, decode_of(tokenizer)))
    return build_page(
        Page("Who should write which token, and what it costs", _INTRO, sections, table.provenance), path
    )


def whole(table: Table) -> dict[str, Row]:
    """By policy, the row over all tasks."""
    several = any(row["task"] == MEAN for row in table.rows)
    return {row["policy"]: row for row in table.rows if not several or row["task"] == MEAN}


def family(policy: str) -> str:
    """The rule that a policy is one setting of."""
    return policy.split(":")[0].split(",")[0]


def series(policy: str) -> str:
    """The rule, its router or verifier, and the rule that it builds on: points of one curve."""
    parsed = parse_reference(policy)
    own = parsed.name if _is_setting(parsed.target) else f"{parsed.name}:{parsed.target}"
    bases = [
        name if _is_setting(value) else f"{name}={value}"
        for name, value in parsed.options.items()
        if name in BASES
    ]
    return "+".join([own, *bases])


def _is_setting(value: str | None) -> bool:
    """Is it a number, or as good as one, and no folder or verifier?"""
    if value is None or value in OWN:
        return True
    try:
        float(value)
    except ValueError:
        return False
    return True


def fronts(table: Table) -> dict[str, list[str]]:
    """Policies on the Pareto front of accuracy and each cost, from the cheapest to the dearest."""
    return {
        cost.key: pareto_front(
            {
                policy: (row[cost.key], row["accuracy"])
                for policy, row in whole(table).items()
                if _there(row, cost) and _pays(table, policy, cost)
            }
        )
        for cost in COSTS
    }


def _pays(table: Table, policy: str, cost: Cost) -> bool:
    """Is the cost one that the policy has? An LLM that judges every token is not cheap where it writes few."""
    return family(policy) not in OFFLINE and not (cost.written and policy in table.verifying)


def telling_traces(table: Table, folder: Path) -> list[Trace]:
    """Responses to a few problems of each task under the best policy of each rule, named as they were asked for."""
    policies = _best_of_each(table)[:MOST_SHOWN]
    wanted = {
        (task, problem)
        for task in _tasks(table.paired)
        for problem in _telling_problems(table.paired, policies, task)
    }
    keys = {
        key: asked
        for key, asked in table.keys.items()
        if asked in policies and key[1:3] in wanted and key[3] == 0
    }
    found = [
        replace(trace, policy=keys[trace.key]) for trace in read_traces(folder, keep=lambda key: key in keys)
    ]
    return sorted(found, key=lambda trace: (trace.task, trace.problem_id, policies.index(trace.policy)))


def _tasks(paired: Paired) -> list[str]:
    return list(dict.fromkeys(task for scores in paired.scores.values() for task in scores))


def _best_of_each(table: Table) -> list[str]:
    """The most accurate policy of each rule, in the table's order."""
    best: dict[str, tuple[float, str]] = {}
    for policy, row in whole(table).items():
        if series(policy) not in best or row["accuracy"] > best[series(policy)][0]:
            best[series(policy)] = row["accuracy"], policy
    return [policy for _, policy in best.values()]


def _telling_problems(paired: Paired, policies: Sequence[str], task: str) -> list[str]:
    """Problems on which the policies shown differ most: half of them right."""
    scores = [paired.scores[policy][task] for policy in policies]

    def agreement(problem: str) -> float:
        return abs(sum(own[problem] for own in scores) / len(scores) - 0.5)

    return sorted(scores[0], key=agreement)[:SHOWN_PROBLEMS]


# ---- words ----------------------------------------------------------------------------------------------------


def findings(table: Table) -> list[str]:
    """What the table shows, a sentence each.

    A difference is claimed only beyond two standard errors; of a rule's best setting, which these same problems picked,
    beyond as many as keep the chance of a false claim over all its settings at that of one.
    """
    rows, paired = whole(table), table.paired
    found = []
    if "slm" in rows and "llm" in rows:
        gap = paired.gap("llm", "slm")
        found.append(
            f"The SLM alone gets {_percent(rows['slm'], 'accuracy')} right, the LLM alone {_percent(rows['llm'], 'accuracy')}"
            f"{'' if gap.clear else ', no clear difference'}."
        )
    for rule in dict.fromkeys(map(series, rows)):
        if sentence := _rule_finding(table, rule):
            found.append(sentence)
    front = fronts(table)
    for cost in COSTS:
        if len(front[cost.key]) > 1:
            found.append(f"Pareto front by {cost.words}: {', '.join(front[cost.key])}.")
    return found


def _rule_finding(table: Table, rule: str) -> str | None:
    """The best setting of a rule against the controls at its own cost; None for the controls' and the models' own."""
    rows = {policy: row for policy, row in whole(table).items() if series(policy) == rule}
    if rule in ("slm", "llm", "random"):
        return None
    policy = max(rows, key=lambda name: rows[name]["accuracy"])
    row = rows[policy]
    words = f"{policy} gets {_percent(row, 'accuracy')} right {_at_what(table, policy, row)}"
    recovered = _recovered(row)
    if math.isfinite(recovered.value):
        words += f", {100 * recovered.value:.0f} ± {100 * recovered.error:.0f} % of the gap"
    against = [
        part
        for control in CONTROLS
        if control != rule and (part := _against(table, policy, control, len(rows)))
    ]
    if len(rows) > 1:
        words += f" (the best of {len(rows)} settings on these problems"
        words += f"; clear from {errors_of(len(rows)):.1f} standard errors)" if against else ")"
    return f"{words}{'; ' if against else ''}{', '.join(against)}."


def _at_what(table: Table, policy: str, row: Row) -> str:
    """The cost at which a policy is held against others."""
    if policy in table.verifying:
        return f"with {row[PASSES.key]:.2f} LLM passes per token"
    offline = ", the LLM run at every token" if family(policy) in OFFLINE else ""
    return f"at an LLM share of {percent(row['llm_share'], 1)}{offline}"


def comparisons(table: Table) -> list[dict[str, Any]]:
    """Every policy against each control at the policy's own cost `at`: difference in accuracy, and its standard error.

    The cost is LLM share, or LLM passes per token where the LLM judges every token. An `error` is that of a setting
    chosen beforehand.
    """
    found = []
    for policy in whole(table):
        for control in CONTROLS:
            difference = _difference(table, policy, control)
            if family(policy) not in ("slm", "llm", control) and difference is not None:
                found.append(
                    {
                        "policy": policy,
                        "control": control,
                        "at": (PASSES if policy in table.verifying else SHARE).key,
                        "difference": difference.value,
                        "error": difference.error,
                    }
                )
    return found


def _difference(table: Table, policy: str, control: str) -> Estimate | None:
    """None where the control was not run near the policy's cost."""
    paired = table.paired
    controls = [name for name in paired.scores if family(name) == control]
    found = paired.against(policy, controls, paired.passes if policy in table.verifying else paired.shares)
    return found if math.isfinite(found.error) else None


def _against(table: Table, policy: str, control: str, settings: int) -> str | None:
    """Words on the best of so many settings and a control at its own cost; None where there is nothing to say."""
    found = _difference(table, policy, control)
    if found is None:
        return None
    there = "with as many" if policy in table.verifying else "at that share"
    if not found.clear_of(settings):
        return f"no clear difference from {control} {there}"
    more = "more" if found.value > 0 else "less"
    return f"{100 * abs(found.value):.1f} ± {100 * found.error:.1f} points {more} than {control} {there}"


def _recovered(row: Row) -> Estimate:
    value, error = row.get("recovered"), row.get("recovered_se")
    return Estimate(math.nan if value is None else value, math.nan if error is None else error)


def _percent(row: Row, name: str) -> str:
    error = row[f"{name}_se"]
    spread = "" if not math.isfinite(error) else f" ± {100 * error:.1f}"
    return f"{100 * row[name]:.1f}{spread} %"


# ---- figures --------------------------------------------------------------------------------------------------


def front_section(table: Table, costs: Sequence[Cost] = COSTS) -> PanelsSection:
    """Accuracy against each cost, with the front of each."""
    panels = [
        cost_section(table, cost) for cost in costs if any(_there(row, cost) for row in whole(table).values())
    ]
    words = " ".join(LEGEND.values())
    return PanelsSection(
        front_title(table),
        panels,
        f"{words} Where points lie within their errors it might as well run through the others.{_judging(table)}",
    )


def _judging(table: Table) -> str:
    """What is to be known of policies whose LLM share is no cost; empty where there are none."""
    rules = dict.fromkeys(family(policy) for policy in whole(table) if policy in table.verifying)
    if not rules:
        return ""
    return (
        f" Under {' and '.join(rules)} the LLM judges every token that it does not write, so by who wrote what (LLM share, activated "
        "parameters, parameters x tokens written) they are on no front and held against nothing: LLM passes per token, FLOPs and bytes "
        "are what they cost."
    )


def front_title(table: Table) -> str:
    """The policy of the lowest LLM share that surely recovers four fifths of the gap, where there is one."""
    rows = {
        policy: row
        for policy, row in whole(table).items()
        if policy != "llm"
        and _pays(table, policy, SHARE)
        and (part := _recovered(row)).value - 2 * part.error >= TELLING
    }
    if not rows:
        return "Accuracy against cost"
    policy = min(rows, key=lambda name: rows[name]["llm_share"])
    part = _recovered(rows[policy])
    return (
        f"{policy} recovers {100 * part.value:.0f} ± {100 * part.error:.0f} % of the gap with "
        f"{percent(rows[policy]['llm_share'], 1)} of the tokens written by the LLM"
    )


def cost_section(table: Table, cost: Cost) -> ScatterSection:
    """Accuracy against one cost over all tasks; its words are the page's."""
    rows = {policy: row for policy, row in whole(table).items() if _there(row, cost)}
    unit, prefix = (1.0, "") if cost.hundred else short_unit([row[cost.key] for row in rows.values()])
    on_front = fronts(table)[cost.key]
    points = [
        ScatterPoint(
            policy.split(",")[0] if "share=" in policy else policy,
            row[cost.key] / unit,
            row["accuracy"],
            _known(row["accuracy_se"]),
            series(policy),
            policy in on_front,
        )
        for policy, row in rows.items()
    ]
    return ScatterSection(
        f"Accuracy against {cost.words}",
        {_named_tasks(table): points},
        x_label=cost.hundred or f"{prefix}{cost.words} (log scale)",
        x_log=not cost.hundred,
        x_words="LLM share {} %" if cost == SHARE else f"{{}} {cost.hundred}",
        height=_TALL,
        explain=False,
    )


def _named_tasks(table: Table) -> str:
    tasks = [task for task in dict.fromkeys(row["task"] for row in table.rows) if task != MEAN]
    return tasks[0] if len(tasks) == 1 else f"mean of {len(tasks)} tasks"


def tasks_section(table: Table) -> ScatterSection:
    """Accuracy against LLM share, task by task."""
    panels: dict[str, list[ScatterPoint]] = {}
    for row in table.rows:
        if row["task"] != MEAN:
            label = row["policy"].split(",")[0] if "share=" in row["policy"] else row["policy"]
            point = ScatterPoint(
                label, row["llm_share"], row["accuracy"], _known(row["accuracy_se"]), series(row["policy"])
            )
            panels.setdefault(row["task"], []).append(point)
    return ScatterSection("Task by task", panels, _judging(table).strip(), height=_TALL)


def _there(row: Row, cost: Cost) -> bool:
    """Can the row be drawn against this cost?"""
    value = row[cost.key]
    return value is not None and math.isfinite(value) and (value > 0 or bool(cost.hundred))


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def short_unit(values: Sequence[float]) -> tuple[float, str]:
    """A power of a thousand that makes the numbers short, and its name."""
    power = max(0, min(4, int(math.log10(max(values)) // 3)))
    return 1000.0**power, ("", "thousand ", "million ", "billion ", "trillion ")[power]
