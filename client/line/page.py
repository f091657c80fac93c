"""The page for people at a line: live predictions, labels, learning, before and after, history and the way back."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from client.data.indexed import Pixels
from client.door.policy import read_policy
from client.home import SiteHome
from client.line.desk import Desk
from client.line.learner import Learner
from client.line.predict import Loaded, Predictor
from client.line.store import About, Entry, store_of
from client.line.watch import MOST_BYTES, Folder, Gallery, Look, Recent, Seen, content_of, plain_file
from client.model import Prediction
from common.errors import CheckpointError, FedreptileError, SettingsError, SiteDataError
from common.learning.interval import FEW, wilson
from common.pages.guard import Guard, body, first_of, form
from common.pages.render import environment

TABS = (("/", "Live"), ("/label", "Label"), ("/learn", "Learn"), ("/history", "History"))
SHOWN = 48
"""Pictures on a page."""
PATIENCE = 1.5
"""Seconds for which a page waits for new predictions; those that are not done then come with the next look."""
EVENTS = 100


@dataclass(frozen=True)
class Tile:
    """A picture as it is shown."""

    number: str
    name: str
    when: str
    state: str
    """'known', 'unknown', 'unreadable', 'waiting', or 'plain' where there is no model."""
    says: str = ""
    """The class that it most likely shows."""
    sure: int = 0
    """Confidence in percent."""
    why: str = ""
    """Why it cannot be read."""
    label: str = ""
    """The class that people gave it."""

    @property
    def drawn(self) -> bool:
        return self.state not in ("unreadable", "waiting")


@dataclass(frozen=True)
class Event:
    """Something that happened to the site's models, in words."""

    when: str
    kind: str
    """'good', 'look', 'bad' or empty."""
    what: str
    why: str


