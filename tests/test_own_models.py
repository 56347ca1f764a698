"""What the README says under "With your own models" is run as it stands there, on random checkpoints that lie in a folder.

Only the table below is put in the place of what the README has: names of models, device and type, sizes, and a free port.
"""

import json
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

import httpx2
import pytest
import yaml

from shell_blocks import commands_of, section_of
from tiny_chat_pair import save_chat_pair

ROOT = Path(__file__).parents[1]
IN_PLACE_OF = {
    "Qwen/Qwen2.5-1.5B-Instruct": "models/slm",
    "Qwen/Qwen2.5-7B-Instruct": "models/llm",
    "Qwen/Qwen3-8B-Base": "models/llm",
    "device: cuda": "device: cpu",
    "dtype: bfloat16": "dtype: float32",
    "range(1000)": "range(120)",
    "--max-tokens 1024": "--max-tokens 32",
    '"max_tokens": 512': '"max_tokens": 24',
    "max_tokens=512": "max_tokens=24",
    "127.0.0.1:8000": "127.0.0.1:{port}",
    "serve --config": "serve --port {port} --config",
    "accelerate_fsdp.yaml": "accelerate_cpu.yaml",
    "--out out/rl": "--out out/rl --device cpu --precision float32 --rollouts engine --steps 1 --updates 1 --rollout-prompts 4"
    " --num-generations 4 --max-tokens 24 --overlong-cache 4 --held-out-num 2 --held-out-samples 1",
}
"""The README's words and what the test says instead; each must occur."""
NOT_RUN = ("python3 -m venv", ".venv/bin/pip install")
"""Beginnings of commands that install; they are held against the project's metadata instead."""
PATIENCE = 240.0

SECTION = section_of((ROOT / "README.md").read_text(), "With your own models")
WRITTEN = commands_of(SECTION)
INSTALLS = [command for command in WRITTEN if command.startswith(NOT_RUN)]
COMMANDS = [command for command in WRITTEN if command not in INSTALLS]
SLOW = [command for command in COMMANDS if "accelerate launch" in command]


class Place:
    """An empty folder in which a stranger has installed the package, and two checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[subprocess.Popen[str]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        save_chat_pair(folder / "models")
        for name, module in (
            ("python", ""),
            ("navtoken", "-m navtoken.cli"),
            ("accelerate", "-m accelerate.commands.accelerate_cli"),
        ):
            script = folder / ".venv" / "bin" / name
            script.parent.mkdir(parents=True, exist_ok=True)
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
            script.chmod(0o755)
        (folder / "examples").symlink_to(ROOT / "examples")

    def own(self, command: str) -> str:
        """The command with this place's models and sizes."""
        for theirs, ours in IN_PLACE_OF.items():
            command = command.replace(theirs, ours.format(port=self.port))
        return command

    def run(self, command: str) -> str:
        """Run a command to its end; returns what it printed. A failure shows both."""
        done = subprocess.run(
            ["bash", "-c", self.own(command)],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            check=False,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def serve(self, command: str) -> None:
        """Start a server and wait until it answers."""
        log = self.folder / "serve.log"
        with log.open("w") as out:
            # exec: the signal that ends it must reach the server, not the shell.
            server = subprocess.Popen(
                ["bash", "-c", f"exec {self.own(command)}"],
                cwd=self.folder,
                env=self.env,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.servers.append(server)
        end = time.monotonic() + PATIENCE
        while "page: http://" not in log.read_text():
            assert server.poll() is None, f"{command}\n{log.read_text()[-4000:]}"
            assert time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.1)

    def status_of(self, fields: dict[str, object]) -> int:
        """What the server says to a question with these fields."""
        asked = {"model": "navtoken", "max_tokens": 4, "messages": [{"role": "user", "content": "1 + 1?"}]}
        address = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return httpx2.post(address, json=asked | fields, timeout=PATIENCE).status_code

    @property
    def env(self) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT / "src"), *sys.path])
        return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def close(self) -> None:
        for server in self.servers:
            server.terminate()
            assert server.wait(PATIENCE) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("stranger"))
    yield made
    made.close()


