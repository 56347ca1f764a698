"""The tutorial is run, block by block, and what it shows must be what comes out (`...` is anything).

Python blocks share one namespace; lines of shell blocks are commands of ours, run in this process, but for one that ends in `&`, and the one
that stops it. The indented block installs, and is held against what the project knows.
"""

import contextlib
import doctest
import io
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser

from navtoken.cli import main
from shell_blocks import commands_of

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"
PATIENCE = 240.0
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SERVERS: list[subprocess.Popen[bytes]] = []


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


PORT = _free_port()


def run_python(example: Example) -> None:
    printed = io.StringIO()
    code = compile(example.parsed.replace(":8000", f":{PORT}"), str(TUTORIAL), "exec", dont_inherit=True)
    with contextlib.redirect_stdout(printed):
        exec(code, example.namespace)  # noqa: S102 - the page is ours
    example.namespace["printed"] = printed.getvalue()


def run_shell(example: Example) -> None:
    printed = io.StringIO()
    for line in example.parsed.splitlines():
        if line == "kill %1":
            _stop(SERVERS.pop(0))
            continue
        program, *arguments = shlex.split(line)
        assert program == "navtoken"
        if arguments[-1] == "&":
            _serve([*arguments[:-1], "--port", str(PORT)])
            continue
        with contextlib.redirect_stdout(printed):
            assert main(arguments) == 0
    example.namespace["printed"] = printed.getvalue()


def compare(example: Example) -> str | None:
    """What is wrong with the output shown, if anything is."""
    wanted, got = example.parsed, example.namespace["printed"]
    if doctest.OutputChecker().check_output(wanted, got, SAME):
        return None
    return f"shown:\n{wanted}\nprinted:\n{got}"


def _serve(arguments: list[str]) -> None:
    """Start a server and wait until it answers."""
    log = Path("serve.log")
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "navtoken.cli", *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    SERVERS.append(server)
    end = time.monotonic() + PATIENCE
    while "page: http://" not in log.read_text():
        assert server.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(0.1)


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    assert server.wait(PATIENCE) == 0


DOCUMENT: Document = Sybil(
    [
        CodeBlockParser("python", run_python),
        CodeBlockParser("sh", run_shell),
        CodeBlockParser("text", compare),
    ]
).parse(TUTORIAL)
EXAMPLES = list(DOCUMENT.examples())


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty folder, a terminal of a hundred columns, one thread."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        patch.setenv("COLUMNS", "100")
        torch.set_num_threads(1)
        yield
        for server in SERVERS:
            _stop(server)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"line-{example.line}")
def test_a_block_of_the_tutorial(example: Example) -> None:
    """In the order of the page: each builds on those before it."""
    example.evaluate()


def test_every_block_is_one_that_is_run() -> None:
    """A fence in another language would be shown and never tried."""
    assert TUTORIAL.read_text().count("```") == 2 * len(EXAMPLES)


def test_what_it_imports_is_what_it_installs() -> None:
    """Whoever has typed the first block can run all others."""
    venv, install, activate = commands_of(TUTORIAL.read_text())
    assert (venv, activate) == ("python3 -m venv .venv", "source .venv/bin/activate")
    words = shlex.split(install)
    assert words[:6] == [".venv/bin/pip", "install", "-c", "constraints.txt", "-e", "."]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [re.split(r"[\[>=<]", each)[0] for each in project["dependencies"]] + words[6:]
    code = "\n".join(example.parsed for example in EXAMPLES if "import" in example.parsed)
    imported = set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE)) - sys.stdlib_module_names
    assert imported <= {*named, "navtoken"}
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert set(words[6:]) <= pinned


def test_what_is_started_is_stopped() -> None:
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL))
    assert commands.count("&\n") == 1 == commands.split("&\n")[1].count("kill %1")
