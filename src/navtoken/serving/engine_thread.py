"""The engine in a thread of its own: requests join and leave the running batch between two steps.

The event loop submits jobs and cancels them; the thread takes both between steps and hands back, once a step, what every job
hears. A request that the engine refuses, or that breaks before it has a row, fails alone. Whatever breaks in a step leaves the engine's
books in doubt, so it is thrown away: all jobs end with 503, and the thread makes a new one. At once the first time; where that fails,
or the new one breaks before it has finished a response, after pauses that grow, in which requests get 503.
"""

import asyncio
import gc
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Condition, Lock, Thread
from time import monotonic
from typing import Literal

from navtoken.checkpoints import PromptTooLongError
from navtoken.engine import Engine, Ledger, Prefix, Sequence
from navtoken.engine.options import OptionError
from navtoken.policies import PolicyError
from navtoken.serving.errors import ApiError, BadRequest, Busy, Failed, Unavailable
from navtoken.serving.jobs import Heard, Job, News, Scored
from navtoken.serving.prompt_scores import PromptScores

logger = logging.getLogger(__name__)

Order = Callable[[], None]
LONGEST_RETRY = 60
"""Seconds that a client is asked to wait at most."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before an engine is made anew, once making it at once has not helped; each pause is twice the last."""
ABORT_SECONDS = 5.0
"""For a step to come back, once it is told to be the last."""
POLL_SECONDS = 0.02
"""Between two looks at whether the thread has ended."""
REFUSALS = (OptionError, PromptTooLongError, PolicyError)
"""What the engine says of a request that cannot be served."""


@dataclass(frozen=True)
class Health:
    """How the engine is."""

    status: Literal["ok", "dead", "stuck", "closing"]
    error: str | None
    """The kind of error that it died of, until it is made anew; more is in the log, where not everybody reads it."""
    num_crashes: int
    num_running: int
    """Rows that decode."""
    num_waiting: int
    """Rows that wait for a place in the batch."""
    cache_used: float
    """Fraction of the fuller KV cache's blocks."""


