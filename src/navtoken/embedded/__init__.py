"""The pair that ships in the package: a tokenizer, three small checkpoints and the recipe that makes them.

Folders `slm`, `llm` and `base` are in the standard `transformers` layout. `base` has the LLM's shape and stops
early in its training, so that reinforcement learning has something left to do.
"""

from importlib.resources import files
from pathlib import Path

NAMES = ("slm", "llm", "base")


def folder(name: str) -> Path:
    """Where `embedded:NAME` lies. Raises `ValueError` on a name that does not ship."""
    if name not in NAMES:
        raise ValueError(f"'embedded:{name}' does not ship with navtoken; there are {', '.join(NAMES)}")
    return Path(str(files("navtoken.embedded").joinpath(name)))
