"""The pipeline: every label where the LLM's token stands, no failure a label, each response once; held against the obvious way."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from navtoken.checkpoints import ModelPair, load_pair
from navtoken.engine import Engine, EngineOptions
from navtoken.labeling.continuations import Ask, Continued, EngineContinuer
from navtoken.labeling.labels import Label
from navtoken.labeling.pipeline import STREAK, Labeler, LabelingError, Response
from navtoken.labeling.prefill import DraftReader
from navtoken.labeling.sentences import SentenceEnds
from navtoken.labeling.verdicts import Outcome, Question, SameStep
from navtoken.policies import make_policy
from navtoken.tasks import load_task
from navtoken.tasks.prompts import render
from navtoken.trace import Trace

PER_TASK = 5
LONGEST = 24
"""Tokens of a branch where the obvious way takes its time."""


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return load_pair()


@pytest.fixture(scope="module")
def responses(pair: ModelPair) -> list[Response]:
    """Greedy responses of the embedded LLM to a few problems of each family."""
    engine = Engine(pair, make_policy("llm"), EngineOptions(max_rows=16))
    found = []
    for name in ("countdown", "knights", "arithmetic"):
        task = load_task(name)
        for problem in task.problems("train", PER_TASK, 0):
            prompt = render(pair.tokenizer, task, problem)
            found.append((task, problem, prompt, engine.add(prompt.ids, max_tokens=160)))
    list(engine.run())
    return [
        Response(
            Trace(
                task=task.name,
                problem_id=problem.problem_id,
                sample=0,
                prompt=prompt.text,
                prompt_ids=prompt.ids,
                response_ids=row.response_ids,
                text=pair.tokenizer.decode(row.response_ids, skip_special_tokens=True),
                finish_reason=str(row.finish_reason),
                seed=row.seed,
                policy="llm",
                writer=[1] * row.num_response,
                sampling={"max_tokens": 160},
            ),
            task,
            problem,
        )
        for task, problem, prompt, row in found
    ]


class Fixed:
    """A verifier that answers by what it is told, and remembers what it was asked."""

    name = "fixed"
    to_end = False

    def __init__(self, answer: Any = True) -> None:
        self.answer = answer
        self.asked: list[Question] = []
        self.closed = False

    def check(self, task: Any) -> None:
        """Serves every task."""

    def same(self, questions: Sequence[Question]) -> list[bool | None]:
        self.asked += questions
        return [self.answer(each) if callable(self.answer) else self.answer for each in questions]

    def summary(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.closed = True


class Echo:
    """A continuer that goes on with the LLM's own tokens, and fails where it is told to."""

    def __init__(self, fails: Any = lambda ask: False) -> None:
        self.fails = fails
        self.asks: list[Ask] = []

    def continue_all(self, asks: Iterable[Ask]) -> Iterator[Continued]:
        for ask in asks:
            self.asks.append(ask)
            if self.fails(ask):
                yield Continued(ask.key, error="the line is dead\nand more")
            else:
                yield Continued(ask.key, [ask.draft, *ask.prefix_ids[ask.length + 1 : ask.length + 4]])


def labeler(pair: ModelPair, continuer: Any = None, verifier: Any = None, **changes: Any) -> Labeler:
    reader = DraftReader(
        pair.slm, pair.vocab_size, num_logits=5, batch_tokens=changes.pop("batch_tokens", 300)
    )
    return Labeler(
        reader,
        continuer or EngineContinuer(pair),
        verifier or SameStep(),
        pair.tokenizer,
        pair.llm.eos_token_ids,
        **changes,
    )


