"""How far a figure made again may be from the committed one: by roundings, by chance, and by chance among many figures."""

from dataclasses import dataclass
from math import acos, cos, sqrt
from statistics import NormalDist

CHANCE = 0.05
"""Of an agreement to be taken for none, figure by figure; and of any of them to be beyond the limit for all."""


@dataclass(frozen=True)
class Limits:
    """Of a difference."""

    tolerance: float
    """For roundings."""
    error: float | None = None
    """Standard error of the difference; None where chance cannot move it."""
    of_three: bool = False
    """Whether both errors are of three values: Student's quantile with 4 degrees of freedom, in place of the normal one."""

    def at(self, chance: float) -> float:
        """The largest difference that is not beyond it with more than this chance."""
        if self.error is None:
            return self.tolerance
        # What chance moves anyway needs the tolerance only where the noise is shared (a part against its whole).
        return self.tolerance + (student_4 if self.of_three else normal)(chance) * self.error


def normal(chance: float) -> float:
    """Beyond which, on either side, a standard normal variable is with this chance."""
    return NormalDist().inv_cdf(1 - chance / 2)


def student_4(chance: float) -> float:
    """The same of Student's distribution with 4 degrees of freedom, in closed form: scipy would be here for this line alone."""
    alpha = chance * (2 - chance)
    return 2 * sqrt(cos(acos(sqrt(alpha)) / 3) / sqrt(alpha) - 1)
