"""`navtoken analyze`: where a model is uncertain, on which tokens, and how that goes with being right.

The responses are given, or made first; where their entropies are not known, or asked for under another checkpoint, one forward pass
finds them. All of it lies in the command's folder, so that an interrupted run goes on.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from transformers import AutoTokenizer

from navtoken.analysis.analyze import Analysis, PatternOptions, analyze_traces, entropy_column
from navtoken.analysis.columns import Where, num_responses, optional_columns, stream_columns
from navtoken.analysis.scoring import ForeignVocabularyError
from navtoken.checkpoints import CheckpointError, fingerprint, resolve_folder
from navtoken.commands import score
from navtoken.commands.analyze_page import TokenTexts, findings, telling_traces, tokens_as_json, write_page
from navtoken.commands.frozen_responses import NUM_ALTERNATIVES, plain
from navtoken.commands.surroundings import progress_bars, progress_console
from navtoken.engine import EngineOptions, SamplingParams
from navtoken.engine.options import OptionError
from navtoken.generation import GenerateOptions, GenerationOptions, ModelOptions, generate
from navtoken.generation.loop import response_text
from navtoken.generation.options import FAMILIES
from navtoken.provenance import provenance
from navtoken.report.markup import write_whole
from navtoken.trace import Trace, read_provenance, read_traces

NUM_PROBES = 16
"""Responses whose text must be what the tokenizer makes of their ids."""
NUM_CANDIDATES = 400
"""Responses among which those shown on the page are chosen."""


@dataclass(frozen=True)
class AnalyzeOptions:
    """See where a model is uncertain: the entropy pattern, its forking tokens, entropy along responses and by outcome."""

    traces: tyro.conf.Positional[Path | None] = None
    """Traces: a folder, or one shard. Left out, the model answers problems first, which is kept and found again."""
    model: str | None = None
    """Whose entropies: embedded:llm, a local folder, or org/name@revision of the hub. It scores TRACES where they lack
    them; None takes what they have, or else who wrote them. Without TRACES it writes the responses; None is llm."""
    entropy: Literal["auto", "slm", "llm"] = "auto"
    """Which of the entropies that TRACES have; auto takes those known at more tokens."""
    policy: str | None = None
    """Of TRACES, only this policy's responses count; None takes all."""
    task: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only responses to this task; may be repeated. Left out, all of TRACES, or else the three embedded families."""
    num: int | None = None
    """Problems per task where responses are made; None is all of a finite set and 100 of a task that generates them."""
    samples: int | None = None
    """Responses per problem where they are made; None is 1."""
    max_tokens: int | None = None
    """Longest response in tokens where they are made; None takes the model's own limit."""
    temperature: float | None = None
    """Temperature at which responses are made; None is 1, as in the paper."""
    seed: int = 0
    """Fixes problems and noise where responses are made."""
    out: Path = Path("out/analyze")
    """Folder of the page (index.html), the numbers (analysis.json), and what was made or scored."""
    pattern: PatternOptions = field(default_factory=PatternOptions)
    """What counts as what."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair that llm and slm stand for, and where a model runs."""

    def __post_init__(self) -> None:
        making = {name: getattr(self, name) for name in ("num", "samples", "max_tokens", "temperature")}
        given = {name: value for name, value in making.items() if value is not None}
        if self.traces is None and self.policy is not None:
            raise OptionError(f"policy {self.policy} chooses among TRACES; name some, or leave it out")
        if self.traces is None and self.entropy != "auto":
            raise OptionError(
                f"entropy {self.entropy} chooses among what TRACES have; name some, or use model"
            )
        if self.traces is not None and given:
            name, value = next(iter(given.items()))
            raise OptionError(f"{name} {value} is for making responses, and TRACES are given; leave one out")
        if self.model is not None and self.entropy != "auto":
            raise OptionError(
                f"model {self.model} and entropy {self.entropy} both say whose entropies; leave one out"
            )


class Source(NamedTuple):
    """The traces that are analysed."""

    path: Path
    column: str
    """Whose entropies."""
    where: Where
    """Which responses count."""
    reference: str | None
    """A checkpoint whose tokenizer wrote them; None where that is not known."""
    tokenizer: Any
    """That tokenizer, where it is loaded already."""


def run(options: AnalyzeOptions, console: Console) -> dict[str, Any]:
    """Analyse, print what was found, write page and JSON; returns the JSON."""
    progress = progress_console()
    source = _made(options, progress) if options.traces is None else _given(options, options.traces, progress)
    with progress_bars(progress) as bars:
        bar = bars.add_task("reading twice", total=2 * num_responses(source.path))
        analysis = analyze_traces(
            source.path, options.pattern, source.column, source.where, lambda num: bars.advance(bar, num)
        )
    tokenizer, note = _tokenizer(source, analysis, named=options.model is not None)
    analysis = replace(analysis, notes=(*analysis.notes, *note))
    texts = TokenTexts(tokenizer)
    record = provenance(_fingerprints(source.path), **_arguments(options)) | {
        "traces": read_provenance(source.path)
    }
    page = write_page(options.out / "index.html", analysis, texts, _shown(source), record)
    result = {
        "findings": findings(analysis, texts),
        **analysis.as_json(),
        "tables": tokens_as_json(analysis, texts),
        "traces": str(source.path),
        "page": str(page),
        "provenance": plain(json.loads(json.dumps(record, default=str))),
    }
    write_whole(options.out / "analysis.json", json.dumps(result, indent=1) + "\n")
    for line in (*findings(analysis, texts), *analysis.notes):
        console.print(line, markup=False, highlight=False)
    console.print(f"page: {page.resolve()}", soft_wrap=True, markup=False)
    return result


