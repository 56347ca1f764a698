"""Continuations: what the LLM alone would write, whether prefixes are shared or not, and no failure becomes one."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, EngineOptions
from navtoken.engine.runner import BadLogitsError
from navtoken.labeling.continuations import Ask, Continued, EngineContinuer
from navtoken.labeling.sentences import SentenceEnds
from tiny_models import CONTEXT, EOS, PADDED_VOCAB_SIZE, VOCAB_SIZE, near_pair, prompts, tiny_pair

ROWS = EngineOptions(max_rows=5, block_size=4)


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return tiny_pair("qwen3")


def asks_of(num: int, max_tokens: int = 9, ends: SentenceEnds | None = None, seed: int = 0) -> list[Ask]:
    """Several positions of each of `num` texts, in no order."""
    generator = torch.Generator().manual_seed(seed)
    asks = []
    for text, ids in enumerate(prompts(num, seed=seed, shortest=20, longest=60)):
        places = torch.randperm(len(ids) - 1, generator=generator)[:6] + 1
        for length in places.tolist():
            draft = int(torch.randint(2, 90, (1,), generator=generator))
            asks.append(Ask((text, length), ids, length, draft, max_tokens, ends))
    return asks


def alone(pair: ModelPair, ask: Ask) -> list[int]:
    """The LLM's own greedy `generate` from the draft on."""
    given = torch.tensor([[*ask.before, ask.draft]])
    out = pair.llm.model.generate(
        given,
        do_sample=False,
        max_new_tokens=ask.max_tokens - 1,
        pad_token_id=0,
        eos_token_id=EOS,
        suppress_tokens=list(range(VOCAB_SIZE, PADDED_VOCAB_SIZE)),
    )
    return [ask.draft, *out[0, given.shape[1] :].tolist()]


def answers(continuer: EngineContinuer, asks: list[Ask]) -> dict[Any, Continued]:
    found = list(continuer.continue_all(iter(asks)))
    assert len(found) == len(asks)
    return {each.key: each for each in found}


def longest_of(asks: list[Ask]) -> dict[int, int]:
    """Per text, the longest prefix that is asked about."""
    longest: dict[int, int] = {}
    for ask in asks:
        longest[id(ask.prefix_ids)] = max(ask.length, longest.get(id(ask.prefix_ids), 0))
    return longest


@pytest.mark.parametrize("share", [True, False])
def test_continuations_are_what_generate_writes(pair: ModelPair, share: bool) -> None:
    asks = asks_of(4)
    found = answers(EngineContinuer(pair, ROWS, share), asks)
    for ask in asks:
        assert found[ask.key].token_ids == alone(pair, ask)
        assert found[ask.key].error is None


def test_a_shared_prefix_is_computed_once_to_the_token(pair: ModelPair) -> None:
    asks = asks_of(3)
    shared, apart = EngineContinuer(pair, ROWS), EngineContinuer(pair, ROWS, share=False)
    assert answers(shared, asks) == answers(apart, asks)
    # The last token of a continuation is not fed.
    fed = sum(len(alone(pair, ask)) - 1 for ask in asks)
    assert shared.ledger.llm.tokens == sum(longest_of(asks).values()) + fed
    assert apart.ledger.llm.tokens == sum(ask.length for ask in asks) + fed
    assert shared.ledger.slm.tokens == 0


def test_nothing_is_held_when_all_is_answered(pair: ModelPair) -> None:
    continuer = EngineContinuer(pair, ROWS)
    answers(continuer, asks_of(3))
    memory = continuer._engine.memory
    assert not memory.prefixes
    assert all(pool.num_used == 0 for pool in memory.pools)


def test_who_stops_listening_leaves_nothing_behind(pair: ModelPair) -> None:
    continuer = EngineContinuer(pair, ROWS)
    running = continuer.continue_all(iter(asks_of(3)))
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert all(pool.num_used == 0 for pool in continuer._engine.memory.pools)
    asks = asks_of(2, seed=4)
    assert {key: each.token_ids for key, each in answers(continuer, asks).items()} == {
        ask.key: alone(pair, ask) for ask in asks
    }


def test_little_memory_changes_nothing(pair: ModelPair) -> None:
    tokens = CONTEXT // 2
    per_token = sum(loaded.card.kv_bytes for loaded in (pair.slm, pair.llm))
    little = EngineOptions(max_rows=8, block_size=4, cache_gib=tokens * per_token / 2**30)
    asks = asks_of(6)
    continuer = EngineContinuer(pair, little)
    found = answers(continuer, asks)
    assert continuer._engine.scheduler.num_put_back > 0
    assert all(found[ask.key].token_ids == alone(pair, ask) for ask in asks)


def test_asks_are_read_only_as_fast_as_they_are_worked_on(pair: ModelPair) -> None:
    read = 0

    def asked() -> Iterator[Ask]:
        nonlocal read
        for ask in asks_of(8):
            read += 1
            yield ask

    next(EngineContinuer(pair, ROWS).continue_all(asked()))
    # A response's asks are read together, and one of the next.
    assert read <= 2 * 6 + 1


