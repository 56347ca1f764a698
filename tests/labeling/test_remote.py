"""A remote LLM: the embedded one in a real server process, and endpoints that lack what labels need."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fake_endpoint import FakeEndpoint, Reply, Seen, completion
from llm_server import MODEL, llm_server
from navtoken.checkpoints import ModelPair, load_pair
from navtoken.commands.label import LabelOptions
from navtoken.commands.label import run as run_label
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.engine.options import OptionError
from navtoken.generation.loop import Request, respond
from navtoken.generation.options import GenerationOptions
from navtoken.labeling.continuations import Ask, EngineContinuer
from navtoken.labeling.openai_client import KEY_ENV, EndpointError, EndpointOptions
from navtoken.labeling.pipeline import Labeler, Response
from navtoken.labeling.prefill import DraftReader
from navtoken.labeling.remote import (
    RemoteContinuer,
    RemoteLLM,
    RemoteRequest,
    RemoteResponder,
    ResponderOptions,
    sampling_body,
)
from navtoken.labeling.sentences import SentenceEnds
from navtoken.labeling.verdicts import verifier_named
from navtoken.policies.rules import LLMPolicy
from navtoken.tasks import Problem, load_task
from navtoken.tasks.prompts import render
from navtoken.trace import Trace, read_provenance, read_traces

FAMILIES = ("arithmetic", "knights", "countdown")
SMALL = EngineOptions(cache_gib=0.2)


@pytest.fixture(autouse=True)
def _no_key_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_ENV, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return load_pair("embedded:slm", "embedded:llm")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with llm_server() as url:
        yield url


@pytest.fixture
def llm(pair: ModelPair, address: str) -> Iterator[RemoteLLM]:
    with RemoteLLM(EndpointOptions(address, MODEL, concurrency=8), pair.tokenizer) as remote:
        yield remote


@pytest.fixture(scope="module")
def responses(pair: ModelPair) -> list[tuple[Request, Trace]]:
    """The LLM's greedy answers to two problems of each family, by an engine in this process."""
    requests = [
        Request(task, problem, 0)
        for task in map(load_task, FAMILIES)
        for problem in task.problems("train", 2, seed=3)
    ]
    engine = Engine(pair, LLMPolicy(), SMALL)
    traces = {trace.key: trace for trace in respond(engine, requests, GenerationOptions(max_tokens=120))}
    return [(request, traces[request.key("llm")]) for request in requests]


def drafts_of(trace: Trace, ends: SentenceEnds | None, step: int = 8) -> Iterator[Ask]:
    """Continuations from some other token at every so many positions."""
    ids = [*trace.prompt_ids, *trace.response_ids]
    for position in range(0, len(trace.response_ids), step):
        length = len(trace.prompt_ids) + position
        draft = 10 + (7 * position) % 400
        yield Ask((trace.key, position, ends is None), ids, length, draft, 40 if ends else 90, ends)


def test_the_endpoint_is_as_it_must_be(llm: RemoteLLM) -> None:
    llm.check()
    assert llm.summary()["requests"] == 2


def test_continuations_are_those_of_an_engine_here(
    llm: RemoteLLM, pair: ModelPair, responses: list[tuple[Request, Trace]]
) -> None:
    ends = SentenceEnds(pair.tokenizer)
    asks = [ask for _, trace in responses for ask in drafts_of(trace, ends)]
    asks += [ask for _, trace in responses[::3] for ask in drafts_of(trace, None, step=40)]
    assert len(asks) > 30
    remote = RemoteContinuer(llm, pair.llm.eos_token_ids)
    here = {c.key: (list(c.token_ids), c.error) for c in EngineContinuer(pair, SMALL).continue_all(asks)}
    there = {c.key: (list(c.token_ids), c.error) for c in remote.continue_all(asks)}
    assert there == here
    assert all(error is None and ids for ids, error in there.values())
    assert len({len(ids) for ids, _ in there.values()}) > 5


def test_responses_are_those_of_an_engine_here(
    llm: RemoteLLM, responses: list[tuple[Request, Trace]]
) -> None:
    responder = RemoteResponder(llm, ResponderOptions(max_tokens=120))
    asked = [RemoteRequest(request.task, request.problem) for request, _ in responses]
    there = {trace.key: trace for trace in responder.respond(asked)}
    assert not responder.failed and len(there) == len(responses)
    same = (
        "prompt",
        "prompt_ids",
        "response_ids",
        "text",
        "finish_reason",
        "seed",
        "policy",
        "writer",
        "correct",
        "sampling",
    )
    for _, here in responses:
        told = there[here.key]
        told.check()
        assert {name: getattr(told, name) for name in same} == {name: getattr(here, name) for name in same}
        assert told.ledger["llm_written"] == len(here.response_ids)


