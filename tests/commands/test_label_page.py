"""The page of labels says what the labels say, and shows what the paper does not: the tokens."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from navtoken.analysis.labels import NoLabelsError
from navtoken.commands import label_page
from navtoken.commands.rarity_words import MIN_TOKENS, rarity_finding
from navtoken.labeling.labels import Label
from navtoken.trace import Trace

QUESTIONS = ("countdown", "knights")
OWN = "Try 3 + 7 = 10: 12, no. The answer is 7 + 3 * 8."
OTHER = " 12 - 7 = 5: yes."


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(files("navtoken.embedded") / "slm")


def make(tokenizer: Any, sample: int, surprised: float = 2.0) -> Trace:
    """The LLM's sentence, of which token 3 is divergent, token 5 neutral and token 7 invalid."""
    ids = tokenizer(OWN)["input_ids"]
    other = tokenizer(OTHER)["input_ids"][:6]
    n = len(ids)
    label = np.zeros(n, np.int8)
    label[[3, 5, 7]] = [Label.DIVERGENT, Label.NEUTRAL, Label.INVALID]
    branches = np.full((n, 6), -1, np.int32)
    branches[[3, 5, 7], : len(other)] = other
    draft = np.where(label > 0, other[0], ids).astype(np.int32)
    entropy = np.full(n, 0.1, np.float32)
    entropy[3] = surprised + sample / 10
    return Trace(
        task=QUESTIONS[sample % 2], problem_id=f"p{sample}", sample=0, prompt="?", prompt_ids=[3],
        response_ids=ids, text=OWN, finish_reason="stop", seed=0, policy="llm", writer=[1] * n, correct=True,
        columns={"label": label, "draft_ids": draft, "entropy_slm": entropy, "continuation_ids": branches},
    )  # fmt: skip


@pytest.fixture(scope="module")
def traces(tokenizer: Any) -> list[Trace]:
    return [make(tokenizer, sample) for sample in range(12)]


def test_findings_are_worded_from_the_numbers(traces: list[Trace], tokenizer: Any) -> None:
    result = label_page.summary(iter(traces), tokenizer)
    n = len(traces[0].response_ids)
    assert result["num_tokens"] == 12 * n
    assert result["shares"]["divergent"]["value"] == pytest.approx(1 / (n - 1))
    ratio = (2.0 + 0.55) / 0.1
    assert result["entropy_ratio"]["value"] == pytest.approx(ratio, rel=1e-4)
    words = " ".join(result["findings"])
    assert f"divergent {100 / (n - 1):.1f} %" in words
    assert f"{ratio:.1f} times" in words and "3.8 times" in words
    assert f"{100 / n:.1f} %" in words and "invalid" in words
    assert result["tokens"][0]["token_id"] == traces[0].response_ids[3]
    assert result["tokens"][0]["contexts"][0][1] == result["tokens"][0]["token"]
    assert result["pairs"][0]["slm"] == tokenizer.decode([traces[0].columns["draft_ids"][3]])
    json.dumps(result, allow_nan=False)


def test_a_class_without_tokens_has_no_median(tokenizer: Any, tmp_path: Path) -> None:
    traces = [make(tokenizer, sample) for sample in range(3)]
    for trace in traces:
        trace.columns["label"][5] = Label.IDENTICAL
    page = label_page.write_page(tmp_path / "index.html", traces, tokenizer).read_text()
    words = " ".join(label_page.summary(traces, tokenizer)["findings"])
    assert "medians in nats: identical 0.1, divergent 2.1" in words
    assert "nan" not in words.split() and "neutral nan" not in page


def test_runaway_responses_are_told_of(tokenizer: Any) -> None:
    traces = [make(tokenizer, sample) for sample in range(4)]
    traces[0].finish_reason = "length"
    words = " ".join(label_page.summary(traces, tokenizer)["findings"])
    assert "1 of the responses reached the length limit" in words and "25 % of the divergent" in words


