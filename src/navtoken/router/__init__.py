"""The network that maps a draft to p(divergent), what it reads, and how it lies on disk."""

from navtoken.router.checkpoint import (
    ALL_TASKS,
    SAMPLING_READ,
    PairNames,
    Router,
    RouterCard,
    RouterFileError,
    StoredThreshold,
    check_weights,
    load_card,
    load_router,
    open_router,
    save_card,
    save_router,
)
from navtoken.router.features import DraftFeatures, features_of
from navtoken.router.network import RouterNetwork
from navtoken.router.official import import_official
from navtoken.router.shape import DEFAULT_INPUTS, INPUTS, TOP_K, RouterShape, ShapeError

__all__ = [
    "ALL_TASKS",
    "DEFAULT_INPUTS",
    "INPUTS",
    "SAMPLING_READ",
    "TOP_K",
    "DraftFeatures",
    "PairNames",
    "Router",
    "RouterCard",
    "RouterFileError",
    "RouterNetwork",
    "RouterShape",
    "ShapeError",
    "StoredThreshold",
    "check_weights",
    "features_of",
    "import_official",
    "load_card",
    "load_router",
    "open_router",
    "save_card",
    "save_router",
]