def _called(command: str) -> str:
    """A short name of a command for test ids: its program and what it does."""
    return re.sub(r"\W+", "-", " ".join(command.replace(".venv/bin/", "").split()[:2])).strip("-")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(each, id=_called(each), marks=[pytest.mark.slow] if each in SLOW else [])
        for each in COMMANDS
    ],
)
def test_a_command_of_the_readme_works(place: Place, command: str) -> None:
    """In the order of the README: each works on what those before it left."""
    if "navtoken serve" in command:
        place.serve(command)
        printed = ""
    else:
        printed = place.run(command)
    out = place.folder / "out"
    if "navtoken label" in command:
        labels = json.loads((out / "labels" / "manifest.json").read_text())["labels"]
        assert labels["divergent"] > 20 and labels["neutral"] > 20
    elif "train-router" in command:
        assert _temperatures(out / "router") == {0.0}
    elif "calibrate" in command:
        assert _temperatures(out / "router") == {0.0, 0.7}
        assert _thresholds_as_served(out / "router").keys() == {0.1, 0.2}
    elif "evaluate" in command:
        rows = json.loads((out / "table" / "table.json").read_text())["rows"]
        shares = {row["policy"]: row["llm_share"] for row in rows}
        assert list(shares) == ["slm", "router:out/router", "llm"]
        assert shares["slm"] == 0 < shares["router:out/router"] < shares["llm"] == 1
    elif command.startswith("curl"):
        (choice,) = json.loads(printed)["choices"]
        assert choice["navtoken"]["policy"].startswith("router,threshold=")
        routed_by = float(re.findall(r"threshold=([^,]+)", choice["navtoken"]["policy"])[0])
        assert routed_by in _thresholds_as_served(out / "router").values()
        assert place.status_of({"policy": "router,share=0.2"}) == 200
        assert place.status_of({"policy": "router,share=0.2", "temperature": 0}) == 200
        assert place.status_of({"policy": "router,share=0.2", "repetition_penalty": 1.2}) == 400
        assert choice["navtoken"]["llm_tokens"] + choice["navtoken"]["slm_tokens"] > 0
    elif "openai" in command:
        told = dict(
            line.split(" ")[:2]
            for line in printed.splitlines()
            if line.startswith(("slm ", "router ", "llm "))
        )
        assert list(told) == ["slm", "router", "llm"]
        assert float(told["slm"]) == 0 <= float(told["router"]) < float(told["llm"]) == 1
    elif "navtoken.rlvr" in command:
        assert (out / "rl" / "model" / "model.safetensors").exists()
        assert json.loads((out / "rl" / "result.json").read_text())["provenance"]["ranks"] == 2


def _temperatures(router: Path) -> set[float]:
    """Of the thresholds that the router's card holds."""
    return {each["temperature"] for each in json.loads((router / "router.json").read_text())["thresholds"]}


def _thresholds_as_served(router: Path) -> dict[float, float]:
    """By share, those over all tasks at the sampling of the LLM's generation config."""
    wanted = {"task": "all", "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    stored = json.loads((router / "router.json").read_text())["thresholds"]
    return {each["share"]: each["threshold"] for each in stored if wanted.items() <= each.items()}


def test_the_section_goes_all_the_way() -> None:
    """From an installation to an answer, and to training."""
    steps = ["label", "train-router", "calibrate", "evaluate", "serve", "curl", "openai", "navtoken.rlvr"]
    found = [next(number for number, each in enumerate(COMMANDS) if step in each) for step in steps]
    assert found == sorted(found)
    assert INSTALLS[0].startswith("python3 -m venv") and len(INSTALLS) == 3


def test_what_is_put_in_the_place_of_the_readme_s_words_is_still_there() -> None:
    assert [words for words in IN_PLACE_OF if not any(words in each for each in COMMANDS)] == []


def test_what_is_installed_is_what_the_project_knows() -> None:
    """Extras exist, and further packages have their pinned version."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for install in (each for each in INSTALLS if "pip install" in each):
        words = shlex.split(install)[2:]
        assert words[:3] == ["-c", "constraints.txt", "-e"]
        found = re.fullmatch(r"\.\[([\w,]+)\]", words[3])
        assert found is not None and set(found[1].split(",")) <= extras.keys()
        assert set(words[4:]) <= pinned


def test_training_is_on_as_many_devices_as_the_readme_says() -> None:
    said = re.search(r"with (\d+) GPUs", SECTION)
    assert said is not None
    for launch in (
        ROOT / "examples" / "accelerate_fsdp.yaml",
        ROOT / "examples" / "accelerate_deepspeed.yaml",
    ):
        assert yaml.safe_load(launch.read_text())["num_processes"] == int(said[1])
