"""The line's page over real pictures, models and processes: what it shows, what it does, and all that it refuses."""

import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from client.data.indexed import Pixels, as_input
from client.data.sites import read_new
from client.home import SiteHome
from client.line import api, desk, page, watch
from client.line.api import app_for
from client.line.learn import learn
from client.line.predict import Loaded
from client.line.store import About, store_of
from client.line.watch import Folder, Recent
from client.model import Prediction, read_model
from common.errors import SettingsError
from common.pages.guard import Guard
from tests.client.line.place import checkpoint_in, in_use, model_of, site_at
from tests.client.line.test_label import bomb, tree
from tests.common.pages.serving import Browser, served, words

TOKEN = "a token of this test"
GUARD = Guard(TOKEN)
LOOKS = ("/", "/label", "/learn", "/history", "/back?to=1", "/picture/" + "0" * 32)
ACTS = ("/drop", "/clear", "/label", "/unlabel", "/learn", "/decide", "/wish", "/back")
DIGIT = "digit-4"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, digit_folders: Path) -> Path:
    """The models of a site that has learned four of line-1's five digits."""
    folder = tmp_path_factory.mktemp("first")
    data = Path(shutil.copytree(digit_folders / "line-1", folder / "data"))
    shutil.rmtree(data / DIGIT)
    home = site_at(folder, data)
    store_of(home).use(learn(home, checkpoint_in(folder, data__hold_back=0.3)).entry.number)
    return home.models


@pytest.fixture
def home(tmp_path: Path, digit_folders: Path, first: Path) -> SiteHome:
    """Such a site; the pictures of the fifth digit lie in ``new`` beside it."""
    data = Path(shutil.copytree(digit_folders / "line-1", tmp_path / "data"))
    shutil.move(data / DIGIT, tmp_path / "new")
    home = site_at(tmp_path, data)
    shutil.copytree(first, home.models)
    return home


@contextmanager
def browsing(home: SiteHome) -> Iterator[Browser]:
    with served(app_for(home, TOKEN)) as address, Browser(address, GUARD) as browser:
        yield browser


def new_pictures(home: SiteHome) -> list[Path]:
    return sorted((home.path.parent / "new").iterdir())


def watched(home: SiteHome, *pictures: Path) -> None:
    """Copy pictures into the watched folder, the last as the newest."""
    home.watched.mkdir(exist_ok=True)
    for place, path in enumerate(pictures):
        there = home.watched / path.name
        shutil.copyfile(path, there)
        os.utime(there, (1_700_000_000 + place,) * 2)


def tiles(browser: Browser, path: str = "/") -> list[str]:
    """Return the words of each picture that is shown."""
    return [words(one) for one in re.findall(r'<li class="tile.*?</li>', browser.get(path).text, re.DOTALL)]


def numbers(browser: Browser, path: str = "/label") -> list[str]:
    return re.findall(r'name="picture" value="(\w+)"', browser.get(path).text)


def data_of(home: SiteHome) -> Path:
    return Path(home.config().data)


def learned(browser: Browser) -> str:
    """Press the button, wait, and return what the page says then."""
    browser.submit("/learn")
    for _ in range(600):
        if "Learning …" not in (said := browser.see("/learn")):
            return said
        time.sleep(0.1)
    raise AssertionError("it learns for ever")


def with_threshold_between(home: SiteHome, known: Path, strange: Path) -> None:
    """Have the line use its model with a threshold for which one picture is unknown and the other is not."""
    store = store_of(home)
    current = store.current()
    assert current is not None
    model = read_model(current.path)
    near, far = (
        model.predict(as_input(read_new(path, model.settings.data)[1], None))[0].distance for path in (known, strange)
    )
    assert near < far
    store.use(store.add(replace(model, threshold=(near + far) / 2), About("adapted")).number)


# ------------------------------------------------------------------------------------------------------- live


def test_the_newest_pictures_are_shown_with_what_the_model_says_of_each(home: SiteHome) -> None:
    known = sorted((data_of(home) / "digit-2").iterdir())[0]
    strange = home.path / "strange.png"
    Image.fromarray((np.indices((8, 8))[0] % 2 * 255).astype(np.uint8)).save(strange)
    watched(home, known, strange)
    with_threshold_between(home, known, strange)
    with browsing(home) as browser:
        assert "Model 2 is looking It knows 4 classes" in browser.see("/")
        newest, oldest = tiles(browser)
        assert "UNKNOWN nearest: digit-" in newest and "strange.png" in newest and "What is it?" in newest
        assert re.search(r"digit-2 (only )?\d+ % sure", oldest) and known.name in oldest
        assert browser.get("/").text.count('class="tile unknown"') == 1  # in colour too
        shutil.copyfile(new_pictures(home)[0], home.watched / "later.png")
        assert "later.png" in tiles(browser)[0]


