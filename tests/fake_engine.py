"""An engine without weights: logits are a hash of the tokens that the fake KV cache holds.

If the books are wrong by one token anywhere, the hash, and so the response, is another one. The reference decoder
beside it is the slow, obvious version: one row, no cache, no scheduler.
"""

import hashlib
from collections.abc import Sequence as Seq
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from navtoken.engine.attention import Feed
from navtoken.engine.engine import Engine
from navtoken.engine.ledger import Ledger
from navtoken.engine.runner import Extension, Runner
from navtoken.engine.sampler import draw
from navtoken.engine.sequence import Sequence
from navtoken.model_card import ModelCard
from navtoken.policies import NoiseKeys, Purpose, Writer, uniform

VOCAB = 12
EOS = 0
CONTEXT = 40

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


def fake_logits(model: int, token_ids: Seq[int]) -> Tensor:
    """The next token's logits after these tokens, (V,): random, and a function of them all."""
    digest = hashlib.sha256(f"{model}:{','.join(map(str, token_ids))}".encode()).digest()
    return torch.from_numpy(np.frombuffer(digest, dtype=np.uint8)[:VOCAB].astype(np.float64)) / 40


class FakePair:
    """What the engine asks of a pair, models left out."""

    vocab_size = VOCAB

    def __init__(self) -> None:
        self.slm = self.llm = SimpleNamespace(card=CARD, eos_token_ids=frozenset([EOS]), reference="fake")

    def __getitem__(self, index: int) -> Any:
        return (self.slm, self.llm)[index]


class FakeRunner(Runner):
    """Holds token ids where a model holds keys and values."""

    def __init__(self, model: Writer, ledger: Ledger) -> None:
        super().__init__(model, ledger)
        self.slots: dict[int, list[int]] = {}
        self.num_tokens = 0
        self.num_passes = 0

    def forward(self, feeds: Seq[Feed], num_logits: int) -> Extension:
        assert len({feed.slot for feed in feeds}) == len(feeds)
        self.num_passes += 1
        for feed in feeds:
            held = self.slots.setdefault(feed.slot, [])
            assert feed.start <= len(held), "a hole in the cache"
            held[feed.start :] = feed.token_ids
            self.num_tokens += len(feed.token_ids)
        logits_NV = torch.stack([fake_logits(self.model, self.slots[feed.slot]) for feed in feeds])
        return Extension(logits_NV, torch.zeros(len(feeds), 1))

    def copy_slot(self, source: int, target: int, num_tokens: int) -> None:
        assert num_tokens <= len(self.slots[source])
        self.slots[target] = self.slots[source][:num_tokens]


class FakeEngine(Engine):
    """The engine with fake models."""

    def __init__(self, policy: Any, options: Any) -> None:
        super().__init__(FakePair(), policy, options)  # type: ignore[arg-type]

    def _make_runners(self) -> tuple[Runner, Runner]:
        return FakeRunner(Writer.SLM, self.ledger), FakeRunner(Writer.LLM, self.ledger)


def reference_response(request: Sequence, probability: float) -> tuple[list[int], list[int]]:
    """Response and writers under random routing, token by token: what any batching must reproduce."""
    token_ids, writers = list(request.token_ids[: request.prompt_len]), []
    while len(token_ids) < request.max_len:
        coin = uniform(
            *(np.array([part]) for part in (request.seed, request.sample, len(token_ids))), Purpose.ROUTING
        )
        writer = Writer.LLM if coin[0] < probability else Writer.SLM
        purpose = Purpose.LLM_WRITE if writer is Writer.LLM else Purpose.DRAFT
        keys = NoiseKeys(*(np.array([part]) for part in (request.seed, request.sample, len(token_ids))))
        row = Sequence(0, token_ids, request.prompt_len, request.sampling, request.max_len, 0, 0)
        token_ids.append(int(draw(fake_logits(writer, token_ids)[None], [row], keys, purpose)))
        writers.append(int(writer))
        if token_ids[-1] == EOS and not request.sampling.ignore_eos:
            break
    return token_ids[request.prompt_len :], writers
