"""Predictions over HTTP for programs on the same machine, and the page for people: loopback only, with a token.

A request is answered by one model as a whole: the one that was in use when its turn came.
"""

import contextlib
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from client.data.images import UnreadableImageError
from client.home import SiteHome
from client.line.learner import Learner
from client.line.page import Pages
from client.line.predict import Predictor
from client.line.store import store_of
from client.line.watch import MOST_BYTES
from common import VERSION
from common.errors import CheckpointError, DeployError
from common.pages import serve as served
from common.pages.guard import Guard, body

TYPES = ("image/png", "image/jpeg", "image/bmp", "image/tiff")

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


def app_for(home: SiteHome, token: str, watch: Path | None = None) -> FastAPI:
    """Return the application. Everything but /healthz and /openapi.json asks for the token.

    Args:
        watch: the folder whose pictures are shown; by default that of the site's folder, which is made.
    """
    guard, predictor, learner = Guard(token), Predictor(store_of(home)), Learner(home)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        predictor.start()
        yield
        learner.stop()
        predictor.stop()

    app = FastAPI(
        title="fedreptile at the line",
        version=VERSION,
        docs_url=None,  # those pages would fetch their scripts from the internet
        redoc_url=None,
        lifespan=life,
    )
    guard.protect(app)
    _answer(app, guard, predictor)
    Pages(home, guard, predictor, learner, watch).add_to(app)
    return app


def _answer(app: FastAPI, guard: Guard, predictor: Predictor) -> None:
    """Add what programs ask for."""
    current, allowed = predictor.current, [Depends(guard.allowed)]

    async def answered(work: Callable[[], T]) -> T:
        return await predictor.ask(lambda: _answered(work))

    @app.get("/healthz")
    async def healthz() -> Health:
        try:
            await answered(current.get)
        except HTTPException:
            return Health(ok=False)
        return Health(ok=True)

    @app.get("/model", dependencies=allowed)
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

    @app.post("/predict", dependencies=allowed, openapi_extra=_body())
    async def predict(request: Request) -> Answer:
        """Say what a picture shows: its bytes are the body."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in TYPES:
            raise HTTPException(415, f"the body must be a picture: {', '.join(TYPES)}")
        picture = await body(request, MOST_BYTES, "a picture's file")
        loaded, said = await answered(lambda: current.predict(picture))
        return Answer(
            **{"class": said.name},
            confidence=said.confidence if math.isfinite(said.confidence) else 0.0,
            unknown=said.unknown,
            model=loaded.entry.number,
        )


def serve(home: SiteHome, port: int, tell: Callable[[str], None], watch: Path | None = None) -> None:
    """Answer on 127.0.0.1 until the process is asked to stop.

    Args:
        port: 0 takes any that is free.
        tell: told where it answers, where the token is, and the link that opens the page.
        watch: the folder whose pictures are shown.

    Raises:
        SettingsError: if the folder is not that of a site, or there is no folder to watch.
        DeployError: if the port is taken.
        WritingError: if the token cannot be written.
    """
    home.config()
    file = home.run / served.TOKEN

    def told(port: int, token: str) -> None:
        tell(f"http://127.0.0.1:{port} answers POST /predict; the token is in {file}")
        tell(f"open {Guard(token).link(port)} in a browser")

    served.serve(port, file, lambda token: app_for(home, token, watch), told)


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
