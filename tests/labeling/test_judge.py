"""A model as judge, behind a real server."""

import re
from collections.abc import Callable

import pytest

from fake_endpoint import FakeEndpoint, Reply, Seen, chat
from navtoken.labeling.judge import ENDED, Judge, judge_from, read_verdict
from navtoken.labeling.openai_client import KEY_ENV, EndpointError, EndpointOptionError
from navtoken.labeling.verdicts import Question, VerdictError, verifier_named
from navtoken.reference import parse_reference
from navtoken.tasks import Problem, load_task

TASK = load_task("arithmetic")
PROBLEM = Problem("arithmetic", "p", "(2 + 3) * 4 :", "20", {"expression": "(2 + 3) * 4"})
Opinion = Callable[[str, str], str]


@pytest.fixture(autouse=True)
def _no_key_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_ENV, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


def asked_of(seen: Seen) -> tuple[str, str]:
    """The two continuations of a request, in its order."""
    text = seen.body["messages"][-1]["content"]
    found = re.search(r"Continuation A:\n(.*?)\n\nContinuation B:\n(.*?)\n\nSAME", text, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def served(opinion: Opinion) -> FakeEndpoint:
    return FakeEndpoint(lambda seen: chat(opinion(*asked_of(seen))))


def judge(url: str, options: str = "") -> Judge:
    return judge_from(parse_reference(f"judge:{url},model=m,backoff=0.01{options}"))


def question(llm: str, slm: str, prefix: str = "So far. ") -> Question:
    return Question(TASK, PROBLEM, prefix, llm, slm)


def by_length(first: str, second: str) -> str:
    return "SAME" if len(first) == len(second) else "DIFFERENT"


def first_is_best(first: str, second: str) -> str:
    """Swayed by what stands first."""
    return "SAME" if first < second else "DIFFERENT"


def test_both_orders_are_asked_and_agree() -> None:
    with served(by_length) as server:
        verifier = judge(server.url)
        assert verifier.same([question("abc", "xyz"), question("abc", "vwxyz")]) == [True, False]
        assert sorted(map(asked_of, server.seen)) == sorted(
            [("abc", "xyz"), ("xyz", "abc"), ("abc", "vwxyz"), ("vwxyz", "abc")]
        )
        summary = verifier.summary()
        assert (summary["same"], summary["other"], summary["disagreements"], summary["none"]) == (1, 1, 0, 0)
        assert summary["endpoint"]["requests"] == 4
        verifier.close()


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ("", False),
        (",disagreement=divergent", False),
        (",disagreement=neutral", True),
        (",disagreement=invalid", None),
    ],
)
def test_disagreement_is_counted_and_divergent_unless_told_otherwise(
    options: str, verdict: bool | None
) -> None:
    with served(first_is_best) as server:
        verifier = judge(server.url, options)
        assert verifier.same([question("abc", "xyz"), question("xyz", "abc")]) == [verdict, verdict]
        assert verifier.summary()["disagreements"] == 2
        verifier.close()


def test_the_same_words_are_not_asked_about() -> None:
    with served(by_length) as server:
        verifier = judge(server.url)
        assert verifier.same([question("a b", " a  b")]) == [True]
        assert server.seen == [] and verifier.summary()["same"] == 1
        verifier.close()


def test_no_answer_no_verdict() -> None:
    """Neither a failed request nor a meaningless reply, in one order or both, may become a label."""

    def answer(seen: Seen) -> Reply:
        first, second = asked_of(seen)
        if "fail" in (first, second):
            return Reply("no", 500)
        if first == "vague":
            return chat("Well, that depends.")
        return chat(None) if "silent" in (first, second) else chat("SAME")

    with FakeEndpoint(answer) as server:
        verifier = judge(server.url, ",retries=1")
        asked = [question("abc", slm) for slm in ("fail", "vague", "silent", "fine")]
        assert verifier.same(asked) == [None, None, None, True]
        summary = verifier.summary()
        assert (summary["none"], summary["same"], summary["endpoint"]["failures"]) == (3, 1, 2)
        verifier.close()


def test_faults_that_pass_leave_no_trace_in_the_verdicts() -> None:
    tries: list[Seen] = []

    def answer(seen: Seen) -> Reply:
        tries.append(seen)
        faults = {0: Reply("busy", 429), 3: Reply("oh", 502), 5: Reply("<html>"), 8: Reply(drop=True)}
        return faults.get(len(tries) - 1) or chat(by_length(*asked_of(seen)))

    with FakeEndpoint(answer) as server:
        verifier = judge(server.url, ",concurrency=2")
        asked = [question("abc", "x" * length) for length in (1, 2, 3, 4, 3)]
        assert verifier.same(asked) == [False, False, True, False, True]
        assert verifier.summary()["endpoint"]["retries"] == 4
        verifier.close()


