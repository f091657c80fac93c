"""Who may see a page that this machine serves: every way in, and every refusal."""

import itertools
from collections.abc import Iterator

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request

from common.pages.guard import HEADERS, MOST_BYTES_OF_FORM, Guard, form
from tests.common.pages.serving import PAGE, Browser, served

TOKEN = "a token of this test"
GUARD = Guard(TOKEN)


def app() -> FastAPI:
    """A page to look at, a form to send, and a place where something goes wrong."""
    made = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    GUARD.protect(made)
    routes = APIRouter(dependencies=[Depends(GUARD.allowed)])

    @routes.get("/")
    def look() -> str:
        return "seen"

    @routes.post("/do")
    async def do(request: Request) -> dict[str, list[str]]:
        return await form(request)

    @routes.get("/wrong")
    def wrong() -> None:
        raise HTTPException(409, "<script>it</script>")

    made.include_router(routes)
    return made


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(app()) as found:
        yield found


@pytest.fixture
def stranger(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, trust_env=False) as client:
        yield client


@pytest.fixture
def browser(address: str) -> Iterator[Browser]:
    with Browser(address, GUARD) as found:
        yield found


def test_the_link_lets_a_browser_in_and_leads_to_the_first_page(stranger: httpx.Client) -> None:
    answer = stranger.get(GUARD.link(stranger.base_url.port or 0))
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert stranger.get("/").text == '"seen"'


@pytest.mark.parametrize("token", ["", "another", TOKEN + "x", TOKEN[:-1], "é"])
def test_a_wrong_link_lets_nobody_in(stranger: httpx.Client, token: str) -> None:
    answer = stranger.get("/enter", params={"token": token})
    assert answer.status_code == 401 and "set-cookie" not in answer.headers
    assert "needs its link" in answer.text
    assert stranger.get("/").status_code == 401


def test_without_token_and_cookie_programs_and_people_are_told_so(stranger: httpx.Client) -> None:
    said = stranger.get("/")
    assert said.status_code == 401 and said.headers["WWW-Authenticate"] == "Bearer"
    assert said.json() == {"detail": "the token is missing or wrong"}
    shown = stranger.get("/", headers=PAGE)
    assert shown.status_code == 401 and "Open the whole link" in shown.text


@pytest.mark.parametrize("given", ["another", TOKEN + "x", GUARD.secret])
def test_a_wrong_token_or_cookie_is_as_good_as_none(stranger: httpx.Client, given: str) -> None:
    stranger.headers["Authorization"] = f"Bearer {given}"
    stranger.cookies.set(GUARD._cookie, given)
    assert stranger.get("/").status_code == 401
    assert stranger.post("/do", params={"csrf": GUARD.secret}).status_code == 401


def test_two_pages_of_one_machine_do_not_take_each_others_cookies(browser: Browser) -> None:
    other = Guard("another token")
    assert other._cookie != GUARD._cookie and other.secret != GUARD.secret
    with httpx.Client(base_url=browser.base_url, trust_env=False) as client:
        client.cookies.set(other._cookie, other._derived("cookie"))
        assert client.get("/").status_code == 401


def test_a_form_of_our_own_page_is_taken(browser: Browser) -> None:
    origin = {"Origin": str(browser.base_url)}
    sent = browser.post(f"/do?csrf={GUARD.secret}", data={"a": ["1", "ü"], "b": ""}, headers=origin)
    assert sent.json() == {"a": ["1", "ü"], "b": [""]}
    assert browser.post("/do", headers={**origin, "X-CSRF": GUARD.secret}).status_code == 200


@pytest.mark.parametrize("secret", ["", "another", TOKEN, GUARD.secret[:-1]])
def test_a_form_without_our_secret_is_refused(browser: Browser, secret: str) -> None:
    origin = {"Origin": str(browser.base_url)}
    assert browser.post(f"/do?csrf={secret}", headers=origin).status_code == 403
    assert browser.post("/do", headers={**origin, "X-CSRF": secret}).status_code == 403


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", "http://localhost"])
def test_a_form_of_another_sites_page_is_refused_though_it_has_cookie_and_secret(
    browser: Browser, origin: str | None
) -> None:
    headers = {"Origin": origin} if origin else {}
    answer = browser.post(f"/do?csrf={GUARD.secret}", headers=headers)
    assert answer.status_code == 403 and "must come from a page of this server" in answer.text


def test_a_program_with_the_token_needs_no_secret(stranger: httpx.Client) -> None:
    stranger.headers["Authorization"] = f"Bearer {TOKEN}"
    assert stranger.post("/do", data={"a": "1"}).json() == {"a": ["1"]}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.0.7:8765", ""])
def test_a_name_that_another_site_has_led_here_is_refused(browser: Browser, host: str) -> None:
    for path in ("/", "/enter?token=" + TOKEN, "/style.css"):
        answer = browser.get(path, headers={"Host": host})
        assert answer.status_code == 400 and "set-cookie" not in answer.headers


def test_every_answer_says_what_a_browser_may_do_with_it(browser: Browser, stranger: httpx.Client) -> None:
    answers = [
        browser.get("/"),
        browser.get("/wrong"),
        stranger.get("/"),
        stranger.get("/", headers={"Host": "evil.example"}),
        stranger.get("/style.css"),
        stranger.get("/nowhere"),
        stranger.get("/enter"),
    ]
    assert [answer.status_code for answer in answers] == [200, 409, 401, 400, 200, 404, 401]
    for answer in answers:
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy


def test_what_an_error_says_is_no_markup(browser: Browser) -> None:
    answer = browser.get("/wrong")
    assert "<script>" not in answer.text and "&lt;script&gt;it" in answer.text
    assert browser.get("/wrong", headers={"Accept": "*/*"}).json() == {"detail": "<script>it</script>"}


def test_a_form_that_is_too_large_or_none_is_refused(stranger: httpx.Client) -> None:
    stranger.headers["Authorization"] = f"Bearer {TOKEN}"
    assert stranger.post("/do", content=b"a=" + b"x" * MOST_BYTES_OF_FORM).status_code == 413
    endless = itertools.repeat(b"x" * 1024, 100)  # of a length that is not stated
    assert stranger.post("/do", content=endless).status_code == 413
    assert stranger.post("/do", content=b"a=\xff").status_code == 422
    assert stranger.post("/do", content=b"&".join(b"a%d=1" % number for number in range(9000))).status_code in (
        413,
        422,
    )
