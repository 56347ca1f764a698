"""POST /v1/completions: prompts as text or ids, and `echo` with the prompt's own log-probabilities."""

from typing import Any

import pytest

from live_server import QUESTION, LiveServer, embedded_pair, plain_logprobs
from navtoken.policies import Writer
from navtoken.serving import prompt_scores

TOLERANCE = 2e-4
TEXTS = ["<|user|>What is 12 * 3?<|assistant|>", "one, two, é and ü", "x"]


def ids_of(text: str) -> list[int]:
    return embedded_pair().tokenizer(text)["input_ids"]


def choices(live: LiveServer, **fields: Any) -> list[dict[str, Any]]:
    answer = live.complete(**fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def texts(live: LiveServer, **fields: Any) -> list[str]:
    return [choice["text"] for choice in choices(live, **fields)]


def test_text_and_ids_are_continued_alike(embedded: LiveServer) -> None:
    alone = [texts(embedded, prompt=text)[0] for text in TEXTS]
    assert len(set(alone)) == len(TEXTS)
    assert texts(embedded, prompt=TEXTS) == alone
    assert texts(embedded, prompt=[ids_of(text) for text in TEXTS]) == alone
    assert texts(embedded, prompt=ids_of(TEXTS[0])) == alone[:1]


def test_choices_come_prompt_by_prompt(embedded: LiveServer) -> None:
    wanted = {"temperature": 1.0, "seed": 3, "return_token_ids": True}
    found = choices(embedded, prompt=TEXTS[:2], n=2, **wanted)
    assert [choice["index"] for choice in found] == [0, 1, 2, 3]
    prompts = [choice["prompt_token_ids"] for choice in found]
    assert prompts == [ids_of(TEXTS[0])] * 2 + [ids_of(TEXTS[1])] * 2
    for number, text in enumerate(TEXTS[:2]):
        alone = choices(embedded, prompt=text, n=2, **wanted)
        own = found[2 * number : 2 * number + 2]
        assert [choice["token_ids"] for choice in own] == [choice["token_ids"] for choice in alone]


def test_usage_counts_each_prompt_once(embedded: LiveServer) -> None:
    answer = embedded.complete(prompt=TEXTS, n=2, max_tokens=3, ignore_eos=True).json()
    prompt = sum(len(ids_of(text)) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 18, "total_tokens": prompt + 18}
    assert answer["object"] == "text_completion"
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}


def check_columns(told: dict[str, Any], name: str, whole: list[int], num_prompt: int, num_top: int) -> None:
    """Hold the columns of an echoed prompt and its response against a model that reads both."""
    texts_of = embedded_pair().tokenizer.decode
    logprobs_TV = plain_logprobs(name, whole)
    for column in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert len(told[column]) == len(whole)
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    for place in range(1, len(whole)):
        own = float(logprobs_TV[place - 1, whole[place]])
        assert told["token_logprobs"][place] == pytest.approx(own, abs=TOLERANCE)
        best = logprobs_TV[place - 1].topk(num_top)
        top = told["top_logprobs"][place]
        # The token itself is there even where it is not among the best; tokens that look alike are told once.
        assert max(top.values()) == pytest.approx(float(best.values[0]), abs=TOLERANCE)
        for token_id, value in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            shown = texts_of([token_id])
            if "\ufffd" not in shown:
                assert top[shown] == pytest.approx(value, abs=TOLERANCE)
    if "\ufffd" not in "".join(told["tokens"]):
        lengths = [len(token) for token in told["tokens"]]
        assert told["text_offset"] == [sum(lengths[:place]) for place in range(len(whole))]
    assert num_prompt <= len(whole)


