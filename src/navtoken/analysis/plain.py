"""Results as JSON takes them."""

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """JSON-serialisable: keys become text, tuples lists, and a number that is not there None."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