def test_a_continuation_ends_with_its_sentence(pair: ModelPair) -> None:
    # Of single characters: "!" is a mark, and random models write one now and then.
    ends = SentenceEnds(pair.tokenizer, ("!", "?", ".", ")", "+", "a", "b", "c"))
    asks = asks_of(5, max_tokens=12, ends=ends)
    continuer = EngineContinuer(pair, ROWS)
    found = answers(continuer, asks)
    ended = fed = 0
    for ask in asks:
        whole, token_ids = alone(pair, ask), list(found[ask.key].token_ids)
        assert token_ids == whole[: len(token_ids)]
        assert len(token_ids) == ask.size(whole, more=False)
        ended += len(token_ids) < len(whole)
        fed += len(token_ids) - 1
    assert ended > 3
    # Nothing goes on behind its end; a point after a digit takes one token to be sure of.
    prefixes = sum(longest_of(asks).values())
    assert fed < continuer.ledger.llm.tokens <= prefixes + fed + 3


def test_a_draft_that_ends_the_response_is_a_continuation_of_its_own(pair: ModelPair) -> None:
    continuer = EngineContinuer(pair, ROWS)
    ask = Ask("end", [5, 6, 7], 2, EOS, 9)
    assert answers(continuer, [ask])["end"] == Continued("end", [EOS], ended=True)
    assert continuer.ledger.llm.tokens == 0


def test_an_end_of_sequence_is_part_of_it() -> None:
    # So many tokens end a response that some of these continuations do.
    pair = near_pair(llm_eos=tuple(range(1, 40)))
    found = answers(EngineContinuer(pair, ROWS), asks_of(4, max_tokens=40))
    ended = [each.token_ids for each in found.values() if len(each.token_ids) < 40]
    assert ended
    assert all(ids[-1] in range(1, 40) for ids in ended)


def test_one_that_is_too_long_says_so_and_the_others_are_answered(pair: ModelPair) -> None:
    long = [5] * (CONTEXT + 4)
    asks = [Ask("long", long, CONTEXT + 1, 7, 5), Ask("short", long, 10, 7, 5)]
    found = answers(EngineContinuer(pair, ROWS), asks)
    assert found["long"].token_ids == ()
    assert "takes 192" in str(found["long"].error)
    assert found["short"].token_ids == alone(pair, asks[1])


class Poisoned:
    """Engines whose logits are no numbers while a row of one of these prompts is in the batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *poison: list[int]) -> None:
        self.poison = poison
        self.failed = 0
        add, step = Engine.add, Engine.step

        def adding(engine: Engine, prompt_ids: Any, *rest: Any, **named: Any) -> Any:
            row = add(engine, prompt_ids, *rest, **named)
            self.rows.append(row)
            return row

        def stepping(engine: Engine) -> Any:
            if any(row.finish_reason is None and self._is_poison(row) for row in self.rows):
                self.failed += 1
                self.rows.clear()
                raise BadLogitsError("the LLM gave NaN logits")
            return step(engine)

        self.rows: list[Any] = []
        monkeypatch.setattr(Engine, "add", adding)
        monkeypatch.setattr(Engine, "step", stepping)

    def _is_poison(self, row: Any) -> bool:
        return row.token_ids[: row.prompt_len] in self.poison


@pytest.mark.parametrize("share", [True, False])
def test_logits_that_are_no_numbers_fail_only_what_fails_alone(
    pair: ModelPair, monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    asks = asks_of(4)
    bad = asks[2], asks[9]
    poisoned = Poisoned(monkeypatch, *([*ask.before, ask.draft] for ask in bad))
    continuer = EngineContinuer(pair, ROWS, share)
    found = answers(continuer, asks)
    assert poisoned.failed >= 2
    assert {key for key, each in found.items() if each.error} == {ask.key for ask in bad}
    for ask in asks:
        assert found[ask.key].token_ids == (() if ask in bad else alone(pair, ask))
    assert all("NaN" in str(found[ask.key].error) for ask in bad)
    assert all(pool.num_used == 0 for pool in continuer._engine.memory.pools)


def test_what_ends_a_response_is_told_from_what_a_limit_cuts_off() -> None:
    pair = near_pair(llm_eos=tuple(range(1, 40)))
    found = answers(EngineContinuer(pair, ROWS), asks_of(4, max_tokens=4))
    assert {each.ended for each in found.values()} == {True, False}
    for each in found.values():
        assert each.ended == (each.token_ids[-1] in range(1, 40))


def test_a_draft_that_only_the_slm_ends_by_is_an_end_too() -> None:
    pair = near_pair(slm_eos=(EOS, 9))
    assert 9 not in pair.llm.eos_token_ids
    continuer = EngineContinuer(pair, ROWS)
    assert answers(continuer, [Ask("end", [5, 6, 7], 2, 9, 6)])["end"] == Continued("end", [9], ended=True)
    assert continuer.ledger.llm.tokens == 0


def test_kept_prefixes_grow(pair: ModelPair) -> None:
    (ids,) = prompts(1, seed=3, shortest=50, longest=50)
    plain, keeping = EngineContinuer(pair, ROWS), EngineContinuer(pair, ROWS, keep=2)
    asks = [Ask(length, ids[:length], length, 9, 4) for length in (20, 30, 40)]
    for ask in asks:
        assert answers(plain, [ask]) == answers(keeping, [ask])
    fed = sum(len(alone(pair, ask)) - 1 for ask in asks)
    assert keeping.ledger.llm.tokens == 40 + fed
    assert plain.ledger.llm.tokens == 20 + 30 + 40 + fed
    # Others take their places in the end.
    for seed in range(4):
        answers(keeping, asks_of(1, seed=seed))
    assert len(keeping._engine.memory.prefixes) == 2
