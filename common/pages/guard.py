"""Who may see a page that is served on this machine: a browser that was given the token, and no other site's script."""

import hashlib
import hmac
import html
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, RedirectResponse, Response

HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""By which a request may name this machine: a page of another site that has its name lead here names another."""
MOST_BYTES_OF_FORM = 64 << 10
ENTER = "/enter"
STYLE = "/style.css"
ICON = "/icon.svg"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Next = Callable[[Request], Awaitable[Response]]


class Guard:
    """Knows the token of one served page. A browser gives it once, at ENTER, and keeps a cookie; programs give it as a
    bearer token with every request."""

    def __init__(self, token: str) -> None:
        self._token = token
        digest = hashlib.sha256(token.encode()).hexdigest()
        # Cookies are of a host and not of a port: two pages on one machine must not take each other's.
        self._cookie = f"fedreptile-{digest[:12]}"

    def link(self, port: int) -> str:
        """Return the address that lets a browser in."""
        return f"http://127.0.0.1:{port}{ENTER}?token={self._token}"

    @property
    def secret(self) -> str:
        """What each form carries as 'csrf': other sites' pages cannot know it."""
        return self._derived("form")

    def protect(self, app: FastAPI) -> None:
        """Let in only requests that name this machine; set the headers; answer ENTER, STYLE and ICON."""
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS], www_redirect=False)

        @app.middleware("http")
        async def with_headers(request: Request, go_on: Next) -> Response:
            response = await go_on(request)
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        @app.exception_handler(StarletteHTTPException)
        async def refused(request: Request, error: StarletteHTTPException) -> Response:
            """People read a page; programs read JSON."""
            if "text/html" not in request.headers.get("accept", ""):
                return await http_exception_handler(request, error)
            text = NO_TOKEN if error.status_code == 401 else TROUBLE.format(html.escape(str(error.detail)))
            return HTMLResponse(text, error.status_code, error.headers)

        @app.get(ENTER, include_in_schema=False)
        async def enter(token: Annotated[str, Query()] = "") -> Response:
            if not _same(token, self._token):
                return HTMLResponse(NO_TOKEN, 401)
            response = RedirectResponse("/", 303)
            response.set_cookie(self._cookie, self._derived("cookie"), httponly=True, samesite="strict")
            return response

        @app.get(STYLE, include_in_schema=False)
        async def style() -> Response:
            return Response((Path(__file__).parent / "style.css").read_bytes(), media_type="text/css")

        @app.get(ICON, include_in_schema=False)
        async def icon() -> Response:
            return Response((Path(__file__).parent / "icon.svg").read_bytes(), media_type="image/svg+xml")

    def allowed(
        self,
        request: Request,
        given: Annotated[
            HTTPAuthorizationCredentials | None,
            Depends(HTTPBearer(auto_error=False, description="The token that the command wrote when it began.")),
        ],
    ) -> None:
        """A dependency of a route: raises HTTPException unless the request has the token or the cookie.

        One that changes something and has the cookie alone must come from a page of ours.
        """
        if given is not None and _same(given.credentials, self._token):
            return
        if not _same(request.cookies.get(self._cookie, ""), self._derived("cookie")):
            raise HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        if request.method not in {"GET", "HEAD"} and not self._from_our_page(request):
            raise HTTPException(403, "this must come from a page of this server")

    def _from_our_page(self, request: Request) -> bool:
        origin = request.headers.get("origin")
        ours = origin is not None and urlsplit(origin).netloc == request.headers.get("host", "")
        return ours and _same(request.headers.get("x-csrf", request.query_params.get("csrf", "")), self.secret)

    def _derived(self, purpose: str) -> str:
        return hmac.digest(self._token.encode(), purpose.encode(), "sha256").hex()


async def body(request: Request, most: int, what: str) -> bytes:
    """Return the body. No stated length is believed: raises HTTPException once more than ``most`` bytes have come."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            raise HTTPException(413, f"{what} may have {most >> 20} MiB" if most >> 20 else f"{what} is too large")
    return bytes(found)


async def form(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form (application/x-www-form-urlencoded).

    Raises HTTPException if it is too large or none.
    """
    content = await body(request, MOST_BYTES_OF_FORM, "a form")
    try:
        return parse_qs(content.decode(), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise HTTPException(422, "the form cannot be read") from error


def first_of(fields: Mapping[str, Sequence[str]], key: str, default: str = "") -> str:
    """Return the first value of a field of a form."""
    return next(iter(fields.get(key, [])), default)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{0}</title><link rel="stylesheet" href="/style.css"><link rel="icon" href="/icon.svg"></head>
<body><main class="alone"><h1>{0}</h1><p>{1}</p></main>
</body></html>"""
NO_TOKEN = FRAME.format("This page needs its link", "Open the whole link that the command printed when it began.")
TROUBLE = FRAME.format("That did not work", '{}.</p><p><a class="button" href="/">To the first page</a>')
