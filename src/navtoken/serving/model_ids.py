"""Under which ids the pair and each of its models are served.

A hub id is its own name. Of a folder the last part is, as paths are nobody's business; where that is taken, with its parent's name:
every training run writes a folder `model`.
"""

from pathlib import Path

from navtoken.serving.errors import ServingError


def model_ids(name: str, slm: str, llm: str) -> tuple[str, str]:
    """The ids of SLM and LLM, by their references, beside the pair's own name. Raises `ServingError` where they cannot be told apart."""
    references = list(dict.fromkeys((slm, llm)))
    short = {each: _last_parts(each, 1) for each in references}
    found = {
        each: _last_parts(each, 2) if [name, *short.values()].count(short[each]) > 1 else short[each]
        for each in references
    }
    if len({name, *found.values()}) <= len(found):
        raise ServingError(
            f"SLM '{slm}' and LLM '{llm}' would be served as {' and '.join(found.values())} beside the pair as {name}: clients could "
            "not tell them apart; give another --name, or rename a folder"
        )
    return found[slm], found[llm]


def _last_parts(reference: str, num: int) -> str:
    folder = Path(reference)
    return "/".join(folder.resolve().parts[-num:]) if folder.is_dir() else reference
