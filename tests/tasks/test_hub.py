"""Hub sets, on small local files of the shapes that they have on the hub."""

import json
import sys
from collections import Counter

import pytest

from navtoken.tasks import load_task
from navtoken.tasks.base import Task
from navtoken.tasks.choices import choice_letter, shuffled_choices
from navtoken.tasks.finite import MissingSplitError
from navtoken.tasks.hub import HUB_SETS, HubSetError
from navtoken.tasks.loading import MissingExtraError, TaskOptionError

datasets = pytest.importorskip("datasets")

ROWS = {
    "aime24": {
        "id": 60,
        "problem": "Find m+n.",
        "solution": "long",
        "answer": "033",
        "url": "u",
        "year": "2024",
    },
    "aime25": {"problem": "Find m+n.", "answer": "33", "id": "0"},
    "amc23": {"id": 0, "question": "Find m+n.", "answer": 33.0, "url": "u"},
    "math500": {"problem": "Find m+n.", "solution": "s", "answer": "33", "subject": "Algebra", "level": 2},
    "minerva": {"question": "Find m+n.", "answer": "33"},
    "olympiad": {
        "question": "Find m+n.",
        "final_answer": ["$33$"],
        "context": None,
        "answer_type": "Numerical",
    },
    "gsm8k": {"question": "Find m+n.", "answer": "There are 30 + 3 = <<30+3=33>>33.\n#### 33"},
    "dapo-math-17k": {"prompt": "Find m+n.", "data_source": "math_dapo", "solution": "33"},
}
GPQA = {
    "Question": "Which?",
    "Correct Answer": "the right one\n",
    **{f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def hub_folder(folder, name, *rows):
    """A folder with one file per split of the set's hub name."""
    home = folder / name
    home.mkdir()
    for split in HUB_SETS[name].splits.values():
        (home / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def test_the_table_covers_what_is_promised():
    assert set(HUB_SETS) == {*ROWS, "gpqa-diamond"}
    assert HUB_SETS["dapo-math-17k"].splits == {"train": "train"}


@pytest.mark.parametrize("name", ROWS)
def test_each_set_is_read_and_verified(tmp_path, name):
    task = load_task(f"{name},path={hub_folder(tmp_path, name, ROWS[name])}")
    assert isinstance(task, Task)
    for split in HUB_SETS[name].splits:
        (problem,) = task.problems(split, None, seed=0)
        assert problem.prompt == "Find m+n."
        assert task.verify(problem, r"Thus \boxed{33}.")
        assert not task.verify(problem, r"Thus \boxed{34}.")
        assert r"\boxed{}" in task.instruction


def test_parquet_files_are_read(tmp_path):
    file = tmp_path / "copy.parquet"
    datasets.Dataset.from_list([ROWS["aime24"]]).to_parquet(file)
    (problem,) = load_task(f"aime24,path={file}").problems("test", None, seed=0)
    assert problem.answer == "033"


def test_what_the_hub_is_asked_for(monkeypatch):
    calls = []

    def load_dataset(path, config, split, revision):
        calls.append((path, config, split, revision))
        return [ROWS["gsm8k"]]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_task("gsm8k,revision=abc")
    assert calls == [("openai/gsm8k", "main", "train", "abc"), ("openai/gsm8k", "main", "test", "abc")]


def test_several_answers_and_context(tmp_path):
    rows = [{"question": "Solve.", "final_answer": ["$2$", "$-2$"], "context": "Let x."}]
    task = load_task(f"olympiad,path={hub_folder(tmp_path, 'olympiad', *rows)}")
    (problem,) = task.problems("test", None, seed=0)
    assert problem.prompt == "Let x.\n\nSolve."
    assert task.verify(problem, r"\boxed{-2, 2}")
    assert not task.verify(problem, r"\boxed{2}")


def test_choices_are_lettered_the_same_way_every_time(tmp_path):
    rows = [{**GPQA, "Question": f"Which {k}?"} for k in range(60)]
    reference = f"gpqa-diamond,path={hub_folder(tmp_path, 'gpqa-diamond', *rows)}"
    first, second = (
        {p.prompt: p for p in load_task(reference).problems("test", None, seed)} for seed in (0, 1)
    )
    assert first == second
    letters = Counter(problem.answer for problem in first.values())
    assert set(letters) == set("ABCD") and min(letters.values()) >= 5
    task = load_task(reference)
    for problem in first.values():
        assert f"{problem.answer}) the right one" in problem.prompt
        wrong = "B" if problem.answer == "A" else "A"
        assert task.verify(problem, rf"\boxed{{\text{{({problem.answer})}}}}")
        assert task.verify(problem, f"So the answer is {problem.answer}) the right one.")
        assert not task.verify(problem, rf"\boxed{{{wrong}}}")
        assert not task.verify(problem, r"\boxed{the right one, or A and B}")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        (r"\text{B}", "B"),
        (r"\textbf{(B)}", "B"),
        ("B.", "B"),
        ("B) 5 cm", "B"),
        ("**B**", "B"),
        (r"\mathrm{B}: energy", "B"),
        ("E", None),
        ("A and B", None),
        ("Both", None),
        ("Because", None),
        ("", None),
    ],
)
def test_letters(answer, letter):
    assert choice_letter(answer, 4) == letter


def test_choices_do_not_depend_on_hash_randomisation():
    assert shuffled_choices("q", "r", ["x", "y", "z"]) == ("B", ["y", "r", "x", "z"])


def test_repeated_problems_count_once_and_contradictory_ones_not_at_all(tmp_path):
    row = ROWS["dapo-math-17k"]
    rows = [row, row, {**row, "prompt": "Other."}, {**row, "prompt": "Other.", "solution": "34"}]
    with pytest.warns(UserWarning, match="1 problems left out"):
        task = load_task(f"dapo-math-17k,path={hub_folder(tmp_path, 'dapo-math-17k', *rows)}")
    assert [problem.prompt for problem in task.problems("train", None, seed=0)] == ["Find m+n."]


def test_a_set_without_the_split_says_so(tmp_path):
    task = load_task(f"aime24,path={hub_folder(tmp_path, 'aime24', ROWS['aime24'])}")
    with pytest.raises(MissingSplitError, match="no 'train' split, only 'test'"):
        task.problems("train", None, seed=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "x"}, "row 0, field 'answer': missing; the row has problem"),
        ({"problem": "x", "answer": None}, "row 0, field 'answer': blank"),
        ({"problem": " ", "answer": "1"}, "row 0, field 'problem': blank"),
    ],
)
def test_a_row_of_another_shape_is_named(tmp_path, row, message):
    with pytest.raises(HubSetError) as caught:
        load_task(f"aime24,path={hub_folder(tmp_path, 'aime24', row)}")
    assert message in str(caught.value)


def test_gsm8k_without_its_mark(tmp_path):
    with pytest.raises(HubSetError, match="no answer after '####'"):
        load_task(f"gsm8k,path={hub_folder(tmp_path, 'gsm8k', {'question': 'x', 'answer': '5'})}")


def test_errors_name_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(HubSetError, match="no such file or folder.*path=FOLDER"):
        load_task("aime24,path=/nowhere/at/all")
    with pytest.raises(HubSetError, match="'.txt' is none of"):
        (tmp_path / "a.txt").write_text("x")
        load_task(f"aime24,path={tmp_path}/a.txt")
    with pytest.raises(TaskOptionError, match="no option 'level'; its options: config, path, revision"):
        load_task("aime24,level=2")
    with pytest.raises(TaskOptionError, match="takes no ':x'"):
        load_task("aime24:x")

    def offline(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(HubSetError, match=r"Idavidrein/gpqa.*accept its terms.*gpqa-diamond,path=FOLDER"):
        load_task("gpqa-diamond")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install navtoken\[hub\]"):
        load_task("aime24")