def test_page_shows_both_continuations(traces: list[Trace], tokenizer: Any, tmp_path: Path) -> None:
    path = label_page.write_page(tmp_path / "index.html", iter(traces), tokenizer, {"revision": "abc"})
    page = path.read_text()
    for heading in ("Divergent: ", "Neutral: ", "Invalid: ", "By task", "Read the responses"):
        assert heading in page
    data = json.loads(page.split('type="application/json"')[1].split(">", 1)[1].split("</script>")[0])
    response = data["responses"][0]
    assert set(response["branches"]) == {"3", "5", "7"}
    llm, llm_rest, slm, slm_rest = response["branches"]["3"]
    ids = traces[0].response_ids
    own, branch = tokenizer.decode(ids[3:]), tokenizer.decode(traces[0].columns["continuation_ids"][3])
    # The LLM's own sentence ends with the first point, the SLM's branch where it was cut.
    assert "".join((llm + llm_rest).split()) == "".join(own.split(".")[0].split()) + "."
    assert "".join((slm + slm_rest).split()) == "".join(branch.split())
    assert "abc" in page


def test_a_given_sentence_end_is_used(traces: list[Trace], tokenizer: Any, tmp_path: Path) -> None:
    path = label_page.write_page(
        tmp_path / "index.html", traces, tokenizer, sentence_end=lambda trace, position: position + 1
    )
    page = path.read_text()
    data = json.loads(page.split('type="application/json"')[1].split(">", 1)[1].split("</script>")[0])
    assert data["responses"][0]["branches"]["3"][1] == ""


def test_only_invalid_labels_make_a_page_too(traces: list[Trace], tokenizer: Any, tmp_path: Path) -> None:
    spoilt = [make(tokenizer, sample) for sample in range(3)]
    for trace in spoilt:
        trace.columns["label"][:] = Label.INVALID
    found = label_page.gather(spoilt)
    page = label_page.write_page(tmp_path / "index.html", found, tokenizer).read_text()
    assert "100.0 %" in page and "Shares" not in page
    label_page.print_labels(Console(width=80), found)
    assert label_page.summary(found)["shares"]["divergent"]["value"] is None


def test_neither_entropies_nor_continuations_are_needed(
    traces: list[Trace], tokenizer: Any, tmp_path: Path
) -> None:
    bare = [make(tokenizer, sample) for sample in range(3)]
    for trace in bare:
        del trace.columns["entropy_slm"], trace.columns["continuation_ids"]
    page = label_page.write_page(tmp_path / "index.html", bare, tokenizer).read_text()
    assert "Divergent: " not in page
    assert "cannot be compared" in page


def test_terminal_table_fits_and_counts(traces: list[Trace]) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    label_page.print_labels(console, iter(traces))
    out = console.export_text()
    assert max(map(len, out.splitlines())) <= 80
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if len(line.split()) > 1}
    assert rows["divergent"] == rows["neutral"] == rows["invalid"] == "12"


def test_rarity_is_told_of_bins_with_enough_tokens(traces: list[Trace]) -> None:
    study = label_page.gather(traces)
    rare = [each for each in study.rarity if each.num_tokens >= MIN_TOKENS]
    words = rarity_finding(study.rarity, "are divergent")
    assert len(rare) >= 2
    assert f"{rare[0].at_least:,} to" in words and f"{rare[-1].at_least:,} times or more" in words
    few = replace(study, rarity=rare[:1])
    assert "too few tokens" in rarity_finding(few.rarity, "are divergent")


def test_traces_without_labels_are_refused(traces: list[Trace]) -> None:
    with pytest.raises(NoLabelsError, match="no labels"):
        label_page.summary([])


def test_a_task_is_named_only_where_it_stands_out(traces: list[Trace], tokenizer: Any) -> None:
    alike = label_page.gather(traces)
    assert set(alike.task_divergent) == set(QUESTIONS)
    assert label_page.tasks_section(alike).title == "By task: none has clearly the most divergent tokens"
    apart = []
    for trace in traces:
        label = trace.columns["label"].copy()
        if trace.task == "knights":
            label[9 + len(apart) % 2 : 14] = Label.DIVERGENT
        apart.append(replace(trace, columns=trace.columns | {"label": label}))
    study = label_page.gather(apart)
    found = study.task_divergent["knights"]
    assert found.low > study.task_divergent["countdown"].high
    assert found.value == pytest.approx(study.task_shares["knights"]["divergent"])
    title = label_page.tasks_section(study).title
    assert title.startswith(f"By task: knights has the most divergent tokens, {100 * found.value:.1f} %")
