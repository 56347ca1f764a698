"""One grammar names every task; a mistake in it never becomes a default."""

import subprocess
import sys

import pytest

from navtoken.reference import BadReference
from navtoken.tasks import Task, known_tasks, load_task
from navtoken.tasks.hub import HUB_SETS
from navtoken.tasks.loading import TaskOptionError, UnknownTaskError, typed_options


@pytest.mark.parametrize("name", ["countdown", "knights", "arithmetic"])
def test_generated_families(name):
    task = load_task(name)
    assert isinstance(task, Task)
    default = 2 if name == "countdown" else 1
    assert task.name == load_task(f"{name},level={default}").name == name
    assert load_task(f"{name},level=3").name == f"{name},level=3"


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(UnknownTaskError) as caught:
        load_task("countdwon")
    for name in ("countdown", "jsonl:FILE", "gym:NAME", "aime24"):
        assert name in str(caught.value)
    assert "Did you mean 'countdown'?" in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("countdown,levle=2", "no option 'levle'; its options: level"),
        ("countdown,level=two", "level=two is not of type int"),
        ("countdown,level=1.0", "level=1.0 is not of type int"),
        ("countdown,level=true", "level=true is not of type int"),
        ("countdown,level=9", "levels [1, 2, 3], not 9"),
        ("countdown:2", "takes no ':2'"),
    ],
)
def test_bad_options(reference, message):
    with pytest.raises(TaskOptionError) as caught:
        load_task(reference)
    assert message in str(caught.value)


def test_a_malformed_reference_is_the_grammars_error():
    with pytest.raises(BadReference):
        load_task("countdown,level")


def test_every_hub_set_is_known():
    assert set(HUB_SETS) <= set(known_tasks())
    assert len(known_tasks()) == len(HUB_SETS) + 5


def test_naming_tasks_imports_no_heavy_package():
    code = (
        "import sys, navtoken.tasks as t; t.load_task('countdown'); t.known_tasks();"
        "print([m for m in ('torch', 'transformers', 'datasets', 'sympy', 'reasoning_gym') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_take_the_type_of_their_default():
    defaults = {"i": 1, "f": 0.5, "b": False, "s": "x", "n": None}
    given = {"i": "2", "f": "3", "b": "True", "s": "5", "n": "6"}
    assert typed_options("t", given, defaults) == {"i": 2, "f": 3.0, "b": True, "s": "5", "n": "6"}
