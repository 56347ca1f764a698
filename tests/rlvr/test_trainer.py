"""The trainer against TRL's own where they must agree, and what it is stopped or refused for."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl.trainer.grpo_trainer as grpo
from datasets import Dataset
from torch import Tensor
from trl import GRPOTrainer

from navtoken.rlvr.groups import DynamicSamplingOptions
from navtoken.rlvr.selection import RULES, FractionError, SelectionOptions
from navtoken.rlvr.trl_arguments import TrainerError, check_arguments
from rlvr_runs import (
    FixedRollouts,
    Ours,
    Sizes,
    our_trainer,
    problem_rows,
    rows_fed,
    stock_trainer,
    trained_model,
)

AS_STOCK = DynamicSamplingOptions(dynamic_sampling=False, count_uninformative=True)
GENTLE = 0.005
"""A learning rate at which float32 differences of one update stay small in the next, and ratios still move."""


@pytest.fixture
def same_shuffle(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL shuffles a rollout batch by torch's global noise, of which other trainers take other amounts."""
    shuffle = grpo.shuffle_sequence_dict

    def shuffled(batch: Any) -> Any:
        torch.manual_seed(5)
        return shuffle(batch)

    monkeypatch.setattr(grpo, "shuffle_sequence_dict", shuffled)


def assert_same_updates(ours: Any, stock: Any, tolerance: float = 1e-6) -> None:
    assert ours.update_losses() == pytest.approx(stock.update_losses(), abs=tolerance)
    assert len(ours.gradients) == len(stock.gradients) == ours.args.max_steps
    for mine, theirs in zip(ours.gradients, stock.gradients, strict=True):
        largest = max(float(gradient.abs().max()) for gradient in theirs.values())
        assert largest > 0.1
        for name, gradient in mine.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=10 * tolerance * largest)


