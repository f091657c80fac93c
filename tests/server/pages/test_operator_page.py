"""The operator's page over the real application: what it shows, what it does, and what it refuses."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from common.pages.guard import Guard
from common.paths import write_atomically
from server.campaigns.campaign import ALL, FAILED, ROUNDS, WAITS, Campaign, read_campaign, write_campaign
from server.home import FederationHome
from server.pages.lineage import drawn
from server.pages.page import operator_app
from server.releases.publishing import make_releases, open_registry, promote, publish, withdraw
from server.releases.registry import About
from server.service.runs import RECORD, RUNNING, STOP, STOPPED, read_run, update_run
from tests.chromium import chromium_or_skip
from tests.common.pages.serving import Browser, served
from tests.server.pages.world import NEW, NOW, SITES, World, bare, made

TOKEN = "a-token-of-this-test"
GUARD = Guard(TOKEN)
READ = ("/", "/campaigns", "/campaigns/patches", "/begin", "/releases", "/releases/2", "/page.js")
ASKED = (
    "/campaigns/patches/stop",
    "/campaigns/patches/resume",
    "/releases/2/all",
    "/releases/2/first",
    "/releases/2/withdraw",
)
CHANGING = ("/begin", "/ask", *ASKED)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return made(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A federation with one campaign that is done, and one that the gate did not let pass. Not to be changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = made(tmp_path_factory.mktemp("finished"), monkeypatch)
        world.silent = {"line-3"}
        world.campaign("patches", NEW, "grey, after the second stand", ("line-2",))
        world.silent, world.falls = set(), {"line-4"}
        world.wishes = {"line-1": {"rolled-in scale": 10}}
        world.refused = {"line-4": 2}
        world.says = lambda site: 1 if site == "line-4" else world.meant(site)
        world.campaign("scale", "rolled-in scale", "")
        yield world


@contextmanager
def browsing(home: FederationHome, passphrase: str | None = None) -> Iterator[Browser]:
    with served(operator_app(home, TOKEN, passphrase)) as address, Browser(address, GUARD) as browser:
        yield browser


@pytest.fixture(scope="module")
def reader(finished: World) -> Iterator[Browser]:
    with browsing(finished.home) as browser:
        yield browser


@contextmanager
def stranger(home: FederationHome) -> Iterator[httpx.Client]:
    with (
        served(operator_app(home, TOKEN)) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=60) as client,
    ):
        yield client


def states(home: FederationHome) -> dict[int, str]:
    with open_registry(home) as registry:
        return {one.number: registry.state(one.number) for one in registry.all()}


def second(home: FederationHome, **card: object) -> None:
    """Put a second release out, to no site."""
    publish(home, b"second", About(1, "patches", card=card), None, NOW)


def test_without_the_token_nothing_is_shown_or_done(finished: World) -> None:
    with stranger(finished.home) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "fedreptile=x"}, {"Accept": "text/html"}):
            for method, addresses in (("GET", (*READ, *ASKED)), ("POST", CHANGING)):
                for address in addresses:
                    done = client.request(method, f"{address}?csrf={GUARD.secret}", headers=headers)
                    assert done.status_code == 401, address
                    assert "steelworks" not in done.text and "line-1" not in done.text
        assert client.get(f"/enter?token={TOKEN[:-1]}").status_code == 401
    assert states(finished.home) == {1: "replaced", 2: "all"}


FORGED = {
    "no secret": ("", "ours"),
    "a wrong secret": ("0" * 64, "ours"),
    "another site's page": (GUARD.secret, "http://evil.example"),
    "another port of this machine": (GUARD.secret, "http://127.0.0.1:1"),
    "no word where it comes from": (GUARD.secret, None),
    "a page without origin": (GUARD.secret, "null"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_request_does_nothing(finished: World, reader: Browser, case: str) -> None:
    secret, origin = FORGED[case]
    sent = {} if origin is None else {"Origin": str(reader.base_url) if origin == "ours" else origin}
    for address in CHANGING:
        fields = {"class": "x", "site": ["line-1", "line-2"], "rounds": "3", "steps": "3", "reason": "x"}
        done = reader.post(f"{address}?csrf={secret}", data=fields, headers=sent)
        assert done.status_code == 403, address
    assert states(finished.home) == {1: "replaced", 2: "all"} and not (finished.home.runs / "x").exists()


def test_a_request_that_names_another_host_is_refused(reader: Browser) -> None:
    for address in READ:
        done = reader.get(address, headers={"Host": "fed.example.org"})
        assert done.status_code == 400 and "steelworks" not in done.text


@pytest.mark.parametrize(
    "address",
    [
        "/campaigns/%2e%2e",
        "/campaigns/..%2f..%2fsites.json",
        "/campaigns/%2e%2e%2fruns%2fpatches",
        "/campaigns/patches%00",
        "/campaigns/%2fetc%2fpasswd",
        "/campaigns/..%5c..%5csites.json",
        "/campaigns/none",
        "/campaigns/<script>",
        "/releases/..%2f1",
        "/releases/-1",
        "/releases/99",
        "/releases/1e1",
        "/releases/1/../../sites.json",
        "/page.js/..%2f..%2fpage.py",
        "/style.css/..%2fguard.py",
    ],
)
def test_a_name_that_leads_elsewhere_leads_nowhere(reader: Browser, address: str) -> None:
    for ending in ("", "/stop", "/all"):
        done = reader.get(httpx.URL(str(reader.base_url).rstrip("/") + address + ending))
        assert done.status_code == 404, done.text
        assert "import" not in done.text and "serials" not in done.text and "<script>" not in done.text
    for ending in ("/stop", "/resume", "/all", "/withdraw"):
        target = httpx.URL(f"{str(reader.base_url).rstrip('/')}{address}{ending}?csrf={GUARD.secret}")
        done = reader.post(target, data={"reason": "x"}, headers={"Origin": str(reader.base_url)})
        assert done.status_code == 404, done.text


def test_pages_carry_no_script_or_style_of_their_own_and_nothing_is_kept(reader: Browser) -> None:
    for address in (*READ[:-1], *ASKED):
        done = reader.get(address)
        assert done.status_code == 200, address
        assert not re.search(r"<script(?! src=)|<style| style=| on[a-z]+=|javascript:", done.text), address
        assert "script-src 'self'" in done.headers["content-security-policy"]
        assert done.headers["cache-control"] == "no-store"


def test_the_sites_are_shown_with_what_they_run_refused_and_wish(reader: Browser) -> None:
    found = reader.see("/")
    assert "3 of 4 sites are online" in found and "line-4 ○ not online" in found
    assert found.count("runs release 2") == 3 and "runs release 1" in found
    assert "Refused release 2: its own check found it worse" in found
    assert "line-1 asks for a campaign: rolled-in scale , 10 pictures. Begin a campaign" in found
    assert "ends in 8 days" in found and "certificate 299 days" in found and "hot-rolled" in found
    assert 'href="/begin?class=rolled-in%20scale"' in reader.get("/").text
    form = reader.get("/begin?class=rolled-in%20scale").text
    assert 'value="rolled-in scale"' in form and "has 10 pictures of it" in form
    assert len(re.findall(r'name="site" value="[^"]*"[^>]* checked', form)) == 4


def test_the_sites_are_asked_anew_what_they_have_and_wish(world: World) -> None:
    with browsing(world.home) as browser:
        assert "being asked" not in browser.see("/")
        browser.submit("/ask")
        assert read_run(world.home.runs / "asking").settings["run.rounds"] == 0
        assert "Sites are being asked what they have and wish" in browser.see("/")
        assert "run 'asking' is wanted already" in browser.submit("/ask", 409)


def test_a_wish_that_is_met_is_not_asked_for_again(world: World) -> None:
    world.says = lambda site: 1 if site == "line-1" else world.meant(site)
    world.campaign("patches", NEW, "", ("line-2",))
    with browsing(world.home) as browser:
        found = browser.see("/")
        assert "patches , 10 pictures. Release 2 is on its way" in found and "Begin a campaign" not in found


def test_a_campaign_is_shown_with_phases_rounds_gate_and_roll_out(reader: Browser) -> None:
    found = reader.see("/campaigns/patches")
    assert "grey, after the second stand" in found and "✓ Passed" in found
    assert found.count("done,") == 7 and "4 of 4 sites run release 2" in found
    assert "line-2 has it goes first" in found and "line-1 has it with all" in found
    assert "line-3 error-reply: code 100: the site could not do it" in found
    assert "10 of 10 pictures recognised" in found and "10 pictures prove little" in found
    assert "As at a site that never saw it: 9 of 10" in found
    assert "crazing 87.5 % 91.7 %" in found and "line-1 worst site 87.5 %" in found
    svg = reader.get("/campaigns/patches").text
    assert "the true part lies between 72 and 100 per cent" in svg
    failed = reader.see("/campaigns/scale")
    assert "✕ Not passed" in failed and "'scratches' falls by 16.7 points" in failed
    assert "Not released." in failed and "✕ Check ended here" in failed and "Release not reached" in failed
    listed = reader.see("/campaigns")
    assert listed.index("scale") < listed.index("patches") and "failed" in listed


def test_releases_are_shown_with_state_parent_card_and_gate(reader: Browser) -> None:
    found = reader.see("/releases")
    assert "All 4 sites are given release 2." in found
    assert "Release 2 patches all sites" in found and "from release 1 · campaign patches" in found
    assert "✓ check passed" in found and "! never checked" in found
    one = reader.see("/releases/2")
    assert "Runs at line-1, line-2 and line-3." in one and "Refused by line-4" in one
    assert "✓ Passed" in one and "given to line-2" in one and "given to all sites" in one
    assert "learned at line-1, line-2 and line-4" in one
    assert "the four classes that all lines know" in reader.see("/releases/1")


def test_a_campaign_is_begun_by_the_form(world: World) -> None:
    fields: dict[str, str | list[str]] = {"class": "Rote Flecken", "rounds": "2", "steps": "4"}
    fields |= {"description": "at the coiler", "site": ["line-1", "line-3"]}
    with browsing(world.home) as browser:
        told = browser.submit("/begin", **fields, first=["line-3"])
        assert "Campaign rote-flecken: at the coiler" in told and "waits for its turn" in told
        assert "Campaign rote-flecken-2: at the coiler" in browser.submit("/begin", **fields)
    values = read_run(world.home.runs / "rote-flecken").settings
    assert (values["campaign.class"], values["campaign.sites"]) == ("Rote Flecken", "line-1,line-3")
    assert (values["campaign.canary"], values["campaign.description"]) == ("line-3", "at the coiler")
    assert (values["run.rounds"], values["inner.steps"], values["campaign.release"]) == (2, 4, 1)


GOOD: dict[str, str | list[str]] = {"class": "dent", "site": ["line-1", "line-2"], "rounds": "3", "steps": "3"}
BAD: dict[str, tuple[dict[str, str | list[str]], str]] = {
    "no class": ({"class": " "}, "--class is empty"),
    "no site": ({"site": []}, "no site is ticked"),
    "one site": ({"site": ["line-1"]}, "at least 2 sites"),
    "a site that is none": ({"site": ["line-1", "../line-2"]}, "is not enrolled"),
    "a first site that is none": ({"first": ["line-9"]}, "'line-9' is not enrolled"),
    "no number of rounds": ({"rounds": "many"}, "rounds is 'many'"),
    "too many steps": ({"steps": "1000000000"}, "steps is '1000000000'"),
    "a number of another script": ({"steps": "٣"}, "it must be a whole number"),
    "a name that leads elsewhere": ({"name": "../../x"}, "the run's name is '../../x'"),
    "a description that steers terminals": ({"description": "a\x1b[2J"}, "the description holds control"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_form_of_which_nothing_can_come_is_shown_again_with_what_is_wrong(world: World, case: str) -> None:
    changed, why = BAD[case]
    with browsing(world.home) as browser:
        told = browser.submit("/begin", 422, **{**GOOD, **changed})
        assert "Not begun." in told and why in told
    assert not list(world.home.path.rglob(RECORD))


def test_a_form_that_is_too_large_or_none_is_refused(world: World) -> None:
    with browsing(world.home) as browser:
        assert "too large" in browser.submit("/begin", 413, **{"class": "x" * 70_000})
        address, headers = f"/begin?csrf={GUARD.secret}", {"Origin": str(browser.base_url)}
        assert browser.post(address, content=b"\xff\xfe=\xff", headers=headers).status_code == 422


def test_without_the_server_a_campaign_is_not_begun_and_the_page_says_what_to_do(world: World) -> None:
    (world.home.run / "superlink.json").unlink()
    with browsing(world.home) as browser:
        assert "start it with 'fedreptile-server up'" in browser.submit("/begin", 422, **GOOD)
        assert "The server does not run." in browser.see("/")


def test_what_others_have_named_is_text_and_nothing_else(world: World) -> None:
    evil = '"><script>alert(1)</script>{{ 7 * 7 }}'
    world.begin("evil", evil, evil)
    second(world.home, **{"class": evil, "note": evil})
    write_campaign(world.home.runs / "evil", Campaign(left_out={evil: evil}, reason=evil).come_to(FAILED, NOW))
    with browsing(world.home) as browser:
        for address in ("/campaigns", "/campaigns/evil", "/releases", "/releases/2", f"/begin?class={evil}"):
            text = browser.get(address).text
            assert "<script>" not in text and "&lt;script&gt;" in text and "{{ 7 * 7 }}" in text, address


def test_a_campaign_is_stopped_and_goes_on_after_a_question(world: World) -> None:
    world.begin("dents", "dent", "")
    with browsing(world.home) as browser:
        assert "Stop campaign dents?" in browser.see("/campaigns/dents/stop")
        assert not (world.home.runs / "dents" / STOP).exists()
        assert "is being stopped" in browser.submit("/campaigns/dents/stop")
        assert (world.home.runs / "dents" / STOP).exists()
        assert "is wanted already" in browser.submit("/campaigns/dents/resume", 409)
        update_run(world.home, read_run(world.home.runs / "dents"), state=STOPPED)
        write_campaign(world.home.runs / "dents", Campaign().come_to(ROUNDS, NOW))
        assert "■ Learn stopped here" in browser.see("/campaigns/dents")
        assert "It goes on where it was: Learn." in browser.see("/campaigns/dents/resume")
        assert "waits for its turn" in browser.submit("/campaigns/dents/resume")
        assert read_run(world.home.runs / "dents").state == "wanted"
        write_campaign(world.home.runs / "dents", Campaign(reason="the gate").come_to(FAILED, NOW))
        assert "the campaign has failed: the gate" in browser.submit("/campaigns/dents/resume", 409)


def test_a_release_is_tried_given_to_all_and_taken_back_after_a_question(world: World) -> None:
    second(world.home)
    with browsing(world.home) as browser:
        assert "no site has it yet" in browser.see("/releases/2")
        asked = browser.see("/releases/2/first?site=line-1&site=line-2")
        assert "2 sites get release 2 to try it: line-1 and line-2." in asked
        assert "For line-3 and line-4 nothing changes." in asked and states(world.home)[2] == "published"
        told = browser.submit("/releases/2/first", site=["line-1", "line-2"])
        assert "first sites try it: line-1 and line-2" in told and states(world.home)[2] == "canary"
        assert "2 sites go back: line-1 and line-2." in browser.see("/releases/2/withdraw")
        assert "4 sites get release 2: line-1, line-2, line-3 and line-4." in (asked := browser.see("/releases/2/all"))
        assert "No check has judged it" in asked
        assert states(world.home)[2] == "canary"
        assert "Release 2 all sites" in browser.submit("/releases/2/all")
        assert states(world.home) == {1: "replaced", 2: "all"}
        asked = browser.see("/releases/2/withdraw")
        assert "4 sites go back" in asked and "with the content of release 1" in asked
        assert "the reason is empty" in browser.submit("/releases/2/withdraw", 422, reason=" ")
        assert "Release 3 all sites" in browser.submit("/releases/2/withdraw", reason="false alarms", to="1")
        assert states(world.home) == {1: "replaced", 2: "withdrawn", 3: "all"}
        assert "withdrawn: false alarms; release 3 took its place" in browser.see("/releases/2")
        assert "is withdrawn already" in browser.see("/releases/2/withdraw")


def test_what_cannot_be_done_to_a_release_is_said_and_changes_nothing(world: World) -> None:
    second(world.home)
    with browsing(world.home) as browser:
        assert "'line-9' is not enrolled" in browser.see("/releases/2/first?site=line-9", 409)
        assert "'line-9' is not enrolled" in browser.submit("/releases/2/first", 409, site=["line-9"])
        assert "no site is ticked" in browser.submit("/releases/2/first", 422)
        assert 'href="/releases/2">Back' in browser.get("/releases/2/first?site=line-9").text
        browser.submit("/releases/2/all")
        assert "numbers never go down" in browser.submit("/releases/1/all", 409)
        for address in ("/releases/1/all", "/releases/1/first", "/releases/2/first?site=line-1"):
            assert "numbers never go down" in browser.see(address, 409)
        assert "to is 'x'" in browser.submit("/releases/2/withdraw", 422, reason="r", to="x")
        assert "release 2 is no older one" in browser.submit("/releases/2/withdraw", 422, reason="r", to="2")
        assert (
            "there is no release 7"
            in browser.post(
                f"/releases/7/withdraw?csrf={GUARD.secret}",
                data={"reason": "r"},
                headers={"Origin": str(browser.base_url)},
            ).text
        )
    assert states(world.home) == {1: "replaced", 2: "all"}


def test_locked_keys_ask_for_their_passphrase_before_anything_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = made(tmp_path, monkeypatch).home
    shutil.rmtree(home.releases)
    make_releases(home, "secret", NOW)
    publish(home, b"first", About(), "secret", NOW)
    with browsing(home) as browser:
        assert "begun without their passphrase" in browser.submit("/releases/1/all", 422)
        assert "begun without their passphrase" in browser.submit("/releases/1/withdraw", 422, reason="r")
    assert states(home) == {1: "published"}
    with browsing(home, "secret") as browser:
        browser.submit("/releases/1/all")
    assert states(home) == {1: "all"}


def test_an_empty_federation_says_what_comes_next(tmp_path: Path) -> None:
    with browsing(bare(tmp_path)) as browser:
        assert "No site belongs to this federation yet" in browser.see("/")
        assert "No campaign yet" in browser.see("/campaigns")
        assert "fedreptile-server release init" in browser.see("/releases")
        assert "No site belongs to this federation yet" in browser.see("/begin")


def test_the_drawing_sets_what_was_withdrawn_aside(world: World) -> None:
    second(world.home)
    promote(world.home, 2, [], None, NOW)
    withdraw(world.home, 2, "worse", None, NOW)
    publish(world.home, b"fourth", About(3), None, NOW)
    rows = [
        {
            "number": number,
            "parent": parent,
            "word": "",
            "colour": "",
            "campaign": "",
            "card": {"class": "", "again": ""},
        }
        for number, parent in ((1, None), (2, 1), (3, 1), (4, 3))
    ]
    found = drawn(rows)
    one, two, three, four = found.boxes
    assert one.y == two.y < three.y == four.y and one.x < two.x < three.x < four.x
    assert len(found.paths) == 3 and found.height > three.y
    with browsing(world.home) as browser:
        text = browser.get("/releases").text
        assert text.count("<path") == 3 and text.count("<rect") == 4


def test_the_command_serves_the_page_to_its_owner_and_takes_the_token_with_it(world: World) -> None:
    code = "import sys, server.cli; assert 'torch' not in sys.modules; server.cli.main()"
    typed = [sys.executable, "-c", code, "ui", "--home", str(world.home.path), "--port", "0"]
    with subprocess.Popen(typed, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"}) as process:
        assert process.stdout is not None
        link = process.stdout.readline().rpartition(" ")[2].strip()
        file = world.home.run / "ui.token"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_text().strip() in link
        with httpx.Client(trust_env=False, timeout=60, follow_redirects=True) as client:
            assert "line-1" in client.get(link).text
            given = {"Authorization": f"Bearer {file.read_text().strip()}"}
            assert httpx.get(link.partition("/enter")[0] + "/releases", headers=given, trust_env=False).is_success
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130) and not file.exists()


@contextmanager
def window(home: FederationHome) -> Iterator[tuple[Page, Callable[[str], str]]]:
    """Open a browser that was let in; the second gives the whole address of a page."""
    program = chromium_or_skip()
    with served(operator_app(home, TOKEN)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(GUARD.link(int(address.rpartition(":")[2])))
        yield page, lambda path: address + path
        assert not faults
        browser.close()


def test_an_operator_goes_from_a_wish_to_a_campaign_and_a_release_in_a_browser(world: World, tmp_path: Path) -> None:
    world.campaign("patches", NEW, "grey, after the second stand", ("line-2",))
    second(world.home)
    with window(world.home) as (page, at):
        expect(page.get_by_role("heading", name="line-4")).to_be_visible()
        page.get_by_role("link", name="Begin a campaign").click()
        expect(page.get_by_label("New class")).to_have_value(NEW)
        page.get_by_label("Rounds").fill("2")
        page.get_by_label("line-4 takes part").uncheck()
        page.get_by_label("line-3 goes first").check()
        page.get_by_role("button", name="Begin").click()
        expect(page).to_have_url(at("/campaigns/patches-2"))
        values = read_run(world.home.runs / "patches-2").settings
        assert (values["campaign.sites"], values["campaign.canary"]) == ("line-1,line-2,line-3", "line-3")
        goes_on(page, world.home)
        page.goto(at("/"))
        page.get_by_role("link", name="It is under way").click()
        page.get_by_role("link", name="Stop").click()
        page.get_by_role("button", name="Stop it").click()
        expect(page.get_by_text("is being stopped")).to_be_visible()
        page.get_by_role("link", name="Releases").click()
        page.get_by_role("link", name="Release 3", exact=True).click()
        page.get_by_role("link", name="Give it to all sites").click()
        expect(page.get_by_text("4 sites get release 3")).to_be_visible()
        page.get_by_role("button", name="Give it to all 4 sites").click()
        expect(page.get_by_role("heading", name="Release 3 all sites")).to_be_visible()
        page.goto(at("/campaigns/patches"))
        expect(page.get_by_text("✓ Passed")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.screenshot(path=tmp_path / "campaign.png", full_page=True)
    assert states(world.home)[3] == "all"


def goes_on(page: Page, home: FederationHome) -> None:
    """See a campaign go on without loading its page again."""
    page.evaluate("window.untouched = true")
    folder = home.runs / "patches-2"
    update_run(home, read_run(folder), state=RUNNING)
    done = read_campaign(home.runs / "patches")
    assert done is not None
    campaign = Campaign(verdict=done.verdict, release=2).come_to(ALL, NOW)
    for site in SITES:
        campaign = campaign.with_site(site, ALL, WAITS, 1, NOW)
    write_campaign(folder, campaign)
    write_atomically(folder / "waiting", b"waiting for line-1 to adopt release 2")
    expect(page.get_by_text("waiting for line-1 to adopt release 2")).to_be_visible(timeout=20_000)
    expect(page.get_by_text("0 of 4 sites run release 2")).to_be_visible()
    assert page.evaluate("window.untouched")
