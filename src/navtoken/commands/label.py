"""`navtoken label`: what each of the SLM's drafts would have done to the LLM's responses.

The responses are given, or made first, here or by an endpoint; the folder of the labels is the only state: run again, the same
command goes on where it stopped, whatever stopped it. A labelled response is a trace, so `analyze`, `compare` and `show` read it.
"""

import json
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import tyro
from rich.console import Console

from navtoken.analysis.plain import plain
from navtoken.checkpoints import ModelPair
from navtoken.commands import label_page
from navtoken.commands.label_inputs import Models, Work, find_problems, find_work, load_models, write_traces
from navtoken.commands.surroundings import progress_bars, progress_console
from navtoken.engine import EngineOptions, SamplingParams
from navtoken.engine.options import GREEDY, OptionError
from navtoken.generation import GenerationOptions, ModelOptions
from navtoken.generation.options import FAMILIES
from navtoken.hidden_states import BATCH_TOKENS
from navtoken.labeling.continuations import Continuer, EngineContinuer
from navtoken.labeling.labels import Label
from navtoken.labeling.left_out import keep_left_out
from navtoken.labeling.openai_client import KEY_ENV
from navtoken.labeling.pipeline import Labeler, Response
from navtoken.labeling.prefill import DraftReader
from navtoken.labeling.remote import RemoteContinuer
from navtoken.labeling.verdicts import Verifier, verifier_named
from navtoken.policies.rules import LLMPolicy
from navtoken.provenance import provenance
from navtoken.reference import parse_reference
from navtoken.report.markup import write_whole
from navtoken.tasks import Problem, Split, Task
from navtoken.tasks.prompts import PromptOptions
from navtoken.trace import TraceWriter, open_shard, read_traces, shard_paths

FIXED = (
    "draft",
    "draft_sampling",
    "verdict",
    "num_logits",
    "labels_only",
    "sentence_tokens",
    "dtype",
    "llm_dtype",
    "llm_sampling",
)
"""Arguments that all labels of a folder share, besides the fingerprints."""


