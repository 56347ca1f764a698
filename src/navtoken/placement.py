"""Where a model runs: one device, several behind `accelerate`'s hooks, or one shard on each rank of `torchrun`.

Tensor parallelism is that of `transformers`: every rank holds a part of each layer and gets the full logits. So every
rank runs the same engine on the same requests, and a rank that decided otherwise would wait for the others for ever:
what a rank measures, times and free memory above all, must be agreed on (`agree`) before it decides anything.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import torch

from navtoken.checkpoint_errors import PlacementError

Value = TypeVar("Value")

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways in which `accelerate` fills the devices by itself."""


@dataclass(frozen=True)
class Placement:
    """Where one model runs."""

    device: str = "cpu"
    """Torch device. With `tp`, its kind: each rank takes the one of its number."""
    device_map: str | dict[str, str | int] | None = None
    """Instead of `device`: a strategy (auto, balanced, ...), or which part of the model lies where, as a mapping or as
    its JSON; `cpu` and `disk` are offloaded, which reads their weights again in every pass."""
    max_memory: str | None = None
    """What `device_map` may fill with weights, such as `0=20GiB,cpu=100GiB`; None leaves nothing for KV caches."""
    offload_folder: Path | None = None
    """Where weights go that the checkpoint's own files cannot serve from disk."""
    tp: int = 1
    """Ranks that share every layer; 1 is a whole model."""

    def __post_init__(self) -> None:
        if self.tp < 1:
            raise PlacementError(f"tp is {self.tp}; give at least 1")
        if self.tp > 1 and self.device_map is not None:
            raise PlacementError(
                f"tp {self.tp} and device map '{self.device_map}' are two ways to spread one model; give one of them"
            )
        if self.tp > 1 and ":" in self.device:
            raise PlacementError(
                f"device '{self.device}' is one device, and tp {self.tp} takes one per rank; give "
                f"'{self.device.split(':')[0]}'"
            )
        for name, value in (("max memory", self.max_memory), ("offload folder", self.offload_folder)):
            if value is not None and self.device_map is None:
                raise PlacementError(
                    f"{name} '{value}' is of use to a device map only; give one, such as auto"
                )
        self.mapping()
        self.memory()

    def mapping(self) -> str | dict[str, str | int] | None:
        """The device map as `transformers` takes it. Raises `PlacementError` for what is none."""
        given = self.device_map
        if not isinstance(given, str) or given in STRATEGIES:
            return given
        try:
            read = json.loads(given)
        except json.JSONDecodeError:
            read = None
        if not isinstance(read, dict):
            raise PlacementError(
                f"device map '{given}' is neither {', '.join(STRATEGIES)} nor a JSON object of parts and devices, such as "
                '{"": "cuda:1"}'
            )
        return read

    def memory(self) -> dict[str | int, str] | None:
        """Limits by device, as `transformers` takes them. Raises `PlacementError` for what is none."""
        if self.max_memory is None:
            return None
        limits: dict[str | int, str] = {}
        for part in self.max_memory.split(","):
            device, _, size = part.partition("=")
            if not device or not size:
                raise PlacementError(
                    f"max memory '{part}' is not device=size; give such as 0=20GiB,cpu=100GiB"
                )
            limits[int(device) if device.isdigit() else device] = size
        return limits

    def loading_arguments(self) -> dict[str, Any]:
        """What `from_pretrained` is told; nothing where the model is moved to `device` afterwards.

        Raises `PlacementError` where the launch, the machine or the installed packages do not allow it.
        """
        if self.tp > 1:
            check_launch(self.tp)
            self._check_rank_devices()
            return {"distributed_config": _distributed_config(self.tp)}
        if self.device_map is None:
            return {}
        _require_accelerate(f"device map '{self.device_map}'")
        return {
            "device_map": self.mapping(),
            "max_memory": self.memory(),
            "offload_folder": self.offload_folder,
        }

    def torch_device(self) -> torch.device:
        """Raises `PlacementError` where this machine or this build of torch has no such device."""
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise PlacementError(
                f"device '{self.device}' is not to be had here ({error}); give cpu"
            ) from error
        if device.index is None and device.type != "cpu" and launched():
            return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
        return device

    def _check_rank_devices(self) -> None:
        """`transformers` puts shards on the accelerator that torch was built for, whatever it is told."""
        accelerator = torch.accelerator.current_accelerator()
        found = "cpu" if accelerator is None else accelerator.type
        if found != torch.device(self.device).type:
            there = accelerator is None or torch.accelerator.is_available()
            remedy = (
                f"give --device {found}" if there else "there is none, so install a build of torch for CPUs"
            )
            raise PlacementError(
                f"ranks of tensor parallelism run on '{found}' here, and '{self.device}' is asked for; {remedy}"
            )


