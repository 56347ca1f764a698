"""A thousand requests of every kind at once, aborted at random, in a cache that is too small for them."""

from random import Random

import pytest

from fake_engine import BLOCK_SIZE, CONTEXT, FakeEngine, Reference
from fake_requests import POLICIES, random_request
from navtoken.engine import EngineOptions, Sequence, State
from navtoken.policies import Policy, make_policy

NUM_REQUESTS = 1000
MAX_ROWS = 24


class Crowd:
    """Sends requests while others run, and aborts some of them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        options = EngineOptions(max_rows=MAX_ROWS, prefill_chunk=7)
        # A third of what all rows could fill.
        num_blocks = MAX_ROWS * (CONTEXT // BLOCK_SIZE) // 3
        self.engine = FakeEngine(make_policy("slm"), options, num_blocks)
        self.rows: list[Sequence] = []
        self.told: dict[Sequence, list[int]] = {}
        self.reasons: dict[Sequence, str] = {}
        self.aborted_in: set[str] = set()

    def run(self) -> None:
        while len(self.rows) < NUM_REQUESTS or self.engine.has_work:
            while len(self.rows) < NUM_REQUESTS and len(self.engine.scheduler.waiting) < MAX_ROWS:
                self._send()
            for event in self.engine.step():
                self.told.setdefault(event.sequence, [])
                if event.token_id is not None:
                    self.told[event.sequence].append(event.token_id)
                if event.finish_reason is not None:
                    assert event.sequence not in self.reasons, "a request ended twice"
                    self.reasons[event.sequence] = event.finish_reason
            self.engine.check()
            if self.random.random() < 0.4:
                self._abort()

    def _send(self) -> None:
        policy, request = self._policy(), random_request(self.random)
        kind = self.random.random()
        if kind < 0.2:
            self.rows += self.engine.add_samples(self.random.randint(2, 4), policy=policy, **request)
        elif kind < 0.3 and self.rows:
            parent = self.random.choice(self.rows[-40:])
            if parent.prompt_len + parent.num_response < CONTEXT - 1:
                self.rows.append(self.engine.fork(parent, max_tokens=9))
        else:
            self.rows.append(self.engine.add(policy=policy, **request))

    def _policy(self) -> Policy:
        share = round(self.random.random(), 3)
        return make_policy(self.random.choice((*POLICIES, *[f"random:{share}"] * 5)))

    def _abort(self) -> None:
        alive = [*self.engine.scheduler.running, *self.engine.scheduler.waiting]
        if alive:
            row = self.random.choice(alive)
            self.aborted_in.add("provisional" if row.num_provisional else row.state.value)
            self.engine.abort(row)


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("navtoken.engine.scheduler.SHORT", 4)
        crowd = Crowd(seed=1)
        crowd.run()
    return crowd


def test_every_request_ends_in_the_right_state(crowd: Crowd) -> None:
    assert len(crowd.rows) >= NUM_REQUESTS
    for row in crowd.rows:
        row.check()
        assert row.state is State.FINISHED
        assert crowd.reasons[row] == row.finish_reason
        assert crowd.told[row] == row.response_ids


def test_every_response_is_what_it_would_be_alone(crowd: Crowd) -> None:
    for row in crowd.rows:
        alone, num = Reference(row), row.num_response
        if row.finish_reason == "abort":
            assert row.response_ids == alone.response_ids[:num]
        else:
            assert row.response_ids == alone.response_ids
            assert row.finish_reason == alone.finish_reason
        assert row.record.writer == alone.writers[:num]


def test_no_block_is_leaked(crowd: Crowd) -> None:
    assert not crowd.engine.memory.prefixes
    assert all(pool.num_used == 0 for pool in crowd.engine.memory.pools)
    assert crowd.engine.cache_bytes() == (0, 0)


def test_the_run_was_a_hard_one(crowd: Crowd) -> None:
    reasons = list(crowd.reasons.values())
    assert crowd.engine.scheduler.num_put_back > 50
    assert min(reasons.count(reason) for reason in ("stop", "length", "abort")) > 50
    assert crowd.aborted_in == {"waiting", "ready", "parked", "provisional"}


def test_the_ledgers_of_the_requests_sum_up_to_the_engines(crowd: Crowd) -> None:
    whole = crowd.engine.ledger
    for model in (0, 1):
        mine = [row.ledger.models[model] for row in crowd.rows]
        assert whole.models[model].tokens == sum(count.tokens for count in mine)
        assert whole.models[model].head_tokens == sum(count.head_tokens for count in mine)
        assert whole.written[model] == sum(row.record.writer.count(model) for row in crowd.rows)
    for name in ("discarded_drafts", "rolled_back_tokens", "judged_drafts", "accepted_drafts"):
        assert getattr(whole, name) == sum(getattr(row.ledger, name) for row in crowd.rows)
