"""Minutes of many clients that come, go, and send nonsense: does the server keep every promise, and nothing else?

    python benchmarks/soak.py --seconds 600 --json

Clients ask for answers with and without streaming, hang up at any moment, and send malformed, unsupported and oversized requests. Greedy answers that
are read to their end must be those that the server gave before the soak, one by one. Afterwards no row and no cache block may
be in use, and memory must not have grown.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import tyro

from measuring import Bar, bars_table, console_for, finish, run_script, table
from navtoken.tasks import load_task
from server_process import Served, navtoken_server

FAMILIES = ("countdown", "knights", "arithmetic")
POLICIES = ("router", "llm", "slm", "speculative:4", "hindsight:0.05")
MAX_BODY = 64 * 1024
WRONG: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b"[]", 400),
    (b'{"model": "navtoken"}', 400),
    (b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}', 404),
    (b'{"model": "navtoken", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 400),
    (b'{"model": "navtoken", "messages": [{"role": "user", "content": "x"}], "tools": [1]}', 400),
    (b'{"model": "navtoken", "messages": [{"role": "user", "content": "x"}], "policy": "router:/etc"}', 400),
    (b'{"model": "navtoken", "messages": [{"role": "user", "content": "x"}], "max_tokens": 100000}', 400),
    (b'{"model": "navtoken", "messages": [{"role": "user", "content": "' + b"x " * 3000 + b'"}]}', 400),
    (b"x" * (MAX_BODY + 1), 413),
)
"""Bodies, and the status that each must get."""


@dataclass(frozen=True)
class Options:
    """Does the server survive its clients?"""

    seconds: float = 600.0
    """How long."""
    clients: int = 32
    """Clients at once."""
    questions: int = 24
    """Different questions."""
    max_tokens: int = 160
    """Longest response."""
    seed: int = 0
    """Fixes what clients do, if not when."""
    json: bool = False
    """Only the JSON line goes to standard output."""
    out: Path | None = None
    """Also write the result to this file."""


@dataclass
class Tally:
    """What clients saw."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, what: str) -> None:
        self.counts["faults"] += 1
        if len(self.faults) < 20:
            self.faults.append(what)


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Soak a server, print, and return what the JSON line says."""
    options = tyro.cli(Options, description=__doc__, args=args)
    console = console_for(options.json)
    with navtoken_server("--max-body", str(MAX_BODY), "--max-queue", "64", policy="router") as served:
        result = asyncio.run(soak(served.base, options, served))
    console.print(table("Soak", ("", "number"), sorted(result["counts"].items())))
    bars = [Bar(name, wanted, got) for name, wanted, got in _bars(result)]
    console.print(bars_table(bars))
    return finish("soak", options, result | {"bars": [bar.as_json() for bar in bars]}, options.out)


async def soak(base: str, options: Options, served: Served | None = None) -> dict[str, Any]:
    """Run clients against a server; returns counts, faults, what is left in use, and memory in bytes over time."""
    tally, memory = Tally(), []
    limits = httpx2.Limits(max_connections=2 * options.clients)
    async with httpx2.AsyncClient(timeout=300, limits=limits) as http:
        known = await _known_answers(http, base, options)
        ends = time.monotonic() + options.seconds
        clients = [
            asyncio.ensure_future(
                _client(
                    http,
                    base,
                    known,
                    random.Random(f"{options.seed}-{number}"),
                    ends,
                    tally,
                    options.max_tokens,
                )
            )
            for number in range(options.clients)
        ]
        while not all(client.done() for client in clients):
            if served is not None:
                memory.append(psutil.Process(served.pid).memory_info().rss)
            await asyncio.wait(clients, timeout=max(1.0, options.seconds / 60))
        await asyncio.gather(*clients)
        left = await _settled(http, base)
    return {"counts": dict(tally.counts), "faults": tally.faults, "left": left, "memory": memory}


async def _known_answers(http: httpx2.AsyncClient, base: str, options: Options) -> dict[tuple[str, str], str]:
    """Every question's greedy answer under every policy, asked for one by one."""
    num = -(-options.questions // len(FAMILIES))
    questions = [problem.prompt for name in FAMILIES for problem in load_task(name).problems("test", num, 9)]
    known = {}
    for index, question in enumerate(questions[: options.questions]):
        policy = POLICIES[index % len(POLICIES)]
        body = _body(question, policy, options.max_tokens)
        answer = (await http.post(f"{base}/chat/completions", json=body)).json()
        known[question, policy] = answer["choices"][0]["message"]["content"]
    return known


def _body(question: str, policy: str, max_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {
        "model": "navtoken",
        "messages": messages,
        "temperature": 0,
        "policy": policy,
        "max_tokens": max_tokens,
    }


async def _client(
    http: httpx2.AsyncClient,
    base: str,
    known: dict[tuple[str, str], str],
    dice: random.Random,
    ends: float,
    tally: Tally,
    max_tokens: int,
) -> None:
    url = f"{base}/chat/completions"
    while time.monotonic() < ends:
        question, policy = dice.choice(list(known))
        body = _body(question, policy, max_tokens)
        deed = dice.choices((_whole, _streamed, _hang_up, _hang_up_stream, _wrong), (4, 4, 2, 3, 2))[0]
        try:
            await deed(http, url, body, known[question, policy], dice, tally)
        except httpx2.HTTPError as error:
            tally.fault(f"{deed.__name__}: {type(error).__name__} {error}")


async def _whole(
    http: httpx2.AsyncClient, url: str, body: dict[str, Any], known: str, dice: random.Random, tally: Tally
) -> None:
    answer = await http.post(url, json=body)
    if await _is_busy(answer.status_code, answer.headers, tally):
        return
    if answer.status_code != 200:
        tally.fault(f"status {answer.status_code}: {answer.text[:200]}")
        return
    _compare(answer.json()["choices"][0]["message"]["content"], known, tally, "whole")


async def _streamed(
    http: httpx2.AsyncClient, url: str, body: dict[str, Any], known: str, dice: random.Random, tally: Tally
) -> None:
    text, ended = "", False
    async with http.stream("POST", url, json=body | {"stream": True}) as answer:
        if await _is_busy(answer.status_code, answer.headers, tally):
            return
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                told = json.loads(line[6:])
                text += "".join(choice["delta"].get("content", "") for choice in told.get("choices", ()))
    if not ended:
        tally.fault("a stream ended without [DONE]")
    _compare(text, known, tally, "streamed")


async def _hang_up(
    http: httpx2.AsyncClient, url: str, body: dict[str, Any], known: str, dice: random.Random, tally: Tally
) -> None:
    asking = asyncio.ensure_future(http.post(url, json=body))
    await asyncio.wait((asking,), timeout=dice.random() ** 2 * 2)
    asking.cancel()
    await asyncio.wait((asking,))
    tally.counts["hung up"] += 1


async def _hang_up_stream(
    http: httpx2.AsyncClient, url: str, body: dict[str, Any], known: str, dice: random.Random, tally: Tally
) -> None:
    patience = dice.randrange(40)
    async with http.stream("POST", url, json=body | {"stream": True, "n": dice.randint(1, 3)}) as answer:
        if await _is_busy(answer.status_code, answer.headers, tally):
            return
        async for _ in answer.aiter_lines():
            patience -= 1
            if patience < 0:
                break
    tally.counts["left a stream"] += 1


async def _wrong(
    http: httpx2.AsyncClient, url: str, body: dict[str, Any], known: str, dice: random.Random, tally: Tally
) -> None:
    content, wanted = dice.choice(WRONG)
    answer = await http.post(url, content=content, headers={"content-type": "application/json"})
    tally.counts["refused"] += 1
    if answer.status_code != wanted or "error" not in answer.json():
        tally.fault(f"{content[:60]!r} got {answer.status_code}, not {wanted}")


async def _is_busy(status: int, headers: Any, tally: Tally) -> bool:
    if status != 429:
        return False
    tally.counts["told to come back"] += 1
    if not headers.get("retry-after", "").isdecimal():
        tally.fault("429 without Retry-After")
    await asyncio.sleep(0.2)
    return True


def _compare(text: str, known: str, tally: Tally, how: str) -> None:
    tally.counts[how] += 1
    if text != known:
        tally.counts["other answers"] += 1
        tally.fault(f"{how}: {text[:80]!r} instead of {known[:80]!r}")


async def _settled(http: httpx2.AsyncClient, base: str) -> dict[str, float]:
    """What is in use once all clients are gone, at most five seconds later."""
    root, left = base.removesuffix("/v1"), {}
    for _ in range(50):
        await asyncio.sleep(0.1)
        lines = (await http.get(f"{root}/metrics")).text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        left = {name: float(values[f"navtoken:{name}"]) for name in names}
        if not any(left.values()):
            break
    health = (await http.get(f"{root}/health")).json()
    return left | {"crashes": health["crashes"], "is_ok": float(health["status"] == "ok")}


def _bars(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    left, counts = result["left"], result["counts"]
    in_use = sum(
        left[name] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    )
    answered = counts.get("whole", 0) + counts.get("streamed", 0)
    bars = [
        (
            "surviving requests answered in full (fraction)",
            1.0,
            1 - counts.get("faults", 0) / max(1, answered),
        ),
        ("nothing left in use (1 is yes)", 1.0, float(in_use == 0)),
        ("no crash (1 is yes)", 1.0, float(left["crashes"] == 0 and left["is_ok"] == 1)),
    ]
    memory = result["memory"]
    if len(memory) >= 10:
        # The first tenth fills caches of Python and torch.
        start, end = max(memory[: len(memory) // 5]), max(memory[-len(memory) // 5 :])
        bars.append(("memory in the first fifth / in the last", 0.95, start / end))
    return bars


if __name__ == "__main__":
    run_script(main)
