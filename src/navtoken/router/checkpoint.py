"""A router on disk: safetensors, and a card that says which pair it is for and from which p(divergent) on the LLM writes.

No pickle is written or read. Thresholds lie in the card because they are part of what was found: the official code stores
one and never uses it. The card names its weights by their sha256, so that two files of different routers are told apart.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from navtoken.router.network import RouterNetwork
from navtoken.router.shape import RouterShape, ShapeError

CARD, WEIGHTS = "router.json", "router.safetensors"
FORMAT = 1
ALL_TASKS = "all"
"""The task of a threshold that was found over all tasks together."""

SHARE_TOLERANCE = 0.02
"""A stored threshold that missed its LLM share by more is not the one that was asked for."""

Kind = Literal["token", "query"]


class RouterFileError(ValueError):
    """A folder that holds no router, or one that cannot be read."""


@dataclass(frozen=True)
class PairNames:
    """The pair that a router was trained for."""

    slm: str
    """Reference of the SLM."""
    llm: str
    fingerprints: dict[str, str] = field(default_factory=dict)
    """sha256 by name: `slm`, `llm` and `tokenizer`."""


@dataclass(frozen=True)
class StoredThreshold:
    """A threshold found by routed generation on validation problems, and what it gave there."""

    task: str
    """Reference of the task; `all` is all that the router was trained for, together."""
    threshold: float
    """The LLM writes where p(divergent) is above."""
    temperature: float = 0.0
    """The sampling that was in use."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    share: float | None = None
    """The LLM share asked for; None where a recall was."""
    recall: float | None = None
    """The share of divergent tokens asked for that is to be written by the LLM."""
    realised_share: float | None = None
    """LLM share in routed generation."""
    num_problems: int = 0
    """It was found on so many."""
    max_tokens: int | None = None
    """Longest response there; None is unknown."""

    @property
    def kept_share(self) -> bool:
        """Did routing realise the share that was asked for, as far as anybody looked?"""
        if self.share is None or self.realised_share is None:
            return True
        return abs(self.realised_share - self.share) <= SHARE_TOLERANCE

    def fits_limit(self, max_tokens: int | None) -> bool:
        """Was it found with this length limit? None on either side is unknown, and fits."""
        return self.max_tokens is None or max_tokens is None or self.max_tokens == max_tokens

    def fits(self, sampling: Mapping[str, Any]) -> bool:
        """Was it found at these sampling parameters (names as in `SamplingParams`)?"""
        if any(sampling.get(name) not in usual for name, usual in _UNUSUAL.items()):
            return False
        # The only one of these that changes greedy decoding, too.
        if (sampling.get("repetition_penalty") or 1.0) != self.repetition_penalty:
            return False
        if sampling.get("temperature", 0.0) == self.temperature == 0.0:
            return True
        return all(sampling.get(name, usual) == getattr(self, name) for name, usual in _COMPARED.items())


_COMPARED: dict[str, float] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
_UNUSUAL: dict[str, tuple[Any, ...]] = {
    "fork_threshold": (None,),
    "fork_temperature": (None,),
    "frequency_penalty": (None, 0.0),
    "presence_penalty": (None, 0.0),
    "logit_bias": (None, (), []),
}
"""Parameters that change what is drawn and that no threshold is stored for, with the values at which they do not."""
SAMPLING_READ = (*_COMPARED, "repetition_penalty", *_UNUSUAL)
"""All sampling parameters on which it depends whether a stored threshold fits."""


