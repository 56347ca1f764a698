"""What labelling begins with: the models, the LLM's responses, given or made here or by an endpoint, and their problems."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from navtoken.analysis.columns import KEY_FIELDS, EmptyTracesError, stream_columns
from navtoken.analysis.frozen import Chosen
from navtoken.checkpoints import ModelPair
from navtoken.commands.frozen_responses import made_responses
from navtoken.commands.surroundings import progress_bars
from navtoken.engine.options import OptionError
from navtoken.generation import GenerationOptions, fingerprints
from navtoken.generation.run import ENDLESS_NUM
from navtoken.generation.run import FIXED as RESPONSES_FIXED
from navtoken.labeling.labels import REMOTE
from navtoken.labeling.openai_client import EndpointOptions
from navtoken.labeling.pipeline import LabelingError
from navtoken.labeling.remote import RemoteLLM, RemoteRequest, RemoteResponder, ResponderOptions
from navtoken.labeling.verdicts import Verifier
from navtoken.policies.rules import LLMPolicy
from navtoken.provenance import provenance
from navtoken.tasks import Problem, Split, Task, load_task
from navtoken.trace import Key, Trace, TraceWriter, read_provenance

if TYPE_CHECKING:
    from navtoken.commands.label import LabelOptions

RESPONSES = "responses"
"""Folder, below that of the labels, of responses that are made here."""
PATIENCE = 20_000
"""Problems of an endless task without a wanted one before they count as of another split or seed."""
FLUSH_SECONDS = 60.0
"""A crash loses at most so much work; an interruption loses none."""


class Models(NamedTuple):
    """Who reads and who writes."""

    pair: ModelPair
    """With a remote LLM, the SLM in both places."""
    remote: RemoteLLM | None
    prints: dict[str, str]
    """Fingerprints of the pair and its tokenizer; of a remote LLM its name and address."""


class Work(NamedTuple):
    """What is to be labelled."""

    chosen: Chosen
    keys: frozenset[Key]
    cut_off: frozenset[Key]
    """Responses left out because the length limit cut them off."""
    source: dict[str, Any]
    """Provenance of the responses."""


def load_models(options: "LabelOptions", pair: ModelPair | None, stack: ExitStack) -> Models:
    if options.llm_url is None or options.llm_model is None:
        pair = pair or options.models.load()
        return Models(pair, None, fingerprints(pair))
    alone = pair or options.models.load_alone(options.models.slm)
    alone = ModelPair(alone.slm, alone.slm)
    endpoint = EndpointOptions(
        options.llm_url,
        options.llm_model,
        key_env=options.llm_key_env,
        concurrency=options.llm_concurrency,
        timeout=options.llm_timeout,
    )
    remote = stack.enter_context(RemoteLLM(endpoint, alone.tokenizer))
    remote.check()
    return Models(alone, remote, fingerprints(alone) | {"llm": remote.reference})


def find_work(options: "LabelOptions", models: Models, verifier: Verifier, progress: Console) -> Work:
    """The responses to be labelled, made first where none are given."""
    if options.traces is not None:
        if options.traces.resolve() == options.out.resolve():
            raise LabelingError(
                f"the responses lie in {options.out}, where their labels would go; name another folder with --out"
            )
        chosen = Chosen(options.traces, LLMPolicy().reference, options.task, options.num)
    else:
        # Before responses that nobody could judge are made.
        for task in options.generation().task:
            verifier.check(load_task(task))
        chosen = _made(options, models, progress)
    source = read_provenance(chosen.path)
    _check_source(chosen.path, source, models)
    try:
        finished = dict(_finished(chosen))
    except EmptyTracesError as error:
        raise LabelingError(
            f"{error}; labels are for what the LLM writes alone: make some with `navtoken generate --policy llm`"
        ) from error
    keys = frozenset(key for key, reason in finished.items() if options.cut_off or reason != "length")
    if not keys:
        raise LabelingError(
            f"all {len(finished)} responses at {chosen.path} were cut off by the length limit; give them more max_tokens, or "
            "label them with cut_off"
        )
    return Work(chosen, keys, frozenset(finished.keys() - keys), source)


def _finished(chosen: Chosen) -> Iterator[tuple[Key, str]]:
    """Why each of the responses ended."""
    for batch in stream_columns(chosen.path, (*KEY_FIELDS, "finish_reason"), where=chosen.where()):
        yield from zip(batch.keys, batch["finish_reason"], strict=True)


def _made(options: "LabelOptions", models: Models, progress: Console) -> Chosen:
    folder = options.out / RESPONSES
    if models.remote is None:
        return made_responses(options.models, options.generation(), folder, models.pair, progress)
    return _made_remotely(options, models, models.remote, folder, progress)


def _made_remotely(
    options: "LabelOptions", models: Models, remote: RemoteLLM, folder: Path, progress: Console
) -> Chosen:
    """Have the endpoint answer what the folder lacks. Raises `LabelingError` where some requests got no answer."""
    wanted = options.generation()
    limit = wanted.limit(models.pair)
    if limit is None:
        raise OptionError(
            "max_tokens is not given; a remote LLM needs to know how long a response may become"
        )
    requests = [
        RemoteRequest(task, problem, sample)
        for task in map(load_task, wanted.task)
        for problem in task.problems(wanted.split, _num(wanted, task), wanted.seed)
        for sample in range(wanted.samples)
    ]
    arguments = asdict(options.models) | asdict(wanted) | {"max_tokens": limit}
    arguments |= {"llm_url": options.llm_url, "llm_model": options.llm_model}
    responder = RemoteResponder(remote, ResponderOptions(limit, wanted.sampling, wanted.seed, wanted.prompts))
    with (
        TraceWriter(folder, provenance(models.prints, **arguments), fixed=RESPONSES_FIXED) as writer,
        progress_bars(progress) as bars,
    ):
        done = writer.done()
        missing = [request for request in requests if request.key not in done]
        bar = bars.add_task("responses", total=len(requests), completed=len(requests) - len(missing))
        write_traces(responder.respond(missing), writer, lambda: bars.advance(bar))
    if responder.failed:
        key, why = next(iter(responder.failed.items()))
        raise LabelingError(
            f"{len(responder.failed)} of {len(requests)} requests got no response, first {key}: {why}; what came is kept, run "
            "the same again for the rest"
        )
    return Chosen(folder, keys=frozenset(request.key for request in requests))


def _num(wanted: GenerationOptions, task: Task) -> int | None:
    return ENDLESS_NUM if wanted.num is None and task.endless else wanted.num


def _check_source(path: Path, source: dict[str, Any], models: Models) -> None:
    """Raise `LabelingError` where another LLM, or another tokenizer, wrote the responses."""
    wrote = source.get("fingerprints") or {}
    for name, what in (("tokenizer", "with another tokenizer"), ("llm", "by another LLM")):
        # Of an LLM behind an endpoint nobody knows the weights.
        known = models.remote is None and not str(wrote.get(name)).startswith(REMOTE)
        if name in wrote and wrote[name] != models.prints[name] and (known or name != "llm"):
            raise LabelingError(
                f"the responses at {path} were written {what} ({wrote[name][:12]}, this pair's is {models.prints[name][:12]}); "
                "label them with the LLM that wrote them"
            )


def find_problems(
    work: Work, options: "LabelOptions", verifier: Verifier
) -> dict[str, tuple[Task, dict[str, Problem]]]:
    """Per task the problems that the responses answer. Raises what the verifier has to say about a task."""
    wanted: dict[str, set[str]] = {}
    for _, task, problem_id, _ in work.keys:
        wanted.setdefault(task, set()).add(problem_id)
    arguments = work.source.get("arguments") or {}
    split, seed = arguments.get("split", options.split), arguments.get("seed", options.seed)
    found = {}
    for name, ids in wanted.items():
        loaded = load_task(name)
        verifier.check(loaded)
        found[name] = loaded, _found(loaded, ids, split, seed)
    return found


def _found(task: Task, ids: set[str], split: Split, seed: int) -> dict[str, Problem]:
    problems: dict[str, Problem] = {}
    misses = 0
    for problem in task.problems(split, None, seed):
        misses += 1
        if problem.problem_id in ids:
            problems[problem.problem_id] = problem
            misses = 0
        if len(problems) == len(ids) or misses > PATIENCE:
            break
    if missing := sorted(ids - problems.keys()):
        raise LabelingError(
            f"task '{task.name}' has no problem {missing[0]} in '{split}' with seed {seed}; say with split and seed where "
            "the responses' problems come from"
        )
    return problems


def write_traces(traces: Iterable[Trace], writer: TraceWriter, advance: Callable[[], object]) -> None:
    flushed = monotonic()
    for trace in traces:
        writer.write(trace)
        advance()
        if monotonic() - flushed > FLUSH_SECONDS:
            writer.flush()
            flushed = monotonic()
