"""What decodes the same requests: the engine under some policy, and `transformers` in three ways, at its best settings.

Every candidate is asked for an exact number of tokens per request and answers with token ids, which are counted. A peer
whose best settings are not known beforehand tries a few on a small load and keeps the fastest; all trials are in the result.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from bare import PassLog, ledger_since, recorded_passes
from measuring import BenchmarkError
from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.policies import Writer, make_policy
from pairs import Load, Request, Text


@dataclass(frozen=True)
class Run:
    """One candidate in one round."""

    seconds: float
    num_tokens: int
    """Response tokens that were asked for and came."""
    log: PassLog | None = None
    """The engine's passes; None for peers."""

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


class Candidate(Protocol):
    """Decodes requests."""

    settings: dict[str, Any]
    """How, for the result."""

    def warm_up(self, load: Load, text: Text) -> None:
        """Whatever only a first run pays for; peers choose their settings here."""

    def run(self, requests: Sequence[Request]) -> Run:
        """Decode all of them."""

    def close(self) -> None:
        """Give memory and threads back."""


class EngineCandidate:
    """navtoken's engine; it lives through all rounds, as a server does, and each round's ledger is a difference."""

    def __init__(
        self,
        pair: ModelPair,
        policy: str,
        options: EngineOptions,
        temperature: float = 0.0,
    ) -> None:
        self.engine = Engine(pair, make_policy(policy), options)
        self.sampling = SamplingParams(temperature=temperature, ignore_eos=True)
        self.settings = {"policy": policy, "temperature": temperature, **vars(options)}

    @property
    def min_rows(self) -> int:
        """B of the batching rule, as it stands after the runs."""
        return self.engine.rule.min_rows(self.engine.options.max_rows)

    def warm_up(self, load: Load, text: Text) -> None:
        """A few short requests, together and one alone, so that code and memory are there."""
        for rows in (self.engine.options.max_rows, 1):
            self.run(_small(load, rows).requests(text, seed=-1 % 2**32))

    def run(self, requests: Sequence[Request]) -> Run:
        before = self.engine.ledger.as_dict()
        with recorded_passes(self.engine) as passes:
            start = time.perf_counter()
            for request in requests:
                self.engine.add(request.prompt_ids, self.sampling, request.num_tokens, seed=request.seed)
            streamed = sum(event.token_id is not None for event in self.engine.run())
            seconds = time.perf_counter() - start
        _check_count("the engine", streamed, sum(request.num_tokens for request in requests))
        return Run(seconds, streamed, PassLog(passes, ledger_since(before, self.engine.ledger)))

    def close(self) -> None:
        del self.engine


@dataclass
class Peer:
    """`transformers`, somehow; subclasses decode."""

    model: Any
    settings: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def run(self, requests: Sequence[Request]) -> Run:
        start = time.perf_counter()
        responses = self.decode(requests)
        seconds = time.perf_counter() - start
        for request, response in zip(requests, responses, strict=True):
            _check_count(type(self).__name__, len(response), request.num_tokens)
        return Run(seconds, sum(map(len, responses)))

    def decode(self, requests: Sequence[Request]) -> list[list[int]]:
        """Token ids of the responses."""
        raise NotImplementedError

    def close(self) -> None:
        pass


@dataclass
class Generate(Peer):
    """`transformers` generate: static batches in order of arrival, padded on the left, run to their longest request.

    Without `torch.compile`, which `transformers` does not document for CPUs; on an accelerator its static cache compiles.
    """

    concurrency: int

    def warm_up(self, load: Load, text: Text) -> None:
        """Choose the cache."""
        requests = _small(load, min(self.concurrency, 16), prompt=64).requests(text, seed=1)
        self.settings = fastest(
            self, [{"cache_implementation": None}, {"cache_implementation": "static"}], requests
        )
        self.settings["attention"] = self.model.config._attn_implementation

    def decode(self, requests: Sequence[Request]) -> list[list[int]]:
        batches = [requests[i : i + self.concurrency] for i in range(0, len(requests), self.concurrency)]
        return [response for batch in batches for response in self._batch(batch)]

    @torch.inference_mode()
    def _batch(self, requests: Sequence[Request]) -> list[list[int]]:
        longest = max(len(request.prompt_ids) for request in requests)
        pads = [longest - len(request.prompt_ids) for request in requests]
        ids = [[0] * pad + list(request.prompt_ids) for pad, request in zip(pads, requests, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
        device = self.model.device
        out = self.model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=max(request.num_tokens for request in requests),
            do_sample=False,
            cache_implementation=self.settings.get("cache_implementation"),
        )
        responses = out[:, longest:].tolist()
        # What a row decodes after its own end, because its batch goes on, is not counted.
        return [response[: request.num_tokens] for request, response in zip(requests, responses, strict=True)]


@dataclass
class Assisted(Peer):
    """`transformers` assisted generation (`assistant_model=`), which decodes one request at a time."""

    assistant: Any
    temperature: float

    def warm_up(self, load: Load, text: Text) -> None:
        """Choose the number of drafts, and whether an unsure assistant stops early (its default)."""
        ways = [
            {
                "num_assistant_tokens": num,
                "num_assistant_tokens_schedule": schedule,
                "assistant_confidence_threshold": least,
            }
            for num, schedule, least in ((20, "constant", 0.4), (4, "constant", 0.0), (5, "heuristic", 0.0))
        ]
        requests = _small(load, 1, prompt=64, tokens=24).requests(text, seed=1)
        self.settings = fastest(self, ways, requests)

    def decode(self, requests: Sequence[Request]) -> list[list[int]]:
        for name, value in self.settings.items():
            setattr(self.assistant.generation_config, name, value)
        return [self._one(request) for request in requests]

    @torch.inference_mode()
    def _one(self, request: Request) -> list[int]:
        sampled = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        ids = torch.tensor([list(request.prompt_ids)], device=self.model.device)
        torch.manual_seed(request.seed)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=self.assistant,
            max_new_tokens=request.num_tokens,
            **(sampled if self.temperature else {"do_sample": False}),
        )
        response: list[int] = out[0, ids.shape[1] :].tolist()
        return response