def test_what_cannot_be_read_is_said_and_the_page_stands(home: SiteHome) -> None:
    good = new_pictures(home)[0]
    watched(home, good)
    bomb(home.watched / "bomb.png")
    (home.watched / "text.png").write_text("I am no picture")
    (home.watched / "empty.png").touch()
    (home.watched / "half.png").write_bytes(good.read_bytes()[:70])
    (home.watched / "notes.txt").write_text("no picture by its name")
    (home.watched / ".hidden.png").write_bytes(good.read_bytes())
    with browsing(home) as browser:
        found = " | ".join(tiles(browser))
        assert found.count("Cannot be read") == 4 and "notes" not in found and "hidden" not in found
        for why, name in (
            ("far too many pixels", "bomb"),
            ("it is no picture", "text"),
            ("is empty, or still being written", "empty"),
            ("cut off or damaged, or still being written", "half"),
        ):
            assert re.search(rf"Cannot be read [^|]*{why} [\d:]+ · {name}\.png", found), found
        (home.watched / "half.png").write_bytes(good.read_bytes())  # and now it is whole
        (whole,) = [one for one in tiles(browser) if "half.png" in one]
        assert "Cannot be read" not in whole


def test_a_file_that_is_too_large_is_not_read(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    watched(home, new_pictures(home)[0])
    monkeypatch.setattr(watch, "MOST_BYTES", 20)
    with browsing(home) as browser:
        assert "Cannot be read its file has more than" in tiles(browser)[0]


def test_links_are_not_followed_wherever_they_lead(home: SiteHome, tmp_path: Path) -> None:
    secret = new_pictures(home)[0]
    watched(home, new_pictures(home)[1])
    (home.watched / "out.png").symlink_to(secret)
    (home.watched / "folder.png").symlink_to(secret.parent)
    os.mkfifo(home.watched / "pipe.png")
    with browsing(home) as browser:
        assert len(tiles(browser)) == 1
        (number,) = numbers(browser)
        there = home.watched / new_pictures(home)[1].name
        there.unlink()
        there.symlink_to(secret)  # exchanged after the page has named it
        assert "cannot be labelled: it is gone" in browser.submit("/label", 409, picture=number, name="crack")
        assert not (data_of(home) / "crack").exists()


def test_pictures_are_sent_by_number_drawn_anew_and_nothing_else_is(home: SiteHome) -> None:
    watched(home, new_pictures(home)[0])
    with browsing(home) as browser:
        (number,) = numbers(browser)
        answer = browser.get(f"/picture/{number}")
        assert answer.headers["content-type"] == "image/jpeg" and answer.content[:3] == b"\xff\xd8\xff"
        assert answer.content != new_pictures(home)[0].read_bytes()
        never_shown = watch.plain_file(new_pictures(home)[1])
        assert never_shown is not None
        for other in (
            never_shown.number,
            "0" * 32,
            new_pictures(home)[0].name,
            "..%2F..%2Fsite.toml",
            "%2e%2e/%2e%2e/site.toml",
            str(home.config_file).replace("/", "%2F"),
            "....//site.toml",
            "a%00b",
        ):
            assert browser.get(f"/picture/{other}").status_code == 404, other


def test_names_of_files_and_classes_are_no_markup(home: SiteHome) -> None:
    home.watched.mkdir()
    shutil.copyfile(new_pictures(home)[0], home.watched / "<img src=x onerror=alert(1)>.png")
    (data_of(home) / "<b>bold").mkdir()
    shutil.copy(new_pictures(home)[1], data_of(home) / "<b>bold")
    with browsing(home) as browser:
        for path in ("/", "/label", "/learn"):
            assert not {"<img src=x", "<b>bold"} & set(re.findall(r"<img src=x|<b>bold", browser.get(path).text))
        assert "<img src=x onerror" in browser.see("/") and "<b>bold" in browser.see("/label")


def test_a_picture_is_predicted_once_until_it_or_the_model_changes(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    predict = Loaded.predict

    def counted(self: Loaded, pixels: Pixels) -> Prediction:
        asked.append(1)
        return predict(self, pixels)

    monkeypatch.setattr(Loaded, "predict", counted)
    watched(home, *new_pictures(home)[:3])
    store = store_of(home)
    with browsing(home) as browser:
        for _ in range(3):
            browser.see("/")
            browser.see("/label")
        assert len(asked) == 3
        shutil.copyfile(new_pictures(home)[5], home.watched / new_pictures(home)[0].name)
        browser.see("/")
        assert len(asked) == 4
        store.use(store.add(read_model(store.entry(1).path), About("adapted")).number)
        assert "Model 2 is looking" in browser.see("/")
        assert len(asked) == 7


def test_of_very_many_pictures_the_newest_are_shown_and_the_folder_is_listed_when_it_changes(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.watched.mkdir()
    content = new_pictures(home)[0].read_bytes()
    for number in range(300):
        path = home.watched / f"{number}.png"
        path.write_bytes(content)
        os.utime(path, (1_700_000_000 + number,) * 2)
    os.utime(home.watched, (1_700_000_000,) * 2)
    listed: list[int] = []
    now, newest = [0.0], watch._newest

    def counted(folder: Path, count: int) -> tuple[list[watch.Seen], int]:
        listed.append(1)
        now[0] += 1
        return newest(folder, count)

    monkeypatch.setattr(watch, "_newest", counted)
    folder = Folder(home.watched, lambda: now[0])
    assert [one.name for one in folder.newest(5)] == [f"{number}.png" for number in range(299, 294, -1)]
    folder.newest(5)
    assert len(listed) == 1
    (home.watched / "298.png").unlink()
    os.utime(home.watched, (1_700_000_000,) * 2)  # as if nothing had come or gone
    assert [one.name for one in folder.newest(5)] == ["299.png", "297.png", "296.png", "295.png"]
    now[0] += watch.LISTING_SECONDS + 1
    assert len(folder.newest(5)) == 5 and len(listed) == 2
    (home.watched / "new.png").write_bytes(content)
    assert folder.newest(5)[0].name == "new.png" and len(listed) == 3
    monkeypatch.setattr(watch, "MANY", 300)  # where listing takes long, it is not done all the time
    (home.watched / "newer.png").write_bytes(content)
    assert folder.newest(5)[0].name == "newer.png" and len(listed) == 4
    (home.watched / "newest.png").write_bytes(content)
    now[0] += watch.REST - 1
    assert folder.newest(5)[0].name == "newer.png" and len(listed) == 4
    now[0] += 1
    assert folder.newest(5)[0].name == "newest.png" and len(listed) == 5
    with browsing(home) as browser:
        assert len(tiles(browser)) == page.SHOWN


def test_what_is_remembered_has_an_end() -> None:
    recent: Recent[int, int] = Recent(3)
    for number in range(5):
        recent.put(number, number)
        recent.get(2)
    assert len(recent) == 3 and recent.get(2) == 2 and recent.get(0) is None


def test_a_folder_to_watch_must_be_there(home: SiteHome, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no folder .*name another with --watch"):
        app_for(home, TOKEN, tmp_path / "nowhere")
    with served(app_for(home, TOKEN, tmp_path / "new")) as address, Browser(address, GUARD) as browser:
        assert len(tiles(browser)) == 12


def test_without_a_model_the_page_says_how_to_get_one(tmp_path: Path, digit_folders: Path) -> None:
    home = site_at(tmp_path, digit_folders / "line-1")
    watched(home, next((digit_folders / "line-1" / DIGIT).iterdir()))
    with browsing(home) as browser:
        for path in ("/", "/learn", "/history"):
            assert "comes by itself with the next release" in browser.see(path)
        assert "% sure" not in browser.see("/") and len(tiles(browser)) == 1
        assert "digit-0 12" in browser.see("/label")


def test_a_model_that_is_damaged_is_said(home: SiteHome) -> None:
    store_of(home).entry(1).path.write_bytes(b"no model")
    with browsing(home) as browser:
        assert "No model can answer" in browser.see("/") and "cannot be read as a site's model" in browser.see("/learn")


def test_a_model_that_cannot_tell_unknown_pictures_is_said(tmp_path: Path, digit_folders: Path) -> None:
    home = site_at(tmp_path, digit_folders / "line-1")
    in_use(home, replace(model_of(checkpoint_in(tmp_path), "a", "b"), threshold=None))
    with browsing(home) as browser:
        assert "cannot tell unknown pictures" in browser.see("/")


# ------------------------------------------------------------------------------------------- who may, who not


def test_nothing_is_shown_or_done_without_the_token(home: SiteHome) -> None:
    before = tree(home.path.parent)
    with served(app_for(home, TOKEN)) as address, httpx.Client(base_url=address, trust_env=False) as stranger:
        for path in LOOKS:
            assert stranger.get(path).status_code == 401
        for path in ACTS:
            assert stranger.post(f"{path}?csrf={GUARD.secret}", headers={"Origin": address}).status_code == 401
        answers = [stranger.get(path, headers={"Host": "evil.example"}) for path in LOOKS]
        assert {answer.status_code for answer in answers} == {400}
    assert tree(home.path.parent) - before <= {"site/watched"}


def test_another_sites_page_cannot_do_anything(home: SiteHome) -> None:
    watched(home, new_pictures(home)[0])
    with browsing(home) as browser:
        (number,) = numbers(browser)
        before, model = tree(home.path.parent), store_of(home).history()
        fields = {"picture": number, "name": "crack", "to": "1", "number": "1", "what": "discard", "class": "digit-0"}
        own = {"Origin": str(browser.base_url)}
        for path in ACTS:
            for address, headers in (
                (path, own),
                (f"{path}?csrf=guessed", own),
                (f"{path}?csrf={GUARD.secret}", {"Origin": "http://evil.example"}),
                (f"{path}?csrf={GUARD.secret}", {}),
            ):
                answer = browser.post(address, data=fields, headers=headers)
                assert answer.status_code == 403 and "That did not work" in answer.text
            assert browser.get(f"{path}?csrf={GUARD.secret}&to=1").status_code in (
                200,
                404,
                405,
            )  # looks change nothing
        assert tree(home.path.parent) == before and store_of(home).history() == model


def test_the_pages_ask_nothing_of_the_internet(home: SiteHome) -> None:
    watched(home, new_pictures(home)[0])
    with browsing(home) as browser:
        for path in ("/", "/label", "/learn", "/history", "/back?to=1", "/page.js", "/style.css"):
            text = browser.get(path).text
            assert not re.findall(r"(?:src|href|action)=\"(?!/)|https?://(?!www\.w3\.org)|url\(", text), path
        assert "script-src 'self'" in browser.get("/").headers["Content-Security-Policy"]


# ------------------------------------------------------------------------------------------------------ label


def drop(browser: Browser, content: bytes | Iterator[bytes]) -> httpx.Response:
    own = {"Origin": str(browser.base_url), "X-CSRF": GUARD.secret, "Accept": "*/*"}
    return browser.post("/drop", content=content, headers=own)


def test_a_picture_that_is_given_is_kept_under_a_name_from_its_content(home: SiteHome) -> None:
    content = new_pictures(home)[0].read_bytes()
    with browsing(home) as browser:
        answers = [drop(browser, content) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 201]
        (kept,) = home.dropped.iterdir()
        assert kept.read_bytes() == content and re.fullmatch(r"[0-9a-f]{32}\.png", kept.name)
        assert numbers(browser) == [answers[1].json()["number"]]
        assert "1 picture is put away" in browser.submit("/clear")
        assert list(home.dropped.iterdir()) == []


def test_what_is_no_picture_too_large_or_a_bomb_is_not_taken(
    home: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = new_pictures(home)[0].read_bytes()
    with browsing(home) as browser:
        for bad, why in (
            (b"", "is empty"),
            (b"I am no picture", "it is no picture"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "it is no picture"),
            (content[:70], "cut off or damaged"),
            (bomb(tmp_path / "bomb.png").read_bytes(), "far too many pixels"),
        ):
            answer = drop(browser, bad)
            assert answer.status_code == 422 and why in answer.json()["detail"]
        monkeypatch.setattr(page, "MOST_BYTES", 10_000)
        assert drop(browser, b"\0" * 20_000).status_code == 413
        assert drop(browser, itertools.repeat(b"\0" * 1000, 100)).status_code == 413  # of a length that is not stated
        monkeypatch.setattr(desk, "MOST_DROPPED", 0)
        assert "wait already" in drop(browser, content).json()["detail"]
    assert not home.dropped.exists() or not list(home.dropped.iterdir())


def test_pictures_are_labelled_shown_so_and_labels_are_taken_back(home: SiteHome) -> None:
    watched(home, *new_pictures(home)[:3])
    with browsing(home) as browser:
        three = numbers(browser)
        assert "3 pictures are labelled “crack”" in browser.submit("/label", picture=three, name=" crack ")
        assert len(list((data_of(home) / "crack").iterdir())) == 3
        assert sum("labelled crack" in one and "Take back" in one for one in tiles(browser, "/label")) == 3
        assert "labelled crack" in tiles(browser)[0] and numbers(browser) == []
        assert "0 pictures are labelled" in browser.submit("/label", picture=three, **{"as": "crack"})
        assert "is 'crack' already; take that label back" in browser.submit("/label", 409, picture=three, name="dent")
        assert "The label “crack” is taken back" in browser.submit("/unlabel", back=three[0])
        assert len(list((data_of(home) / "crack").iterdir())) == 2 and numbers(browser) == [three[0]]
        kept, _ = (data_of(home) / "crack").iterdir()
        shutil.rmtree(home.watched)  # the camera's folder turns over, labels stay and can be taken back
        seen = watch.plain_file(kept)
        assert seen is not None and seen.number in browser.get("/label").text
        browser.submit("/unlabel", back=seen.number)
        assert len(list((data_of(home) / "crack").iterdir())) == 1


@pytest.mark.parametrize("name", ["../out", "a/b", "..", ".hidden", "a\\b", "con", "/etc", "a\0b", "<b>", "x" * 65])
def test_a_class_cannot_be_called_what_is_no_safe_folder(home: SiteHome, name: str) -> None:
    watched(home, new_pictures(home)[0])
    with browsing(home) as browser:
        (number,) = numbers(browser)
        before = tree(home.path.parent)
        assert "cannot be the name of a class" in browser.submit("/label", 409, picture=number, name=name)
        assert "That did not work" in browser.submit("/label", 409, picture=number, **{"as": name})
        assert tree(home.path.parent) == before


def test_what_cannot_be_labelled_is_said_in_plain_words(home: SiteHome) -> None:
    watched(home, new_pictures(home)[0])
    (home.watched / "text.png").write_text("I am no picture")
    with browsing(home) as browser:
        (number,) = numbers(browser)
        assert "no picture is picked" in browser.submit("/label", 409, name="crack")
        assert "the class has no name" in browser.submit("/label", 409, picture=number)
        for other in ("0" * 32, "../../site.toml", str(home.config_file), str(new_pictures(home)[1])):
            assert "is not there any more" in browser.submit("/label", 409, picture=[number, other], name="crack")
            assert "is not there any more" in browser.submit("/unlabel", 409, back=other)
        said = browser.submit("/unlabel", 409, back=number)
        assert f"{new_pictures(home)[0].name} is not labelled" in said
        text = watch.plain_file(home.watched / "text.png")
        assert text is not None
        said = browser.submit("/label", 409, picture=text.number, name="crack")
        assert "text.png: not a readable image" in said
        assert not (data_of(home) / "crack").exists()


def test_a_site_of_tables_is_told_that_it_cannot_label(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("age,label\n1,a\n")
    with browsing(site_at(tmp_path, tmp_path / "table.csv")) as browser:
        assert "nothing can be labelled into it" in browser.see("/label")
        assert browser.see("/") and browser.see("/learn")


# ------------------------------------------------------------------------- learn, before and after, history


def test_from_pictures_to_a_model_that_is_compared_used_and_gone_back_from(home: SiteHome) -> None:
    watched(home, *new_pictures(home)[:10])
    with browsing(home) as browser:
        browser.submit("/label", picture=numbers(browser), name=DIGIT)
        assert f"New: {DIGIT} 10 pictures" in browser.see("/learn")
        said = learned(browser)
        assert "Model 2 has learned. Use it?" in said
        assert re.search(rf"{DIGIT} : \d+ of 10 pictures are recognised by models that were not shown them", said)
        assert "10 prove little" in said and "Pictures that changed" in said and "What is taken for what" in said
        assert store_of(home).entry(1) == store_of(home).current()
    with browsing(home) as browser:  # as after a restart
        assert browser.see("/learn") == said
        for number in re.findall(r"/picture/(\w+)", browser.get("/learn").text):
            assert browser.get(f"/picture/{number}").status_code == 200
        assert f"asked to learn “{DIGIT}”" in browser.submit("/wish", **{"class": DIGIT})
        assert store_of(home).standing().wishes == {DIGIT: 10}
        assert "no longer asked" in browser.submit("/wish", **{"class": DIGIT, "what": "no longer"})
        assert store_of(home).standing().wishes == {}
        assert "nobody hears of such a wish" not in browser.see("/learn")
        home.policy_file.write_text("[classes]\nnames = false\n")
        assert "nobody hears of such a wish" in browser.see("/learn")
        assert "no class 'digit-9'" in browser.submit("/wish", 409, **{"class": "digit-9"})
        assert "does not wait" in browser.submit("/decide", 409, number="1", what="discard")
        assert "does not wait" in browser.submit("/decide", 409, number="2", what="burn")
        assert "Model 2 is in use now" in browser.submit("/decide", number="2", what="use")
        assert "does not wait" in browser.submit("/decide", 409, number="2", what="discard")
        assert "Model 2 is looking It knows 5 classes" in browser.see("/")
        assert "Use it?" not in browser.see("/learn")
        assert "Go back to model 1 …" in browser.see("/history")
        asked = browser.see("/back?to=1")
        assert "Go back to model 1?" in asked and f"does not know {DIGIT}, which model 2 knows" in asked
        assert store_of(home).current() == store_of(home).entry(2)  # looking has changed nothing
        assert "Model 1 is in use now" in browser.submit("/back", to="1")
        assert "Use model 2?" in browser.see("/back?to=2")
        assert "Went back to model 1 from model 2" in browser.see("/history")
        browser.submit("/back", to="2")
        assert store_of(home).current() == store_of(home).entry(2)
        for wrong in ("9", "", "x", "-1", "../1", "9" * 30):
            assert "is not kept" in browser.submit("/back", 409, to=wrong)


def test_a_model_that_is_not_wanted_is_discarded(home: SiteHome) -> None:
    learn(home)  # as the command does
    with browsing(home) as browser:
        assert "Model 2 has learned. Use it?" in (said := browser.see("/learn")) and "Both models say the same" in said
        assert "Model 2 is discarded" in browser.submit("/decide", number="2", what="discard")
        assert [entry.number for entry in store_of(home).entries()] == [1]
        assert "Use it?" not in browser.see("/learn")


def test_why_learning_failed_is_shown_and_the_line_goes_on(home: SiteHome) -> None:
    shutil.rmtree(home.models / "bases")
    watched(home, new_pictures(home)[0])
    with browsing(home) as browser:
        said = learned(browser)
        assert "Learning failed." in said and "was adapted from is not kept" in said
        assert "% sure" in browser.see("/") or "UNKNOWN" in browser.see("/")


def test_a_learner_that_is_killed_is_said_and_changes_nothing(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with browsing(home) as browser:
        assert "learning ended before it was done" in learned(browser)
    assert [entry.number for entry in store_of(home).entries()] == [1]


def test_the_page_and_the_command_learn_at_once_and_each_keeps_its_model(home: SiteHome) -> None:
    words_ = [sys.executable, "-P", "-m", "client.cli", "adapt", "--home", str(home.path)]
    with browsing(home) as browser:
        browser.submit("/learn")
        browser.submit("/learn")  # while it learns: no second one
        with subprocess.Popen(words_, stdout=subprocess.DEVNULL) as command:
            said = learned(browser)
            assert command.wait(120) == 0
        assert "Use it?" in said
    store = store_of(home)
    assert [entry.number for entry in store.entries()] == [1, 2, 3]
    assert [event["what"] for event in store.history()] == ["added", "used", "added", "added"]
    current, candidate = store.current(), store.candidate()
    assert current is not None and current.number == 1 and candidate is not None and candidate.number == 3


def test_a_model_that_was_made_beside_another_one_is_not_offered(home: SiteHome) -> None:
    with browsing(home) as browser:
        learned(browser)
        store = store_of(home)
        store.use(store.add(read_model(store.entry(1).path), About("release 4", release=4)).number)
        assert "another model came into use meanwhile" in browser.see("/learn")


def test_history_shows_releases_that_were_refused_and_why(home: SiteHome) -> None:
    store_of(home).refuse(7, "it gets 3 of 12 right, and the model in use 11")
    with browsing(home) as browser:
        assert "refused Release 7 was refused it gets 3 of 12 right" in browser.see("/history")


def test_programs_still_have_their_answers_beside_the_page(home: SiteHome) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, "PNG")
    token = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "image/png"}
    with served(app_for(home, TOKEN)) as address, httpx.Client(base_url=address, trust_env=False) as program:
        assert program.post("/predict", content=buffer.getvalue(), headers=token).json()["model"] == 1
        assert program.get("/", headers=token).status_code == 200
        assert program.post("/back", data={"to": "9"}, headers={"Authorization": token["Authorization"]}).json() == {
            "detail": f"model 9 is not kept in {home.models}; kept are: 1"
        }
    assert api.TYPES
