"""`navtoken train-router`: labels become a router with thresholds, a page, and a report on problems that it never saw.

The folder is the only state: run again, training and the search for thresholds go on where they stopped.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from navtoken.analysis.columns import num_responses
from navtoken.analysis.plain import plain
from navtoken.analysis.ranking import Resampling
from navtoken.checkpoints import ModelPair
from navtoken.commands.surroundings import progress_bars, progress_console
from navtoken.commands.threshold_words import unkept
from navtoken.commands.train_router_page import findings, tested_problems, write_page
from navtoken.generation import ModelOptions, fingerprints
from navtoken.provenance import provenance, told
from navtoken.report.markup import percent, write_whole
from navtoken.router import ALL_TASKS, PairNames, RouterCard, RouterNetwork, import_official, save_router
from navtoken.router_training.build import (
    Built,
    Kind,
    NetworkOptions,
    ThresholdOptions,
    card_of,
    check_labels,
    embedding_of,
    finish,
    num_logits_of_queries,
)
from navtoken.router_training.examples import (
    Examples,
    check_splits,
    gather,
    identity_of,
    label_fingerprints,
    splits_of,
)
from navtoken.router_training.quality import SHARES
from navtoken.router_training.query import gather_queries
from navtoken.router_training.training import Epoch, Trained, TrainingOptions, steps_per_epoch, train
from navtoken.trace import read_provenance

__all__ = ["TrainRouterOptions", "run"]

WORK = "training"
"""Subfolder of what an interrupted run needs to go on."""


class TrainRouterError(ValueError):
    """Options that do not go together."""


@dataclass(frozen=True)
class TrainRouterOptions:
    """Train a router on labels, find its thresholds by routed generation, and report on problems that it never saw."""

    labels: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of labelled traces, as `navtoken label` writes them: of greedy drafts, of sampled ones, or both."""
    kind: Kind = "token"
    """`token` judges every draft; `query` decides by the prompt alone who writes the whole response."""
    traces: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """For kind query: folder of verified traces of policies slm and llm on the same problems; may be repeated."""
    test_labels: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Folder of labels that the router is only tested on (of drafts that are drawn in another way, say), on the problems that
    it is tested on anyway; may be repeated."""
    import_official: Path | None = None
    """Take this official R2R checkpoint (.pt) instead of training; LABELS, where given, test it and find its thresholds."""
    allow_test_problems: bool = False
    """Learn from problems of another split than train, too. Whoever does so can no longer test on that split."""
    cut_off: bool = False
    """Learn from (and test on) responses too that ran into the length limit, in which the LLM itself was lost."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    """How the network is trained."""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    """What it reads, and how large it is."""
    thresholds: ThresholdOptions = field(default_factory=ThresholdOptions)
    """What is found by routed generation."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair."""
    resamples: int = 300
    """Bootstrap resamples of the problems, from which intervals come; 0 makes none."""
    out: Path = Path("out/router")
    """Folder of the router (router.json and router.safetensors), the page (index.html) and the figures (report.json)."""

    def check(self) -> None:
        """Raise `TrainRouterError` and `BuildError` for what cannot work, before anything is loaded."""
        self.thresholds.check()
        if self.kind == "query" and (self.labels or self.import_official):
            raise TrainRouterError(
                "kind query learns from who was right: give --traces of policies slm and llm, no LABELS and no checkpoint"
            )
        if self.kind == "query" and not self.traces:
            raise TrainRouterError(
                "kind query needs --traces: folders of `navtoken generate --policy slm --policy llm --split train`"
            )
        if self.kind == "token" and self.traces:
            raise TrainRouterError(
                "--traces is for kind query; give labelled traces as LABELS, without a flag"
            )
        if self.kind == "token" and not self.labels and not self.import_official:
            raise TrainRouterError("give LABELS: folders that `navtoken label` wrote")
        if self.test_labels and not self.labels:
            raise TrainRouterError(
                "--test-labels are only tested on: give LABELS, too, from which weights or thresholds come"
            )
        if twice := {each.resolve() for each in self.labels} & {each.resolve() for each in self.test_labels}:
            raise TrainRouterError(f"{min(twice)} is among LABELS and --test-labels; leave one out")
        if self.resamples < 0:
            raise TrainRouterError(f"resamples is {self.resamples}; give at least 0")

    @property
    def sources(self) -> tuple[Path, ...]:
        """Folders that are learnt from."""
        return self.labels or self.traces

    @property
    def read(self) -> tuple[Path, ...]:
        """Folders that are read at all."""
        return self.sources + self.test_labels


