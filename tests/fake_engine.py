"""An engine without weights: logits are a hash of what the fake KV cache holds at the places that block tables name.

If the books are wrong by one token anywhere (a wrong block, a copy not made, a block that another row wrote into), the
hash, and so the response, is another one. The reference decoder beside it is the slow, obvious version: one row, no
cache, no scheduler, its own arithmetic.
"""

import re
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from navtoken.engine.blocks import BlockPool
from navtoken.engine.engine import Engine
from navtoken.engine.ledger import Ledger
from navtoken.engine.memory import Memory
from navtoken.engine.options import EngineOptions, SamplingParams
from navtoken.engine.packing import Feed
from navtoken.engine.runner import Extension, Runner
from navtoken.engine.sequence import Sequence
from navtoken.model_card import ModelCard
from navtoken.policies import Policy, Purpose, Writer, uniform
from navtoken.policies.hindsight import HindsightPolicy
from navtoken.policies.r_stitch import RStitchPolicy
from navtoken.policies.rules import EntropyPolicy, RandomPolicy
from navtoken.policies.speculative import SpeculativePolicy

EOS = 0
CONTEXT = 40
BLOCK_SIZE = 4

PIECES = (b"", b"a", b"b", b"ab", b"ba", b"c", b" ", b"\xc3", b"\xa9", b"abc", b"cc", b"\n")
"""What each token stands for; 7 and 8 are two halves of a character."""
VOCAB = len(PIECES)

CARD = ModelCard(
    parameters=1000,
    active_parameters=1000,
    embedding_parameters=100,
    head_parameters=100,
    tied=False,
    attention_flops=4,
    kv_bytes=8,
    weight_bytes=4000,
    context=CONTEXT,
)


