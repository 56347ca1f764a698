"""References of judges, and rubrics, that do not fit."""

from pathlib import Path

import pytest

from navtoken.labeling.openai_client import EndpointOptionError
from navtoken.reference import parse_reference
from navtoken.rlvr.rubric_judge import RubricError, rubric_judge_from


@pytest.mark.parametrize(
    ("reference", "error", "words"),
    [
        ("judge:http://h/v1", RubricError, "model=NAME,rubric=FILE"),
        ("judge,model=m", RubricError, "write judge:http"),
        ("judge:http://h/v1,model=m,speed=9", RubricError, "no option 'speed'; it knows backoff, cache"),
        ("judge:http://h/v1,model=m,endpoint=9", RubricError, "no option 'endpoint'"),
        ("judge:http://h/v1,model=m,url=9", RubricError, "no option 'url'"),
        ("judge:http://h/v1,model=m,highest=ten", EndpointOptionError, "highest=ten"),
        ("judge:http://h/v1,model=m,highest=0", RubricError, "from 0 to 0"),
        ("judge:http://h/v1,model=m,highest=inf", RubricError, "from 0 to inf"),
        ("judge:http://h/v1,model=m,lowest=nan", RubricError, "from nan to 10"),
        ("judge:http://h/v1,model=m,max_tokens=0", RubricError, "max_tokens is 0"),
        ("judge:http://h/v1,model=m,response_chars=1", RubricError, "response_chars is 1"),
        ("judge:http://h/v1,model=m,no_score_limit=2", RubricError, "no_score_limit is 2.0"),
        ("judge:h:80/v1,model=m", EndpointOptionError, "write http"),
        ("judge:http://h/v1,model=m,key_env=ABSENT_KEY", EndpointOptionError, "ABSENT_KEY"),
        ("judge:http://h/v1,model=m,rubric=/not/there.txt", RubricError, "cannot be read .*rubric="),
    ],
)
def test_references_that_do_not_fit(reference: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        rubric_judge_from(parse_reference(reference))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"  \n", "has 0 characters"),
        (b"x" * 50_001, "has 50001 characters"),
        (b"\xff\xfe", "no text in UTF-8"),
    ],
)
def test_rubrics_that_are_none(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "rubric").write_bytes(content)
    with pytest.raises(RubricError, match=words):
        rubric_judge_from(parse_reference(f"judge:http://h:1/v1,model=m,rubric={tmp_path / 'rubric'}"))
