"""Captured graphs give what eager passes give: their books, with a capture that replays a tape."""

import warnings
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, EngineOptions, SamplingParams, Sequence, graphs, kernel_choice
from navtoken.engine.attention import Kernel, attend_gathered, attend_varlen
from navtoken.engine.blocks import BlockPool, OutOfBlocks
from navtoken.engine.buckets import TOKENS, Bucket
from navtoken.engine.budget import make_caches
from navtoken.engine.graphs import CudaCapture, GraphRunner
from navtoken.engine.judging import DECIDED, Sampling
from navtoken.engine.kernel_choice import find_problem, make_runners
from navtoken.engine.kv_cache import KVCache
from navtoken.engine.ledger import Ledger
from navtoken.engine.memory import Memory
from navtoken.engine.options import GREEDY
from navtoken.engine.packing import Feed, Packed
from navtoken.engine.runner import Extension, ModelRunner
from navtoken.policies import Policy, Purpose, Writer, make_policy
from tape_capture import TapeCapture, attend_by_tensors, attend_paged
from tiny_models import VOCAB_SIZE, prompts, tiny_model, tiny_pair

BLOCK = 8
NUM_BLOCKS = 400
CPU = torch.device("cpu")

SAMPLING = {
    "greedy": SamplingParams(),
    "hot": SamplingParams(temperature=0.8),
    "nucleus": SamplingParams(temperature=0.8, top_p=0.9, top_k=20, min_p=0.02),
    "forks": SamplingParams(temperature=0.4, fork_threshold=1.5, fork_temperature=1.4),
}


@pytest.fixture(autouse=True)
def _capture_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "EAGER_FIRST", 0)


class GraphEngine(Engine):
    """The engine as it is on CUDA, with a tape for a capture."""

    def __init__(
        self,
        pair: ModelPair,
        policy: Policy,
        options: EngineOptions,
        kernel: Kernel = attend_by_tensors,
        capture: Any = None,
        **others: Any,
    ) -> None:
        self.kernel = kernel
        self.tape = capture or TapeCapture()
        super().__init__(pair, policy, options, **others)

    def _make_runners(self) -> Any:
        self.caches = [KVCache(NUM_BLOCKS + 1, BLOCK, CPU, heads_first=False) for _ in Writer]
        pools = (BlockPool(NUM_BLOCKS, BLOCK), BlockPool(NUM_BLOCKS, BLOCK))
        slm, llm = (
            GraphRunner(
                model,
                self.ledger,
                self.pair[model],
                self.pair.vocab_size,
                self.caches[model],
                self.kernel,
                self._sampling,
                self.tape,
            )
            for model in Writer
        )
        return Memory(pools), (slm, llm)

    @property
    def keys(self) -> list[Any]:
        """Of all graphs: (bucket, judge)."""
        return [key for runner in self.runners for key in runner.graphs]  # type: ignore[attr-defined]


def pair_of(kind: str) -> ModelPair:
    """Two models of a kind that flash attention serves: Gemma-2 has windows, and here no soft-cap."""
    if kind == "qwen3":
        return tiny_pair(kind)
    if kind == "own heads":
        return ModelPair(*(tiny_model("llama", seed, num_key_value_heads=4) for seed in (1, 2)))
    plain = {"attn_logit_softcapping": None}
    return ModelPair(tiny_model(kind, 1, num_hidden_layers=2, **plain), tiny_model(kind, 2, **plain))


