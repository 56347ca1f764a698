"""What the documentation site is made of (a hook of MkDocs): files of the repository under their own paths.

So a link that leads somewhere in the repository leads to the same on the site, and nothing is copied or rewritten. Only the pages of
experiments are put together here: what the script says of itself, its pictures, its table, its files.
"""

import ast
import re
from collections.abc import Iterator
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
PUBLISHED = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/*.png",
    "docs/commands/*.md",
    "experiments/*/*.svg",
    "experiments/**/*.json",
    "experiments/*.py",
    "examples/*",
    "benchmarks/*.py",
    "benchmarks/results/*.json",
)
EXPERIMENTS_ARE = """\
One script per result, on the pair that ships in the package; its output is in the repository, beside it.
[Claims](../docs/claims.md) says what follows for the two papers."""
TABLES = ("table.md", "{}.md", "ablation.md")
"""Where an experiment's table is; the first that exists."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the folders that the navigation names, so that a new command or experiment needs no line there."""
    inside = {
        "docs/commands/": ["docs/commands/README.md", *_commands()],
        "experiments/": ["experiments/README.md", *({_title(path): _source(path)} for path in tables())],
    }
    assert config.nav is not None
    config.nav = [
        {title: inside.get(where, where) for title, where in entry.items()}
        if isinstance(entry, dict)
        else entry
        for entry in config.nav
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's files, and the pages of experiments."""
    for pattern in PUBLISHED:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, _source(path), abs_src_path=str(path)))
    for path in tables():
        files.append(File.generated(config, _source(path), content=experiment_page(path)))
    files.append(File.generated(config, "experiments/README.md", content=experiments_overview()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """In tables GitHub wants bars escaped even inside code, where Python-Markdown shows the backslash."""
    return "\n".join(_without_escaped_bars(markdown.split("\n")))


def _without_escaped_bars(lines: list[str]) -> Iterator[str]:
    """Lines of tables with bare bars in their code; a fenced block shows what it holds, and stays."""
    bare = partial(re.sub, r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"))
    fence = ""
    for line in lines:
        mark = re.match(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})(.*)", line)
        if mark and not fence:
            fence = mark[1]
        # A fence ends at one of its kind that is no shorter and has nothing behind it.
        elif mark and mark[1].startswith(fence) and not mark[2].strip():
            fence = ""
        yield bare(line) if line.startswith("|") and not fence else line


def tables() -> list[Path]:
    """The table of every experiment that has ended."""
    candidates = (
        [folder / name.format(folder.name) for name in TABLES]
        for folder in sorted(EXPERIMENTS.iterdir())
        if folder.is_dir()
    )
    return [path for names in candidates for path in [each for each in names if each.exists()][:1]]


def experiment_page(table: Path) -> str:
    """One experiment; its page stands where the table is in the repository, and links to the table lead to it."""
    folder = table.parent
    pictures = [f"![{_picture_title(path)}]({path.name})" for path in sorted(folder.glob("*.svg"))]
    files = [
        f"* [{name}]({name})"
        for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
    ]
    return "\n\n".join(
        [
            f"# {_title(table)}",
            _docstring(folder.with_suffix(".py")),
            *pictures,
            "## Table",
            table.read_text(encoding="utf-8").strip(),
            *(["## Files", "\n".join(files)] if files else []),
        ]
    )


def experiments_overview() -> str:
    """All experiments, with the question that each asks."""
    rows = [
        f"| [{_title(path)}]({path.relative_to(EXPERIMENTS).as_posix()}) | {_docstring(path.parent.with_suffix('.py')).splitlines()[0]} |"
        for path in tables()
    ]
    return "\n".join(
        [
            "# Experiments",
            "",
            EXPERIMENTS_ARE,
            "",
            "| experiment | what it asks |",
            "| --- | --- |",
            *rows,
        ]
    )


def _commands() -> list[dict[str, str]]:
    paths = sorted((ROOT / "docs" / "commands").glob("[!R]*.md"))
    return [{path.stem: _source(path)} for path in paths]


def _source(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _title(table: Path) -> str:
    name = table.parent.name
    return "RLVR" if name == "rlvr" else name.replace("_", " ").capitalize()


def _docstring(script: Path) -> str:
    return ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""


def _picture_title(path: Path) -> str:
    """The picture's own title, for those who do not see it."""
    found: Any = re.search(r"<title>(.*?)</title>", path.read_text(encoding="utf-8"), re.DOTALL)
    return re.sub(r"[\[\]]", "", unescape(found[1])) if found else path.stem
