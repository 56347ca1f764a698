"""Answers are found where a response states them and compared as mathematics; hostile ones cost bounded time."""

import builtins
import re
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy.parsing import sympy_parser

from navtoken.tasks import math_answers, math_worker
from navtoken.tasks.math_answers import extract_answer, last_boxed, plain_answer, same_answer, stated_answer
from navtoken.tasks.math_worker import MathWorker, MathWorkerError


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} no, \boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{7} and then \boxed{8", "7"),
        (r"the answer is 3, so \boxed{4}", "4"),
        ("The answer is 3. The answer is 4.", "4"),
        ("The answer is 3.5.", "3.5"),
        ("**Answer:** $\\frac12$ dollars", r"\frac12"),
        ("The final answer is **12** apples", "12"),
        ("Answer: 12\nDone", "12"),
        (r"\boxed{ }", None),
        ("no final word", None),
        ("the answer is", None),
        ("", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("expected", "given_"),
    [
        ("42", "42.0"),
        ("42", "042"),
        ("1,234", "1234"),
        (r"\frac{1}{2}", "0.5"),
        (r"\frac{1}{2}", r"\dfrac12"),
        ("x^2+1", "1+x^2"),
        ("(1,2)", "(1, 2)"),
        (r"\{1,2\}", "2, 1"),
        (r"\text{Evelyn}", "Evelyn"),
        ("90", r"90^\circ"),
        (r"11\sqrt2", r"$11\sqrt{2}$"),
        (r"2, -2", r"\pm 2"),
        ("5", r"x = 5"),
        ("5", r"5\text{ cm}"),
    ],
)
def test_equal_answers(expected, given_):
    assert same_answer(expected, given_)


@pytest.mark.parametrize(
    ("expected", "given_"),
    [
        ("42", "-42"),
        ("42", "43"),
        ("42", ""),
        ("", ""),
        (r"\frac{1}{2}", "0.51"),
        ("(1,2)", "(2,1)"),
        ("5", "5, 6"),
        ("x", "y"),
        ("7", "7 because of 8"),
    ],
)
def test_different_answers(expected, given_):
    assert not same_answer(expected, given_)


@pytest.mark.parametrize(
    "hostile",
    [
        "9^{9^{9}}",
        "9**9**9**9",
        "2^{10^{10^{10}}}",
        r"\sum_{i=1}^{10^9} i",
        "999999!",
        "(" * 5000 + "7" + ")" * 5000,
        "9" * 100_000,
        "7\x00",
        "}{",
        "\\",
        "__import__('os').system('false')",
    ],
)
def test_hostile_answers_are_wrong_and_cheap(hostile):
    same_answer("1", "1.0")  # the child process is up
    started = time.monotonic()
    assert not same_answer("7", hostile)
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    "huge", ["9^{9^9}", "2^{99999}", "9999!", "9!!", "1" * 400, "x" * 2000, "(" * 40, "7\x00"]
)
def test_huge_answers_are_compared_as_text_alone(huge, monkeypatch):
    monkeypatch.setattr(math_answers._worker, "same", lambda *_: pytest.fail("compared by the process"))
    assert not same_answer("7.5", huge)
    assert same_answer(huge, f" ${huge}$ ")


def test_only_delimiters_around_the_whole_answer_are_taken_off():
    assert plain_answer(r" $\frac12$. ") == r"\frac12"
    assert plain_answer("**7**") == "7"
    assert plain_answer("$2$, $3$") == "$2$, $3$"


def test_unclosed_boxes_are_read_once():
    started = time.monotonic()
    assert last_boxed("\\boxed{" * 50_000) is None
    assert time.monotonic() - started < 5


def child(body):
    """A command that starts a stand-in for the comparing process."""
    return (sys.executable, "-c", f"import sys, time; print('ready', flush=True)\n{body}")