# ---- against stock TRL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "trl"),
    [
        (Sizes(rows=8, accumulated=1, updates=1, steps=2), {}),
        (Sizes(rows=2, accumulated=4, updates=1, steps=2), {}),
        (Sizes(rows=4, accumulated=2, updates=2, steps=4), {}),
        (Sizes(rows=4, accumulated=1, updates=3, steps=3), {}),
        (Sizes(rows=4, accumulated=2, updates=1, steps=4), {"num_iterations": 2}),
        (Sizes(rows=4, accumulated=4, steps=2), {"steps_per_generation": 2}),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_all_tokens_are_stock_dapo(
    sizes: Sizes, trl: dict[str, Any], told: bool, tmp_path: Path, same_shuffle: None
) -> None:
    """Rows dealt by length and padding cut included, and with old log-probabilities where they matter: several updates of a
    rollout batch, the same batch twice, several batches to an update."""
    kinds = ["mixed"] * sizes.problems * sizes.steps
    rollouts = FixedRollouts(told)
    ours = our_trainer(
        tmp_path, kinds, sizes, SelectionOptions("all"), rollouts=rollouts, learning_rate=GENTLE, **trl
    )
    stock = stock_trainer(tmp_path, kinds, sizes, learning_rate=GENTLE, **trl)
    ours.train()
    stock.train()
    assert_same_updates(ours, stock)
    rows = [[rows_fed(inputs) for inputs in trainer.fed] for trainer in (ours, stock)]
    if sizes.accumulated > 1:
        assert rows[0] != rows[1], "rows are dealt to forwards by length"
    width = [sum(inputs["completion_ids"].numel() for inputs in trainer.fed) for trainer in (ours, stock)]
    assert width[0] < width[1] or sizes.rows == 8, "padding is cut"
    matter = sizes.updates > 1 or "num_iterations" in trl
    for trainer in (ours, stock):
        assert all(("old_per_token_logps" in inputs) is matter for inputs in trainer.fed)


def test_uninformative_groups_can_be_counted_as_stock_counts_them(tmp_path: Path, same_shuffle: None) -> None:
    sizes = Sizes(rows=4, accumulated=4)
    kinds = ["right", "mixed", "wrong", "half"]
    stock = stock_trainer(tmp_path, kinds, sizes)
    stock.train()
    counted, left_out = (
        our_trainer(tmp_path, kinds, sizes, SelectionOptions("all"), dynamic)
        for dynamic in (AS_STOCK, DynamicSamplingOptions(dynamic_sampling=False))
    )
    counted.train()
    left_out.train()
    assert_same_updates(counted, stock)
    share = float(left_out.fed[0]["num_items_in_batch"] / stock.fed[0]["num_items_in_batch"])
    assert 0.3 < share < 0.7
    for name, gradient in left_out.gradients[0].items():
        torch.testing.assert_close(gradient * share, counted.gradients[0][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pool", ["batch", "mini", "micro"])
def test_padding_that_is_cut_and_rows_that_are_dealt_change_nothing(
    pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_shuffle: None
) -> None:
    sizes, selection = Sizes(rows=4, accumulated=3), SelectionOptions("top_entropy:0.3", pool, ties="exact")
    packed = our_trainer(tmp_path, ["mixed"] * 3, sizes, selection)
    packed.train()
    plain = our_trainer(tmp_path, ["mixed"] * 3, sizes, selection)
    monkeypatch.setattr(plain, "_packed", lambda parts: parts)
    plain.train()
    assert_same_updates(packed, plain)
    if pool == "micro":
        assert list(map(rows_fed, packed.fed)) == list(map(rows_fed, plain.fed)), "part of what micro means"


# ---- selection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["batch", "mini", "micro"])
def test_the_logged_fraction_is_that_of_tokens_that_reach_the_loss(pool: Any, tmp_path: Path) -> None:
    sizes = Sizes(rows=4, accumulated=2, updates=2, steps=2)
    trainer = our_trainer(tmp_path, ["mixed"] * 4, sizes, SelectionOptions("random:0.25", pool))
    trainer.train()
    logged = [logs["selection/fraction"] for logs in trainer.logged if "selection/fraction" in logs]
    # A log is the mean of what an update's forwards said.
    pools = [trainer.fed] if pool == "batch" else [trainer.fed[:2], trainer.fed[2:]]
    assert len(logged) == len(pools)
    for fraction, forwards in zip(logged, pools, strict=True):
        weights = [inputs["mask" if pool == "micro" else "advantages"] for inputs in forwards]
        counts = [inputs["completion_mask"] * inputs["tool_mask"] > 0 for inputs in forwards]
        assert not any((each[~count] != 0).any() for each, count in zip(weights, counts, strict=True))
        kept, total = ([int((each != 0).sum()) for each in every] for every in (weights, counts))
        each = mean(k / n for k, n in zip(kept, total, strict=True))
        assert fraction == pytest.approx(each if pool == "micro" else sum(kept) / sum(total), abs=1e-9)


@pytest.mark.parametrize("pool", ["batch", "mini", "micro"])
def test_a_rule_that_is_ignored_stops_the_run(
    pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        RULES, "top_entropy", lambda columns, fraction, ties: torch.ones_like(columns.entropy_N)
    )
    trainer = our_trainer(tmp_path, ["mixed"] * 2, selection=SelectionOptions("top_entropy:0.2", pool))
    with pytest.raises(FractionError, match="kept 1.0000 of"):
        trainer.train()
    assert not trainer.gradients


@pytest.mark.parametrize("pool", ["batch", "mini", "micro"])
def test_normalisers_differ_by_the_fraction_exactly(pool: Any, tmp_path: Path, same_shuffle: None) -> None:
    kept, every = (
        our_trainer(
            tmp_path,
            ["mixed"] * 2,
            Sizes(rows=8, accumulated=1),
            SelectionOptions("top_entropy:0.2", pool, normaliser, "exact"),
        )
        for normaliser in ("kept", "all")
    )
    kept.train()
    every.train()
    num = int(every.fed[0]["num_items_in_batch"])
    factor = num / -(-num // 5)
    assert kept.losses[0] == pytest.approx(every.losses[0] * factor, rel=1e-5)
    for name, gradient in every.gradients[0].items():
        torch.testing.assert_close(kept.gradients[0][name], gradient * factor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pool", ["batch", "mini", "micro"])
def test_padding_is_never_in_a_pool(
    pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_shuffle: None
) -> None:
    """TRL leaves zeros there; whatever stands there must not count."""
    sizes, selection = Sizes(rows=8, accumulated=2), SelectionOptions("top_entropy:0.2", pool, ties="exact")

    def run() -> Any:
        trainer = our_trainer(tmp_path, ["mixed"] * 4, sizes, selection, rollouts=FixedRollouts(False))
        trainer.train()
        return trainer

    clean, real = run(), GRPOTrainer._get_per_token_logps_and_entropies

    def huge(
        self: Any, model: Any, input_ids: Tensor, attention_mask: Tensor, keep: int, **kwargs: Any
    ) -> Any:
        logprobs, entropy_BT, loss = real(self, model, input_ids, attention_mask, keep, **kwargs)
        if entropy_BT is not None:
            entropy_BT = entropy_BT.detach().masked_fill(attention_mask[:, -keep:] == 0, 1e6)
        return logprobs, entropy_BT, loss

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", huge)
    padded = run()
    assert_same_updates(padded, clean, 1e-7)
    assert padded.logged[0]["selection/threshold"] == clean.logged[0]["selection/threshold"] < 10


def test_noise_is_fixed_by_the_seed_and_new_in_every_pool(tmp_path: Path) -> None:
    def noises(seed: int, pool: Any) -> list[list[float]]:
        trainer = our_trainer(
            tmp_path, ["mixed"] * 8, Sizes(steps=2), SelectionOptions("random:0.5", pool), seed=seed
        )
        found, real = [], trainer._noise

        def recorded(num: int, alone: bool) -> Tensor:
            found.append(real(num, alone)[:8])
            return real(num, alone)

        trainer._noise = recorded
        trainer.train()
        return [each.tolist() for each in found]

    for pool, pools in (("batch", 2), ("mini", 2), ("micro", 4)):
        found = noises(0, pool)
        assert len({tuple(each) for each in found}) == len(found) == pools
    again, other = noises(0, "batch"), noises(1, "batch")
    assert again == noises(0, "batch") and not {tuple(each) for each in again} & {
        tuple(each) for each in other
    }


def test_a_rule_is_a_function_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def band(columns: Any, fraction: float, ties: str) -> Tensor:
        """The middle of the pool by entropy."""
        rank_N = columns.entropy_N.argsort().argsort() / len(columns)
        return ((rank_N - 0.5).abs() <= fraction / 2).float()

    monkeypatch.setitem(RULES, "band", band)
    trainer = our_trainer(tmp_path, ["mixed"] * 2, selection=SelectionOptions("band:0.5"))
    trainer.train()
    (logs,) = [logs for logs in trainer.logged if "selection/fraction" in logs]
    assert logs["selection/fraction"] == pytest.approx(0.5, abs=0.05)
    assert 0.1 < logs["selection/threshold"] < logs["selection/entropy_kept"]
    assert any((gradient != 0).any() for gradient in trainer.gradients[0].values())


# ---- what else TRL can do -------------------------------------------------------------------------------------


def test_transformers_can_draw(tmp_path: Path) -> None:
    """Without rollouts of its own the trainer generates as TRL does, and a forward tells the entropies."""
    trainer = our_trainer(
        tmp_path,
        ["all"] * 4,
        Sizes(rows=8, accumulated=1, updates=2, steps=2),
        SelectionOptions("top_entropy:0.2", ties="exact"),
        outcome=lambda completions, completion_ids, **columns: [float(ids[0] % 2) for ids in completion_ids],
        cls=WithoutRollouts,
    )
    trainer.train()
    assert trainer.logged[0]["selection/fraction"] == pytest.approx(0.2, abs=0.01)
    assert all("old_per_token_logps" in inputs for inputs in trainer.fed)
    assert any((gradient != 0).any() for gradient in trainer.gradients[1].values())


class WithoutRollouts(Ours):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs | {"rollouts": None})


@pytest.mark.parametrize("told", [True, False])
def test_a_reference_model_is_asked_itself(told: bool, tmp_path: Path, monkeypatch: Any) -> None:
    """For a KL term TRL scores the reference model while it keeps its books: no rollout can answer for that one."""
    reference = trained_model(seed=8).eval().requires_grad_(False)
    monkeypatch.setattr(grpo, "create_model_from_path", lambda *args, **kwargs: reference)
    sizes = Sizes(rows=8, accumulated=1, updates=2, steps=1)
    trainer = our_trainer(
        tmp_path, ["mixed"] * 4, sizes, SelectionOptions("all"), rollouts=FixedRollouts(told), beta=0.1
    )
    trainer.train()
    inputs = trainer.fed[0]
    mask_BT = inputs["completion_mask"].bool()
    ids_BS = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    seen_BS = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        logits_BTV = reference(ids_BS, attention_mask=seen_BS).logits[:, -mask_BT.shape[1] - 1 : -1]
    expected_BT = torch.log_softmax(logits_BTV, -1).gather(-1, inputs["completion_ids"][..., None])[..., 0]
    torch.testing.assert_close(
        inputs["ref_per_token_logps"][mask_BT], expected_BT[mask_BT], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("pool", ["batch", "micro"])
def test_an_evaluation_counts_all_tokens(pool: Any, tmp_path: Path, same_shuffle: None) -> None:
    """TRL's evaluation asks for a loss too, of rows that were never in a pool."""
    trainer = our_trainer(
        tmp_path, ["mixed"] * 2, selection=SelectionOptions("top_entropy:0.2", pool), max_completion_length=5
    )
    trainer.train()
    trainer.evaluate(Dataset.from_list(problem_rows(["mixed"] * 4)))
    found = trainer.logged[-1]
    assert found["eval_loss"] == pytest.approx(sum(trainer.losses[-1:]), abs=1e-6)
    assert not any("selection" in name for name in found)
    if pool == "micro":
        assert trainer.fed[-1]["mask"].all()


def test_a_reference_without_a_model_of_its_own_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    """TRL scores an adapter's reference with the model in training, which rollouts answer for."""
    monkeypatch.setattr(grpo, "create_model_from_path", lambda *args, **kwargs: None)
    with pytest.raises(TrainerError, match="beta is 0.1"):
        our_trainer(tmp_path, ["mixed"] * 2, beta=0.1)


def test_groups_lie_whole_on_a_rank() -> None:
    """TRL asks for whole groups of all ranks together only."""
    args = SimpleNamespace(
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        per_device_train_batch_size=6,
        num_generations=4,
        top_entropy_quantile=1.0,
    )
    with pytest.raises(TrainerError, match="has 6 responses, which are no whole groups of 4"):
        check_arguments(args)
    args.steps_per_generation = 2
    check_arguments(args)


@pytest.mark.parametrize(
    ("sizes", "trl", "message"),
    [
        (Sizes(rows=4, accumulated=2), {"steps_per_generation": 3}, "3 forwards is cut up by updates of 2"),
        (Sizes(), {"top_entropy_quantile": 0.2}, "top_entropy_quantile is 0.2; .*selection"),
    ],
)
def test_what_does_not_go_together_is_refused(
    sizes: Sizes, trl: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainerError, match=message):
        our_trainer(tmp_path, ["mixed"] * 4, sizes, **trl)


def test_a_run_that_goes_on_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    """Further problems, noise and the expected share of informative groups included."""
    kinds, sizes = ["mixed", "right", "wrong", "mixed", "right", "mixed"], Sizes(updates=2, steps=4)
    selection = SelectionOptions("random:0.4")

    def trainer(folder: str, steps: int) -> Callable[..., Any]:
        return our_trainer(
            tmp_path / folder,
            kinds,
            sizes._replace(steps=steps),
            selection,
            save_strategy="steps",
            save_steps=2,
        )

    whole = trainer("whole", 4)
    whole.train()
    trainer("parts", 2).train()
    rest = trainer("parts", 4)
    rest.train(resume_from_checkpoint=True)
    assert rest.drawn == whole.drawn and rest.drawn.further > 0
    assert rest.losses == pytest.approx(whole.losses[4:], abs=1e-7)
    for name, gradient in rest.gradients[-1].items():
        torch.testing.assert_close(gradient, whole.gradients[-1][name])
