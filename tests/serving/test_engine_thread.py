"""The engine's thread on an engine without weights: joining, leaving, crashing, closing, and that nothing is left behind."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_engine import CONTEXT, FakeEngine, Reference
from navtoken.engine import EngineOptions, SamplingParams
from navtoken.engine.options import OptionError
from navtoken.policies.rules import EntropyPolicy, RandomPolicy
from navtoken.serving import engine_thread
from navtoken.serving.engine_thread import EngineThread
from navtoken.serving.errors import ApiError, BadRequest, Busy, Failed, Unavailable
from navtoken.serving.jobs import Ask, Heard, Job, Scored
from navtoken.serving.prompt_scores import PromptScores

collect = gc.collect
POLICY = RandomPolicy(0.4)
OPTIONS = EngineOptions(max_rows=4, llm_min_rows=1)


@pytest.fixture(autouse=True)
def quick_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it makes an engine anew, the thread collects garbage: seconds with all that tests have imported."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


class BrokenPolicy(RandomPolicy):
    """Fails when it is asked about a draft: in the middle of a step."""

    def judge_drafts(self, drafts: Any) -> Any:
        raise RuntimeError("broken")


class UnstartablePolicy(RandomPolicy):
    """Fails before there is a row."""

    def start(self, prompt_ids: Any) -> Any:
        raise RuntimeError("cannot start")


def ask(seed: int = 0, max_tokens: int = 20, policy: Any = POLICY, sample: int = 0, **sampling: Any) -> Ask:
    params = SamplingParams(**({"temperature": 1.0, "ignore_eos": True} | sampling))
    return Ask([1, 2, 3 + seed % 7], params, max_tokens, seed, sample, policy)


def job(*asks: Ask) -> Job:
    return Job(list(asks) or [ask()])


class Recorded:
    """An engine thread whose engines are remembered."""

    def __init__(self, **options: Any) -> None:
        self.engines: list[FakeEngine] = []
        self.thread = EngineThread(self._make, **options)

    def _make(self) -> FakeEngine:
        self.engines.append(FakeEngine(RandomPolicy(0.0), OPTIONS))
        return self.engines[-1]


def in_loop(test: Callable[[Recorded], Coroutine[Any, Any, None]], **options: Any) -> Recorded:
    """Run a test with a thread that is started and closed around it."""
    recorded = Recorded(**options)

    async def run() -> None:
        recorded.thread.start(asyncio.get_running_loop())
        try:
            await asyncio.wait_for(test(recorded), 30)
        finally:
            await recorded.thread.close(10)

    asyncio.run(run())
    return recorded


def slow_down(engine: FakeEngine, seconds: float = 0.005) -> None:
    """Let every step take so long, so that the event loop has its turn between two."""
    step = engine.step

    def slow_step() -> Any:
        time.sleep(seconds)
        return step()

    engine.step = slow_step  # type: ignore[method-assign]


async def tokens(wanted: Job) -> list[list[int]]:
    """The token ids of a job's responses; raises the error that ends it."""
    found: list[list[int]] = [[] for _ in wanted.asks]
    while wanted.num_unfinished > 0 or not wanted.inbox.empty():
        news = await wanted.inbox.get()
        if isinstance(news, ApiError):
            raise news
        assert isinstance(news, Heard)
        if news.event.token_id is not None:
            found[news.choice].append(news.event.token_id)
    return found


def alone(wanted: Ask) -> list[int]:
    """What the plain reference decoder makes of an ask."""
    engine = FakeEngine(POLICY, OPTIONS)
    row = engine.add(
        wanted.prompt_ids, wanted.sampling, wanted.max_tokens, wanted.seed, wanted.sample, wanted.policy
    )
    return Reference(row).response_ids


def test_requests_join_a_running_batch_and_get_what_they_get_alone() -> None:
    async def test(recorded: Recorded) -> None:
        jobs = [job(ask(seed)) for seed in range(9)]
        told = []
        for each in jobs:
            recorded.thread.submit(each)
            told.append(asyncio.ensure_future(tokens(each)))
            await asyncio.sleep(0.002)
        for each, found in zip(jobs, await asyncio.gather(*told), strict=True):
            assert found == [alone(each.asks[0])]

    recorded = in_loop(test)
    recorded.engines[0].check()
    assert len(recorded.engines) == 1