def test_labels_are_those_of_an_engine_here(
    llm: RemoteLLM, pair: ModelPair, responses: list[tuple[Request, Trace]]
) -> None:
    given = [Response(trace, request.task, request.problem) for request, trace in responses]

    def labelled(continuer: Any) -> list[Trace]:
        eos = pair.llm.eos_token_ids
        labeler = Labeler(
            DraftReader(pair.slm, pair.vocab_size),
            continuer,
            verifier_named("same_step"),
            pair.tokenizer,
            eos,
        )
        return list(labeler.label(given))

    here = labelled(EngineContinuer(pair, SMALL))
    there = labelled(RemoteContinuer(llm, pair.llm.eos_token_ids))
    for a, b in zip(here, there, strict=True):
        assert a.key == b.key and a.response_ids == b.response_ids
        for name in ("label", "continuation_ids", "draft_ids"):
            np.testing.assert_array_equal(a.columns[name], b.columns[name])
    assert {int(label) for trace in there for label in trace.columns["label"]} >= {0, 1, 2}


def test_the_command_labels_with_a_remote_llm_as_with_one_here(address: str, tmp_path: Path) -> None:
    """Responses and continuations by the endpoint; the same again finds all done and asks no more than whether it is there."""
    local = LabelOptions(task=("arithmetic",), num=3, max_tokens=100, out=tmp_path / "here", engine=SMALL)
    away = replace(local, out=tmp_path / "there", llm_url=address, llm_model=MODEL)
    console = Console(quiet=True)
    run_label(local, console)
    result = run_label(away, console)
    assert result["continuations"]["requests"] > 10
    here, there = ({t.key: t for t in read_traces(o.out)} for o in (local, away))
    assert here.keys() == there.keys() and len(here) == 3
    for key, trace in here.items():
        assert trace.response_ids == there[key].response_ids
        np.testing.assert_array_equal(trace.columns["label"], there[key].columns["label"])
    assert read_provenance(away.out)["fingerprints"]["llm"] == f"remote:{MODEL}"
    again = run_label(away, console)
    assert again["now"]["responses"] == 0 and again["continuations"]["requests"] == 2


def test_sampled_responses_differ_by_sample_and_come_back_by_seed(
    llm: RemoteLLM, responses: list[tuple[Request, Trace]]
) -> None:
    request = responses[0][0]
    options = ResponderOptions(max_tokens=60, sampling=SamplingParams(temperature=1.5))
    asked = [RemoteRequest(request.task, request.problem, sample) for sample in range(4)]

    def texts(seed: int) -> dict[int, list[int]]:
        responder = RemoteResponder(llm, replace(options, seed=seed))
        return {trace.sample: trace.response_ids for trace in responder.respond(asked)}

    first = texts(0)
    assert len({tuple(ids) for ids in first.values()}) > 1
    assert texts(0) == first and texts(1) != first


# ---- endpoints that are not what they should be -----------------------------------------------------------------


def remote(url: str, tokenizer: Any, **changes: Any) -> RemoteLLM:
    return RemoteLLM(EndpointOptions(url, MODEL, **({"backoff": 0.01, "retries": 1} | changes)), tokenizer)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def sentence_ask(tokenizer: Any, before: str, draft: str, max_tokens: int = 30) -> Ask:
    prefix = ids_of(tokenizer, before)
    (token,) = ids_of(tokenizer, draft)
    return Ask("key", prefix, len(prefix), token, max_tokens, SentenceEnds(tokenizer))


def writer(tokenizer: Any, text: str, end: bool = True) -> Callable[[Seen], Reply]:
    """An endpoint that writes `text`, whatever stands before: what of it is there already is skipped."""
    whole = ids_of(tokenizer, text)

    def answer(seen: Seen) -> Reply:
        prompt, stops = seen.body["prompt"], seen.body.get("stop", [])
        done = max(n for n in range(len(whole) + 1) if prompt[len(prompt) - n :] == whole[:n])
        told: list[int] = []
        for token in whole[done:]:
            told.append(token)
            spelled = tokenizer.decode(told)
            if stop := next((s for s in stops if s in spelled), None):
                return completion(told, "stop", stop)
            if len(told) == seen.body["max_tokens"]:
                return completion(told, "length")
        return completion([*told, tokenizer.eos_token_id] if end else told, "stop" if end else "length")

    return answer


