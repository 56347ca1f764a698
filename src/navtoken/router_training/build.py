"""From examples to a router with thresholds and a report: what `navtoken train-router` and the ablation both do.

Three parts of the problems do three jobs, each its own: weights come from the first, the checkpoint and all thresholds from
the second, and what is reported from the third.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import nn

from navtoken.analysis.plain import plain
from navtoken.analysis.ranking import Resampling
from navtoken.checkpoints import ModelPair
from navtoken.engine import SamplingParams
from navtoken.generation import fingerprints
from navtoken.labeling.labels import REMOTE
from navtoken.policies.query import QueryPolicy
from navtoken.policies.router import RouterPolicy
from navtoken.router import (
    ALL_TASKS,
    DEFAULT_INPUTS,
    TOP_K,
    PairNames,
    Router,
    RouterCard,
    RouterNetwork,
    RouterShape,
    StoredThreshold,
)
from navtoken.router.splits import PARTS
from navtoken.router_training.examples import Examples, ExamplesError, Target
from navtoken.router_training.quality import SHARES, Quality, qualities, threshold_at_recall
from navtoken.router_training.thresholds import RoutedRuns, spread_prompts, stored_thresholds
from navtoken.router_training.training import Epoch, Trained, predict

Kind = Literal["token", "query"]

QUERY_INPUTS = ("hidden",)
"""As in the papers' baseline: the hidden state at the prompt's last token."""
RUNS = "routed.json"
"""What routed generation came to, in a training's folder."""


class BuildError(ValueError):
    """A router that cannot be made as asked."""


@dataclass(frozen=True)
class NetworkOptions:
    """What the router reads, and how large it is."""

    inputs: str | None = None
    """Some of logits, embedding, hidden, summary and entropy, with commas between; None takes all but entropy, and for
    kind query hidden alone."""
    num_logits: int | None = None
    """Highest logits read; None takes all that the labels hold, and 100 for kind query."""
    width: int | None = None
    """Of the residual blocks; None follows from the SLM's size."""
    depth: int | None = None
    """Residual blocks; None follows from the SLM's size."""
    dropout: float = 0.1
    """In the blocks, while training."""

    def shape(self, pair: ModelPair, kind: Kind, num_logits: int) -> RouterShape:
        """The network's shape, where the examples hold so many logits. Raises `ShapeError`s and `BuildError`."""
        usual = DEFAULT_INPUTS if kind == "token" else QUERY_INPUTS
        names = tuple(name.strip() for name in self.inputs.split(",")) if self.inputs else usual
        if (self.num_logits or 0) > num_logits:
            raise BuildError(
                f"num_logits is {self.num_logits}, but the labels hold {num_logits}; leave it out, or label with more"
            )
        top_k = self.num_logits or num_logits
        sizes = {"width": self.width, "depth": self.depth, "dropout": self.dropout}
        return RouterShape.for_slm(pair.slm, names, top_k, pair.vocab_size, **sizes)


@dataclass(frozen=True)
class ThresholdOptions:
    """Which thresholds are stored with the router: each is found by routed generation on validation problems."""

    share: tyro.conf.UseAppendAction[tuple[float, ...]] = (0.05, 0.1, 0.13, 0.15, 0.2, 0.3)
    """LLM share to find a threshold for; may be repeated. These six where left out."""
    recall: tyro.conf.UseAppendAction[tuple[float, ...]] = (0.8, 0.9, 0.95)
    """Share of the divergent labels that the LLM is to write; may be repeated. These three where left out."""
    temperature: tyro.conf.UseAppendAction[tuple[float, ...]] = (0.0, 1.0)
    """Sampling temperature at which thresholds are found; may be repeated. 0 and 1 where left out."""
    top_p: float = 1.0
    """Of sampling above temperature 0."""
    top_k: int = 0
    """Of sampling above temperature 0."""
    min_p: float = 0.0
    """Of sampling above temperature 0."""
    repetition_penalty: float = 1.0
    """Of all sampling, temperature 0 included; 1 is off."""
    default_share: float = 0.2
    """The share whose threshold over all tasks, at the first temperature, routes where neither share nor threshold is asked for."""
    calibration_num: int = 200
    """Validation problems per task at most on which thresholds are found. Few very long responses hold much of all tokens, so a
    share found on few problems is far off on others."""
    max_tokens: int | None = None
    """Longest response in tokens; None takes the LLM's own limit."""
    seed: int = 0
    """Fixes the noise of routed generation, and the resamples of intervals."""

    def check(self) -> None:
        """Raise `BuildError` and `OptionError` for what cannot be looked for."""
        for name in ("share", "recall", "temperature"):
            if not (given := getattr(self, name)):
                raise BuildError(f"no {name} is given; name at least one")
            if twice := [each for each in given if given.count(each) > 1]:
                raise BuildError(f"{name} {twice[0]:g} is given twice; leave one out")
        for name in ("share", "recall"):
            if wrong := [each for each in getattr(self, name) if not 0.0 < each < 1.0]:
                raise BuildError(f"{name} is {wrong[0]:g}; give a fraction between 0 and 1")
        if self.default_share not in self.share:
            known = ", ".join(f"{each:g}" for each in self.share)
            raise BuildError(
                f"default_share is {self.default_share:g}, which is no share asked for; give one of {known}"
            )
        if self.calibration_num < 1:
            raise BuildError(f"calibration_num is {self.calibration_num}; give at least 1")
        self.samplings()

    def samplings(self) -> list[SamplingParams]:
        """Greedy decoding has no truncation."""
        drawn = SamplingParams(
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )
        greedy = SamplingParams(repetition_penalty=self.repetition_penalty)
        return [replace(drawn, temperature=each) if each else greedy for each in self.temperature]

    def limit(self, pair: ModelPair) -> int | None:
        config: Any = getattr(pair.llm.model, "generation_config", None)
        return self.max_tokens or getattr(config, "max_new_tokens", None)