@dataclass
class Continuous(Peer):
    """`transformers` continuous batching, through its manager: only that takes a length per request.

    Its cache is sized for the load; what it would take by default is 60 % of the memory. Its thread starts before the clock.
    """

    concurrency: int
    manager: Any = None

    def warm_up(self, load: Load, text: Text) -> None:
        """Choose how many tokens of prompts and responses go into one batch."""
        ways = [
            {
                "max_batch_tokens": num + self.concurrency,
                "max_requests_per_batch": self.concurrency,
                "page_size": 64,
                "num_blocks": self.concurrency * (2 + load.context // 64),
                "allow_block_sharing": False,
            }
            for num in (load.prompt_tokens[-1], 1024)
        ]
        requests = _small(load, min(self.concurrency, 16), prompt=64).requests(text, seed=1)
        self.settings = fastest(self, ways, requests, changed=self._make)
        self._make()
        self.settings["attention"] = self.model.config._attn_implementation

    def run(self, requests: Sequence[Request]) -> Run:
        with self.serving():
            return super().run(requests)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Its thread runs, and has its cache."""
        self.manager.start()
        while self.manager.is_running() and self.manager.batch_processor is None:
            time.sleep(0.001)
        try:
            yield
        finally:
            self.manager.stop(block=True, timeout=60, keep_for_next_session=True)

    def decode(self, requests: Sequence[Request]) -> list[list[int]]:
        names = [
            self.manager.add_request(list(each.prompt_ids), max_new_tokens=each.num_tokens)
            for each in requests
        ]
        results: dict[str, list[int]] = {}
        while len(results) < len(names):
            result = self.manager.get_result(timeout=1)
            if result is None and not self.manager.is_running():
                raise BenchmarkError(
                    f"its thread ended: {self.manager.background_thread_status.fatal_error!r}"
                )
            if result is not None and result.error is not None:
                raise BenchmarkError(result.error)
            if result is not None and result.is_finished():
                results[result.request_id] = result.generated_tokens
        return [results[name] for name in names]

    def close(self) -> None:
        if self.manager is not None:
            self.manager.destroy()
            self.model.destroy_cached_continuous_batching_manager()
            self.manager = None

    def _make(self) -> None:
        self.close()
        self.manager = self.model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                **{name: value for name, value in self.settings.items() if name != "trials"}
            ),
        )


def cache_gib(pair: ModelPair, load: Load, rows: int) -> float:
    """Enough for all rows at their longest, with a block to spare for each: several engines share this machine."""
    per_token = sum(pair[model].card.kv_bytes for model in Writer)
    return (rows + 1) * (load.context + 512) * per_token / 2**30


def fastest(
    peer: Any,
    ways: Sequence[dict[str, Any]],
    requests: Sequence[Request],
    changed: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Of several settings the one that decodes these requests fastest, second runs counted; with the trials."""
    trials = []
    for way in ways:
        peer.settings = dict(way)
        if changed:
            changed()
        seconds = [peer.run(requests).seconds for _ in range(2)][-1]
        trials.append({"settings": way, "seconds": seconds})
    best = min(trials, key=lambda trial: trial["seconds"])
    return {**best["settings"], "trials": trials}


def _small(load: Load, num_requests: int, prompt: int = 8, tokens: int = 12) -> Load:
    """A load that warms up: short, and never longer than the real one."""
    prompt = min(prompt, load.prompt_tokens[0])
    tokens = min(tokens, load.response_tokens[0])
    return Load(num_requests, (prompt, prompt), (tokens, tokens))


def _check_count(who: str, got: int, wanted: int) -> None:
    """Both sides' tokens are counted; a candidate that decodes fewer would look fast."""
    if got != wanted:
        raise BenchmarkError(
            f"{who} decoded {got} tokens where {wanted} were asked for; its speed means nothing"
        )