@pytest.mark.parametrize(("model", "name"), [("navtoken", "llm"), ("embedded:slm", "slm")])
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_tells_the_prompt_s_logprobs(
    embedded: LiveServer, model: str, name: str, max_tokens: int
) -> None:
    policy = {} if name == "slm" else {"policy": "llm"}
    found = choices(
        embedded,
        model=model,
        prompt=[ids_of(text) for text in TEXTS],
        echo=True,
        logprobs=3,
        max_tokens=max_tokens,
        return_token_ids=True,
        **policy,
    )
    for text, choice in zip(TEXTS, found, strict=True):
        whole = [*ids_of(text), *choice["token_ids"]]
        assert len(choice["token_ids"]) == max_tokens
        assert choice["text"].startswith(text) and choice["finish_reason"] in ("length", "stop")
        check_columns(choice["logprobs"], name, whole, len(ids_of(text)), 3)
    assert "".join(found[0]["logprobs"]["tokens"][: len(ids_of(TEXTS[0]))]) == TEXTS[0]


def test_echo_of_samples_repeats_the_prompt(embedded: LiveServer) -> None:
    found = choices(embedded, echo=True, logprobs=0, n=2, temperature=1.0, seed=1)
    assert all(choice["text"].startswith(QUESTION) for choice in found)
    prompts = [choice["logprobs"]["token_logprobs"][: len(ids_of(QUESTION))] for choice in found]
    assert prompts[0] == prompts[1] and len(prompts[0]) == len(ids_of(QUESTION))


def test_echo_without_logprobs_or_tokens_is_the_prompt(embedded: LiveServer) -> None:
    answer = embedded.complete(prompt=TEXTS, echo=True, max_tokens=0).json()
    assert [choice["text"] for choice in answer["choices"]] == TEXTS
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"]["completion_tokens"] == 0
    refused = embedded.complete(max_tokens=0)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")


@pytest.mark.parametrize("max_tokens", [0, 12])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_stream_says_what_the_answer_says(
    embedded: LiveServer, max_tokens: int, logprobs: int | None
) -> None:
    body = {
        "model": "navtoken",
        "prompt": TEXTS[:2],
        "n": 2,
        "echo": True,
        "max_tokens": max_tokens,
        "seed": 2,
        "logprobs": logprobs,
        "stop": "=",
    }
    whole = embedded.http.post("/v1/completions", json=body).json()
    events = embedded.events("/v1/completions", body | {"stream_options": {"include_usage": True}})
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [each for event in events for each in event["choices"] if each["index"] == choice["index"]]
        assert "".join(each["text"] for each in own) == choice["text"]
        assert own[0]["text"] == TEXTS[choice["index"] // 2]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        if logprobs is None:
            assert all(each["logprobs"] is None for each in own)
            continue
        for column in ("tokens", "text_offset"):
            assert [part for each in own for part in each["logprobs"][column]] == choice["logprobs"][column]
        told = [value for each in own for value in each["logprobs"]["token_logprobs"]]
        assert told[0] is None
        assert told[1:] == pytest.approx(choice["logprobs"]["token_logprobs"][1:], abs=TOLERANCE)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["x", ""]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [500]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["x", 3]}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["x"] * 257}, "prompt"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"prompt": "x", "max_tokens": 2000}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    embedded: LiveServer, fields: dict[str, Any], param: str
) -> None:
    answer = embedded.complete(**fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_prompts_are_scored_batch_by_batch(embedded: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = embedded.server.scorers[Writer.LLM]
    prompts = [[5, 6, 7, 8], [9, 10, 11], [12, 13]]
    (whole,) = [scores for scores in scorer.score(prompts, 2) if scores is not None]
    monkeypatch.setattr(prompt_scores, "BATCH_TOKENS", 3)
    *pauses, last = scorer.score(prompts, 2)
    assert pauses == [None] * 3
    assert last is not None
    for one, other in zip(last, whole, strict=True):
        assert one.logprobs[1:] == pytest.approx(other.logprobs[1:], abs=1e-4)


def test_a_prompt_that_fills_the_context_is_scored_but_not_continued(embedded: LiveServer) -> None:
    full = {"prompt": [5] * 1024, "echo": True, "logprobs": 0}
    (choice,) = choices(embedded, max_tokens=0, **full)
    assert len(choice["logprobs"]["token_logprobs"]) == 1024
    refused = embedded.complete(max_tokens=1, **full).json()["error"]
    assert refused["code"] == "context_length_exceeded"
