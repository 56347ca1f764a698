"""`navtoken analyze`: where a model is uncertain, on which tokens, and how that goes with being right.

The responses are given, or made first; where their entropies are not known, or asked for under another checkpoint, one forward pass
finds them. All of it lies in the command's folder, so that an interrupted run goes on.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from transformers import AutoTokenizer

from navtoken.analysis.analyze import PatternOptions, analyze_traces, entropy_column
from navtoken.analysis.columns import KEY_FIELDS, Where, num_responses, optional_columns, stream_columns
from navtoken.analysis.frozen import Chosen, scored_by
from navtoken.analysis.plain import plain
from navtoken.analysis.vocabulary import Vocabulary
from navtoken.checkpoints import CheckpointError, fingerprint, resolve_folder
from navtoken.commands import score
from navtoken.commands.analyze_page import findings, telling_keys, tokens_as_json, write_page
from navtoken.commands.frozen_responses import ResponseOptions, made_responses, traces_named
from navtoken.commands.spelling import Speller
from navtoken.commands.surroundings import progress_bars, progress_console
from navtoken.engine.options import OptionError
from navtoken.generation import ModelOptions
from navtoken.provenance import provenance
from navtoken.report.markup import write_whole
from navtoken.trace import Trace, read_provenance, shard_paths

NUM_PROBES = 16
"""Responses whose text must be what the tokenizer makes of their ids."""


@dataclass(frozen=True)
class AnalyzeOptions:
    """See where a model is uncertain: the entropy pattern, its forking tokens, entropy along responses and by outcome."""

    responses: ResponseOptions = field(default_factory=ResponseOptions)
    """The responses; those made here are the model's own."""
    model: str | None = None
    """Whose entropies: embedded:llm, a local folder, or org/name@revision of the hub. It scores TRACES where they lack
    them; None takes what they have, or else who wrote them. Without TRACES it writes the responses; None is llm."""
    entropy: Literal["auto", "slm", "llm"] = "auto"
    """Which of the entropies that TRACES have; auto takes those known at more tokens."""
    out: Path = Path("out/analyze")
    """Folder of the page (index.html), the numbers (analysis.json), and what was made or scored."""
    pattern: PatternOptions = field(default_factory=PatternOptions)
    """What counts as what."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair that llm and slm stand for, and where a model runs."""

    def check(self) -> None:
        """Raise `OptionError` for options that would be without effect."""
        self.responses.check()
        if self.responses.traces is None and self.entropy != "auto":
            raise OptionError(
                f"entropy {self.entropy} chooses among what TRACES have; name some, or use model"
            )
        if self.model is not None and self.entropy != "auto":
            raise OptionError(
                f"model {self.model} and entropy {self.entropy} both say whose entropies; leave one out"
            )


class Source(NamedTuple):
    """The traces that are analysed."""

    chosen: Chosen
    column: str
    """Whose entropies."""
    reference: str | None
    """A checkpoint whose tokenizer wrote them; None where that is not known."""
    tokenizer: Any
    """That tokenizer, where it is loaded already."""


def run(options: AnalyzeOptions, console: Console) -> dict[str, Any]:
    """Analyse, print what was found, write page and JSON; returns the JSON."""
    options.check()
    progress = progress_console()
    given = options.responses.traces is not None
    source = (_given if given else _made)(options, progress)
    path, where = source.chosen.path, source.chosen.where()
    with progress_bars(progress) as bars:
        bar = bars.add_task("reading twice", total=2 * num_responses(path))
        analysis = analyze_traces(
            path, options.pattern, source.column, where, lambda num: bars.advance(bar, num)
        )
    tokenizer, note = _tokenizer(source, named=options.model is not None)
    analysis = replace(analysis, notes=(*analysis.notes, *note))
    speller = Speller(tokenizer)
    record = provenance(_fingerprints(path), **_arguments(options)) | {"traces": read_provenance(path)}
    page = write_page(options.out / "index.html", analysis, speller, _shown(source, where), record)
    result = {
        "findings": findings(analysis, speller),
        **analysis.as_json(),
        "tables": tokens_as_json(analysis, speller),
        "traces": str(path),
        "page": str(page),
        "provenance": plain(json.loads(json.dumps(record, default=str))),
    }
    write_whole(options.out / "analysis.json", json.dumps(result, indent=1) + "\n")
    for line in (*findings(analysis, speller), *analysis.notes):
        console.print(line, markup=False, highlight=False)
    console.print(f"page: {page.resolve()}", soft_wrap=True, markup=False)
    return result


def _made(options: AnalyzeOptions, progress: Console) -> Source:
    """Have the model answer what the folder lacks, alone."""
    reference = options.model or options.models.llm
    policy = "slm" if reference == options.models.slm != options.models.llm else "llm"
    models = replace(options.models, slm=reference, llm=reference)
    pair = options.models.load_alone(reference)
    wanted = options.responses.generation(temperature=1.0, policy=policy)
    chosen = made_responses(models, wanted, options.out / "traces", pair, progress)
    return Source(chosen, f"entropy_{policy}", reference, pair.tokenizer)