def test_a_stuck_comparison_is_killed_and_the_next_one_gets_a_fresh_process():
    stuck_on_x = child("for line in sys.stdin:\n if 'x' in line: time.sleep(60)\n print('true', flush=True)")
    worker = MathWorker(pair_seconds=1.0, command=stuck_on_x)
    try:
        assert worker.same("0.5", "1/2")
        started = time.monotonic()
        assert not worker.same("0.5", "x")
        assert 0.9 < time.monotonic() - started < 10
        assert worker.same("0.5", "1/2")
    finally:
        worker.close()


def test_a_process_that_dies_means_not_the_same():
    worker = MathWorker(command=child("sys.stdin.readline()"))
    try:
        assert not worker.same("0.5", "1/2")
        assert not worker.same("0.5", "1/2")
    finally:
        worker.close()


def test_a_process_that_does_not_start_is_an_error():
    worker = MathWorker(command=(sys.executable, "-c", "raise SystemExit(1)"))
    with pytest.raises(MathWorkerError, match=r"try: python -m navtoken\.tasks\.math_worker"):
        worker.same("0.5", "1/2")


def test_math_verify_gives_up_by_itself_where_a_signal_can_stop_it(monkeypatch):
    monkeypatch.setattr(math_worker, "SOFT_SECONDS", 1)
    started = time.monotonic()
    assert not math_worker.compare("7", r"\binom{99999999}{4444444}")
    assert time.monotonic() - started < 15


def test_plain_integers_need_no_process(monkeypatch):
    monkeypatch.setattr(math_answers._worker, "same", lambda *_: pytest.fail("compared by the process"))
    assert same_answer("1234567", "1,234,567")
    assert not same_answer("1234567", "1234568")


def test_threads_share_one_process_and_get_their_own_verdicts(tmp_path):
    started = tmp_path / "started"
    echo = child(
        f"open({str(started)!r}, 'a').write('x')\n"
        "for line in sys.stdin: print('true' if '7' in line else 'false', flush=True)"
    )
    worker = MathWorker(command=echo)
    wrong: list[int] = []

    def compare(first):
        for number in range(first, 200, 8):
            if worker.same("x", str(number)) != ("7" in str(number)):
                wrong.append(number)

    threads = [threading.Thread(target=compare, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.close()
    assert wrong == []
    assert started.read_text() == "x"


def test_comparison_works_outside_the_main_thread():
    verdicts: list[bool] = []
    thread = threading.Thread(target=lambda: verdicts.append(same_answer("8.5", r"\frac{17}{2}")))
    thread.start()
    thread.join()
    assert verdicts == [True]


def test_only_bare_numbers_reach_pythons_evaluator(monkeypatch):
    """sympy makes numbers (and its own units) by evaluation; nothing else of an answer may get there."""
    real = builtins.eval
    sources: set[str] = set()
    monkeypatch.setattr(
        sympy_parser, "eval", lambda code, *rest: (sources.add(code), real(code, *rest))[1], raising=False
    )
    answers = [
        "1/2",
        "0.3+3",
        "f(3)",
        "__import__('os')",
        "os.getcwd()",
        r"\text{exit()}",
        r"\variable{exit()}",
    ]
    for answer in [*answers, r"x_{__import__}", r"\operatorname{exit}(1)", "'a'"]:
        math_worker.compare("6173", answer)
    assert "Integer (6173 )" in sources
    harmless = re.compile(r"(?:Integer|Float) \('?[\d.]+'? ?\)|Symbol \('\w+' \)|\w+ ")
    assert [source for source in sources if not harmless.fullmatch(source)] == []
    assert not [source for source in sources if re.search("import|os|exit|lambda", source)]


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_extraction_never_raises(text):
    for answer in (extract_answer(text), last_boxed("\\boxed{" + text), stated_answer("answer is " + text)):
        assert answer is None or answer.strip() == answer != ""
    plain_answer(text)


@given(st.text(alphabet="\\{}()[]^_$!/*+-.,:=0129xn fracsqrtboxed", max_size=30))
@settings(max_examples=60, deadline=None)
def test_comparison_never_raises(text):
    assert same_answer("17", text) in (True, False)
