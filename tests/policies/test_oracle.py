"""The oracle asks where the draft is not the LLM's token, and does as it is told."""

import pytest

from fake_engine import FakeEngine
from navtoken.engine import Engine, EngineOptions, SamplingParams, Sequence
from navtoken.policies import PolicyError, Writer, make_policy
from navtoken.policies.oracle import OraclePolicy, Question, Verdict
from tiny_models import near_pair, prompts

GREEDY = SamplingParams(ignore_eos=True)
HOT = SamplingParams(temperature=0.9, ignore_eos=True)


def asking(verdict: Verdict) -> OraclePolicy:
    policy = make_policy("oracle")
    assert isinstance(policy, OraclePolicy)
    return policy.with_verdict(verdict)


def decode(policy: OraclePolicy | str, sampling: SamplingParams) -> list[Sequence]:
    made = make_policy(policy) if isinstance(policy, str) else policy
    engine = Engine(near_pair("llama", 0.2), made, EngineOptions(max_rows=3))
    rows = [engine.add(prompt, sampling, 20, seed=seed) for seed, prompt in enumerate(prompts(6))]
    list(engine.run())
    return rows


@pytest.mark.parametrize("sampling", [GREEDY, HOT])
@pytest.mark.parametrize(("answer", "alone"), [(True, "llm"), (False, "slm")])
def test_one_answer_to_everything_is_one_model_alone(
    answer: bool, alone: str, sampling: SamplingParams
) -> None:
    rows = decode(asking(lambda questions: [answer] * len(questions)), sampling)
    assert [row.response_ids for row in rows] == [row.response_ids for row in decode(alone, sampling)]
    # Where both models have the same token the SLM has written it.
    agreed = sum(row.record.writer.count(Writer.SLM) for row in rows)
    assert agreed > 0 if answer else agreed == 120


def test_questions_say_what_was_drafted_where_and_answers_are_followed() -> None:
    asked: list[tuple[tuple[int, ...], tuple[int, ...], int, int]] = []

    def verdict(questions: list[Question]) -> list[bool]:
        for each in questions:
            asked.append((tuple(each.prompt_ids), tuple(each.response_ids), each.draft_id, each.llm_id))
        return [each.draft_id % 2 == 0 for each in questions]

    engine = FakeEngine(asking(verdict), EngineOptions(max_rows=3))
    rows = [engine.add([1, 2, number], GREEDY, 15, seed=number) for number in range(1, 8)]
    list(engine.run())
    expected = []
    for row in rows:
        for at, token in enumerate(row.record.tokens):
            if token.writer is Writer.LLM:
                assert token.draft_id % 2 == 0 and token.draft_id != token.token_id
                expected.append(
                    (tuple(row.token_ids[:3]), tuple(row.response_ids[:at]), token.draft_id, token.token_id)
                )
            else:
                assert token.token_id == token.draft_id
    evens = [each for each in asked if each[2] % 2 == 0]
    assert len(expected) > 10
    assert sorted(evens) == sorted(expected)
    assert all(draft != llm for _, _, draft, llm in asked)
    assert len(asked) > len(evens), "some drafts differ and are kept"
    assert engine.ledger.discarded_drafts == engine.ledger.written[Writer.LLM] == len(expected)


def test_nobody_is_asked_about_nothing() -> None:
    def verdict(questions: list[Question]) -> list[bool]:
        assert questions
        return [True] * len(questions)

    decode(asking(verdict), GREEDY)


def test_a_missing_answer_is_not_made_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        decode(asking(lambda questions: []), GREEDY)


def test_an_oracle_without_anybody_to_ask_is_refused() -> None:
    with pytest.raises(PolicyError, match="with_verdict"):
        FakeEngine(make_policy("oracle"), EngineOptions())


@pytest.mark.parametrize(
    ("reference", "verifier"),
    [
        ("oracle", "same_step"),
        ("oracle:outcome", "outcome"),
        (
            "oracle:judge:http://127.0.0.1:8000/v1,model=org/name",
            "judge:http://127.0.0.1:8000/v1,model=org/name",
        ),
    ],
)
def test_references_name_the_verifier(reference: str, verifier: str) -> None:
    policy = make_policy(reference)
    assert isinstance(policy, OraclePolicy)
    assert policy.verifier == verifier
    assert policy.reference == reference
    assert make_policy("oracle:same_step").reference == "oracle"


def test_options_without_a_verifier_are_refused() -> None:
    with pytest.raises(PolicyError, match="belong to a verifier"):
        make_policy("oracle,model=x")
