"""What is said of thresholds that came out too far off."""

from navtoken.commands.threshold_words import unkept
from navtoken.router import StoredThreshold


def test_only_a_share_that_was_missed_is_told() -> None:
    kept = StoredThreshold("all", 0.4, share=0.2, realised_share=0.199)
    missed = StoredThreshold("countdown", 0.3, temperature=0.7, share=0.2, realised_share=0.31)
    recall = StoredThreshold("all", 0.1, recall=0.9, realised_share=0.5)
    (line,) = unkept([kept, missed, recall])
    assert line == "· share 0.2 of countdown at T=0.7 came out at 0.310: too far off to be used"
