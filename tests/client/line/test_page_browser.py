"""The line's page in a real browser, on real steel: from a picture that nobody knows to a model that does, and back."""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from client.home import SiteHome
from client.line.api import app_for
from client.line.learn import learn
from client.line.store import store_of
from common.pages.guard import Guard
from tests.chromium import chromium_or_skip
from tests.client.line.place import checkpoint_in, site_at
from tests.common.pages.serving import served
from tests.mirror import mirror_or_skip

GUARD = Guard("a token of this test")
KNOWN, NEW = ("crazing", "patches", "pitted_surface"), "scratches"
PATIENCE = 60_000
"""Milliseconds that a step may take on a busy machine."""


@pytest.fixture
def steel() -> Path:
    return mirror_or_skip() / "neu_steel" / "images"


@pytest.fixture
def home(tmp_path: Path, steel: Path) -> SiteHome:
    """A line that knows three defects of steel."""
    for name in KNOWN:
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for path in sorted((steel / name).iterdir())[:10]:
            shutil.copy(path, folder)
    home = site_at(tmp_path, tmp_path / "data")
    checkpoint = checkpoint_in(tmp_path, data__hold_back=0.3, data__size=32)
    store_of(home).use(learn(home, checkpoint).entry.number)
    return home


@contextmanager
def browsing(home: SiteHome, scripts: bool = True) -> Iterator[Page]:
    """Open the link that the command prints; a script that fails or is not allowed fails the test."""
    with served(app_for(home, GUARD._token)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_or_skip(), args=["--no-sandbox"])
        page = browser.new_page(java_script_enabled=scripts, viewport={"width": 1440, "height": 900})
        page.set_default_timeout(PATIENCE)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.goto(GUARD.link(int(address.rpartition(":")[2])))
        yield page
        browser.close()
        assert [fault for fault in faults if "422" not in fault] == []  # of the file that is none


def lies_there(locator: Locator) -> None:
    expect(locator).to_be_visible(timeout=PATIENCE)


def drop(page: Page, *files: Path) -> None:
    """Let files fall onto the page, as from a folder's window."""
    content = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in files]
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, data] of files)
                transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name));
            return transfer;
        }""",
        content,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def go(page: Page, name: str) -> None:
    page.get_by_role("navigation").get_by_role("link", name=name).click()


def test_a_line_teaches_itself_a_defect_uses_it_and_goes_back(home: SiteHome, steel: Path, tmp_path: Path) -> None:
    new = sorted((steel / NEW).iterdir())[:6]
    with browsing(home) as page:
        lies_there(page.get_by_role("heading", name="No pictures yet"))
        shutil.copy(new[0], home.watched / "camera.jpg")  # the page finds it by itself
        tile = page.get_by_role("list", name="Newest pictures").get_by_role("listitem").filter(has_text="camera.jpg")
        lies_there(tile.get_by_role("img"))
        expect(tile).to_contain_text("UNKNOWN" if tile.get_by_text("UNKNOWN").count() else "% sure", timeout=PATIENCE)
        assert tile.get_by_role("img").evaluate("image => image.naturalWidth") == 320

        go(page, "Label")
        page.get_by_role("checkbox", name="Pick camera.jpg").check()
        expect(page.locator("#picked")).to_have_text("1 picture")
        (tmp_path / "text.jpg").write_text("I am no picture")
        drop(page, *new[1:], tmp_path / "text.jpg")
        lies_there(page.get_by_text("text.jpg: it is no picture"))
        expect(page.get_by_role("list", name="Given pictures").get_by_role("checkbox", checked=True)).to_have_count(5)
        expect(page.locator("#picked")).to_have_text("6 pictures")  # what was picked before stays picked
        page.get_by_label("Something new? Name it:").fill(NEW)
        page.keyboard.press("Enter")
        lies_there(page.get_by_text("6 pictures are labelled “scratches”"))
        expect(page.get_by_role("list", name="Given pictures").get_by_text("labelled")).to_have_count(5)
        page.get_by_role("button", name=f"Take the label {NEW} of camera.jpg back").click()
        lies_there(page.get_by_text("The label “scratches” is taken back"))
        page.get_by_role("checkbox", name="Pick camera.jpg").check()
        page.get_by_role("complementary").get_by_role("button", name=NEW).click()
        lies_there(page.get_by_text("1 picture is labelled “scratches”"))

        go(page, "Learn")
        page.get_by_role("button", name="Learn", exact=True).click()
        lies_there(page.get_by_role("heading", name="Model 2 has learned. Use it?"))  # without a click
        lies_there(page.get_by_text("6 prove little"))
        lies_there(page.get_by_role("row", name=NEW).first)
        page.get_by_role("button", name="Ask all lines to learn it").click()
        lies_there(page.get_by_text("All lines are asked to learn “scratches”"))
        page.get_by_role("button", name="Use the new model").click()
        lies_there(page.get_by_role("heading", name="Model 2 is looking"))
        expect(tile).to_contain_text(f"labelled {NEW}")

        go(page, "History")
        page.get_by_role("link", name="Go back to model 1").click()
        lies_there(page.get_by_text("It does not know scratches"))
        page.get_by_role("button", name="Yes, use model 1").click()
        lies_there(page.get_by_text("Went back to model 1 from model 2"))
        go(page, "Live")
        lies_there(page.get_by_role("heading", name="Model 1 is looking"))
    assert len(list((tmp_path / "data" / NEW).iterdir())) == 6 and store_of(home).standing().wishes == {NEW: 6}


def test_without_scripts_the_page_shows_labels_and_goes_back_all_the_same(home: SiteHome, steel: Path) -> None:
    home.watched.mkdir()
    shutil.copy(next((steel / NEW).iterdir()), home.watched / "camera.jpg")
    learn(home)
    with browsing(home, scripts=False) as page:
        tile = page.get_by_role("list", name="Newest pictures").get_by_role("listitem")
        expect(tile).to_contain_text("camera.jpg")
        go(page, "Label")
        page.get_by_role("checkbox", name="Pick camera.jpg").check()
        page.get_by_role("button", name="crazing").click()
        lies_there(page.get_by_text("1 picture is labelled “crazing”"))
        go(page, "Learn")
        page.get_by_role("button", name="Use the new model").click()
        lies_there(page.get_by_role("heading", name="Model 2 is looking"))
