"""What Prometheus reads: vLLM's metrics under our prefix, and what only a pair has.

Counts of tokens come from the engine's own ledger when they are asked for, so they cannot drift from it.
"""

from collections.abc import Iterator
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from navtoken.serving.engine_thread import EngineThread

PREFIX = "navtoken:"
SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
LONG_SECONDS = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
SHARES = tuple(part / 20 for part in range(21))


class EngineCollector(Collector):
    """Reads the engine when Prometheus asks."""

    def __init__(self, engine: EngineThread) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The engine's counts at this moment."""
        health, ledger = self._engine.health(), self._engine.ledger
        yield _gauge("num_requests_running", "Responses that decode.", health.num_running)
        yield _gauge("num_requests_waiting", "Responses that wait for a row.", health.num_waiting)
        yield _gauge("kv_cache_usage_perc", "Used part of the fuller KV cache, 0 to 1.", health.cache_used)
        yield _gauge("engine_up", "1 where the engine serves.", float(health.status in ("ok", "closing")))
        yield _counter("engine_crashes", "Engines that were thrown away.", health.num_crashes)
        yield _by_model("tokens_written", "Committed tokens by writer.", "writer", *ledger.written)
        yield _by_model("model_passes", "Forward passes.", "model", ledger.slm.passes, ledger.llm.passes)
        yield _by_model(
            "model_rows", "Rows of those passes.", "model", ledger.slm.row_passes, ledger.llm.row_passes
        )
        yield _by_model(
            "model_prefill_tokens",
            "Prompt tokens fed.",
            "model",
            ledger.slm.prefill_tokens,
            ledger.llm.prefill_tokens,
        )
        yield _counter(
            "llm_catchup_tokens", "Tokens of the SLM that the LLM read.", ledger.llm.catchup_tokens
        )
        yield _counter("discarded_drafts", "Drafts that were not committed.", ledger.discarded_drafts)
        yield _counter(
            "rolled_back_tokens", "Committed tokens that were taken back.", ledger.rolled_back_tokens
        )
        yield _counter("router_calls", "Drafts that a router judged.", ledger.router_calls)
        rows = ledger.llm.row_passes / max(1, ledger.llm.passes)
        yield _gauge("llm_rows_per_pass", "Rows of an LLM pass, on average since the start.", rows)
        yield _gauge("llm_share", "Tokens by the LLM / tokens, since the start.", ledger.llm_share)


class Metrics:
    """Everything of one server."""

    def __init__(self, engine: EngineThread) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))
        self.prompt_tokens = self._counted("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counted("generation_tokens", "Tokens of responses.")
        self.successes = Counter(
            f"{PREFIX}request_success", "Responses that ended.", ["finished_reason"], registry=self.registry
        )
        self.requests = Counter(
            f"{PREFIX}http_requests",
            "Requests by path and status.",
            ["path", "status"],
            registry=self.registry,
        )
        self.first_token = self._observed(
            "time_to_first_token_seconds", "Until the first token was final.", SECONDS
        )
        self.between_tokens = self._observed(
            "inter_token_latency_seconds", "Between two tokens of a response.", SECONDS
        )
        self.whole = self._observed(
            "e2e_request_latency_seconds", "From a request to its last token.", LONG_SECONDS
        )
        self.queued = self._observed("request_queue_time_seconds", "Until a request had a row.", LONG_SECONDS)
        self.prompt_length = self._observed("request_prompt_tokens", "Tokens of a request's prompt.", TOKENS)
        self.response_length = self._observed("request_generation_tokens", "Tokens of a response.", TOKENS)
        self.share = self._observed("request_llm_share", "LLM share of a response.", SHARES)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)

    def _counted(self, name: str, what: str) -> Counter:
        return Counter(PREFIX + name, what, registry=self.registry)

    def _observed(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, what, buckets=buckets, registry=self.registry)


class Pace:
    """Times between the tokens of one response."""

    def __init__(self, metrics: Metrics, submitted: float) -> None:
        self._metrics = metrics
        self._submitted = submitted
        self._last: float | None = None

    def token(self) -> None:
        """A token became final now."""
        now = monotonic()
        if self._last is None:
            self._metrics.first_token.observe(now - self._submitted)
        else:
            self._metrics.between_tokens.observe(now - self._last)
        self._last = now


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, what, value=value)


def _counter(name: str, what: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, what, value=value)


def _by_model(name: str, what: str, label: str, slm: float, llm: float) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, what, labels=[label])
    family.add_metric(["slm"], slm)
    family.add_metric(["llm"], llm)
    return family
