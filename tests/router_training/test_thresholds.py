"""Thresholds by routed generation: shares are met, runs are kept and shared, whole responses count by their tokens."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.policies import derive_seed
from navtoken.policies.query import QueryPolicy
from navtoken.policies.router import RouterPolicy
from navtoken.router import PairNames, Router, RouterCard, RouterNetwork, RouterShape
from navtoken.router_training.examples import PromptOf
from navtoken.router_training.thresholds import (
    NEVER,
    Counted,
    RoutedRuns,
    ThresholdError,
    find,
    spread_prompts,
    stored_thresholds,
    together,
)
from tiny_models import near_pair, prompts

MAX_TOKENS = 16
GREEDY, HOT = SamplingParams(), SamplingParams(temperature=1.0)
TASKS = {
    name: [PromptOf(name, f"{name}{number}", tuple(ids)) for number, ids in enumerate(prompts(6, seed=seed))]
    for seed, name in enumerate(("countdown", "knights"))
}


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return near_pair()


def random_router(pair: ModelPair, kind: Any = "token") -> Router:
    """A router that says all kinds of things."""
    shape = RouterShape.for_slm(pair.slm, vocab_size=pair.vocab_size, width=16, depth=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = RouterNetwork(shape).eval()
        with torch.no_grad():
            network.head.weight *= 6
    names = PairNames("slm", "llm", {"slm": pair.slm.fingerprint, "llm": pair.llm.fingerprint})
    return Router(RouterCard(kind, names, shape), None, network, "ab" * 32)


def runs_of(pair: ModelPair, path: Path | None = None, kind: str = "token", **changes: Any) -> RoutedRuns:
    policy = QueryPolicy if kind == "query" else RouterPolicy
    own = {"prompts": TASKS, "max_tokens": MAX_TOKENS} | changes
    return RoutedRuns(pair, policy(0.5, router=random_router(pair, kind)), path=path, **own)


@pytest.mark.parametrize("sampling", [GREEDY, HOT])
def test_a_share_asked_for_is_the_share_in_generation(pair: ModelPair, sampling: SamplingParams) -> None:
    runs = runs_of(pair)
    threshold, got = find(runs, list(TASKS), sampling, 0.3, max_runs=10)
    assert got.share == pytest.approx(0.3, abs=0.02)
    # Measured again, outside of the search and in other batches.
    engine = Engine(pair, runs.policy.with_threshold(threshold), EngineOptions(max_rows=4))
    for prompt in (each for task in TASKS.values() for each in task):
        engine.add(prompt.prompt_ids, sampling, MAX_TOKENS, derive_seed(0, prompt.task, prompt.problem_id))
    for _ in engine.run():
        pass
    assert engine.ledger.llm_share == got.share
    assert sum(engine.ledger.written) == got.total


def test_tasks_have_thresholds_of_their_own_and_share_runs(pair: ModelPair) -> None:
    told: list[str] = []
    runs = runs_of(pair, tell=told.append)
    find(runs, list(TASKS), GREEDY, 0.2)
    together_only = len(told)
    _, got = find(runs, ["knights"], GREEDY, 0.2, max_runs=8)
    assert got.share == pytest.approx(0.2, abs=0.03)
    assert got.total == sum(len(row) for row in written(pair, runs, find(runs, ["knights"], GREEDY, 0.2)[0]))
    assert all(line.startswith("knights at T=0") for line in told[together_only:])
    # What both tasks came to together is known of each.
    assert set(runs.thresholds(list(TASKS), GREEDY)) <= set(runs.thresholds(["knights"], GREEDY))


def written(pair: ModelPair, runs: RoutedRuns, threshold: float) -> list[list[int]]:
    engine = Engine(pair, runs.policy.with_threshold(threshold))
    rows = [
        engine.add(each.prompt_ids, GREEDY, MAX_TOKENS, derive_seed(0, each.task, each.problem_id))
        for each in TASKS["knights"]
    ]
    for _ in engine.run():
        pass
    return [row.response_ids for row in rows]


def test_what_was_measured_is_kept(pair: ModelPair, tmp_path: Path) -> None:
    path = tmp_path / "work" / "routed.json"
    first = find(runs_of(pair, path), list(TASKS), GREEDY, 0.2)
    told: list[str] = []
    again = runs_of(pair, path, tell=told.append)
    assert find(again, list(TASKS), GREEDY, 0.2) == first and not told
    # Another sampling or other prompts are other runs.
    again.counted(["knights"], HOT, NEVER)
    assert len(told) == 1
    fewer = runs_of(pair, path, prompts={"knights": TASKS["knights"][:3]}, tell=told.append)
    fewer.counted(["knights"], GREEDY, NEVER)
    assert len(told) == 2
    # So are the same problems put in other words, and another LLM behind the same router.
    other = {"knights": [replace(each, prompt_ids=(*each.prompt_ids, 5)) for each in TASKS["knights"][:3]]}
    said_otherwise = runs_of(pair, path, prompts=other, tell=told.append)
    said_otherwise.counted(["knights"], GREEDY, NEVER)
    assert len(told) == 3
    with_another = RoutedRuns(
        ModelPair(pair.slm, pair.slm), fewer.policy, fewer.prompts, MAX_TOKENS, path=path, tell=told.append
    )
    with_another.counted(["knights"], GREEDY, NEVER)
    assert len(told) == 4
    assert len(json.loads(path.read_text())) == len(with_another.known)


def test_an_interrupted_search_goes_on(pair: ModelPair, tmp_path: Path) -> None:
    path = tmp_path / "routed.json"
    whole = find(runs_of(pair), list(TASKS), GREEDY, 0.2)
    told: list[str] = []

    def interrupt(what: str) -> None:
        told.append(what)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(runs_of(pair, path, tell=interrupt), list(TASKS), GREEDY, 0.2)
    later: list[str] = []
    assert find(runs_of(pair, path, tell=later.append), list(TASKS), GREEDY, 0.2) == whole
    assert later and later[0] == told[1] and told[0] not in later


def test_a_query_router_counts_by_tokens(pair: ModelPair) -> None:
    runs = runs_of(pair, kind="query")
    threshold, got = find(runs, list(TASKS), GREEDY, 0.4)
    engine = Engine(pair, runs.policy.with_threshold(threshold))
    rows = [
        engine.add(each.prompt_ids, GREEDY, MAX_TOKENS, derive_seed(0, each.task, each.problem_id))
        for task in TASKS.values()
        for each in task
    ]
    for _ in engine.run():
        pass
    by_llm = [row for row in rows if set(row.record.writer) == {1}]
    assert all(len(set(row.record.writer)) == 1 for row in rows)
    assert got.share == sum(len(row.response_ids) for row in by_llm) / got.total
    # Responses are few, so the share moves in steps of one.
    assert got.share == pytest.approx(0.4, abs=0.08)


def test_quantiles_of_tasks_together() -> None:
    one = Counted(10, 100, (0.9, 0.8, 0.7))
    other = Counted(30, 300, (0.3, 0.2, 0.1))
    both = together([one, other])
    assert (both.llm, both.total) == (40, 400)
    # A quarter of the tokens said 0.7 or more.
    assert both.levels[0] == 0.9 and both.levels[len(both.levels) // 4 - 2] == 0.7
    assert both.levels[len(both.levels) // 4 + 4] == 0.3 and both.levels[-1] == 0.1


def test_all_thresholds_that_a_card_holds(pair: ModelPair) -> None:
    runs = runs_of(pair, max_tokens=8)
    stored = stored_thresholds(runs, [GREEDY, HOT], [0.15, 0.4], {0.9: 0.25})
    asked = [(each.task, each.temperature, each.share, each.recall) for each in stored]
    assert asked[:7] == [
        ("all", 0.0, 0.15, None),
        ("all", 0.0, 0.4, None),
        ("countdown", 0.0, 0.15, None),
        ("countdown", 0.0, 0.4, None),
        ("knights", 0.0, 0.15, None),
        ("knights", 0.0, 0.4, None),
        ("all", 0.0, None, 0.9),
    ]
    assert [each[1] for each in asked[7:]] == [1.0] * 7
    assert stored[6].threshold == 0.25
    assert stored[6].realised_share == runs.counted(list(TASKS), GREEDY, 0.25).share
    assert [each.num_problems for each in stored[:3]] == [12, 12, 6]
    for each in stored[:2]:
        assert each.realised_share == pytest.approx(each.share, abs=0.05)
    # A higher share takes a lower threshold.
    assert stored[0].threshold > stored[1].threshold
    thresholds = np.array([each.threshold for each in stored])
    assert [float(f"{each:.6g}") for each in thresholds] == thresholds.tolist()


def test_problems_of_each_task() -> None:
    mixed = [prompt for both in zip(*TASKS.values(), strict=True) for prompt in both]
    found = spread_prompts(mixed, 3)
    assert {task: len(own) for task, own in found.items()} == {"countdown": 3, "knights": 3}
    # Those that are read last are as likely as the first: a share is over all problems, long responses included.
    assert spread_prompts(mixed[::-1], 3) == found
    many = [PromptOf("knights", f"k{number}", (2,)) for number in range(200)]
    drawn = [int(each.problem_id[1:]) for each in spread_prompts(many, 100)["knights"]]
    assert 30 < sum(number >= 100 for number in drawn) < 70


def test_no_problems_are_refused(pair: ModelPair) -> None:
    with pytest.raises(ThresholdError, match="label more problems"):
        runs_of(pair, prompts={"knights": []})
