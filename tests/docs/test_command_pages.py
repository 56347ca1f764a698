"""The command reference says what `--help` says, and nobody can change an option without it."""

import re
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tyro

from navtoken.cli import COMMANDS, main
from navtoken.commands.config import defaults, parse_invocation
from navtoken.commands.plan import PlanOptions

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

import command_pages
from command_pages import PAGES, drift, escaped, option_groups, page, readme_examples, write

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Inner:
    """Not shown."""

    fuse: bool = True
    """Fuse <small> operations."""
    split: str | None = None
    """One of a|b, or `c|d`."""


@dataclass(frozen=True)
class MadeUp:
    """Make something up."""

    folder: tyro.conf.Positional[Path]
    """Where it lies."""
    names: tyro.conf.UseAppendAction[tuple[str, ...]] = ("one", "two")
    """Who takes part."""
    inner_options: Inner = field(default_factory=Inner)
    """What is inside."""


def kind_of(command: str) -> type[Any]:
    kind: type[Any] = getattr(import_module(COMMANDS[command].module), COMMANDS[command].options)
    return kind


def helped(command: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> tuple[set[str], int]:
    """Flags that `--help` prints, and how many arguments without one."""
    # Wider, help stands in two columns.
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    # An option begins two characters from the left, the first a border or a blank; its meaning stands further to the right.
    lines = re.findall(r"^[│ ] (\S.*)", capsys.readouterr().out, re.MULTILINE)
    starts = [re.split(r"\s{2,}", line)[0] for line in lines]
    flags = {flag for start in starts for flag in re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", start)}
    positional = [start for start in starts if re.fullmatch(r"[\[\]A-Z{}|. ]*(None)?[\[\]A-Z{}|. ]+", start)]
    return flags - {"-h", "--help"}, len(positional)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_names_every_option_that_help_prints(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    names = re.findall(r"<h4 id=[^>]*>(.*?)</h4>", (PAGES / f"{command}.md").read_text())
    flags = {flag for name in names for flag in re.findall(r"`(--[a-z0-9-]+)`", name)}
    printed, num_positional = helped(command, monkeypatch, capsys)
    assert flags == printed
    assert len([name for name in names if not name.startswith("`-")]) == num_positional


@pytest.mark.parametrize("command", ["evaluate", "train-rl", "serve", "train-router"])
def test_defaults_are_those_of_a_command_line_that_says_nothing(command: str) -> None:
    kind = kind_of(command)
    assert parse_invocation(kind, command, []) == defaults(kind)


def test_the_committed_pages_are_what_the_options_say() -> None:
    assert drift(PAGES) == []


def test_a_changed_docstring_fails_the_check(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(PlanOptions, "__doc__", "Something else.")
    monkeypatch.setattr(sys, "argv", ["command_pages.py", "--check"])
    assert command_pages.main() == 1
    # Libraries that are imported meanwhile may have warned, too.
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "docs/commands/" in line]
    assert "docs/commands/plan.md" in line
    assert "make reference" in line


def test_missing_pages_and_pages_of_no_command_have_drifted_until_all_are_written(tmp_path: Path) -> None:
    (tmp_path / "gone.md").write_text("a command that is no more")
    assert {"gone.md", "README.md", "evaluate.md"} <= set(drift(tmp_path))
    write(tmp_path)
    assert drift(tmp_path) == []
    assert not (tmp_path / "gone.md").exists()


def test_a_page_tells_flags_defaults_and_meanings() -> None:
    made = page("made-up", MadeUp, option_groups(MadeUp, "made-up"), "navtoken made-up here")
    assert "    navtoken made-up PATH [OPTIONS]\n" in made
    rows = [line for line in made.splitlines() if line.startswith("| <h4")]
    assert rows[0] == '| <h4 id="PATH">`PATH`</h4> | required | Where it lies. |'
    assert (
        rows[1]
        == '| <h4 id="--names">`--names` `STR`</h4> | `one` `two` | Who takes part. May be repeated. |'
    )
    assert "`--no-fuse`</h4> |  | Do not fuse \\<small> operations. |" in made
    assert "| `None` | One of a\\|b, or `c\\|d`. |" in made
    assert "## Inner options\n\nWhat is inside.\n" in made
    assert made.endswith("## Example\n\n    navtoken made-up here\n")


def test_examples_are_the_readme_s_without_comments() -> None:
    readme = "    .venv/bin/navtoken a --x 1    # why\n    .venv/bin/navtoken a --x 2\n    .venv/bin/navtoken b \\\n        --y\n"
    assert readme_examples(readme) == {"a": "navtoken a --x 1", "b": "navtoken b \\\n    --y"}


def test_code_stays_code() -> None:
    assert escaped("a*b `c*d` [e]") == r"a\*b `c*d` \[e\]"
