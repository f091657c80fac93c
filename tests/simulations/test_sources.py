"""Data sets from their origin, a mirror or a package: the right bytes, or an error and nothing left behind."""

import errno
import hashlib
import http.server
import io
import logging
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from client.data.packed import PackedSet, write_packed
from common.errors import SourceError
from simulations.sources import digits, download, omniglot
from simulations.sources import prepare as preparing
from simulations.sources.download import Remote, UnreachableError, digest, fetch, verify
from simulations.sources.omniglot import Drawings
from simulations.sources.prepare import find_mirror, prepare, prepare_or_digits
from tests.mirror import mirror_or_skip, small_archives

CONTENT = np.random.default_rng(5).bytes(200_000)
SUMS = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "md5": hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()}


# --------------------------------------------------------------------------------------------------- sums


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        # Known values: the empty message (RFC 1321, FIPS 180-4) and git's ids of the empty file and of "hello\n".
        ("md5", b"", "d41d8cd98f00b204e9800998ecf8427e"),
        ("sha256", b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("git-blob", b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        ("git-blob", b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
        ("sha256", CONTENT, SUMS["sha256"]),
        ("md5", CONTENT, SUMS["md5"]),
        ("git-blob", CONTENT, hashlib.sha1(b"blob 200000\0" + CONTENT, usedforsecurity=False).hexdigest()),
    ],
)
def test_each_kind_of_sum_is_the_known_one(tmp_path: Path, kind: str, content: bytes, expected: str) -> None:
    (tmp_path / "file").write_bytes(content)
    assert digest(tmp_path / "file", kind) == expected


@pytest.mark.parametrize("kind", ["sha256", "md5", "git-blob"])
def test_a_file_that_differs_in_one_bit_is_refused_by_each_kind_of_sum(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    expected = digest(file, kind)
    verify(file, {kind: expected})
    file.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(SourceError, match=f"the {kind} sum .*expected {expected}.*fetch it again") as raised:
        verify(file, {kind: expected})
    assert str(file) in str(raised.value) and not isinstance(raised.value, UnreachableError)


@pytest.mark.parametrize("wrong", ["sha256", "md5"])
def test_one_wrong_sum_among_right_ones_is_enough_to_refuse(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    with pytest.raises(SourceError, match=wrong):
        verify(tmp_path / "file", {**SUMS, wrong: "0" * 32})


# ---------------------------------------------------------------------------------------------- an origin


class Origin(http.server.BaseHTTPRequestHandler):
    """Serves ``files`` as they are, and under other paths misbehaves as the path says."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    end = threading.Event()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        match self.path:
            case path if path in self.files:
                self.reply(self.files[path])
            case "/breaks-off":
                self.reply(CONTENT[: len(CONTENT) // 2], len(CONTENT))
            case "/says-more":
                self.reply(CONTENT, len(CONTENT) + 10)
            case "/says-less":
                self.reply(CONTENT, len(CONTENT) - 10)
            case "/says-nothing":
                self.reply(CONTENT, None)
            case "/changed":
                self.reply(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
            case "/empty":
                self.reply(b"")
            case "/moved":
                self.send_response(302)
                self.send_header("Location", "/right")
                self.end_headers()
            case "/moved-for-ever":
                self.send_response(302)
                self.send_header("Location", "/moved-for-ever")
                self.end_headers()
            case "/not-http":
                self.wfile.write(b"SSH-2.0-OpenSSH_9.0\r\n")
            case "/silent":
                self.reply(CONTENT[:1000], len(CONTENT), stall=True)
            case path:
                self.send_error(int(path[1:]))

    def reply(self, content: bytes, length: int | None = -1, *, stall: bool = False) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(len(content) if length < 0 else length))
        self.end_headers()
        self.wfile.write(content)
        if stall:
            self.wfile.flush()
            self.end.wait(20)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    """Says nothing about clients that hang up on it, which is what some tests are about."""

    daemon_threads = False

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = QuietServer(("127.0.0.1", 0), Origin)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}"
    finally:
        Origin.end.set()
        running.shutdown()
        running.server_close()
        thread.join()


@pytest.fixture
def origin(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(Origin, "files", {"/right": CONTENT})
    monkeypatch.setattr(Origin, "asked", [])
    return server


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address where nobody listens."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("path", ["/right", "/says-nothing", "/moved"])
def test_what_the_origin_serves_right_lies_at_the_target_and_nothing_else(
    origin: str, tmp_path: Path, path: str
) -> None:
    target = tmp_path / "new" / "folder" / "set.zip"
    seen: list[tuple[int, int]] = []
    assert fetch(Remote(origin + path, SUMS), target, lambda done, total: seen.append((done, total))) == target
    assert target.read_bytes() == CONTENT and list(target.parent.iterdir()) == [target]
    assert seen[-1] == (len(CONTENT), 0 if path == "/says-nothing" else len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


UNREACHABLE = ["/breaks-off", "/says-more", "/404", "/403", "/500", "/503", "/not-http", "/moved-for-ever"]
WRONG = ["/changed", "/says-less", "/empty"]


@pytest.mark.parametrize("path", [*UNREACHABLE, *WRONG])
@pytest.mark.parametrize("before", [None, b"an older file"])
def test_whatever_goes_wrong_the_target_stays_as_it_was_and_nothing_lies_beside_it(
    origin: str, tmp_path: Path, path: str, before: bytes | None
) -> None:
    target = tmp_path / "set.zip"
    if before is not None:
        target.write_bytes(before)
    with pytest.raises(SourceError):
        fetch(Remote(origin + path, SUMS), target)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])


@pytest.mark.parametrize("path", UNREACHABLE)
def test_an_origin_that_fails_or_breaks_off_is_unreachable_and_the_way_out_is_named(
    origin: str, tmp_path: Path, path: str
) -> None:
    with pytest.raises(UnreachableError) as raised:
        fetch(Remote(origin + path, SUMS), tmp_path / "set.zip")
    assert origin + path in str(raised.value) and "--data-mirror" in str(raised.value)


@pytest.mark.parametrize("path", WRONG)
def test_an_origin_that_sends_something_else_is_wrong_and_not_unreachable(
    origin: str, tmp_path: Path, path: str
) -> None:
    with pytest.raises(SourceError, match="not the published file") as raised:
        fetch(Remote(origin + path, SUMS), tmp_path / "set.zip")
    assert not isinstance(raised.value, UnreachableError)


def test_an_origin_that_is_not_there_is_unreachable(nobody: str, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=nobody):
        fetch(Remote(f"{nobody}/set.zip", SUMS), tmp_path / "set.zip")
    assert list(tmp_path.iterdir()) == []


def test_an_origin_whose_name_is_not_known_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UnreachableError, match="not known"):
        fetch(Remote("http://origin.invalid/set.zip", SUMS), tmp_path / "set.zip")


def test_an_origin_that_falls_silent_is_unreachable_after_a_while(
    origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    began = time.monotonic()
    with pytest.raises(UnreachableError):
        fetch(Remote(f"{origin}/silent", SUMS), tmp_path / "set.zip")
    assert time.monotonic() - began < 4, "the time was not the one that is set"
    assert list(tmp_path.iterdir()) == []


def test_after_a_failure_the_next_fetch_succeeds(origin: str, tmp_path: Path) -> None:
    (tmp_path / "set.zip.part").write_bytes(b"left by a process that was killed")
    with pytest.raises(UnreachableError):
        fetch(Remote(f"{origin}/breaks-off", SUMS), tmp_path / "set.zip")
    fetch(Remote(f"{origin}/right", SUMS), tmp_path / "set.zip")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [CONTENT]


def test_an_interrupted_fetch_leaves_no_target(origin: str, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(Remote(f"{origin}/right", SUMS), tmp_path / "set.zip", interrupt)
    assert not (tmp_path / "set.zip").exists()


def test_a_full_disk_is_not_blamed_on_the_network(origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else ``prepare_or_digits`` would train on other data because a disk is full."""

    def full(done: int, total: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises((SourceError, OSError)) as raised:
        fetch(Remote(f"{origin}/right", SUMS), tmp_path / "set.zip", full)
    assert not isinstance(raised.value, UnreachableError) and "No space left" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_not_blamed_on_the_network(origin: str, tmp_path: Path) -> None:
    (tmp_path / "downloads").write_text("a file")
    with pytest.raises((SourceError, OSError)) as raised:
        fetch(Remote(f"{origin}/right", SUMS), tmp_path / "downloads" / "set.zip")
    assert not isinstance(raised.value, UnreachableError)


# ------------------------------------------------------------------------------------- reading archives

DRAWINGS = {"images_background_small1.zip": 2720, "images_background_small2.zip": 3120}
"""Drawings in each: 20 of each character of five alphabets (136 and 156 characters)."""


@pytest.fixture(scope="module")
def mirror() -> Path:
    """The real mirror, looked for before a test hides it."""
    return mirror_or_skip()


@pytest.fixture(scope="module")
def small() -> list[Path]:
    """Omniglot's two small archives as published."""
    return small_archives()


@pytest.fixture(scope="module")
def published(small: list[Path]) -> dict[str, Drawings]:
    return {path.name: omniglot.from_archive(path) for path in small}


def test_the_published_archives_hold_twenty_drawings_of_each_character(published: dict[str, Drawings]) -> None:
    for name, drawings in published.items():
        assert drawings.images.shape == (DRAWINGS[name], 1, 28, 28) and drawings.images.dtype == np.uint8
        assert len(drawings.sites) == 5
        assert {len(rows) for by_class in drawings.sites.values() for rows in by_class.values()} == {20}
        rows = [row for by_class in drawings.sites.values() for rows in by_class.values() for row in rows]
        assert sorted(rows) == list(range(DRAWINGS[name]))


def test_an_archive_read_here_is_its_packed_form_to_one_grey_level(
    published: dict[str, Drawings], mirror: Path
) -> None:
    packed = omniglot.from_packed(mirror / "omniglot", "background")
    compared = 0
    for drawings in published.values():
        for alphabet, characters in drawings.sites.items():
            for character, rows in characters.items():
                found = drawings.images[list(rows)].astype(int)
                expected = packed.images[list(packed.sites[alphabet][character])].astype(int)
                assert np.abs(found - expected).max() <= 1, f"{alphabet}/{character}"
                compared += len(rows)
    assert compared == sum(DRAWINGS.values())


def test_ink_is_light_on_dark(published: dict[str, Drawings]) -> None:
    for drawings in published.values():
        assert drawings.images.mean() < 64 and drawings.images.max() == 255


def test_only_takes_the_named_alphabets_and_shares_their_pictures(published: dict[str, Drawings]) -> None:
    drawings = published["images_background_small1.zip"]
    found = drawings.only(["Greek", "Latin", "Klingon"])
    assert found.sites.keys() == {"Greek", "Latin"} and found.images is drawings.images
    assert drawings.only(iter(["Greek", "Latin"])).sites.keys() == {"Greek", "Latin"}


def archive_of(path: Path, files: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return path


def drawing(grey: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (105, 105), grey).save(stream, "PNG")
    return stream.getvalue()


def test_names_decide_alphabet_and_character_and_other_files_are_passed_over(tmp_path: Path) -> None:
    archive = archive_of(
        tmp_path / "a.zip",
        {
            "images_background/Greek/character02/0394_02.png": drawing(0),
            "images_background/Greek/character01/0393_01.png": drawing(255),
            "images_background/Syriac_(Serto)/character01/0001_01.png": drawing(55),
            "images_background/Greek/.DS_Store": b"",
            "__MACOSX/images_background/Greek/character01/._0393_01.png": b"not a picture",
            "backup/images_background/Greek/character01/0393_01.png": b"not a picture",
            "README.md": b"",
        },
    )
    found = omniglot.from_archive(archive)
    assert {site: set(classes) for site, classes in found.sites.items()} == {
        "Greek": {"character01", "character02"},
        "Syriac_(Serto)": {"character01"},
    }
    ink = {
        (site, name): found.images[rows[0]].max()
        for site, classes in found.sites.items()
        for name, rows in classes.items()
    }
    assert ink == {("Greek", "character02"): 255, ("Greek", "character01"): 0, ("Syriac_(Serto)", "character01"): 200}


ENTRY = "images_background/Greek/character01/0393_01.png"
DATA = 30 + len(ENTRY)
"""Where the compressed data of the first file begin: after its header and name."""


def changed(data: bytes, *changes: tuple[int, int]) -> bytes:
    found = bytearray(data)
    for position, value in changes:
        found[position] = value
    return bytes(found)


def in_both_headers(data: bytes, offset: int, value: int) -> bytes:
    """Set a byte of the first file's header, and the same one in the directory at the end, two bytes further in."""
    return changed(data, (data.index(b"PK\x03\x04") + offset, value), (data.index(b"PK\x01\x02") + offset + 2, value))


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "not a zip": lambda _: CONTENT,
    "empty": lambda _: b"",
    "cut off": lambda whole: whole[: len(whole) // 2],
    "a wrong checksum": lambda whole: changed(whole, (DATA + 100, whole[DATA + 100] ^ 0xFF)),
    "damaged compression": lambda whole: changed(whole, (DATA, 0xFF)),
    "an unknown compression": lambda whole: in_both_headers(whole, 8, 99),
    "a password": lambda whole: in_both_headers(whole, 6, 1),
    "data that begin beyond its end": lambda whole: changed(whole, (29, 0x68)),  # length of the extra field
}


@pytest.mark.parametrize("case", SPOILED)
def test_an_archive_that_cannot_be_read_is_refused_by_name(tmp_path: Path, case: str) -> None:
    archive = archive_of(tmp_path / "a.zip", {ENTRY: np.random.default_rng(0).bytes(500)})
    archive.write_bytes(SPOILED[case](archive.read_bytes()))
    assert_refused(archive)


def test_an_archive_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    assert_refused(tmp_path / "a.zip")


@pytest.mark.parametrize("files", [{"Greek/0393_01.png": drawing()}, {ENTRY: b"not a picture"}])
def test_an_archive_of_something_else_is_refused_by_name(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert_refused(archive_of(tmp_path / "a.zip", files))


def assert_refused(archive: Path) -> None:
    with pytest.raises(SourceError) as raised:
        omniglot.from_archive(archive)
    assert str(archive) in str(raised.value) and not isinstance(raised.value, UnreachableError)


def test_a_packed_form_with_another_sum_is_refused(tmp_path: Path) -> None:
    for name in omniglot.PACKED_SUMS:
        (tmp_path / name).write_bytes(b"other")
    with pytest.raises(SourceError, match=r"background\.npz has the sha256 sum"):
        omniglot.from_packed(tmp_path, "background")


@pytest.mark.parametrize("part", ["background", "nonsense"])
def test_a_packed_form_that_is_not_there_is_refused(tmp_path: Path, part: str) -> None:
    with pytest.raises(SourceError, match=f"does not hold a packed {part} set"):
        omniglot.from_packed(tmp_path, part)


# ------------------------------------------------------------------------------------------------ digits


def test_every_digit_of_scikit_learn_is_dealt_to_exactly_one_site() -> None:
    train, judge = digits.from_scikit_learn()
    dealt = [
        row for drawings in (train, judge) for site in drawings.sites.values() for rows in site.values() for row in rows
    ]
    assert sorted(dealt) == list(range(1797)) and len(train.images) == 1797


def test_digits_to_train_on_and_to_judge_on_share_no_class() -> None:
    train, judge = (
        {name for site in drawings.sites.values() for name in site} for drawings in digits.from_scikit_learn()
    )
    assert train == {f"digit {number}" for number in range(5)}
    assert judge == {f"digit {number}" for number in range(5, 10)}


def test_digits_are_uint8_enlarged_with_the_full_range_of_grey() -> None:
    images = digits.from_scikit_learn()[0].images
    assert images.shape == (1797, 1, 28, 28) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255


# ------------------------------------------------------------------------------------------------ prepare


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data home of the test's own, and no mirror but an empty one."""
    (tmp_path / "no mirror").mkdir()
    monkeypatch.setenv("FEDREPTILE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEDREPTILE_DATA_MIRROR", str(tmp_path / "no mirror"))
    return tmp_path / "home"


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("the network was used")

    monkeypatch.setattr("httpx.stream", refuse)


@dataclass(frozen=True)
class Published:
    """Two small archives in the place of Omniglot's two."""

    background: Path
    evaluation: Path


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str) -> Published:
    """Omniglot as if it were a handful of drawings, with its sums, served by the origin."""
    names = {"background": ("Greek", "Latin"), "evaluation": ("Angelic", "Keble", "Tibetan")}
    paths, remotes = {}, {}
    for number, (part, alphabets) in enumerate(names.items()):
        files = {
            f"images_{part}/{alphabet}/character{character:02d}/{place:04d}_{row:02d}.png": drawing(
                number * 100 + place * 20 + character * 5 + row
            )
            for place, alphabet in enumerate(alphabets)
            for character in (1, 2)
            for row in (1, 2)
        }
        paths[part] = archive_of(tmp_path / f"{part}.zip", files)
        sums = {kind: digest(paths[part], kind) for kind in ("md5", "git-blob")}
        remotes[part] = Remote(f"{origin}/images_{part}.zip", sums)
        Origin.files[f"/images_{part}.zip"] = paths[part].read_bytes()
    monkeypatch.setattr(omniglot, "ARCHIVES", remotes)
    return Published(paths["background"], paths["evaluation"])


def mirror_of(archives: Published, folder: Path) -> Path:
    (folder / "omniglot").mkdir(parents=True)
    shutil.copy(archives.background, folder / "omniglot" / "images_background.zip")
    shutil.copy(archives.evaluation, folder / "omniglot" / "images_evaluation.zip")
    return folder


def assert_small_omniglot(prepared: preparing.Prepared) -> None:
    train, judge = PackedSet(prepared.train), PackedSet(prepared.judge)
    assert train.names == ["Greek", "Latin"]
    assert judge.names == ["Angelic", "Keble"], "Tibetan is not among the alphabets to judge on"
    greek = train.site("Greek")
    assert greek.classes() == ["character01", "character02"] and greek.count("character01") == 2
    ink = [round(float(one.mean()) * 255) for one in greek.inputs("character02", [0, 1])]
    assert ink == [255 - 11, 255 - 12]


def test_omniglot_comes_packed_from_a_mirror(home: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch)
    prepared = prepare("omniglot", mirror)
    assert prepared == preparing.Prepared(
        "omniglot", home / "data" / "omniglot" / "background", home / "data" / "omniglot" / "evaluation_dev"
    )
    train, judge = PackedSet(prepared.train), PackedSet(prepared.judge)
    assert len(train.names) == 30 and judge.names == sorted(omniglot.EVALUATION_DEV)
    # 964 characters of 50 alphabets are the background set (Lake et al. 2015); each was drawn by 20 people.
    assert sum(len(train.site(name).classes()) for name in train.names) == 964
    assert {train.site(name).count(label) for name in train.names for label in train.site(name).classes()} == {20}


def test_omniglot_comes_as_archives_from_a_mirror(
    home: Path, tmp_path: Path, archives: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(monkeypatch)
    assert_small_omniglot(prepare("omniglot", mirror_of(archives, tmp_path / "mirror")))


def test_the_real_small_archives_do_as_a_mirror(
    home: Path, small: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    background, evaluation = small
    mirror = mirror_of(Published(background, evaluation), tmp_path / "mirror")
    remotes = {
        part: Remote("http://origin.invalid", {kind: digest(path, kind) for kind in ("sha256", "md5", "git-blob")})
        for part, path in (("background", background), ("evaluation", evaluation))
    }
    monkeypatch.setattr(omniglot, "ARCHIVES", remotes)
    monkeypatch.setattr(omniglot, "EVALUATION_DEV", frozenset({"Sanskrit", "Tagalog"}))
    prepared = prepare("omniglot", mirror)
    train, judge = PackedSet(prepared.train), PackedSet(prepared.judge)
    assert train.names == ["Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"]
    assert judge.names == ["Sanskrit", "Tagalog"]
    assert len(train.site("Korean").classes()) == 40 and train.shape == (1, 28, 28)


@pytest.mark.parametrize("variable", [True, False], ids=["named by the variable", "given"])
@pytest.mark.parametrize("part", ["background", "evaluation"])
def test_a_mirror_with_a_changed_archive_is_refused_and_nothing_is_prepared(
    home: Path, tmp_path: Path, archives: Published, monkeypatch: pytest.MonkeyPatch, part: str, variable: bool
) -> None:
    mirror = mirror_of(archives, tmp_path / "mirror")
    with (mirror / "omniglot" / f"images_{part}.zip").open("ab") as file:
        file.write(b"\0")
    monkeypatch.setenv("FEDREPTILE_DATA_MIRROR", str(mirror))
    for way in (prepare, prepare_or_digits):
        with pytest.raises(SourceError, match=f"images_{part}.zip has the md5 sum"):
            way("omniglot", None if variable else mirror)
    assert not (home / "data").exists()


def test_omniglot_comes_from_its_origin_where_there_is_no_mirror(home: Path, archives: Published) -> None:
    seen: list[int] = []
    assert_small_omniglot(prepare("omniglot", progress=lambda done, total: seen.append(done)))
    assert sorted(Origin.asked) == ["/images_background.zip", "/images_evaluation.zip"]
    assert max(seen) == max(archives.background.stat().st_size, archives.evaluation.stat().st_size)


def test_the_second_call_uses_what_is_there(home: Path, archives: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare("omniglot")
    before = (first.train / "sites.json").stat().st_mtime_ns
    shutil.rmtree(home / "downloads")
    no_network(monkeypatch)
    assert prepare("omniglot") == prepare_or_digits("omniglot") == first
    assert (first.train / "sites.json").stat().st_mtime_ns == before


def test_what_was_downloaded_is_not_downloaded_again(
    home: Path, archives: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("omniglot")
    shutil.rmtree(home / "data")
    no_network(monkeypatch)
    assert_small_omniglot(prepare("omniglot"))


def test_a_download_that_was_damaged_since_is_refused_by_name(home: Path, archives: Published) -> None:
    prepare("omniglot")
    shutil.rmtree(home / "data")
    downloaded = home / "downloads" / "omniglot" / "images_background.zip"
    downloaded.write_bytes(downloaded.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"images_background\.zip has the .* sum .* delete it and fetch it again"):
        prepare("omniglot")


def test_half_of_a_prepared_set_is_completed_and_the_other_half_kept(home: Path, archives: Published) -> None:
    first = prepare("omniglot")
    before = (first.train / "sites.json").stat().st_mtime_ns
    shutil.rmtree(first.judge)
    assert_small_omniglot(prepare("omniglot"))
    assert (first.train / "sites.json").stat().st_mtime_ns == before


def test_digits_need_neither_mirror_nor_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch)
    prepared = prepare("digits")
    assert prepared.train == home / "data" / "digits" / "digits-0-to-4"
    train, judge = PackedSet(prepared.train), PackedSet(prepared.judge)
    assert len(train.names) == 10 and len(judge.names) == 5 and train.shape == judge.shape == (1, 28, 28)


def test_a_process_that_prepared_the_same_set_a_moment_earlier_is_no_problem(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(*what: Any) -> None:
        write_packed(*what)  # the other process, after this one has looked
        write_packed(*what)

    monkeypatch.setattr(preparing, "write_packed", twice)
    prepared = prepare("digits")
    assert len(PackedSet(prepared.train).names) == 10 and len(PackedSet(prepared.judge).names) == 5


def test_what_a_folder_without_its_index_holds_is_replaced(home: Path) -> None:
    prepared = prepare("digits")
    (prepared.train / "sites.json").unlink()
    assert len(PackedSet(prepare("digits").train).names) == 10


# ------------------------------------------------------------------------------------------ falling back


@pytest.fixture
def unreachable(nobody: str, monkeypatch: pytest.MonkeyPatch) -> str:
    remotes = {part: Remote(f"{nobody}/{part}.zip", SUMS) for part in ("background", "evaluation")}
    monkeypatch.setattr(omniglot, "ARCHIVES", remotes)
    return nobody


def test_without_mirror_and_network_omniglot_is_unreachable(home: Path, unreachable: str) -> None:
    with pytest.raises(UnreachableError, match=unreachable):
        prepare("omniglot")
    assert not (home / "data").exists()


def test_the_fallback_takes_digits_and_says_so(home: Path, unreachable: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedreptile.data"):
        prepared = prepare_or_digits("omniglot")
    assert prepared.name == "digits" and prepared.train == home / "data" / "digits" / "digits-0-to-4"
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 2 and unreachable in said[0]
    assert "scikit-learn's handwritten digits instead of omniglot" in said[1] and "other figures" in said[1]


def test_the_fallback_is_silent_where_it_is_not_needed(
    home: Path, archives: Published, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert_small_omniglot(prepare_or_digits("omniglot"))
    assert not [record for record in caplog.records if record.name.startswith("fedreptile")]


def test_an_origin_that_serves_another_file_is_an_error_and_no_reason_to_fall_back(
    home: Path, archives: Published
) -> None:
    Origin.files["/images_evaluation.zip"] = CONTENT
    with pytest.raises(SourceError, match="not the published file") as raised:
        prepare_or_digits("omniglot")
    assert not isinstance(raised.value, UnreachableError)
    assert not (home / "data").exists()
    assert [path.name for path in (home / "downloads" / "omniglot").iterdir()] == ["images_background.zip"]


@pytest.mark.parametrize("way", [prepare, prepare_or_digits])
@pytest.mark.parametrize("name", ["mnist", "", "Omniglot", "../omniglot"])
def test_an_unknown_set_is_refused_with_the_known_ones(
    home: Path, way: Callable[[str], preparing.Prepared], name: str
) -> None:
    with pytest.raises(SourceError, match=r"unknown data set .* known are omniglot, digits"):
        way(name)
    assert not home.exists()


# ----------------------------------------------------------------------------------------------- mirrors


def test_a_given_mirror_comes_before_the_variable(home: Path, tmp_path: Path) -> None:
    assert find_mirror(tmp_path) == tmp_path
    assert find_mirror(None) == tmp_path / "no mirror"


def test_a_relative_mirror_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_mirror(Path("mine")) == (tmp_path / "mine").resolve()


def test_without_a_named_mirror_the_one_beside_the_checkout_counts_if_it_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FEDREPTILE_DATA_MIRROR", raising=False)
    monkeypatch.setattr(preparing, "__file__", str(tmp_path / "checkout" / "simulations" / "sources" / "prepare.py"))
    assert find_mirror(None) is None
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert find_mirror(None) == tmp_path / "shared" / "data"


@pytest.mark.parametrize("found", ["nothing", "a file"])
@pytest.mark.parametrize("variable", [True, False], ids=["named by the variable", "given"])
def test_a_mirror_that_is_no_folder_is_refused_and_not_passed_over(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, variable: bool
) -> None:
    mirror = tmp_path / "mirror"
    if found == "a file":
        mirror.write_text("x")
    if variable:
        monkeypatch.setenv("FEDREPTILE_DATA_MIRROR", str(mirror))
    no_network(monkeypatch)
    for way in (prepare, prepare_or_digits):
        with pytest.raises(SourceError, match="is not a folder; correct --data-mirror or FEDREPTILE_DATA_MIRROR"):
            way("omniglot", None if variable else mirror)


@pytest.mark.parametrize("holds", ["nothing", "another set", "one archive of two"])
def test_a_given_mirror_without_the_set_is_refused_and_the_network_not_used(
    home: Path, tmp_path: Path, archives: Published, monkeypatch: pytest.MonkeyPatch, holds: str
) -> None:
    mirror = tmp_path / "mirror"
    if holds == "one archive of two":
        (mirror_of(archives, mirror) / "omniglot" / "images_evaluation.zip").unlink()
    else:
        (mirror / ("mnist" if holds == "another set" else "")).mkdir(parents=True)
    no_network(monkeypatch)
    for way in (prepare, prepare_or_digits):
        with pytest.raises(SourceError, match="holds no omniglot folder with"):
            way("omniglot", mirror)
