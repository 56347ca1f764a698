"""The one grammar in which models' rules, tasks and policies are named: `name[:target][,key=value...]`.

Policies, tasks and the command line all parse with `parse_reference`, so a spelling that works in one place
works in every other.
"""

import re
from dataclasses import dataclass, field


class BadReference(ValueError):
    """A reference that does not follow `name[:target][,key=value...]`."""


@dataclass(frozen=True)
class Reference:
    """A parsed reference: `entropy,share=0.13` is `Reference("entropy", None, {"share": "0.13"})`."""

    name: str
    target: str | None = None
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        target = "" if self.target is None else f":{self.target}"
        return self.name + target + "".join(f",{key}={value}" for key, value in self.options.items())


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def parse_reference(text: str) -> Reference:
    """Parse `name[:target][,key=value...]`.

    The target may hold any character but a comma (a path, a hub id, a number).
    Raises `BadReference` naming the part that does not fit.
    """
    head, *pairs = text.strip().split(",")
    name, colon, target = head.partition(":")
    if not _NAME.fullmatch(name):
        raise BadReference(f"'{text}': '{name}' is no name; write name[:target][,key=value...]")
    if colon and not target:
        raise BadReference(f"'{text}': nothing after ':'; write {name}:TARGET or {name}")
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise BadReference(f"'{text}': '{pair}' is not key=value")
        if key in options:
            raise BadReference(f"'{text}': '{key}' is given twice")
        options[key] = value
    return Reference(name, target if colon else None, options)
