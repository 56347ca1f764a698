"""lm-eval against the server, as its users run it: log-likelihoods and accuracies equal those of plain `transformers`."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from live_server import EMBEDDED, LiveServer, embedded_pair, plain_logprobs

lm_eval = pytest.importorskip("lm_eval")
# Which its clients of servers need, and which it does not bring itself.
pytest.importorskip("tenacity")

DOCS = [
    {"question": "What is 3 + 4?", "choices": [" 7", " 8", " 12"], "answer": 0},
    {"question": "What is 9 - 4 * 2?", "choices": [" 10", " 1", " 17 or so"], "answer": 1},
    {"question": "A says that B lies.", "choices": [" A is a knight", " nobody", " é"], "answer": 0},
    {"question": "Use 2, 3 and 7 to make 13.", "choices": [" 2 * 3 + 7", " 2 + 3 + 7"], "answer": 0},
]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tiny set as a file; nothing is asked of the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    file = tmp_path / "docs.jsonl"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    return file


def evaluated(live: LiveServer, file: Path, model: str, tokenized: bool, batch_size: int) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    task = {
        "task": "tiny_choices",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
    }
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": model,
            "base_url": f"{live.address}/v1/completions",
            "tokenizer": str(EMBEDDED / "llm"),
            "tokenizer_backend": "huggingface",
            "tokenized_requests": tokenized,
            "max_length": 1024,
            "max_retries": 1,
        },
        tasks=[task],
        # It would read the thousands of tasks that it brings.
        task_manager=TaskManager(include_defaults=False),
        batch_size=batch_size,
        bootstrap_iters=0,
        verbosity="ERROR",
    )


def reference(name: str, question: str, choice: str) -> tuple[float, bool]:
    """How likely a model finds a choice behind a question, and whether greedy decoding would write it."""
    tokenizer = embedded_pair().tokenizer
    before, whole = tokenizer(question)["input_ids"], tokenizer(question + choice)["input_ids"]
    assert whole[: len(before)] == before
    logprobs_TV = plain_logprobs(name, whole)[len(before) - 1 : -1]
    own_T = torch.tensor(whole[len(before) :])
    return float(logprobs_TV.gather(1, own_T[:, None]).sum()), bool((logprobs_TV.argmax(-1) == own_T).all())


@pytest.mark.parametrize(
    ("model", "name", "tokenized", "batch_size"),
    [("navtoken", "llm", True, 4), ("embedded:slm", "slm", True, 1), ("embedded:llm", "llm", False, 3)],
)
def test_lm_eval_measures_what_transformers_does(
    embedded: LiveServer, offline: Path, model: str, name: str, tokenized: bool, batch_size: int
) -> None:
    found = evaluated(embedded, offline, model, tokenized, batch_size)
    samples = sorted(found["samples"]["tiny_choices"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(DOCS)
    right = 0
    for doc, sample in zip(DOCS, samples, strict=True):
        expected = [reference(name, str(doc["question"]), choice) for choice in doc["choices"]]
        for (loglikelihood, greedy), told in zip(expected, sample["filtered_resps"], strict=True):
            assert float(told[0]) == pytest.approx(loglikelihood, abs=1e-3)
            assert (told[1] is True or told[1] == "True") == greedy
        likeliest = max(range(len(expected)), key=lambda index: expected[index][0])
        right += likeliest == doc["answer"]
    assert found["results"]["tiny_choices"]["acc,none"] == pytest.approx(right / len(DOCS))
