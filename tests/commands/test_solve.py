"""One answer as a person sees it: every token, its writer and its uncertainty, with and without colour."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from navtoken.commands import solve
from navtoken.commands.solve import SolvedToken, SolveOptions, shown
from navtoken.engine import SamplingParams
from tiny_models import tiny_pair

QUESTION = "Numbers 3 7 12 target 33 :"


def answer(**changes: Any) -> tuple[dict[str, Any], str]:
    out = io.StringIO()
    options = SolveOptions(**{"prompt": QUESTION, "policy": "random:0.5", "max_tokens": 12} | changes)
    return solve.run(options, Console(file=out, width=60), tiny_pair()), out.getvalue()


def test_the_answer_is_streamed_whole_with_legend_and_summary() -> None:
    result, out = answer(sampling=SamplingParams(temperature=1.0))
    assert result["num_tokens"] == len(result["tokens"]) <= 12
    assert {token["writer"] for token in result["tokens"]} == {"slm", "llm"}
    assert result["llm_share"] == sum(t["writer"] == "llm" for t in result["tokens"]) / len(result["tokens"])
    assert "".join(token["text"] for token in result["tokens"]) == result["text"]
    legend, *body, summary = out.strip().splitlines()
    assert "‹LLM›" in legend
    assert "random:0.5" in summary
    assert "\x1b" not in out
    assert sum(line.count("‹") for line in body) >= 1
    assert result == answer(sampling=SamplingParams(temperature=1.0))[0]


@pytest.mark.parametrize(
    ("text", "correct", "words"),
    [("The answer is (7 * 3) + 12.", True, "right"), ("The answer is 33.", False, "wrong")],
)
def test_a_familys_question_is_judged(
    monkeypatch: pytest.MonkeyPatch, text: str, correct: bool, words: str
) -> None:
    monkeypatch.setattr(solve, "answer_text", lambda *_: text)
    result, out = answer()
    assert result["correct"] is correct
    assert out.strip().endswith(words)


def test_any_other_question_is_not_judged() -> None:
    result, out = answer(prompt="hello", policy="slm")
    assert result["correct"] is None
    assert result["task"] is None
    assert "not judged" in out
    assert all(token["entropy_llm"] is None for token in result["tokens"])


def test_a_share_is_calibrated_on_the_questions_family_or_the_named_one() -> None:
    assert answer(policy="entropy,share=0.5", max_tokens=4)[0]["policy"].endswith(",share=0.5")
    named = answer(prompt="hello", policy="margin,share=0.5", calibrate_on="arithmetic", max_tokens=4)
    assert named[0]["policy"].startswith("margin:")


def token(text: str, writer: str, entropy: float) -> SolvedToken:
    return SolvedToken(7, text, writer, entropy, None, None)


def test_writer_and_uncertainty_show_without_colour() -> None:
    assert shown(token(" 12", "llm", 0.0), marked=True).plain == " ‹12›"
    assert shown(token(" 12", "slm", 0.7), marked=True).plain == " 12″"
    assert shown(token(" 12", "slm", 0.1), marked=True).plain == " 12"


def test_writer_shows_in_colour_and_in_form() -> None:
    llm, slm = (shown(token("x", writer, 0.0), marked=False) for writer in ("llm", "slm"))
    assert llm.plain == slm.plain == "x"
    assert (llm.style.bold, llm.style.underline) == (True, True)  # type: ignore[union-attr]
    assert not slm.style.bold  # type: ignore[union-attr]
    shades = [shown(token("x", "slm", h), marked=False).style.bgcolor for h in (0.0, 0.3, 1.0, 2.0)]  # type: ignore[union-attr]
    assert len({str(shade) for shade in shades}) == 4


def test_no_colour_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    options = SolveOptions(prompt=QUESTION, policy="llm", max_tokens=4)
    solve.run(options, Console(file=out, force_terminal=True, width=60), tiny_pair())
    assert "‹" in out.getvalue()
    assert "\x1b[38" not in out.getvalue()


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    assert shown(token("\x1b[2J", "slm", 0.0), marked=False).plain == "\\u001b[2J"