class EngineThread:
    """Runs an engine for jobs that come from one event loop."""

    def __init__(
        self, make_engine: Callable[[], Engine], max_queue: int = 256, stuck_seconds: float = 120.0
    ) -> None:
        """`max_queue` responses may wait beside those that have a row. `make_engine` is called here, and by the thread after each crash."""
        self._make_engine = make_engine
        self._engine: Engine | None = make_engine()
        self.max_rows = self._engine.options.max_rows
        self.capacity = self._engine.memory.capacity
        """Tokens of the longest response with its prompt that the KV caches hold."""
        self.max_queue = max_queue
        self.stuck_seconds = stuck_seconds
        self._past = Ledger()
        self._books = Lock()
        """Held where an engine's counts become past ones."""
        self._orders: deque[Order] = deque()
        self._wake = Condition()
        self._closing = self._aborting = False
        self._error: str | None = None
        self._num_crashes = 0
        self._num_failures = 0
        self._renew_at = 0.0
        self._busy_since: float | None = None
        self._owners: dict[Sequence, Job] = {}
        self._unstarted: list[tuple[Sequence, Job]] = []
        self._to_score: dict[Job, Iterator[list[PromptScores] | None]] = {}
        self._news: dict[Job, list[News]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in_flight: dict[Job, int] = {}
        self._preparing = 0
        self._seconds_per_row = 1.0
        self._last_end = monotonic()
        self._thread = Thread(target=self._main, name="engine", daemon=True)

    # On the event loop.

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; jobs hear on this loop."""
        self._loop = loop
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises `Busy`, `Unavailable` and, for more responses than there is ever room for, `BadRequest`."""
        self._check_room(job.weight)
        if not self._in_flight:
            # Nobody waited meanwhile: idle time is not how long a row takes.
            self._last_end = monotonic()
        self._in_flight[job] = job.weight
        job.num_unfinished = len(job.asks) + bool(job.score_prompts)
        self._order(partial(self._begin, job))

    @contextmanager
    def preparing(self, weight: int) -> Iterator[None]:
        """Hold places for so many responses while their prompts are made, which takes long where they are long. Raises as `submit`."""
        self._check_room(weight)
        self._preparing += weight
        try:
            yield
        finally:
            self._preparing -= weight

    def _check_room(self, weight: int) -> None:
        if self._closing:
            raise Unavailable("the server is shutting down")
        if not self._thread.is_alive():
            raise Unavailable("the engine's thread has ended; restart the server")
        places = self.max_rows + self.max_queue
        if weight > places:
            raise BadRequest(f"the request asks for {weight} responses, the server holds {places} at once")
        taken = sum(self._in_flight.values()) + self._preparing
        if weight > places - taken:
            wait = math.ceil((weight - places + taken) * self._seconds_per_row)
            raise Busy(
                f"{taken} responses are decoding or waiting; try again later",
                min(LONGEST_RETRY, max(1, wait)),
            )

    def cancel(self, job: Job) -> None:
        """Forget a job: its rows and their memory are free before the next step. Finished ones stay as they are."""
        if self._in_flight.pop(job, None) is not None:
            self._order(partial(self._drop, job))

    def restart(self) -> None:
        """Throw the engine away and make a new one; what runs ends with 503."""
        self._order(self._renew)

    def health(self) -> Health:
        """How the engine is at this moment."""
        engine, busy_since = self._engine, self._busy_since
        stuck = busy_since is not None and monotonic() - busy_since > self.stuck_seconds
        if self._closing:
            status: Literal["ok", "dead", "stuck", "closing"] = "closing"
        elif engine is None or not self._thread.is_alive():
            status = "dead"
        else:
            status = "stuck" if stuck else "ok"
        waiting = running = 0
        used = 0.0
        if engine is not None:
            running, waiting = len(engine.scheduler.running), len(engine.scheduler.waiting)
            used = max(pool.num_used / pool.num_blocks for pool in engine.memory.pools)
        return Health(status, self._error, self._num_crashes, running, waiting + len(self._orders), used)

    @property
    def ledger(self) -> Ledger:
        """Counts of all that was decoded, crashed engines included."""
        total = Ledger()
        with self._books:
            total.add(self._past)
            if self._engine is not None:
                total.add(self._engine.ledger)
        return total

    async def close(self, timeout: float) -> None:
        """Finish what runs, for at most so many seconds; then end it."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await self._ended(timeout)
        self.abort()
        await self._ended(ABORT_SECONDS)

    def abort(self) -> None:
        """End what runs; whoever waits in `close` for it to finish does no more."""
        with self._wake:
            self._closing = self._aborting = True
            self._wake.notify()

    async def _ended(self, seconds: float) -> None:
        """Wait for the thread. Never in another thread: the event loop waits for those before it ends, even when told not to."""
        end, was_aborting = monotonic() + seconds, self._aborting
        while self._thread.is_alive() and monotonic() < end and self._aborting == was_aborting:
            await asyncio.sleep(POLL_SECONDS)

    def _order(self, order: Order) -> None:
        with self._wake:
            self._orders.append(order)
            self._wake.notify()

    def _hand_out(self, news: dict[Job, list[News]]) -> None:
        for job, each in news.items():
            for told in each:
                job.inbox.put_nowait(told)
                self._note_end(job, told)

    def _note_end(self, job: Job, told: News) -> None:
        if isinstance(told, ApiError):
            job.num_unfinished = 0
        elif isinstance(told, Scored) or told.event.finish_reason is not None:
            job.num_unfinished -= 1
            now = monotonic()
            self._seconds_per_row += 0.1 * (min(now - self._last_end, 60.0) - self._seconds_per_row)
            self._last_end = now
        if job.num_unfinished <= 0:
            self._in_flight.pop(job, None)

    # In the thread.

    def _main(self) -> None:
        while True:
            orders = self._taken_orders()
            self._busy_since = monotonic()
            try:
                if self._aborting:
                    self._end_all(Unavailable("the server is shutting down"))
                if self._seconds_to_renewal() == 0 and not self._closing:
                    with suppress(Unavailable):
                        self._renewed()
                for order in orders:
                    self._carry_out(order)
                self._turn()
            except BaseException as error:  # noqa: BLE001 - whatever it was, clients must hear of it
                self._die(error)
            self._busy_since = None
            self._deliver()
            if self._closing and not self._has_work():
                return

    def _carry_out(self, order: Order) -> None:
        """What breaks here must not take the other orders with it: somebody waits for each."""
        try:
            order()
        except Exception as error:  # noqa: BLE001
            self._die(error)

    def _taken_orders(self) -> list[Order]:
        """What the event loop wants; waits for it where nothing else is to do."""
        with self._wake:
            while not (self._orders or self._has_work() or self._closing):
                seconds = self._seconds_to_renewal()
                if seconds == 0:
                    break
                self._wake.wait(seconds)
            orders = list(self._orders)
            self._orders.clear()
        return orders

    def _seconds_to_renewal(self) -> float | None:
        """Until an engine is to be made anew; None where there is one."""
        return None if self._engine is not None else max(0.0, self._renew_at - monotonic())

    def _has_work(self) -> bool:
        engine = self._engine
        return bool(self._orders or self._to_score or (engine is not None and engine.has_work))

    def _turn(self) -> None:
        """Score a batch of prompts, and step the engine once."""
        if self._to_score:
            self._score()
        engine = self._engine
        if engine is None or not engine.has_work:
            return
        for event in engine.step():
            job = self._owners.get(event.sequence)
            if job is None:
                continue
            self._tell(job, Heard(job.rows[event.sequence], event))
            if event.finish_reason is not None:
                self._num_failures = 0
                del self._owners[event.sequence], job.rows[event.sequence]
        self._note_starts()

    def _begin(self, job: Job) -> None:
        """Give a job its rows; what goes wrong here is its own."""
        try:
            self._add_rows(job, self._usable_engine())
        except Exception as error:  # noqa: BLE001
            # Told first: putting rows away may fail as well.
            self._tell(job, _refusal(error))
            self._drop(job)

    def _usable_engine(self) -> Engine:
        if self._engine is not None:
            return self._engine
        if self._seconds_to_renewal():
            raise Unavailable("the engine crashed and is made anew; try again later")
        return self._renewed()

    def _add_rows(self, job: Job, engine: Engine) -> None:
        prefixes: dict[int, Prefix] = {}
        for index, ask in enumerate(job.asks):
            prefix = prefixes.setdefault(ask.prompt, Prefix(len(ask.prompt_ids)))
            row = engine.add(
                ask.prompt_ids,
                ask.sampling,
                ask.max_tokens,
                ask.seed,
                ask.sample,
                ask.policy,
                text=True,
                prefix=prefix if ask.shares_prompt else None,
            )
            job.rows[row] = index
            self._owners[row] = job
            self._unstarted.append((row, job))
        if job.score_prompts:
            assert job.scored_by is not None
            self._to_score[job] = job.scored_by.score(job.score_prompts, job.num_top)

    def _score(self) -> None:
        """Read one batch of one job's prompts; jobs take turns."""
        job = next(iter(self._to_score))
        batches = self._to_score.pop(job)
        try:
            scored = next(batches)
        except Exception as error:  # noqa: BLE001
            self._tell(job, _refusal(error))
            self._drop(job)
            return
        if scored is None:
            self._to_score[job] = batches
        else:
            self._tell(job, Scored(scored))

    def _drop(self, job: Job) -> None:
        for row in job.rows:
            self._owners.pop(row, None)
            if self._engine is not None:
                self._engine.abort(row)
        job.rows.clear()
        self._to_score.pop(job, None)

    def _note_starts(self) -> None:
        """Remember when rows got their place in the batch."""
        now = monotonic()
        for row, job in self._unstarted:
            if row.is_running or row.finish_reason is not None:
                job.started = job.started or now
        self._unstarted = [
            (row, job)
            for row, job in self._unstarted
            if not row.is_running and row.finish_reason is None and row in self._owners
        ]

    def _die(self, error: BaseException) -> None:
        logger.error("the engine crashed; it is made anew", exc_info=error)
        self._num_crashes += 1
        self._put_off_renewal()
        self._error = type(error).__name__
        self._throw_away(Unavailable(f"the engine crashed ({type(error).__name__}); try again"))

    def _throw_away(self, why: ApiError) -> None:
        # First of all, so that nobody asks a broken engine to put its rows away; and at once, so that no count ever falls.
        with self._books:
            if self._engine is not None:
                self._past.add(self._engine.ledger)
            self._engine = None
        self._end_all(why)
        self._unstarted.clear()

    def _end_all(self, why: ApiError) -> None:
        jobs = dict.fromkeys([*self._owners.values(), *self._to_score])
        for job in jobs:
            self._drop(job)
            self._tell(job, why)

    def _renew(self) -> None:
        """The new one is made in the next turn: it may take long, and who waits for the old one hears of it first."""
        self._throw_away(Unavailable("the engine is restarted; try again"))
        self._num_failures, self._renew_at = 0, 0.0

    def _put_off_renewal(self) -> None:
        pause = FIRST_PAUSE * 2.0 ** min(self._num_failures - 1, 30) if self._num_failures else 0.0
        self._num_failures += 1
        self._renew_at = monotonic() + min(pause, LONGEST_PAUSE)

    def _renewed(self) -> Engine:
        # The caches of the old one may hang on it in circles, and there is no room for two.
        gc.collect()
        try:
            self._engine = self._make_engine()
        except Exception as error:
            self._error = type(error).__name__
            logger.exception("the engine cannot be made anew")
            self._put_off_renewal()
            raise Unavailable("the engine cannot be made anew; see the server's log") from error
        self._error = None
        return self._engine

    def _tell(self, job: Job, news: News) -> None:
        self._news.setdefault(job, []).append(news)

    def _deliver(self) -> None:
        news, self._news = self._news, {}
        if not news:
            return
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._hand_out, news)
        except RuntimeError:
            logger.warning("the event loop ended before all was told")


def _refusal(error: Exception) -> ApiError:
    """What a client hears of what went wrong with its own request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, REFUSALS):
        return BadRequest(str(error))
    logger.error("a request failed", exc_info=error)
    return Failed(f"the request failed ({type(error).__name__}); see the server's log")
