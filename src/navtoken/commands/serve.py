"""`navtoken serve`: a pair behind OpenAI's API, with a page on which people see it think. No options serve the embedded pair."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from navtoken.checkpoints import ModelPair
from navtoken.commands.surroundings import progress_console
from navtoken.generation import GenerationOptions, ModelOptions, ready_policy
from navtoken.generation.calibration import needs_calibration
from navtoken.generation.options import FAMILIES
from navtoken.policies import Policy, make_policy
from navtoken.policies.oracle import OraclePolicy
from navtoken.policies.router import RouterPolicy
from navtoken.serving.errors import ServingError
from navtoken.serving.listener import Listener, url_of
from navtoken.serving.offered import Offered, public
from navtoken.serving.options import ServerOptions
from navtoken.serving.sampling import default_sampling
from navtoken.serving.server import Server
from navtoken.tasks import load_task

logger = logging.getLogger("navtoken.serving")


@dataclass(frozen=True)
class ServeOptions:
    """Serve a pair under a policy, with OpenAI's API and a page."""

    policy: str | None = None
    """Policy of requests that name none; None takes router for the embedded pair, and entropy:0.67 for others."""
    calibrate_on: str | None = None
    """Task whose training problems turn a policy's share= into a threshold, where it brings none."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair."""
    server: ServerOptions = field(default_factory=ServerOptions)
    """Address, limits and safety."""


def run(options: ServeOptions, console: Console, pair: ModelPair | None = None) -> dict[str, Any]:
    """Serve until told to stop (Ctrl-C, SIGTERM), which lets what runs finish first."""
    if options.models.tp > 1:
        raise ServingError("the server runs in one process; leave tp out, or share the LLM by llm_device_map")
    quiet = progress_console()
    with quiet.status("loading the pair"):
        loaded = pair or options.models.load()
    with _listening(options.server) as listening:
        server = make_server(options, loaded)
        address = url_of(*listening.getsockname()[:2])
        _announce(console, options, server, address)
        _serve(server, listening)
    return {"address": address, "requests": sum(server.engine.ledger.written)}


def make_server(options: ServeOptions, pair: ModelPair) -> Server:
    """The server of a pair. Raises what is wrong with its policy."""
    embedded = all(each.reference.startswith("embedded:") for each in (pair.slm, pair.llm))
    reference = options.policy or ("router" if _has_router(pair) else "entropy:0.67")
    router = make_policy("router") if _has_router(pair) else None
    assert router is None or isinstance(router, RouterPolicy)
    policy = _policy(options, reference, pair)
    if isinstance(policy, RouterPolicy):
        # Large checkpoints take minutes to read: now, and not while the first request waits.
        _ = pair.slm.fingerprint, pair.llm.fingerprint
    offered = Offered(pair, policy, router)
    return Server(pair, offered, options.server, _examples() if embedded else ())


def _has_router(pair: ModelPair) -> bool:
    """Is this the pair that ships with its router?"""
    return (pair.slm.reference, pair.llm.reference) == ("embedded:slm", "embedded:llm")


def _policy(options: ServeOptions, reference: str, pair: ModelPair) -> Policy:
    policy = make_policy(reference)
    if isinstance(policy, OraclePolicy):
        raise ServingError("policy 'oracle' needs problems with answers; it is for navtoken evaluate")
    if not needs_calibration(reference):
        return policy
    if options.calibrate_on is None:
        raise ServingError(
            f"policy '{reference}' finds its threshold on training problems; name their task with calibrate_on, or give a "
            "threshold"
        )
    return ready_policy(reference, pair, load_task(options.calibrate_on), GenerationOptions())


def _examples() -> list[str]:
    """A question of each family that the embedded pair knows."""
    return [next(iter(load_task(name).problems("test", 1, 3))).prompt for name in FAMILIES]


@contextmanager
def _listening(options: ServerOptions) -> Iterator[socket.socket]:
    """The socket, bound before the models' caches are made: a port in use is told at once."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as listening:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((options.host, options.port))
        except OSError as error:
            raise ServingError(
                f"cannot listen on {options.host}:{options.port} ({error.strerror}); give another --port"
            ) from error
        # From now on who connects waits, and is not refused, until the server is up.
        listening.listen()
        yield listening


def _serve(server: Server, listening: socket.socket) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("navtoken.serving").setLevel(logging.INFO)
    # Uvicorn raises a signal once more when it has stopped, for whoever handled it before: nobody has to end by it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    Listener(server, log_level="warning").run([listening])


def _announce(console: Console, options: ServeOptions, server: Server, address: str) -> None:
    models = ", ".join(server.names)
    console.print(f"serving {models} under policy {public(server.offered.served)}", soft_wrap=True)
    console.print(f"page: {address}/   API: {address}/v1", soft_wrap=True)
    _warn_of_threshold(server)
    if not server.options.is_local and server.options.key is None:
        logger.warning("anybody who reaches this address may use the server: set a key (--api-key)")


def _warn_of_threshold(server: Server) -> None:
    """Requests that say nothing of sampling are drawn as the LLM's generation config says, which the router need not know."""
    sampling = default_sampling(server.defaults)
    if server.offered.lacks_threshold(sampling):
        said = ", ".join(f"{name} {getattr(sampling, name):g}" for name in server.defaults)
        logger.warning(
            "the router has no threshold for the sampling of requests that set none (%s), and decodes with its default one; find one "
            "with navtoken calibrate at that sampling",
            said,
        )