def by_hand(pair: ModelPair, response: Response) -> list[int]:
    """The obvious way: whole forwards, `generate` from each differing token, sentences found in the text by tokens one by one."""
    trace, task, problem = response
    tokenizer, ids = pair.tokenizer, trace.response_ids
    given = torch.tensor([[*trace.prompt_ids, *ids]])
    drafts = pair.slm.model(given).logits[0, len(trace.prompt_ids) - 1 : -1, : pair.vocab_size].argmax(-1)

    def sentence(rest: list[int], prefix: list[int]) -> str:
        ends = SentenceEnds(tokenizer)
        length = ends.length(prefix, rest[:LONGEST], more=False)
        whole = tokenizer.decode([*prefix, *rest[: length or 64]], skip_special_tokens=True)
        return str(whole)[len(tokenizer.decode(prefix, skip_special_tokens=True)) :]

    labels = []
    for position, (draft, own) in enumerate(zip(drafts.tolist(), ids, strict=True)):
        if draft == own:
            labels.append(Label.IDENTICAL)
            continue
        start = given[0, : len(trace.prompt_ids) + position].tolist()
        branch = [draft]
        if draft not in pair.llm.eos_token_ids:
            out = pair.llm.model.generate(
                torch.tensor([[*start, draft]]), do_sample=False, max_new_tokens=LONGEST - 1, pad_token_id=0
            )
            branch = out[0, len(start) :].tolist()
        before = tokenizer.decode(ids[:position], skip_special_tokens=True)
        question = Question(task, problem, before, sentence(ids[position:], start), sentence(branch, start))
        (same,) = SameStep().same([question])
        labels.append(Label.INVALID if same is None else Label.NEUTRAL if same else Label.DIVERGENT)
    return [int(label) for label in labels]


def test_labels_are_those_of_the_obvious_way(pair: ModelPair, responses: list[Response]) -> None:
    responses = responses[::2]
    found = list(labeler(pair, sentence_tokens=LONGEST).label(responses))
    assert [trace.key for trace in found] == [response.trace.key for response in responses]
    seen = set()
    for response, trace in zip(responses, found, strict=True):
        assert trace.columns["label"].tolist() == by_hand(pair, response)
        seen |= set(trace.columns["label"].tolist())
    assert {Label.IDENTICAL, Label.NEUTRAL, Label.DIVERGENT} <= seen


def test_prefixes_that_are_shared_change_no_label(pair: ModelPair, responses: list[Response]) -> None:
    apart = EngineContinuer(pair, share=False)
    one, other = labeler(pair), labeler(pair, apart, batch_tokens=40)
    for first, second in zip(one.label(responses), other.label(responses), strict=True):
        np.testing.assert_array_equal(first.columns["label"], second.columns["label"])
        np.testing.assert_array_equal(first.columns["continuation_ids"], second.columns["continuation_ids"])
        assert_whole_sentences(pair, first)
    assert one.tally == other.tally
    assert apart.ledger.llm.tokens > 2 * one.continuer.ledger.llm.tokens  # type: ignore[attr-defined]


def assert_whole_sentences(pair: ModelPair, trace: Trace) -> None:
    """Every branch ends with its sentence, not after it; or with the response, or with its length."""
    ends = SentenceEnds(pair.tokenizer)
    for position, row in enumerate(trace.columns["continuation_ids"]):
        branch = row[row >= 0].tolist()
        before = [*trace.prompt_ids, *trace.response_ids[:position]]
        length = ends.length(before, branch, more=False) if branch else 0
        cut = len(branch) == 64 or branch[-1:] and branch[-1] in pair.llm.eos_token_ids
        assert length == len(branch) or (length is None and cut)


def test_labels_sit_on_the_ids_that_the_llm_wrote(pair: ModelPair, responses: list[Response]) -> None:
    """A response spelled in other tokens than its text would be tokenised into keeps them, and each has its label."""
    response = responses[0]
    trace, tokenizer = response.trace, pair.tokenizer
    # Every word letter by letter: the same text, not the tokens that encoding it gives.
    spelled = [
        token for text in tokenizer.decode(trace.response_ids[:20]) for token in tokenizer(text)["input_ids"]
    ]
    assert tokenizer(tokenizer.decode(spelled))["input_ids"] != spelled
    odd = replace(trace, response_ids=spelled, writer=[1] * len(spelled))
    echo = Echo()
    (labelled,) = labeler(pair, echo, Fixed(False)).label([response._replace(trace=odd)])
    assert labelled.response_ids == spelled
    drafts = labelled.columns["draft_ids"]
    differ = [position for position, token in enumerate(spelled) if drafts[position] != token]
    judged = [ask.length - len(trace.prompt_ids) for ask in echo.asks]
    assert judged == [place for place in differ if labelled.columns["label"][place] != Label.INVALID]
    for ask in echo.asks:
        assert list(ask.prefix_ids) == [*trace.prompt_ids, *spelled]
    assert (labelled.columns["label"] == Label.IDENTICAL).sum() == len(spelled) - len(differ)


