"""The committed table of entropy patterns follows from the committed numbers."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "entropy_pattern"
sys.path.insert(0, str(ROOT / "experiments"))

import entropy_pattern


def test_the_committed_table_follows_from_the_committed_numbers():
    patterns = json.loads((RESULTS / "table.json").read_text())["patterns"]
    assert entropy_pattern.markdown(patterns) == (RESULTS / "table.md").read_text()


def test_every_model_answered_every_family():
    patterns = json.loads((RESULTS / "table.json").read_text())["patterns"]
    for by_task in patterns.values():
        assert by_task.keys() == {*entropy_pattern.FAMILIES, "all"}
        own = [by_task[task]["num_tokens"] for task in entropy_pattern.FAMILIES]
        assert by_task["all"]["num_tokens"] == sum(own)
