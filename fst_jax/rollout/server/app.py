"""The application: all routes, who may use them, and how errors are told."""

import hmac
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fst_jax.rollout.server.front import Front, TooLarge, TooSlow
from fst_jax.rollout.server.native import Native
from fst_jax.rollout.server.openai import OpenAI
from fst_jax.rollout.server.questions import BadRequest
from fst_jax.rollout.server.service import Overloaded, Unavailable

_STATUS = {
    BadRequest: (400, "BadRequestError"),
    TooSlow: (408, "RequestTimeoutError"),
    TooLarge: (413, "RequestTooLargeError"),
    Overloaded: (429, "RateLimitError"),
    ClientDisconnect: (499, "ClientDisconnect"),  # nginx's code; nobody reads it
    Unavailable: (503, "ServiceUnavailableError"),
}
_OPEN = ("/health", "/metrics")  # without a key, as with SGLang


def application(front: Front, api_key: str | None = None) -> Starlette:
    """The routes of SGLang and OpenAI over a front, behind a key if there is one."""

    async def metrics(request: Request) -> Response:
        return Response(front.service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def check_key(
        request: Request, go_on: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        # Not `request.url`, which is made of what a client says is the host.
        if request.scope["path"] in _OPEN or hmac.compare_digest(given.encode(), key):
            return await go_on(request)
        return _error(401, "AuthenticationError", "the API key is missing or wrong")

    key = (api_key or "").encode()
    app = Starlette(
        routes=[*Native(front).routes(), *OpenAI(front).routes(), Route("/metrics", metrics)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=check_key)] if api_key else [],
        exception_handlers={**dict.fromkeys(_STATUS, _told), HTTPException: _told},
    )
    app.router.redirect_slashes = False  # to an address made of what a client says is the host
    return app


async def _told(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        kind = "NotFoundError" if error.status_code == 404 else "BadRequestError"
        return _error(error.status_code, kind, error.detail)
    status, kind = _STATUS[type(error)]
    return _error(status, kind, str(error))


def _error(status: int, kind: str, message: str) -> Response:
    """OpenAI's shape, in which SGLang's clients find their `error.message`, too."""
    body = {"message": message, "type": kind, "param": None, "code": status}
    return JSONResponse({"error": body}, status)
