"""The example configurations are ones that this version takes."""

from pathlib import Path

import pytest
import yaml

from navtoken.commands.config import parse_invocation
from navtoken.rlvr.options import TrainRLOptions
from navtoken.rlvr.train import arguments

EXAMPLES = Path(__file__).parents[2] / "examples"
LAUNCHES = sorted(EXAMPLES.glob("accelerate_*.yaml"))


def paper() -> TrainRLOptions:
    config = ["--config", str(EXAMPLES / "qwen3_8b_dapo.yaml")]
    options: TrainRLOptions = parse_invocation(TrainRLOptions, "train-rl", config).options
    return options


def test_the_paper_s_hyperparameters_are_taken_and_share_out_among_8_ranks() -> None:
    options = paper()
    options.check()
    sizes = options.sizes(8)
    # 32 problems x 16 responses an update.
    assert sizes.forward_rows * sizes.accumulated * 8 == 32 * 16
    assert sizes.updates == 16
    assert options.selection.fraction == 0.2
    assert options.learning_rate(8_200_000_000) == 1e-6


def test_its_further_options_are_trl_s() -> None:
    options = paper()
    assert options.further_trl()["vllm_mode"] == "colocate"
    # Needs no vLLM to be made.
    config = arguments(options, 1e-6, 20480, ranks=8)
    assert (config.epsilon, config.epsilon_high, config.loss_type) == (0.2, 0.28, "dapo")
    assert config.vllm_enable_sleep_mode


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_launch_configurations_are_accelerate_s(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"]
