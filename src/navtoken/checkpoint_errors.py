"""What can be wrong with a checkpoint, or with the place where it is to run."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


class CheckpointNotFoundError(CheckpointError):
    """A reference that names no checkpoint."""


class PickledCheckpointError(CheckpointError):
    """A checkpoint without safetensors."""


class UnsupportedModelError(CheckpointError):
    """A model whose past is not an attention KV cache, or whose attention the engine cannot reach."""


class PlacementError(CheckpointError):
    """A placement that this machine, this launch or this model does not allow."""


class QuantisationError(CheckpointError):
    """Quantised weights that cannot be read here, or not as the type that was asked for."""


class PairMismatchError(CheckpointError):
    """Two checkpoints whose tokenizers map tokens to different ids."""


class PromptTooLongError(ValueError):
    """A prompt that leaves no room for a response in a model's context."""