def add_all(engine: Engine, sampling: SamplingParams, texts: list[list[int]], tokens: int) -> list[Sequence]:
    return [
        engine.add(text, sampling, tokens if index % 3 else tokens // 2, seed=index)
        for index, text in enumerate(texts)
    ]


def outcome(row: Sequence) -> tuple:
    written = [(token.token_id, token.writer, token.draft_id) for token in row.record.tokens]
    return row.finish_reason, row.ledger, written


def numbers(rows: list[Sequence]) -> Tensor:
    """Everything measured about every token."""
    names = ("entropy_slm", "entropy_llm", "logprob_slm", "logprob_llm", "top_logprobs")
    told = [[getattr(token, name) for name in names] for row in rows for token in row.record.tokens]
    flat = [[*each[:4], *each[4]] for each in told]
    return torch.tensor(flat, dtype=torch.float64)


def check_same(eager: Engine, captured: Engine, sampling: SamplingParams, texts: list[list[int]]) -> None:
    expected, rows = (add_all(engine, sampling, texts, 24) for engine in (eager, captured))
    for engine in (eager, captured):
        list(engine.run())
    assert [outcome(row) for row in rows] == [outcome(row) for row in expected]
    assert captured.ledger == eager.ledger
    torch.testing.assert_close(numbers(rows), numbers(expected), atol=1e-6, rtol=0, equal_nan=True)


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize(
    "policy",
    [
        "slm",
        "llm",
        "random:0.3",
        "entropy:1.0",
        "llm-prob:0.1",
        "speculative:3",
        "r-stitch:0.5",
        "hindsight:0.05,entropy=1.0",
    ],
)
@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
def test_graphs_write_what_eager_passes_write(kind: str, policy: str, sampling: str) -> None:
    pair, params = pair_of(kind), SAMPLING[sampling]
    options = EngineOptions(max_rows=5, llm_min_rows=2, num_alternatives=2, block_size=BLOCK)
    captured = GraphEngine(pair, make_policy(policy), options)
    check_same(Engine(pair, make_policy(policy), options), captured, params, prompts(7, longest=30))
    judged = [judge for _, judge in captured.keys if judge is not None]
    assert bool(judged) == (not policy.startswith("speculative"))
    assert all(judge.policy == captured.policy for judge in judged)
    assert captured.tape.num_replays == sum(captured.ledger.models[model].passes for model in Writer)


def runners_on(device: torch.device) -> tuple[GraphRunner, ModelRunner, float]:
    """One model with graphs and without, each with its own cache, and how far their logits may be apart."""
    shape = {"head_dim": 64, "hidden_size": 128, "initializer_range": 0.1}
    loaded = tiny_model("qwen3", 1, torch.float64 if device == CPU else torch.bfloat16, **shape)
    loaded.model.to(device)
    kernel, capture, tolerance = attend_by_tensors, TapeCapture(), 1e-9
    if device != CPU:
        kernel, capture, tolerance = attend_varlen, CudaCapture(device), 0.1  # type: ignore[assignment]
    caches = [KVCache(20, 64 if device == CPU else 256, device, heads_first=False) for _ in range(2)]
    known = (Writer.SLM, Ledger(), loaded, VOCAB_SIZE)
    graphed = GraphRunner(*known, caches[0], kernel, Sampling(), capture)
    return graphed, ModelRunner(*known, caches[1], kernel), tolerance


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")),
    ],
)
def test_logits_are_those_of_eager_passes(device: str) -> None:
    graphed, eager, tolerance = runners_on(torch.device(device))
    if device == "cuda":
        assert find_problem(attend_varlen, (4, 2, 64), graphed.cache, torch.bfloat16) is None
    texts = prompts(5, shortest=300, longest=400)
    rows = [
        Sequence(index, text, 1, GREEDY, 500, 0, index, make_policy("slm"))
        for index, text in enumerate(texts)
    ]
    starts = [0] * 5
    for lengths in ([40, 3, 17, 1, 9], *[[1] * 5] * 4, [64, 64, 1, 1, 2], [2, 1, 7, 3, 3], *[[1] * 5] * 3):
        fed = [
            Feed([2 * index, 2 * index + 1], start, text[start : start + length])
            for index, (text, start, length) in enumerate(zip(texts, starts, lengths, strict=True))
        ]
        starts = [feed.end for feed in fed]
        ours, theirs = graphed.run(rows, fed, ()), eager.run(rows, fed, ())
        torch.testing.assert_close(ours.logits_MV, theirs.logits_MV, atol=tolerance, rtol=0)
        assert ours.judgement is not None
        decided_M = ours.judgement.columns_BF[:, DECIDED].long()
        assert torch.equal(decided_M, ours.logits_MV.argmax(-1))
    assert graphed.capture is not None and len(graphed.graphs) == 4


@pytest.mark.parametrize("rows", [1, 3, 9, 20])
def test_batches_of_all_sizes_and_long_prompts_in_chunks(rows: int) -> None:
    pair = pair_of("gemma2")
    options = EngineOptions(max_rows=rows, prefill_chunk=70, num_alternatives=1, block_size=BLOCK)
    texts = prompts(rows, longest=25) + prompts(3, seed=1, shortest=80, longest=150)
    captured = GraphEngine(pair, make_policy("random:0.25"), options)
    check_same(Engine(pair, make_policy("random:0.25"), options), captured, SAMPLING["hot"], texts)
    passes = sum(captured.ledger.models[model].passes for model in Writer)
    assert 0 < captured.tape.num_replays < passes


