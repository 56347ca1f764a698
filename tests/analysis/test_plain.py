"""What results become on their way into JSON."""

import json
import math

from navtoken.analysis.plain import plain


def test_everything_that_json_lacks_is_replaced() -> None:
    value = {1: (1.5, math.nan), "a": [{"b": math.inf}, None, True, "x"]}
    assert plain(value) == {"1": [1.5, None], "a": [{"b": None}, None, True, "x"]}
    json.dumps(plain(value), allow_nan=False)
