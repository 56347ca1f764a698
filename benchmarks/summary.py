"""The table of decoding speeds in the README, out of committed results.

python benchmarks/summary.py
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
HEAD = (
    "| pair, rows | LLM alone, tokens/s | of its bound | / `generate` | / continuous batching | "
    "`random:0.13` / LLM alone | of its bound | `speculative:4` / LLM alone |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)


def markdown(results: list[dict[str, Any]]) -> str:
    """One line per pair and concurrency."""
    lines = [
        _line(result["pair"]["name"], point)
        for result in results
        for point in sorted(result["points"], key=lambda point: point["concurrency"])
    ]
    return HEAD + "\n".join(lines) + "\n"


def committed() -> list[dict[str, Any]]:
    """Results of `decode.py`, by pair and concurrency."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("decode-*.json")]
    return sorted(found, key=_place)


def _place(result: dict[str, Any]) -> tuple[str, int, str]:
    return result["pair"]["name"], result["points"][0]["concurrency"], result["provenance"]["created"]


def _line(pair: str, point: dict[str, Any]) -> str:
    rows = {row["row"]: row for row in point["rows"]}
    speeds = {name: row["tokens_per_second"]["median"] for name, row in rows.items()}

    def ratio(over: str, under: str) -> str:
        found = point["ratios"].get(over, {}).get(under)
        return f"{found['median']:.2f}" if found else ""

    def fraction(name: str) -> str:
        return f"{rows[name]['roofline_fraction']:.2f}" if name in rows else ""

    compiled = ", compiled" if rows["llm"]["settings"].get("torch_compile") else ""
    cells = (
        f"{pair}, {point['concurrency']}{compiled}",
        f"{speeds['llm']:.3g}" if speeds["llm"] < 1000 else f"{speeds['llm']:.0f}",
        fraction("llm"),
        ratio("llm", "generate"),
        ratio("llm", "continuous"),
        ratio("random:0.13", "llm"),
        fraction("random:0.13"),
        ratio("speculative:4", "llm"),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    (RESULTS / "summary.md").write_text(markdown(committed()), encoding="utf-8")
    print(markdown(committed()), end="")
