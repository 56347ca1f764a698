"""Where a result came from: arguments, revision, versions, fingerprints.

Written beside every result, so that a figure can be made again, or be shown not to be the one it is taken for.
"""

import os
import platform
import subprocess
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("navtoken", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow")


def provenance(fingerprints: dict[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
    """A JSON-serialisable record of what is running, to be stored with its result.

    `fingerprints` are those of the checkpoints and the tokenizer, by name; `arguments` are the options of the run
    (dataclasses become dictionaries).
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_revision": git_revision(Path(__file__).parent),
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": f"{platform.system()} {platform.machine()}",
        "fingerprints": dict(fingerprints or {}),
        "arguments": {name: _plain(value) for name, value in arguments.items()},
    }


def told(value: Any) -> Any:
    """An argument as a file that is passed on may tell it: of a path outside of the working folder only its last part.

    Lists and tuples are told part by part; what is no path stays as it is.
    """
    if isinstance(value, list | tuple):
        return [told(each) for each in value]
    if not isinstance(value, Path):
        return value
    here = Path.cwd()
    inside = Path(os.path.normpath(here / value))
    return inside.relative_to(here).as_posix() if inside.is_relative_to(here) else inside.name


def git_revision(folder: Path) -> str | None:
    """Commit of the repository that tracks `folder`, with `-dirty` after it where tracked files differ; else None."""
    # An installed package may lie inside somebody else's repository, whose revision says nothing about it.
    if not _git(folder, "ls-files", "--", ".") or not (
        commit := _git(folder, "rev-parse", "--verify", "HEAD")
    ):
        return None
    return commit + ("-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
