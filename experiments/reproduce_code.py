"""Which code and weights a step's results are made by, so that what older ones made is not taken for theirs."""

import ast
import hashlib
from pathlib import Path

import navtoken

PACKAGE = Path(navtoken.__file__).parent
MAKES_RESULTS = (".py", ".safetensors", ".json", ".jinja")
"""Suffixes of the package's files that can move a figure; pages and their styles cannot."""


def code_of(script: Path, package: Path = PACKAGE) -> str:
    """Hash of the package, of a script, and of the scripts beside it that it imports."""
    sources = {path: path.relative_to(package).as_posix() for path in package.rglob("*")}
    kept = {path: name for path, name in sources.items() if path.suffix in MAKES_RESULTS}
    kept |= {path: path.name for path in with_imported(script)}
    digest = hashlib.sha256()
    for path, name in sorted(kept.items(), key=lambda each: each[1]):
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def with_imported(script: Path) -> set[Path]:
    """A script and all that it imports from its own folder, wherever in it."""
    found: set[Path] = set()
    waiting = {script}
    while waiting:
        path = waiting.pop()
        found.add(path)
        beside = {script.parent / f"{name}.py" for name in _imported(path)}
        waiting |= {each for each in beside if each.exists()} - found
    return found


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names
