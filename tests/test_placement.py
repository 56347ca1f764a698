"""Models on several ranks and behind offloading hooks: the same tokens as on one device, and errors that say what to run."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.run import parse_args
from transformers import AutoConfig

from navtoken.checkpoints import LoadedModel, load_model, load_pair
from navtoken.cli import main
from navtoken.engine import Engine
from navtoken.engine.options import OptionError
from navtoken.generation import ModelOptions
from navtoken.placement import (
    Placement,
    PlacementError,
    agree,
    check_launch,
    check_shards,
    is_main_rank,
    torchrun_command,
)
from navtoken.policies import make_policy
from navtoken.trace import read_traces
from tensor_parallel_run import command, decoded
from tiny_models import prompts, tiny_model

KINDS = ["qwen3", "qwen2", "gemma2"]
"""An ordinary model, one with a tied head, one with soft-caps and windows."""
OFFLOADED = {
    "model.embed_tokens": "disk",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


def save(loaded: LoadedModel, folder: Path) -> str:
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair per kind, and what one process makes of it, some of it done before the ranks begin."""
    folder = tmp_path_factory.mktemp("sharded")
    for kind in KINDS:
        save(tiny_model(kind, 1, num_hidden_layers=1, max_position_embeddings=512), folder / kind / "slm")
        save(tiny_model(kind, 2, max_position_embeddings=512), folder / kind / "llm")
    assert main(command(folder, KINDS[0], 1, "alone")) == 0
    begun = command(folder, KINDS[0], 1, "sharded")
    begun[begun.index("--num") + 1] = "1"
    assert main(begun) == 0
    return folder


@pytest.fixture(scope="module")
def sharded(pairs: Path) -> tuple[list[dict[str, Any]], str]:
    """What each of two gloo ranks found, and what they printed."""
    if torch.accelerator.current_accelerator() is not None:
        pytest.skip("this torch is built for an accelerator, and transformers puts ranks there, found or not")
    here = Path(__file__).parent
    script = [str(here / "tensor_parallel_run.py"), str(pairs), *KINDS]
    arguments = ["--standalone", "--nproc-per-node", "2", "--", *script]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((pairs / f"rank-{rank}.json").read_text()) for rank in (0, 1)], done.stdout


@pytest.mark.slow
def test_two_ranks_write_what_one_process_writes(
    pairs: Path, sharded: tuple[list[dict[str, Any]], str]
) -> None:
    alone = decoded(pairs, KINDS, 1)["tokens"]
    first, second = (rank["tokens"] for rank in sharded[0])
    assert first == second
    assert {name: first[name] for name in alone} == alone
    assert len(first) == 2 * len(alone)
    for name, tokens in first.items():
        assert tokens == alone[name.replace("False", "True")], f"an SLM kept whole changes {name}"
    assert len({json.dumps(tokens) for tokens in alone.values()}) == len(alone), "policies write alike"


@pytest.mark.slow
def test_a_shared_models_card_is_that_of_the_whole(
    pairs: Path, sharded: tuple[list[dict[str, Any]], str]
) -> None:
    for rank in sharded[0]:
        for kind in KINDS:
            whole = load_model(str(pairs / kind / "llm"), dtype="float64").card
            card = rank["cards"][f"{kind} slm_tp=True"]["llm"]
            assert whole.shards == 1 and whole.held_bytes == whole.weight_bytes
            assert card | {"held_bytes": None} == vars(replace(whole, held_bytes=None, shards=2))
            kept_by_all = 2 * card["held_bytes"] - card["weight_bytes"]
            assert 0 < kept_by_all < 0.05 * card["weight_bytes"], "norms alone are on every rank"
        apart = rank["cards"]["qwen3 slm_tp=False"]
        assert (apart["slm"]["shards"], apart["llm"]["shards"]) == (1, 2)
        assert apart["slm"]["held_bytes"] == apart["slm"]["weight_bytes"]
        assert rank["devices"]["qwen3"] == ["cpu", "cpu", False]


@pytest.mark.slow
def test_ranks_agree_on_what_the_first_says(sharded: tuple[list[dict[str, Any]], str]) -> None:
    first, second = sharded[0]
    assert first["pid"] != second["pid"]
    assert first["agreed"] == second["agreed"] == first["pid"]
    assert first["most"] == second["most"] == max(first["pid"], second["pid"])
    assert first["shards"] == second["shards"] == 2
    assert agree("alone") == "alone"


@pytest.mark.slow
def test_one_rank_speaks_and_writes(pairs: Path, sharded: tuple[list[dict[str, Any]], str]) -> None:
    (line,) = [line for line in sharded[1].splitlines() if line.startswith("{")]
    assert json.loads(line)["out"] == str(pairs / "sharded")
    traces = list(read_traces(pairs / "sharded"))
    keys = [trace.key for trace in traces]
    assert len(keys) == len(set(keys)) == 6
    expected = {trace.key: trace.response_ids for trace in read_traces(pairs / "alone")}
    assert {trace.key: trace.response_ids for trace in traces} == expected


def test_ranks_on_a_cpu_need_a_build_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks what torch was built for, not what there is."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for there, remedy in (
        (False, "there is none, so install a build of torch for CPUs"),
        (True, "--device cuda"),
    ):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda there=there: there)
        with pytest.raises(PlacementError, match=f"run on 'cuda' here, and 'cpu' is asked for; .*{remedy}"):
            Placement(device="cpu", tp=2)._check_rank_devices()


