"""Captured graphs: a pass, and what becomes of its rows, replayed by one launch instead of a thousand.

A pass of a few tokens takes the device less time than its launches take the host. So a pass is captured once per bucket
(`buckets`) and replayed with other inputs. Where one policy judges all rows by tensors and noise alone, drawing, evidence
and verdicts are captured with it: after the replay one small table goes to the host. What a graph does not serve is run
eagerly: many tokens, prompts, and the judging of what needs more than numbers (state, penalties, a temperature hook) or
of provisional tokens.

What a graph computes lies at the same addresses until its next replay: whoever keeps something keeps a copy.

Shapes: M places at which logits are asked for, V vocabulary, D hidden size.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from navtoken.checkpoints import LoadedModel
from navtoken.engine.attention import Kernel
from navtoken.engine.buckets import Bucket, Inputs
from navtoken.engine.dice import Dials, Dice, Steps, dial_values
from navtoken.engine.evidence import Judgement, gather_evidence
from navtoken.engine.judging import Sampling, draft_ids, judge_of, weigh_drafts, weigh_writes
from navtoken.engine.kv_cache import KVCache
from navtoken.engine.ledger import Ledger
from navtoken.engine.packing import Feed
from navtoken.engine.runner import Extension, ModelRunner
from navtoken.engine.sampler import Places
from navtoken.engine.sequence import Sequence
from navtoken.policies import Policy, Purpose, Writer

MOST_GRAPHS = 512
"""Of one model; a graph of a large model takes some megabytes. Passes of further buckets are run eagerly."""
EAGER_FIRST = 2
"""Passes of a new bucket that are run eagerly: a capture costs more than the first few replays save."""
MOST_JUDGES = 8
"""Ways of judging that are captured with passes; rows judged in further ways share the graphs that only run the model."""


class Capture(Protocol):
    """Makes a graph."""

    def __call__(self, work: Callable[[], Extension]) -> tuple[Callable[[], Any], Extension]:
        """Run `work` once, record it, and return what replays the record and where replays leave their results."""
        ...


class CudaCapture:
    """Captures CUDA graphs of one device; they share their memory, as no two run at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        # One for all: libraries keep a workspace for every stream.
        self.stream = torch.cuda.Stream(device)

    def __call__(self, work: Callable[[], Extension]) -> tuple[Callable[[], Any], Extension]:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            # A capture that fails leaves its stream behind as the current one; this context sets it right.
            with torch.cuda.stream(self.stream):
                # Once outside the graph: the caches reserve their memory, libraries their workspaces.
                work()
                # Other threads, a server's, say, may use the device meanwhile.
                with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                    said = work()
        finally:
            current.wait_stream(self.stream)
        return graph.replay, said


class Judge(NamedTuple):
    """A way of judging that can be captured: everything that a captured graph has built in."""

    policy: Policy
    steps: Steps

    @classmethod
    def of(
        cls, model: Writer, rows: Seq[Sequence], feeds: Seq[Feed], sampling: Sampling, vocab_size: int
    ) -> "Judge | None":
        """How all rows of a pass are judged, if that is one way, and one that can be captured."""
        policies = {judge_of(row) for row in rows}
        if len(policies) != 1 or sampling.temperature_hook is not None:
            return None
        policy = policies.pop()
        # How many provisional tokens the LLM judges is another number in every pass.
        provisional = policy.verifies and model is Writer.LLM
        plain = policy.capturable and not provisional and all(feed.num_logits == 1 for feed in feeds)
        if not plain or any(_adjusts_logits(row) for row in rows):
            return None
        return cls(policy, Steps.of([row.sampling for row in rows], vocab_size))


def _adjusts_logits(row: Sequence) -> bool:
    """Does drawing a row's next token need more than its logits and numbers?"""
    params = row.sampling
    return params.has_penalties or bool(params.logit_bias) or row.num_response < params.min_tokens


@dataclass
class Graph:
    """A captured pass."""

    inputs: Inputs
    replay: Callable[[], Any] | None = None
    """None until it is captured."""
    said: Extension | None = None
    """Where replays leave what they say."""
    purposes: set[Purpose] = field(default_factory=set)
    """Noise that the captured work reads."""

    def said_of(self, num: int) -> Extension:
        """The first places: the others are nobody's."""
        assert self.said is not None
        logits_MV, hidden_MD, judgement = self.said
        if judgement is not None:
            judgement = Judgement(*(tensor[:num] for tensor in judgement))
        return Extension(logits_MV[:num], hidden_MD[:num], judgement)


