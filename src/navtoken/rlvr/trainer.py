"""DAPO with token selection, as a small subclass of TRL's GRPO trainer.

TRL has clip-higher, the token-level loss, the overlong reward, and takes care of Accelerate, DeepSpeed, FSDP and vLLM. What it
lacks is here: groups without signal are replaced (`groups.py`), the tokens that carry gradient are chosen in a pool that is
what the paper says it is (`selection.py`), responses may come from the project's engine (`rollouts.py`), and padding is cut per
forward.

Selection needs no loss of its own: TRL multiplies each token's loss by its advantage and takes advantages of shape (B, T), so a
weight w >= 0 on the advantage is that weight on the token's clipped loss, and the sum is divided by the number of tokens as in
stock TRL. Where the entropy of the current policy in one forward is asked for, TRL's own mask of high entropies is replaced.

What of TRL is overridden or read is listed in `trl_interface.py`, which a test holds against the installed version.

Shapes: B rows, T places of responses (padded right), L tokens of this rank.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import pad

from navtoken.policies import derive_seed
from navtoken.report.markup import write_whole
from navtoken.rlvr.batches import Batch, by_length, trimmed
from navtoken.rlvr.groups import DynamicSamplingOptions, Filled, Group, ProblemStream, Rollout, Row, fill
from navtoken.rlvr.pool import Gathered, gather_columns, scattered
from navtoken.rlvr.rewards import Outcome, is_informative
from navtoken.rlvr.rollouts import Rollouts, whole_weights
from navtoken.rlvr.selection import SelectionOptions, TokenColumns, select
from navtoken.rlvr.trl_arguments import TrainerError, check_arguments
from navtoken.rlvr.trl_interface import check_interface

STATE = "navtoken_state.json"
"""In a checkpoint: what a run draws its further problems and noise by."""
MEMORY = 0.3
"""Weight of the newest batch in the running share of informative groups."""
NO_MASK, SOME_MASK = 1.0, 0.5
"""For TRL's `top_entropy_quantile`: at 1 its loss asks for no mask, below it does, and gets the one of pool `micro`."""


@dataclass
class Drawn:
    """How far a run has come in drawing; the same on every rank."""

    groups: int = 0
    """Groups drawn so far: numbers their noise."""
    further: int = 0
    """Problems taken so far beyond those of the batches' own."""
    share: float | None = None
    """Informative groups among those drawn lately; None before the first."""


@dataclass
class _Drawing:
    """A batch while TRL keeps its books of it."""

    filled: Filled
    rollouts: list[Rollout]
    """One a row."""
    rows: list[Row]
    entropy_BT: Tensor | None = None

    @property
    def informative(self) -> list[bool]:
        return [group.informative for group in self.filled.groups for _ in group.rollouts]