def test_a_continuation_that_fails_is_invalid_and_never_a_label(
    pair: ModelPair, responses: list[Response]
) -> None:
    failing = Echo(lambda ask: ask.length % 3 == 0)
    verifier = Fixed(False)
    worker = labeler(pair, failing, verifier)
    found = list(worker.label(responses))
    invalid = 0
    for trace in found:
        start = len(trace.prompt_ids)
        for position, label in enumerate(trace.columns["label"].tolist()):
            same = trace.columns["draft_ids"][position] == trace.response_ids[position]
            fails = (start + position) % 3 == 0
            assert label == (Label.IDENTICAL if same else Label.INVALID if fails else Label.DIVERGENT)
            invalid += label == Label.INVALID
            branch = trace.columns["continuation_ids"][position]
            assert (branch >= 0).any() == (not same and not fails)
    assert invalid > 10
    assert worker.tally.errors == {"the line is dead": invalid}
    assert len(verifier.asked) == worker.tally.labels[Label.DIVERGENT]


def test_no_verdict_is_invalid_too(pair: ModelPair, responses: list[Response]) -> None:
    verifier = Fixed(lambda question: None if "=" in question.llm else True)
    worker = labeler(pair, Echo(), verifier)
    list(worker.label(responses))
    none = sum("=" in question.llm for question in verifier.asked)
    assert worker.tally.labels[Label.INVALID] == none > 0
    assert worker.tally.labels[Label.NEUTRAL] == len(verifier.asked) - none > 0


def test_a_response_that_cannot_be_read_is_invalid_throughout(
    pair: ModelPair, responses: list[Response]
) -> None:
    bad = replace(responses[1].trace, response_ids=[5, 100_000, 6], writer=[1] * 3)
    worker = labeler(pair, Echo(), Fixed())
    found = list(worker.label([responses[0], responses[1]._replace(trace=bad), responses[2]]))
    assert found[1].columns["label"].tolist() == [Label.INVALID] * 3
    assert set(found[1].columns) == {"label"}
    assert all((trace.columns["label"] != Label.INVALID).all() for trace in (found[0], found[2]))


def test_text_that_is_cut_off_is_not_compared(pair: ModelPair, responses: list[Response]) -> None:
    response = max(responses, key=lambda each: len(each.trace.response_ids))
    ids = response.trace.response_ids
    ends = SentenceEnds(pair.tokenizer)
    first = ends.length([], ids)
    second = ends.length(ids, ids[first:], at=first)
    assert first and second
    # In the middle of the second sentence.
    cut = replace(response.trace, response_ids=ids[: first + second - 2], finish_reason="length")
    cut = replace(cut, writer=[1] * len(cut.response_ids))
    (labelled,) = labeler(pair, Echo(), Fixed()).label([response._replace(trace=cut)])
    label = labelled.columns["label"]
    differ = labelled.columns["draft_ids"] != np.asarray(cut.response_ids)
    assert set(label[:first][differ[:first]]) <= {Label.NEUTRAL}
    assert set(label[first:][differ[first:]]) <= {Label.INVALID}
    # The same text of a response that ended there is a sentence.
    whole = replace(cut, finish_reason="stop")
    (labelled,) = labeler(pair, Echo(), Fixed()).label([response._replace(trace=whole)])
    assert Label.INVALID not in labelled.columns["label"]


def test_failures_without_end_stop_the_run(pair: ModelPair, responses: list[Response]) -> None:
    asked = 0

    def fails(ask: Ask) -> bool:
        nonlocal asked
        asked += 1
        return asked > 30

    with pytest.raises(LabelingError, match=f"{STREAK} continuations in a row failed.*the line is dead"):
        list(labeler(pair, Echo(fails), Fixed()).label(responses * 4))
    assert asked == 30 + STREAK


def test_what_a_verifier_raises_ends_the_run_after_what_was_judged(
    pair: ModelPair, responses: list[Response]
) -> None:
    def refuse(question: Question) -> bool:
        if question.problem is responses[-1].problem:
            raise ConnectionError("gone")
        return True

    kept = []
    verifier = Fixed(refuse)
    with pytest.raises(ConnectionError, match="gone"):
        for trace in labeler(pair, Echo(), verifier, batch_tokens=60).label(responses):
            kept.append(trace.key)
    assert verifier.closed
    assert kept
    assert kept == [response.trace.key for response in responses[: len(kept)]]