class GraphRunner(ModelRunner):
    """Runs passes that fit a bucket by replaying graphs, the others eagerly."""

    def __init__(
        self,
        model: Writer,
        ledger: Ledger,
        loaded: LoadedModel,
        vocab_size: int,
        cache: KVCache,
        kernel: Kernel,
        sampling: Sampling,
        capture: Capture,
    ) -> None:
        """`sampling` says how rows draw, `num_alternatives` and hook; the cache must have a scratch block."""
        super().__init__(model, ledger, loaded, vocab_size, cache, kernel)
        self.graph_kernel = kernel
        self.sampling = sampling
        self.capture: Capture | None = capture
        self.graphs: dict[tuple[Bucket, Judge | None], Graph] = {}
        self.met: Counter[tuple[Bucket, Judge | None]] = Counter()
        self.judges: set[Judge] = set()

    @torch.inference_mode()
    def run(self, rows: Seq[Sequence], feeds: Seq[Feed], copies: Seq[tuple[int, int]]) -> Extension:
        bucket = Bucket.of(feeds, self.cache.block_size)
        judge = None if bucket is None else self._judge(rows, feeds)
        graph = None if bucket is None else self._graph(bucket, judge)
        if graph is None:
            return self.forward(feeds, copies)
        self.cache.copy_blocks(copies)
        graph.inputs.write_feeds(feeds)
        if judge is not None:
            self._write_draws(graph, rows)
        graph.inputs.send()
        if graph.replay is None and not self._captured(graph, judge):
            return self.forward(feeds, ())
        assert graph.replay is not None
        graph.replay()
        return graph.said_of(sum(feed.num_logits for feed in feeds))

    def _judge(self, rows: Seq[Sequence], feeds: Seq[Feed]) -> Judge | None:
        judge = Judge.of(self.model, rows, feeds, self.sampling, self.vocab_size)
        if judge is None or (judge not in self.judges and len(self.judges) == MOST_JUDGES):
            return None
        self.judges.add(judge)
        return judge

    def _graph(self, bucket: Bucket, judge: Judge | None) -> Graph | None:
        """A bucket's graph, new ones without a record yet; None where a pass is to be run eagerly."""
        key = (bucket, judge)
        if key not in self.graphs:
            self.met[key] += 1
            if self.capture is None or len(self.graphs) == MOST_GRAPHS or self.met[key] <= EAGER_FIRST:
                return None
            self.graphs[key] = Graph(Inputs(bucket, self.cache, self.loaded.device))
        return self.graphs[key]

    def _write_draws(self, graph: Graph, rows: Seq[Sequence]) -> None:
        params = [row.sampling for row in rows]
        graph.inputs.write_draws(dial_values(params, self.vocab_size), draft_ids(rows))
        keys = Places.next_of(rows).keys
        for purpose in graph.purposes if graph.replay else Purpose:
            graph.inputs.write_noise(purpose, keys.uniform(purpose))

    def _captured(self, graph: Graph, judge: Judge | None) -> bool:
        """Capture a graph whose inputs are written; where a model cannot be captured, never try again."""
        assert self.capture is not None
        try:
            graph.replay, graph.said = self.capture(lambda: self._work(graph, judge))
        except RuntimeError as error:
            warnings.warn(
                f"'{self.loaded.reference}' cannot be captured as a CUDA graph ({error}); it is run without from now on, "
                "slower with few rows. Say cuda_graphs=False to go without from the start",
                stacklevel=2,
            )
            self.capture = None
            self.graphs = {key: each for key, each in self.graphs.items() if each.replay is not None}
            return False
        return True

    def _work(self, graph: Graph, judge: Judge | None) -> Extension:
        """What is captured: it may read nothing of one pass but the inputs' tensors."""
        said = self.compute(graph.inputs.packed(self.graph_kernel))
        if judge is None:
            return said
        tensors = graph.inputs.tensors

        def noise(purpose: Purpose) -> torch.Tensor:
            graph.purposes.add(purpose)
            return tensors["noise"][purpose]

        evidence = gather_evidence(said.logits_MV, self.sampling.num_alternatives)
        dials = Dials(tensors["dials"], judge.steps).at(evidence.entropy_B)
        dice = Dice(said.logits_MV, dials, noise)
        if self.model is Writer.SLM:
            judgement = weigh_drafts(said, evidence, dice, judge.policy, ())
        else:
            judgement = weigh_writes(said, evidence, dice, judge.policy, (), tensors["draft_ids"])
        return said._replace(judgement=judgement)