def run(options: TrainRouterOptions, console: Console, pair: ModelPair | None = None) -> dict[str, Any]:
    """Train or import, find thresholds, print the report, write router, page and JSON; returns the JSON."""
    options.check()
    progress = progress_console()
    if options.sources:
        found = label_fingerprints(options.read)
        if not options.allow_test_problems:
            check_splits(splits_of(options.sources))
    loaded = pair or options.models.load()
    if not options.sources:
        return _bare_import(options, loaded, console)
    check_labels(found, loaded)
    with progress_bars(progress) as bars:
        built = build(options, loaded, bars)
    card = save_router(options.out, built.network, built.card)
    result = as_json(built, card, options)
    page = write_page(options.out / "index.html", built)
    write_whole(options.out / "report.json", json.dumps(result, indent=1, default=str) + "\n")
    shutil.rmtree(_examples_folder(options), ignore_errors=True)
    print_built(console, built, options)
    console.print(f"page: {page.resolve()}", soft_wrap=True)
    return result | {"page": str(page)}


def build(options: TrainRouterOptions, pair: ModelPair, bars: Progress) -> Built:
    """The router with its thresholds and its report; nothing is written but what an interrupted run needs."""
    examples = gathered(options, pair, bars)
    target = options.training.target
    examples.check(target)
    record = _record(options, pair)
    device = options.models.slm_device or options.models.device
    trained: Trained | None = None
    if options.import_official:
        network, card = import_official(options.import_official, pair.slm, _names(pair), record)
    else:
        num_logits = examples.num_logits
        shape = options.network.shape(pair, options.kind, num_logits)
        trained = _trained(options, pair, examples, shape, device, bars)
        network, card = trained.network, card_of(options.kind, pair, shape, record)
    bar = bars.add_task("routing validation problems", total=None)
    resampling = Resampling(options.resamples, options.thresholds.seed)

    def tell(what: str) -> None:
        bars.update(bar, description=f"routing: {what}" if what != "testing" else what)

    return finish(
        network,
        card,
        examples,
        pair,
        target,
        options.thresholds,
        resampling,
        trained,
        options.out / WORK,
        tell,
        device,
    )


def gathered(options: TrainRouterOptions, pair: ModelPair, bars: Progress) -> Examples:
    """The examples of all folders."""
    bar = bars.add_task("reading labels", total=sum(num_responses(folder) for folder in options.read))

    def advance(num: int) -> None:
        bars.advance(bar, num)

    if options.kind == "query":
        return gather_queries(options.traces, pair, num_logits_of_queries(options.network, pair), advance)
    folder = _examples_folder(options)
    return gather(options.labels, pair.vocab_size, folder, advance, options.cut_off, options.test_labels)


def _trained(
    options: TrainRouterOptions, pair: ModelPair, examples: Examples, shape: Any, device: str, bars: Progress
) -> Trained:
    steps = steps_per_epoch(examples, options.training)
    bar = bars.add_task("training", total=steps * options.training.epochs)

    def tell(epoch: Epoch | None) -> None:
        if epoch is None:
            bars.advance(bar)
        else:
            words = f"training: epoch {epoch.number}, PR area {epoch.validation_pr:.4f}"
            bars.update(bar, completed=steps * epoch.number, description=words)

    identity = json.dumps([options.kind, options.cut_off, identity_of(options.sources), fingerprints(pair)])
    embedding = embedding_of(pair, shape)
    trained = train(examples, shape, embedding, options.training, options.out / WORK, identity, device, tell)
    bars.update(bar, completed=steps * options.training.epochs)
    return trained


def _bare_import(options: TrainRouterOptions, pair: ModelPair, console: Console) -> dict[str, Any]:
    """An official checkpoint as a router of ours, with no threshold but its own."""
    assert options.import_official is not None
    network, card = import_official(options.import_official, pair.slm, _names(pair), _record(options, pair))
    card = save_router(options.out, network, card)
    console.print(
        f"imported {options.import_official} as {options.out}, threshold {card.default_threshold}; no labels, so nothing was "
        "tested and no other threshold was looked for"
    )
    return {"out": str(options.out), **_about(network, card, pair)}


def _names(pair: ModelPair) -> PairNames:
    return PairNames(pair.slm.reference, pair.llm.reference, fingerprints(pair))


def _record(options: TrainRouterOptions, pair: ModelPair) -> dict[str, Any]:
    """Provenance: arguments as flat names, and how the labels were made."""
    nested = asdict(options)
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= value if isinstance(value, dict) else {name: value}
    named = _told_apart(options.read)
    flat = {name: told(value) for name, value in flat.items()}
    flat |= {
        name: [named[folder] for folder in getattr(options, name)]
        for name in ("labels", "traces", "test_labels")
    }
    sources: dict[str, Any] = {}
    splits = splits_of(options.read)
    for folder in options.read:
        record = read_provenance(folder)
        arguments = record.get("arguments", {})
        sources[named[folder]] = {
            "created": record.get("created"),
            "splits": splits[str(folder)],
            "arguments": arguments | ({"out": told(Path(arguments["out"]))} if "out" in arguments else {}),
        }
    made: dict[str, Any] = plain(json.loads(json.dumps(provenance(fingerprints(pair), **flat), default=str)))
    return made | {"sources": plain(json.loads(json.dumps(sources, default=str)))}