def test_samples_of_a_job_are_numbered_as_they_were_asked() -> None:
    async def test(recorded: Recorded) -> None:
        asks = [ask(5, sample=sample) for sample in range(3)]
        wanted = job(*asks)
        recorded.thread.submit(wanted)
        found = await tokens(wanted)
        assert found == [alone(each) for each in asks]
        assert len({tuple(each) for each in found}) == 3

    in_loop(test)


def test_rows_start_in_the_order_in_which_requests_came() -> None:
    async def test(recorded: Recorded) -> None:
        jobs = [job(ask(seed, max_tokens=10)) for seed in range(12)]
        for each in jobs:
            recorded.thread.submit(each)
        for each in jobs:
            await tokens(each)
        starts = [each.started for each in jobs]
        assert starts == sorted(starts) and None not in starts

    in_loop(test)


def test_a_cancelled_job_frees_its_rows_and_says_no_more() -> None:
    async def test(recorded: Recorded) -> None:
        slow_down(recorded.engines[0])
        long, other = job(ask(1, max_tokens=37), ask(2, max_tokens=37)), job(ask(3, max_tokens=30))
        recorded.thread.submit(long)
        recorded.thread.submit(other)
        await long.inbox.get()
        recorded.thread.cancel(long)
        recorded.thread.cancel(long)
        assert await tokens(other) == [alone(other.asks[0])]
        told = long.inbox.qsize()
        await asyncio.sleep(0.05)
        assert long.inbox.qsize() == told
        health = recorded.thread.health()
        assert (health.num_running, health.num_waiting) == (0, 0)

    recorded = in_loop(test)
    recorded.engines[0].check()
    assert sum(recorded.thread.ledger.written) < 30 + 37, "the cancelled rows went on"


def test_a_job_cancelled_before_it_has_a_row_never_runs() -> None:
    async def test(recorded: Recorded) -> None:
        wanted = job()
        recorded.thread.submit(wanted)
        recorded.thread.cancel(wanted)
        other = job(ask(9))
        recorded.thread.submit(other)
        await tokens(other)
        assert wanted.inbox.empty() and not wanted.rows

    in_loop(test)


def test_the_queue_has_a_limit_and_says_when_to_come_back() -> None:
    async def test(recorded: Recorded) -> None:
        jobs = [job(ask(seed)) for seed in range(6)]
        for each in jobs:
            recorded.thread.submit(each)
        with pytest.raises(Busy) as refused:
            recorded.thread.submit(job())
        assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
        for each in jobs:
            await tokens(each)
        # Room again.
        last = job()
        recorded.thread.submit(last)
        await tokens(last)

    in_loop(test, max_queue=2)


def test_more_responses_than_there_is_ever_room_for_are_refused_for_good() -> None:
    async def test(recorded: Recorded) -> None:
        with pytest.raises(BadRequest, match="holds 6"):
            recorded.thread.submit(job(*[ask(sample=sample) for sample in range(7)]))

    in_loop(test, max_queue=2)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(ask(policy=UnstartablePolicy(0.5)), Failed), (ask(max_tokens=0), BadRequest)],
    ids=["breaks", "refused by the engine"],
)
def test_what_breaks_before_it_has_a_row_fails_alone(wrong: Ask, error: type[ApiError]) -> None:
    async def test(recorded: Recorded) -> None:
        good, bad = job(ask(1)), job(ask(2), wrong)
        recorded.thread.submit(good)
        recorded.thread.submit(bad)
        with pytest.raises(error):
            await tokens(bad)
        assert await tokens(good) == [alone(good.asks[0])]
        assert recorded.thread.health().status == "ok"
        assert sum(recorded.thread.ledger.written) == 20, "the rest of the failed job ran"

    recorded = in_loop(test)
    recorded.engines[0].check()
    assert len(recorded.engines) == 1


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that needs no request."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def crash(recorded: Recorded) -> None:
    bad = job(ask(policy=BrokenPolicy(0.5)))
    recorded.thread.submit(bad)
    with pytest.raises(Unavailable, match="crashed"):
        await tokens(bad)