def test_a_sentence_that_the_stop_string_ends(pair: ModelPair) -> None:
    tokenizer = pair.tokenizer
    ask = sentence_ask(tokenizer, "Try", " 3")
    with FakeEndpoint(writer(tokenizer, " 3 + 4, no. Try")) as server, remote(server.url, tokenizer) as llm:
        (told,) = RemoteContinuer(llm, {tokenizer.eos_token_id}).continue_all([ask])
    assert tokenizer.decode(told.token_ids) == tokenizer.decode(ids_of(tokenizer, " 3 + 4, no."))
    (seen,) = server.seen
    assert seen.body["stop"] == [".", "!", "?", "\n"] and seen.body["return_token_ids"] is True
    assert seen.body["prompt"] == [*ask.before, ask.draft] and seen.body["max_tokens"] == 29
    assert (seen.body["temperature"], seen.body["repetition_penalty"], seen.body["top_p"]) == (0.0, 1.0, 1.0)


def test_a_point_within_a_number_is_gone_past(pair: ModelPair) -> None:
    """The stop string stops there; the next token alone tells that the sentence goes on."""
    tokenizer = pair.tokenizer
    ask = sentence_ask(tokenizer, "Try", " 3")
    text = " 3.5 and 4."
    with FakeEndpoint(writer(tokenizer, f"{text} Now")) as server, remote(server.url, tokenizer) as llm:
        (told,) = RemoteContinuer(llm, {tokenizer.eos_token_id}).continue_all([ask])
    assert list(told.token_ids) == ids_of(tokenizer, text)
    assert [seen.body["max_tokens"] for seen in server.seen].count(1) == 2


def test_a_branch_ends_with_the_response_and_with_its_length(pair: ModelPair) -> None:
    tokenizer = pair.tokenizer
    eos = tokenizer.eos_token_id
    ask = sentence_ask(tokenizer, "Try", " 3")
    for text, end, limit in ((" 3 + 4", True, 30), (" 3 + 4", False, 30), (" 3 + 4 + 5 + 6", True, 4)):
        with FakeEndpoint(writer(tokenizer, text, end)) as server, remote(server.url, tokenizer) as llm:
            (told,) = RemoteContinuer(llm, {eos}).continue_all([replace(ask, max_tokens=limit)])
        whole = ids_of(tokenizer, text) + ([eos] if end else [])
        assert list(told.token_ids) == whole[:limit], text


def test_a_draft_that_ends_everything_is_not_asked_about(pair: ModelPair) -> None:
    tokenizer = pair.tokenizer
    ask = sentence_ask(tokenizer, "Try 3, no", ".")
    with FakeEndpoint(lambda seen: Reply("no", 500)) as server, remote(server.url, tokenizer) as llm:
        continuer = RemoteContinuer(llm, {tokenizer.eos_token_id})
        asks = [ask, replace(ask, key="eos", draft=tokenizer.eos_token_id, ends=None)]
        told = {c.key: list(c.token_ids) for c in continuer.continue_all(asks)}
        assert told == {"key": [ask.draft], "eos": [tokenizer.eos_token_id]}
        assert server.seen == []


def test_to_the_end_nothing_stops(pair: ModelPair) -> None:
    tokenizer = pair.tokenizer
    ask = replace(sentence_ask(tokenizer, "Try", " 3"), ends=None)
    with FakeEndpoint(writer(tokenizer, " 3, no. Try 4.")) as server, remote(server.url, tokenizer) as llm:
        (told,) = RemoteContinuer(llm, {tokenizer.eos_token_id}).continue_all([ask])
    assert list(told.token_ids) == [*ids_of(tokenizer, " 3, no. Try 4."), tokenizer.eos_token_id]
    assert "stop" not in server.seen[0].body


def test_what_fails_is_told_in_its_place(pair: ModelPair) -> None:
    tokenizer = pair.tokenizer
    good, bad = (
        sentence_ask(tokenizer, "Try", " 3"),
        replace(sentence_ask(tokenizer, "Maybe", " 3"), key="bad"),
    )
    write = writer(tokenizer, " 3, no.")

    def answer(seen: Seen) -> Reply:
        return Reply("no", 500) if seen.body["prompt"][: bad.length] == bad.before else write(seen)

    with FakeEndpoint(answer) as server, remote(server.url, tokenizer) as llm:
        told = {c.key: c for c in RemoteContinuer(llm, {tokenizer.eos_token_id}).continue_all([good, bad])}
    assert told["bad"].error and "500" in told["bad"].error and not told["bad"].token_ids
    assert told["key"].error is None


