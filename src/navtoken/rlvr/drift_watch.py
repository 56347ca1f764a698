"""What training makes of the base model's forking tokens, step by step, on one set of responses that stays as it is.

The base model is the one that the run begins with; it writes them before the first step. Every so many steps the current weights say
how uncertain they would have been at each of their tokens: how many of the base's top positions are still at the top, where
entropies change, which tokens leave and enter. The 80/20 paper scores the final model's responses instead, which exist only
when training is over; `navtoken drift` does that, on checkpoints.

The entropies of every look are kept (`DriftStore`), so that a picture of the whole way can be drawn without the weights.

Shapes: N tokens of all responses.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.drift import Drift, Shift, drift
from navtoken.analysis.frozen import FrozenSet
from navtoken.analysis.ranking import Resampling
from navtoken.analysis.scoring import head_of, score_responses
from navtoken.checkpoints import LoadedModel
from navtoken.engine import Engine, SamplingParams
from navtoken.generation import GenerationOptions, Request, fingerprints, respond
from navtoken.provenance import provenance
from navtoken.rlvr.drift_store import DriftStore, Entropies
from navtoken.rlvr.journal import Journal
from navtoken.rlvr.problems import ProblemSet
from navtoken.rlvr.watch import SILENT, Advance, Display, Sight, Trained, Watch
from navtoken.tasks.prompts import PromptOptions
from navtoken.trace import TraceWriter

FIXED = ("seed", "samples", "sampling", "prompts", "max_tokens")
"""Arguments that all responses of a set share."""


class DriftWatchError(ValueError):
    """A frozen set that this run cannot go on with."""


@dataclass(frozen=True)
class DriftWatchOptions:
    """Which responses are frozen, and what is told of them."""

    fraction: float = 0.2
    """Share of positions at the top: the highest entropies."""
    samples: int = 1
    """Responses per problem, drawn at T = 1."""
    max_tokens: int | None = None
    """Longest response in tokens; None takes the model's own limit."""
    seed: int = 0
    """Fixes the noise of the responses, and the resamples of intervals."""
    resamples: int = 200
    """Bootstrap resamples of the problems, from which intervals come; 0 makes none."""
    min_count: int = 10
    """Tokens are told of that stand at least so often in the responses."""
    num_items: int = 10
    """Tokens told of that leave the top, and as many that enter."""

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction < 1.0:
            raise DriftWatchError(f"fraction is {self.fraction}; give a share between 0 and 1, such as 0.2")
        for name, bound in {"samples": 1, "resamples": 0, "min_count": 1, "num_items": 1}.items():
            if (value := getattr(self, name)) < bound:
                raise DriftWatchError(f"{name} is {value}; give at least {bound}")


# ---- responses and their entropies ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """The responses that a run freezes."""

    requests: list[Request]
    generation: GenerationOptions

    @classmethod
    def of(cls, problems: ProblemSet, options: DriftWatchOptions, prompts: PromptOptions) -> "_Wanted":
        requests = [
            Request(problems.tasks[name], problem, sample)
            for (name, _), problem in problems.problems.items()
            for sample in range(options.samples)
        ]
        generation = GenerationOptions(
            task=tuple(problems.tasks),
            policy=("llm",),
            seed=options.seed,
            samples=options.samples,
            max_tokens=options.max_tokens,
            sampling=SamplingParams(temperature=1.0),
            prompts=prompts,
        )
        return cls(requests, generation)

    def write(self, engine: Engine, folder: Path, advance: Advance) -> None:
        """Write what `folder` lacks. Raises `TraceError` for a folder of other responses."""
        record = provenance(fingerprints(engine.pair), **asdict(self.generation))
        with TraceWriter(folder, record, fixed=FIXED) as writer:
            done = writer.done()
            missing = [each for each in self.requests if each.key(engine.policy.reference) not in done]
            advance(len(self.requests) - len(missing))
            for trace in respond(engine, missing, self.generation):
                writer.write(trace)
                advance(1)


def entropies_of(loaded: LoadedModel, frozen: FrozenSet, advance: Advance = lambda _: None) -> Entropies:
    """(N,) what a model makes of every token of the set; `advance` hears of responses done."""
    head = head_of(loaded)
    parts: list[NDArray[Any]] = []
    for block in frozen.blocks():
        prompts = [response.prompt_ids for response in block]
        scores = score_responses(loaded, prompts, [each.response_ids.tolist() for each in block], head=head)
        parts += [each.entropy for each in scores]
        advance(len(block))
    return np.concatenate(parts).astype(np.float32)


# ---- the watcher ----------------------------------------------------------------------------------------------