def check_shards(config: Any, tp: int, reference: str) -> None:
    """Raise `PlacementError` unless `tp` ranks can share the model: it has a plan, and its heads divide."""
    if tp == 1:
        return
    text = config.get_text_config()
    plan = getattr(text, "base_model_tp_plan", None)
    if not plan:
        raise PlacementError(
            f"'{reference}' ({config.model_type}) has no tensor-parallel plan in transformers; give tp 1, and for a model "
            "larger than one device a device map such as auto"
        )
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    for name, number in (("attention", heads), ("key/value", kv_heads)):
        if number % tp and any("attn" in rule or "attention" in rule for rule in plan):
            raise PlacementError(
                f"'{reference}' has {number} {name} heads, which {tp} ranks cannot share evenly; give a tp that divides "
                "them, or where it is the SLM slm_tp 1, which keeps it whole on every rank"
            )


def launched() -> bool:
    """Was this process started by `torchrun`, or by another launcher that sets the same environment?"""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def num_ranks() -> int:
    """Processes of this run."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def is_main_rank() -> bool:
    """Is this the process that speaks and writes? Always, in a run of one process."""
    return not launched() or int(os.environ["RANK"]) == 0


def check_launch(tp: int) -> None:
    """Raise `PlacementError`, with the command to run instead, unless `tp` processes are running."""
    if num_ranks() == tp:
        return
    if tp == 1:
        raise PlacementError(
            f"{num_ranks()} processes are running, and tp is 1; give tp {num_ranks()}, or start without torchrun"
        )
    running = "this is one" if num_ranks() == 1 else f"{num_ranks()} are running"
    raise PlacementError(
        f"tp {tp} takes {tp} processes, and {running}; run: {torchrun_command(tp, sys.argv)}"
    )


def torchrun_command(tp: int, argv: list[str]) -> str:
    """How to start what `argv` started, on `tp` ranks."""
    program, arguments = argv[0], argv[1:]
    ours = Path(program).stem == "navtoken" or Path(program).parts[-2:] == ("navtoken", "cli.py")
    # Without the dashes torchrun takes `--num` for an abbreviation of an option of its own.
    target = ["-m", "--", "navtoken.cli"] if ours else ["--", program]
    return shlex.join(["torchrun", "--standalone", "--nproc-per-node", str(tp), *target, *arguments])


def agree(value: Value, choose: Callable[[Sequence[Value]], Value] = itemgetter(0)) -> Value:
    """One of the ranks' values on all of them, the first rank's or what `choose` takes (`min`, say).

    Every rank must ask, and only in a run whose ranks share a model: ranks that train side by side are not one. Values
    must be picklable. In a run of one process, the value itself.
    """
    if not torch.distributed.is_initialized():
        return value
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return choose(values)


def _distributed_config(tp: int) -> Any:
    try:
        from transformers.distributed import DistributedConfig

        return DistributedConfig(tp_size=tp)
    except (ImportError, TypeError) as error:
        raise PlacementError(
            f"this transformers cannot share a model among ranks as tp {tp} asks ({error}); install the version that "
            "constraints.txt names, or a later one"
        ) from error


def _require_accelerate(what: str) -> None:
    if find_spec("accelerate") is None:
        raise PlacementError(f"{what} needs accelerate, which is not installed; pip install accelerate")
