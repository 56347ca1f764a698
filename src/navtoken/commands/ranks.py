"""One voice out of many: under `torchrun` every rank runs the command, the first alone prints and writes.

The others do all of the work, since the ranks of a model compute together. They write into a copy of the output folder
that goes when they end, and resume from what it held, so that all ranks find the same things done.
"""

import atexit
import os
import shutil
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from navtoken.placement import is_main_rank

IMMUTABLE = ".parquet"
"""Files that are written once and never changed, so that a link to one is as good as a copy."""


def console_for(stderr: bool) -> Console:
    """A console that prints on the first rank only."""
    return Console(stderr=stderr, quiet=not is_main_rank())


def own_output(options: Any) -> Any:
    """`options` with an output folder of this rank's own; as they are on the first rank, without a field `out`, and where a
    command's ranks write one folder together (`ranks_share_out`)."""
    if getattr(options, "ranks_share_out", False):
        return options
    out = getattr(options, "out", None) if "out" in {each.name for each in fields(options)} else None
    return options if is_main_rank() or out is None else replace(options, out=_mirror(out))


def _mirror(folder: Path) -> Path:
    """A temporary folder that holds what `folder` holds now. The first rank cannot write before this rank works too."""
    top = Path(tempfile.mkdtemp(prefix="navtoken-rank-"))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    copy = top / "out"
    if folder.is_dir():
        shutil.copytree(
            folder.resolve(), copy, copy_function=_link_or_copy, ignore=shutil.ignore_patterns("*.tmp")
        )
    return copy


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(IMMUTABLE):
        os.symlink(source, target)
    else:
        shutil.copy2(source, target)