class Pages:
    """The routes of the page."""

    def __init__(
        self, home: SiteHome, guard: Guard, predictor: Predictor, learner: Learner, watch: Path | None = None
    ) -> None:
        """Raises SettingsError if there is no such folder to watch."""
        if watch is None:
            home.watched.mkdir(mode=0o700, exist_ok=True)
        elif not watch.is_dir():
            raise SettingsError(f"there is no folder {watch} to watch; make it, or name another with --watch")
        self._name, self._policy = home.config().name, home.policy_file
        self._store, self._gallery = store_of(home), Gallery()
        self._desk = Desk(home, self._gallery)
        self._watched = Folder((watch or home.watched).absolute())
        self._guard, self._predictor, self._learner = guard, predictor, learner
        self._templates = environment("client.line")
        self._said: Recent[tuple[str, int], Prediction] = Recent(4096)
        self._looking = asyncio.Lock()
        self._notes: Recent[str, tuple[str, str]] = Recent(64)
        self._numbers = count(1)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        routes = APIRouter(dependencies=[Depends(self._guard.allowed)], include_in_schema=False)
        looks: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/": self._live,
            "/label": self._label,
            "/learn": self._learn,
            "/history": self._history,
            "/back": self._back,
            "/picture/{number}": self._picture,
        }
        acts: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/drop": self._drop,
            "/clear": self._clear,
            "/label": self._do_label,
            "/unlabel": self._do_unlabel,
            "/learn": self._do_learn,
            "/decide": self._do_decide,
            "/wish": self._do_wish,
            "/back": self._do_back,
        }
        for path, look in looks.items():
            routes.add_api_route(path, look, methods=["GET"], response_model=None)
        for path, act in acts.items():
            routes.add_api_route(path, act, methods=["POST"], response_model=None)
        app.include_router(routes)

        @app.get("/page.js", include_in_schema=False)
        async def script() -> Response:
            return Response(Path(__file__).with_suffix(".js").read_bytes(), media_type="text/javascript")

        @app.exception_handler(FedreptileError)
        async def trouble(request: Request, error: FedreptileError) -> Response:
            if "text/html" not in request.headers.get("accept", ""):
                return JSONResponse({"detail": str(error)}, 409)
            return self._page("trouble.html", "", request, 409, title="That did not work", text=str(error))

    # ------------------------------------------------------------------------------------------------ looks

    async def _live(self, request: Request) -> Response:
        loaded, trouble = await self._model()
        pictures = await run_in_threadpool(self._watched.newest, SHOWN)
        await run_in_threadpool(self._desk.look_again)
        return self._page(
            "live.html",
            "/",
            request,
            title="Live",
            loaded=loaded,
            trouble=trouble,
            tiles=await self._tiles(pictures, loaded),
            folder=str(self._watched.path),
        )

    async def _label(self, request: Request) -> Response:
        loaded, _ = await self._model()
        classes, cannot = await run_in_threadpool(self._classes)
        dropped = await run_in_threadpool(self._desk.dropped, SHOWN)
        watched = await run_in_threadpool(self._watched.newest, SHOWN)
        lately = await run_in_threadpool(self._desk.lately, 24)
        self._gallery.show([seen for _, seen in lately])
        shown = await self._tiles([*dropped, *watched], loaded)
        return self._page(
            "label.html",
            "/label",
            request,
            title="Label",
            classes=classes,
            cannot=cannot,
            dropped=shown[: len(dropped)],
            watched=shown[len(dropped) :],
            waiting=any(tile.state == "waiting" for tile in shown),
            lately=[(name, seen.number) for name, seen in lately],
            picked=request.query_params.getlist("pick"),
        )

    async def _learn(self, request: Request) -> Response:
        loaded, trouble = await self._model()
        classes, cannot = await run_in_threadpool(self._classes)
        candidate = await run_in_threadpool(self._store.candidate)
        standing = await run_in_threadpool(self._store.standing)
        known = set(loaded.entry.about.classes) if loaded else set(classes)
        return self._page(
            "learn.html",
            "/learn",
            request,
            title="Learn",
            loaded=loaded,
            trouble=trouble,
            cannot=cannot,
            classes=classes,
            new=[name for name in classes if name not in known],
            course=self._learner.course,
            wishes=standing.wishes,
            silent=await run_in_threadpool(self._silent),
            candidate=candidate,
            compared=await run_in_threadpool(self._compared, candidate, known) if candidate else None,
        )

    async def _history(self, request: Request) -> Response:
        current, entries, events = await run_in_threadpool(
            lambda: (self._store.current(), self._store.entries(), self._store.history())
        )
        previous = await run_in_threadpool(self._store.previous)
        return self._page(
            "history.html",
            "/history",
            request,
            title="History",
            current=current,
            previous=previous,
            entries=entries[::-1],
            events=[_event(one) for one in events[::-1][:EVENTS]],
            more=max(0, len(events) - EVENTS),
            when=_when,
            made=_made,
        )

    async def _back(self, request: Request) -> Response:
        to = await run_in_threadpool(self._store.entry, _whole(request.query_params.get("to", "")))
        current = await run_in_threadpool(self._store.current)
        gone = sorted(set(current.about.classes if current else ()) - set(to.about.classes))
        return self._page(
            "back.html", "/history", request, title="Go back", to=to, current=current, gone=gone, when=_when, made=_made
        )

    async def _picture(self, request: Request) -> Response:
        """A picture, small, by the number that a page gave it: no path is ever taken from a request."""
        seen = self._gallery.named(request.path_params["number"])
        look = await run_in_threadpool(self._gallery.look, seen) if seen else Look()
        if not look.thumb:
            raise HTTPException(404, "there is no such picture")
        return Response(
            look.thumb, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400, immutable"}
        )

    # ------------------------------------------------------------------------------------------------- acts

    async def _drop(self, request: Request) -> Response:
        content = await body(request, MOST_BYTES, "a picture's file")
        try:
            seen = await run_in_threadpool(self._desk.drop, content)
        except SiteDataError as error:
            raise HTTPException(422, str(error)) from error
        return JSONResponse({"number": seen.number}, 201)

    async def _clear(self, request: Request) -> Response:
        gone = await run_in_threadpool(self._desk.clear)
        return self._to("/label", f"{_pictures(gone)} put away. What was labelled stays labelled.")

    async def _do_label(self, request: Request) -> Response:
        fields = await form(request)
        name = first_of(fields, "as") or first_of(fields, "name").strip()
        added = await run_in_threadpool(self._desk.label, fields.get("picture", []), name)
        return self._to("/label", f"{_pictures(added)} labelled “{name}”. Label more, or go to Learn.")

    async def _do_unlabel(self, request: Request) -> Response:
        number = first_of(await form(request), "back")
        name = await run_in_threadpool(self._desk.unlabel, number)
        return self._to("/label", f"The label “{name}” is taken back.")

    async def _do_learn(self, request: Request) -> Response:
        await run_in_threadpool(self._learner.start)
        return self._to("/learn")

    async def _do_decide(self, request: Request) -> Response:
        fields = await form(request)
        number, what = _whole(first_of(fields, "number")), first_of(fields, "what")
        candidate = await run_in_threadpool(self._store.candidate)
        if candidate is None or candidate.number != number or what not in ("use", "discard"):
            raise CheckpointError(f"model {number} does not wait for a decision any more; look at the page anew")
        self._learner.forget()
        if what == "discard":
            await run_in_threadpool(self._store.discard, number, "on the page")
            return self._to("/learn", f"Model {number} is discarded. Nothing has changed at the line.")
        await run_in_threadpool(self._store.use, number, "on the page")
        return self._to("/", f"Model {number} is in use now. History leads back to the one before.")

    async def _do_wish(self, request: Request) -> Response:
        fields = await form(request)
        name = first_of(fields, "class")
        if first_of(fields, "what") == "no longer":
            await run_in_threadpool(self._store.unwish, name)
            return self._to("/learn", f"The other lines are no longer asked to learn “{name}”.")
        classes = await run_in_threadpool(self._desk.classes)
        if name not in classes:
            raise SiteDataError(f"this line has no class {name[:80]!r}; choose one that is listed")
        await run_in_threadpool(self._store.wish, name, classes[name])
        return self._to(
            "/learn", f"All lines are asked to learn “{name}”. The operator decides; your pictures stay here."
        )

    async def _do_back(self, request: Request) -> Response:
        wanted = await run_in_threadpool(self._store.entry, _whole(first_of(await form(request), "to")))
        current = await run_in_threadpool(self._store.current)
        change = self._store.rollback if current and wanted.number < current.number else self._store.use
        entry = await run_in_threadpool(change, wanted.number, "on the page")
        self._learner.forget()
        return self._to("/history", f"Model {entry.number} is in use now.")

    # ----------------------------------------------------------------------------------------------- inside

    async def _model(self) -> tuple[Loaded | None, str]:
        """Return the model in use, or why there is none."""
        try:
            return await self._predictor.ask(self._predictor.current.get), ""
        except CheckpointError as error:
            there = await run_in_threadpool((self._store.folder / "current").exists)
            return None, str(error) if there else ""

    def _silent(self) -> bool:
        """Return whether no wish leaves the site, since names of classes may not."""
        return self._policy.exists() and not read_policy(self._policy).classes.names

    def _classes(self) -> tuple[dict[str, int], str]:
        """Return class -> its pictures, or why nothing can be labelled."""
        try:
            return self._desk.classes(), ""
        except FedreptileError as error:
            return {}, str(error)

    async def _tiles(self, pictures: Sequence[Seen], loaded: Loaded | None) -> list[Tile]:
        """Return the pictures with what the model says of them, one at a time: programs are answered in between."""
        self._gallery.show(pictures)
        until = time.monotonic() + PATIENCE
        async with self._looking:  # two that look at once do not look twice
            return [await self._tile(seen, loaded, until) for seen in pictures]

    async def _tile(self, seen: Seen, loaded: Loaded | None, until: float) -> Tile:
        tile = Tile(seen.number, seen.title, f"{datetime.fromtimestamp(seen.mtime_ns / 1e9):%H:%M:%S}", "plain")
        said = self._said.get((seen.number, loaded.entry.number)) if loaded else None
        if said is None and time.monotonic() > until:
            return _with(tile, state="waiting")
        look, pixels, why = await run_in_threadpool(self._read, seen, loaded if said is None else None)
        if why:
            return _with(tile, state="unreadable", why=why)
        if loaded and pixels is not None:
            said = await self._predictor.ask(lambda: loaded.predict(pixels))
            self._said.put((seen.number, loaded.entry.number), said)
        tile = _with(tile, label=self._desk.class_of(look.digest))
        if said is None:
            return tile
        sure = round(100 * said.confidence) if said.confidence >= 0 else 0
        return _with(tile, state="unknown" if said.unknown else "known", says=said.name, sure=sure)

    def _read(self, seen: Seen, loaded: Loaded | None) -> tuple[Look, Pixels | None, str]:
        """Return how a picture looks, its pixels if a model is given, and why it cannot be read."""
        look = self._gallery.look(seen)
        if look.why or loaded is None:
            return look, None, look.why
        try:
            return look, loaded.pixels(content_of(seen)), ""
        except FedreptileError as error:
            return look, None, str(error)

    def _compared(self, candidate: Entry, known: set[str]) -> dict[str, Any]:
        """Return the judgement of a candidate as it is shown."""
        figures = candidate.about.judgement
        changed = []
        for source, true, before, after in figures.get("changed-samples", []):
            path = Path(source)
            seen = plain_file(path) if path.is_relative_to(self._desk.site) else None
            self._gallery.show([seen] if seen else [])
            verdict = "right now" if after == true else "wrong now" if before == true else "wrong still"
            changed.append(
                {"number": seen and seen.number, "true": true, "before": before, "after": after, "verdict": verdict}
            )
        return {
            "total": figures.get("held-back", 0),
            "before": figures.get("right-before", 0),
            "after": figures.get("right-after", 0),
            "unknown": (figures.get("unknown-before", 0), figures.get("unknown-after", 0)),
            "classes": [
                {"name": name, "before": was, "after": now, "total": total, "new": name not in known}
                for name, (was, now, total) in figures.get("classes", {}).items()
            ],
            "changed": changed,
            "more": figures.get("changed", 0) - len(changed),
            "left_out": [_left_out(name, *pair) for name, pair in figures.get("left-one-out", {}).items()],
            "confusion": [_confusion(figures.get(key, [])) for key in ("confusion-before", "confusion-after")],
        }

    def _page(self, template: str, here: str, request: Request, status: int = 200, /, **values: Any) -> Response:
        note = self._notes.get(request.query_params.get("said", ""))
        text = self._templates.get_template(template).render(
            place=self._name, tabs=TABS, here=here, csrf=urlencode({"csrf": self._guard.secret}), note=note, **values
        )
        return HTMLResponse(text, status)

    def _to(self, address: str, text: str = "", kind: str = "good") -> Response:
        """Lead on to a page, which shows the text."""
        if not text:
            return RedirectResponse(address, 303)
        number = str(next(self._numbers))
        self._notes.put(number, (kind, text))
        return RedirectResponse(f"{address}?said={number}", 303)


