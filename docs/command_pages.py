"""A page for every command, out of the dataclass of its options: what it does, each option's flag, default and meaning.

    .venv/bin/python docs/command_pages.py            # write docs/commands/ (`make reference`)
    .venv/bin/python docs/command_pages.py --check    # fail where it is not what the options say (`make check`)

Flags, types and help are those of the parser that prints `--help`, defaults those of the dataclasses, examples the README's.
"""

import argparse
import inspect
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from navtoken.cli import CHATTY, COMMANDS
from navtoken.commands.config import Invocation, argument_parser, defaults
from navtoken.report.markup import write_whole

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "commands"
MARK = "<!-- Made by `make reference` from the options' dataclasses; change those. -->"
COLUMNS = ("option", "default", "meaning")
CONFIG = """\
In the file of `--config` an option is named as its flag, with underscores and without the dashes in front
(`max_tokens: 512`); a list stands for a repeated option, and `name: false` for the switch `--no-name`."""
OWN = "options."
"""Begins the path of an option that is the command's own, and not one that every command takes."""


class Option(NamedTuple):
    """One line of a command's `--help`."""

    flags: tuple[str, ...]
    """Its names; none for a positional argument."""
    value: str
    """What follows the flag; empty for a switch."""
    default: Any
    """`tyro.MISSING` where the command line has to give it."""
    meaning: str
    is_own: bool


class Group(NamedTuple):
    """Options that lie together."""

    title: str
    meaning: str
    options: list[Option]


def main() -> int:
    """Write the pages, or compare them with what is there; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where pages have drifted")
    if parser.parse_args().check:
        drifted = drift(PAGES)
        for name in drifted:
            print(f"docs/commands/{name} is not what the options say; run `make reference`", file=sys.stderr)
        return 1 if drifted else 0
    write(PAGES)
    return 0


def write(folder: Path) -> None:
    """Make `folder` hold the pages, and no page of a command that is no more."""
    made = pages()
    for name, text in made.items():
        write_whole(folder / name, text)
    for path in folder.glob("*.md"):
        if path.name not in made:
            path.unlink()


def drift(folder: Path) -> list[str]:
    """Names of pages in `folder` that differ from what the options say, are missing, or are of no command."""
    made, there = pages(), {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))


def pages() -> dict[str, str]:
    """All pages by file name; `README.md` is the overview."""
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.ERROR)
    kinds = {name: getattr(import_module(each.module), each.options) for name, each in COMMANDS.items()}
    groups = {name: option_groups(kind, name) for name, kind in kinds.items()}
    examples = readme_examples((ROOT / "README.md").read_text(encoding="utf-8"))
    made = {
        f"{name}.md": page(name, kind, groups[name], examples.get(name, "")) for name, kind in kinds.items()
    }
    return made | {"README.md": overview(groups)}


def option_groups(kind: type[Any], command: str) -> list[Group]:
    """What `--help` of a command shows, `--help` itself apart; groups without options left out."""
    given = defaults(kind)
    found = []
    # argparse keeps groups, and which option lies in which, to itself; its own help formatter reads the same two names.
    for each in argument_parser(kind, command)._action_groups:
        options = [_option(action, given) for action in each._group_actions if action.dest != "help"]
        if options:
            title = (each.title or "").removesuffix(" options").rpartition(".")[2].replace("-", " ")
            found.append(
                Group(title, each.description or "", sorted(options, key=lambda option: not option.is_own))
            )
    return found


def _option(action: argparse.Action, given: Invocation[Any]) -> Option:
    default = attrgetter(action.dest.replace("-", "_"))(given)
    meaning, _, note = (action.help or "").rpartition(" (")
    repeatable = note == "repeatable)" and "may be repeated" not in meaning
    if action.nargs == 0 and default is True:
        # The flag is --no-NAME, while default and meaning are NAME's.
        meaning, default = f"Do not {meaning[:1].lower()}{meaning[1:]}", False
    return Option(
        tuple(sorted(action.option_strings, key=lambda flag: flag != f"--{action.dest.rpartition('.')[2]}")),
        "" if action.nargs == 0 else _value(str(action.metavar), default),
        default,
        " ".join(meaning.split()) + (" May be repeated." if repeatable else ""),
        action.dest.startswith(OWN),
    )


def _value(metavar: str, default: Any) -> str:
    """tyro's word for a type, without the None that the column of defaults shows already, and each word once."""
    if default is None:
        metavar = metavar.replace("{None}|", "").replace("{None,", "{")
    metavar = re.sub(r"\[(.+) \[\1 \.\.\.\]\]", r"[\1 ...]", metavar)
    return re.sub(r"^\[(\[.*\])\]$", r"\1", metavar).replace("|", " or ")


