"""The pairs that the benchmarks decode with, by name, and how much is asked of each.

All but the embedded pair have random weights, made in memory from a seed: speed does not depend on what weights say.
Their tokenizer knows as many tokens as the models have and spells none of them. At temperature T the logits of such models
differ by about 0.64 / T in standard deviation, so the temperature sets how often a draft passes exact rejection sampling:
about 0.65 of them at 1 and 0.82 at 2. Greedily, hardly ever: random models agree on nothing.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

from measuring import BenchmarkError
from navtoken.checkpoints import LoadedModel, ModelPair, load_pair
from navtoken.embedded.corpus import FAMILIES, examples
from navtoken.embedded.tokenizer import ASSISTANT, USER
from navtoken.packed_linear import pack_linears
from navtoken.policies import Writer


@dataclass(frozen=True)
class Request:
    """What is asked of every candidate alike."""

    prompt_ids: Sequence[int]
    num_tokens: int
    """Response tokens wanted, exactly: no end of sequence stops it earlier."""
    seed: int


Text = Callable[[int, int], Sequence[int]]
"""Token ids of a prompt, by its length and a seed."""


def random_text(vocab_size: int) -> Text:
    """Any tokens but the first two, which pad and end."""
    return lambda length, seed: np.random.default_rng(seed).integers(2, vocab_size, length).tolist()


def embedded_text(pair: ModelPair) -> Text:
    """Problems of the embedded families and the beginnings of their traces: drafts pass as often as they do in use."""

    def text(length: int, seed: int) -> Sequence[int]:
        for prompt, trace in examples(FAMILIES, 1000, seed):
            ids: list[int] = pair.tokenizer(f"{USER}{prompt}{ASSISTANT} {trace}")["input_ids"]
            if len(ids) >= length:
                return ids[:length]
        raise BenchmarkError(
            f"no trace of the embedded families has {length} tokens; ask for shorter prompts"
        )

    return text


@dataclass(frozen=True)
class Load:
    """Requests of one run; all candidates of a round get the same."""

    num_requests: int
    prompt_tokens: tuple[int, ...]
    """Lengths of prompts, as evenly spaced quantiles from the shortest to the longest."""
    response_tokens: tuple[int, ...]
    """Lengths of responses, likewise; every round has the same ones."""

    def requests(self, text: Text, seed: int) -> list[Request]:
        """Rounds differ by seed: what one has cached is of no use to the next."""
        rng = np.random.default_rng(seed)
        lengths = np.random.default_rng(0)
        prompts = lengths.permutation(_spread(self.prompt_tokens, self.num_requests))
        responses = lengths.permutation(_spread(self.response_tokens, self.num_requests))
        return [
            Request(text(int(prompt), int(rng.integers(2**31))), int(response), int(rng.integers(2**31)))
            for prompt, response in zip(prompts, responses, strict=True)
        ]

    @property
    def context(self) -> int:
        """Positions that the longest request can reach."""
        return self.prompt_tokens[-1] + self.response_tokens[-1]


@dataclass(frozen=True)
class PairSource:
    """How a pair is made, and what is asked of it."""

    name: str
    make: Callable[[str], ModelPair]
    """The pair, on a device."""
    loads: dict[int, Load]
    """By concurrency; others take that of the next lower one, scaled."""
    needs_accelerator: bool = False
    speculative_temperature: float = 0.0
    """At which speculation is measured; 0 where the models agree enough to do so greedily."""
    text: Callable[[ModelPair], Text] = lambda pair: random_text(pair.vocab_size)
    """What prompts are made of."""

    def load(self, concurrency: int) -> Load:
        """What is asked at this concurrency."""
        if concurrency in self.loads:
            return self.loads[concurrency]
        base = max((known for known in self.loads if known < concurrency), default=min(self.loads))
        known = self.loads[base]
        num_requests = max(2, round(known.num_requests * concurrency / base))
        return Load(num_requests, known.prompt_tokens, known.response_tokens)


def device_name() -> str:
    """The accelerator if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def source_named(name: str) -> PairSource:
    """Raises `BenchmarkError` for an unknown name, and for a pair that only an accelerator can hold where there is none."""
    if name not in PAIRS:
        raise BenchmarkError(f"no pair is called '{name}'; there are {', '.join(PAIRS)}")
    source = PAIRS[name]
    if source.needs_accelerator and device_name() == "cpu":
        small = [other for other, each in PAIRS.items() if not each.needs_accelerator]
        raise BenchmarkError(
            f"the pair '{name}' is made on an accelerator and this machine has none; take {' or '.join(small)}"
        )
    return source


def device_of(source: PairSource) -> str:
    """Small pairs stay on the CPU, so that figures of different machines can be compared."""
    return device_name() if source.needs_accelerator else "cpu"


def packed_pair(source: PairSource) -> ModelPair:
    """A pair as the engine runs it: linear layers packed where that works."""
    pair = source.make(device_of(source))
    for model in Writer:
        pack_linears(pair[model].model)
    return pair


