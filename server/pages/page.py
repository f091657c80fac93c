"""The operator's page: sites, campaigns, gates, releases. Server-rendered; torch-free until a campaign begins.

Nothing that a form sends is believed: sites must be enrolled, runs and releases be there, and what may be done is
decided by the functions that the commands use too.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import HTMLResponse, RedirectResponse, Response

from common import VERSION
from common.cli import read_settings
from common.errors import FedreptileError, ReleaseError, SettingsError, TrustError
from common.pages.guard import Guard, first_of, form
from common.pages.render import environment
from common.releases.pointer import Pointer
from common.trust.keys import VARIABLE, is_encrypted
from server.campaigns.campaign import PHASES
from server.campaigns.creation import Choice, Wanted, begin_campaign, resume_campaign
from server.campaigns.view import all_campaigns, campaign_state
from server.enrolment.registry import read_registry
from server.home import FederationHome
from server.pages import shown
from server.pages.lineage import drawn
from server.releases.publishing import check_promotion, open_registry, promote, way_back, withdraw
from server.service.control import superlink_address
from server.service.runs import ACTIVE, ASKING, RECORD, ask_sites, ask_to_stop_run
from server.service.status import federation_status

TABS = (("/", "Sites"), ("/campaigns", "Campaigns"), ("/releases", "Releases"))
MOST_DRAWN = 12
"""Releases in the drawing of where each comes from: the newest."""
MOST_ROUNDS = 1000
UNJUDGED = "No check has judged it: nobody knows whether it is better or worse than what sites have."
FRESH_SECONDS, CAMPAIGN_SECONDS = 5, 2
"""Between two looks of an open page at what it shows; of one campaign's."""

Fields = Annotated[Mapping[str, list[str]], Depends(form)]


