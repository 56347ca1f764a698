"""What those who run a server ask it: metrics that are what was done, health, versions, a restart; and the command itself."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from live_server import ENGINE, LiveServer, chat_body, embedded_pair, serving
from navtoken.cli import main


def values(live: LiveServer) -> dict[tuple[str, str], float]:
    """Samples by name and first label."""
    text = live.http.get("/metrics").text
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def test_metrics_count_what_was_done() -> None:
    with serving(embedded_pair()) as live:
        told = [live.chat(policy=policy, max_tokens=30, n=2).json() for policy in ("router", "llm", "slm")]
        live.chat(model="nobody")
        live.wait_until_idle()
        found = values(live)
    navtoken = [choice["navtoken"] for answer in told for choice in answer["choices"]]
    for writer in ("slm", "llm"):
        written = sum(each[f"{writer}_tokens"] for each in navtoken)
        assert found["navtoken:tokens_written_total", writer] == written > 0
        rows = sum(each["cost"][f"{writer}_passes"] for each in navtoken)
        assert found["navtoken:model_rows_total", writer] == rows
    assert found["navtoken:llm_catchup_tokens_total", ""] == sum(
        each["cost"]["catchup_tokens"] for each in navtoken
    )
    assert found["navtoken:generation_tokens_total", ""] == sum(
        answer["usage"]["completion_tokens"] for answer in told
    )
    assert found["navtoken:prompt_tokens_total", ""] == sum(
        answer["usage"]["prompt_tokens"] for answer in told
    )
    assert found["navtoken:time_to_first_token_seconds_count", ""] == len(navtoken)
    tokens = sum(each["slm_tokens"] + each["llm_tokens"] for each in navtoken)
    assert found["navtoken:inter_token_latency_seconds_count", ""] == tokens - len(navtoken)
    assert found["navtoken:num_requests_running", ""] == found["navtoken:kv_cache_usage_perc", ""] == 0
    ended = [choice["finish_reason"] for answer in told for choice in answer["choices"]]
    for reason in set(ended):
        assert found["navtoken:request_success_total", reason] == ended.count(reason)
    assert found["navtoken:llm_share", ""] == pytest.approx(
        sum(each["llm_tokens"] for each in navtoken) / tokens
    )


def test_version_pair_and_models_say_what_is_served(embedded: LiveServer) -> None:
    assert embedded.http.get("/version").json() == {"version": version("navtoken")}
    models = embedded.http.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["navtoken", "embedded:slm", "embedded:llm"]
    assert all(model["max_model_len"] == 1024 for model in models)
    assert [embedded.http.get(f"/v1/models/{model['id']}").json() for model in models] == models
    assert embedded.http.get("/v1/models/no/such").json()["error"]["code"] == "model_not_found"
    pair = embedded.http.get("/v1/pair").json()
    assert pair["slm"]["parameters"] < pair["llm"]["parameters"] and len(pair["examples"]) == 3
    assert pair["policies"][0]["threshold"] == pair["threshold"]


def test_prompts_that_are_only_scored_count_too(embedded: LiveServer) -> None:
    before = values(embedded)["navtoken:prompt_tokens_total", ""]
    asked = {"prompt": ["a b c", "d e"], "echo": True, "logprobs": 0}
    usage = embedded.complete(max_tokens=0, **asked).json()["usage"]
    after = values(embedded)["navtoken:prompt_tokens_total", ""]
    assert after - before == usage["prompt_tokens"] > 0
    # And once where they are continued as well.
    embedded.complete(max_tokens=2, **asked)
    embedded.wait_until_idle()
    assert values(embedded)["navtoken:prompt_tokens_total", ""] - after == usage["prompt_tokens"]


def test_a_restart_needs_a_key_and_serves_again(embedded: LiveServer) -> None:
    refused = embedded.http.post("/v1/engine/restart")
    assert refused.status_code == 400 and "needs a key" in refused.json()["error"]["message"]
    with serving(embedded_pair(), api_key="secret") as live:
        before = live.chat().json()["choices"][0]["message"]["content"]
        engine = live.server.engine._engine
        assert live.http.post("/v1/engine/restart").status_code == 202
        assert live.chat().json()["choices"][0]["message"]["content"] == before
        assert live.server.engine._engine is not engine


# ---- the command --------------------------------------------------------------------------------------------------


@contextmanager
def served(*args: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`navtoken serve` as a process, and its address."""
    command = [sys.executable, "-m", "navtoken.cli", "serve", "--port", "0", "--cache-gib", "0.05", *args]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r"API: (http\S+)/v1", line):
                    break
            else:
                raise AssertionError("it did not start")
            yield process, found[1]
        finally:
            process.kill()


def test_told_to_stop_it_finishes_what_runs() -> None:
    with served(NAVTOKEN_API_KEY="from the environment") as (process, address):
        headers = {"authorization": "Bearer from the environment"}
        assert httpx2.post(f"{address}/v1/chat/completions", json=chat_body()).status_code == 401
        body = chat_body(stream=True, max_tokens=200, ignore_eos=True, return_token_ids=True)
        with httpx2.stream(
            "POST", f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            told = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        ids = [token for event in told for choice in event["choices"] for token in choice["token_ids"] or ()]
        assert len(ids) == 200 and told[-1]["choices"][0]["finish_reason"] == "length"
        assert process.wait(30) == 0
        with pytest.raises(httpx2.HTTPError):
            httpx2.get(f"{address}/health", timeout=2)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--policy", "oracle"], "needs problems with answers"),
        (["--policy", "entropy,share=0.2"], "calibrate_on"),
        (["--policy", "router:nowhere"], "nowhere"),
        (["--tp", "2"], "one process"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", *args]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_port_that_is_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("defaults", "policy", "warned"),
    [
        ({"temperature": 1.0}, "router", False),
        ({"temperature": 0.6, "top_p": 0.95, "top_k": 20}, "router", True),
        ({"temperature": 0.6}, "router,threshold=0.4", False),
        ({"temperature": 0.6}, "entropy:0.67", False),
    ],
)
def test_a_default_sampling_without_a_threshold_is_warned_about(
    defaults: dict[str, Any], policy: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    from navtoken.commands.serve import ServeOptions, _warn_of_threshold, make_server
    from navtoken.serving.options import ServerOptions

    server = make_server(ServeOptions(policy, server=ServerOptions(engine=ENGINE)), embedded_pair())
    server.defaults = defaults
    _warn_of_threshold(server)
    assert ("temperature 0.6, top_p 0.95, top_k 20" in caplog.text) == warned
    assert ("navtoken calibrate" in caplog.text) == warned


def test_the_address_is_warned_about_where_anybody_reaches_it(caplog: pytest.LogCaptureFixture) -> None:
    from rich.console import Console

    from navtoken.commands.serve import ServeOptions, _announce, make_server
    from navtoken.serving.options import ServerOptions

    for host, key, warned in (("127.0.0.1", None, False), ("0.0.0.0", "key", False), ("0.0.0.0", None, True)):
        caplog.clear()
        options: Any = ServeOptions(server=ServerOptions(host=host, api_key=key))
        server = make_server(options, embedded_pair())
        _announce(Console(quiet=True), options, server, "http://x")
        assert ("set a key" in caplog.text) == warned
