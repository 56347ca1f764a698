"""Reading and spelling the parts of a policy's reference: what makers of policies share."""

from navtoken.policies.rules import PolicyError
from navtoken.reference import Reference


def check_options(reference: Reference, known: tuple[str, ...]) -> None:
    """Raise `PolicyError` for an option that a policy does not know."""
    for key in reference.options:
        if key not in known:
            raise PolicyError(
                f"'{reference}': {reference.name} has no option '{key}'; it knows {', '.join(known) or 'none'}"
            )


def number(text: str | None, reference: Reference) -> float | None:
    """A number out of a reference, or None where it is left out."""
    try:
        return None if text is None else float(text)
    except ValueError:
        raise PolicyError(f"'{text}' in '{reference}' is no number; write for example 0.13") from None


def whole_number(text: str | None, reference: Reference) -> int | None:
    """A whole number out of a reference, or None where it is left out."""
    try:
        return None if text is None else int(text)
    except ValueError:
        raise PolicyError(f"'{text}' in '{reference}' is no whole number; write for example 8") from None