def test_a_judge_that_refuses_everything_ends_the_run() -> None:
    with FakeEndpoint(lambda seen: Reply("no", 401)) as server:
        verifier = judge(server.url)
        with pytest.raises(EndpointError, match=KEY_ENV):
            verifier.same([question("abc", "xyz")])
        verifier.close()


def test_what_the_judge_is_told() -> None:
    with served(by_length) as server:
        verifier = judge(server.url, ",context=4,max_tokens=77")
        verifier.same([question("", "xyz", prefix="abcdefgh")])
        body = server.seen[0].body
        text = body["messages"][-1]["content"]
        assert PROBLEM.prompt in text and "ends in:\nefgh\n" in text and "abcd" not in text
        assert sorted(asked_of(server.seen[0])) == sorted((ENDED, "xyz"))
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 77)
        verifier.close()


def test_reasoning_endpoints_get_their_own_limit() -> None:
    with served(by_length) as server:
        verifier = judge(server.url, ",reasoning_tokens=500")
        verifier.same([question("abc", "xyz")])
        body = server.seen[0].body
        assert body["max_completion_tokens"] == 500 and not {"max_tokens", "temperature"} & set(body)
        verifier.close()


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("SAME", True),
        ("same.", True),
        (" **Different** ", False),
        ("DIFFERENT\n", False),
        ("They are not the same thing. DIFFERENT", False),
        ("One might say DIFFERENT, but no: SAME", True),
        ("<think>DIFFERENT? no</think>\nSAME", True),
        ("<think>surely SAME, or", None),
        ("", None),
        ("They look the same to me.", None),
        ("SAMENESS", None),
    ],
)
def test_reading_a_reply(reply: str, verdict: bool | None) -> None:
    assert read_verdict(reply) is verdict


def test_check_asks_one_easy_question() -> None:
    with served(by_length) as server:
        verifier = judge(server.url)
        verifier.check(TASK)
        assert len(server.seen) == 1 and verifier.summary()["same"] == 0
        verifier.close()


def test_check_finds_a_judge_that_does_not_do_as_it_is_told() -> None:
    with served(lambda first, second: "I am a poet.") as server:
        verifier = judge(server.url)
        with pytest.raises(VerdictError, match="I am a poet"):
            verifier.check(TASK)
        verifier.close()


def test_check_finds_a_wrong_model_and_a_server_that_fails() -> None:
    for status, error, words in ((404, EndpointError, "model 'm'"), (500, VerdictError, "does not answer")):
        with FakeEndpoint(lambda seen, status=status: Reply({"error": {"message": "no"}}, status)) as server:
            verifier = judge(server.url, ",retries=0")
            with pytest.raises(error, match=words):
                verifier.check(TASK)
            verifier.close()


def test_the_name_has_what_decides_verdicts_and_is_a_reference_again() -> None:
    asked = (
        "judge:http://h:1/v1,model=org/m,concurrency=3,disagreement=neutral,price_in=1.5,timeout=9,context=10"
    )
    verifier = verifier_named(asked)
    assert isinstance(verifier, Judge)
    assert verifier.name == "judge:http://h:1/v1,model=org/m,context=10,disagreement=neutral"
    endpoint = verifier.options.endpoint
    assert (endpoint.concurrency, endpoint.price_in, endpoint.timeout) == (3, 1.5, 9.0)
    again = verifier_named(verifier.name)
    assert again.name == verifier.name and not again.to_end
    verifier.close()
    again.close()


@pytest.mark.parametrize(
    ("reference", "error", "words"),
    [
        ("judge:http://h/v1", VerdictError, "model=NAME"),
        ("judge,model=m", VerdictError, "judge:http"),
        ("judge:http://h/v1,model=m,speed=9", VerdictError, "no option 'speed'"),
        ("judge:http://h/v1,model=m,endpoint=9", VerdictError, "no option 'endpoint'"),
        ("judge:http://h/v1,model=m,retries=two", EndpointOptionError, "retries=two"),
        ("judge:http://h/v1,model=m,max_tokens=0", VerdictError, "max_tokens is 0"),
        ("judge:http://h/v1,model=m,disagreement=maybe", VerdictError, "divergent, neutral, invalid"),
        ("judge:h:80/v1,model=m", EndpointOptionError, "write http"),
        ("judge:http://h/v1,model=m,key_env=ABSENT_KEY", EndpointOptionError, "ABSENT_KEY"),
    ],
)
def test_references_that_do_not_fit(reference: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        verifier_named(reference)


def test_a_judge_that_moved_is_the_same_judge() -> None:
    here, there = (verifier_named(f"judge:http://h:{port}/v1,model=m,context=10") for port in (1, 2))
    assert here.name != there.name
    assert here.identity == there.identity == "judge,model=m,context=10"
    assert verifier_named("judge:http://h:1/v1,model=n,context=10").identity != here.identity
    assert verifier_named("same_step").identity == "same_step"