@dataclass(frozen=True)
class RouterCard:
    """What a person and a policy must know about a router."""

    kind: Kind
    """`token` judges every draft, `query` the prompt alone."""
    pair: PairNames
    shape: RouterShape
    default_threshold: float | None = None
    """Used where neither threshold nor share is asked for."""
    thresholds: tuple[StoredThreshold, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    """Arguments, revision, versions and data of its training."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the test split said."""
    weights: str = ""
    """sha256 of the safetensors file; filled in when saved."""

    def threshold_for(
        self, task: str, sampling: Mapping[str, Any], share: float, max_tokens: int | None = None
    ) -> float | None:
        """The stored threshold of a task, sampling and length limit for an LLM share; None where there is none that gave it."""
        for stored in self.thresholds:
            if stored.share is None or stored.task != task or not stored.fits(sampling):
                continue
            if not stored.kept_share or not stored.fits_limit(max_tokens):
                continue
            if abs(stored.share - share) < 1e-9:
                return stored.threshold
        return None

    def default_for(self, sampling: Mapping[str, Any]) -> float | None:
        """The stored threshold of a sampling over all tasks, for the share that the default threshold was found for; None where
        there is none."""
        for stored in self.thresholds:
            same = stored.threshold == self.default_threshold
            if same and stored.task == ALL_TASKS and stored.share is not None:
                found = self.threshold_for(ALL_TASKS, sampling, stored.share)
                if found is not None:
                    return found
        return None

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT} | asdict(self) | {"shape": self.shape.as_json()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "RouterCard":
        """Raises `RouterFileError` for another version's fields."""
        if fields.get("format") != FORMAT:
            raise RouterFileError(
                f"the router's format is {fields.get('format')}, this version reads {FORMAT}; train it again, or take the "
                "version that wrote it"
            )
        try:
            rest = {name: value for name, value in fields.items() if name != "format"}
            rest["pair"] = PairNames(**rest["pair"])
            rest["shape"] = RouterShape.from_json(rest["shape"])
            rest["thresholds"] = tuple(StoredThreshold(**each) for each in rest["thresholds"])
            card = cls(**rest)
        except (KeyError, TypeError, ShapeError) as error:
            raise RouterFileError(
                f"the router's card does not fit ({error}); train the router again"
            ) from error
        if card.kind not in ("token", "query"):
            raise RouterFileError(f"a router of kind '{card.kind}' is unknown; there are token and query")
        return card


@dataclass(frozen=True)
class Router:
    """A card, and its network once that is asked for. Two are equal where their weights are."""

    card: RouterCard = field(compare=False)
    folder: Path | None = None
    """None for one made in memory, which has its network."""
    network: RouterNetwork | None = field(default=None, repr=False)
    weights: str = ""
    """The card's."""

    def on(self, device: torch.device | str = "cpu") -> RouterNetwork:
        """The network, ready for inference on a device: one made in memory is put into eval mode and moved there.

        Raises `RouterFileError` where its file is not whole.
        """
        if self.network is not None:
            return self.network.eval().to(device)
        assert self.folder is not None, "a router without a network lies in a folder"
        return _read_network(self.folder, self.weights, str(device))


def save_router(folder: Path, network: RouterNetwork, card: RouterCard) -> RouterCard:
    """Write a router into a folder, over one that is there; returns the card with its weights' sha256.

    Each file is written aside and renamed. Interrupted in between, the folder holds two files that do not fit each
    other, which `load_router` says.
    """
    if network.shape != card.shape:
        raise RouterFileError(f"the network is {network.shape}, its card says {card.shape}; save them as one")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    weights = folder / f".{WEIGHTS}.tmp"
    # Not `save_file`, whose files nobody else may read.
    weights.write_bytes(save(tensors))
    card = replace(card, weights=_sha256(weights))
    described = _written_aside(folder, card)
    os.replace(weights, folder / WEIGHTS)
    os.replace(described, folder / CARD)
    return card


def save_card(folder: Path, card: RouterCard, source: Path) -> None:
    """Write another card for the weights in the folder `source`: over the one there, or with a copy of the weights into another.

    Raises `RouterFileError` where either folder's weights are not the card's.
    """
    check_weights(source, card)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / WEIGHTS).exists():
        copied = folder / f".{WEIGHTS}.tmp"
        copied.write_bytes((source / WEIGHTS).read_bytes())
        os.replace(copied, folder / WEIGHTS)
    check_weights(folder, card)
    os.replace(_written_aside(folder, card), folder / CARD)


def check_weights(folder: Path, card: RouterCard, missing_ok: bool = False) -> None:
    """Raise `RouterFileError` unless the folder holds the card's weights, or none where that is allowed."""
    if not (folder / WEIGHTS).exists():
        if missing_ok:
            return
        raise RouterFileError(f"'{folder}' has a card but no {WEIGHTS}; save the router again")
    if (found := _sha256(folder / WEIGHTS)) != card.weights:
        raise RouterFileError(
            f"'{folder / WEIGHTS}' has the sha256 {found[:8]}, the card asks for {card.weights[:8]}: they are of two routers; "
            "name another folder, or save the router again"
        )


def _written_aside(folder: Path, card: RouterCard) -> Path:
    described = folder / f".{CARD}.tmp"
    described.write_text(json.dumps(card.as_json(), indent=1, default=str) + "\n")
    return described


def load_card(folder: Path) -> RouterCard:
    """Read a router's card alone. Raises `RouterFileError`."""
    try:
        return RouterCard.from_json(json.loads((folder / CARD).read_text()))
    except (FileNotFoundError, NotADirectoryError):
        raise RouterFileError(
            f"'{folder}' holds no router ({CARD} and {WEIGHTS}); train one with navtoken train-router"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise RouterFileError(
            f"'{folder / CARD}' is no router's card ({error}); train the router again"
        ) from error


def load_router(folder: Path, device: torch.device | str = "cpu") -> Router:
    """Read a router with its network. Raises `RouterFileError`."""
    router = open_router(folder)
    router.on(device)
    return router


def open_router(folder: Path) -> Router:
    """A router whose network is read when it is first needed. Raises `RouterFileError`."""
    card = load_card(folder)
    return Router(card, folder.resolve(), None, card.weights)


@lru_cache(maxsize=32)
def _read_network(folder: Path, weights: str, device: str) -> RouterNetwork:
    """The network of a folder whose weights have this sha256."""
    card, path = load_card(folder), folder / WEIGHTS
    try:
        found = _sha256(path)
        if weights != found or card.weights != found:
            raise RouterFileError(
                f"'{path}' has the sha256 {found[:8]}, its card asks for {weights[:8]}: they are of two routers, or were "
                "interrupted while written; save the router again"
            )
        network = RouterNetwork(card.shape)
        network.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise RouterFileError(f"'{folder}' has a card but no {WEIGHTS}; save the router again") from None
    except (SafetensorError, RuntimeError) as error:
        raise RouterFileError(f"'{path}' does not fit its card ({error}); save the router again") from error
    return network.to(device).eval().requires_grad_(False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