def _made(options: AnalyzeOptions, progress: Console) -> Source:
    """Have the model answer what the folder lacks, alone, and say which of its traces were asked for."""
    reference = options.model or options.models.llm
    policy = "slm" if reference == options.models.slm != options.models.llm else "llm"
    wanted = GenerationOptions(
        task=options.task or FAMILIES,
        policy=(policy,),
        num=options.num,
        seed=options.seed,
        samples=options.samples or 1,
        max_tokens=options.max_tokens,
        sampling=SamplingParams(temperature=1.0 if options.temperature is None else options.temperature),
        engine=EngineOptions(num_alternatives=NUM_ALTERNATIVES),
    )
    models = replace(options.models, slm=reference, llm=reference)
    pair = options.models.load_alone(reference)
    path = options.out / "traces"
    cells = generate(GenerateOptions(models, wanted, path), pair, progress)
    requests = [request for cell in cells for request in cell.requests]
    where: Where = {
        "policy": {cell.policy.reference for cell in cells},
        "task": {cell.task.name for cell in cells},
        "problem_id": {request.problem.problem_id for request in requests},
        "sample": {request.sample for request in requests},
    }
    return Source(path, f"entropy_{policy}", where, reference, pair.tokenizer)


def _given(options: AnalyzeOptions, path: Path, progress: Console) -> Source:
    """The traces as they are where they have the entropies that are asked for, else scored copies of them."""
    where = {"policy": [options.policy] if options.policy else [], "task": options.task}
    # What cannot be read is refused before a checkpoint is loaded.
    next(stream_columns(path, ("policy",), where=where))
    there = [name for name in ("entropy_slm", "entropy_llm") if name in optional_columns(path)]
    if options.entropy != "auto":
        return Source(path, f"entropy_{options.entropy}", where, _writer(path, where), None)
    if options.model is None and there:
        return Source(path, entropy_column(path, where), where, _writer(path, where), None)
    reader = options.model or _writer(path, where)
    if reader is None:
        raise OptionError(
            f"the traces at {path} have no entropies and do not say who wrote them; name a checkpoint with model"
        )
    if there and (known := _known_column(path, where, reader, there)):
        return Source(path, known, where, reader, None)
    return _scored(options, path, where, reader, progress)


def _scored(options: AnalyzeOptions, path: Path, where: Where, reader: str, progress: Console) -> Source:
    """Copies of the traces, scored by `reader`."""
    loaded = options.models.load_alone(reader).llm
    # A folder of traces has its own: what others were scored here must not be analysed with them.
    copies = options.out / "scored" / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    scoring = score.ScoreOptions(
        path,
        reader,
        "llm",
        copies,
        options.models.device,
        dtype=options.models.llm_dtype or options.models.dtype,
    )
    score.run(scoring, progress, loaded)
    return Source(copies, "entropy_llm", where, reader, loaded.tokenizer)


def _known_column(path: Path, where: Where, reader: str, there: Sequence[str]) -> str | None:
    """The column, of those that are there, that the very weights of `reader` have filled already, at every token."""
    own = fingerprint(resolve_folder(reader))
    found = _fingerprints(path)
    for column in there:
        whose = column.removeprefix("entropy_")
        # Who scored a column later replaced what stood there.
        if found.get(f"scores_{whose}", found.get(whose)) == own and _is_whole(path, where, column):
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
    """The command's own options; those of the responses are in their own provenance."""
    return {name: value for name, value in vars(options).items() if name != "models"}


def _tokenizer(source: Source, analysis: Analysis, named: bool) -> tuple[Any, list[str]]:
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
    _check_vocabulary(source, tokenizer)
    return tokenizer, []


def _check_vocabulary(source: Source, tokenizer: Any) -> None:
    """Raise `ForeignVocabularyError` where the first responses' ids spell another text than stands beside them."""
    size = 1 + max(tokenizer.get_vocab().values())
    for trace in islice(_traces(source, ()), NUM_PROBES):
        largest = max(trace.response_ids, default=0)
        read = response_text(tokenizer, trace.response_ids) if largest < size else None
        # What follows a stop string is no part of the text, and others than this package may have trimmed it.
        if read is None or not "".join(read.split()).startswith("".join(trace.text.split())):
            said = (
                f"has token id {largest}"
                if read is None
                else f"reads {read[:40]!r}, and says {trace.text[:40]!r}"
            )
            raise ForeignVocabularyError(
                f"trace {trace.key} {said} under the tokenizer of '{source.reference}' (ids 0..{size - 1}); name a checkpoint "
                "that shares the tokenizer of its writer with model"
            )


def _traces(source: Source, columns: tuple[str, ...] | None) -> Iterator[Trace]:
    """The traces that count."""
    where: Mapping[str, Any] = {name: set(values) for name, values in source.where.items() if values}
    for trace in read_traces(source.path, columns):
        if all(getattr(trace, name) in values for name, values in where.items()):
            yield trace


def _shown(source: Source) -> list[Trace]:
    """A few of the first responses, for the page."""
    return telling_traces(islice(_traces(source, None), NUM_CANDIDATES), source.column)
