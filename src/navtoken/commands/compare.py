"""`navtoken compare`: both definitions of a navigation token on the same tokens, as table, page and JSON.

The LLM's responses are scored once by each model; then forking tokens, the SLM's doubts and the places where the models part
are laid over each other. Run again, it goes on where it stopped.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from navtoken.analysis.definitions import Comparison, Positions, compare
from navtoken.analysis.frozen import Chosen, FrozenSet, RecordedScores, Scores, score_set
from navtoken.analysis.items import Item
from navtoken.analysis.plain import plain
from navtoken.analysis.ranking import Resampling
from navtoken.analysis.scoring import Whose
from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.commands.compare_page import SETS, SIGNALS, findings, write_page
from navtoken.commands.frozen_responses import ResponseOptions, made_responses, shown_traces
from navtoken.commands.interval_words import area
from navtoken.commands.spelling import FrozenSpeller
from navtoken.commands.surroundings import progress_bars, progress_console
from navtoken.engine.options import OptionError
from navtoken.generation import ModelOptions, fingerprints
from navtoken.provenance import provenance
from navtoken.report.markup import percent, write_whole
from navtoken.trace import Trace

__all__ = ["CompareOptions", "run"]


@dataclass(frozen=True)
class CompareOptions:
    """Lay forking tokens (by entropy) and those where SLM and LLM part over each other, on the same responses."""

    responses: ResponseOptions = field(default_factory=ResponseOptions)
    """The LLM's responses."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair."""
    fraction: float = 0.2
    """Share of positions that are forking: the highest entropies."""
    resamples: int = 500
    """Bootstrap resamples of the problems, from which intervals come; 0 makes none."""
    min_count: int = 10
    """Token tables list vocabulary items that stand at least so often in the responses."""
    num_items: int = 25
    """Vocabulary items per token table."""
    shown: int = 6
    """Responses on the page."""
    out: Path = Path("out/compare")
    """Folder of the page (index.html), the figures (compare.json), scores, and responses that were made."""

    def check(self) -> None:
        """Raise `OptionError` for what cannot work, before anything is loaded."""
        self.responses.check()
        if not 0.0 < self.fraction < 1.0:
            raise OptionError(f"fraction is {self.fraction}; give a share between 0 and 1, such as 0.2")
        for name, least in (("resamples", 0), ("min_count", 1), ("num_items", 1), ("shown", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; give at least {least}")


@dataclass(frozen=True, eq=False)
class Compared:
    """A comparison, and what it was made from."""

    comparison: Comparison
    frozen: FrozenSet
    positions: Positions
    speller: FrozenSpeller
    record: dict[str, Any]
    """Provenance."""


def run(options: CompareOptions, console: Console, pair: ModelPair | None = None) -> dict[str, Any]:
    """Compare, print what it shows, write page and JSON; returns the JSON."""
    found = compare_responses(options, progress_console(), pair)
    result = as_json(found)
    page = write_page(
        options.out / "index.html",
        found.comparison,
        found.speller,
        _shown(found, options.shown),
        found.record,
    )
    write_whole(options.out / "compare.json", json.dumps(result, indent=1, default=str) + "\n")
    print_comparison(console, found.comparison)
    console.print(f"page: {page.resolve()}", soft_wrap=True)
    return result | {"page": str(page)}


def compare_responses(options: CompareOptions, progress: Console, pair: ModelPair | None = None) -> Compared:
    """Score what is missing, and lay the sets over each other. Raises before any scoring for what cannot be compared."""
    options.check()
    loaded = pair or options.models.load()
    frozen = FrozenSet.read(_chosen(options, loaded, progress))
    frozen.check_vocabulary(loaded.tokenizer, loaded.llm.reference)
    positions = Positions.of(frozen, *score_pair(frozen, loaded, options.out / "scores", progress))
    resampling = Resampling(options.resamples, options.responses.seed)
    with progress.status("comparing"):
        comparison = compare(positions, options.fraction, resampling, options.num_items, options.min_count)
    record = provenance(fingerprints(loaded) | {"responses": frozen.digest}, **asdict(options))
    return Compared(comparison, frozen, positions, FrozenSpeller(loaded.tokenizer, frozen), record)


def _shown(found: Compared, num: int) -> list[Trace]:
    """Some responses, with all signals as columns of theirs."""
    positions = found.positions
    columns = {
        "entropy_llm": positions.entropy_llm_N,
        "entropy_slm": positions.entropy_slm_N,
        "margin_slm": positions.margin_slm_N,
        "differs": positions.differs_N.astype(np.int8),
    }
    return list(shown_traces(found.frozen, num, columns, keep=lambda name: name not in columns))


def score_pair(frozen: FrozenSet, pair: ModelPair, folder: Path, progress: Console) -> tuple[Scores, Scores]:
    """Scores of the frozen responses by the SLM and by the LLM: what the traces carry, or else one pass of the model."""
    with progress_bars(progress) as bars:

        def scored(whose: Whose, model: LoadedModel) -> Scores:
            dtype = str(model.model.dtype).removeprefix("torch.")
            if found := RecordedScores.of(frozen, whose, model.fingerprint, dtype):
                return found
            bar = bars.add_task(f"scoring with {model.reference}", total=frozen.num_responses)
            identity = f"{model.fingerprint} {model.model.dtype}"
            return score_set(frozen, lambda: model, identity, folder, lambda num: bars.advance(bar, num))

        return scored("slm", pair.slm), scored("llm", pair.llm)


def as_json(found: Compared) -> dict[str, Any]:
    """Everything that was computed, less the points of the curves; tokens are spelled and have contexts."""
    comparison, frozen = found.comparison, found.frozen
    data = asdict(comparison)
    for prediction in data["predictions"]:
        del prediction["curve"]
    for entry, corner in zip(data["corners"], comparison.corners, strict=True):
        entry["items"] = [_item(item, found.speller) for item in corner.items]
    sizes = {
        "num_responses": frozen.num_responses,
        "num_problems": frozen.num_problems,
        "tasks": list(frozen.tasks),
    }
    result: dict[str, Any] = plain(
        {"findings": findings(comparison)} | sizes | data | {"provenance": found.record}
    )
    return result


def _item(item: Item, speller: FrozenSpeller) -> dict[str, Any]:
    return {
        "token": speller.token(item.token_id),
        "token_id": item.token_id,
        "count": item.count,
        "total": item.total,
        "rate": item.rate,
        "contexts": [speller.place(position) for position in item.examples],
    }


def _chosen(options: CompareOptions, pair: ModelPair, progress: Console) -> Chosen:
    wanted = options.responses
    if wanted.traces is not None:
        return wanted.chosen()
    return made_responses(
        options.models, wanted.generation(temperature=0.0), options.out / "traces", pair, progress
    )


# ---- the terminal ---------------------------------------------------------------------------------------------


def print_comparison(console: Console, comparison: Comparison) -> None:
    """What it shows in words, then two tables. Fits into 80 columns."""
    for line in (*findings(comparison), *comparison.notes):
        console.print(f"· {line}")
    console.print(_overlaps(comparison))
    console.print(_areas(comparison))


def _overlaps(comparison: Comparison) -> Table:
    table = _table("Sets laid over each other", ["", "and", "Jaccard", "by chance", "precision", "recall"])
    for agreement in comparison.agreements:
        found = agreement.overlap
        table.add_row(
            SETS[agreement.found],
            SETS[agreement.wanted],
            percent(found.jaccard.value, 1),
            percent(found.expected, 1),
            percent(found.precision.value, 1),
            percent(found.recall.value, 1),
        )
    return table


def _areas(comparison: Comparison) -> Table:
    table = _table("How well a signal finds a set", ["signal", "set", "ROC area", "PR area", "by chance"])
    for each in comparison.predictions:
        chance = f"{each.share:.3f}"
        table.add_row(
            SIGNALS[each.signal], SETS[each.target], area(each.areas.roc), area(each.areas.pr), chance
        )
    return table


def _table(title: str, headings: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < 2 else "right", no_wrap=index > 1)
    return table
