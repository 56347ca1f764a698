"""The application: routes, what they answer, and the document that says so."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from navtoken.serving import operations
from navtoken.serving.answers import (
    ChatAnswer,
    ChatChunk,
    CompletionAnswer,
    ErrorAnswer,
    HealthAnswer,
    Model,
    ModelList,
    PairAnswer,
    VersionAnswer,
)
from navtoken.serving.chat import Chat
from navtoken.serving.completions import Completion
from navtoken.serving.errors import ApiError, BadRequest, Failed
from navtoken.serving.guards import Guard
from navtoken.serving.requests import UNSUPPORTED, ChatRequest, CompletionRequest
from navtoken.serving.server import Server
from navtoken.serving.sse import ClientGone, EventStream, or_gone

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The request cannot be served; `param` names the field."},
    401: {"model": ErrorAnswer, "description": "The key is missing or wrong."},
}
ANSWERING: dict[int | str, dict[str, Any]] = ERRORS | {
    200: {
        "description": "The answer, or with stream its events.",
        "content": {"text/event-stream": {}},
    },
    404: {"model": ErrorAnswer, "description": "No such model."},
    408: {"model": ErrorAnswer, "description": "The body did not arrive in time."},
    413: {"model": ErrorAnswer, "description": "The body is too large."},
    429: {
        "model": ErrorAnswer,
        "description": "The queue is full.",
        "headers": {
            "Retry-After": {"description": "Seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
        },
    },
    503: {"model": ErrorAnswer, "description": "The engine is dead, or the server shuts down."},
}
CHUNKS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatChunk,
    "/v1/completions": CompletionAnswer,
}
"""What streams' events hold."""
PAGE = {
    "/": ("index.html", "text/html"),
    "/assets/page.css": ("page.css", "text/css"),
    "/assets/page.js": ("page.js", "text/javascript"),
}
DESCRIPTION = """OpenAI's API for a small and a large model that decode together under a policy. Beside OpenAI's fields: `policy`,
`threshold`, `token_details`; answers say in `navtoken` who wrote which token and what it cost."""


def create_app(server: Server) -> ASGIApp:
    """The application of one server, guards included."""
    api = _api(server)
    return Guard(api, server.options, server.metrics)


def _api(server: Server) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.engine.start(asyncio.get_running_loop())
        yield
        await server.close()

    api = FastAPI(
        title="navtoken",
        version=operations.own_version().version,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    _add_errors(api)
    _add_answers(api, server)
    _add_operations(api, server)
    _add_page(api)
    _true_document(api, server)
    return api


def _add_answers(api: FastAPI, server: Server) -> None:
    @api.post("/v1/chat/completions", response_model=ChatAnswer, responses=ANSWERING, tags=["answers"])
    async def chat_completions(body: ChatRequest, http: HttpRequest) -> Response:
        """Answer a conversation."""
        with server.engine.preparing(body.num_rows):
            prompt = await or_gone(http, server.prompts.of_chat(body))
        return await _answered(Chat(server, body, prompt), body.stream, http, server)

    @api.post("/v1/completions", response_model=CompletionAnswer, responses=ANSWERING, tags=["answers"])
    async def completions(body: CompletionRequest, http: HttpRequest) -> Response:
        """Continue texts or token ids."""
        with server.engine.preparing(body.num_rows):
            prompts = await or_gone(http, server.prompts.of_completion(body))
        return await _answered(Completion(server, body, prompts), body.stream, http, server)


async def _answered(
    asked: Chat | Completion, stream: bool | None, http: HttpRequest, server: Server
) -> Response:
    """The response to a request that can be served."""
    # Here and not where it is listened to: a stream begins later, and the place held for it would be another's by then.
    server.engine.submit(asked.job)
    forget = partial(server.engine.cancel, asked.job)
    if stream:
        return EventStream(asked.stream(), server.options.keep_alive_seconds, forget)
    try:
        answer: BaseModel = await or_gone(http, asked.whole())
    finally:
        forget()
    return Response(answer.model_dump_json(), media_type="application/json")


def _add_operations(api: FastAPI, server: Server) -> None:
    @api.get("/v1/models", responses=ERRORS, tags=["operations"])
    async def models() -> ModelList:
        """What may be asked."""
        return operations.models(server)

    @api.get(
        "/v1/models/{name:path}",
        responses=ERRORS | {404: {"model": ErrorAnswer, "description": "No such model."}},
        tags=["operations"],
    )
    async def model(name: str) -> Model:
        """One of them."""
        return operations.model(server, name)

    @api.get("/v1/pair", responses=ERRORS, tags=["operations"])
    async def pair() -> PairAnswer:
        """The pair and its policies, as the page shows them."""
        return operations.pair(server)

    @api.get(
        "/health",
        response_model=HealthAnswer,
        responses=ERRORS | {503: {"model": HealthAnswer, "description": "The engine does not serve."}},
        tags=["operations"],
    )
    async def health() -> Response:
        """Does the engine serve?"""
        found = operations.health(server)
        return _json(found.model_dump(), 200 if found.status == "ok" else 503)

    @api.get(
        "/metrics",
        response_class=Response,
        responses=ERRORS | _plain(CONTENT_TYPE_LATEST),
        tags=["operations"],
    )
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @api.get("/version", responses=ERRORS, tags=["operations"])
    async def version() -> VersionAnswer:
        """The version that serves."""
        return operations.own_version()

    @api.post("/v1/engine/restart", status_code=202, responses=ERRORS, tags=["operations"])
    async def restart() -> HealthAnswer:
        """Throw the engine away and make a new one; what runs ends with 503. Needs a key to be set."""
        if server.options.key is None:
            raise BadRequest("restarting needs a key (--api-key): without one any client could do it")
        server.engine.restart()
        return operations.health(server)


def _add_page(api: FastAPI) -> None:
    def add(path: str, name: str, media_type: str) -> None:
        content = files("navtoken.serving").joinpath("assets", name).read_bytes()

        @api.get(path, include_in_schema=False)
        async def page() -> Response:
            return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    for path, (name, media_type) in PAGE.items():
        add(path, name, media_type)

    @api.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return Response(status_code=204)


def _add_errors(api: FastAPI) -> None:
    def told_error(error: ApiError) -> Response:
        return _json(error.body, error.status, error.headers)

    @api.exception_handler(ApiError)
    async def refused(_: HttpRequest, error: ApiError) -> Response:
        return told_error(error)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: HttpRequest, error: RequestValidationError) -> Response:
        return told_error(invalid_request(error))

    @api.exception_handler(HTTPException)
    async def unknown(_: HttpRequest, error: HTTPException) -> Response:
        refused = BadRequest(str(error.detail))
        refused.status = error.status_code
        return _json(refused.body, error.status_code, error.headers or {})

    @api.exception_handler(ClientGone)
    async def gone(_: HttpRequest, error: ClientGone) -> Response:
        # Nobody reads it; the status is the one that nginx logs.
        return Response(status_code=499)

    @api.exception_handler(Exception)
    async def failed(_: HttpRequest, error: Exception) -> Response:
        return told_error(Failed("the request failed; see the server's log"))


