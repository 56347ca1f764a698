"""Options of `navtoken train-rl`, and what they come to for TRL.

A *step* is one rollout batch, however many updates are made from it. TRL counts updates: its `max_steps` is steps x updates.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro
import yaml

from navtoken.checkpoints import LoadedModel
from navtoken.rlvr.groups import DynamicSamplingOptions
from navtoken.rlvr.selection import SelectionOptions
from navtoken.tasks.prompts import PromptOptions

SMALL = 100_000_000
"""Parameters below which the usual learning rate would change nothing."""
LEARNING_RATE, SMALL_LEARNING_RATE = 1e-6, 3e-4
"""The paper's, and what was tuned on the embedded base (docs/log.md)."""
THREAD_SMALL = 20_000_000
"""Parameters below which a second thread waits more than it works."""


class TrainRLError(ValueError):
    """Options of a run that cannot be, or do not go together."""


@dataclass(frozen=True)
class RolloutOptions:
    """How responses are drawn."""

    rollouts: Literal["engine", "transformers", "vllm"] = "engine"
    """Who draws: the project's engine (log-probabilities and entropies come with the tokens), transformers' generate, or vLLM
    as TRL runs it (see --trl vllm_mode=colocate)."""
    rollout_prompts: int = 8
    """Problems of a rollout batch, over all ranks."""
    num_generations: int = 8
    """Responses to each problem: the group that advantages are relative to."""
    temperature: float = 1.0
    """Softmax temperature."""
    max_tokens: int | None = None
    """Longest response in tokens; None takes the model's own limit (max_new_tokens in its generation config), else a quarter of its
    context: a few responses that run in circles to the end of it would take most of the time."""
    rollout_rows: int = 128
    """Responses that the engine decodes together, on each rank."""
    cache_gib: float | None = None
    """Memory of the engine's KV cache in GiB, on each rank; None takes what rollout_rows responses of full length need."""
    rollout_scores: Literal["auto", "rollout", "forward"] = "auto"
    """Where the old log-probabilities of the clipped ratio and the entropies of pool batch come from: the rollouts themselves
    or a forward of the trained model. auto trusts rollouts by the engine in float32 at temperature 1."""


@dataclass(frozen=True)
class UpdateOptions:
    """How the policy is changed."""

    updates: int = 1
    """Updates made from a rollout batch, each from its own part of it; the paper makes 16."""
    forward_rows: int = 16
    """Responses per forward and backward, on each rank."""
    learning_rate: float | None = None
    """Constant after the warm-up; None is 1e-6 (the paper's), and 3e-4 for models below 100 million parameters."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    epsilon_low: float = 0.2
    """The ratio of new to old probability is clipped below 1 - this."""
    epsilon_high: float = 0.28
    """And above 1 + this (clip-higher)."""
    overlong_cache: int | None = None
    """The last so many tokens before max_tokens over which the soft punishment of overlong responses grows to -1 (DAPO). None
    is a fifth of max_tokens, the paper's proportion; 0 is no punishment."""
    mask_truncated_completions: bool = False
    """Leave responses that the length limit cut off out of loss and pool."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 computes in bfloat16 with weights kept in float32."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""


@dataclass(frozen=True)
class WatchOptions:
    """What is looked at while training."""

    held_out: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Task of the held-out problems; may be repeated. Those that are trained on where left out."""
    held_out_num: int = 100
    """Held-out problems per task, of the test split."""
    held_out_samples: int = 1
    """Responses to each."""
    held_out_temperature: float = 0.0
    """At which they are drawn; 0 is greedy."""
    held_out_every: int = 0
    """Evaluate every so many steps; 0 only before and after."""
    held_out_seed: int = 0
    """Fixes held-out problems and their noise, those of drift too: not the run's seed, so that runs are compared on the same."""
    drift_num: int = 0
    """Held-out problems whose responses by the first policy are frozen, and scored again while training; 0 is none."""
    drift_every: int = 10
    """Score them every so many steps, and at the end."""
    drift_fraction: float = 0.2
    """Share of tokens that is the top."""
    report_to: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """tensorboard, trackio, wandb or another logger of transformers; may be repeated. The journal is always written."""
    save_every: int = 20
    """Steps between checkpoints; the last step always has one."""
    save_total: int = 2
    """Checkpoints that are kept, the latest ones."""


