"""Rows dealt to forwards by length, and padding cut: nothing is lost, and no update gets another's rows."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from navtoken.rlvr.batches import Batch, by_length, trimmed

COLUMNS = ("completion_ids", "completion_mask", "tool_mask", "old_per_token_logps")


def batch_of(lengths: list[tuple[int, int]], first: int = 0, spare: int = 0, masked: Any = ()) -> Batch:
    """Rows of so many prompt and response tokens, each token an id of its own; `spare` columns of padding on each side."""
    longest_prompt, longest = (max(each) + spare for each in zip(*lengths, strict=True))
    shape = (len(lengths), longest)
    batch: Batch = {
        "prompt_ids": torch.zeros(len(lengths), longest_prompt, dtype=torch.long),
        "completion_ids": torch.zeros(shape, dtype=torch.long),
        "advantages": torch.arange(first, first + len(lengths)) + 0.5,
        "num_items_in_batch": torch.tensor(77),
        "pixel_values": None,
    }
    for row, (prompt, response) in enumerate(lengths):
        start = 1000 * (first + row)
        batch["prompt_ids"][row, longest_prompt - prompt :] = start + 1 + torch.arange(prompt)
        batch["completion_ids"][row, :response] = start + 501 + torch.arange(response)
    batch["prompt_mask"] = (batch["prompt_ids"] > 0).long()
    batch["completion_mask"] = (batch["completion_ids"] > 0).long()
    for row in masked:
        batch["completion_mask"][row] = 0
    batch["tool_mask"] = torch.ones(shape, dtype=torch.long)
    batch["old_per_token_logps"] = -batch["completion_ids"].float()
    return batch


def rows_of(batch: Batch) -> list[tuple[Any, ...]]:
    """Each row as what is inside its masks."""
    rows = []
    for row in range(len(batch["advantages"])):
        inside = batch["completion_mask"][row].bool()
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
        columns = [tuple(batch[name][row][inside].tolist()) for name in COLUMNS]
        rows.append((tuple(prompt), *columns, batch["advantages"][row].tolist()))
    return rows


def size_of(batch: Batch) -> Tensor:
    return batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)


lengths_of_row = st.tuples(st.integers(1, 6), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_updates_keep_their_rows_and_forwards_get_like_lengths(
    data: st.DataObject, rows: int, accumulated: int, updates: int
) -> None:
    total = rows * accumulated * updates
    lengths = data.draw(st.lists(lengths_of_row, min_size=total, max_size=total))
    whole = batch_of(lengths)
    parts = [
        {
            name: value[i : i + rows] if isinstance(value, Tensor) and value.dim() else value
            for name, value in whole.items()
        }
        for i in range(0, total, rows)
    ]
    dealt = by_length(parts, accumulated)
    assert [len(part["advantages"]) for part in dealt] == [rows] * len(parts)
    for start in range(0, len(parts), accumulated):
        update = slice(start, start + accumulated)
        before = [row for part in parts[update] for row in rows_of(part)]
        after = [row for part in dealt[update] for row in rows_of(part)]
        assert sorted(before) == sorted(after)
        sizes = torch.cat([size_of(part) for part in dealt[update]])
        assert sizes.tolist() == sorted(sizes.tolist())
    for part in dealt:
        assert part["num_items_in_batch"] == 77 and part["pixel_values"] is None


@settings(max_examples=60, deadline=None)
@given(st.lists(lengths_of_row, min_size=1, max_size=4), st.integers(0, 3), st.data())
def test_only_columns_of_padding_are_cut(
    lengths: list[tuple[int, int]], spare: int, data: st.DataObject
) -> None:
    masked = data.draw(st.sets(st.integers(0, len(lengths) - 1)))
    batch = batch_of(lengths, spare=spare, masked=masked)
    cut = trimmed(batch)
    assert rows_of(cut) == rows_of(batch)
    counted = [response for row, (_, response) in enumerate(lengths) if row not in masked]
    assert cut["prompt_ids"].shape[1] == max(prompt for prompt, _ in lengths)
    assert cut["prompt_mask"].shape == cut["prompt_ids"].shape
    for name in COLUMNS:
        assert cut[name].shape == (len(lengths), max([1, *counted]))
    assert cut["advantages"].shape == (len(lengths),) and cut["num_items_in_batch"] == 77


def test_weighted_advantages_are_cut_and_values_per_row_are_not() -> None:
    batch = batch_of([(2, 3), (1, 2)], spare=4)
    batch["advantages"] = torch.rand(2, batch["completion_ids"].shape[1])
    batch["importance_sampling_ratio"] = torch.ones(2, 1)
    cut = trimmed(batch)
    assert torch.equal(cut["advantages"], batch["advantages"][:, :3])
    assert cut["importance_sampling_ratio"].shape == (2, 1)


def test_a_token_after_a_masked_one_stays() -> None:
    batch = batch_of([(1, 5)])
    batch["completion_mask"][0] = torch.tensor([1, 0, 0, 1, 0])
    assert trimmed(batch)["completion_ids"].shape == (1, 4)


@pytest.mark.parametrize("name", ["tool_mask", "old_per_token_logps"])
def test_columns_that_are_not_there_are_not_missed(name: str) -> None:
    batch = batch_of([(2, 3), (1, 2)], spare=1)
    del batch[name]
    assert name not in trimmed(batch) and name not in by_length([batch], 1)[0]