def plain_copy(loaded: LoadedModel) -> Any:
    """The `transformers` model for the peers: as loaded, never packed, with no token that ends a response.

    On an accelerator weights are not copied: nothing repacks them there, and twice the LLM would not fit.
    """
    model = loaded.model if loaded.model.device.type != "cpu" else copy.deepcopy(loaded.model)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def packed_and_plain(source: PairSource) -> tuple[ModelPair, dict[Writer, Any]]:
    """The pair as the engine runs it, and both models as the peers do."""
    pair = source.make(device_of(source))
    # Packing replaces layers in place.
    plain = {model: plain_copy(pair[model]) for model in Writer}
    for model in Writer:
        pack_linears(pair[model].model)
    return pair, plain


@cache
def wordless_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are numbers; id 0 is padding."""
    tokenizer = Tokenizer(models.WordLevel({str(index): index for index in range(vocab_size)}, unk_token="1"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0", eos_token="1")


def random_model(config: Any, seed: int, device: str, reference: str, dtype: str = "bfloat16") -> LoadedModel:
    """A model with random weights, made on its device. The usual initialisation (0.02) keeps activations finite."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return LoadedModel(model, wordless_tokenizer(config.vocab_size), reference)


def _random_pair(name: str, slm: Any, llm: Any) -> Callable[[str], ModelPair]:
    def make(device: str) -> ModelPair:
        # Heads may be padded to different sizes; what both can write is what the smaller one has.
        small = random_model(slm, 1, device, f"random:{name}-slm")
        large = random_model(llm, 2, device, f"random:{name}-llm")
        small.tokenizer = large.tokenizer = min(
            (small.tokenizer, large.tokenizer), key=lambda each: each.vocab_size
        )
        return ModelPair(small, large)

    return make


def _spread(quantiles: tuple[int, ...], num: int) -> np.ndarray:
    """`num` whole numbers distributed so, from the lowest to the highest; a single one is the middle."""
    places = np.linspace(0, 1, num) if num > 1 else np.array([0.5])
    return np.interp(places, np.linspace(0, 1, len(quantiles)), quantiles).round().astype(int)


def _qwen3(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, head_dim: int, **more: Any
) -> Any:
    return Qwen3Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=40960,
        **more,
    )


def _qwen2(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **more: Any) -> Any:
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
        **more,
    )


# Small enough for all of `decode.py` to take some ten minutes on two cores, where every further token of a pass costs a
# millisecond: the more rows, the shorter they are.
_ON_CPU = {
    1: Load(2, (128, 256), (48, 48)),
    4: Load(8, (128, 256), (16, 64)),
    16: Load(24, (64, 96), (16, 80)),
    64: Load(80, (24, 48), (8, 32)),
}
# Deciles over 384 test problems of the three families: prompts, and the LLM's greedy responses, of which 1 % were longer
# than 256 tokens and are cut there.
_PROBLEMS = (11, 12, 13, 13, 20, 21, 22, 28, 29, 30, 33)
_ANSWERS = (32, 43, 45, 47, 51, 67, 71, 83, 124, 135, 256)
_EMBEDDED = {
    1: Load(2, (20, 20), (128, 128)),
    4: Load(8, _PROBLEMS, _ANSWERS),
    16: Load(48, _PROBLEMS, _ANSWERS),
    64: Load(512, _PROBLEMS, _ANSWERS),
}
_ON_ACCELERATOR = {
    1: Load(2, (2048, 2048), (256, 256)),
    4: Load(8, (1536, 2560), (128, 384)),
    16: Load(32, (1536, 2560), (128, 384)),
    64: Load(128, (1536, 2560), (128, 384)),
}

PAIRS = {
    source.name: source
    for source in (
        PairSource("embedded", lambda device: load_pair(device=device), _EMBEDDED, text=embedded_text),
        PairSource(
            "bandwidth",
            _random_pair(
                "bandwidth",
                _qwen3(512, 1536, 4, 8, 4, 64, vocab_size=16384, tie_word_embeddings=True),
                _qwen3(1024, 3072, 28, 16, 8, 128, vocab_size=16384, tie_word_embeddings=True),
            ),
            _ON_CPU,
            speculative_temperature=2.0,
        ),
        PairSource(
            "r1",
            _random_pair(
                "r1",
                _qwen2(1536, 8960, 28, 12, 2, vocab_size=151936),
                _qwen2(5120, 27648, 64, 40, 8, vocab_size=152064),
            ),
            _ON_ACCELERATOR,
            needs_accelerator=True,
            speculative_temperature=2.0,
        ),
        PairSource(
            "qwen3",
            _random_pair(
                "qwen3",
                _qwen3(1024, 3072, 28, 16, 8, 128, vocab_size=151936, tie_word_embeddings=True),
                _qwen3(4096, 12288, 36, 32, 8, 128, vocab_size=151936, tie_word_embeddings=False),
            ),
            _ON_ACCELERATOR,
            needs_accelerator=True,
            speculative_temperature=2.0,
        ),
    )
}
"""What `--pair` takes."""
