"""What OpenAI's own client gets: answers equal the engine's, and log-probabilities those of plain `transformers`."""

import json
import math
import threading
from typing import Any

import openai
import pytest

from live_server import ENGINE, QUESTION, LiveServer, embedded_pair, plain_logprobs
from navtoken.engine import Engine, SamplingParams
from navtoken.policies import make_policy
from navtoken.tasks import load_task

TOLERANCE = 2e-4
TASKS = ("arithmetic", "countdown", "knights")
USER = [{"role": "user", "content": QUESTION}]
SLM_ALONE, LLM_ALONE = "embedded:slm", "embedded:llm"


@pytest.fixture(scope="module")
def client(embedded: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{embedded.address}/v1", api_key="none", timeout=60, max_retries=0)


def questions() -> list[str]:
    return [next(iter(load_task(name).problems("test", 1, 4))).prompt for name in TASKS]


def user(question: str) -> Any:
    return [{"role": "user", "content": question}]


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    plain: dict[str, Any] = {"model": "navtoken", "messages": USER, "max_tokens": 24, "temperature": 0}
    return client.chat.completions.create(**(plain | fields))


def content(answer: Any, index: int = 0) -> str:
    return answer.choices[index].message.content


def ids_of(question: str) -> list[int]:
    return embedded_pair().tokenizer(f"<|user|>{question}<|assistant|>", add_special_tokens=False)[
        "input_ids"
    ]


def by_engine(policy: str, question: str, max_tokens: int, **sampling: Any) -> tuple[list[int], str | None]:
    """What the engine makes of a question without any server."""
    chosen = make_policy(policy)
    engine = Engine(embedded_pair(), chosen, ENGINE)
    row = engine.add(ids_of(question), SamplingParams(**sampling), max_tokens)
    list(engine.run())
    return row.response_ids, row.finish_reason


@pytest.mark.parametrize("policy", ["slm", "llm", "router", "entropy:0.3", "speculative:3", "hindsight:0.05"])
def test_greedy_answers_are_those_of_the_engine(client: openai.OpenAI, policy: str) -> None:
    served = "router,threshold=0.0074" if policy == "router" else policy
    for question in questions()[:2]:
        answer = chat(
            client,
            messages=user(question),
            max_tokens=40,
            extra_body={"policy": served, "return_token_ids": True},
        )
        expected, reason = by_engine(served, question, 40)
        choice = answer.choices[0]
        assert choice.token_ids == expected
        assert answer.prompt_token_ids == ids_of(question)
        assert choice.message.content == embedded_pair().tokenizer.decode(expected, skip_special_tokens=True)
        assert choice.finish_reason == reason
        assert answer.usage.prompt_tokens == len(ids_of(question))
        assert answer.usage.completion_tokens == len(expected)
        assert answer.usage.total_tokens == len(ids_of(question)) + len(expected)
        assert choice.navtoken["slm_tokens"] + choice.navtoken["llm_tokens"] == len(expected)


@pytest.mark.parametrize(("model", "policy"), [(SLM_ALONE, "slm"), (LLM_ALONE, "llm")])
def test_a_model_alone_is_its_policy(client: openai.OpenAI, model: str, policy: str) -> None:
    alone = chat(client, model=model)
    assert content(alone) == content(chat(client, extra_body={"policy": policy}))
    assert alone.model == model and alone.choices[0].navtoken["llm_share"] == (policy == "llm")
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, model=model, extra_body={"policy": "slm"})
    assert refused.value.param == "policy"


def test_models_are_listed_and_others_not_found(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"navtoken", SLM_ALONE, LLM_ALONE}
    assert listed[SLM_ALONE].policy == "slm" and listed["navtoken"].policy.startswith("router")
    assert listed["navtoken"].max_model_len == 1024
    with pytest.raises(openai.NotFoundError) as missing:
        chat(client, model="gpt-4o")
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")


def test_a_stream_says_what_the_answer_says(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "seed": 4,
        "temperature": 1,
        "extra_body": {"return_token_ids": True, "token_details": True},
    }
    whole = chat(client, **wanted)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, **wanted))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[0].prompt_token_ids == whole.prompt_token_ids
    assert len({chunk.id for chunk in chunks}) == 1
    for choice in whole.choices:
        own = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert own[0].delta.role == "assistant" and all(each.delta.role is None for each in own[1:])
        assert "".join(each.delta.content or "" for each in own) == choice.message.content
        assert [each.finish_reason for each in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason == choice.finish_reason
        assert [token for each in own for token in each.token_ids or []] == choice.token_ids
        told = [token for each in own if each.logprobs for token in each.logprobs.content]
        # Two runs batch differently, and round differently with it.
        for one, other in zip(told, choice.logprobs.content, strict=True):
            assert (one.token, one.bytes) == (other.token, other.bytes)
            assert one.logprob == pytest.approx(other.logprob, abs=TOLERANCE)
            assert len(one.top_logprobs) == 2
        assert own[-1].navtoken["seed"] == 4
        details = [token for each in own for token in (each.navtoken or {}).get("tokens") or []]
        for name in ("id", "writer", "text", "draft"):
            assert [each[name] for each in details] == [each[name] for each in choice.navtoken["tokens"]]


def test_samples_differ_and_are_the_engines(client: openai.OpenAI) -> None:
    answer = chat(client, n=3, temperature=1.0, seed=9, extra_body={"return_token_ids": True})
    engine = Engine(embedded_pair(), make_policy("router,threshold=0.00740029"), ENGINE)
    rows = engine.add_samples(3, ids_of(QUESTION), SamplingParams(1.0), 24, seed=9)
    list(engine.run())
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.token_ids for choice in answer.choices] == [row.response_ids for row in rows]
    assert len({content(answer, index) for index in range(3)}) > 1


