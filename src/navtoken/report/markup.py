"""The only way text gets into a page: every helper here that makes markup escapes what it is given.

Model output is hostile input (it may spell `</script>`), so no other file of the report joins raw text and tags.
"""

import html
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Html = str
"""Text that is markup already."""

_JSON_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
_VOID = {"br", "input", "meta", "line", "rect", "circle", "path"}


class ReportError(ValueError):
    """Data that a report cannot show; the message names the value and the remedy."""


def escape(value: object) -> Html:
    """`value` as text that is safe between tags and inside quoted attributes."""
    text = str(value).replace("\0", "\ufffd").encode("utf-8", "backslashreplace").decode("utf-8")
    return html.escape(text, quote=True)


def element(tag: str, *children: Html, **attributes: object) -> Html:
    """`<tag attributes>children</tag>`: attribute values are escaped, children are markup already.

    `class_` stands for `class` and `_` for `-`; True gives a bare attribute, None and False give none.
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escape(value)}"')
    head = " ".join(parts)
    if tag in _VOID and not children:
        return f"<{head}/>"
    return f"<{head}>{''.join(children)}</{tag}>"


def each(items: Iterable[Any], make: Callable[[Any], Html]) -> Html:
    """The markup of all items, joined."""
    return "".join(make(item) for item in items)


def json_script(data: object, element_id: str) -> Html:
    """`data` as JSON in a script element that no content can close: `<`, `>` and `&` are written as \\uXXXX."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode("utf-8", "backslashreplace").decode("utf-8").translate(_JSON_ESCAPES)
    return f'<script type="application/json" id="{escape(element_id)}">{text}</script>'


def percent(value: float | None, digits: int = 0) -> str:
    """A fraction as every page writes it: 12 %; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def write_whole(path: str | Path, text: str) -> Path:
    """Write `text` beside `path`, then rename: a reader never sees half a file."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target
