"""Many clients at once: the same answers as one by one, nothing left behind, and a dashboard whose metrics are there."""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import httpx2

from live_server import LiveServer, chat_body, embedded_pair, serving
from navtoken.engine import EngineOptions
from navtoken.tasks import load_task

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks")]

import soak

STREAMS = 64
POLICIES = (
    "router",
    "llm",
    "slm",
    "entropy:0.67",
    "speculative:4",
    "hindsight:0.05",
    "r-stitch:0.06",
    "margin:0.1",
)


def test_greedy_answers_of_64_streams_at_once_are_those_of_one_after_the_other() -> None:
    problems = load_task("countdown").problems("test", STREAMS, 17)
    bodies = [
        chat_body(
            messages=[{"role": "user", "content": problem.prompt}],
            policy=POLICIES[index % len(POLICIES)],
            max_tokens=40,
        )
        for index, problem in enumerate(problems)
    ]
    with serving(embedded_pair(), engine=EngineOptions(max_rows=64, cache_gib=0.3)) as live:
        alone = [live.http.post("/v1/chat/completions", json=body).json() for body in bodies]
        together, most = asyncio.run(_streams(live, bodies))
        live.wait_until_idle()
        used = [pool.num_used for pool in live.server.engine._engine.memory.pools]  # type: ignore[union-attr]
    assert together == [answer["choices"][0]["message"]["content"] for answer in alone]
    assert len(set(together)) > STREAMS / 2
    assert most > STREAMS / 2, "they were never together"
    assert used == [0, 0]


async def _streams(live: LiveServer, bodies: list[dict[str, Any]]) -> tuple[list[str], int]:
    """The texts of all streams at once, and how many rows decoded together at most."""
    most = 0

    async def one(http: httpx2.AsyncClient, body: dict[str, Any]) -> str:
        nonlocal most
        text = ""
        async with http.stream(
            "POST", f"{live.address}/v1/chat/completions", json=body | {"stream": True}
        ) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    most = max(most, live.server.engine.health().num_running)
                    for choice in json.loads(line[6:])["choices"]:
                        text += choice["delta"].get("content", "")
        return text

    async with httpx2.AsyncClient(timeout=120, limits=httpx2.Limits(max_connections=STREAMS)) as http:
        return list(await asyncio.gather(*[one(http, body) for body in bodies])), most


def test_clients_that_come_go_and_send_nonsense_leave_nothing_behind() -> None:
    options = soak.Options(seconds=8, clients=12, questions=10, max_tokens=80, seed=3)
    with serving(embedded_pair(), max_body=soak.MAX_BODY, max_queue=8) as live:
        result = asyncio.run(soak.soak(f"{live.address}/v1", options))
        engine = live.server.engine
        assert not engine._owners and not engine._in_flight and not engine._unstarted
    assert result["faults"] == []
    assert result["left"] == {
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0,
        "crashes": 0,
        "is_ok": 1,
    }
    counts = result["counts"]
    assert all(counts[name] > 0 for name in ("whole", "streamed", "hung up", "left a stream", "refused")), (
        counts
    )


def test_the_soak_sees_an_answer_that_is_another(embedded: LiveServer) -> None:
    tally = soak.Tally()
    soak._compare("this", "that", tally, "whole")
    assert tally.faults and tally.counts["other answers"] == 1


def test_every_metric_of_the_dashboard_is_served(embedded: LiveServer) -> None:
    embedded.chat()
    board = json.loads((ROOT / "examples" / "grafana.json").read_text())
    queries = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    asked = set(re.findall(r"navtoken:\w+", queries))
    served = set(re.findall(r"^navtoken:\w+", embedded.http.get("/metrics").text, re.MULTILINE))
    assert len(asked) > 10
    assert asked <= served
