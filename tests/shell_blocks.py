"""Commands of a Markdown document as a person would paste them: the indented blocks of a section, command by command."""

import re
import textwrap
from collections.abc import Iterator

_HEREDOC = re.compile(r"<<'(\w+)'")


def section_of(markdown: str, title: str) -> str:
    """What stands below a heading of the second level, up to the next one."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", markdown, re.DOTALL | re.MULTILINE)
    assert found is not None, f"no section is called '{title}'"
    return found[1]


def commands_of(section: str) -> list[str]:
    """The commands of all indented blocks, each with the lines that continue it and with its here-document."""
    return [command for block in _blocks(section) for command in _commands(iter(block.splitlines()))]


def _blocks(section: str) -> Iterator[str]:
    """Indented blocks: after a blank line, and to the last indented line."""
    for found in re.finditer(r"(?:(?<=\n\n)|\A)(?:(?:    .*|)\n)+", section):
        if found[0].strip():
            yield textwrap.dedent(found[0]).strip("\n")


def _commands(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        taken = [line]
        while taken[-1].endswith("\\"):
            taken.append(next(lines))
        if heredoc := _HEREDOC.search("\n".join(taken)):
            taken.append(next(lines))
            while taken[-1] != heredoc[1]:
                taken.append(next(lines))
        if line.strip():
            yield "\n".join(taken)
