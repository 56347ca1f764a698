"""The one loop problems -> engine -> traces, which every stage that needs responses uses."""

from navtoken.generation.calibration import ready_policy
from navtoken.generation.loop import Request, respond
from navtoken.generation.options import GenerationOptions, ModelOptions
from navtoken.generation.run import Cell, GenerateOptions, fingerprints, generate

__all__ = [
    "Cell",
    "GenerateOptions",
    "GenerationOptions",
    "ModelOptions",
    "Request",
    "fingerprints",
    "generate",
    "ready_policy",
    "respond",
]