def _given(options: AnalyzeOptions, progress: Console) -> Source:
    """The traces as they are where they have the entropies that are asked for, else scored copies of them."""
    chosen = options.responses.chosen()
    path, where = chosen.path, chosen.where()
    # What cannot be read is refused before a checkpoint is loaded.
    next(stream_columns(path, ("policy",), where=where))
    there = [name for name in ("entropy_slm", "entropy_llm") if name in optional_columns(path)]
    if options.entropy != "auto":
        return Source(chosen, f"entropy_{options.entropy}", _writer(path, where), None)
    if options.model is None and there:
        return Source(chosen, entropy_column(path, where), _writer(path, where), None)
    reader = options.model or _writer(path, where)
    if reader is None:
        raise OptionError(
            f"the traces at {path} have no entropies and do not say who wrote them; name a checkpoint with model"
        )
    if there and (known := _known_column(path, where, reader, _dtype(options), there)):
        return Source(chosen, known, reader, None)
    return _scored(options, chosen, reader, progress)


def _scored(options: AnalyzeOptions, chosen: Chosen, reader: str, progress: Console) -> Source:
    """Copies of the traces that count, scored by `reader`."""
    loaded = options.models.load_alone(reader).llm
    copies = options.out / "scored" / _copies_name(chosen.path)
    scoring = score.ScoreOptions(
        chosen.path,
        reader,
        "llm",
        copies,
        options.models.device,
        dtype=_dtype(options),
    )
    keys = chosen.found()
    score.run(scoring, progress, loaded, keys)
    return Source(Chosen(copies, keys=keys), "entropy_llm", reader, loaded.tokenizer)


def _copies_name(path: Path) -> str:
    """Of the folder of a source's scored copies, which must not be taken for another's.

    Whoever makes the traces anew writes another first shard; whoever adds to them leaves it.
    """
    first = json.dumps(read_provenance(shard_paths(path)[0]), sort_keys=True)
    return hashlib.sha256(f"{path.resolve()} {first}".encode()).hexdigest()[:16]


def _dtype(options: AnalyzeOptions) -> str:
    return options.models.llm_dtype or options.models.dtype


def _known_column(path: Path, where: Where, reader: str, dtype: str, there: Sequence[str]) -> str | None:
    """The column, of those that are there, that `reader` has filled already, in this dtype and at every token."""
    own = fingerprint(resolve_folder(reader)), dtype
    record = read_provenance(path)
    for column in there:
        if scored_by(record, column.removeprefix("entropy_")) == own and _is_whole(path, where, column):
            return column
    return None


def _is_whole(path: Path, where: Where, column: str) -> bool:
    batches = stream_columns(path, (column,), where=where)
    return not any(np.isnan(batch[column]).any() for batch in batches)


def _writer(path: Path, where: Where) -> str | None:
    """The model that wrote more of the first responses, by its reference in the provenance."""
    first = next(stream_columns(path, ("writer",), where=where))["writer"]
    name = "llm" if 2 * int((first == 1).sum()) >= len(first) else "slm"
    record = read_provenance(path)
    while "source" in record:
        record = record["source"]
    reference = record.get("arguments", {}).get(name)
    return reference if isinstance(reference, str) else None


def _fingerprints(path: Path) -> dict[str, str]:
    return read_provenance(path).get("fingerprints") or {}


def _arguments(options: AnalyzeOptions) -> dict[str, Any]:
    """The command's own options; those of the models are in the provenance of the responses."""
    return {name: value for name, value in vars(options).items() if name != "models"}


def _tokenizer(source: Source, named: bool) -> tuple[Any, list[str]]:
    """The tokenizer of the traces, and a note where there is none. One that was `named` must fit them."""
    tokenizer = source.tokenizer
    try:
        if tokenizer is None and source.reference is not None:
            tokenizer = AutoTokenizer.from_pretrained(resolve_folder(source.reference))
    except (CheckpointError, OSError, ValueError) as error:
        if named:
            raise
        return None, [f"Tokens are shown by number: {' '.join(str(error).split())}"]
    if tokenizer is None:
        return None, [
            "Tokens are shown by number: the traces do not say who wrote them; name a checkpoint with model."
        ]
    vocabulary = Vocabulary.of(tokenizer, str(source.reference))
    for trace in islice(source.chosen.traces(columns=()), NUM_PROBES):
        vocabulary.check(f"trace {trace.key}", trace.response_ids, trace.text)
    return tokenizer, []


def _shown(source: Source, where: Mapping[str, Any]) -> list[Trace]:
    """A few responses of every task, for the page."""
    path = source.chosen.path
    batches = stream_columns(path, (*KEY_FIELDS, "correct", source.column), where=where)
    return list(traces_named(path, telling_keys(batches, source.column)))
