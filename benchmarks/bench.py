"""Run all benchmarks, one process after the other, each with its result in `benchmarks/results/`.

    make bench

The pairs that only an accelerator can hold run where there is one.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tyro

from measuring import Bar, bars_table, console_for
from pairs import PAIRS, device_name

HERE = Path(__file__).parent
PEERS = {"rl_step": "trl", "serving_speed": "openai"}
"""Benchmarks that need a package which only the development tools bring."""


@dataclass(frozen=True)
class Options:
    """Which benchmarks?"""

    only: str = ""
    """Names of results, comma-separated (`decode-embedded,context`); all by default."""
    results: Path = HERE / "results"
    """Folder of the results."""
    json: bool = False
    """Only the JSON line goes to standard output."""


def jobs() -> dict[str, list[str]]:
    """Command lines by name of result."""
    pairs = [name for name, source in PAIRS.items() if device_name() != "cpu" or not source.needs_accelerator]
    by_pair = {
        f"{script}-{pair}": [f"{script}.py", "--pair", pair]
        for script in ("decode", "batching", "overhead", "memory")
        for pair in pairs
    }
    alone = {name: [f"{name}.py"] for name in ("context", "scoring", "analysis")}
    alone |= {name: [f"{name}.py"] for name, peer in PEERS.items() if find_spec(peer) is not None}
    return by_pair | alone


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is asked for; the JSON line holds every bar. Exits with 1 where a benchmark failed."""
    options = tyro.cli(Options, description=__doc__, args=args)
    known = jobs()
    asked = [name for name in options.only.split(",") if name] or list(known)
    if unknown := [name for name in asked if name not in known]:
        sys.exit(f"there is no benchmark '{unknown[0]}'; there are {', '.join(known)}")
    failed = [name for name in asked if not _run(known[name], options.results / f"{name}.json")]
    bars = {name: _bars(options.results / f"{name}.json") for name in asked if name not in failed}
    for name, found in bars.items():
        if found:
            console_for(options.json).print(name, bars_table(found))
    result = {
        "benchmark": "all",
        "failed": failed,
        "bars": {name: [bar.as_json() for bar in found] for name, found in bars.items()},
    }
    print(json.dumps(result, allow_nan=False), flush=True)
    if failed:
        sys.exit(1)
    return result


def _run(command: Sequence[str], out: Path) -> bool:
    print(f"{' '.join(command)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:], "--json", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode == 0


def _bars(path: Path) -> list[Bar]:
    found = json.loads(path.read_text(encoding="utf-8")).get("bars", ())
    return [Bar(bar["name"], bar["wanted"], bar["got"]) for bar in found]


if __name__ == "__main__":
    main()
