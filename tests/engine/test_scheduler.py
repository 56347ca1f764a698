"""Who runs next: shares of a pass, one leader per prefix, and rows put back when memory runs out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navtoken.engine import EngineOptions, SamplingParams, Sequence, State
from navtoken.engine.blocks import BlockPool
from navtoken.engine.memory import Memory, Prefix
from navtoken.engine.scheduler import SHORT, Scheduler
from navtoken.policies import Writer, make_policy

SIZE = 8


def scheduler_of(num_blocks: int = 500, **options: int) -> Scheduler:
    memory = Memory((BlockPool(num_blocks, SIZE), BlockPool(num_blocks, SIZE)))
    return Scheduler(EngineOptions(**options), memory)  # type: ignore[arg-type]


def row_of(number: int, num_tokens: int, num_provisional: int = 0) -> Sequence:
    token_ids = [1] * num_tokens
    row = Sequence(number, token_ids, num_tokens, SamplingParams(), 9999, 0, 0, make_policy("speculative:4"))
    row.num_provisional = num_provisional
    return row


def admitted(scheduler: Scheduler, rows: list[Sequence], state: State = State.READY) -> list[Sequence]:
    for row in rows:
        scheduler.add(row)
    running = scheduler.admit()
    for row in running:
        row.state = state
    return running


lengths = st.lists(st.tuples(st.integers(2, 300), st.integers(0, 80)), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(lengths, st.integers(1, 400), st.sampled_from(list(Writer)))
def test_long_rows_share_a_pass_and_all_are_fed_in_the_end(
    lengths: list[tuple[int, int]], chunk: int, model: Writer
) -> None:
    scheduler = scheduler_of(prefill_chunk=chunk, max_rows=9)
    rows = [
        row_of(number, num, min(drafts, num - 1) if model is Writer.LLM else 0)
        for number, (num, drafts) in enumerate(lengths)
    ]
    admitted(scheduler, rows)
    for _ in range(4000):
        asked = [row for row in rows if row.cached_len[model] < len(row.token_ids)]
        if not asked:
            break
        dealt = scheduler.deal(list(reversed(asked)), model)
        assert dealt, "a pass that feeds nothing would be the last"
        assert [row.sequence_id for row, _ in dealt] == sorted(row.sequence_id for row, _ in dealt)
        shared = 0
        for row, end in dealt:
            start, total = row.cached_len[model], len(row.token_ids)
            whole_anyway = max(SHORT, row.num_provisional + 1)
            assert start < end <= total
            assert end == total or end <= total - row.num_provisional - 1, "judged tokens go together"
            if total - start <= SHORT:
                assert end == total, "short rows are fed whole"
            elif total - start > whole_anyway:
                shared += end - start
            row.cached_len[model] = end
        assert shared <= chunk
    assert all(row.cached_len[model] == len(row.token_ids) for row in rows)


def test_a_long_prompt_goes_in_between_other_rows_steps() -> None:
    scheduler = scheduler_of(prefill_chunk=100)
    long, short = row_of(0, 250), row_of(1, 3)
    admitted(scheduler, [long, short])
    ends = []
    for _ in range(3):
        dealt = dict(scheduler.deal([long, short], Writer.SLM))
        ends.append((dealt[long], dealt[short]))
        long.cached_len[Writer.SLM] = dealt[long]
        short.cached_len[Writer.SLM] = dealt[short]
        short.token_ids.append(1)
    assert ends == [(100, 3), (200, 4), (250, 5)]


def test_of_rows_that_lack_one_prefix_the_oldest_goes_first() -> None:
    scheduler = scheduler_of()
    rows = [row_of(number, 20) for number in range(5)]
    admitted(scheduler, rows)
    prefixes = Prefix(20), Prefix(20)
    for row, prefix in zip(rows[:4], (prefixes[0], prefixes[0], prefixes[1], prefixes[1]), strict=True):
        scheduler.memory.join(row, prefix)
    dealt = scheduler.deal(rows, Writer.SLM)
    assert [row.sequence_id for row, _ in dealt] == [0, 2, 4]
    scheduler.secure(dealt, Writer.SLM)
    for row, end in dealt:
        row.cached_len[Writer.SLM] = end
        scheduler.memory.donate(row, Writer.SLM)
    left = [rows[1], rows[3]]
    assert scheduler.deal(left, Writer.SLM) == [(row, 20) for row in left]
    assert [row.cached_len[Writer.SLM] for row in left] == [19, 19]


def test_the_youngest_rows_go_back_and_come_again_first() -> None:
    scheduler = scheduler_of(num_blocks=12, max_rows=4)
    rows = [row_of(number, 2 * SIZE) for number in range(6)]
    admitted(scheduler, rows)
    assert [row.is_running for row in rows] == [True] * 4 + [False] * 2
    secured, _ = scheduler.secure(scheduler.deal(rows[:4], Writer.SLM), Writer.SLM)
    assert len(secured) == 4
    for row, end in secured:
        row.cached_len[Writer.SLM] = end
    rows[0].token_ids += [1] * SIZE * 7
    secured, _ = scheduler.secure([(rows[0], 9 * SIZE)], Writer.SLM)
    assert secured == [(rows[0], 9 * SIZE)]
    assert [row.sequence_id for row in scheduler.running] == [0, 1]
    assert [row.sequence_id for row in scheduler.waiting] == [2, 3, 4, 5]
    for row in rows[2:4]:
        assert (row.state, row.tables, row.cached_len) == (State.WAITING, ([], []), [0, 0])
    assert scheduler.num_put_back == 2
    scheduler.memory.check(rows)


def test_a_row_that_is_itself_the_youngest_goes_back() -> None:
    scheduler = scheduler_of(num_blocks=4, max_rows=2)
    old, young = row_of(0, 3 * SIZE), row_of(1, 2 * SIZE)
    old.state = young.state = State.READY
    for row in (old, young):
        row.is_running = True
        scheduler.running.append(row)
    secured, _ = scheduler.secure(scheduler.deal([young, old], Writer.LLM), Writer.LLM)
    assert secured == [(old, 3 * SIZE)]
    assert list(scheduler.waiting) == [young]
    assert scheduler.admit() == [], "there is no room for it"


def test_a_row_alone_takes_the_blocks_of_prefixes_that_wait() -> None:
    scheduler = scheduler_of(num_blocks=4, max_rows=2)
    row, waiting = row_of(0, 2 * SIZE), row_of(1, 2 * SIZE)
    admitted(scheduler, [row])
    scheduler.secure(scheduler.deal([row], Writer.SLM), Writer.SLM)
    row.cached_len[Writer.SLM] = 2 * SIZE
    scheduler.memory.join(waiting, scheduler.memory.snapshot(row, 2 * SIZE))
    scheduler.memory.release(row)
    row.token_ids += [1] * SIZE
    secured, _ = scheduler.secure(scheduler.deal([row], Writer.SLM), Writer.SLM)
    assert secured == [(row, 3 * SIZE)]
    assert waiting.prefix is not None and waiting.prefix.cached_len == [0, 0]


def test_rows_are_admitted_first_come_first_served_while_they_fit() -> None:
    scheduler = scheduler_of(num_blocks=6, max_rows=8)
    rows = [row_of(0, 3 * SIZE), row_of(1, 6 * SIZE), row_of(2, 1)]
    assert admitted(scheduler, rows) == rows[:1]
    scheduler.secure(scheduler.deal(rows[:1], Writer.SLM), Writer.SLM)
    assert scheduler.admit() == [], "the short row must not overtake"
    scheduler.release(rows[0])
    assert scheduler.admit() == [rows[1]], "what is alone always starts, and claims its blocks"


@pytest.mark.parametrize("name", ["slm", "llm", "speculative:4"])
def test_samples_claim_no_blocks_for_the_prompt_that_they_share(name: str) -> None:
    """Once it is computed for the models that run: room for the prompt twice is room for many samples."""
    scheduler = scheduler_of(num_blocks=20, max_rows=9)
    prefix, policy = Prefix(8 * SIZE), make_policy(name)
    rows = [row_of(number, 8 * SIZE) for number in range(6)]
    for row in rows:
        row.policy = policy
        scheduler.memory.join(row, prefix)
    first, _ = admitted(scheduler, rows)
    for model in policy.models:
        scheduler.secure([(first, 8 * SIZE)], model)
        first.cached_len[model] = 8 * SIZE
        scheduler.memory.donate(first, model)
    assert scheduler.admit() == rows[2:]


@pytest.mark.parametrize("running", [True, False])
def test_a_released_row_leaves_no_block(running: bool) -> None:
    scheduler = scheduler_of()
    row = row_of(0, 20)
    scheduler.add(row)
    if running:
        admitted(scheduler, [])
        scheduler.secure([(row, 20)], Writer.SLM)
    scheduler.release(row)
    assert not scheduler.has_work
    assert all(pool.num_used == 0 for pool in scheduler.memory.pools)
