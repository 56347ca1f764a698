"""The command line as a person meets it: help, files of options, JSON, errors in one line."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from navtoken.cli import COMMANDS, main
from navtoken.reference import BadReference
from navtoken.trace import read_traces
from small_runs import saved_pair

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    slm, llm = saved_pair(tmp_path_factory.mktemp("pair"))
    return ["--slm", slm, "--llm", llm]


SHORT = ["--num", "2", "--max-tokens", "5", "--task", "arithmetic"]


def refused(args: list[str], capsys: Capture) -> str:
    """The one line on standard error with which a command refuses."""
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_names_its_options(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--config", "--json"):
        assert flag in out
    # A pair, or the checkpoints that a command is about.
    pair = "--slm" in out and "--llm" in out
    assert pair or "--model" in out


def test_version_and_overview(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"navtoken {version('navtoken')}\n"
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"navtoken {command}" in overview for command in COMMANDS)
    assert main([]) == 2
    assert "evaluate" in capsys.readouterr().out
    assert main(["evalute"]) == 2
    assert "'evalute'" in capsys.readouterr().err


def test_evaluate_ends_in_one_json_object(pair: list[str], capsys: Capture) -> None:
    assert main(["evaluate", *pair, *SHORT, "--task", "knights", "--policy", "slm", "--json"]) == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out.splitlines()[-1])
    assert [(row["policy"], row["task"]) for row in data["rows"]] == [
        ("slm", "arithmetic"), ("slm", "knights"), ("slm", "mean"),
    ]  # fmt: skip
    assert len(captured.out.splitlines()) == 1
    assert "arithmetic" in captured.err


def test_the_table_goes_to_standard_output(pair: list[str], capsys: Capture) -> None:
    assert main(["evaluate", *pair, *SHORT, "--policy", "random:0.5"]) == 0
    out = capsys.readouterr().out
    assert "random:0.5" in out
    assert max(map(len, out.splitlines())) <= 80


def test_generate_resumes(pair: list[str], tmp_path: Path, capsys: Capture) -> None:
    args = [
        "generate",
        *pair,
        "--max-tokens",
        "5",
        "--task",
        "arithmetic",
        "--policy",
        "slm",
        "--out",
        str(tmp_path),
    ]
    assert main([*args, "--num", "2"]) == 0
    first = [trace.key for trace in read_traces(tmp_path)]
    assert main([*args, "--num", "3", "--json"]) == 0
    assert [trace.key for trace in read_traces(tmp_path)][:2] == first
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]["num_responses"] == 3
    assert "another folder" in refused([*args, "--seed", "5"], capsys)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_flags_win_over_the_file_and_lists_are_replaced(
    pair: list[str], tmp_path: Path, capsys: Capture
) -> None:
    text = (
        "task: [countdown, knights]\npolicy: [slm, llm]\nnum: 2\nmax_tokens: 5\ntemperature: 1\ntop_p: 9e-1\n"
    )
    config = write(tmp_path / "c.yaml", text)
    assert main(["evaluate", *pair, "--config", config, "--task", "arithmetic", "--num", "1", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    arguments = data["provenance"]["arguments"]
    assert arguments["task"] == ["arithmetic"]
    assert arguments["policy"] == ["slm", "llm"]
    assert (arguments["num"], arguments["max_tokens"]) == (1, 5)
    assert (arguments["sampling"]["temperature"], arguments["sampling"]["top_p"]) == (1.0, 0.9)


@pytest.mark.parametrize(
    ("text", "min_rows", "bias"),
    [
        ("llm_min_rows: auto\nlogit_bias: [[5, -1.5], [7, -2]]", "auto", [[5, -1.5], [7, -2.0]]),
        ("llm_min_rows: 3", 3, []),
    ],
)
def test_a_file_may_hold_what_has_several_types(
    pair: list[str], tmp_path: Path, capsys: Capture, text: str, min_rows: str | int, bias: list
) -> None:
    config = write(tmp_path / "c.yaml", f"task: arithmetic\npolicy: slm\nnum: 1\nmax_tokens: 3\n{text}\n")
    assert main(["evaluate", *pair, "--config", config, "--json"]) == 0
    arguments = json.loads(capsys.readouterr().out)["provenance"]["arguments"]
    assert arguments["engine"]["llm_min_rows"] == min_rows
    assert arguments["sampling"]["logit_bias"] == bias


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("logit_bias: [[5]]", ["logit_bias", "2 values"]),
        ("llm_min_rows: many", ["llm_min_rows", "auto"]),
        ("nun: 3", ["unknown key 'nun'", "num", "temperature", "slm"]),
        ("num: many", ["num", "'many'", "int"]),
        ("split: dev", ["split", "'dev'", "train, test"]),
        ("num: 2\nnum: 3", ["'num' is given twice"]),
        ("- num", ["no mapping"]),
        ("num: [", ["not YAML"]),
        ("temperature: -1", ["temperature is -1"]),
        ("ignore_eos: 1", ["ignore_eos", "bool"]),
        ("policy: [nope]", ["no policy is called 'nope'", "entropy"]),
        ("task: nope", ["unknown task 'nope'"]),
        ("policy: ','", ["name[:target]"]),
        ("threads: 0", ["threads is 0"]),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    pair: list[str], tmp_path: Path, capsys: Capture, text: str, words: list[str]
) -> None:
    config = write(tmp_path / "c.yaml", text)
    line = refused(["evaluate", *pair, "--max-tokens", "5", "--config", config], capsys)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["evaluate", "--config", "/nowhere.yaml"], "cannot read '/nowhere.yaml'"),
        (["evaluate", "--slm", "/nowhere"], "neither a folder here nor a hub id"),
        (["solve", "hello", "--policy", "entropy,share=0.2"], "calibrate_on"),
    ],
)
def test_errors_are_one_line(pair: list[str], capsys: Capture, args: list[str], words: str) -> None:
    assert words in refused([args[0], *pair, *args[1:]], capsys)


def test_a_slip_of_the_code_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("navtoken.cli._run", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["evaluate"])


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (BadReference("no"), 2), (OSError("no"), 2)]
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr("navtoken.cli._run", broken)
    assert main(["evaluate"]) == code


def test_demo_writes_a_page_and_its_table(pair: list[str], tmp_path: Path, capsys: Capture) -> None:
    args = [
        "demo",
        *pair,
        "--num",
        "2",
        "--max-tokens",
        "6",
        "--out",
        str(tmp_path),
        "--share",
        "0.3",
        "--json",
    ]
    assert main(args) == 0
    data = json.loads(capsys.readouterr().out)
    page = (tmp_path / "index.html").read_text()
    assert data["page"] == str(tmp_path / "index.html")
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == data["rows"]
    assert len(data["rows"]) == 5 * 4
    assert page.count('<article class="problem"') == 3
    assert "http://" not in page.replace("http://www.w3.org", "")
    for policy in ("slm", "random", "entropy", "llm-prob", "llm"):
        assert f'value="{policy}"' in page