def _with(tile: Tile, **changes: Any) -> Tile:
    return Tile(**{**vars(tile), **changes})


def _left_out(name: str, right: int, total: int) -> dict[str, Any]:
    low, high = wilson(right, total)
    return {"name": name, "right": right, "total": total, "low": low, "high": high, "few": total < FEW}


def _confusion(pairs: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    counts: dict[tuple[str, str], int] = {(true, said): number for true, said, number in pairs}
    rows = sorted({true for true, _ in counts})
    return {"rows": rows, "columns": sorted({*rows, *(said for _, said in counts)}), "counts": counts}


def _event(event: Mapping[str, Any]) -> Event:
    number, before, why = event["number"], event.get("from"), str(event.get("why", ""))
    kind, what, why = {
        "added": ("", f"Model {number} was made" + f" of {why}" * (why != "adapted"), ""),
        "used": ("good", f"Model {number} came into use", why),
        "went back": ("look", f"Went back to model {number}" + f" from model {before}" * bool(before), why),
        "discarded": ("", f"Model {number} was discarded", why),
        "removed": ("", f"Model {number} was removed", why),
        "asked for a campaign": ("look", f"All lines were asked to learn “{why}”", ""),
        "refused": ("bad", f"{why.partition(':')[0].capitalize()} was refused", why.partition(": ")[2]),
    }.get(event["what"], ("", f"{event['what']}: model {number}", why))
    return Event(_when(str(event.get("when", ""))), kind, what, why)


def _made(about: About) -> str:
    """Return how a model was made, in words."""
    if about.made != "adapted":
        return about.made
    return "learned here" + f" from release {about.release}" * bool(about.release)


def _when(text: str) -> str:
    """Return a time of ours in the machine's own time zone."""
    try:
        return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        return text


def _pictures(number: int) -> str:
    return "1 picture is" if number == 1 else f"{number} pictures are"


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