@dataclass(frozen=True)
class LabelOptions:
    """Label the SLM's drafts on the LLM's responses: identical, neutral or divergent. Run again, it goes on where it stopped."""

    traces: tyro.conf.Positional[Path | None] = None
    """Responses of the LLM: a folder of traces, or one shard. Left out, it answers problems first, which is kept and found again."""
    verdict: str = "same_step"
    """Who says whether two continuations take the same path: same_step (the task reads both sentences), outcome (both run to
    the end: same answer?), or judge:URL,model=NAME (an OpenAI-compatible chat endpoint is asked)."""
    draft: Literal["greedy", "sampled"] = "greedy"
    """Which of the SLM's tokens are labelled: the likeliest ones, or ones drawn as the engine would draw them."""
    temperature: float | None = None
    """Temperature of sampled drafts; None is 1."""
    top_p: float = 1.0
    """Of sampled drafts: keep the smallest set of most probable tokens whose probability reaches top_p."""
    top_k: int = 0
    """Of sampled drafts: keep the k most probable tokens; 0 keeps all."""
    task: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only responses to this task; may be repeated. Left out, all of TRACES, or else the three embedded families."""
    num: int | None = None
    """Problems per task; None takes all of TRACES, or where responses are made all of a finite set and 100 of a task that
    generates them."""
    split: Split = "train"
    """Split of the problems where responses are made; routers are trained on train."""
    samples: int | None = None
    """Responses per problem where they are made; None is 1."""
    max_tokens: int | None = None
    """Longest response in tokens where they are made; None takes the LLM's own limit."""
    llm_temperature: float | None = None
    """Temperature at which the LLM's responses are made; None is 0 (greedy), as in the paper. Continuations are greedy always."""
    seed: int = 0
    """Fixes problems and noise where responses are made."""
    num_logits: int = 100
    """Logits of the SLM recorded per token, the largest ones, as a router's input; the vocabulary where that is smaller."""
    cut_off: bool = False
    """Label responses that the length limit cut off, too. Most of them run in circles, and a few of those would hold most
    of the divergent tokens."""
    labels_only: bool = False
    """Leave out what only a router reads: logits and hidden states."""
    sentence_tokens: int = 64
    """Longest continuation in tokens where sentences are compared."""
    batch_tokens: int = BATCH_TOKENS
    """Tokens of a forward pass of the SLM, padding counted; of two such passes the responses are labelled together."""
    shard_rows: int = 256
    """Responses per file; files are written at the latest every minute."""
    llm_url: str | None = None
    """The LLM runs elsewhere: address of a completions endpoint that takes and returns token ids (vLLM), with its version, such
    as http://localhost:8000/v1."""
    llm_key_env: str | None = None
    """Variable of the environment that holds its API key; None is NAVTOKEN_API_KEY, where that is set. A judge has its own:
    judge:URL,model=NAME,key_env=VARIABLE."""
    llm_model: str | None = None
    """Name of the LLM there."""
    llm_concurrency: int = 16
    """Requests to it at once."""
    llm_timeout: float = 3600.0
    """Seconds within which an answer of it must be complete; a long chain of thought takes its time."""
    out: Path = Path("out/labels")
    """Folder of the labelled traces, of the page (index.html), the numbers (labels.json) and the manifest."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair; with llm_url, of it only the SLM."""
    prompts: PromptOptions = field(default_factory=PromptOptions)
    """How questions become prompts where responses are made."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    """How the engine batches."""

    def __post_init__(self) -> None:
        for name in ("num", "samples", "max_tokens", "sentence_tokens", "batch_tokens", "shard_rows"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise OptionError(f"{name} is {value}; give at least 1")
        if self.num_logits < 1 and not self.labels_only:
            raise OptionError(f"num_logits is {self.num_logits}; give at least 1, or labels_only")
        self._check_drafts()
        if (self.llm_url is None) != (self.llm_model is None):
            raise OptionError(
                f"llm_url is {self.llm_url} and llm_model {self.llm_model}; give both, or neither"
            )
        if self.llm_key_env is not None and self.llm_url is None:
            raise OptionError(f"llm_key_env is {self.llm_key_env} and there is no llm_url; leave it out")
        for name in ("samples", "max_tokens", "llm_temperature") if self.traces is not None else ():
            if (value := getattr(self, name)) is not None:
                raise OptionError(
                    f"{name} {value} is for making responses, and TRACES are given; leave one out"
                )

    def _check_drafts(self) -> None:
        if self.draft == "greedy" and (self.temperature, self.top_p, self.top_k) != (None, 1.0, 0):
            raise OptionError("temperature, top_p and top_k are of sampled drafts; give draft sampled too")
        if self.draft == "sampled" and self.temperature is not None and not self.temperature > 0:
            raise OptionError(
                f"temperature is {self.temperature}; give one above 0 for sampled drafts, or draft greedy"
            )

    @property
    def draft_sampling(self) -> SamplingParams:
        """How drafts are drawn."""
        if self.draft == "greedy":
            return GREEDY
        temperature = 1.0 if self.temperature is None else self.temperature
        return SamplingParams(temperature=temperature, top_p=self.top_p, top_k=self.top_k)

    def generation(self) -> GenerationOptions:
        """How responses are made."""
        return GenerationOptions(
            task=self.task or FAMILIES,
            policy=(LLMPolicy().reference,),
            num=self.num,
            split=self.split,
            seed=self.seed,
            samples=self.samples or 1,
            max_tokens=self.max_tokens,
            sampling=SamplingParams(temperature=self.llm_temperature or 0.0),
            prompts=self.prompts,
            engine=self.engine,
        )


def run(options: LabelOptions, console: Console, pair: ModelPair | None = None) -> dict[str, Any]:
    """Label what `options.out` lacks, write page, numbers and manifest; returns the numbers."""
    progress, started = progress_console(), perf_counter()
    _check_keys(options)
    verifier = verifier_named(options.verdict)
    with ExitStack() as stack:
        stack.callback(verifier.close)
        models = load_models(options, pair, stack)
        work = find_work(options, models, verifier, progress)
        problems = find_problems(work, options, verifier)
        record = _provenance(options, models, work.source, verifier)
        labeler, continuer = _labeler(options, models, verifier)
        keep_left_out(options.out, read_traces(work.chosen.path, (), work.cut_off.__contains__))
        try:
            _label(options, work, problems, labeler, record, progress)
        finally:
            _write_manifest(options.out, record)
        result = {
            "out": str(options.out),
            "num_responses": len(work.keys),
            "num_cut_off": len(work.cut_off),
            "now": labeler.tally.as_json(),
            "verdicts": verifier.summary(),
            "continuations": _cost_of(continuer, models),
        }
    study = label_page.gather(read_traces(options.out, label_page.COLUMNS, work.keys.__contains__))
    tokenizer = models.pair.tokenizer
    page = label_page.write_page(options.out / "index.html", study, tokenizer, record)
    result |= {
        "page": str(page),
        "summary": label_page.summary(study, tokenizer),
        "seconds": perf_counter() - started,
        "provenance": plain(json.loads(json.dumps(record, default=str))),
    }
    write_whole(options.out / "labels.json", json.dumps(result, indent=1) + "\n")
    _print(console, result)
    label_page.print_labels(console, study)
    console.print(
        f"labels in {options.out}, page: {page.resolve()}", soft_wrap=True, markup=False, highlight=False
    )
    return result


def _check_keys(options: LabelOptions) -> None:
    """Raise `OptionError` where one key would be sent to two hosts: it belongs to one of them."""
    judge = parse_reference(options.verdict)
    if options.llm_url is None or judge.target is None:
        return
    names = [options.llm_key_env or KEY_ENV, judge.options.get("key_env") or KEY_ENV]
    hosts = [urlsplit(url).hostname for url in (options.llm_url, judge.target)]
    if hosts[0] != hosts[1] and names[0] == names[1] == KEY_ENV and os.environ.get(KEY_ENV):
        raise OptionError(
            f"the key in {KEY_ENV} would go to {hosts[0]} and to {hosts[1]}; name the variable of one of them: --llm-key-env "
            "VARIABLE, or key_env=VARIABLE in the verdict"
        )


# ---- labelling ------------------------------------------------------------------------------------------------


def _labeler(options: LabelOptions, models: Models, verifier: Verifier) -> tuple[Labeler, Continuer]:
    pair = models.pair
    reader = DraftReader(
        pair.slm,
        pair.vocab_size,
        options.draft_sampling,
        max(1, options.num_logits),
        not options.labels_only,
        options.batch_tokens,
    )
    eos = pair.llm.eos_token_ids
    continuer: Continuer = (
        EngineContinuer(pair, options.engine)
        if models.remote is None
        else RemoteContinuer(models.remote, eos | pair.slm.eos_token_ids)
    )
    labeler = Labeler(
        reader, continuer, verifier, pair.tokenizer, eos, options.sentence_tokens, pair.llm.card.context
    )
    return labeler, continuer


def _label(
    options: LabelOptions,
    work: Work,
    problems: dict[str, tuple[Task, dict[str, Problem]]],
    labeler: Labeler,
    record: dict[str, Any],
    progress: Console,
) -> None:
    """Label what the folder lacks."""
    with (
        TraceWriter(options.out, record, options.shard_rows, FIXED) as writer,
        progress_bars(progress) as bars,
    ):
        done = writer.done()
        missing = work.keys - done
        bar = bars.add_task("labelling", total=len(work.keys), completed=len(work.keys) - len(missing))
        responses = (
            Response(trace, problems[trace.task][0], problems[trace.task][1][trace.problem_id])
            for trace in read_traces(work.chosen.path, keep=missing.__contains__)
        )
        write_traces(labeler.label(responses) if missing else (), writer, lambda: bars.advance(bar))


def _provenance(
    options: LabelOptions, models: Models, source: dict[str, Any], verifier: Verifier
) -> dict[str, Any]:
    wrote = source.get("arguments") or {}
    arguments = asdict(options) | asdict(options.models)
    for group in ("models", "engine", "prompts"):
        arguments.pop(group)
    arguments |= {
        "verdict": verifier.identity,
        "verdict_by": verifier.name,
        "draft_sampling": asdict(options.draft_sampling),
        "num_logits": 0 if options.labels_only else min(options.num_logits, models.pair.vocab_size),
        "llm_sampling": wrote.get("sampling"),
        "split": wrote.get("split", options.split),
        "seed": wrote.get("seed", options.seed),
    }
    return provenance(models.prints, **arguments) | {"source": source}


# ---- what came of it ------------------------------------------------------------------------------------------


def _write_manifest(folder: Path, record: dict[str, Any]) -> None:
    """What each file of the folder holds, out of the files themselves: nothing here can be out of date by a crash."""
    try:
        paths = shard_paths(folder)
    except FileNotFoundError:
        return
    shards = [_counted(path) for path in paths]
    manifest = {
        "draft": record["arguments"]["draft"],
        "verdict": record["arguments"]["verdict"],
        "fingerprints": record["fingerprints"],
        "num_responses": sum(shard["num_responses"] for shard in shards),
        "labels": dict(sum((Counter(shard["labels"]) for shard in shards), Counter())),
        "shards": shards,
    }
    write_whole(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def _counted(path: Path) -> dict[str, Any]:
    with open_shard(path) as file:
        column = file.read(columns=["label"]).column("label")
    values, counts = np.unique(column.combine_chunks().flatten().to_numpy(), return_counts=True)
    labels = {Label(int(value)).name.lower(): int(count) for value, count in zip(values, counts, strict=True)}
    return {"file": path.name, "num_responses": len(column), "labels": labels}


def _cost_of(continuer: Continuer, models: Models) -> dict[str, Any]:
    """What the LLM computed for continuations in this run."""
    if models.remote is not None:
        return models.remote.summary()
    assert isinstance(continuer, EngineContinuer)
    llm = continuer.ledger.llm
    return {"llm_tokens": llm.tokens, "llm_passes": llm.passes}


def _print(console: Console, result: dict[str, Any]) -> None:
    now = result["now"]
    done = result["num_responses"] - now["responses"]
    console.print(
        f"{now['responses']} responses labelled" + (f", {done} were there already" if done else ""),
        highlight=False,
    )
    if num := result["num_cut_off"]:
        console.print(
            f"{num} cut off by the length limit and left out (cut_off labels them)", highlight=False
        )
    for error, num in islice(now["errors"].items(), 5):
        console.print(f"invalid, {num} tokens: {error}", markup=False, highlight=False)
