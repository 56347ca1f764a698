"""What a router needs: each input alone, the entropy alone, another target, drafts of one kind, on the embedded pair.

    .venv/bin/python experiments/router_ablation.py

writes `experiments/router_ablation/`: `ablation.json` (areas, recalls, and routed accuracy at one LLM share for each router, with
provenance), `ablation.md` (the table) and `recall.svg`. It labels the LLM's responses first, with greedy and with sampled drafts,
if `--work` does not hold them yet. Run again, it goes on where it stopped.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from navtoken.analysis.plain import plain
from navtoken.analysis.ranking import Interval, Resampling
from navtoken.checkpoints import ModelPair, load_pair
from navtoken.commands import label
from navtoken.commands.interval_words import curve
from navtoken.commands.label_inputs import RESPONSES
from navtoken.evaluation import EvaluateOptions, evaluate
from navtoken.generation import GenerationOptions, fingerprints
from navtoken.generation.options import FAMILIES
from navtoken.provenance import provenance
from navtoken.report import CurvesSection, write_svg
from navtoken.report.markup import write_whole
from navtoken.router import save_router
from navtoken.router_training.build import (
    NetworkOptions,
    ThresholdOptions,
    card_of,
    embedding_of,
    finish,
)
from navtoken.router_training.examples import Examples, gather, identity_of
from navtoken.router_training.quality import SHARES, Quality, qualities
from navtoken.router_training.training import TrainingOptions, predict, train

MODES = ("greedy", "sampled")


@dataclass(frozen=True)
class Variant:
    """A router that is trained."""

    name: str
    inputs: str | None = None
    """As `--inputs` of `navtoken train-router`; None is its default."""
    target: str = "divergent"
    modes: tuple[str, ...] = MODES
    """Drafts that it is trained on; all are tested on both."""


VARIANTS = (
    Variant("all inputs"),
    Variant("the paper's three", "logits,embedding,hidden"),
    Variant("logits alone", "logits"),
    Variant("embedding alone", "embedding"),
    Variant("hidden state alone", "hidden"),
    Variant("summary alone", "summary"),
    Variant("entropy alone", "entropy"),
    Variant("all that differ as target", target="different"),
    Variant("greedy drafts only", modes=("greedy",)),
    Variant("sampled drafts only", modes=("sampled",)),
)
SHOWN = ("all inputs", "hidden state alone", "embedding alone", "entropy alone")


@dataclass(frozen=True)
class Options:
    """The experiment's size."""

    num: int = 700
    """Labelled problems per family, of the training split."""
    share: float = 0.2
    """LLM share at which all route."""
    test_num: int = 200
    """Test problems per family that are answered by routing; 0 leaves that out."""
    epochs: int = 20
    """Of each training at most."""
    seed: int = 11
    """Fixes test problems, first weights and resamples."""
    resamples: int = 300
    """Bootstrap resamples of the problems."""
    out: Path = Path("experiments/router_ablation")
    """Folder of the results."""
    work: Path = Path("build/router_ablation")
    """Folder of labels, routers and responses."""


def main(options: Options) -> None:
    console, pair = Console(), load_pair()
    folders = labelled(options, pair, console)
    tested = gather(list(folders.values()), pair.vocab_size, options.work / "examples")
    rows = [row_of(variant, options, pair, folders, tested, console) for variant in VARIANTS]
    result = plain(
        {
            "rows": [row.as_json() for row in rows],
            "models": alone(options, pair, console),
            "provenance": provenance(fingerprints(pair), **vars(options)),
        }
    )
    write_whole(options.out / "ablation.json", json.dumps(result, indent=1, default=str) + "\n")
    write_whole(options.out / "ablation.md", markdown(rows, options))
    write_svg(picture(rows), options.out / "recall.svg")
    console.print(markdown(rows, options))


@dataclass(frozen=True)
class Found:
    """What one router came to."""

    variant: Variant
    parameters: int
    quality: Quality
    """On test labels of both modes, of divergent tokens."""
    by_mode: dict[str, Quality]
    realised_share: float
    """On validation problems."""
    routed: dict[str, dict[str, Any]]
    """By task and `mean`: accuracy and LLM share on test problems."""

    def as_json(self) -> dict[str, Any]:
        return {
            "variant": asdict(self.variant),
            "parameters": self.parameters,
            "quality": self.quality.as_json(),
            "by_mode": {name: each.as_json() for name, each in self.by_mode.items()},
            "realised_share": self.realised_share,
            "routed": self.routed,
        }