def invalid_request(error: RequestValidationError) -> BadRequest:
    """The first thing that is wrong with a body, in words and by its field."""
    first = error.errors()[0]
    # Names of unknown fields are the client's, and as long as it likes.
    path = [str(part)[:100] for part in first["loc"] if part != "body"]
    field = path[0] if path and first["type"] != "json_invalid" else None
    if field in UNSUPPORTED and first["type"] != "missing":
        return BadRequest(
            f"'{field}' is not supported: this server has no {UNSUPPORTED[field]}",
            field,
            "unsupported_parameter",
        )
    if first["type"] == "extra_forbidden":
        if path[-1] in UNSUPPORTED:
            return BadRequest(f"'{path[-1]}' is not supported here", field, "unsupported_parameter")
        return BadRequest(
            f"'{'.'.join(path)[:200]}' is not a field that this server knows", field, "unknown_parameter"
        )
    where = f"{'.'.join(path)[:200]}: " if path else ""
    return BadRequest(f"{where}{first['msg']}", field)


def _json(body: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    """In ASCII: a client's text that is quoted may not be text."""
    return Response(json.dumps(body), status, headers, "application/json")


def _plain(content_type: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": "Metrics.", "content": {content_type: {"schema": {"type": "string"}}}}}


def _event_of(chunk: type[BaseModel], schemas: dict[str, Any]) -> dict[str, Any]:
    """An event of a stream; the schemas that its data needs are added."""
    found = chunk.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    schemas |= found.pop("$defs", {})
    schemas[chunk.__name__] = found
    kinds = [{"$ref": f"#/components/schemas/{each}"} for each in (chunk.__name__, ErrorAnswer.__name__)]
    told = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": kinds}}
    data = {"anyOf": [{"const": "[DONE]"}, told]}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _true_document(api: FastAPI, server: Server) -> None:
    """The OpenAPI document, without the status 422 that FastAPI adds and this server never sends."""

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            made = get_openapi(
                title=api.title, version=api.version, description=api.description, routes=api.routes
            )
            for path in made["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            schemas = made["components"]["schemas"]
            for path, chunk in CHUNKS.items():
                streamed = made["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
                streamed["itemSchema"] = _event_of(chunk, schemas)
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            if server.options.key is not None:
                made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                made["security"] = [{"key": []}]
            api.openapi_schema = made
        return api.openapi_schema

    api.openapi = document  # type: ignore[method-assign]
