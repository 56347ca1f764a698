"""What is said of thresholds in a shell, wherever they were found."""

from collections.abc import Iterable

from navtoken.router import StoredThreshold


def unkept(found: Iterable[StoredThreshold]) -> list[str]:
    """Thresholds that no policy will take for their share, one line each."""
    return [
        f"· share {each.share:g} of {each.task} at T={each.temperature:g} came out at {each.realised_share:.3f}: too far off "
        "to be used"
        for each in found
        if each.share is not None and not each.kept_share
    ]
