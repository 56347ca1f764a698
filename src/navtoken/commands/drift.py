"""`navtoken drift`: what becomes of a base model's forking tokens in its descendants, as table, page and JSON.

The responses stay frozen; every checkpoint scores the same tokens. Run again, it goes on where it stopped, and a checkpoint that is
added to the list is the only one that is scored.
"""

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from navtoken.analysis.drift import Drift, Shift, drift
from navtoken.analysis.frozen import Chosen, FrozenSet, ScoredSet, score_set
from navtoken.analysis.plain import plain
from navtoken.analysis.ranking import Resampling
from navtoken.checkpoints import LoadedModel, ModelPair, fingerprint, resolve_folder
from navtoken.commands.drift_page import findings, write_page
from navtoken.commands.frozen_responses import ResponseOptions, made_responses, shown_traces
from navtoken.commands.interval_words import spread_of
from navtoken.commands.spelling import FrozenSpeller
from navtoken.commands.surroundings import progress_bars, progress_console
from navtoken.engine.options import OptionError
from navtoken.generation import ModelOptions
from navtoken.provenance import provenance
from navtoken.report.markup import write_whole
from navtoken.trace import Trace

__all__ = ["DriftOptions", "run"]


@dataclass(frozen=True)
class DriftOptions:
    """Follow the forking tokens of frozen responses from a base model through its descendants."""

    responses: ResponseOptions = field(default_factory=ResponseOptions)
    """The frozen responses; those made here are the last checkpoint's, as in the paper."""
    model: tyro.conf.UseAppendAction[tuple[str, ...]] = ("embedded:base", "embedded:llm")
    """A checkpoint: embedded:base, embedded:llm, a local folder, or org/name@revision; repeated, from the base to the
    last descendant. The embedded base and LLM where left out."""
    device: str = "cpu"
    """Torch device of the checkpoints, of which one is loaded at a time."""
    dtype: str = "float32"
    """Floating-point type of the checkpoints; auto takes each one's own."""
    threads: int | None = None
    """Torch threads on the CPU; None is one for checkpoints as small as the embedded ones, else torch's choice."""
    fraction: float = 0.2
    """Share of positions at the top: the highest entropies."""
    resamples: int = 500
    """Bootstrap resamples of the problems, from which intervals come; 0 makes none."""
    min_count: int = 10
    """Token tables list vocabulary items that stand at least so often in the responses."""
    num_items: int = 25
    """Vocabulary items per token table."""
    shown: int = 6
    """Responses on the page."""
    out: Path = Path("out/drift")
    """Folder of the page (index.html), the figures (drift.json), scores, and responses that were made."""

    def check(self) -> None:
        """Raise `OptionError` for what cannot work, before anything is loaded."""
        self.responses.check()
        if len(self.model) < 2:
            raise OptionError(
                f"drift has {len(self.model)} checkpoint; give --model at least twice, the base first and the last one last"
            )
        if not 0.0 < self.fraction < 1.0:
            raise OptionError(f"fraction is {self.fraction}; give a share between 0 and 1, such as 0.2")
        least = {"resamples": 0, "min_count": 1, "num_items": 1, "shown": 0, "threads": 1}
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise OptionError(f"{name} is {value}; give at least {bound}")

    def models(self, reference: str) -> ModelOptions:
        """How a checkpoint is loaded."""
        return ModelOptions(reference, reference, self.device, dtype=self.dtype, threads=self.threads)

    def load(self, reference: str) -> LoadedModel:
        """Load a checkpoint; sets the process's torch threads. Raises `CheckpointError`s."""
        return self.models(reference).load_alone(reference).llm


@dataclass(frozen=True, eq=False)
class Followed:
    """A drift, and what it was told from."""

    drift: Drift
    frozen: FrozenSet
    scored: list[ScoredSet]
    """Of each checkpoint."""
    speller: FrozenSpeller
    record: dict[str, Any]
    """Provenance."""


def run(options: DriftOptions, console: Console) -> dict[str, Any]:
    """Follow the drift, print what it shows, write page and JSON; returns the JSON."""
    found = follow(options, progress_console())
    result = as_json(found)
    page = write_page(
        options.out / "index.html", found.drift, found.speller, _shown(found, options.shown), found.record
    )
    write_whole(options.out / "drift.json", json.dumps(result, indent=1, default=str) + "\n")
    print_drift(console, found)
    console.print(f"page: {page.resolve()}", soft_wrap=True)
    return result | {"page": str(page)}