@dataclass(frozen=True)
class TrainRLOptions:
    """Train a model by reinforcement learning with verifiable rewards (DAPO), with gradient from selected tokens only. Run
    again, it goes on from its last checkpoint."""

    model: str = "embedded:base"
    """The model: embedded:base, a local folder, or org/name@revision of the hub."""
    task: tyro.conf.UseAppendAction[tuple[str, ...]] = ("countdown",)
    """Task whose training problems are used; may be repeated. countdown where left out."""
    num: int | None = None
    """Training problems per task; None takes all of a finite set and 4,096 of a task that generates them."""
    steps: int = 100
    """Rollout batches, those before an interruption counted; with continue_from, those after it."""
    reward: tyro.conf.UseAppendAction[tuple[str, ...]] = ("verifier",)
    """verifier (the task's own), python:MODULE.FUNCTION (a function as TRL takes them), or judge:URL,model=NAME,rubric=FILE; may be
    repeated, and they are added up. The first is the outcome by which groups have signal."""
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    """Which tokens carry gradient."""
    dynamic: DynamicSamplingOptions = field(default_factory=DynamicSamplingOptions)
    """What becomes of groups without signal."""
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    """How responses are drawn."""
    update: UpdateOptions = field(default_factory=UpdateOptions)
    """How the policy is changed."""
    watch: WatchOptions = field(default_factory=WatchOptions)
    """What is looked at."""
    prompts: PromptOptions = field(default_factory=PromptOptions)
    """How questions become prompts."""
    continue_from: Path | None = None
    """Folder of a finished run whose last checkpoint, optimiser and all, this one goes on from: give it a larger max_tokens, as the
    paper does, and a new folder."""
    device: Literal["cpu"] | None = None
    """cpu keeps a machine's accelerators out of it; None takes them."""
    threads: int | None = None
    """Torch threads on the CPU; None is one for a model as small as the embedded ones, else torch's choice."""
    trl: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Any further option of TRL's GRPOConfig as name=value (YAML), such as deepspeed=examples/zero3.json; may be repeated."""
    seed: int = 0
    """Fixes problems, their order and all noise."""
    out: Path = Path("out/rl")
    """Folder of the run: journal.jsonl, checkpoints, the trained model (model/), result.json."""

    ranks_share_out: ClassVar[bool] = True
    """The trainer has one rank write, and the others read what it wrote."""

    def check(self) -> None:
        """Raise `TrainRLError` for what cannot be, before anything is loaded."""
        least = {
            "steps": (self.steps, 1),
            "rollout_prompts": (self.rollout.rollout_prompts, 1),
            "num_generations": (self.rollout.num_generations, 2),
            "rollout_rows": (self.rollout.rollout_rows, 1),
            "updates": (self.update.updates, 1),
            "forward_rows": (self.update.forward_rows, 1),
            "save_every": (self.watch.save_every, 1),
            "save_total": (self.watch.save_total, 1),
            "held_out_num": (self.watch.held_out_num, 0),
            "held_out_every": (self.watch.held_out_every, 0),
            "drift_num": (self.watch.drift_num, 0),
            "drift_every": (self.watch.drift_every, 1),
        }
        for name, (value, smallest) in least.items():
            if value < smallest:
                raise TrainRLError(f"{name} is {value}; give at least {smallest}")
        if not self.rollout.temperature > 0:
            raise TrainRLError(
                f"temperature is {self.rollout.temperature}; greedy responses are all alike and teach nothing: give one above 0"
            )
        if self.rollout.max_tokens is not None and self.rollout.max_tokens < 1:
            raise TrainRLError(f"max_tokens is {self.rollout.max_tokens}; give at least 1, or leave it out")
        if self.rollout.rollout_scores == "rollout" and self.rollout.temperature != 1.0:
            raise TrainRLError(
                f"rollout_scores are of temperature 1, the temperature is {self.rollout.temperature}; leave rollout_scores out"
            )
        for name, given in (("task", self.task), ("reward", self.reward)):
            if not given:
                raise TrainRLError(f"no {name} is given; name at least one")
            if twice := [each for each in given if given.count(each) > 1]:
                raise TrainRLError(f"{name} '{twice[0]}' is given twice; leave one out")
        if self.rollout.rollouts != "engine" and self.rollout.rollout_scores == "rollout":
            raise TrainRLError(
                f"rollouts by {self.rollout.rollouts} do not tell entropies; leave rollout_scores out"
            )
        self.further_trl()

    def sizes(self, ranks: int) -> "Sizes":
        """How a rollout batch is dealt out. Raises `TrainRLError` where it does not divide."""
        total = self.rollout.rollout_prompts * self.rollout.num_generations
        if self.rollout.rollout_prompts % ranks:
            raise TrainRLError(
                f"rollout_prompts is {self.rollout.rollout_prompts}, which {ranks} ranks cannot share evenly; give a multiple"
            )
        own = total // ranks
        if own % self.update.updates:
            raise TrainRLError(
                f"a rank has {own} responses of a rollout batch, which {self.update.updates} updates cannot share evenly; change "
                "updates, rollout_prompts or num_generations"
            )
        per_update = own // self.update.updates
        # A forward larger than an update would be no more than the update.
        rows = min(self.update.forward_rows, per_update)
        if per_update % rows:
            raise TrainRLError(
                f"an update has {per_update} responses on a rank, which forwards of {rows} cannot share evenly; change forward_rows"
            )
        return Sizes(rows, per_update // rows, self.update.updates)

    def learning_rate(self, parameters: int) -> float:
        usual = LEARNING_RATE if parameters >= SMALL else SMALL_LEARNING_RATE
        return usual if self.update.learning_rate is None else self.update.learning_rate

    def max_tokens(self, loaded: LoadedModel, longest_prompt: int) -> int:
        """Longest response in tokens. Raises `TrainRLError` where the context has no room for it."""
        room = loaded.card.context - longest_prompt
        own = getattr(getattr(loaded.model, "generation_config", None), "max_new_tokens", None)
        wanted = self.rollout.max_tokens or own or min(room, loaded.card.context // 4)
        if wanted > room or room < 1:
            raise TrainRLError(
                f"responses of {wanted} tokens after prompts of up to {longest_prompt} do not fit into the context of "
                f"{loaded.card.context} of '{self.model}'; give max_tokens {max(room, 1)} or less"
            )
        return wanted

    def overlong_cache(self, max_tokens: int) -> int:
        given = self.update.overlong_cache
        return max_tokens // 5 if given is None else given

    def further_trl(self) -> dict[str, Any]:
        """What `trl` says, parsed. Raises `TrainRLError`."""
        found = {}
        for each in self.trl:
            name, equals, value = each.partition("=")
            if not (name and equals):
                raise TrainRLError(f"trl '{each}' is not name=value")
            try:
                found[name.strip()] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise TrainRLError(f"trl '{each}': {value} is not YAML") from error
        return found


@dataclass(frozen=True)
class Sizes:
    """A rank's part of a rollout batch."""

    forward_rows: int
    """Responses per forward."""
    accumulated: int
    """Forwards of an update."""
    updates: int
    """Updates of a rollout batch."""
