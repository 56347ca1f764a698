"""The page of architecture names every dependency, and only modules that there are."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [
        project["project"]["dependencies"],
        project["build-system"]["requires"],
        *project["project"]["optional-dependencies"].values(),
    ]
    asked = [each for group in groups for each in group]
    names = {re.split(r"[\[>=<]", each)[0] for each in asked} - {"navtoken"}
    table = PAGE[PAGE.index("## Dependencies") :]
    first_cells = " ".join(re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)).lower()
    missing = {
        name for name in names if not re.search(rf"(?<![\w-]){re.escape(name.lower())}(?![\w-])", first_cells)
    }
    assert missing == set()


def test_every_module_and_folder_that_it_names_is_there() -> None:
    source = ROOT / "src" / "navtoken"
    there = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    there |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.py")}
    named = re.findall(r"`([\w/]+\.py)`", PAGE)
    assert len(named) > 20
    # Within a section on a folder, modules stand without it.
    assert [name for name in named if not any(f"/{each}".endswith(f"/{name}") for each in there)] == []
    folders = re.findall(r"^\| `(\w+)/` \|", PAGE, re.MULTILINE)
    assert set(folders) == {path.parent.name for path in source.glob("*/__init__.py")}


def test_every_module_at_the_top_is_named() -> None:
    modules = {path.name for path in (ROOT / "src" / "navtoken").glob("*.py")} - {"__init__.py"}
    assert modules <= set(re.findall(r"`([\w/]+\.py)`", PAGE))
