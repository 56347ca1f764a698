"""What a client is told when something does not go: the shape of OpenAI's errors, one class for each way to fail."""

from collections.abc import Iterable, Mapping
from typing import Any


class ServingError(ValueError):
    """Options with which no server can be started."""


class ApiError(Exception):
    """Ends a request with a status and an error object."""

    status = 400
    kind = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    @property
    def headers(self) -> Mapping[str, str]:
        return {}

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        told = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": told}


class BadRequest(ApiError):
    """What the client asked for cannot be done, now or later."""


class UnknownModel(ApiError):
    """A model that is not served."""

    status = 404

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(
            f"no model is called '{name[:100]}'; there are {', '.join(known)}", "model", "model_not_found"
        )


class Unauthorized(ApiError):
    """No key, or another."""

    status = 401
    kind = "authentication_error"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class TooLarge(ApiError):
    """A body above the limit."""

    status = 413


class TooSlow(ApiError):
    """A body that does not arrive."""

    status = 408


class Busy(ApiError):
    """The queue is full: the same request may be taken later."""

    status = 429
    kind = "rate_limit_error"

    def __init__(self, message: str, retry_after: int) -> None:
        """`retry_after` in seconds."""
        super().__init__(message, code="queue_full")
        self.retry_after = retry_after

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(self.retry_after)}


class Unavailable(ApiError):
    """The engine is dead, or the server is on its way out."""

    status = 503
    kind = "service_unavailable_error"


class Failed(ApiError):
    """Something of ours broke on this request alone."""

    status = 500
    kind = "internal_error"