class NavigationTrainer(GRPOTrainer):
    """GRPOTrainer whose batches are full of signal, and whose gradient comes from selected tokens."""

    _buffered_inputs: Any

    def __init__(
        self,
        *,
        model: Any,
        args: GRPOConfig,
        train_dataset: Dataset,
        processing_class: Any,
        outcome: Outcome,
        further_rewards: Sequence[Any] = (),
        selection: SelectionOptions | None = None,
        dynamic: DynamicSamplingOptions | None = None,
        rollouts: Rollouts | None = None,
        trust_rollout_scores: bool = True,
        **kwargs: Any,
    ) -> None:
        """`rollouts` None draws in TRL's own way (transformers or vLLM, as `args` say). With `trust_rollout_scores` the
        log-probabilities that they tell are the old ones of the clipped ratio; else a forward of the trained model makes them.
        Raises `TrainerError` and `InterfaceError`."""
        check_interface()
        self.selection = selection or SelectionOptions()
        self.dynamic = dynamic or DynamicSamplingOptions()
        self.rollouts = rollouts
        self.trust_rollout_scores = trust_rollout_scores
        self.outcome = outcome
        self.drawn = Drawn()
        self._batch: _Drawing | None = None
        self._current: Batch = {}
        self._update_weights: list[Tensor] = []
        self._stream = ProblemStream(len(train_dataset), args.seed)
        check_arguments(args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            reward_funcs=[outcome, *further_rewards],
            **kwargs,
        )
        asks_trl = self.selection.pool == "micro" and not self.selection.keeps_all
        self.top_entropy_quantile = SOME_MASK if asks_trl else NO_MASK
        if args.beta and self.ref_model is None:
            raise TrainerError(f"beta is {args.beta}, which asks an adapter's own model; give beta 0")

    # ---- drawing ----------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self._batch = self._draw_batch(inputs)
        try:
            output = super()._generate_and_score_completions(self._batch.rows)
            return self._weigh(output, self._batch)
        finally:
            self._batch = None

    def _draw_batch(self, inputs: list[Row]) -> _Drawing:
        """Draw groups until the batch is full of informative ones."""
        if self.rollouts is not None:
            self.sync(self.rollouts)
        first = [dict(row) for row in inputs[:: self.num_generations]]
        share = 1.0 if self.drawn.share is None else self.drawn.share
        filled = fill(first, self._draw_groups, self._further_rows, self._most, self.dynamic, share)
        rows, rollouts = [], []
        for group in filled.groups:
            for rollout, outcome in zip(group.rollouts, group.outcomes, strict=True):
                rows.append(group.row | {"outcome": outcome})
                rollouts.append(rollout)
        self._log_refill(filled)
        return _Drawing(filled, rollouts, rows)

    def sync(self, rollouts: Rollouts) -> None:
        """Give whoever draws the weights as they are now; every rank must call it."""
        rollouts.sync(
            self.model,
            lambda: whole_weights(self.model, self.model_wrapped, self._dist, self.accelerator.device),
        )

    def _log_refill(self, filled: Filled) -> None:
        counts = (
            filled.rounds,
            filled.drawn - len(filled.groups),
            filled.shortage,
            filled.drawn,
            filled.informative,
        )
        counts_RC = self.accelerator.gather(torch.tensor([counts], device=self.accelerator.device))
        names = ("refill/rounds", "refill/prompts", "refill/shortage", "refill/drawn", "refill/informative")
        total = dict(zip(names, counts_RC.sum(0).tolist(), strict=True))
        total["refill/rounds"] = int(counts_RC[:, 0].max())
        for name, value in total.items():
            self._metrics["train"][name].append(float(value))
        share = total["refill/informative"] / total["refill/drawn"]
        before = share if self.drawn.share is None else self.drawn.share
        self.drawn.share = before + MEMORY * (share - before)

    def _draw_groups(self, rows: Sequence[Row]) -> list[Group]:
        """Answer rows, and judge the answers by their outcome."""
        num, ranks = self.num_generations, self.accelerator.num_processes
        numbers = [self.drawn.groups + ranks * i + self.accelerator.process_index for i in range(len(rows))]
        self.drawn.groups += ranks * len(rows)
        prompts = [row["prompt_ids"] for row in rows]
        if self.rollouts is None:
            drawn = self._draw_as_trl(prompts)
        else:
            seeds = [derive_seed(self.args.seed, "rollout", str(number)) for number in numbers]
            drawn = self.rollouts.draw(prompts, seeds, num)
        flat = [(row, rollout) for row, group in zip(rows, drawn, strict=True) for rollout in group]
        ids = [rollout.token_ids for _, rollout in flat]
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        outcomes = self.outcome.score(
            [row for row, _ in flat], texts, ids, trainer_state=self.state, log_metric=self._log_metric
        )
        parts = [outcomes[i : i + num] for i in range(0, len(outcomes), num)]
        return [
            Group(row, group, part, is_informative(part))
            for row, group, part in zip(rows, drawn, parts, strict=True)
        ]

    def _draw_as_trl(self, prompts: list[list[int]]) -> list[list[Rollout]]:
        """By transformers or vLLM, as the arguments say."""
        num = self.num_generations
        repeated = [prompt for prompt in prompts for _ in range(num)]
        token_ids, logprobs = super()._generate_single_turn(repeated, None, {}, num)
        told = [None] * len(token_ids) if logprobs is None else logprobs
        flat = [Rollout(ids, each) for ids, each in zip(token_ids, told, strict=True)]
        return [flat[i : i + num] for i in range(0, len(flat), num)]

    def _further_rows(self, num: int) -> list[Row]:
        """The next problems of a stream that ranks deal out among themselves."""
        start = self.drawn.further + num * self.accelerator.process_index
        self.drawn.further += num * self.accelerator.num_processes
        return [self.train_dataset[self._stream[position]] for position in range(start, start + num)]

    def _most(self, number: int) -> int:
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """(rows of all ranks, rewards). A response without an outcome has no reward: TRL would add up what is left, and a punishment
        of 0 would make it the worst of its group."""
        found_RF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        found_RF[found_RF[:, 0].isnan()] = torch.nan
        return found_RF

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    # ---- what TRL asks for while it keeps its books of the batch -----------------------------------------------

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        if self._batch is None:
            return super()._tokenize_prompts(prompts)
        return [row["prompt_ids"] for row in self._batch.rows], None, {}

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if self._batch is None:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        rollouts = self._batch.rollouts
        told = all(rollout.logprobs is not None for rollout in rollouts)
        logprobs = [rollout.logprobs for rollout in rollouts] if told else None
        return [rollout.token_ids for rollout in rollouts], logprobs

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """In drawing, TRL wants the old log-probabilities; entropies come out of the same forward, or both out of the rollouts."""
        batch = self._batch
        if batch is None or model is self.ref_model:
            return super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)
        if self._tells_scores:
            return self._padded([rollout.logprobs for rollout in batch.rollouts]), None, None
        found = super()._get_per_token_logps_and_entropies(
            model, input_ids, *args, **{**kwargs, "compute_entropy": True}
        )
        batch.entropy_BT = found[1]
        return found

    @property
    def _tells_scores(self) -> bool:
        """Do the rollouts tell what a forward would?"""
        return self.trust_rollout_scores and self.rollouts is not None and self.rollouts.tells_scores

    def _padded(self, values: Sequence[Sequence[float] | None]) -> Tensor:
        columns = [torch.tensor(each) for each in values]
        padded = pad(
            columns, padding_value=0.0, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of
        )
        return padded.to(self.accelerator.device)

    # ---- selection --------------------------------------------------------------------------------------------

    def _weigh(self, output: Batch, batch: _Drawing) -> Batch:
        """Give each token of a batch its weight; groups without signal have none and are not counted."""
        mask_BT = output["completion_mask"]
        if not self.dynamic.count_uninformative:
            signal_B = torch.tensor(batch.informative, device=mask_BT.device)
            output["advantages"] = output["advantages"] * signal_B
            mask_BT = mask_BT * signal_B[:, None]
            # What a tool wrote is what TRL leaves out of loss and means, but not of attention.
            output["tool_mask"] = signal_B[:, None].expand_as(mask_BT).to(mask_BT.dtype).contiguous()
            output["num_items_in_batch"] = self.accelerator.gather(mask_BT.sum()).sum()
        if self.selection.pool == "batch":
            entropy_BT = self._entropy(output, batch)
            weight_L = self._pool_weights(self._columns(output, mask_BT, entropy_BT))
            output["advantages"] = output["advantages"][:, None] * scattered(weight_L, mask_BT)
        return output

    def _entropy(self, output: Batch, batch: _Drawing) -> Tensor:
        """Entropies (B, T) of the policy that wrote the batch, at the run's temperature."""
        if self._tells_scores:
            return self._padded([rollout.entropies for rollout in batch.rollouts])
        return self._forward_entropy(output) if batch.entropy_BT is None else batch.entropy_BT

    @torch.no_grad()
    def _forward_entropy(self, inputs: Batch) -> Tensor:
        """Entropies (B, T) of the current policy."""
        ids_BS = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attended_BS = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        _, entropy_BT, _ = super()._get_per_token_logps_and_entropies(
            self.model,
            ids_BS,
            attended_BS,
            inputs["completion_ids"].size(1),
            batch_size=self.args.per_device_train_batch_size,
            compute_entropy=True,
        )
        return entropy_BT

    def _columns(self, inputs: Batch, mask_BT: Tensor, entropy_BT: Tensor) -> Tensor:
        """What rules look at, (3, L): entropy, advantage and log-probability of the tokens inside the mask."""
        advantage_BT = inputs["advantages"][:, None].expand_as(entropy_BT)
        logprob_BT = inputs.get("old_per_token_logps", inputs.get("sampling_per_token_logps"))
        if logprob_BT is None:
            logprob_BT = torch.full_like(entropy_BT, torch.nan)
        columns = (entropy_BT, advantage_BT, logprob_BT)
        return torch.stack([each[mask_BT.bool()].float() for each in columns])

    def _pool_weights(self, own_CL: Tensor, alone: bool = False) -> Tensor:
        """Weights (L,) of this rank's tokens in the pool of all ranks', or `alone` in a pool of its own."""
        pool = Gathered(own_CL, slice(None)) if alone else gather_columns(own_CL, self.accelerator)
        noise_N = self._noise(pool.columns_CN.shape[1], alone).to(own_CL.device)
        entropy_N, advantage_N, logprob_N = pool.columns_CN
        found = select(TokenColumns(entropy_N, advantage_N, logprob_N, noise_N), self.selection)
        for name, value in found.metrics().items():
            self._metrics["train"][name].append(value)
        return pool.own_part(found.weight_N)

    def _noise(self, num: int, alone: bool) -> Tensor:
        rank = self.accelerator.process_index if alone else 0
        seed = derive_seed(self.args.seed, "selection", f"{self._step} {rank}")
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(num, generator=generator, dtype=torch.float64)

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """TRL's hook in a forward's loss: the weights of pool `micro`, in place of its quantile over all ranks' forwards."""
        if not self.model.training:
            # An evaluation's loss is that of all tokens, as with the other pools.
            return mask
        columns = {"advantages": self._current["advantages"]}
        weight_L = self._pool_weights(self._columns(columns, mask, entropies.detach()), alone=True)
        return scattered(weight_L, mask)

    # ---- forwards ---------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        before = self._buffered_inputs
        super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is not before:
            self._buffered_inputs = self._packed(self._buffered_inputs)
        place = self._step % self.args.steps_per_generation
        self._current = self._buffered_inputs[place]
        if self.selection.pool == "mini" and not self.selection.keeps_all:
            return self._weigh_update(self._current, place)
        return self._current

    def _packed(self, parts: list[Batch]) -> list[Batch]:
        """Less padding. Which rows stand in one forward is part of what pool `micro` means."""
        dealt = parts if self.selection.pool == "micro" else by_length(parts, self._num_accumulated)
        return [trimmed(part) for part in dealt]

    @property
    def _num_accumulated(self) -> int:
        """Forwards of one update that lie in one rollout batch."""
        return min(self.args.gradient_accumulation_steps, self.args.steps_per_generation)

    def _weigh_update(self, inputs: Batch, place: int) -> Batch:
        """Pool `mini`: the current policy's entropies of all of an update's tokens are computed before its first forward."""
        at = place % self._num_accumulated
        if at == 0:
            self._update_weights = self._weights_of(
                self._buffered_inputs[place : place + self._num_accumulated]
            )
        return inputs | {"advantages": inputs["advantages"][:, None] * self._update_weights[at]}

    def _weights_of(self, parts: Sequence[Batch]) -> list[Tensor]:
        masks = [part["completion_mask"] * part.get("tool_mask", 1) for part in parts]
        columns = [
            self._columns(part, mask_BT, self._forward_entropy(part))
            for part, mask_BT in zip(parts, masks, strict=True)
        ]
        weight_L = self._pool_weights(torch.cat(columns, dim=1))
        own = weight_L.split([each.shape[1] for each in columns])
        return [scattered(weight, mask) for weight, mask in zip(own, masks, strict=True)]

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(
                self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            )
            write_whole(folder / STATE, json.dumps(asdict(self.drawn)) + "\n")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.drawn = Drawn(**json.loads(Path(checkpoint, STATE).read_text()))
            # Counts forwards, of which an update may have others now than before.
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
            self._skip_passes(self._step * self.args.generation_batch_size)

    def _skip_passes(self, num_rows: int) -> None:
        """Bring a new sampler to where the old one was: it orders each pass over the problems by where its generator stands."""
        if self.shuffle_dataset and len(self._sampler):
            for _ in range(num_rows // len(self._sampler)):
                torch.randperm(self._sampler.num_samples, generator=self._sampler.generator)

    def restore(self, checkpoint: str) -> None:
        """Take a checkpoint's weights and step, without training."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