def test_a_bucket_is_captured_once() -> None:
    options = EngineOptions(max_rows=6, llm_min_rows=2, block_size=BLOCK)
    engine = GraphEngine(pair_of("qwen3"), make_policy("random:0.3"), options)
    for run in (1, 2):
        add_all(engine, SAMPLING["hot"], prompts(12), 24)
        list(engine.run())
        if run == 1:
            num_captures, num_replays = engine.tape.num_captures, engine.tape.num_replays
    buckets = {bucket for bucket, _ in engine.keys}
    assert engine.tape.num_captures == num_captures == len(engine.keys) <= 2 * 2 * len(buckets)
    assert engine.tape.num_replays == 2 * num_replays > 8 * num_captures


def test_a_bucket_is_captured_when_it_is_met_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "EAGER_FIRST", 2)
    pair, options = pair_of("qwen3"), EngineOptions(max_rows=1, block_size=BLOCK, num_alternatives=1)
    captured = GraphEngine(pair, make_policy("slm"), options)
    text = prompts(1, shortest=9, longest=9)
    check_same(Engine(pair, make_policy("slm"), options), captured, SAMPLING["hot"], text)
    assert captured.ledger.slm.passes - captured.tape.num_replays == 2 + 1, "two single tokens, one prompt"
    assert captured.tape.num_captures == 1


def test_samples_that_share_a_prompt_get_their_own_copies() -> None:
    pair, options = pair_of("qwen3"), EngineOptions(max_rows=4, block_size=BLOCK)
    captured, eager = (kind(pair, make_policy("random:0.3"), options) for kind in (GraphEngine, Engine))
    rows = []
    for engine in (captured, eager):
        prompt = prompts(1, shortest=BLOCK + 3, longest=BLOCK + 3)[0]
        samples = engine.add_samples(4, prompt, SAMPLING["hot"], 20, seed=5)
        list(engine.run())
        rows.append([outcome(row) for row in samples])
    assert rows[0] == rows[1]
    assert captured.ledger.slm.tokens < sum(len(row[2]) for row in rows[0]) + 2 * (BLOCK + 3)


def test_no_policy_is_served_by_anothers_graph() -> None:
    pair, options = pair_of("qwen3"), EngineOptions(max_rows=3, block_size=BLOCK, num_alternatives=1)
    policies = [
        make_policy(name) for name in ("entropy:0.5", "entropy:2.0", "margin:0.5", "random:0.5", "slm")
    ]
    captured, eager = (kind(pair, policies[0], options) for kind in (GraphEngine, Engine))
    rows: dict[int, list[Sequence]] = {0: [], 1: []}
    for policy, (which, engine) in product(policies, enumerate((captured, eager))):
        rows[which] += [engine.add(each, SAMPLING["hot"], 15, seed=3, policy=policy) for each in prompts(3)]
        list(engine.run())
    assert [outcome(row) for row in rows[0]] == [outcome(row) for row in rows[1]]
    assert len({tuple(row.response_ids) for row in rows[0]}) > len(policies)
    assert {judge.policy for _, judge in captured.keys if judge} == set(policies)


def test_rows_of_several_policies_are_judged_eagerly_on_a_captured_pass() -> None:
    pair, options = pair_of("qwen3"), EngineOptions(max_rows=4, block_size=BLOCK)
    captured, eager = (kind(pair, make_policy("slm"), options) for kind in (GraphEngine, Engine))
    rows = []
    for engine in (captured, eager):
        policies = ("random:0.5", "speculative:2", "llm", "entropy:1.0")
        mixed = [
            engine.add(text, SAMPLING["hot"], 20, seed=index, policy=make_policy(name))
            for index, (name, text) in enumerate(zip(policies, prompts(4), strict=True))
        ]
        list(engine.run())
        rows.append([outcome(row) for row in mixed])
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(presence_penalty=0.4),
        SamplingParams(temperature=1.0, logit_bias=((7, 3.0),)),
        SamplingParams(min_tokens=10),
    ],
)
def test_what_needs_more_than_numbers_is_drawn_eagerly(params: SamplingParams) -> None:
    pair, options = pair_of("qwen3"), EngineOptions(max_rows=3, block_size=BLOCK, num_alternatives=1)
    captured = GraphEngine(pair, make_policy("random:0.3"), options)
    check_same(Engine(pair, make_policy("random:0.3"), options), captured, params, prompts(4))
    judged = [judge for _, judge in captured.keys if judge is not None]
    assert bool(judged) == (params.min_tokens > 0), "with min_tokens, only the first tokens are drawn eagerly"


