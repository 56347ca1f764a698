"""`navtoken calibrate`: the thresholds of a router, found again by routed generation on problems straight from tasks.

Its weights stay as they are, to the byte. What was measured lies in a subfolder: run again, it goes on where it stopped.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from navtoken.analysis.plain import plain
from navtoken.checkpoints import ModelPair
from navtoken.commands.ranks import own_output
from navtoken.commands.surroundings import progress_bars, progress_console
from navtoken.commands.threshold_words import unkept
from navtoken.engine import EngineOptions
from navtoken.generation import ModelOptions, fingerprints
from navtoken.policies.router import embedded_router
from navtoken.provenance import provenance, told
from navtoken.router import RouterCard, StoredThreshold, save_card
from navtoken.router_training.build import RUNS, ThresholdOptions
from navtoken.router_training.recalibration import (
    RecalibrationError,
    check_both,
    groups_of,
    known_shares,
    load_tasks,
    policy_of,
    prompts_of,
    recalibrated,
    router_for,
)
from navtoken.router_training.thresholds import RoutedRuns, stored_thresholds
from navtoken.serving.sampling import model_defaults
from navtoken.tasks import Split
from navtoken.tasks.prompts import PromptOptions

WORK = "calibration"
"""Subfolder of what an interrupted run needs to go on."""
SHAPED = ("top_p", "top_k", "min_p", "repetition_penalty")
"""Sampling parameters but the temperature, as options and generation configs name them."""
UNKNOWN = {"temperature": 1.0}
"""How an LLM is sampled whose generation config says nothing, or is not loaded yet."""


@dataclass(frozen=True)
class CalibrateOptions:
    """Find the thresholds of a router again, by routed generation on problems straight from tasks. No labels are needed."""

    folder: tyro.conf.Positional[Path | None] = None
    """Folder of the router (router.json and router.safetensors); the embedded pair's where left out."""
    out: Path | None = None
    """Folder of the router with its new thresholds; None writes them into the router's own, if that is not the package's."""
    task: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Task reference; may be repeated. Those that the router's stored thresholds name where left out."""
    num: int = 250
    """Problems per task. Few very long responses hold much of all tokens, so a share found on few problems is far off on others."""
    split: Split = "train"
    """Split that the problems come from; of one that the router learnt from, only those that its weights were not learnt from."""
    share: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    """LLM share to find a threshold for; may be repeated. Those of the stored thresholds where left out."""
    temperature: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    """Sampling temperature at which thresholds are found; may be repeated. Where left out, 0 and that of the LLM's generation
    config (1 where it has none), as a server draws."""
    top_p: float | None = None
    """Of sampling above temperature 0; None takes the LLM's generation config's, as a server does."""
    top_k: int | None = None
    """Of sampling above temperature 0; None as above."""
    min_p: float | None = None
    """Of sampling above temperature 0; None as above."""
    repetition_penalty: float | None = None
    """Of all sampling, temperature 0 included; None as above."""
    default_share: float | None = None
    """The share whose threshold over all tasks, at the first temperature, routes where neither share nor threshold is asked for.
    None: that of the share and sampling whose threshold routes now, where it is found again."""
    max_tokens: int | None = None
    """Longest response in tokens; None takes the LLM's own limit."""
    seed: int = 0
    """Fixes problems and noise."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair."""
    prompts: PromptOptions = field(default_factory=PromptOptions)
    """How questions become prompts."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    """How the engine batches."""

    @property
    def source(self) -> Path:
        """The router's folder."""
        return self.folder or embedded_router()

    def wanted(self, card: RouterCard, served: Mapping[str, Any] = UNKNOWN) -> ThresholdOptions:
        """What is looked for, where `served` is how the LLM is sampled unless something else is asked for.

        Raises `RecalibrationError`, `BuildError` and `OptionError` for what cannot be.
        """
        for name in ("num", "max_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise RecalibrationError(f"{name} is {value}; give at least 1")
        if self.engine.when_unprofitable != "route":
            raise RecalibrationError(
                f"when_unprofitable is {self.engine.when_unprofitable}: shares would depend on load; it is for serving only, "
                "leave it out"
            )
        shares = self.share or known_shares(card) or ThresholdOptions.share
        found = ThresholdOptions(
            share=shares,
            temperature=self.temperature or tuple(dict.fromkeys((0.0, served["temperature"]))),
            **{name: served[name] for name in SHAPED if name in served},
            default_share=shares[0] if self.default_share is None else self.default_share,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )
        given = {name: value for name in SHAPED if (value := getattr(self, name)) is not None}
        found = replace(found, **given)
        found.check()
        return found


def run(options: CalibrateOptions, console: Console, pair: ModelPair | None = None) -> dict[str, Any]:
    """Find the thresholds, write them beside the router's weights, print them; returns the JSON."""
    router, progress = router_for(options.source, options.out), progress_console()
    wanted = options.wanted(router.card)
    tasks = load_tasks(router.card, options.task)
    groups = groups_of(router.card, [task.name for task in tasks], options.default_share)
    loaded = pair or options.models.load()
    check_both(router.card, loaded)
    wanted = options.wanted(router.card, model_defaults(loaded.llm))
    prompts = prompts_of(
        router.card, tasks, loaded, options.num, options.split, options.seed, options.prompts
    )
    out = own_output(replace(options, out=options.out or options.source)).out
    with progress_bars(progress) as bars:
        bar = bars.add_task("routing", total=None)

        def tell(what: str) -> None:
            bars.update(bar, description=f"routing: {what}")
            if bars.disable:
                progress.print(f"routing {what}", soft_wrap=True)

        runs = RoutedRuns(
            loaded,
            policy_of(router),
            prompts,
            wanted.limit(loaded),
            options.seed,
            options.engine,
            out / WORK / RUNS,
            tell,
        )
        found = stored_thresholds(runs, wanted.samplings(), wanted.share, {}, groups)
    record = _record(options, wanted, loaded, {task: len(own) for task, own in prompts.items()})
    default = None if options.default_share is None else (options.default_share, wanted.samplings()[0])
    card = recalibrated(router.card, found, record, default)
    save_card(out, card, options.source)
    _print(console, found, card, out)
    result: dict[str, Any] = plain(
        {
            "out": str(out),
            "kind": card.kind,
            "weights": card.weights,
            "thresholds": [asdict(each) for each in found],
            "num_kept": len(card.thresholds) - len(found),
            "default_threshold": card.default_threshold,
            "calibration": record,
        }
    )
    return result


def _record(
    options: CalibrateOptions, wanted: ThresholdOptions, pair: ModelPair, num_problems: Mapping[str, int]
) -> dict[str, Any]:
    """Provenance: arguments as flat names with what stands for those left out, and how many problems there were."""
    flat: dict[str, Any] = {}
    for name, value in asdict(options).items():
        flat |= value if isinstance(value, dict) else {name: value}
    flat |= {name: getattr(wanted, name) for name in ("share", "temperature", *SHAPED)}
    flat |= {"task": list(num_problems), "max_tokens": wanted.limit(pair)}
    flat = {name: told(value) for name, value in flat.items()}
    record = provenance(fingerprints(pair), **flat) | {"num_problems": num_problems}
    made: dict[str, Any] = json.loads(json.dumps(record, default=str))
    return made


def _print(console: Console, found: Sequence[StoredThreshold], card: RouterCard, out: Path) -> None:
    """The thresholds, those of no use, and what routes by default. Fits into 80 columns."""
    table = Table(title="Thresholds found", title_justify="left", box=SIMPLE_HEAD, padding=0)
    for heading in ("task", "T", "share", "threshold", "LLM share", "problems"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for each in found:
        row = (each.temperature, each.share, f"{each.threshold:.4g}", f"{each.realised_share:.3f}")
        table.add_row(each.task, *map(str, row), str(each.num_problems))
    console.print(table)
    shaped = {f"{name} {value:g}": None for each in found for name, value in _shaping(each)}
    if shaped:
        console.print(f"· drawn with {', '.join(shaped)}")
    for line in unkept(found):
        console.print(line)
    default = "none" if card.default_threshold is None else f"{card.default_threshold:g}"
    name = "query" if card.kind == "query" else "router"
    console.print(f"policy {name}:{out} routes at its default threshold: {default}", soft_wrap=True)


def _shaping(stored: StoredThreshold) -> list[tuple[str, float]]:
    """Sampling parameters of a threshold that are not off."""
    off = {each.name: each.default for each in fields(StoredThreshold)}
    return [(name, value) for name in SHAPED if (value := getattr(stored, name)) != off[name]]