def test_a_response_that_fails_is_no_trace(pair: ModelPair) -> None:
    task = load_task("arithmetic")
    problems = list(task.problems("train", 3, 0))

    def answer(seen: Seen) -> Reply:
        lost = seen.body["prompt"] == render(pair.tokenizer, task, problems[1]).ids
        return Reply("no", 500) if lost else completion([20, 21], "length")

    with FakeEndpoint(answer) as server, remote(server.url, pair.tokenizer, retries=0) as llm:
        responder = RemoteResponder(llm, ResponderOptions(max_tokens=2))
        told = list(responder.respond(RemoteRequest(task, problem) for problem in problems))
    assert {trace.problem_id for trace in told} == {problems[0].problem_id, problems[2].problem_id}
    assert list(responder.failed) == [("llm", "arithmetic", problems[1].problem_id, 0)]
    assert {trace.finish_reason for trace in told} == {"length"}


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (completion(None), "return_token_ids"),
        (completion([3, 100_000]), "return_token_ids"),
        (completion([-1]), "return_token_ids"),
        (completion([20], "abort"), "'abort'"),
        (
            Reply({"choices": [{"token_ids": [20], "finish_reason": "stop", "prompt_token_ids": [1]}]}),
            "prompt tokens",
        ),
        (Reply({"choices": []}), "no choices"),
    ],
)
def test_check_names_what_an_answer_lacks(pair: ModelPair, reply: Reply, words: str) -> None:
    with (
        FakeEndpoint(lambda seen: reply) as server,
        remote(server.url, pair.tokenizer) as llm,
        pytest.raises(EndpointError, match=words),
    ):
        llm.check()


def test_check_finds_another_tokenizer(pair: ModelPair) -> None:
    reply = completion([20], "length", text="utterly else")
    with (
        FakeEndpoint(lambda seen: reply) as server,
        remote(server.url, pair.tokenizer) as llm,
        pytest.raises(EndpointError, match="utterly else"),
    ):
        llm.check()


@pytest.mark.parametrize(
    ("kept", "named"), [(-1, True), (None, False)], ids=["drops the tokens", "does not name the string"]
)
def test_check_finds_an_endpoint_whose_stop_strings_mislead(
    pair: ModelPair, kept: int | None, named: bool
) -> None:
    tokenizer = pair.tokenizer
    whole = ids_of(tokenizer, " 3 + 4 = 7.")

    def answer(seen: Seen) -> Reply:
        if "stop" not in seen.body:
            return completion(whole, "length")
        return completion(whole[:kept], "stop", seen.body["stop"][0] if named else None)

    with (
        FakeEndpoint(answer) as server,
        remote(server.url, tokenizer) as llm,
        pytest.raises(EndpointError, match="stop string"),
    ):
        llm.check()


def test_a_stop_token_that_is_only_named_is_added(pair: ModelPair) -> None:
    eos = pair.tokenizer.eos_token_id
    ask = replace(sentence_ask(pair.tokenizer, "Try", " 3"), ends=None)
    with (
        FakeEndpoint(lambda seen: completion([20], "stop", eos)) as server,
        remote(server.url, pair.tokenizer) as llm,
    ):
        (told,) = RemoteContinuer(llm, {eos}).continue_all([ask])
    assert list(told.token_ids) == [ask.draft, 20, eos]


def test_sampling_parameters_are_all_named() -> None:
    body = sampling_body(SamplingParams(temperature=0.6, top_k=20, logit_bias=((5, -1.0),)))
    assert (body["temperature"], body["top_k"], body["logit_bias"]) == (0.6, 20, {"5": -1.0})
    assert sampling_body(SamplingParams())["top_k"] == -1
    assert "logit_bias" not in sampling_body(SamplingParams())
    for other in (SamplingParams(stop=("x",)), SamplingParams(fork_threshold=0.5, fork_temperature=2.0)):
        with pytest.raises(OptionError, match="remote LLM"):
            sampling_body(other)


def test_the_problem_is_in_the_prompt(pair: ModelPair) -> None:
    problem = Problem("arithmetic", "p", "(2 + 3) * 4 :", "20", {"expression": "(2 + 3) * 4"})
    with (
        FakeEndpoint(lambda seen: completion([20], "length")) as server,
        remote(server.url, pair.tokenizer) as llm,
    ):
        (trace,) = RemoteResponder(llm, ResponderOptions(1)).respond(
            [RemoteRequest(load_task("arithmetic"), problem)]
        )
    assert problem.prompt in trace.prompt and server.seen[0].body["prompt"] == trace.prompt_ids
