"""A pair on disk and what tests of whole commands share: random models, so nothing is learned and nothing is slow."""

from pathlib import Path

from navtoken.engine import EngineOptions
from navtoken.generation import GenerationOptions
from tiny_models import tiny_model


def saved_pair(folder: Path) -> tuple[str, str]:
    """Folders of a random pair in the standard layout, whose tokenizer knows characters."""
    for seed, name in enumerate(("slm", "llm")):
        model = tiny_model("qwen3", seed, max_position_embeddings=512)
        model.model.save_pretrained(folder / name)
        model.tokenizer.save_pretrained(folder / name)
    return str(folder / "slm"), str(folder / "llm")


def few(**changes: object) -> GenerationOptions:
    """Five short responses to arithmetic problems, three rows at a time."""
    small = {
        "task": ("arithmetic",),
        "policy": ("random:0.4",),
        "num": 5,
        "max_tokens": 6,
        "calibration_num": 3,
        "engine": EngineOptions(max_rows=3, llm_min_rows=2),
    }
    return GenerationOptions(**(small | changes))  # type: ignore[arg-type]