@dataclass(frozen=True)
class LabelThreshold:
    """A threshold that labels alone would have given, and what it comes to in generation."""

    share: float
    """Asked for, and found among validation labels."""
    threshold: float
    realised_share: float
    """LLM share in routed generation on validation problems, greedily."""


@dataclass(frozen=True, eq=False)
class Built:
    """A router, and everything that is known of it."""

    network: RouterNetwork
    card: RouterCard
    examples: Examples
    history: tuple[Epoch, ...]
    """Of training; none for one that was imported."""
    best: int
    """Number of the epoch whose weights these are; 0 for one that was imported."""
    qualities: tuple[Quality, ...]
    """On the test part."""
    from_labels: tuple[LabelThreshold, ...] = ()
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """By part of the problems: labels of each class."""
    own_threshold: bool = False
    """Is the default threshold one that an imported checkpoint brought?"""

    @property
    def target(self) -> Target:
        found: Target = self.card.provenance["arguments"].get("target", "divergent")
        return found

    @property
    def imported(self) -> str | None:
        """Name of the checkpoint that the weights are from; None for ones that were learnt here."""
        found: str | None = self.card.provenance.get("imported_from")
        return found

    @property
    def learnt_modes(self) -> tuple[str, ...]:
        """How the drafts (or responses) were drawn that weights or thresholds are from."""
        examples = self.examples
        learnt_N = examples.part_N != PARTS.index("test")
        return tuple(examples.modes[mode] for mode in np.unique(examples.mode_N[learnt_N]))

    @property
    def tested_modes(self) -> tuple[str, ...]:
        """The same of the test part."""
        examples = self.examples
        return tuple(examples.modes[mode] for mode in np.unique(examples.mode_N[examples.of("test")]))


def embedding_of(pair: ModelPair, shape: RouterShape) -> nn.Module | None:
    """The SLM's embedding, where a router of this shape reads it."""
    table: nn.Module = pair.slm.model.get_input_embeddings()
    return table if "embedding" in shape.inputs else None


def check_labels(found: dict[str, str], pair: ModelPair) -> None:
    """Raise `ExamplesError` unless the labels are of this pair. `found` are their fingerprints."""
    ours = fingerprints(pair)
    for name, reference in (
        ("slm", pair.slm.reference),
        ("llm", pair.llm.reference),
        ("tokenizer", "the pair's"),
    ):
        # Of an LLM behind an endpoint nobody knows the weights.
        if found.get(name, ours[name]) != ours[name] and not found[name].startswith(REMOTE):
            raise ExamplesError(
                f"the labels were made with another {name} ({found[name][:12]}) than {reference} ({ours[name][:12]}); give the "
                "pair that they were made with as --slm and --llm"
            )


def card_of(kind: Kind, pair: ModelPair, shape: RouterShape, record: dict[str, Any]) -> RouterCard:
    """A router's card without thresholds."""
    names = PairNames(pair.slm.reference, pair.llm.reference, fingerprints(pair))
    return RouterCard(kind, names, shape, provenance=record)


