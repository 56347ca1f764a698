"""The oracle at work: its LLM share falls on the drafts that diverge, and its branches cost only what is new."""

from typing import Any

import pytest

from navtoken.checkpoints import ModelPair, load_pair
from navtoken.engine import EngineOptions
from navtoken.generation import GenerateOptions, GenerationOptions, generate, ready_policy
from navtoken.labeling.continuations import Continued, EngineContinuer
from navtoken.labeling.oracle import STREAK, LiveVerdict
from navtoken.labeling.verdicts import SameStep, VerdictError
from navtoken.policies import PolicyError, make_policy
from navtoken.policies.oracle import OraclePolicy, Question
from navtoken.tasks import Problem, Task, load_task
from navtoken.tasks.prompts import render
from navtoken.trace import Trace, read_traces

NUM = 4


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return load_pair()


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("countdown")


@pytest.fixture(scope="module")
def problems(task: Task) -> list[Problem]:
    return list(task.problems("test", NUM, 0))


class Remembering(SameStep):
    """Keeps what it was asked and what it said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[Any, bool | None]] = []

    def same(self, questions: Any) -> list[bool | None]:
        answers = super().same(questions)
        self.said += zip(questions, answers, strict=True)
        return answers


def question(pair: ModelPair, task: Task, problem: Problem, response: str, draft: str, llm: str) -> Question:
    def ids(text: str) -> list[int]:
        return pair.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    return Question(render(pair.tokenizer, task, problem).ids, ids(response), ids(draft)[0], ids(llm)[0])


def test_branches_are_sentences_of_the_llm(pair: ModelPair, task: Task, problems: list[Problem]) -> None:
    verifier = Remembering()
    verdict = LiveVerdict(pair, task, problems, verifier)
    asked = [
        question(pair, task, problem, "", draft, " Try")
        for problem in problems[:2]
        for draft in (" Maybe", " What", " Try")
    ]
    answers = verdict(asked)
    assert [not same for _, same in verifier.said] == answers
    # The same token leads to the same sentence.
    assert answers[2] is answers[5] is False
    for each, _ in verifier.said:
        assert each.problem in problems and each.prefix == ""
        assert each.llm.startswith(" Try") and each.llm.rstrip().endswith(".")


def test_prefixes_grow_with_the_response(pair: ModelPair, task: Task, problems: list[Problem]) -> None:
    verdict = LiveVerdict(pair, task, problems, SameStep())
    texts = ["", "Try 3", "Try 3 + 4 = 7, left 7 12. Maybe"]
    asked = [question(pair, task, problems[0], text, " 4", " 5") for text in texts]
    plain = EngineContinuer(pair)
    for each in asked:
        verdict([each])
        list(plain.continue_all(verdict._asks([each])))
    saved = plain.ledger.llm.tokens - verdict.continuer.ledger.llm.tokens
    lengths = [len(each.prompt_ids) + len(each.response_ids) for each in asked]
    assert saved == lengths[0] + lengths[1]


def test_nobody_can_tell_means_that_the_llm_writes(
    pair: ModelPair, task: Task, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [question(pair, task, problems[0], "", " Try", " Try")]
    verdict = LiveVerdict(pair, task, problems, SameStep())
    assert verdict(asked) == [False]
    monkeypatch.setattr(verdict.verifier, "same", lambda questions: [None] * len(questions))
    assert verdict(asked) == [True]
    monkeypatch.setattr(verdict, "_branches", lambda questions: {})
    assert verdict(asked) == [True]


def test_an_unknown_prompt_and_a_task_without_steps_are_refused(
    pair: ModelPair, task: Task, problems: list[Problem]
) -> None:
    verdict = LiveVerdict(pair, task, problems[1:], SameStep())
    with pytest.raises(PolicyError, match=f"none of the {NUM - 1} problems"):
        verdict([question(pair, task, problems[0], "", " Maybe", " Try")])

    class Free:
        name, judges_steps = "free", False

    with pytest.raises(VerdictError, match="free"):
        LiveVerdict(pair, Free(), problems, SameStep())  # type: ignore[arg-type]


def test_generate_binds_the_oracle(pair: ModelPair, tmp_path: Any) -> None:
    wanted = GenerationOptions(
        task=("countdown",),
        policy=("oracle", "slm", "llm"),
        num=NUM,
        max_tokens=90,
        engine=EngineOptions(max_rows=3),
    )
    generate(GenerateOptions(generation=wanted, out=tmp_path), pair)
    by_policy: dict[str, dict[str, Trace]] = {}
    for trace in read_traces(tmp_path):
        by_policy.setdefault(trace.policy, {})[trace.problem_id] = trace
    assert by_policy.keys() == {"oracle", "slm", "llm"}
    routed = list(by_policy["oracle"].values())
    written = [writer for trace in routed for writer in trace.writer]
    # It differs from the SLM, and needs fewer of the LLM's tokens than there are differing ones.
    assert 0 < sum(written) < len(written) / 2
    differing = [
        (draft, token, writer)
        for trace in routed
        for draft, token, writer in zip(
            trace.columns["draft_ids"], trace.response_ids, trace.writer, strict=True
        )
    ]
    assert all(draft == token for draft, token, writer in differing if not writer)
    assert all(draft != token for draft, token, writer in differing if writer)
    assert sum(bool(trace.correct) for trace in routed) >= sum(
        bool(trace.correct) for trace in by_policy["slm"].values()
    )


def test_the_oracle_alone_is_not_ready(pair: ModelPair, task: Task, problems: list[Problem]) -> None:
    with pytest.raises(PolicyError, match="nobody to tell"):
        make_policy("oracle").check_ready()
    bound = ready_policy("oracle", pair, task, GenerationOptions(), problems=problems)
    assert isinstance(bound, OraclePolicy)
    bound.check_ready()
    assert make_policy(bound.reference).reference == "oracle"


def test_what_came_of_the_questions_is_counted(
    pair: ModelPair, task: Task, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [question(pair, task, problem, "", " Maybe", " Try") for problem in problems[:2]]
    verdict = LiveVerdict(pair, task, problems, SameStep())
    verdict(asked)
    continue_all = verdict.continuer.continue_all

    def failing(asks: Any) -> Any:
        for each in continue_all(asks):
            yield Continued(each.key, error="no room\nat all") if each.key == (0, "slm") else each

    monkeypatch.setattr(verdict.continuer, "continue_all", failing)
    monkeypatch.setattr(verdict.verifier, "same", lambda questions: [None] * len(questions))
    assert verdict(asked) == [True, True]
    found = verdict.summary()
    assert {name: found[name] for name in ("answered", "failed", "undecided")} == {
        "answered": 2,
        "failed": 1,
        "undecided": 1,
    }
    assert found["errors"] == {"no room": 1}


def test_an_oracle_that_never_gets_a_verdict_stops(
    pair: ModelPair, task: Task, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [question(pair, task, problems[0], "", " Try", " Try")]
    verdict = LiveVerdict(pair, task, problems, SameStep())
    monkeypatch.setattr(verdict, "_branches", lambda questions: {})
    with pytest.raises(PolicyError, match=f"{STREAK} times in a row.*{STREAK} questions failed"):
        for _ in range(STREAK):
            verdict(asked)
    assert verdict.summary()["failed"] == STREAK


def test_the_verifier_is_let_go_after_the_cell(
    pair: ModelPair, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    monkeypatch.setattr(SameStep, "close", lambda self: closed.append(self.summary()))
    wanted = GenerationOptions(task=("countdown",), policy=("oracle",), num=1, max_tokens=20)
    generate(GenerateOptions(generation=wanted, out=tmp_path), pair)
    assert len(closed) == 1