def failing(recorded: Recorded, times: list[float], num: int) -> Callable[[], Any]:
    """Makes engines, from the attempt on that comes after so many failures."""

    def make() -> Any:
        times.append(time.monotonic())
        if len(times) <= num:
            raise MemoryError("no room")
        return recorded._make()

    return make


def test_a_crash_ends_all_jobs_with_503_and_a_new_engine_is_made_without_being_asked() -> None:
    async def test(recorded: Recorded) -> None:
        made = threading.Event()
        make = recorded.thread._make_engine
        recorded.thread._make_engine = lambda: (made.wait(10), make())[1]
        good, bad = job(ask(1, max_tokens=37)), job(ask(2, policy=BrokenPolicy(0.5)))
        recorded.thread.submit(good)
        await good.inbox.get()
        recorded.thread.submit(bad)
        for each in (good, bad):
            with pytest.raises(Unavailable, match="RuntimeError"):
                await tokens(each)
        health = recorded.thread.health()
        assert (health.status, health.error, health.num_crashes) == ("dead", "RuntimeError", 1)
        before = sum(recorded.thread.ledger.written)
        assert before > 0
        made.set()
        await until(lambda: recorded.thread.health().status == "ok")
        again = job(ask(1))
        recorded.thread.submit(again)
        assert await tokens(again) == [alone(again.asks[0])]
        assert recorded.thread.health().error is None
        assert sum(recorded.thread.ledger.written) == before + 20

    assert len(in_loop(test).engines) == 2


def test_no_count_falls_when_an_engine_is_thrown_away() -> None:
    seen: list[int] = []

    async def test(recorded: Recorded) -> None:
        wanted = job(ask(1, max_tokens=20))
        recorded.thread.submit(wanted)
        await tokens(wanted)
        end_all = recorded.thread._end_all

        def looked_at(why: ApiError) -> None:
            seen.append(sum(recorded.thread.ledger.written))
            end_all(why)

        recorded.thread._end_all = looked_at  # type: ignore[method-assign]
        await crash(recorded)

    in_loop(test)
    assert seen and min(seen) >= 20


def test_an_engine_that_cannot_be_made_anew_is_tried_again_after_pauses_that_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_thread, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(engine_thread, "LONGEST_PAUSE", 0.08)
    times: list[float] = []

    async def test(recorded: Recorded) -> None:
        recorded.thread._make_engine = failing(recorded, times, 8)
        await crash(recorded)
        await until(lambda: recorded.thread.health().status == "ok")
        pauses = [after - before for before, after in pairwise(times)]
        assert all(pause >= least for pause, least in zip(pauses, (0.02, 0.04, *[0.08] * 6), strict=True))
        # Grown without a bound they would be 1.28 and 2.56 s.
        assert min(pauses[-2:]) < 1
        wanted = job(ask(1))
        recorded.thread.submit(wanted)
        assert await tokens(wanted) == [alone(wanted.asks[0])]

    assert len(in_loop(test).engines) == 2


def test_requests_in_a_pause_get_503_and_make_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "FIRST_PAUSE", 30.0)
    times: list[float] = []

    async def test(recorded: Recorded) -> None:
        recorded.thread._make_engine = failing(recorded, times, 1)
        await crash(recorded)
        await until(lambda: recorded.thread.health().error == "MemoryError")
        for _ in range(3):
            early = job()
            recorded.thread.submit(early)
            with pytest.raises(Unavailable, match="made anew"):
                await tokens(early)
        assert len(times) == 1 and recorded.thread.health().status == "dead"
        # Whoever runs the server need not wait.
        recorded.thread.restart()
        await until(lambda: recorded.thread.health().status == "ok")

    in_loop(test)


def test_pauses_begin_anew_once_a_response_was_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "FIRST_PAUSE", 30.0)

    async def test(recorded: Recorded) -> None:
        for _ in range(3):
            await crash(recorded)
            await until(lambda: recorded.thread.health().status == "ok")
            good = job()
            recorded.thread.submit(good)
            await tokens(good)
        await crash(recorded)
        await until(lambda: recorded.thread.health().status == "ok")
        await crash(recorded)
        await asyncio.sleep(0.05)
        assert recorded.thread.health().status == "dead", "engines that only crash were made without a pause"

    in_loop(test)