def test_a_seed_fixes_the_answer_whatever_else_is_decoded(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"temperature": 1.0, "seed": 123, "max_tokens": 40}
    alone = content(chat(client, **wanted))
    done, others = threading.Event(), []

    def load(number: int) -> None:
        while not done.is_set():
            others.append(content(chat(client, temperature=1.0, seed=number, messages=user(f"{number} + 1"))))

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert [content(chat(client, **wanted)) for _ in range(4)] == [alone] * 4
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert others
    assert content(chat(client, **(wanted | {"seed": 124}))) != alone


def test_a_seed_that_was_drawn_is_told_and_repeats_the_answer(client: openai.OpenAI) -> None:
    first = chat(client, temperature=1.0)
    again = chat(client, temperature=1.0, seed=first.choices[0].navtoken["seed"])
    assert content(again) == content(first)


@pytest.mark.parametrize("policy", ["slm", "llm", "router", "entropy:0.3", "speculative:3"])
def test_logprobs_are_those_of_the_token_s_writer(client: openai.OpenAI, policy: str) -> None:
    answer = chat(
        client,
        messages=user(questions()[1]),
        logprobs=True,
        top_logprobs=5,
        temperature=0.8,
        seed=2,
        extra_body={"policy": policy, "return_token_ids": True, "token_details": True},
    )
    choice = answer.choices[0]
    token_ids, details = choice.token_ids, choice.navtoken["tokens"]
    whole = [*answer.prompt_token_ids, *token_ids]
    reference = {name: plain_logprobs(name, whole) for name in ("slm", "llm")}
    assert len(choice.logprobs.content) == len(details) == len(token_ids)
    for place, (token_id, told, detail) in enumerate(
        zip(token_ids, choice.logprobs.content, details, strict=True), len(answer.prompt_token_ids) - 1
    ):
        logprobs_V = reference[detail["writer"]][place]
        assert told.logprob == pytest.approx(float(logprobs_V[token_id]), abs=TOLERANCE)
        assert detail["logprob"] == told.logprob and detail["id"] == token_id
        best = logprobs_V.topk(5)
        assert [top.logprob for top in told.top_logprobs] == pytest.approx(
            best.values.tolist(), abs=TOLERANCE
        )
        assert [each["logprob"] for each in detail["alternatives"]] == [
            top.logprob for top in told.top_logprobs
        ]
        for alternative in detail["alternatives"]:
            expected = float(logprobs_V[alternative["id"]])
            assert alternative["logprob"] == pytest.approx(expected, abs=TOLERANCE)
        entropy = float(-(logprobs_V.exp() * logprobs_V).sum())
        assert detail[f"entropy_{detail['writer']}"] == pytest.approx(entropy, abs=TOLERANCE)
    writers = {detail["writer"] for detail in details}
    assert writers == ({policy} if policy in ("slm", "llm") else {"llm"} | (writers & {"slm"}))
    told_bytes = bytes(byte for told in choice.logprobs.content for byte in told.bytes)
    special = len("<|end|>") if choice.finish_reason == "stop" else 0
    assert told_bytes.decode()[: len(told_bytes) - special] == choice.message.content


def test_a_stop_string_across_tokens_ends_the_answer_and_is_held_back(client: openai.OpenAI) -> None:
    whole = chat(client, messages=user(questions()[0]), max_tokens=40, extra_body={"return_token_ids": True})
    token_ids, text = whole.choices[0].token_ids, content(whole)
    pieces = [embedded_pair().tokenizer.decode([token]) for token in token_ids]
    # The end of one token and the beginning of the next but one, where the text has it first.
    at = next(
        index
        for index in range(3, len(pieces) - 2)
        if text.find(pieces[index][-1] + pieces[index + 1] + pieces[index + 2][0])
        == len("".join(pieces[: index + 1])) - 1
    )
    stop = pieces[at][-1] + pieces[at + 1] + pieces[at + 2][0]
    expected = text[: text.index(stop)]
    answer = chat(client, messages=user(questions()[0]), max_tokens=40, stop=["never", stop])
    assert (content(answer), answer.choices[0].finish_reason) == (expected, "stop")
    assert answer.usage.completion_tokens == at + 3
    told = ""
    stream = chat(client, messages=user(questions()[0]), max_tokens=40, stop=stop, stream=True)
    for chunk in stream:
        told += chunk.choices[0].delta.content or ""
        assert expected.startswith(told)
    assert told == expected
    # What looks like the beginning of a stop string and is none is told in the end.
    unmatched = chat(
        client, messages=user(questions()[0]), max_tokens=40, stop=stop[:-1] + "\x00", stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in unmatched) == text