def test_more_ranks_than_processes_names_the_command(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["/usr/bin/navtoken", "generate", "--tp", "2", "--num", "3", "--out", "my traces"]
    )
    wanted = "torchrun --standalone --nproc-per-node 2 -m -- navtoken.cli generate --tp 2 --num 3 --out 'my traces'"
    with pytest.raises(PlacementError, match="this is one; run: " + wanted):
        ModelOptions(tp=2).load()
    with pytest.raises(PlacementError, match=wanted):
        load_model(str(pairs / "qwen3" / "llm"), Placement(tp=2))
    understood = parse_args(shlex.split(wanted)[1:])
    assert (understood.training_script, understood.module) == ("navtoken.cli", True)
    assert understood.training_script_args == sys.argv[1:]
    assert torchrun_command(4, ["my.py", "x"]) == "torchrun --standalone --nproc-per-node 4 -- my.py x"


def test_another_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not is_main_rank()
    check_launch(4)
    with pytest.raises(PlacementError, match="4 are running; run: torchrun .*--nproc-per-node 2"):
        ModelOptions(tp=2).load()
    with pytest.raises(PlacementError, match="4 processes are running, and tp is 1; give tp 4"):
        ModelOptions().load()


@pytest.mark.parametrize(
    ("config", "tp", "message"),
    [
        (AutoConfig.for_model("qwen3", num_attention_heads=8, num_key_value_heads=2), 4, "2 key/value heads"),
        (AutoConfig.for_model("qwen3", num_attention_heads=6, num_key_value_heads=6), 4, "6 attention heads"),
        (AutoConfig.for_model("gpt2"), 2, "gpt2. has no tensor-parallel plan"),
    ],
)
def test_models_that_ranks_cannot_share_are_refused(config: Any, tp: int, message: str) -> None:
    check_shards(config, 1, "some/model")
    with pytest.raises(PlacementError, match=f"'some/model'.*{message}.*give"):
        check_shards(config, tp, "some/model")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tp": 0}, "tp is 0"),
        ({"tp": 2, "device_map": "auto"}, "two ways to spread"),
        ({"tp": 2, "device": "cuda:1"}, "give 'cuda'"),
        ({"device_map": "everywhere"}, "neither auto"),
        ({"max_memory": "cpu=1GiB"}, "'cpu=1GiB' is of use to a device map"),
        ({"offload_folder": Path("here")}, "'here' is of use to a device map"),
        ({"device_map": "auto", "max_memory": "1GiB"}, "not device=size"),
    ],
)
def test_placements_that_contradict_themselves_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        Placement(**wrong)


def test_options_place_each_model() -> None:
    slm, llm = ModelOptions(device="cuda", llm_device="cuda:1").placements()
    assert (slm.device, llm.device) == ("cuda", "cuda:1")
    slm, llm = ModelOptions(llm_device_map='{"": "cuda:1"}', tp=1).placements()
    assert slm.device_map is None and llm.mapping() == {"": "cuda:1"}
    limits = Placement(device_map="auto", max_memory="0=20GiB,cpu=100GiB").memory()
    assert limits == {0: "20GiB", "cpu": "100GiB"}
    slm, llm = ModelOptions(tp=4, slm_tp=1).placements()
    assert (slm.tp, llm.tp) == (1, 4)
    with pytest.raises(OptionError, match="slm_tp is 2; give 1, or 4"):
        ModelOptions(tp=4, slm_tp=2).placements()


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_a_map_to_one_device_is_that_device(pairs: Path, device_map: Any) -> None:
    if device_map == "cpu":
        with pytest.raises(PlacementError, match="'cpu' is neither"):
            Placement(device_map=device_map)
        return
    loaded = load_model(str(pairs / "qwen3" / "llm"), Placement(device_map=device_map), "float64")
    assert loaded.is_whole and loaded.device == torch.device("cpu")


def test_an_offloaded_llm_writes_the_same(pairs: Path, tmp_path: Path) -> None:
    slm, llm = (str(pairs / "qwen3" / name) for name in ("slm", "llm"))
    placement = Placement(device_map=json.dumps(OFFLOADED), offload_folder=tmp_path)
    offloaded = load_pair(slm, llm, "cpu", "float64", placement)
    whole = load_pair(slm, llm, "cpu", "float64")
    assert offloaded.llm.device == torch.device("cpu")
    assert not offloaded.llm.is_whole and offloaded.slm.is_whole
    card, held = whole.llm.card, offloaded.llm.card.held_bytes
    assert replace(offloaded.llm.card, held_bytes=card.held_bytes) == card
    assert held is not None and 0 < held < 0.6 * card.weight_bytes
    ids = torch.tensor([prompts(1)[0]])
    with torch.inference_mode():
        torch.testing.assert_close(offloaded.llm.model(ids).logits, whole.llm.model(ids).logits)
    for policy in ("llm", "random:0.3"):
        written = []
        for pair in (offloaded, whole):
            engine = Engine(pair, make_policy(policy))
            rows = [engine.add(prompt, max_tokens=10) for prompt in prompts(3)]
            list(engine.run())
            written.append([row.response_ids for row in rows])
        assert written[0] == written[1]


def test_a_map_without_accelerate_says_what_to_install(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("navtoken.placement.find_spec", lambda _: None)
    with pytest.raises(PlacementError, match="pip install accelerate"):
        load_model(str(pairs / "qwen3" / "llm"), Placement(device_map="auto"))
