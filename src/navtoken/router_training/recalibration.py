"""Thresholds of a router that is there already, found again on problems straight from tasks.

Labels take hours of both models, and a threshold needs none: it follows from routed generation alone. So thresholds can be found
on other problems than were labelled and on more of them, for tasks that the router was not trained for, and for a checkpoint that
brought none. What is not looked for again stays as it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from navtoken.checkpoints import ModelPair
from navtoken.engine import SamplingParams
from navtoken.generation.calibration import kept_from_training
from navtoken.policies.base import PairView
from navtoken.policies.query import QueryPolicy
from navtoken.policies.router import DIGITS, RouterMismatchError, RouterPolicy, check_pair, embedded_router
from navtoken.router import ALL_TASKS, Router, RouterCard, StoredThreshold, check_weights, open_router
from navtoken.router_training.examples import PromptOf
from navtoken.tasks import Split, Task, load_task
from navtoken.tasks.prompts import PromptOptions, render


class RecalibrationError(ValueError):
    """Thresholds that cannot be found again as asked."""


def router_for(source: Path, out: Path | None) -> Router:
    """The router in a folder, once it is clear that its new thresholds can be written to `out`, or to `source` itself where that is
    None.

    Raises `RecalibrationError` for a router of the package's without another folder, `RouterFileError` for weights of two routers.
    """
    if out is None and source.resolve().is_relative_to(embedded_router().parent.resolve()):
        raise RecalibrationError(
            "the embedded pair's routers stay as they are; give --out FOLDER, or the folder of another router"
        )
    router = open_router(source)
    for folder in {source, out or source}:
        check_weights(folder, router.card, missing_ok=folder != source)
    return router


def policy_of(router: Router) -> RouterPolicy:
    """The router's policy, at any threshold."""
    return (QueryPolicy if router.card.kind == "query" else RouterPolicy)(0.5, router=router)


def check_both(card: RouterCard, pair: ModelPair) -> None:
    """Raise `RouterMismatchError` unless both models are the router's: with another LLM a threshold gives another share, and the
    card says for one LLM only what was found."""
    check_pair(card, PairView(1.0, pair.vocab_size, pair.slm.reference, lambda: pair.slm.fingerprint))
    theirs, ours = card.pair.fingerprints.get("llm", ""), pair.llm.fingerprint
    if theirs != ours:
        raise RouterMismatchError(
            f"the router was trained with LLM '{card.pair.llm}' ({theirs[:DIGITS]}), this pair's is '{pair.llm.reference}' "
            f"({ours[:DIGITS]}): thresholds found with one are not the other's; give the router's pair as --slm and --llm"
        )


def known_tasks(card: RouterCard) -> tuple[str, ...]:
    """Tasks that the stored thresholds name."""
    return tuple(dict.fromkeys(each.task for each in card.thresholds if each.task != ALL_TASKS))


def known_shares(card: RouterCard) -> tuple[float, ...]:
    """LLM shares that the stored thresholds were found for."""
    return tuple(sorted({each.share for each in card.thresholds if each.share is not None}))


def load_tasks(card: RouterCard, asked: Sequence[str]) -> list[Task]:
    """The tasks asked for, or those that the router knows. Raises `RecalibrationError`."""
    tasks = [load_task(each) for each in asked or known_tasks(card)]
    names = [task.name for task in tasks]
    if not names:
        raise RecalibrationError("the router's stored thresholds name no task; give --task")
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecalibrationError(f"task '{twice[0]}' is given twice; leave one out")
    return tasks


def groups_of(
    card: RouterCard, tasks: Sequence[str], default_share: float | None = None
) -> dict[str, list[str]]:
    """Names under which thresholds found on these tasks are stored, each with its tasks.

    Over all tasks only where none that the router knows is missing. Raises `RecalibrationError` where a `default_share` needs that.
    """
    everything = list(known_tasks(card) or tasks)
    missing = [task for task in everything if task not in tasks]
    if missing and default_share is not None:
        raise RecalibrationError(
            f"default_share is of all the router's tasks, and {', '.join(missing)} is not asked for; name all, or leave it out"
        )
    return ({} if missing else {ALL_TASKS: everything}) | {task: [task] for task in tasks}


def prompts_of(
    card: RouterCard,
    tasks: Sequence[Task],
    pair: ModelPair,
    num: int,
    split: Split,
    seed: int,
    how: PromptOptions,
) -> dict[str, list[PromptOf]]:
    """By task, `num` problems that the router's weights were not learnt from, or as many as there are.

    Raises `RecalibrationError` for a task without any.
    """
    sources: Mapping[str, Any] = card.provenance.get("sources", {})
    learnt = {"train"}.union(*(each.get("splits", ()) for each in sources.values()))
    found = {}
    for task in tasks:
        found[task.name] = [
            PromptOf(task.name, each.problem_id, tuple(render(pair.tokenizer, task, each, how).ids))
            for each in islice(kept_from_training(task, seed, split, learnt), num)
        ]
        if not found[task.name]:
            raise RecalibrationError(
                f"'{task.name}' has no problems in '{split}' that were kept from the router's training; name another task or split"
            )
    return found


def recalibrated(
    card: RouterCard,
    found: Sequence[StoredThreshold],
    record: Mapping[str, Any],
    default: tuple[float, SamplingParams] | None = None,
) -> RouterCard:
    """The card with these thresholds in place of those stored for the same task, sampling and share.

    `default` is the share and the sampling whose threshold over all tasks becomes the default one; None takes what the default was
    found for before, and leaves it where that was not looked for. `record` says how they were found.
    """
    new = {_key(each): each for each in found}
    stored = [new.pop(_key(each), each) for each in card.thresholds]
    return replace(
        card,
        thresholds=(*stored, *new.values()),
        default_threshold=_default(card, found, default),
        provenance=card.provenance
        | {"calibrations": [*card.provenance.get("calibrations", []), dict(record)]},
    )


def _default(
    card: RouterCard, found: Sequence[StoredThreshold], default: tuple[float, SamplingParams] | None
) -> float | None:
    if default is None:
        wanted = {
            _key(each)
            for each in card.thresholds
            if each.task == ALL_TASKS and each.share is not None and each.threshold == card.default_threshold
        }
    else:
        share, sampling = default
        wanted = {
            _key(each)
            for each in found
            if each.task == ALL_TASKS and each.share == share and each.temperature == sampling.temperature
        }
    return next((each.threshold for each in found if _key(each) in wanted), card.default_threshold)


def _key(stored: StoredThreshold) -> tuple[Any, ...]:
    """What a threshold was looked for at."""
    sampling = (stored.temperature, stored.top_p, stored.top_k, stored.min_p, stored.repetition_penalty)
    return (stored.task, stored.share, stored.recall, *sampling)