def test_a_temperature_hook_and_a_listener_are_called_at_every_token() -> None:
    pair, options = pair_of("qwen3"), EngineOptions(max_rows=3, block_size=BLOCK, num_alternatives=1)

    def hook(entropy_M: Tensor, asked_M: Tensor) -> Tensor:
        return torch.where(entropy_M > 1.0, asked_M, 0.0)

    engines = [
        kind(pair, make_policy("slm"), options, temperature_hook=hook) for kind in (Engine, GraphEngine)
    ]
    check_same(*engines, SAMPLING["hot"], prompts(4))
    signals: list[Tensor] = []
    policy = make_policy("entropy:1.0").with_threshold(1.0, signals.append)  # type: ignore[attr-defined]
    engine = GraphEngine(pair, policy, options)
    add_all(engine, SAMPLING["greedy"], prompts(4), 10)
    list(engine.run())
    assert len(torch.cat(signals)) == engine.ledger.written[0] + engine.ledger.discarded_drafts
    assert len(set(torch.cat(signals).tolist())) > 10


def test_noise_that_nobody_reads_is_not_made() -> None:
    options = EngineOptions(max_rows=2, block_size=BLOCK)
    for policy, sampling, expected in (
        ("slm", "greedy", set()),
        ("slm", "hot", {Purpose.DRAFT}),
        ("random:0.5", "greedy", {Purpose.ROUTING}),
    ):
        engine = GraphEngine(pair_of("qwen3"), make_policy(policy), options)
        add_all(engine, SAMPLING[sampling], prompts(2), 5)
        list(engine.run())
        judged = [graph for (_, judge), graph in engine.runners[0].graphs.items() if judge]
        assert judged and all(graph.purposes == expected for graph in judged)


def test_ways_of_judging_are_captured_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_JUDGES", 2)
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 4)
    pair, options = pair_of("qwen3"), EngineOptions(max_rows=2, block_size=BLOCK)
    captured, eager = (kind(pair, make_policy("slm"), options) for kind in (GraphEngine, Engine))
    rows = []
    for engine in (captured, eager):
        for threshold in (0.5, 1.0, 1.5, 2.0):
            rows.append(engine.add(prompts(1)[0], max_tokens=12, policy=make_policy(f"entropy:{threshold}")))
            list(engine.run())
    assert [outcome(row) for row in rows[:4]] == [outcome(row) for row in rows[4:]]
    for runner in captured.runners:
        assert len(runner.judges) <= 2 and len(runner.graphs) <= 4


def test_a_model_that_cannot_be_captured_is_run_without_graphs() -> None:
    class Refuses(TapeCapture):
        def __call__(self, work: Any) -> Any:
            self.num_captures += 1
            raise RuntimeError("operation not permitted when stream is capturing")

    pair, options = pair_of("qwen3"), EngineOptions(max_rows=3, block_size=BLOCK, num_alternatives=1)
    captured = GraphEngine(pair, make_policy("random:0.3"), options, capture=Refuses())
    with pytest.warns(UserWarning, match="cannot be captured"):
        check_same(Engine(pair, make_policy("random:0.3"), options), captured, SAMPLING["hot"], prompts(4))
    assert captured.tape.num_captures == 2, "once for each model"
    assert not captured.keys


def test_the_tape_refuses_what_a_graph_refuses() -> None:
    hidden = torch.zeros(1, 1)
    for waits in (lambda: hidden.sum().item(), lambda: hidden.nonzero(), lambda: torch.tensor([1.0])):
        with pytest.raises(RuntimeError, match="not permitted"):
            TapeCapture()(lambda waits=waits: Extension(hidden, waits()))  # type: ignore[misc]


class Padded(TapeCapture):
    """Spoils the scratch block before every replay."""

    caches: list[KVCache]

    def __call__(self, work: Any) -> Any:
        again, said = super().__call__(work)

        def spoilt() -> None:
            for cache in self.caches:
                for store in (cache.keys, cache.values):
                    for pool in store.values():
                        pool[cache.scratch] = torch.nan
            again()

        return spoilt, said


