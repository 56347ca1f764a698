"""Options of the server, as frozen dataclasses from which the command line derives."""

import ipaddress
import os
from dataclasses import dataclass, field, replace

import tyro

from navtoken.engine import EngineOptions
from navtoken.serving.errors import ServingError
from navtoken.serving.requests import MAX_TOP_LOGPROBS

KEY_ENV = "NAVTOKEN_API_KEY"
"""Variable of the environment that holds the key where none is given: other users of a machine see command lines."""


@dataclass(frozen=True)
class ServerOptions:
    """Where the server listens, whom it answers and what it holds."""

    host: str = "127.0.0.1"
    """Address to bind to. Any but the machine's own should have a key."""
    port: int = 8000
    """Port to bind to; 0 takes a free one, which is printed."""
    name: str = "navtoken"
    """Model id under which clients ask for the pair; each model alone goes by its hub id, or by the last part of its folder."""
    api_key: str | None = None
    """Key that clients must send (Authorization: Bearer KEY); None takes NAVTOKEN_API_KEY of the environment, and asks for none where
    that is not set either."""
    protect_health: bool = False
    """Ask for the key at /health, too."""
    protect_metrics: bool = False
    """Ask for the key at /metrics, too."""
    allowed_hosts: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Names under which clients may reach the server; may be repeated. Where left out, a server that is bound to the machine's own
    address takes the machine's own names (so that no web page can reach it through a name of its own), others any."""
    max_queue: int = 256
    """Responses that may wait beside those that decode; further requests get 429."""
    max_body: int = 4 * 1024 * 1024
    """Bytes of a request's body."""
    max_header: int = 64 * 1024
    """Bytes of a request's line and headers."""
    body_seconds: float = 30.0
    """A request's body must be there after so long."""
    max_logprobs: int = MAX_TOP_LOGPROBS
    """Alternatives that may be asked for at each token; fewer save a little time where the vocabulary is large."""
    keep_alive_seconds: float = 15.0
    """Silence in a stream after which a comment is sent."""
    stalled_seconds: float = 60.0
    """A client that takes nothing of its answer for so long is hung up on."""
    stuck_seconds: float = 120.0
    """A step of the engine that takes longer counts as stuck: /health fails."""
    shutdown_seconds: float = 60.0
    """What decodes when the server is told to stop may go on for so long."""
    log_prompts: bool = False
    """Write prompts and responses into the log, which else has sizes and times only."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    """How the engine batches."""

    def __post_init__(self) -> None:
        for name, least in (
            ("port", 0),
            ("max_queue", 0),
            ("max_body", 1),
            ("max_header", 1024),
            ("max_logprobs", 0),
        ):
            if getattr(self, name) < least:
                raise ServingError(f"{name} is {getattr(self, name)}; give at least {least}")
        for name in (
            "body_seconds",
            "keep_alive_seconds",
            "stalled_seconds",
            "stuck_seconds",
            "shutdown_seconds",
        ):
            if not getattr(self, name) > 0:
                raise ServingError(f"{name} is {getattr(self, name)}; give a number above 0")
        if self.port > 65535:
            raise ServingError(f"port is {self.port}; give at most 65535")
        if self.max_logprobs > MAX_TOP_LOGPROBS:
            raise ServingError(f"max_logprobs is {self.max_logprobs}; give at most {MAX_TOP_LOGPROBS}")
        if self.api_key == "":
            raise ServingError("api_key is empty; give a key, or leave it out")

    @property
    def key(self) -> str | None:
        """The key that clients must send."""
        return self.api_key or os.environ.get(KEY_ENV) or None

    @property
    def engine_options(self) -> EngineOptions:
        return replace(self.engine, num_alternatives=max(self.engine.num_alternatives, self.max_logprobs))

    @property
    def is_local(self) -> bool:
        """Is it bound to the machine's own address?"""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names in a request's Host header that are answered; empty answers any."""
        if self.allowed_hosts or not self.is_local:
            return () if "*" in self.allowed_hosts else self.allowed_hosts
        return ("localhost", "127.0.0.1", "[::1]", self.host)