def finish(
    network: RouterNetwork,
    card: RouterCard,
    examples: Examples,
    pair: ModelPair,
    target: Target,
    options: ThresholdOptions,
    resampling: Resampling,
    trained: Trained | None = None,
    work: Path | None = None,
    tell: Callable[[str], object] = lambda _: None,
    device: torch.device | str = "cpu",
) -> Built:
    """Find the thresholds, look at the test part, and put both into the card. Raises `BuildError`, `ExamplesError`."""
    network.to(device)
    embedding = embedding_of(pair, network.shape)

    def probabilities(part: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        index_N = examples.of(part)
        logit_N = predict(network, examples, index_N, embedding, device)
        return index_N, 1 / (1 + np.exp(-logit_N))

    index_N, p_N = probabilities("validation")
    wanted_N = examples.wanted(target)[index_N]
    recalls = {recall: threshold_at_recall(p_N, wanted_N, recall) for recall in options.recall}
    runs = _runs(network, card, examples, pair, options, work, tell)
    stored = stored_thresholds(runs, options.samplings(), options.share, recalls)
    from_labels = _from_labels(runs, p_N, options)
    index_N, p_N = probabilities("test")
    tell("testing")
    found = tuple(qualities(examples, index_N, p_N, target, resampling))
    # A checkpoint that brings a threshold was tested with that one.
    default = default_of(stored, options) if card.default_threshold is None else card.default_threshold
    report = {
        "target": target,
        "test": {each.name: summary(each) for each in found},
        "counts": counts(examples),
    }
    own = card.default_threshold is not None
    card = replace(card, thresholds=tuple(stored), default_threshold=default, report=plain(report))
    history, best = (trained.history, trained.best) if trained else ((), 0)
    return Built(network, card, examples, history, best, found, from_labels, counts(examples), own)


def default_of(stored: Sequence[StoredThreshold], options: ThresholdOptions) -> float:
    """The threshold over all tasks for the default share at the first temperature."""
    wanted = (ALL_TASKS, options.default_share, options.temperature[0])
    return next(each.threshold for each in stored if (each.task, each.share, each.temperature) == wanted)


def counts(examples: Examples) -> dict[str, dict[str, int]]:
    """Labels of each class, and problems, by part."""
    found: dict[str, dict[str, int]] = {}
    for part in PARTS:
        index_N = examples.of(part)
        by_label = np.bincount(examples.label_N[index_N], minlength=3)
        problems = len(np.unique(examples.problem_N[index_N]))
        names = ("identical", "neutral", "divergent")
        found[part] = {"problems": problems, **{n: int(c) for n, c in zip(names, by_label, strict=True)}}
    return found


def summary(quality: Quality) -> dict[str, Any]:
    """The figures that one looks for first."""
    recall = {f"{share:g}": each.value for share, each in zip(SHARES, quality.router_recall, strict=True)}
    return {
        "num_tokens": quality.num_tokens,
        "num_problems": quality.num_problems,
        "share": quality.share.value,
        "roc": quality.router.roc.value,
        "pr": quality.router.pr.value,
        "roc_entropy": quality.entropy.roc.value,
        "pr_entropy": quality.entropy.pr.value,
        "calibration_error": quality.calibration.error,
        "recall_at_share": recall,
    }


def num_logits_of_queries(options: NetworkOptions, pair: ModelPair) -> int:
    """How many logits are kept of prompts: none where no input is made of them."""
    usual = TOP_K if options.shape(pair, "query", pair.vocab_size).reads_logits else 0
    return min(options.num_logits or usual, pair.vocab_size)


def _runs(
    network: RouterNetwork,
    card: RouterCard,
    examples: Examples,
    pair: ModelPair,
    options: ThresholdOptions,
    work: Path | None,
    tell: Callable[[str], object],
) -> RoutedRuns:
    make = QueryPolicy if card.kind == "query" else RouterPolicy
    router = Router(card, None, network, weights_digest(network))
    prompts = spread_prompts(examples.prompts("validation"), options.calibration_num)
    path = None if work is None else work / RUNS
    policy = make(0.5, router=router)
    return RoutedRuns(pair, policy, prompts, options.limit(pair), options.seed, path=path, tell=tell)


def weights_digest(network: RouterNetwork) -> str:
    """Tells these weights from others, before they have a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _from_labels(
    runs: RoutedRuns, p_N: NDArray[np.float64], options: ThresholdOptions
) -> tuple[LabelThreshold, ...]:
    """What the official way, a quantile of labels, would have led to, at a few shares."""
    found = []
    for share in sorted({min(options.share), options.default_share, max(options.share)}):
        threshold = float(f"{np.quantile(p_N, 1 - share):.6g}")
        got = runs.counted(list(runs.prompts), SamplingParams(), threshold)
        found.append(LabelThreshold(share, threshold, got.share))
    return tuple(found)
