"""The ablation of routers: every variant can be built for the embedded pair, and the table says what was found."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from labelled_traces import VOCAB_SIZE, labels
from navtoken.analysis.ranking import Resampling
from navtoken.checkpoints import load_pair
from navtoken.router_training.build import NetworkOptions
from navtoken.router_training.examples import gather
from navtoken.router_training.quality import qualities


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    path = Path(__file__).parents[1] / "experiments" / "router_ablation.py"
    spec = importlib.util.spec_from_file_location("router_ablation", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_variant_can_be_built(ablation: ModuleType) -> None:
    pair = load_pair()
    shapes = {
        variant.name: NetworkOptions(inputs=variant.inputs).shape(pair, "token", 100)
        for variant in ablation.VARIANTS
    }
    assert shapes["entropy alone"].inputs == ("entropy",)
    assert shapes["the paper's three"].inputs == ("logits", "embedding", "hidden")
    assert set(ablation.SHOWN) <= set(shapes) and len(shapes) == len(ablation.VARIANTS)
    # The router must not cost more than the SLM that it watches.
    assert max(shape.parameters for shape in shapes.values()) <= pair.slm.card.parameters


def test_the_table(ablation: ModuleType, tmp_path: Path) -> None:
    examples = gather([labels(tmp_path / "labels")], VOCAB_SIZE, tmp_path / "work")
    index = examples.of("test")
    p = np.where(examples.wanted("divergent")[index], 0.9, 0.1)
    (whole, *_) = qualities(examples, index, p, "divergent", Resampling(20))
    routed = {"mean": {"accuracy": 0.84, "accuracy_se": 0.013, "llm_share": 0.1994}}
    found = ablation.Found(ablation.VARIANTS[0], 30849, whole, {}, 0.2, routed)
    bare = ablation.Found(ablation.VARIANTS[1], 1234, whole, {}, 0.2, {})
    rows = ablation.markdown([found, bare], ablation.Options()).splitlines()
    assert rows[2].startswith("| all inputs | 30,849 | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) |")
    assert rows[2].endswith("| 84.0 ± 1.3 | 0.199 |") and rows[3].endswith("| – | – |")
    assert found.as_json()["routed"] == routed
    assert [each.name for each in ablation.picture([found]).curves] == ["all inputs"]
