"""`navtoken train-rl`: problems -> rollouts -> rewards -> selected tokens -> updates; watched, and resumable at every checkpoint.

Its folder is the only state: run again, the same command goes on from the last checkpoint, with the losses that it would have had.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import GRPOConfig

from navtoken.checkpoints import LoadedModel, ModelPair, load_model
from navtoken.engine import EngineOptions
from navtoken.engine.budget import GIB, block_size
from navtoken.generation import fingerprints
from navtoken.packed_linear import unpack_linears
from navtoken.placement import is_main_rank
from navtoken.provenance import provenance
from navtoken.report.markup import write_whole
from navtoken.rlvr.drift_watch import DriftWatch, DriftWatchOptions
from navtoken.rlvr.held_out import HeldOut, HeldOutCallback, HeldOutOptions
from navtoken.rlvr.journal import Journal, JournalCallback
from navtoken.rlvr.live_table import LiveTable
from navtoken.rlvr.options import THREAD_SMALL, TrainRLError, TrainRLOptions
from navtoken.rlvr.problems import ProblemSet, longest_prompt
from navtoken.rlvr.rewards import Outcome, overlong, reward_named
from navtoken.rlvr.rollouts import EngineRollouts, shadow_of
from navtoken.rlvr.run_folder import MODEL, RESULT, claim, step_of
from navtoken.rlvr.trainer import NavigationTrainer
from navtoken.rlvr.trl_arguments import arguments, is_sharded, sampling_of
from navtoken.rlvr.watch import Trained

ENDLESS_NUM = 4096
"""Training problems of a task without an end, where none are asked for."""


def train_rl(options: TrainRLOptions, console: Console) -> dict[str, Any]:
    """Train, and return what came of it: accuracy on held-out problems before and after, last metrics, provenance.

    Raises `TrainRLError` for options that do not go together and for another run's folder, and what models, tasks, rewards and
    the trainer raise.
    """
    options.check()
    with ExitStack() as stack:
        run = _prepare(options, console, stack)
        if step_of(run.checkpoint) < run.trainer.args.max_steps:
            with run.table:
                run.trainer.train(resume_from_checkpoint=run.checkpoint)
        elif (finished := options.out / RESULT).exists():
            # The trainer would make one more update before it sees that there is none left to make.
            return dict(json.loads(finished.read_text()))
        else:
            run.trainer.restore(str(run.checkpoint))
        run.trainer.save_model(str(options.out / MODEL))
        return _result(options, run)


@dataclass(eq=False)
class _Run:
    """Everything that a run needs."""

    trainer: NavigationTrainer
    journal: Journal
    table: LiveTable
    checkpoint: str | None
    """Where it goes on from."""
    record: dict[str, Any]
    """Provenance."""


def _prepare(options: TrainRLOptions, console: Console, stack: ExitStack) -> _Run:
    """Load, check and put together; whatever cannot work is found here, before the first response. What `stack` holds is closed
    when the run ends."""
    loaded = _load(options, arguments(options))
    problems = ProblemSet.load(options.task, "train", options.num, options.seed, ENDLESS_NUM)
    rows = list(problems.rows(loaded.tokenizer, options.prompts))
    if len(rows) < options.rollout.rollout_prompts:
        raise TrainRLError(
            f"there are {len(rows)} training problems, less than rollout_prompts {options.rollout.rollout_prompts}; give more "
            "with num, or smaller batches"
        )
    limit = options.max_tokens(loaded, longest_prompt(rows))
    args = arguments(options, options.learning_rate(loaded.card.parameters), limit)
    record = provenance(fingerprints(ModelPair(loaded, loaded)), **asdict(options)) | {
        "ranks": args.world_size
    }
    checkpoint, start = claim(options, record, args)
    args.max_steps += start
    outcome, further = _rewards(options, problems, limit, stack)
    engine = _engine(options, loaded, args, longest_prompt(rows))
    trainer = NavigationTrainer(
        model=loaded.model.requires_grad_(True).train(),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
        outcome=outcome,
        further_rewards=further,
        selection=options.selection,
        dynamic=options.dynamic,
        rollouts=engine if options.rollout.rollouts == "engine" else None,
        trust_rollout_scores=_trusts_scores(options, args),
    )
    journal, table = Journal(options.out), LiveTable(console)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    # Before the loggers, which then have what watchers see; the table comes last, and has it too.
    trainer.callback_handler.callbacks[:0] = _watchers(options, limit, trainer, engine, journal, table)
    trainer.add_callback(table)
    return _Run(trainer, journal, table, checkpoint, record)


def _load(options: TrainRLOptions, args: GRPOConfig) -> LoadedModel:
    # A model that is to be sharded may be too large for one device.
    loaded = load_model(options.model, "cpu" if is_sharded(args) else str(args.device))
    # Weights that are packed for inference take no gradient.
    unpack_linears(loaded.model)
    threads = options.threads or (1 if loaded.card.parameters < THREAD_SMALL else None)
    if threads is not None:
        torch.set_num_threads(threads)
    return loaded


def _engine(
    options: TrainRLOptions, loaded: LoadedModel, args: GRPOConfig, longest: int
) -> EngineRollouts | None:
    """Who draws, or only answers held-out problems; nobody where neither is wanted, which saves the memory of its weights."""
    if options.rollout.rollouts != "engine" and not (options.watch.held_out_num or options.watch.drift_num):
        return None
    shadow = shadow_of(
        loaded.model, loaded.tokenizer, options.model, torch.bfloat16 if args.bf16 else None, args.device
    )
    tokens = longest + args.max_completion_length + 2 * block_size(shadow)
    return EngineRollouts(
        shadow,
        sampling_of(args),
        args.max_completion_length,
        # What training needs later is still free now.
        EngineOptions(
            max_rows=options.rollout.rollout_rows,
            cache_gib=options.rollout.cache_gib
            or options.rollout.rollout_rows * tokens * shadow.card.kv_bytes / GIB,
        ),
    )


def _trusts_scores(options: TrainRLOptions, args: GRPOConfig) -> bool:
    if options.rollout.rollout_scores != "auto":
        return options.rollout.rollout_scores == "rollout"
    # In half precision other kernels round differently, and the clipped ratio would start away from 1.
    return not args.bf16 and not args.fp16


def _rewards(
    options: TrainRLOptions, problems: ProblemSet, max_tokens: int, stack: ExitStack
) -> tuple[Outcome, list[Any]]:
    """The outcome, and what is added to it; a judge is asked once, so that a wrong key shows before the work."""
    named = [reward_named(reference, problems, options.out) for reference in options.reward]
    for reward in named:
        if is_main_rank() and hasattr(reward, "check"):
            reward.check()
        if hasattr(reward, "close"):
            stack.callback(reward.close)
    outcome = Outcome(named[0])
    stack.callback(outcome.close)
    cache = options.overlong_cache(max_tokens)
    return outcome, named[1:] + ([overlong(max_tokens, cache)] if cache else [])


def _watchers(
    options: TrainRLOptions,
    max_tokens: int,
    trainer: NavigationTrainer,
    engine: EngineRollouts | None,
    journal: Journal,
    table: LiveTable,
) -> Iterator[TrainerCallback]:
    """In the order in which they see what the others say."""
    yield JournalCallback(journal, asdict(options))
    if engine is not None:
        yield from _looks(options, max_tokens, trainer, engine, journal, table)
    yield SaveAtTheEnd()


def _looks(
    options: TrainRLOptions,
    max_tokens: int,
    trainer: NavigationTrainer,
    engine: EngineRollouts,
    journal: Journal,
    table: LiveTable,
) -> Iterator[TrainerCallback]:
    """Who looks at the weights now and then."""
    watch, updates = options.watch, options.update.updates
    trained = Trained(engine.pair, lambda: trainer.sync(engine), shared_engine=engine.engine, log=trainer.log)
    tasks = watch.held_out or options.task
    if watch.held_out_num:
        problems = ProblemSet.load(tasks, "test", watch.held_out_num, watch.held_out_seed)
        asked = HeldOutOptions(
            watch.held_out_samples, watch.held_out_temperature, max_tokens, watch.held_out_seed
        )
        held_out = HeldOut(problems, asked, options.prompts)
        yield HeldOutCallback(held_out, trained, journal, watch.held_out_every * updates, table)
    if watch.drift_num:
        frozen = ProblemSet.load(tasks, "test", watch.drift_num, watch.held_out_seed)
        wanted = DriftWatchOptions(
            fraction=watch.drift_fraction, max_tokens=max_tokens, seed=watch.held_out_seed
        )
        yield DriftWatch(
            frozen, options.out, trained, journal, watch.drift_every * updates, wanted, options.prompts, table
        )


class SaveAtTheEnd(TrainerCallback):
    """A checkpoint of the last step, whatever the distance between checkpoints: a longer run goes on from there."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step >= state.max_steps:
            control.should_save = True
        return control


def _result(options: TrainRLOptions, run: _Run) -> dict[str, Any]:
    """What came of it, in the folder too."""
    held_out = run.journal.records("held_out")
    last = (run.journal.records("train") or [{}])[-1]
    result = {
        "before": _accuracy(held_out[:1]),
        "after": _accuracy(held_out[-1:]),
        "steps": run.trainer.state.global_step // options.update.updates,
        "last": last,
        "model": str(options.out / MODEL),
        "provenance": run.record,
    }
    if run.trainer.accelerator.is_main_process:
        write_whole(options.out / RESULT, json.dumps(result, indent=1, default=str) + "\n")
    return result


def _accuracy(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Without the problems one by one, which the journal has."""
    return {name: value for name, value in records[0].items() if name != "correct"} if records else None