def _told_apart(folders: Sequence[Path]) -> dict[Path, str]:
    """How a record tells these folders. Those in different places may be called alike, and are numbered then."""
    names: dict[Path, str] = {}
    for folder in folders:
        name = told(folder)
        numbered = (name, *(f"{name} ({number})" for number in range(2, len(folders) + 1)))
        names.setdefault(folder, next(each for each in numbered if each not in names.values()))
    return names


def _examples_folder(options: TrainRouterOptions) -> Path:
    return options.out / WORK / "examples"


# ---- figures --------------------------------------------------------------------------------------------------


def as_json(built: Built, card: RouterCard, options: TrainRouterOptions) -> dict[str, Any]:
    """Everything that was found, JSON-serialisable."""
    examples = built.examples
    result: dict[str, Any] = plain(
        {
            "out": str(options.out),
            "findings": findings(built),
            "kind": card.kind,
            "target": built.target,
            "num_labels": len(examples),
            "num_left_out": examples.num_left_out,
            "counts": built.counts,
            "modes": list(examples.modes),
            "learnt_modes": list(built.learnt_modes),
            "splits": {folder: each["splits"] for folder, each in card.provenance["sources"].items()},
            "tasks": list(examples.tasks),
            "parameters": built.network.num_parameters,
            "shape": card.shape.as_json(),
            "weights": card.weights,
            "best_epoch": built.best,
            "history": [asdict(epoch) for epoch in built.history],
            "test": [quality.as_json() for quality in built.qualities],
            "thresholds": [asdict(stored) for stored in card.thresholds],
            "default_threshold": card.default_threshold,
            "own_threshold": built.own_threshold,
            "from_labels": [asdict(each) for each in built.from_labels],
            "provenance": card.provenance,
        }
    )
    return result


def _about(network: RouterNetwork, card: RouterCard, pair: ModelPair) -> dict[str, Any]:
    made: dict[str, Any] = plain(
        {
            "kind": card.kind,
            "parameters": network.num_parameters,
            "share_of_slm": network.num_parameters / pair.slm.card.parameters,
            "weights": card.weights,
            "default_threshold": card.default_threshold,
            "provenance": card.provenance,
        }
    )
    return made


def print_built(console: Console, built: Built, options: TrainRouterOptions) -> None:
    """What was found in words, then two tables. Fits into 80 columns."""
    for line in findings(built):
        console.print(f"· {line}")
    console.print(_qualities(built))
    console.print(_thresholds(built))
    for line in unkept(built.card.thresholds):
        console.print(line)
    default = built.card.default_threshold
    name = "query" if built.card.kind == "query" else "router"
    known = (
        "which the checkpoint brought; ask for a share found here with share="
        if built.own_threshold
        else f"LLM share {options.thresholds.default_share:g} in generation"
    )
    console.print(
        f"policy {name}:{options.out} routes at its default threshold {default:g} ({known})", soft_wrap=True
    )


def _qualities(built: Built) -> Table:
    headings = [
        "test part",
        "labels",
        "to find",
        "ROC",
        "entropy's",
        "PR",
        "entropy's",
        "recall at 0.2",
        "ECE",
    ]
    table = _table(f"On {tested_problems(built)}", headings)
    at = SHARES.index(0.2)
    for each in built.qualities:
        table.add_row(
            each.name,
            f"{each.num_tokens:,}",
            percent(each.share.value, 1),
            f"{each.router.roc.value:.3f}",
            f"{each.entropy.roc.value:.3f}",
            f"{each.router.pr.value:.3f}",
            f"{each.entropy.pr.value:.3f}",
            percent(each.router_recall[at].value, 1),
            f"{each.calibration.error:.3f}",
        )
    return table


def _thresholds(built: Built) -> Table:
    table = _table(
        "Thresholds over all tasks, by routed generation",
        ["asked for", "T", "threshold", "LLM share", "problems"],
    )
    for each in built.card.thresholds:
        if each.task == ALL_TASKS:
            asked = f"share {each.share:g}" if each.share is not None else f"recall {each.recall:g}"
            share = "–" if each.realised_share is None else f"{each.realised_share:.3f}"
            table.add_row(
                asked, f"{each.temperature:g}", f"{each.threshold:.4g}", share, str(each.num_problems)
            )
    return table


def _table(title: str, headings: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    return table
