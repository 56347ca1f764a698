"""Tokens per second of `navtoken serve` at 1, 4, 16 and 64 requests at once, against `transformers serve` with the LLM.

    python benchmarks/serving_speed.py --json

All servers are asked the same questions greedily, over HTTP, without streaming; so many clients ask one after the other. Tokens are those that
each server counts in its usage. A round asks every server at every number of clients once; ratios are of rounds, against the better of the peer's two
ways to batch.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import tyro

from measuring import (
    Bar,
    BenchmarkError,
    bars_table,
    console_for,
    finish,
    interleaved,
    paired_ratio,
    run_script,
    spread,
    table,
)
from navtoken.tasks import load_task
from server_process import Served, navtoken_server, transformers_server

OURS = ("llm", "router", "speculative:4")
PEERS = {"transformers": (), "transformers, continuous": ("--continuous-batching",)}
FAMILIES = ("countdown", "knights", "arithmetic")


@dataclass(frozen=True)
class Options:
    """How many tokens a second?"""

    clients: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of requests at once."""
    rounds: int = 3
    """Interleaved rounds."""
    per_client: int = 2
    """Requests of each client in a round; at least `least` in all."""
    least: int = 8
    """Requests at any number of clients, at least."""
    max_tokens: int = 160
    """Longest response."""
    json: bool = False
    """Only the JSON line goes to standard output."""
    out: Path | None = None
    """Also write the result to this file."""


class Asked(NamedTuple):
    """A server under the name that the table has for it."""

    served: Served
    model: str


class Load(NamedTuple):
    """What a number of clients got."""

    tokens: int
    seconds: float
    texts: tuple[str, ...]

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print; returns what the JSON line says."""
    options = tyro.cli(Options, description=__doc__, args=args)
    console = console_for(options.json)
    questions = _questions(max(options.least, options.per_client * max(options.clients)))
    with ExitStack() as stack:
        servers = {
            name: Asked(stack.enter_context(navtoken_server(policy=name)), "navtoken") for name in OURS
        }
        for name, flags in PEERS.items():
            served, model = stack.enter_context(transformers_server(*flags))
            servers[name] = Asked(served, model)
        candidates = {
            f"{name}|{clients}": partial(_load, asked, questions, clients, options)
            for clients in options.clients
            for name, asked in servers.items()
        }
        _check_same(servers, questions[: options.least], options)
        runs = interleaved(candidates, options.rounds, lambda what: console.print(what, style="dim"))
    rows = [
        {
            "server": name,
            "clients": clients,
            "tokens_per_second": spread([run.rate for run in runs[f"{name}|{clients}"]])._asdict(),
        }
        for clients in options.clients
        for name in servers
    ]
    ratios = {clients: _ratios(runs, clients) for clients in options.clients}
    cells = [
        (
            name,
            *(spread([run.rate for run in runs[f"{name}|{clients}"]]).median for clients in options.clients),
        )
        for name in servers
    ]
    cells += [
        (f"{name} / best peer", *(ratios[clients][name].median for clients in options.clients))
        for name in OURS
    ]
    console.print(table("Tokens per second, by clients", ("", *map(str, options.clients)), cells))
    bars = [
        Bar(f"policy llm / best peer, {clients} clients", 1.0, ratios[clients]["llm"].median)
        for clients in options.clients
    ]
    console.print(bars_table(bars))
    result = {
        "rows": rows,
        "ratios": {
            str(clients): {name: ratio._asdict() for name, ratio in each.items()}
            for clients, each in ratios.items()
        },
        "bars": [bar.as_json() for bar in bars],
    }
    return finish("serving_speed", options, result, options.out)


def _questions(num: int) -> list[str]:
    each = [
        [problem.prompt for problem in load_task(name).problems("test", num // 3 + 1, 5)] for name in FAMILIES
    ]
    return [question for questions in zip(*each, strict=True) for question in questions][:num]


def _load(asked: Asked, questions: Sequence[str], clients: int, options: Options, number: int) -> Load:
    num = max(options.least, options.per_client * clients)
    return asyncio.run(_ask_all(asked, questions[:num], clients, options))


async def _ask_all(asked: Asked, questions: Sequence[str], clients: int, options: Options) -> Load:
    waiting = list(enumerate(questions))[::-1]
    texts = [""] * len(questions)
    tokens = 0

    async def client(http: httpx2.AsyncClient) -> None:
        nonlocal tokens
        while waiting:
            index, question = waiting.pop()
            body = {
                "model": asked.model,
                "messages": [{"role": "user", "content": question}],
                "temperature": 0,
                "max_tokens": options.max_tokens,
            }
            answer = await http.post(f"{asked.served.base}/chat/completions", json=body)
            if answer.status_code != 200:
                raise BenchmarkError(f"{asked.served.base} answers {answer.status_code}: {answer.text[:300]}")
            told = answer.json()
            tokens += told["usage"]["completion_tokens"]
            texts[index] = told["choices"][0]["message"]["content"]

    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(timeout=600, limits=limits) as http:
        started = time.perf_counter()
        await asyncio.gather(*[client(http) for _ in range(clients)])
        return Load(tokens, time.perf_counter() - started, tuple(texts))


def _ratios(runs: dict[str, list[Load]], clients: int) -> dict[str, Any]:
    peers = [[run.rate for run in runs[f"{name}|{clients}"]] for name in PEERS]
    best = [max(rates) for rates in zip(*peers, strict=True)]
    return {name: paired_ratio([run.rate for run in runs[f"{name}|{clients}"]], best) for name in OURS}


def _check_same(servers: dict[str, Asked], questions: Sequence[str], options: Options) -> None:
    """A server that answers something else would be compared by other work. Warms all of them up, too."""
    told = {name: asyncio.run(_ask_all(asked, questions, 2, options)) for name, asked in servers.items()}
    for name in ("llm", *PEERS):
        # The peer puts the prompt before its answer, and an end token behind it.
        same = sum(ours in theirs for ours, theirs in zip(told["llm"].texts, told[name].texts, strict=True))
        if same < 0.9 * len(questions) or abs(told[name].tokens / told["llm"].tokens - 1) > 0.05:
            raise BenchmarkError(
                f"only {same} of {len(questions)} greedy answers of {name}, {told[name].tokens} tokens, are the LLM's, "
                f"{told['llm'].tokens} tokens"
            )


if __name__ == "__main__":
    run_script(main)