def test_what_is_nobodys_changes_nothing() -> None:
    pair, options = pair_of("gemma2"), EngineOptions(max_rows=7, block_size=BLOCK, num_alternatives=1)
    capture = Padded()
    captured = GraphEngine(pair, make_policy("random:0.3"), options, capture=capture)
    capture.caches = captured.caches
    check_same(Engine(pair, make_policy("random:0.3"), options), captured, SAMPLING["hot"], prompts(9))
    assert any(bucket.num_tokens > bucket.num_asked for bucket, _ in captured.keys)


def test_the_scratch_block_is_never_handed_out() -> None:
    """On a device that has one, as `make_caches` deals it."""
    card = SimpleNamespace(context=64, kv_bytes=4, shards=1)
    loaded = SimpleNamespace(card=card, device=torch.device("cuda"))
    pair: Any = SimpleNamespace(slm=loaded, llm=loaded, shards=1)
    pools, caches = make_caches(pair, EngineOptions(max_rows=2, cache_gib=1, block_size=16))
    for pool, cache in zip(pools, caches, strict=True):
        given = []
        with pytest.raises(OutOfBlocks):
            while True:
                given.append(pool.allocate())
        assert sorted(given) == list(range(cache.num_blocks - 1)) and cache.scratch not in given


def feeds(*spans: tuple[int, int, int]) -> list[Feed]:
    """(start, number of new tokens, number of logits) of each row."""
    return [Feed(list(range(100)), start, [5] * new, asked) for start, new, asked in spans]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (feeds((0, 1, 1)), Bucket(1, 1, 4)),
        (feeds((9, 1, 1), (32, 1, 1), (7, 1, 1)), Bucket(4, 4, 16)),
        (feeds(*[(9, 1, 1)] * 20), Bucket(24, 24, 4)),
        (feeds((9, 5, 1), (30, 4, 1), (0, 1, 1)), Bucket(16, 8, 16)),
        (feeds((9, 5, 1)), Bucket(8, 8, 4)),
        (feeds((9, 4, 4), (9, 4, 4)), Bucket(8, 8, 4)),
        (feeds((0, 20, 0)), Bucket(24, 8, 4)),
        (feeds(*[(31, 3, 1)] * 40), Bucket(128, 64, 16)),
        (feeds(*[(0, 64, 1)] * 4), Bucket(256, 8, 16)),
        (feeds((0, 65, 1)), None),
        (feeds(*[(0, 60, 1)] * 5), None),
    ],
)
def test_buckets(rows: list[Feed], expected: Bucket | None) -> None:
    assert Bucket.of(rows, BLOCK) == expected


def test_padding_of_more_than_16_tokens_is_a_third_at_most() -> None:
    for num in range(17, TOKENS[-1] + 1):
        bucket = Bucket.of(feeds(*[(0, 1, 1)] * num), BLOCK)
        assert bucket is not None and 0 <= bucket.num_tokens - num <= bucket.num_tokens / 3