class Page:
    """The pages of a federation.

    Args:
        token: what lets a browser in.
        passphrase: of the releases' keys, if they are encrypted.
    """

    def __init__(self, home: FederationHome, guard: Guard, passphrase: str | None) -> None:
        """Raises SettingsError if the folder is not a federation's."""
        self.home, self._guard, self._passphrase = home, guard, passphrase
        self._name = home.config().name
        self._templates = environment("server.pages")
        self._templates.globals.update(number_of=shown.number_of, named=shown.named)

    def show(self, template: str, title: str, here: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page of a template."""
        given: dict[str, Any] = {"title": f"{title} - {self._name}", "place": self._name, "tabs": TABS, "here": here}
        given |= {"csrf": self._guard.secret, "every": FRESH_SECONDS, **values}
        return HTMLResponse(self._templates.get_template(template).render(given), status)

    def error(self, why: str, status: int, back: str = "/") -> HTMLResponse:
        """Return a page that says what is wrong."""
        text, _, advice = why.partition("; ")
        return self.show("error.html", "Not done", "", status, what=text, advice=advice, back=back)

    def sites(self) -> Response:
        now = datetime.now(UTC)
        status = federation_status(self.home, now)
        names = [site["name"] for site in status["sites"]]
        pointer = _pointer(self.home)
        found = shown.sites(status, {name: pointer.of(name) for name in names}, all_campaigns(self.home), now)
        asking = any(run["name"] == ASKING and run["state"] in ACTIVE for run in status["runs"])
        return self.show("sites.html", "Sites", "/", federation=status, sites=found, asking=asking)

    def ask(self) -> Response:
        """Have sites say anew what they are, have and wish."""
        superlink_address(self.home)
        ask_sites(self.home, read_settings(self.home.path / self.home.config().settings, []))
        return RedirectResponse("/", 303)

    def campaigns(self) -> Response:
        now = datetime.now(UTC)
        found = [shown.campaign(state, now) for state in reversed(all_campaigns(self.home))]
        return self.show("campaigns.html", "Campaigns", "/campaigns", campaigns=found)

    def campaign(self, name: str) -> Response:
        found = self._campaign(name)
        title = f"Campaign {found['name']}"
        return self.show(
            "campaign.html", title, "/campaigns", one=found, verdict=found["verdict"], every=CAMPAIGN_SECONDS
        )

    def _campaign(self, name: str) -> dict[str, Any]:
        """Raises HTTPException if there is no campaign of that name."""
        try:
            return shown.campaign(campaign_state(self.home, name), datetime.now(UTC))
        except FedreptileError as error:
            raise HTTPException(404, f"there is no campaign {name[:64]!r}") from error

    def beginning(self, given: Mapping[str, list[str]], why: str = "", status: int = 200) -> Response:
        """Return the form for a campaign, filled in with what is given."""
        now = datetime.now(UTC)
        found = shown.sites(federation_status(self.home, now), {}, [], now)
        values = {key: first_of(given, key, default) for key, default in (("class", ""), ("description", ""))}
        values |= {
            "name": first_of(given, "name"),
            "rounds": first_of(given, "rounds", "3"),
            "steps": first_of(given, "steps", "3"),
        }
        ticked = set(given.get("site", [site["name"] for site in found]))
        first = set(given.get("first", []))
        has = {site["name"]: ask["count"] for site in found for ask in site["asks"] if ask["class"] == values["class"]}
        return self.show(
            "begin.html",
            "New campaign",
            "/campaigns",
            status,
            values=values,
            sites=found,
            ticked=ticked,
            first=first,
            has=has,
            why=why,
        )

    def begin(self, given: Mapping[str, list[str]]) -> Response:
        """Begin a campaign; or show the form again with what is wrong with it."""
        try:
            sites = tuple(given.get("site", []))
            if not sites:
                raise SettingsError("no site is ticked; tick those that take part")
            new_class = first_of(given, "class").strip()
            wanted = Wanted(
                first_of(given, "name").strip() or self._free_name(new_class),
                new_class,
                first_of(given, "description").strip(),
                (),
                tuple(given.get("first", [])),
                {"run.rounds": _whole(given, "rounds"), "inner.steps": _whole(given, "steps")},
                (),
            )
            record = begin_campaign(self.home, Choice(sites), wanted)
        except FedreptileError as error:
            return self.beginning({"site": [], **given}, str(error), 422)
        return RedirectResponse(f"/campaigns/{record.name}", 303)

    def _free_name(self, new_class: str) -> str:
        """Return a name for the campaign's folder that no run has."""
        plain = re.sub(r"[^A-Za-z0-9]+", "-", new_class)[:40].strip("-").lower() or "campaign"
        names = (plain if number == 1 else f"{plain}-{number}" for number in range(1, 10_000))
        return next(name for name in names if not (self.home.runs / name / RECORD).exists())

    def ask_to_stop(self, name: str) -> Response:
        found = self._campaign(name)
        return self.confirm(
            f"Stop campaign {found['name']}?",
            [
                "It ends within seconds. What is done is kept, and it can go on later.",
                f"Release {found['release']} stays where it is." if found["release"] else "No site's model changes.",
            ],
            "Stop it",
            f"/campaigns/{found['name']}",
            stop=True,
            action=f"/campaigns/{found['name']}/stop",
        )

    def stop(self, name: str) -> Response:
        found = self._campaign(name)
        ask_to_stop_run(self.home, found["name"])
        return RedirectResponse(f"/campaigns/{found['name']}", 303)

    def ask_to_resume(self, name: str) -> Response:
        found = self._campaign(name)
        step = shown.STEPS[found["phase"]] if found["phase"] in PHASES else ""
        return self.confirm(
            f"Have campaign {found['name']} go on?",
            [f"It goes on where it was: {step}." if step else "It goes on where it was."],
            "Go on",
            f"/campaigns/{found['name']}",
            action=f"/campaigns/{found['name']}/resume",
        )

    def resume(self, name: str) -> Response:
        found = self._campaign(name)
        resume_campaign(self.home, found["name"])
        return RedirectResponse(f"/campaigns/{found['name']}", 303)

    def confirm(self, title: str, what: list[str], word: str, back: str, **values: Any) -> HTMLResponse:
        """Return a page that says what will happen, with a button that does it."""
        here = f"/{back.split('/')[1]}"
        return self.show(
            "confirm.html",
            title,
            here,
            heading=title,
            what=what,
            word=word,
            back=back,
            **{"stop": False, "sites": (), **values},
        )

    def releases(self) -> Response:
        now, why = datetime.now(UTC), ""
        try:
            with open_registry(self.home) as registry:
                pointer = registry.pointer()
                found = [shown.release(one, now) for one in registry.all_told()]
        except ReleaseError as error:
            pointer, found, why = None, [], str(error)
        total = len(read_registry(self.home.registry_file).sites)
        return self.show(
            "releases.html",
            "Releases",
            "/releases",
            releases=found[::-1],
            pointer=pointer,
            drawing=drawn(found[-MOST_DRAWN:]),
            why=why,
            total=total,
        )

    def release(self, number: int) -> Response:
        found = self._release(number)
        now = datetime.now(UTC)
        with open_registry(self.home) as registry:
            events = [{**vars(one), "when": shown.moment(one.created, now)} for one in registry.events(number)]
            newest = registry.pointer().all
        said = federation_status(self.home, now)["sites"]
        return self.show(
            "release.html",
            f"Release {number}",
            "/releases",
            one=found,
            verdict=found["gate"],
            events=events,
            running=[site["name"] for site in said if site["release"] == number],
            refusing=[site["name"] for site in said if site["refused-release"] == number],
            may_all=found["state"] != "withdrawn" and number > newest,
            may_withdraw=found["state"] != "withdrawn",
        )

    def _release(self, number: int) -> dict[str, Any]:
        """Raises HTTPException if there is no release of that number."""
        try:
            with open_registry(self.home) as registry:
                return shown.release(registry.told(number), datetime.now(UTC))
        except ReleaseError as error:
            raise HTTPException(404, f"there is no release {number}") from error

    def ask_for_all(self, number: int) -> Response:
        found = self._release(number)
        check_promotion(self.home, number, ())
        names = sorted(read_registry(self.home.registry_file).sites)
        what = [
            f"{_count(names)} {'gets' if len(names) == 1 else 'get'} release {number}: {shown.named(names)}.",
            "Each site takes it by itself, adapts it, and checks it on its own pictures before it uses it.",
            *([] if found["gate"] else [UNJUDGED]),
        ]
        return self.confirm(
            f"Give release {number} to all sites?",
            what,
            f"Give it to {'the one site' if len(names) == 1 else f'all {len(names)} sites'}",
            f"/releases/{number}",
            action=f"/releases/{number}/all",
        )

    def ask_for_first(self, number: int, chosen: list[str]) -> Response:
        """Return the list of sites to tick; with some ticked, what will happen to them."""
        found = self._release(number)
        check_promotion(self.home, number, chosen)
        enrolled = read_registry(self.home.registry_file).sites
        if not chosen:
            names = sorted(enrolled.keys() - set(found["canaries"]))
            return self.show("first.html", f"Release {number}", "/releases", one=found, names=names)
        names, rest = sorted(set(chosen)), sorted(enrolled.keys() - set(chosen))
        what = [
            f"{_count(names)} {'gets' if len(names) == 1 else 'get'} release {number} to try it: {shown.named(names)}."
        ]
        what += [f"For {shown.named(rest)} nothing changes."] if rest else []
        what += [] if found["gate"] else [UNJUDGED]
        word = f"Give it to {_count(names)}"
        return self.confirm(
            f"Try release {number} at some sites?",
            what,
            word,
            f"/releases/{number}",
            sites=names,
            action=f"/releases/{number}/first",
        )

    def promote(self, number: int, sites: list[str]) -> Response:
        self._release(number)
        self._check_keys()
        promote(self.home, number, sites, self._passphrase, datetime.now(UTC))
        return RedirectResponse(f"/releases/{number}", 303)

    def ask_to_withdraw(self, number: int, why: str = "", reason: str = "", status: int = 200) -> Response:
        found = self._release(number)
        total = len(read_registry(self.home.registry_file).sites)
        with open_registry(self.home) as registry:
            older = [one.number for one in registry.all() if one.number < number]
            older = [one for one in older if registry.state(one) != "withdrawn"]
            try:
                back = way_back(registry, number)
            except ReleaseError as error:
                back, why = None, why or str(error)
        return self.show(
            "withdraw.html",
            f"Withdraw release {number}?",
            "/releases",
            status,
            one=found,
            back=back,
            older=older[::-1],
            total=total,
            why=why,
            reason=reason,
        )

    def withdraw(self, number: int, given: Mapping[str, list[str]]) -> Response:
        self._release(number)
        reason = first_of(given, "reason")
        try:
            self._check_keys()
            to = _whole(given, "to", 0)
            made = withdraw(self.home, number, reason, self._passphrase, datetime.now(UTC), to or None)
        except FedreptileError as error:
            return self.ask_to_withdraw(number, str(error), reason, 422)
        return RedirectResponse(f"/releases/{number if made is None else made.number}", 303)

    def _check_keys(self) -> None:
        if self._passphrase is None and is_encrypted(self.home.releases / "keys" / "targets.key"):
            raise TrustError(
                "the keys of the releases are locked, and this page was begun without their passphrase; end it with "
                f"Ctrl-C and begin it again in a terminal, which asks for it, or with {VARIABLE} set"
            )


def operator_app(home: FederationHome, token: str, passphrase: str | None = None) -> FastAPI:
    """Return the application.

    Args:
        token: what lets a browser or a program in.
        passphrase: of the releases' keys, if they are encrypted.

    Raises:
        SettingsError: if the folder is not a federation's.
    """
    guard = Guard(token)
    page = Page(home, guard, passphrase)
    app = FastAPI(title="fedreptile's operator", version=VERSION, docs_url=None, redoc_url=None, openapi_url=None)
    guard.protect(app)
    _show_errors(app, page)
    app.include_router(_routes(page), dependencies=[Depends(guard.allowed)])
    return app


def _routes(page: Page) -> APIRouter:
    routes = APIRouter(default_response_class=HTMLResponse)
    routes.get("/")(page.sites)
    routes.get("/campaigns")(page.campaigns)
    routes.get("/campaigns/{name}")(page.campaign)
    routes.post("/ask")(page.ask)
    routes.get("/campaigns/{name}/stop")(page.ask_to_stop)
    routes.post("/campaigns/{name}/stop")(page.stop)
    routes.get("/campaigns/{name}/resume")(page.ask_to_resume)
    routes.post("/campaigns/{name}/resume")(page.resume)
    routes.get("/releases")(page.releases)
    routes.get("/releases/{number}")(page.release)
    routes.get("/releases/{number}/all")(page.ask_for_all)

    @routes.get("/begin")
    def beginning(request: Request) -> Response:
        given = {key: request.query_params.getlist(key) for key in request.query_params}
        return page.beginning(given)

    @routes.post("/begin")
    def begin(fields: Fields) -> Response:
        return page.begin(fields)

    @routes.post("/releases/{number}/all")
    def to_all(number: int) -> Response:
        return page.promote(number, [])

    @routes.get("/releases/{number}/first")
    def ask_for_first(number: int, site: Annotated[list[str], Query()] = []) -> Response:  # noqa: B006 - copied
        return page.ask_for_first(number, site)

    @routes.post("/releases/{number}/first")
    def to_first(number: int, fields: Fields) -> Response:
        if not fields.get("site"):
            raise SettingsError("no site is ticked; tick those that try the release")
        return page.promote(number, fields["site"])

    @routes.get("/releases/{number}/withdraw")
    def ask_to_withdraw(number: int) -> Response:
        return page.ask_to_withdraw(number)

    @routes.post("/releases/{number}/withdraw")
    def take_back(number: int, fields: Fields) -> Response:
        return page.withdraw(number, fields)

    @routes.get("/page.js")
    def script() -> Response:
        return Response((Path(__file__).parent / "page.js").read_bytes(), media_type="text/javascript")

    return routes


def _show_errors(app: FastAPI, page: Page) -> None:
    """Have errors be pages too."""

    @app.exception_handler(FedreptileError)
    def ours(request: Request, error: FedreptileError) -> Response:
        parts = request.url.path.split("/")
        back = "/".join(parts[:3]) if len(parts) == 4 else "/"
        return page.error(str(error), 422 if isinstance(error, SettingsError | TrustError) else 409, back)

    @app.exception_handler(RequestValidationError)
    def no_number(_: Request, __: RequestValidationError) -> Response:
        return page.error("there is no such page", 404)


def _pointer(home: FederationHome) -> Pointer:
    try:
        with open_registry(home) as registry:
            return registry.pointer()
    except ReleaseError:
        return Pointer()


def _whole(given: Mapping[str, list[str]], key: str, least: int = 1) -> int:
    text = first_of(given, key, str(least)).strip() or str(least)
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not least <= int(text) <= MOST_ROUNDS:
        raise SettingsError(f"{key} is {text[:40]!r}; it must be a whole number from {least} to {MOST_ROUNDS}")
    return int(text)


def _count(names: list[str]) -> str:
    return shown.number_of(len(names), "site")