def readme_examples(readme: str) -> dict[str, str]:
    """By command, the first line of the README that runs it, without a comment."""
    found: dict[str, str] = {}
    for line in re.findall(r"^    \.venv/bin/(navtoken \S+(?:\\\n|.)*)", readme, re.MULTILINE):
        found.setdefault(line.split()[1], re.sub(r"\s+# .*", "", line).replace("\n    ", "\n"))
    return found


def page(name: str, kind: type[Any], groups: list[Group], example: str) -> str:
    """The page of one command."""
    positional = [option for group in groups for option in group.options if not option.flags]
    usage = " ".join(["navtoken", name, *(_positional(option) for option in positional), "[OPTIONS]"])
    parts = [f"# navtoken {name}", MARK, escaped(inspect.cleandoc(kind.__doc__ or "")), f"    {usage}"]
    for group in groups:
        parts += [f"## {_title(group)}", *([escaped(group.meaning)] if group.meaning else [])]
        parts.append(_table(*COLUMNS, rows=_rows(group.options)))
    if example:
        parts += ["## Example", "\n".join(f"    {line}" for line in example.splitlines())]
    return "\n\n".join(parts) + "\n"


def _positional(option: Option) -> str:
    required = option.default is tyro.MISSING
    return option.value if required or option.value.startswith("[") else f"[{option.value}]"


def _title(group: Group) -> str:
    return (group.title or "options").capitalize()


def _rows(options: list[Option]) -> Iterator[str]:
    for option in options:
        names = ", ".join(f"`{flag}`" for flag in option.flags)
        shown = " ".join([*([names] if names else []), *([f"`{option.value}`"] if option.value else [])])
        # A heading, so that the site's search finds the option itself.
        name = f'<h4 id="{option.flags[0] if option.flags else option.value}">{shown}</h4>'
        cells = (name, _default(option.default), escaped(option.meaning))
        yield f"| {' | '.join(cells)} |"


def _default(value: Any) -> str:
    if value is tyro.MISSING:
        return "required"
    if isinstance(value, tuple):
        return " ".join(f"`{item}`" for item in value)
    return "" if value is False else f"`{value}`"


def escaped(text: str) -> str:
    """Text of docstrings as Markdown: code in backticks stays, what else Markdown or HTML would read as theirs does not."""
    pieces = re.split(r"(`[^`]*`)", text)
    plain = (re.sub(r"([*|<\[\]])", r"\\\1", piece) for piece in pieces[::2])
    code = (piece.replace("|", r"\|") for piece in pieces[1::2])
    return "".join(piece for pair in zip(plain, [*code, ""], strict=True) for piece in pair)


def overview(groups: dict[str, list[Group]]) -> str:
    """All commands, and all options with the commands that take them."""
    takers: dict[str, list[str]] = {}
    for name, each in groups.items():
        for option in (option for group in each for option in group.options if option.is_own):
            for flag in option.flags:
                takers.setdefault(flag, []).append(f"[{name}]({name}.md#{option.flags[0]})")
    commands = [f"| [{name}]({name}.md) | {escaped(each.summary)} |" for name, each in COMMANDS.items()]
    common = {
        option.flags: option
        for each in groups.values()
        for group in each
        for option in group.options
        if not option.is_own
    }
    everywhere = [*_rows(list(common.values())), "| `-h`, `--help` |  | Show the options and leave. |"]
    takers_rows = [f"| `{flag}` | {', '.join(takers[flag])} |" for flag in sorted(takers)]
    parts = [
        "# Commands",
        MARK,
        _table("`navtoken`", "what it does", rows=commands),
        "## Every command takes",
        _table(*COLUMNS, rows=everywhere),
        CONFIG,
        "## All options",
        _table("option", "of", rows=takers_rows),
    ]
    return "\n\n".join(parts) + "\n"


def _table(*columns: str, rows: Iterable[str]) -> str:
    return "\n".join([f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *rows])


if __name__ == "__main__":
    sys.exit(main())