def flash(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    offsets: Tensor,
    key_offsets: Tensor | None,
    max_new: int,
    max_used: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int | None,
) -> Tensor:
    """What `torch`'s flash attention 2 asks of its caller, and computes."""
    for each in (offsets, key_offsets, seqused_k, block_table):
        assert each is not None and each.dtype == torch.int32 and each.is_contiguous()
    assert key_offsets is not None and torch.equal(key_offsets[1:], seqused_k.cumsum(0))
    assert max_new == int(offsets.diff().max()) and max_used >= int(seqused_k.max())
    assert block_table.shape[1] * keys.shape[1] >= max_used
    shares_heads = query.shape[1] > keys.shape[2]
    assert num_splits == 1 or (
        num_splits is None and max_new == 1 and window_size == (-1, -1) and shares_heads
    )
    assert enable_gqa and (window_size[1] == 0 or (max_new == 1 and window_size == (-1, -1)))
    window = None if window_size[0] < 0 else window_size[0] + 1
    return attend_paged(query, keys, values, offsets, seqused_k, block_table, scale, window)


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "own heads"])
def test_flash_attention_is_asked_in_the_way_that_it_serves(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", flash)
    pair, options = (
        pair_of(kind),
        EngineOptions(max_rows=3, prefill_chunk=70, block_size=BLOCK, num_alternatives=1),
    )
    captured = GraphEngine(pair, make_policy("random:0.3"), options, attend_varlen, Eager())
    texts = prompts(4) + prompts(2, shortest=80, longest=90)
    check_same(Engine(pair, make_policy("random:0.3"), options), captured, SAMPLING["hot"], texts)


class Eager(TapeCapture):
    """Runs the work anew at each replay: what stands in for the kernel looks at values, which no tape may."""

    def __call__(self, work: Any) -> Any:
        said = work()

        def again() -> None:
            for first, new in zip(leaves(said), leaves(work()), strict=True):
                first.copy_(new)

        return again, said


def leaves(said: Extension) -> list[Tensor]:
    return [said.logits_MV, said.hidden_MD, *(said.judgement or ())]


def kernel_that(spoil: Any) -> Kernel:
    """A kernel whose outputs are spoilt."""

    def kernel(query_TQH: Tensor, layer: int, packed: Packed, *rest: Any) -> Tensor:
        return spoil(attend_by_tensors(query_TQH, layer, packed, *rest), packed)

    return kernel


def forget_second_row(out: Tensor, packed: Packed) -> Tensor:
    out[packed.lengths[0]] = 0.0
    return out


def refuse(out: Tensor, packed: Packed) -> Tensor:
    raise RuntimeError("block size must be divisible by 256\nframe 1")


def ignore_window(query_TQH: Tensor, layer: int, packed: Packed, scale: float, *rest: Any) -> Tensor:
    return attend_by_tensors(query_TQH, layer, packed, scale, None, None)


@pytest.mark.parametrize(
    ("kernel", "dtype", "problem"),
    [
        (attend_by_tensors, torch.bfloat16, None),
        (attend_gathered, torch.float64, None),
        (kernel_that(forget_second_row), torch.bfloat16, "its outputs are off"),
        (kernel_that(lambda out, _: out * torch.nan), torch.bfloat16, "its outputs are off by nan"),
        (kernel_that(refuse), torch.bfloat16, "it refuses: block size must be divisible by 256"),
        (ignore_window, torch.float16, "its outputs are off"),
    ],
)
def test_a_kernel_is_tried_before_it_is_trusted(
    kernel: Kernel, dtype: torch.dtype, problem: str | None
) -> None:
    found = find_problem(kernel, (4, 2, 16), KVCache(1, 32, CPU, heads_first=False), dtype)
    assert found == problem if problem is None else found is not None and found.startswith(problem)


def loaded_on_cuda(**overrides: Any) -> Any:
    """What choosing a kernel asks of a model, on a device that need not exist."""
    told = {
        "device": torch.device("cuda"),
        "dtype": torch.bfloat16,
        "softcap": None,
        "is_whole": True,
    } | overrides
    config = SimpleNamespace(
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, attn_logit_softcapping=told["softcap"]
    )
    config.get_text_config = lambda: config
    model = SimpleNamespace(config=config, dtype=told["dtype"])
    return SimpleNamespace(model=model, device=told["device"], is_whole=told["is_whole"], reference="a model")


@pytest.mark.parametrize(
    ("overrides", "problem", "kernel", "graphed"),
    [
        ({}, None, attend_varlen, True),
        ({"is_whole": False}, None, attend_varlen, False),
        ({}, "it refuses: old torch", attend_gathered, False),
        ({"softcap": 50.0}, None, None, False),
        ({"dtype": torch.float32}, None, None, False),
        ({"device": CPU}, None, None, False),
    ],
)
def test_each_model_gets_the_best_that_works(
    overrides: dict, problem: str | None, kernel: Any, graphed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_choice, "find_problem", lambda *_: problem)
    monkeypatch.setattr(kernel_choice, "CudaCapture", lambda _: TapeCapture())
    loaded = loaded_on_cuda(**overrides)
    pair: Any = FakePair(loaded)
    caches = [KVCache(4, 256, loaded.device) for _ in Writer]

    def runners(options: EngineOptions) -> list[Any]:
        return [*make_runners(pair, Ledger(), caches, Sampling(), options)]

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        chosen = runners(EngineOptions())
    fast = kernel is attend_varlen or loaded.device == CPU
    assert len(told) == (0 if fast else 2), "a slow attention is told of, model by model"
    assert all(runner.kernel is kernel for runner in chosen)
    assert [isinstance(runner, GraphRunner) for runner in chosen] == [graphed] * 2
    if graphed:
        assert chosen[0].capture is chosen[1].capture, (
            "no two graphs of a device run at once: they share memory"
        )
        assert not any(isinstance(each, GraphRunner) for each in runners(EngineOptions(cuda_graphs=False)))


class FakePair:
    """Twice the same model."""

    vocab_size = VOCAB_SIZE

    def __init__(self, loaded: Any) -> None:
        self.loaded = loaded

    def __getitem__(self, index: int) -> Any:
        return self.loaded