def test_to_the_end_both_texts_run_to_the_end(pair: ModelPair, responses: list[Response]) -> None:
    verifier, echo = Fixed(), Echo()
    verifier.to_end = True
    cut = responses[3]._replace(
        trace=replace(responses[3].trace, finish_reason="length", response_ids=[9, 9, 9], writer=[1] * 3)
    )
    found = list(labeler(pair, echo, verifier).label([responses[0], cut]))
    trace = responses[0].trace
    assert all(question.prefix + question.llm == trace.text for question in verifier.asked)
    for ask in echo.asks:
        assert ask.to_end
        assert ask.max_tokens == 160 - (ask.length - len(trace.prompt_ids))
    differ = found[1].columns["draft_ids"] != 9
    assert (found[1].columns["label"] == np.where(differ, Label.INVALID, Label.IDENTICAL)).all()


def test_what_was_known_of_a_response_stays(pair: ModelPair, responses: list[Response]) -> None:
    entropy = np.linspace(0, 1, len(responses[0].trace.response_ids), dtype=np.float32)
    known = replace(responses[0].trace, columns={"entropy_llm": entropy})
    (labelled,) = labeler(pair, Echo(), Fixed()).label([responses[0]._replace(trace=known)])
    np.testing.assert_array_equal(labelled.columns["entropy_llm"], entropy)
    labelled.check()
    branches = labelled.columns["continuation_ids"]
    for position, branch in enumerate(branches):
        own = branch[branch >= 0]
        draft = labelled.columns["draft_ids"][position]
        assert len(own) == 0 or own[0] == draft != labelled.response_ids[position]


def test_one_odd_response_does_not_end_the_run(pair: ModelPair, responses: list[Response]) -> None:
    long = max(responses, key=lambda each: len(each.trace.response_ids))
    ids = long.trace.response_ids * (1 + 2000 // len(long.trace.response_ids))
    # As long as the SLM reads; it differs at hundreds of positions.
    ids = ids[: pair.slm.card.context - len(long.trace.prompt_ids) - 1]
    odd = replace(long.trace, response_ids=ids, writer=[1] * len(ids))
    worker = labeler(pair, Echo(lambda ask: len(ask.prefix_ids) > len(ids)), Fixed())
    found = list(worker.label([long._replace(trace=odd), *responses]))
    assert worker.tally.errors["the line is dead"] > STREAK
    assert len(found) == 1 + len(responses)
    assert worker.tally.labels[Label.NEUTRAL] > 0


def test_a_branch_that_was_cut_off_before_an_answer_has_no_verdict(
    pair: ModelPair, responses: list[Response]
) -> None:
    # The first tokens of a branch state no answer.
    for ended, wanted in ((False, Label.INVALID), (True, Label.DIVERGENT)):
        (labelled,) = labeler(pair, Cut(ended), Outcome()).label(responses[:1])
        differ = labelled.columns["draft_ids"] != np.asarray(labelled.response_ids)
        assert set(labelled.columns["label"][differ]) == {wanted}


def test_without_a_limit_a_branch_may_fill_the_context(pair: ModelPair, responses: list[Response]) -> None:
    trace = replace(responses[0].trace, sampling={})
    for context in (None, 300):
        echo, verifier = Echo(), Fixed()
        verifier.to_end = True
        list(labeler(pair, echo, verifier, context=context).label([responses[0]._replace(trace=trace)]))
        assert {ask.length + ask.max_tokens for ask in echo.asks} == {context or pair.slm.card.context}


class Cut(Echo):
    """A continuer that writes the draft alone, and says whether it ended by itself."""

    def __init__(self, ended: bool) -> None:
        super().__init__()
        self.ended = ended

    def continue_all(self, asks: Iterable[Ask]) -> Iterator[Continued]:
        for ask in asks:
            yield Continued(ask.key, [ask.draft], ended=self.ended)


def test_questions_about_a_response_share_its_text(pair: ModelPair, responses: list[Response]) -> None:
    verifier = Fixed()
    longest = max(responses, key=lambda each: len(each.trace.response_ids))
    (labelled,) = labeler(pair, Echo(), verifier).label([longest])
    asked = verifier.asked
    assert len(asked) > 1 and all(each.text is asked[0].text for each in asked)
    positions = np.flatnonzero(labelled.columns["label"] == Label.NEUTRAL)
    for position, each in zip(positions, asked, strict=True):
        ids = labelled.response_ids[:position]
        assert each.prefix == pair.tokenizer.decode(ids, skip_special_tokens=True)
