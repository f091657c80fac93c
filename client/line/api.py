"""Predictions over HTTP for programs on the same machine: loopback only, with a token, the model in use at each moment.

A request is answered by one model as a whole: the one that was in use when its turn came.
"""

import asyncio
import contextlib
import hmac
import io
import math
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from client.data.images import UnreadableImageError, read_image
from client.data.indexed import as_input
from client.home import SiteHome
from client.line.store import Entry, Store, store_of
from client.model import Prediction, SiteModel, read_model
from common import VERSION
from common.errors import CheckpointError, DeployError
from common.paths import write_atomically

MOST_BYTES = 32 << 20
"""Of a picture's file."""
TYPES = ("image/png", "image/jpeg", "image/bmp", "image/tiff")
HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""By which a request may name this machine: a page of another site that has its name lead here names another."""
TOKEN_BYTES = 32

T = TypeVar("T")


class Answer(BaseModel):
    """What a picture shows."""

    name: str = Field(alias="class", description="The likeliest class.")
    confidence: float = Field(description="Its probability, 0 to 1.")
    unknown: bool = Field(description="True: the picture is like none of the classes; do not rely on the class.")
    model: int = Field(description="The number of the model that says so.")


class About(BaseModel):
    """The model in use."""

    model: int
    made: str = Field(description="'release N' or 'adapted'.")
    release: int = Field(description="The release that it comes from; 0: none.")
    when: str
    classes: list[str]
    unknown: bool = Field(description="Whether it can tell unknown pictures.")


class Health(BaseModel):
    ok: bool = Field(description="Whether a model is in use that can answer.")


@dataclass(frozen=True)
class Loaded:
    """A model in memory, with what the store says of it."""

    entry: Entry
    model: SiteModel


class Current:
    """The model in use, read again when another one comes into use. For one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loaded: Loaded | None = None

    def get(self) -> Loaded:
        """Return the model in use. Raises CheckpointError if there is none, or it is damaged and none is loaded."""
        found, before = self._store.current(), self._loaded
        if found is None:
            raise CheckpointError(f"no model is in use in {self._store.folder}; make one with 'fedreptile-site adapt'")
        if before is None or before.entry != found:
            before = self._loaded = Loaded(found, read_model(found.path))
        return before

    def predict(self, picture: bytes) -> tuple[Loaded, Prediction]:
        """Say what a picture shows, by one model.

        Raises:
            CheckpointError: like ``get``.
            DeployError: if the model is not for single pictures.
            UnreadableImageError: if it is no picture, or unpacks to too many pixels.
        """
        loaded = self.get()
        data = loaded.model.settings.data
        if data.kind != "image" or data.beside:
            raise DeployError("the site's model is not for single pictures; use 'fedreptile-site classify'")
        pixels = read_image(
            io.BytesIO(picture), data.channels, data.size, bits=data.bits, white=data.white, invert=data.invert
        )
        return loaded, loaded.model.predict(as_input(pixels[None], None))[0]


def app_for(home: SiteHome, token: str) -> FastAPI:
    """Return the application. Everything but /healthz and /openapi.json asks for the token."""
    current = Current(store_of(home))
    worker = ThreadPoolExecutor(1, "predict")  # a network is one call's at a time

    async def answered(work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(worker, _answered, work)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        worker.submit(torch.set_num_threads, 1).result()
        yield
        worker.shutdown(wait=True)

    bearer = HTTPBearer(auto_error=False, description="The line in run/ui.token of the site's folder.")

    def allowed(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    app = FastAPI(
        title="fedreptile at the line",
        version=VERSION,
        docs_url=None,  # those pages would fetch their scripts from the internet
        redoc_url=None,
        lifespan=life,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS], www_redirect=False)

    @app.get("/healthz")
    async def healthz() -> Health:
        try:
            await answered(current.get)
        except HTTPException:
            return Health(ok=False)
        return Health(ok=True)

    @app.get("/model", dependencies=[Depends(allowed)])
    async def model() -> About:
        loaded = await answered(current.get)
        about = loaded.entry.about
        return About(
            model=loaded.entry.number,
            made=about.made,
            release=about.release,
            when=about.when,
            classes=list(loaded.model.classes),
            unknown=loaded.model.threshold is not None,
        )

    @app.post("/predict", dependencies=[Depends(allowed)], openapi_extra=_body())
    async def predict(request: Request) -> Answer:
        """Say what a picture shows: its bytes are the body."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in TYPES:
            raise HTTPException(415, f"the body must be a picture: {', '.join(TYPES)}")
        picture = await _read(request)
        loaded, said = await answered(lambda: current.predict(picture))
        return Answer(
            **{"class": said.name},
            confidence=said.confidence if math.isfinite(said.confidence) else 0.0,
            unknown=said.unknown,
            model=loaded.entry.number,
        )

    return app


def serve(home: SiteHome, port: int, tell: Callable[[str], None]) -> None:
    """Answer on 127.0.0.1 until the process is asked to stop.

    Args:
        port: 0 takes any that is free.
        tell: told where it answers, and where the token is.

    Raises:
        SettingsError: if the folder is not that of a site.
        DeployError: if the port is taken.
    """
    home.config()
    token = new_token(home)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise DeployError(
                f"port {port} of 127.0.0.1 cannot be used: {error.strerror}; give another --port"
            ) from error
        listening.listen()
        tell(f"http://127.0.0.1:{listening.getsockname()[1]} answers POST /predict; the token is in {token_file(home)}")
        app = app_for(home, token)
        try:
            uvicorn.Server(config_for(app)).run(sockets=[listening])
        finally:
            token_file(home).unlink(missing_ok=True)


def config_for(app: FastAPI) -> uvicorn.Config:
    """Return how the application is served."""
    return uvicorn.Config(app, log_level="warning", server_header=False, access_log=False, ws="none")


def token_file(home: SiteHome) -> Path:
    return home.run / "ui.token"


def new_token(home: SiteHome) -> str:
    """Draw a token and write it where only the user of this process can read it."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    write_atomically(token_file(home), token.encode() + b"\n", 0o600)
    return token


async def _read(request: Request) -> bytes:
    """Return the body. No stated length is believed."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise HTTPException(413, f"a picture's file may have {MOST_BYTES >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


def _answered(work: Callable[[], T]) -> T:
    """Do the work; what is wrong with picture or model becomes a status, without a path in it."""
    try:
        return work()
    except UnreadableImageError as error:
        raise HTTPException(422, str(error)) from error
    except DeployError as error:
        raise HTTPException(409, str(error)) from error
    except CheckpointError as error:
        raise HTTPException(503, "no model is in use that can answer; see 'fedreptile-site history'") from error


def _body() -> dict[str, Any]:
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in TYPES}
    return {"requestBody": {"required": True, "content": content}}
