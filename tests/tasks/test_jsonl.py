"""A user's file: read whole, or refused with the file, line and field that is wrong."""

import json

import pytest

from navtoken.tasks import TaskError, load_task
from navtoken.tasks.base import ExhaustedError, Task
from navtoken.tasks.finite import MissingSplitError
from navtoken.tasks.jsonl import BadLineError
from navtoken.tasks.loading import TaskOptionError


def write(folder, *lines):
    file = folder / "problems.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return file


def row(prompt="1 + 1?", answer="2", **rest):
    return {"prompt": prompt, "answer": answer, **rest}


def test_problems_are_read_and_verified(tmp_path):
    file = write(tmp_path, row(source="book"), "", row("half?", 0.5), row("größe?", "3"), row())
    task = load_task(f"jsonl:{file}")
    assert isinstance(task, Task)
    found = {problem.prompt: problem for problem in task.problems("test", None, seed=0)}
    assert sorted(found) == ["1 + 1?", "größe?", "half?"]
    assert found["1 + 1?"].data == {"source": "book"}
    assert task.verify(found["half?"], r"... \boxed{\frac{1}{2}}")
    assert not task.verify(found["half?"], r"... \boxed{\frac{1}{3}}")
    assert not task.verify(found["half?"], "0.5")
    assert task.extract("the answer is 4.") == "4"
    assert task.same_step(found["half?"], "", "So it is 3.", "So  it is 3.") is True
    assert task.same_step(found["half?"], "", "So it is 3.", "It is 3.") is None


def test_order_follows_the_seed_and_num_cuts_it(tmp_path):
    task = load_task(f"jsonl:{write(tmp_path, *(row(f'{k}?', str(k)) for k in range(30)))}")
    orders = [[problem.answer for problem in task.problems("test", None, seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    assert [problem.answer for problem in task.problems("test", 7, seed=0)] == orders[0][:7]
    with pytest.raises(ExhaustedError, match="30 problems.*fewer than 31"):
        task.problems("test", 31, seed=0)


def test_a_file_is_one_split_unless_divided(tmp_path):
    file = write(tmp_path, *(row(f"{k}?", str(k)) for k in range(200)))
    with pytest.raises(MissingSplitError, match="split=train"):
        load_task(f"jsonl:{file}").problems("train", 1, seed=0)
    assert len(list(load_task(f"jsonl:{file},split=train").problems("train", None, seed=0))) == 200
    task = load_task(f"jsonl:{file},split=hash")
    train, test = ({p.prompt for p in task.problems(split, None, seed=3)} for split in ("train", "test"))
    assert not train & test
    assert len(train | test) == 200
    assert 5 <= len(test) <= 40
    with pytest.raises(TaskOptionError, match="split=dev is none of"):
        load_task(f"jsonl:{file},split=dev")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2: not JSON"),
        ("[1]", "line 2: list instead of an object"),
        ("null", "line 2: NoneType instead of an object"),
        ('{"prompt": "x"}', "line 2, field 'answer': missing; the line has prompt"),
        ('{"answer": "x"}', "line 2, field 'prompt': missing"),
        ('{"prompt": 3, "answer": "x"}', "line 2, field 'prompt': int instead of text"),
        ('{"prompt": "x", "answer": null}', "line 2, field 'answer': NoneType instead of text"),
        ('{"prompt": "x", "answer": true}', "line 2, field 'answer': bool"),
        ('{"prompt": "x", "answer": " "}', "line 2, field 'answer': blank"),
        ('{"prompt": "1 + 1?", "answer": "3"}', "line 2, field 'answer': '3', but line 1 answers"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    file = write(tmp_path, row(), line)
    with pytest.raises(BadLineError) as caught:
        load_task(f"jsonl:{file}")
    assert f"{file}, {message}" in str(caught.value)


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    file = tmp_path / "latin.jsonl"
    file.write_bytes(b'{"prompt": "a", "answer": "b"}\n{"prompt": "\xe9", "answer": "b"}\n')
    with pytest.raises(BadLineError, match="line 2: not JSON in UTF-8"):
        load_task(f"jsonl:{file}")


def test_missing_empty_and_unnamed_files(tmp_path):
    with pytest.raises(TaskError, match=r"cannot read '.*absent\.jsonl'"):
        load_task(f"jsonl:{tmp_path}/absent.jsonl")
    with pytest.raises(TaskError, match="holds no problems"):
        load_task(f"jsonl:{write(tmp_path, '')}")
    with pytest.raises(TaskError, match="write jsonl:FILE"):
        load_task("jsonl")


def test_lines_are_told_apart_by_newlines_only(tmp_path):
    file = write(tmp_path, '{"prompt": "a\u2028b", "answer": "1"}')
    assert next(load_task(f"jsonl:{file}").problems("test", 1, 0)).prompt == "a\u2028b"