def test_an_answer_says_why_it_ended(client: openai.OpenAI) -> None:
    short = chat(client, max_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    full = chat(client, max_completion_tokens=400, max_tokens=1)
    assert full.choices[0].finish_reason == "stop" and full.usage.completion_tokens > 1
    longer = chat(client, max_tokens=full.usage.completion_tokens + 10, extra_body={"ignore_eos": True})
    assert longer.choices[0].finish_reason == "length"
    least = full.usage.completion_tokens + 5
    assert chat(client, max_tokens=100, extra_body={"min_tokens": least}).usage.completion_tokens >= least


def test_biases_and_penalties_reach_both_models(client: openai.OpenAI) -> None:
    wanted = {"extra_body": {"return_token_ids": True, "policy": "entropy:0.3", "ignore_eos": True}}
    forced = chat(client, logit_bias={"77": 100}, **wanted).choices[0]
    assert set(forced.token_ids) == {77}
    free = chat(client, **wanted).choices[0].token_ids
    banned = chat(client, logit_bias={str(free[0]): -100}, **wanted).choices[0].token_ids
    assert free[0] not in banned
    for field in ("frequency_penalty", "presence_penalty"):
        expected, _ = by_engine("entropy:0.3", QUESTION, 24, ignore_eos=True, **{field: 1.5})
        assert chat(client, **{field: 1.5}, **wanted).choices[0].token_ids == expected != free
    expected, _ = by_engine("entropy:0.3", QUESTION, 24, ignore_eos=True, repetition_penalty=1.7)
    extra = wanted["extra_body"] | {"repetition_penalty": 1.7}
    assert chat(client, extra_body=extra).choices[0].token_ids == expected != free


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}])
def test_narrow_sampling_is_greedy(client: openai.OpenAI, narrow: dict[str, float]) -> None:
    greedy = content(chat(client))
    wide = chat(client, temperature=2.0, seed=1, extra_body={"top_k": -1})
    assert content(wide) != greedy
    assert content(chat(client, temperature=2.0, seed=1, extra_body=narrow)) == greedy


def test_the_temperature_is_the_model_s_own_where_none_is_given(client: openai.OpenAI) -> None:
    left_out = chat(client, temperature=openai.omit, seed=5)
    assert (
        content(left_out) == content(chat(client, temperature=1.0, seed=5)) != content(chat(client, seed=5))
    )
    assert content(chat(client, temperature=1e-9, seed=5)) == content(chat(client))


def test_a_threshold_moves_the_policy(client: openai.OpenAI) -> None:
    shares = [
        chat(client, extra_body={"policy": "entropy:0.5", "threshold": threshold})
        .choices[0]
        .navtoken["llm_share"]
        for threshold in (1e-9, 100.0)
    ]
    assert shares[0] > 0.9 and shares[1] == 0
    moved = chat(client, extra_body={"threshold": 0.5}).choices[0].navtoken
    assert "0.5" in moved["policy"]
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, extra_body={"policy": "slm", "threshold": 0.5})
    assert refused.value.param == "threshold"


def test_details_tell_who_wrote_what(client: openai.OpenAI) -> None:
    answer = chat(
        client, messages=user(questions()[1]), extra_body={"token_details": True, "policy": "entropy:0.2"}
    )
    told = answer.choices[0].navtoken
    tokens = told["tokens"]
    assert sum(token["writer"] == "llm" for token in tokens) == told["llm_tokens"] > 0
    assert told["llm_share"] == pytest.approx(told["llm_tokens"] / len(tokens))
    for token in tokens:
        assert token["entropy"] == token["entropy_slm"]
        assert (token["entropy_slm"] >= 0.2) == (token["writer"] == "llm")
        assert token["draft"] is None or (token["writer"] == "llm" and token["draft"]["id"] != token["id"])
    plain = chat(client).choices[0]
    assert plain.navtoken["tokens"] is None and not hasattr(plain, "entropy")
    assert plain.logprobs is None and plain.token_ids is None
    assert math.isfinite(told["cost"]["flops"]) and told["cost"]["llm_passes"] > 0


def test_template_switches_reach_the_template(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert refused.value.param == "chat_template_kwargs"
    same = chat(client, extra_body={"chat_template_kwargs": {}})
    assert content(same) == content(chat(client))


def test_content_may_come_in_parts(client: openai.OpenAI) -> None:
    parts: Any = [{"type": "text", "text": QUESTION[:7]}, {"type": "text", "text": QUESTION[7:]}]
    split = chat(client, messages=[{"role": "user", "content": parts}])
    assert content(split) == content(chat(client))


def test_an_answer_is_plain_json_without_stray_fields(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="navtoken", messages=USER, max_tokens=3, temperature=0
    )
    body = json.loads(raw.text)
    assert body["object"] == "chat.completion" and raw.headers["content-type"] == "application/json"
    assert body["system_fingerprint"] and body["id"].startswith("chatcmpl-")
