"""`navtoken scale`: what policies gain from more samples and longer responses, and what that costs.

The most samples that any k needs are drawn once, kept as traces, and every smaller k follows from them; run again, a larger k or
another policy adds what is missing.
"""

import json
import re
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from navtoken.checkpoints import ModelPair
from navtoken.commands.scale_page import Scaled, findings, write_page
from navtoken.commands.show import Row, metric, percent
from navtoken.commands.surroundings import progress_console
from navtoken.engine import SamplingParams
from navtoken.engine.options import OptionError
from navtoken.evaluation.evaluate import Table as PlainTable
from navtoken.evaluation.measurements import Measurements, measure_cells
from navtoken.evaluation.scaling import Resampling
from navtoken.generation import GenerateOptions, GenerationOptions, ModelOptions, generate
from navtoken.report.markup import write_whole
from navtoken.trace import read_provenance

__all__ = ["ScaleOptions", "run"]

MEASUREMENTS = "measurements.json"
CHECKPOINTS = "checkpoints"
"""Subfolder of what further LLMs drew."""


def _generation() -> GenerationOptions:
    return GenerationOptions(policy=("llm", "router"), sampling=SamplingParams(temperature=1.0))


@dataclass(frozen=True)
class ScaleOptions:
    """Give policies more samples and more tokens: avg@k, pass@k, maj@k and best of k against what they cost. llm and router
    at temperature 1 where nothing else is said. Run again, it goes on where it stopped."""

    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair."""
    generation: GenerationOptions = field(default_factory=_generation)
    """Problems, policies and sampling; as many samples are drawn as the largest k asks for, or samples where that is more,
    from which every k is estimated."""
    checkpoint: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further LLM, in the grammar of llm, under which the same policies are run and shown with its name, such as a checkpoint
    before or after training; may be repeated."""
    k: str = "1,4,16"
    """Samples per problem to compare, by comma."""
    budget: str | None = None
    """Longest responses in tokens to compare, by comma, each judged as it stood there; whole ones are always among them."""
    compare: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Folder that an earlier run with the same problems left, such as that of another pair, to be held against this one; may
    be repeated."""
    resamples: int = 1000
    """Bootstrap resamples of the problems, from which intervals come; 0 makes none."""
    out: Path = Path("out/scale")
    """Folder of the page (index.html), the figures (scale.json), what they come from (measurements.json) and the traces."""

    @property
    def ks(self) -> list[int]:
        return parse_numbers(self.k, "k")

    @property
    def budgets(self) -> list[int | None]:
        """The budgets from short to long, then none."""
        return [*([] if self.budget is None else parse_numbers(self.budget, "budget")), None]

    @property
    def num_samples(self) -> int:
        return max(*self.ks, self.generation.samples)

    def check(self) -> None:
        """Raise `OptionError` for what cannot work, before anything is loaded."""
        if self.resamples < 0:
            raise OptionError(f"resamples is {self.resamples}; give at least 0")
        sampling = self.generation.sampling
        if self.num_samples > 1 and not (sampling.temperature or sampling.fork_temperature):
            raise OptionError(
                f"temperature is {sampling.temperature:g} with {self.num_samples} samples, which would all be the same; give a "
                "temperature above 0, or --k 1 alone"
            )
        assert self.budgets
        for reference in self.checkpoint:
            if self.checkpoint.count(reference) > 1 or reference == self.models.llm:
                raise OptionError(f"checkpoint '{reference}' is there twice, or is llm itself; leave one out")
        names = [folder.resolve().name for folder in self.compare]
        for folder, name in zip(self.compare, names, strict=True):
            if names.count(name) > 1:
                raise OptionError(f"compare has two folders called '{name}'; rename one of them")
            if folder.resolve() == self.out.resolve():
                raise OptionError(f"compare '{folder}' is this run's own folder; leave it out")

    def of_checkpoint(self, reference: str) -> "ScaleOptions":
        """The same with a further LLM, in a folder of its own."""
        name = (
            re.sub(r"[^\w.-]+", "_", reference).strip("_.") + "-" + sha256(reference.encode()).hexdigest()[:6]
        )
        models = replace(self.models, llm=reference)
        return replace(self, models=models, checkpoint=(), compare=(), out=self.out / CHECKPOINTS / name)

    def generate_options(self) -> GenerateOptions:
        generation = replace(self.generation, samples=self.num_samples)
        return GenerateOptions(self.models, generation, self.out)


def parse_numbers(text: str, name: str) -> list[int]:
    """Numbers by comma, each once, in order. Raises `OptionError` naming the option and the part."""
    found = set()
    for part in text.split(","):
        number = int(part) if part.strip().isascii() and part.strip().isdigit() else 0
        if number < 1:
            raise OptionError(
                f"{name} '{text}': '{part.strip()}' is no number from 1 on; write {name} as 1,4,16"
            )
        if number in found:
            raise OptionError(f"{name} '{text}' has {number} twice; leave one out")
        found.add(number)
    return sorted(found)


def run(options: ScaleOptions, console: Console, pair: ModelPair | None = None) -> dict[str, Any]:
    """Draw what is missing, print the table, write page and figures; returns the figures."""
    options.check()
    others = {folder.resolve().name: Measurements.read(folder / MEASUREMENTS) for folder in options.compare}
    measured = measurements(options, pair or options.models.load(), progress_console())
    for reference in options.checkpoint:
        own = options.of_checkpoint(reference)
        measured = measured.beside(measurements(own, own.models.load(), progress_console()), reference)
    for name, other in others.items():
        measured = measured.beside(other, name)
    scaled = scaled_of(options, measured)
    result = as_json(scaled)
    print_scaled(console, scaled)
    write_whole(options.out / "scale.json", json.dumps(result, indent=1) + "\n")
    page = write_page(options.out / "index.html", scaled)
    console.print(f"page: {page.resolve()}", soft_wrap=True)
    return result | {"page": str(page)}


def measurements(options: ScaleOptions, pair: ModelPair, progress: Console) -> Measurements:
    """Draw what the folder lacks, measure what was asked for, and keep that beside the traces."""
    cells = generate(options.generate_options(), pair, progress)
    seed = options.generation.seed
    with progress.status("measuring"):
        found = measure_cells(options.out, cells, pair, options.ks, options.budgets, seed)
    found = replace(found, provenance=read_provenance(options.out))
    write_whole(options.out / MEASUREMENTS, json.dumps(found.as_json(), allow_nan=False) + "\n")
    return found


def scaled_of(options: ScaleOptions, measured: Measurements) -> Scaled:
    resampling = Resampling(options.resamples, options.generation.seed)
    return Scaled(
        measured.rows(resampling),
        measured.differences(resampling),
        dict(measured.num_samples),
        dict(measured.provenance),
    )


def as_json(scaled: Scaled) -> dict[str, Any]:
    """Findings, rows, paired differences and provenance; a number that was not computed is None."""
    differences = PlainTable(scaled.differences, {}).as_json()["rows"]
    shown = {"findings": findings(scaled), "num_samples": scaled.num_samples, "differences": differences}
    return shown | PlainTable(scaled.rows, scaled.provenance).as_json()


# ---- the terminal ---------------------------------------------------------------------------------------------


def print_scaled(console: Console, scaled: Scaled) -> None:
    """One block per task and budget, then what it shows. Fits into 80 columns."""
    for title, rows in scaled.blocks().items():
        console.print(_table(title, rows))
    console.print("avg, pass, maj: right in %, 95 % interval over problems. tokens, FLOPs: per problem.")
    for line in findings(scaled):
        console.print(f"· {line}", markup=False)


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("policy", overflow="fold", min_width=8)
    for heading in ("k", "avg@k", "pass@k", "maj@k", "tokens", "FLOPs"):
        table.add_column(heading, justify="right", no_wrap=True)
    before = None
    for row in rows:
        figures = [_spread(row, name) for name in ("avg", "pass", "maj")]
        name = "" if row["policy"] == before else row["policy"]
        table.add_row(Text(name), str(row["k"]), *figures, metric(row["tokens"]), metric(row["flops"]))
        before = row["policy"]
    return table


def _spread(row: Row, name: str) -> str:
    low, high = percent(row[f"{name}_low"]), percent(row[f"{name}_high"])
    return percent(row[name]) + ("" if low == "–" else f" ({float(low):.0f}–{float(high):.0f})")