class FakeTokenizer:
    """Decodes what a real tokenizer's keywords ask for."""

    def decode(self, ids: Seq[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert skip_special_tokens and not clean_up_tokenization_spaces
        return b"".join(PIECES[token] for token in ids).decode(errors="replace")


def text_of(ids: Seq[int]) -> str:
    """The text of a whole response."""
    return FakeTokenizer().decode(ids, True, False)


class FakePair:
    """What the engine asks of a pair, models left out. Each model has its own end tokens."""

    vocab_size = VOCAB
    shards = 1
    tokenizer = FakeTokenizer()

    def __init__(self, slm_eos: Seq[int] = (EOS,), llm_eos: Seq[int] = (EOS,)) -> None:
        self.slm, self.llm = (
            SimpleNamespace(card=card, eos_token_ids=frozenset(eos), reference="fake")
            for card, eos in ((replace(CARD, weight_bytes=400), slm_eos), (CARD, llm_eos))
        )

    def __getitem__(self, index: int) -> Any:
        return (self.slm, self.llm)[index]


def held_for(before: bytes, token_id: int) -> bytes:
    """What a cache holds for one token: a function of it and of all that is held before it."""
    return sha256(b"%d " % token_id + before).digest()[:8]


@lru_cache(maxsize=200_000)
def held_after(token_ids: tuple[int, ...]) -> bytes:
    """What a cache without faults holds after these tokens."""
    if not token_ids:
        return b""
    before = held_after(token_ids[:-1])
    return before + held_for(before, token_ids[-1])


@lru_cache(maxsize=200_000)
def fake_logits(model: int, held: bytes) -> torch.Tensor:
    """The next token's logits (V,) where the cache holds this: random, without ties; the models agree now and then."""
    common, own = (
        np.frombuffer(sha256(who + held).digest()[:VOCAB], np.uint8) for who in (b"both", b"%d" % model)
    )
    return torch.from_numpy(common / 90 + own / 120 + np.arange(VOCAB) * 1e-5)


class FakeRunner(Runner):
    """Holds hashes at physical places where a model holds keys and values."""

    def __init__(self, model: Writer, ledger: Ledger, num_blocks: int, block_size: int) -> None:
        super().__init__(model, ledger)
        self.block_size = block_size
        self.pool: list[bytes | None] = [None] * (num_blocks * block_size)
        self.num_tokens = 0
        self.num_passes = 0
        self.sizes: list[tuple[int, int]] = []
        """Rows and tokens of each pass."""

    def forward(self, feeds: Seq[Feed], copies: Seq[tuple[int, int]]) -> Extension:
        self._copy(copies)
        self._check_apart(feeds)
        self.num_passes += 1
        self.sizes.append((len(feeds), sum(len(feed.token_ids) for feed in feeds)))
        logits = [each for feed in feeds for each in self._hold(feed)]
        logits_MV = torch.stack(logits) if logits else torch.zeros(0, VOCAB, dtype=torch.float64)
        return Extension(logits_MV, torch.zeros(len(logits), 1))

    def refuse(self, num_bad: int, num_logits: int) -> Exception:
        raise AssertionError("fake logits are numbers")

    def _copy(self, copies: Seq[tuple[int, int]]) -> None:
        size = self.block_size
        read = [(target, self.pool[source * size : (source + 1) * size]) for source, target in copies]
        assert len({target for target, _ in read}) == len(read), "two copies into one block"
        for target, content in read:
            self.pool[target * size : (target + 1) * size] = content

    def _check_apart(self, feeds: Seq[Feed]) -> None:
        """Nobody writes into a block that another row of the pass reads or writes."""
        users = Counter(
            block for feed in feeds for block in set(feed.table[: -(-feed.end // self.block_size)])
        )
        for feed in feeds:
            for index in range(feed.start // self.block_size, -(-feed.end // self.block_size)):
                assert users[feed.table[index]] == 1, "a block is written that another row uses"

    def _hold(self, feed: Feed) -> list[torch.Tensor]:
        places = [
            feed.table[at // self.block_size] * self.block_size + at % self.block_size
            for at in range(feed.end)
        ]
        cached = [self.pool[place] for place in places[: feed.start]]
        assert None not in cached, "a hole in the cache"
        held, said = b"".join(each for each in cached if each is not None), []
        for place, token_id in zip(places[feed.start :], feed.token_ids, strict=True):
            self.pool[place] = held_for(held, token_id)
            held += self.pool[place] or b""
            said.append(held)
        self.num_tokens += len(feed.token_ids)
        return [fake_logits(self.model, each) for each in said[len(said) - feed.num_logits :]]


class FakeEngine(Engine):
    """The engine with fake models."""

    def __init__(
        self,
        policy: Policy,
        options: EngineOptions,
        num_blocks: int | None = None,
        block_size: int = BLOCK_SIZE,
        pair: FakePair | None = None,
        **others: Any,
    ) -> None:
        """`num_blocks` None is ample."""
        self.num_blocks = num_blocks or options.max_rows * (CONTEXT // block_size + 3)
        self.block_size = block_size
        super().__init__(pair or FakePair(), policy, options, **others)  # type: ignore[arg-type]

    def _make_runners(self) -> Any:
        pools = (BlockPool(self.num_blocks, self.block_size), BlockPool(self.num_blocks, self.block_size))
        slm, llm = (FakeRunner(model, self.ledger, self.num_blocks, self.block_size) for model in Writer)
        return Memory(pools), (slm, llm)

    def check(self) -> None:
        """Assert the books' invariants; that no block is named once everything has ended."""
        rows = [*self.scheduler.running, *self.scheduler.waiting]
        for row in rows:
            row.check()
        self.memory.check(rows)
        if not rows:
            assert not self.memory.prefixes
            assert all(pool.num_used == 0 for pool in self.memory.pools)


class Reference:
    """One request, decoded token by token: what any batch, cache and batching rule must reproduce."""

    def __init__(self, request: Sequence, eos: Seq[int] = (EOS,)) -> None:
        self.request = request
        self.eos = eos
        self.token_ids = list(request.token_ids[: request.prompt_len])
        self.writers: list[int] = []
        self.finish_reason: str | None = None
        self.control = Writer.SLM
        decode = self._decoder(request.policy)
        while self.finish_reason is None:
            decode(request.policy)

    def _decoder(self, policy: Policy) -> Any:
        for kind, decode in (
            (SpeculativePolicy, self._speculate),
            (HindsightPolicy, self._look_back),
            (RStitchPolicy, self._stitch),
        ):
            if isinstance(policy, kind):
                return decode
        return self._route

    @property
    def response_ids(self) -> list[int]:
        return self.token_ids[self.request.prompt_len :]

    def probs(self, model: Writer, token_ids: Seq[int]) -> np.ndarray:
        """What the next token is drawn from, (V,)."""
        sampling, response = self.request.sampling, token_ids[self.request.prompt_len :]
        logits = fake_logits(model, held_after(tuple(token_ids))).numpy().copy()
        temperature = _temperature(sampling, logits)
        for token in range(VOCAB):
            if token in token_ids:
                logits[token] *= sampling.repetition_penalty ** (-1 if logits[token] > 0 else 1)
            logits[token] -= sampling.frequency_penalty * response.count(token)
            logits[token] -= sampling.presence_penalty * (token in response)
        for token, bias in sampling.logit_bias:
            logits[token] += bias
        if len(response) < sampling.min_tokens:
            logits[list(self.eos)] = -np.inf
        if temperature == 0:
            return np.eye(VOCAB)[logits.argmax()]
        order = np.argsort(-logits, kind="stable")
        probs = np.exp((logits - logits.max()) / temperature)
        probs /= probs.sum()
        before = np.cumsum(probs[order]) - probs[order]
        probs[order[before >= sampling.top_p]] = 0
        return probs / probs.sum()

    def _route(self, policy: Policy) -> None:
        writer = next(iter(policy.models))
        if len(policy.models) == 2:
            writer = Writer(int(self._hands_over(policy, self.token_ids)))
        self._write(writer)

    def _hands_over(self, rule: Policy | None, token_ids: Seq[int]) -> bool:
        """Does a rule that routes hand the next token over to the LLM?"""
        if isinstance(rule, RandomPolicy):
            return self._noise(Purpose.ROUTING, len(token_ids)) < rule.probability
        if isinstance(rule, EntropyPolicy):
            assert rule.threshold is not None
            return _entropy(plain_probs(Writer.SLM, token_ids)) > rule.threshold
        assert rule is None, "the reference does not know this rule"
        return False

    def _stitch(self, policy: RStitchPolicy) -> None:
        assert policy.threshold is not None
        most = policy.threshold * np.log(VOCAB)
        if self.control is Writer.SLM and _entropy(plain_probs(Writer.SLM, self.token_ids)) > most:
            self.control = Writer.LLM
        writer = self.control
        if writer is Writer.LLM and _entropy(plain_probs(Writer.LLM, self.token_ids)) <= most:
            self.control = Writer.SLM
        self._write(writer)

    def _look_back(self, policy: HindsightPolicy) -> None:
        drafted, num = list(self.token_ids), 0
        while num < policy.every and not self._hands_over(policy.base, drafted):
            drafted.append(self._next(Writer.SLM, drafted))
            num += 1
            if self._end(drafted):
                break
        for draft in drafted[len(self.token_ids) :]:
            if plain_probs(Writer.LLM, self.token_ids)[draft] < policy.eps:
                break
            self._append(draft, Writer.SLM)
            if self.finish_reason is not None:
                return
        self._write(Writer.LLM)

    def _write(self, writer: Writer) -> None:
        self._append(self._next(writer, self.token_ids), writer)

    def _next(self, writer: Writer, token_ids: Seq[int]) -> int:
        purpose = Purpose.LLM_WRITE if writer is Writer.LLM else Purpose.DRAFT
        return _pick(self.probs(writer, token_ids), self._noise(purpose, len(token_ids)))

    def _speculate(self, policy: SpeculativePolicy) -> None:
        state = self.__dict__.setdefault("state", policy.start([]))
        drafted, drafts_probs = list(self.token_ids), []
        while len(drafts_probs) < state.num_drafts and (not drafts_probs or not self._end(drafted)):
            drafts_probs.append(self.probs(Writer.SLM, drafted))
            drafted.append(_pick(drafts_probs[-1], self._noise(Purpose.DRAFT, len(drafted))))
        drafts = drafted[len(self.token_ids) :]
        for num_kept, (draft, q) in enumerate(zip(drafts, drafts_probs, strict=True)):
            p = self.probs(Writer.LLM, self.token_ids)
            if self._noise(Purpose.ACCEPTANCE) * q[draft] >= p[draft]:
                policy.settle(state, num_kept, len(drafts))
                return self._append(_pick(np.maximum(p - q, 0), self._noise(Purpose.RESIDUAL)), Writer.LLM)
            self._append(draft, Writer.SLM)
            if self.finish_reason is not None:
                return None
        policy.settle(state, len(drafts), len(drafts))
        p = self.probs(Writer.LLM, self.token_ids)
        return self._append(_pick(p, self._noise(Purpose.LLM_WRITE)), Writer.LLM)

    def _append(self, token_id: int, writer: Writer) -> None:
        self.token_ids.append(token_id)
        self.writers.append(int(writer))
        self.finish_reason = self._end(self.token_ids)

    def _end(self, token_ids: Seq[int]) -> str | None:
        sampling, response = self.request.sampling, token_ids[self.request.prompt_len :]
        if len(response) >= sampling.min_tokens:
            if response[-1] in self.eos and not sampling.ignore_eos:
                return "stop"
            # Earlier occurrences were whole before `min_tokens` and do not count.
            known = len(text_of(response[:-1]).rstrip("\ufffd"))
            ends = (match.end() for stop in sampling.stop for match in _occurrences(stop, text_of(response)))
            if any(end > known for end in ends):
                return "stop"
        return "length" if len(token_ids) >= self.request.max_len else None

    def _noise(self, purpose: Purpose, position: int | None = None) -> float:
        key = (self.request.seed, self.request.sample, len(self.token_ids) if position is None else position)
        return float(uniform(*(np.array([part]) for part in key), purpose)[0])


def plain_probs(model: Writer, token_ids: Seq[int]) -> np.ndarray:
    """A model's probabilities of the next token at T = 1, without sampling parameters, (V,)."""
    return _softmax(fake_logits(model, held_after(tuple(token_ids))).numpy())


def _softmax(logits: np.ndarray) -> np.ndarray:
    probs: np.ndarray = np.exp(logits - logits.max())
    return probs / probs.sum()


def _entropy(probs: np.ndarray) -> float:
    return float(-(probs * np.log(probs)).sum())


def _temperature(sampling: SamplingParams, logits: np.ndarray) -> float:
    """By the entropy of the logits as the model gave them, where forking tokens have a temperature of their own."""
    if sampling.fork_threshold is None or _entropy(_softmax(logits)) <= sampling.fork_threshold:
        return sampling.temperature
    assert sampling.fork_temperature is not None
    return sampling.fork_temperature


def _occurrences(stop: str, text: str) -> list[re.Match]:
    """All of them, those that overlap too."""
    at_each = (re.compile(re.escape(stop)).match(text, start) for start in range(len(text)))
    return [match for match in at_each if match]


def _pick(weights: np.ndarray, noise: float) -> int:
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, noise * cumulative[-1], side="right"))