class DriftWatch(Watch):
    """Scores the frozen responses at the beginning, every `every` steps and at the end; on the main rank alone."""

    kind = "drift"

    def __init__(
        self,
        problems: ProblemSet,
        folder: Path,
        trained: Trained,
        journal: Journal,
        every: int,
        options: DriftWatchOptions | None = None,
        prompts: PromptOptions | None = None,
        display: Display = SILENT,
    ) -> None:
        """`folder` is the run's, for responses and entropies. Raises `WatchError`, and `OptionError` for a limit that there
        is not."""
        super().__init__(trained, journal, every, display)
        self.store = DriftStore(folder)
        self.options = options or DriftWatchOptions()
        self._wanted = _Wanted.of(problems, self.options, prompts or PromptOptions())
        self._frozen: FrozenSet | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises `DriftWatchError` where a run goes on and its frozen responses are gone, or are others."""
        if state.is_world_process_zero:
            self.store.rewind(state.global_step)
            if self.journal.records("drift"):
                self._frozen = self._found_again()
        super().on_train_begin(args, state, control, **kwargs)

    def look(self, args: Any, state: Any) -> Sight | None:
        if not state.is_world_process_zero:
            return None
        frozen = self._frozen = self._frozen or self._written(state)
        with self.display(state).work("drift of forking tokens", frozen.num_responses) as advance:
            now_N = entropies_of(self.trained.pair.llm, frozen, advance)
        self.store.save(state.global_step, now_N)
        return self._told(frozen, now_N)

    def _told(self, frozen: FrozenSet, now_N: Entropies) -> Sight:
        base, options = self.store.steps()[0], self.options
        base_N = self.store.entropies(base)
        found = drift(
            ("the base", "this step"),
            (lambda: base_N, lambda: now_N),
            frozen.response_id_N,
            frozen.cluster_N,
            options.fraction,
            Resampling(options.resamples, options.seed),
            options.num_items,
            options.min_count,
        )
        record = {"base_step": base} | as_record(found, self.trained.pair.tokenizer)
        now = found.checkpoints[-1]
        metrics = {"drift/overlap": now.overlap_base.value, "drift/entropy": now.mean_entropy}
        return Sight(record, metrics)

    def _written(self, state: Any) -> FrozenSet:
        with self.display(state).work("responses to freeze", len(self._wanted.requests)) as advance:
            self._wanted.write(self.trained.engine(), self.store.responses, advance)
        return self._whole()

    def _found_again(self) -> FrozenSet:
        """The set that the base wrote, with its entropies. Raises `DriftWatchError`."""
        try:
            frozen = self._whole()
        except FileNotFoundError as error:
            raise self._lost("there are no frozen responses") from error
        base = self.journal.records("drift")[0]["step"]
        if base not in self.store.steps() or len(self.store.entropies(base)) != frozen.num_tokens:
            raise self._lost("the base's entropies of the frozen responses are missing")
        return frozen

    def _whole(self) -> FrozenSet:
        """The responses, if they are those asked for. Raises `DriftWatchError`, and `FileNotFoundError` where there are none."""
        frozen = self.store.frozen()
        found, wanted = len(frozen.keys), len(self._wanted.requests)
        if {key[1:] for key in frozen.keys} != {each.key("")[1:] for each in self._wanted.requests}:
            raise self._lost(f"the {found} frozen responses are not those to the {wanted} asked for")
        return frozen

    def _lost(self, what: str) -> DriftWatchError:
        return DriftWatchError(
            f"{what} in {self.store.folder}, and only the base model could write them; put them back, ask for the same as "
            "when the run began, or begin anew in another folder"
        )


def as_record(found: Drift, tokenizer: Any) -> dict[str, Any]:
    """What a look tells, for the journal; intervals have value, low and high."""
    base, now = found.checkpoints
    return {
        "fraction": found.fraction,
        "num_tokens": found.num_tokens,
        "overlap": asdict(now.overlap_base),
        "num_left": found.num_left,
        "entropy": now.mean_entropy,
        "entropy_base": base.mean_entropy,
        "threshold": now.threshold,
        "threshold_base": base.threshold,
        "bin_entropies": found.bin_entropies,
        "change_by_bin": [asdict(each) for each in now.change_by_bin],
        "size_by_bin": [asdict(each) for each in now.size_by_bin],
        "leaving": _spelled(found.leaving, tokenizer),
        "entering": _spelled(found.entering, tokenizer),
    }


def _spelled(shifts: Sequence[Shift], tokenizer: Any) -> list[dict[str, Any]]:
    def text(token_id: int) -> str:
        return str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))

    names = ("token_id", "total", "top_base", "top_final", "left", "entered", "net")
    return [{"token": text(each.token_id)} | {name: getattr(each, name) for name in names} for each in shifts]
