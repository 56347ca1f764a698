"""What a run keeps of its frozen responses: the responses, and what the weights of each look made of their tokens.

A run of a thousand steps is drawn afterwards without any of its weights: `frozen` and the columns of `entropies` are what
`analysis.drift` takes. 4 bytes a token and look; half of that would tie many positions at the border of the top fraction.

Shapes: N tokens of all responses.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.frozen import Chosen, FrozenSet

Entropies = NDArray[np.float32]
"""(N,) nats, at T = 1."""


@dataclass(frozen=True)
class DriftStore:
    """The responses of a run, and the entropies of each look at them."""

    folder: Path

    @property
    def responses(self) -> Path:
        """Folder of the traces."""
        return self.folder / "responses"

    def frozen(self) -> FrozenSet:
        """The responses as they were frozen. Raises what `FrozenSet.read` raises."""
        return FrozenSet.read(Chosen(self.responses))

    def steps(self) -> list[int]:
        """Steps of which entropies are kept, in their order."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self._folder.glob("step-*.npy"))

    def entropies(self, step: int) -> Entropies:
        """(N,) those of a step, in the order of `frozen`."""
        found: Entropies = np.load(self._path(step))
        return found

    def save(self, step: int, entropy_N: Entropies) -> None:
        """Keep a look, in place of an earlier one of the same step."""
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f".step-{step}.{os.getpid()}.part"
        try:
            with partial.open("wb") as file:
                np.save(file, entropy_N)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self._path(step))
        finally:
            partial.unlink(missing_ok=True)

    def rewind(self, step: int) -> None:
        """Forget looks at later steps: a resumed run comes to other weights."""
        for later in self.steps():
            if later > step:
                self._path(later).unlink()

    @property
    def _folder(self) -> Path:
        return self.folder / "entropies"

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.npy"