def follow(options: DriftOptions, progress: Console) -> Followed:
    """Score what is missing, and follow the top positions. Raises before any scoring for what cannot be followed."""
    options.check()
    folders = [resolve_folder(reference) for reference in options.model]
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in folders]
    frozen = FrozenSet.read(_chosen(options, progress))
    for reference, tokenizer in zip(options.model, tokenizers, strict=True):
        frozen.check_vocabulary(tokenizer, reference)
    prints = [fingerprint(folder) for folder in folders]
    scored = score_all(options, frozen, prints, progress)
    with progress.status("comparing"):
        found = drift(
            options.model,
            [partial(each.column, "entropy") for each in scored],
            frozen.response_id_N,
            frozen.cluster_N,
            options.fraction,
            Resampling(options.resamples, options.responses.seed),
            options.num_items,
            options.min_count,
        )
    named = {f"checkpoint {index}": each for index, each in enumerate(prints)}
    record = provenance(named | {"responses": frozen.digest}, **asdict(options))
    return Followed(found, frozen, scored, FrozenSpeller(tokenizers[-1], frozen), record)


def _shown(found: Followed, num: int) -> list[Trace]:
    """Some responses, with the entropies of the base and of the last checkpoint as columns."""
    base_N, last_N = (found.scored[at].column("entropy") for at in (0, -1))
    columns = {"entropy_llm": last_N, "entropy_base": base_N, "entropy_change": last_N - base_N}
    return list(shown_traces(found.frozen, num, columns, keep=lambda name: name.startswith("top_")))


def score_all(
    options: DriftOptions, frozen: FrozenSet, prints: list[str], progress: Console
) -> list[ScoredSet]:
    """Scores of the frozen responses by every checkpoint, each loaded only if it is needed, and let go after it."""
    found = []
    with progress_bars(progress) as bars:
        for reference, digest in zip(options.model, prints, strict=True):
            bar = bars.add_task(f"scoring with {reference}", total=frozen.num_responses)
            found.append(
                score_set(
                    frozen,
                    partial(options.load, reference),
                    f"{digest} {options.dtype}",
                    options.out / "scores",
                    partial(bars.advance, bar),
                )
            )
    return found


def as_json(found: Followed) -> dict[str, Any]:
    """Everything that was computed; tokens are spelled and have contexts."""
    frozen, speller = found.frozen, found.speller
    data = asdict(found.drift)
    for name in ("leaving", "entering"):
        data[name] = [_shift(each, speller) for each in getattr(found.drift, name)]
    sizes = {
        "num_responses": frozen.num_responses,
        "num_problems": frozen.num_problems,
        "tasks": list(frozen.tasks),
    }
    result: dict[str, Any] = plain(
        {"findings": findings(found.drift, speller)} | sizes | data | {"provenance": found.record}
    )
    return result


def _shift(each: Shift, speller: FrozenSpeller) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(each).items() if name != "examples"}
    contexts = [speller.place(position) for position in each.examples]
    return {"token": speller.token(each.token_id)} | fields | {"net": each.net, "contexts": contexts}


def _chosen(options: DriftOptions, progress: Console) -> Chosen:
    wanted = options.responses
    if wanted.traces is not None:
        return wanted.chosen()
    last = options.model[-1]
    final = options.load(last)
    models = options.models(last)
    generation = wanted.generation(temperature=1.0)
    return made_responses(models, generation, options.out / "traces", ModelPair(final, final), progress)


# ---- the terminal ---------------------------------------------------------------------------------------------


def print_drift(console: Console, found: Followed) -> None:
    """What it shows in words, then a row per checkpoint. Fits into 80 columns."""
    for line in findings(found.drift, found.speller):
        console.print(f"· {line}")
    table = Table(box=SIMPLE_HEAD, padding=0)
    table.add_column("checkpoint", overflow="fold")
    for heading in ("top as base's\n(%)", "top as last's\n(%)", "mean entropy\n(nats)", "top from\n(nats)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found.drift.checkpoints:
        table.add_row(
            each.name,
            spread_of(each.overlap_base, 1).replace(" %", ""),
            spread_of(each.overlap_final, 1).replace(" %", ""),
            f"{each.mean_entropy:.4f}",
            f"{each.threshold:.4f}",
        )
    console.print(table)