def labelled(options: Options, pair: ModelPair, console: Console) -> dict[str, Path]:
    """Folders of labels by mode: one set of responses, labelled twice."""
    greedy = options.work / "labels" / "greedy"
    label.run(label.LabelOptions(num=options.num, out=greedy), console, pair)
    sampled = options.work / "labels" / "sampled"
    label.run(label.LabelOptions(traces=greedy / RESPONSES, draft="sampled", out=sampled), console, pair)
    return {"greedy": greedy, "sampled": sampled}


def row_of(
    variant: Variant,
    options: Options,
    pair: ModelPair,
    folders: dict[str, Path],
    tested: Examples,
    console: Console,
) -> Found:
    """Train one router, test it on all labels of the test part, and let it route."""
    console.print(f"router: {variant.name}")
    folder = options.work / "routers" / variant.name.replace(" ", "_").replace("'", "")
    own = [folders[mode] for mode in variant.modes]
    examples = (
        tested if variant.modes == MODES else gather(own, pair.vocab_size, options.work / "examples_part")
    )
    training = TrainingOptions(
        epochs=options.epochs,
        target=variant.target,  # type: ignore[arg-type]
        training_seed=options.seed,
    )
    shape = NetworkOptions(inputs=variant.inputs).shape(pair, "token", examples.num_logits)
    embedding = embedding_of(pair, shape)
    trained = train(examples, shape, embedding, training, folder / "training", identity_of(own))
    record = provenance(fingerprints(pair), **asdict(training), labels=[str(each) for each in own])
    card = card_of("token", pair, shape, record)
    wanted = ThresholdOptions(
        share=(options.share,), recall=(0.9,), temperature=(0.0,), default_share=options.share
    )
    none = Resampling(num=0)
    built = finish(
        trained.network,
        card,
        examples,
        pair,
        training.target,
        wanted,
        none,
        trained,
        folder / "training",
    )
    save_router(folder, built.network, built.card)
    index_N = tested.of("test")
    p_N = 1 / (1 + np.exp(-predict(trained.network, tested, index_N, embedding)))
    whole, *parts = qualities(tested, index_N, p_N, "divergent", Resampling(options.resamples, options.seed))
    stored = next(each for each in built.card.thresholds if each.share == options.share)
    return Found(
        variant,
        trained.network.num_parameters,
        whole,
        {each.name: each for each in parts if each.name in tested.modes},
        float(stored.realised_share or 0.0),
        answered(f"router:{folder},threshold={stored.threshold!r}", options, pair, console),
    )


def answered(policy: str, options: Options, pair: ModelPair, console: Console) -> dict[str, dict[str, Any]]:
    """Accuracy and LLM share on test problems, greedily."""
    if not options.test_num:
        return {}
    generation = GenerationOptions(
        task=FAMILIES, policy=(policy,), num=options.test_num, split="test", seed=options.seed
    )
    table = evaluate(EvaluateOptions(generation=generation, out=options.work / "responses"), pair, console)
    kept = ("accuracy", "accuracy_se", "llm_share")
    return {row["task"]: {name: row.get(name) for name in kept} for row in table.rows}


def alone(options: Options, pair: ModelPair, console: Console) -> dict[str, Any]:
    """Both models, and entropy routing calibrated for the same share."""
    policies = ("slm", "llm", f"entropy,share={options.share}")
    return {policy: answered(policy, options, pair, console) for policy in policies}


# ---- table and picture ----------------------------------------------------------------------------------------


def markdown(rows: Sequence[Found], options: Options) -> str:
    """A row per router."""
    at = SHARES.index(0.2)
    lines = [
        f"| router | parameters | ROC area | area under precision and recall | found in the top 20 % | accuracy at share {options.share:g} | LLM share |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        mean = row.routed.get("mean", {})
        accuracy = mean.get("accuracy")
        cells = [
            row.variant.name,
            f"{row.parameters:,}",
            _spread(row.quality.router.roc),
            _spread(row.quality.router.pr),
            f"{100 * row.quality.router_recall[at].value:.1f} %",
            "–" if accuracy is None else f"{100 * accuracy:.1f} ± {100 * mean['accuracy_se']:.1f}",
            "–" if accuracy is None else f"{mean['llm_share']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def picture(rows: Sequence[Found]) -> CurvesSection:
    """Recall against the share of tokens left to the LLM."""
    known = [index for index, share in enumerate(SHARES) if share <= 0.5]
    places = [100 * SHARES[index] for index in known]
    shown = [row for row in rows if row.variant.name in SHOWN]
    curves = [curve(row.variant.name, places, [row.quality.router_recall[i] for i in known]) for row in shown]
    return CurvesSection(
        "Divergent tokens found by share of tokens left to the LLM",
        curves,
        "tokens left to the LLM, of test labels (%)",
        "divergent tokens among them",
        y_percent=True,
        band=True,
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