def test_the_old_engine_is_gone_before_a_new_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is seldom memory for the caches of two."""
    monkeypatch.setattr(gc, "collect", collect)
    alive: list[bool] = []
    old: list[weakref.ref[FakeEngine]] = []

    def make() -> Any:
        alive.extend(engine() is not None for engine in old)
        made: Any = FakeEngine(RandomPolicy(0.0), OPTIONS)
        made.hangs_on_itself = made
        old.append(weakref.ref(made))
        return made

    async def test() -> None:
        thread = EngineThread(make)
        thread.start(asyncio.get_running_loop())
        thread.restart()
        wanted = job()
        thread.submit(wanted)
        await tokens(wanted)
        await thread.close(10)

    asyncio.run(test())
    assert alive == [False]


def test_a_dead_engine_does_not_keep_the_server_from_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "FIRST_PAUSE", 30.0)

    async def test(recorded: Recorded) -> None:
        recorded.thread._make_engine = failing(recorded, [], 9)
        await crash(recorded)
        await until(lambda: recorded.thread.health().error == "MemoryError")
        await asyncio.wait_for(recorded.thread.close(20), 5)

    in_loop(test)


def test_places_are_held_while_prompts_are_made() -> None:
    async def test(recorded: Recorded) -> None:
        with recorded.thread.preparing(4):
            with recorded.thread.preparing(2), pytest.raises(Busy), recorded.thread.preparing(1):
                pass
            with pytest.raises(Busy):
                recorded.thread.submit(job(*[ask(sample=sample) for sample in range(3)]))
        last = job(*[ask(sample=sample) for sample in range(6)])
        recorded.thread.submit(last)
        with pytest.raises(Busy), recorded.thread.preparing(1):
            pass
        await tokens(last)

    in_loop(test, max_queue=2)


def test_restart_ends_what_runs_and_serves_again() -> None:
    async def test(recorded: Recorded) -> None:
        running, after = job(ask(1, max_tokens=37)), job(ask(2))
        recorded.thread.submit(running)
        recorded.thread.restart()
        recorded.thread.submit(after)
        with pytest.raises(Unavailable, match="restarted"):
            await tokens(running)
        assert await tokens(after) == [alone(after.asks[0])]
        assert recorded.thread.health().num_crashes == 0

    assert len(in_loop(test).engines) == 2


def test_closing_finishes_what_runs_and_takes_no_more() -> None:
    async def test(recorded: Recorded) -> None:
        jobs = [job(ask(seed)) for seed in range(7)]
        for each in jobs:
            recorded.thread.submit(each)
        closing = asyncio.ensure_future(recorded.thread.close(20))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="shutting down"):
            recorded.thread.submit(job())
        for each in jobs:
            assert await tokens(each) == [alone(each.asks[0])]
        await closing

    in_loop(test)


def test_what_takes_too_long_is_ended_when_the_server_closes() -> None:
    async def test(recorded: Recorded) -> None:
        slow_down(recorded.engines[0], 0.3)
        wanted = job(ask(max_tokens=37))
        recorded.thread.submit(wanted)
        await recorded.thread.close(0.2)
        with pytest.raises(Unavailable, match="shutting down"):
            await tokens(wanted)

    in_loop(test)


def test_a_step_that_does_not_come_back_counts_as_stuck() -> None:
    async def test(recorded: Recorded) -> None:
        gate, engine = threading.Event(), recorded.engines[0]
        step = engine.step

        def stuck_step() -> Any:
            gate.wait(10)
            return step()

        engine.step = stuck_step  # type: ignore[method-assign]
        wanted = job()
        recorded.thread.submit(wanted)
        await asyncio.sleep(0.3)
        assert recorded.thread.health().status == "stuck"
        gate.set()
        await tokens(wanted)
        assert recorded.thread.health().status == "ok"

    in_loop(test, stuck_seconds=0.1)


class SlowScorer:
    """Scores each prompt in a batch of its own."""

    def __init__(self, on_batch: Callable[[], object] = int) -> None:
        self.num_batches = 0
        self.on_batch = on_batch

    def score(self, prompts: Any, num_top: int) -> Iterator[list[PromptScores] | None]:
        for _ in prompts:
            self.num_batches += 1
            self.on_batch()
            yield None
        yield [PromptScores([None], [[]]) for _ in prompts]


def test_jobs_take_turns_with_their_batches_and_the_engine_steps_between() -> None:
    async def test(recorded: Recorded) -> None:
        engine, all_there = recorded.engines[0], threading.Event()
        done: list[str] = []
        step = engine.step
        engine.step = lambda: (done.append("step"), step())[1]  # type: ignore[method-assign]

        def scoring(name: str) -> Job:
            scorer: Any = SlowScorer(lambda: (all_there.wait(10), done.append(name)))
            return Job([], [[1, 2]] * 3, scorer)

        first, second, response = scoring("first"), scoring("second"), job(ask(1, max_tokens=30))
        for each in (first, second, response):
            recorded.thread.submit(each)
        all_there.set()
        for each in (first, second):
            assert isinstance(await each.inbox.get(), Scored)
        await tokens(response)
        batches = [place for place, name in enumerate(done) if name != "step"]
        # The first one's first batch is read before the second one is there.
        assert [done[place] for place in batches] in (
            ["first", "first", "second", "first", "second", "second"],
            ["first", "second", "first", "second", "first", "second"],
        )
        assert all(after - before > 1 for before, after in pairwise(batches[1:])), done

    in_loop(test)


def test_scoring_that_nobody_waits_for_stops_and_counts_in_the_queue() -> None:
    async def test(recorded: Recorded) -> None:
        scorer: Any = SlowScorer()
        scored = Job([], [[1, 2]] * 6, scorer)
        assert scored.weight == 6
        other = job(ask(1, max_tokens=30))
        recorded.thread.submit(other)
        await other.inbox.get()
        recorded.thread.submit(scored)
        with pytest.raises(Busy):
            recorded.thread.submit(Job([], [[1, 2]] * 6, scorer))
        news = await scored.inbox.get()
        assert isinstance(news, Scored) and len(news.prompts) == 6
        gone = Job([], [[1, 2]] * 3, scorer)
        before = scorer.num_batches
        slow_down(recorded.engines[0], 0.02)
        recorded.thread.submit(gone)
        recorded.thread.cancel(gone)
        await tokens(other)
        assert scorer.num_batches - before < 3 and gone.inbox.empty()

    in_loop(test, max_queue=8)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3), st.integers(-1, 12)), min_size=1, max_size=14)
)
def test_whoever_leaves_when_nothing_is_left_behind(plans: list[tuple[int, int, int]]) -> None:
    """Jobs of (seed, samples, tokens after which the client goes away; -1 stays), all at once."""

    async def one(recorded: Recorded, plan: tuple[int, int, int]) -> None:
        seed, samples, patience = plan
        wanted = job(*[ask(seed, sample=sample, policy=EntropyPolicy(1.5)) for sample in range(samples)])
        recorded.thread.submit(wanted)
        if patience < 0:
            assert await tokens(wanted) == [alone(each) for each in wanted.asks]
            return
        for _ in range(patience):
            await wanted.inbox.get()
        recorded.thread.cancel(wanted)

    async def test(recorded: Recorded) -> None:
        await asyncio.gather(*[one(recorded, plan) for plan in plans])

    recorded = in_loop(test)
    recorded.engines[0].check()
    assert not recorded.thread._owners and not recorded.thread._unstarted and not recorded.thread._in_flight


def test_a_prompt_that_fills_the_context_is_the_callers_to_refuse() -> None:
    """The thread passes the engine's own refusal on, in case a caller does not."""

    async def test(recorded: Recorded) -> None:
        wanted = Job([Ask([1] * CONTEXT, SamplingParams(), 1, 0, 0, POLICY)])
        recorded.thread.submit(wanted)
        with pytest.raises(BadRequest):
            await tokens(wanted)

    in_loop(test)
    assert issubclass(OptionError, ValueError)
