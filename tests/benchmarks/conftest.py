"""The benchmarks are scripts beside each other, not a package; and a pair small enough to run each in a second or two."""

import sys
from pathlib import Path

import pytest
import torch

from tiny_models import tiny_model

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from navtoken.checkpoints import ModelPair
from pairs import Load, PairSource


def _make(device: str) -> ModelPair:
    """New each time: benchmarks pack weights and unset what ends a response."""
    slm = tiny_model("qwen3", seed=1, num_hidden_layers=1, dtype=torch.float32)
    return ModelPair(slm, tiny_model("qwen3", seed=2, dtype=torch.float32))


@pytest.fixture
def source() -> PairSource:
    loads = {1: Load(2, (10, 14), (6, 6)), 4: Load(6, (10, 14), (3, 9))}
    return PairSource("bandwidth", _make, loads, speculative_temperature=1.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few sizes of passes and a small buffer: what is measured does not matter here, only that it is told right."""
    import bare
    import batching
    import context
    import decode_point
    import measuring
    import overhead

    for module in (batching, decode_point, overhead):
        monkeypatch.setattr(module, "GRID", (1, 2, 4, 16))
    monkeypatch.setattr(bare, "SHORTEST_SAMPLE", 0.0)
    for module in (context, decode_point):
        monkeypatch.setattr(
            module, "memory_bandwidth", lambda device: measuring.memory_bandwidth(device, 1 << 16, 1)
        )
