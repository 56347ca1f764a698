"""Two-model decoding. `Engine` is the only door; the rest is its parts."""

from navtoken.engine.calibration import CalibrationOptions, calibrate
from navtoken.engine.engine import Engine
from navtoken.engine.events import Event
from navtoken.engine.ledger import Costs, Ledger
from navtoken.engine.memory import Prefix
from navtoken.engine.options import EngineOptions, SamplingParams
from navtoken.engine.sequence import Record, Sequence, State

__all__ = [
    "CalibrationOptions",
    "Costs",
    "Engine",
    "EngineOptions",
    "Event",
    "Ledger",
    "Prefix",
    "Record",
    "SamplingParams",
    "Sequence",
    "State",
    "calibrate",
]
