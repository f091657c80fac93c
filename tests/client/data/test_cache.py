"""Decoded pictures kept for the next start: what is read again, and that nothing on disk is believed unchecked."""

import json
import logging
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import client.data.cache
import client.data.folder
from client.data.folder import open_folder
from client.data.indexed import IndexedData, Pixels
from common.settings import DataSettings
from tests.mirror import mirror_or_skip

SMALL = DataSettings(size=16)
CLASSES = ("crazing", "scratches")
EACH = 5
NOBODY = 65534


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site of real photographs of steel, five of each of two defects."""
    source = mirror_or_skip() / "neu_steel" / "images"
    for name in CLASSES:
        (tmp_path / "line-3" / name).mkdir(parents=True)
        for picture in sorted((source / name).iterdir())[:EACH]:
            shutil.copyfile(picture, tmp_path / "line-3" / name / picture.name)
    return tmp_path / "line-3"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded, in order, from here on."""
    names: list[str] = []
    real = client.data.folder._read_file

    def noted(path: str, channels: int, data: DataSettings, *, invert: bool) -> Pixels:
        names.append(Path(path).name)
        return real(path, channels, data, invert=invert)

    monkeypatch.setattr(client.data.folder, "_read_file", noted)
    return names


def same(found: IndexedData, expected: IndexedData) -> bool:
    return (
        found.classes() == expected.classes()
        and found.skipped == expected.skipped
        and all(
            found.count(name) == expected.count(name)
            and torch.equal(
                found.inputs(name, range(found.count(name))), expected.inputs(name, range(expected.count(name)))
            )
            for name in expected.classes()
        )
    )


def index_of(cache: Path) -> Path:
    (found,) = cache.glob("*.json")
    return found


def array_of(cache: Path) -> Path:
    (found,) = cache.glob("*.npy")
    return found


def first(site: Path, name: str = "scratches") -> Path:
    return min((site / name).iterdir())


# ------------------------------------------------------------------------------------- what is read again


def test_the_second_start_decodes_nothing_and_gives_the_same(site: Path, cache: Path, read: list[str]) -> None:
    plain = open_folder(site, SMALL)
    assert same(open_folder(site, SMALL, cache), plain)
    read.clear()
    assert same(open_folder(site, SMALL, cache), plain) and read == []


@pytest.mark.parametrize("start", ["first", "second"])
def test_what_is_kept_is_memory_mapped(site: Path, cache: Path, start: str) -> None:
    found = [open_folder(site, SMALL, cache) for _ in range(2)][start == "second"]
    assert isinstance(found._inputs, np.memmap)


def test_progress_tells_of_the_pictures_that_are_read(site: Path, cache: Path) -> None:
    told: list[tuple[int, int]] = []
    for _ in range(2):
        open_folder(site, SMALL, cache, progress=lambda done, total: told.append((done, total)))
    assert told == [(10, 10)]


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a new file": (lambda site: shutil.copy(first(site), site / "scratches" / "new.jpg"), ["new.jpg"]),
    "a new class": (lambda site: shutil.copytree(site / "scratches", site / "dents"), []),
    "a file that is gone": (lambda site: first(site).unlink(), []),
    "a class that is gone": (lambda site: shutil.rmtree(site / "crazing"), []),
    "a file with other content": (lambda site: Image.new("L", (9, 9), 7).save(first(site), "JPEG"), ["first"]),
    "a file of another time": (lambda site: os.utime(first(site), ns=(1, 1)), ["first"]),
    "a file that took another's name": (lambda site: first(site, "crazing").replace(first(site)), ["first"]),
    "a broken file": (lambda site: (site / "scratches" / "new.jpg").write_bytes(b""), ["new.jpg"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_new_and_changed_files_are_read_again(site: Path, cache: Path, read: list[str], change: str) -> None:
    open_folder(site, SMALL, cache)
    make, expected = CHANGES[change]
    name = first(site).name
    make(site)
    read.clear()
    found = open_folder(site, SMALL, cache)
    if change == "a new class":
        expected = sorted(path.name for path in (site / "dents").iterdir())
    assert sorted(read) == [name if item == "first" else item for item in expected]
    assert same(found, open_folder(site, SMALL))
    read.clear()
    assert same(open_folder(site, SMALL, cache), found) and read == []
    assert len(list(cache.glob("*.npy"))) == 1


def test_of_a_file_that_is_gone_nothing_is_kept(site: Path, cache: Path) -> None:
    open_folder(site, SMALL, cache)
    gone = first(site)
    gone.unlink()
    open_folder(site, SMALL, cache)
    assert gone.name not in index_of(cache).read_text() and len(np.load(array_of(cache))) == 2 * EACH - 1


def test_a_broken_file_is_not_read_again_and_is_listed_each_time(site: Path, cache: Path, read: list[str]) -> None:
    first(site).write_bytes(first(site).read_bytes()[:500])
    once = open_folder(site, SMALL, cache)
    read.clear()
    again = open_folder(site, SMALL, cache)
    assert read == [] and same(again, once) and [item.where for item in again.skipped] == [str(first(site))]


def test_a_file_that_cannot_be_opened_is_tried_again_each_time(site: Path, cache: Path, read: list[str]) -> None:
    (site / "scratches" / "link.jpg").symlink_to(site / "gone.jpg")
    for _ in range(2):
        read.clear()
        assert len(open_folder(site, SMALL, cache).skipped) == 1 and "link.jpg" in read
    assert read == ["link.jpg"]
    before = index_of(cache).stat().st_mtime_ns
    assert isinstance(open_folder(site, SMALL, cache)._inputs, np.memmap)
    assert index_of(cache).stat().st_mtime_ns == before, "nothing has changed, so nothing is written"
    shutil.copy(first(site, "crazing"), site / "gone.jpg")
    found = open_folder(site, SMALL, cache)
    assert found.skipped == () and same(found, open_folder(site, SMALL))


def test_a_picture_is_read_again_when_its_mask_comes_changes_or_goes(site: Path, cache: Path, read: list[str]) -> None:
    data = replace(SMALL, beside="../masks/{stem}.png")
    masks = site / "masks"
    masks.mkdir()
    for picture in list(site.rglob("*.jpg")):
        Image.new("L", (16, 16), 9).save(masks / f"{picture.stem}.png")
    name, mask = first(site).name, masks / f"{first(site).stem}.png"
    open_folder(site, data, cache)
    for change in (mask.unlink, lambda: Image.new("L", (16, 16), 8).save(mask), lambda: mask.write_bytes(b"")):
        change()
        read.clear()
        found = open_folder(site, data, cache)
        assert set(read) <= {name, mask.name} and same(found, open_folder(site, data))
    read.clear()
    assert same(open_folder(site, data, cache), found) and read == []


@pytest.mark.parametrize(
    "change",
    [{"size": 8}, {"channels": 3}, {"bits": 16}, {"white": 9.0}, {"invert": True}, {"beside": "{stem}.jpg"}],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_have_an_entry_of_their_own(
    site: Path, cache: Path, read: list[str], change: dict[str, Any]
) -> None:
    open_folder(site, SMALL, cache)
    other = replace(SMALL, **change)
    if "beside" in change:
        for picture in list(site.rglob("*.jpg")):
            Image.open(picture).save(picture.with_suffix(".png"))
        open_folder(site, replace(SMALL, beside=""), cache)
    assert same(open_folder(site, other, cache), open_folder(site, other))
    read.clear()
    open_folder(site, SMALL, cache)
    open_folder(site, other, cache)
    assert read == [] and len(list(cache.glob("*.json"))) == 2


@pytest.mark.parametrize("change", [{"rotated_classes": True}, {"sites": "/elsewhere"}, {"label": "x"}])
def test_settings_that_do_not_change_pixels_share_one(site: Path, cache: Path, change: dict[str, Any]) -> None:
    open_folder(site, SMALL, cache)
    open_folder(site, replace(SMALL, **change), cache)
    index_of(cache)


def test_another_version_of_the_decoder_reads_everything_again(
    site: Path, cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_folder(site, SMALL, cache)
    read.clear()
    monkeypatch.setattr("PIL.__version__", "99.0")
    open_folder(site, SMALL, cache)
    assert len(read) == 2 * EACH
    index_of(cache)


def test_two_sites_of_one_name_are_not_taken_for_each_other(site: Path, cache: Path) -> None:
    other = Path(shutil.copytree(site, site.parent / "other" / site.name))
    Image.new("L", (200, 200), 7).save(first(other), "JPEG")
    os.utime(first(other), ns=(first(site).stat().st_atime_ns, first(site).stat().st_mtime_ns))
    for folder in (site, other, site):
        assert same(open_folder(folder, SMALL, cache), open_folder(folder, SMALL))


# --------------------------------------------------------------------------------------- what is not believed


def rewritten(cache: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads(index_of(cache).read_text())
    change(index)
    index_of(cache).write_text(json.dumps(index))


def other_array(cache: Path, values: Any) -> None:
    np.save(array_of(cache), values)


def moved_array(cache: Path, name: str) -> None:
    array_of(cache).rename(cache / name)
    rewritten(cache, lambda index: index.update(array=name))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "an empty index": lambda cache: index_of(cache).write_bytes(b""),
    "half an index": lambda cache: index_of(cache).write_bytes(index_of(cache).read_bytes()[:300]),
    "an index that is not text": lambda cache: index_of(cache).write_bytes(b"\xff\xfe\x00" * 99),
    "an index that is a list": lambda cache: index_of(cache).write_text("[1, 2]"),
    "an index nested beyond what is read": lambda cache: index_of(cache).write_text("[" * 100_000),
    "another format": lambda cache: rewritten(cache, lambda index: index.update(format=99)),
    "another folder's index": lambda cache: rewritten(cache, lambda index: index["of"].update(folder="/elsewhere")),
    "no list of names": lambda cache: rewritten(cache, lambda index: index.pop("names")),
    "names that are numbers": lambda cache: rewritten(cache, lambda index: index.update(names=[1] * 10)),
    "names that are lists": lambda cache: rewritten(cache, lambda index: index.update(names=[[]] * 10)),
    "reasons that are numbers": lambda cache: rewritten(cache, lambda index: index.update(reasons=[7] * 10)),
    "fewer stamps than names": lambda cache: rewritten(cache, lambda index: index["stamps"].pop()),
    "fewer files than pictures": lambda cache: rewritten(
        cache, lambda index: [index[key].pop() for key in ("names", "stamps", "reasons")]
    ),
    "an array outside the cache": lambda cache: moved_array(cache, "../far.npy"),
    "another entry's array": lambda cache: moved_array(cache, "other.npy"),
    "an array that is a number": lambda cache: rewritten(cache, lambda index: index.update(array=7)),
    "the index as its array": lambda cache: rewritten(cache, lambda index: index.update(array=index_of(cache).name)),
    "no array": lambda cache: array_of(cache).unlink(),
    "an empty array": lambda cache: array_of(cache).write_bytes(b""),
    "half an array": lambda cache: array_of(cache).write_bytes(array_of(cache).read_bytes()[:1000]),
    "an array of objects": lambda cache: other_array(cache, np.array([{"a": 1}] * 10)),
    "an array of numbers": lambda cache: other_array(cache, np.zeros((10, 1, 16, 16), np.float32)),
    "an array of smaller pictures": lambda cache: other_array(cache, np.zeros((10, 1, 8, 8), np.uint8)),
    "an array of fewer pictures": lambda cache: other_array(cache, np.zeros((9, 1, 16, 16), np.uint8)),
    "an array of one dimension": lambda cache: other_array(cache, np.zeros(2560, np.uint8)),
    "a shape beyond all memory": lambda cache: array_of(cache).write_bytes(
        array_of(cache).read_bytes().replace(b"(10, 1, 16, 16)", b"(1" + b"0" * 40 + b",)")
    ),
    "an archive": lambda cache: np.savez(array_of(cache).open("wb"), a=np.zeros(3)),
}


@pytest.mark.filterwarnings("ignore:unclosed file")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_cache_is_ignored_and_written_anew(
    site: Path, cache: Path, read: list[str], damage: str
) -> None:
    open_folder(site, SMALL, cache)
    expected = open_folder(site, SMALL)
    DAMAGE[damage](cache)
    read.clear()
    assert same(open_folder(site, SMALL, cache), expected) and len(read) == 2 * EACH
    read.clear()
    assert same(open_folder(site, SMALL, cache), expected) and read == []


def test_whatever_happens_to_the_bytes_of_the_index_a_start_works(site: Path, cache: Path) -> None:
    expected = open_folder(site, SMALL, cache).classes()
    whole = index_of(cache).read_bytes()
    draw = np.random.default_rng(5)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(draw.integers(1, 4)):
            data[draw.integers(len(data))] = draw.integers(256)
        index_of(cache).write_bytes(bytes(data))
        assert open_folder(site, SMALL, cache).classes() == expected
        index_of(cache)


# ------------------------------------------------------------------------------------------- how it is written


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
def test_only_the_owner_may_read_what_is_kept(site: Path, cache: Path) -> None:
    before = os.umask(0)
    try:
        open_folder(site, SMALL, cache)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.iterdir()} == {0o600}


def test_the_index_is_written_last_and_replaced_at_once(
    site: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_folder(site, SMALL, cache)
    kept = index_of(cache).read_bytes()
    Image.new("L", (9, 9), 7).save(first(site), "JPEG")

    def killed(path: Path, target: Path) -> None:
        assert index_of(cache).read_bytes() == kept and len(list(cache.glob("*.npy"))) == 2
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            open_folder(site, SMALL, cache)
    assert same(open_folder(site, SMALL, cache), open_folder(site, SMALL))
    assert expected.classes() == list(CLASSES)


def test_what_a_killed_start_left_behind_is_removed_later_but_not_what_another_is_writing(
    site: Path, cache: Path
) -> None:
    open_folder(site, SMALL, cache)
    key = index_of(cache).stem
    left = [cache / f"{key}.old.npy", cache / f"{key}.old.part"]
    for path in [*left, cache / "stranger.npy"]:
        path.write_bytes(b"x")
        os.utime(path, (time.time() - 7200,) * 2)
    (cache / f"{key}.young.npy").write_bytes(b"x")
    first(site).unlink()
    open_folder(site, SMALL, cache)
    assert not any(path.exists() for path in left)
    assert (cache / "stranger.npy").exists() and (cache / f"{key}.young.npy").exists()


@pytest.mark.parametrize("where", ["is a file", "lies below a file"])
def test_a_cache_that_cannot_be_written_is_a_warning_and_nothing_else(
    site: Path, cache: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file")
    folder = cache if where == "is a file" else cache / "below"
    with caplog.at_level(logging.WARNING, "fedreptile.data"):
        assert same(open_folder(site, SMALL, folder), open_folder(site, SMALL))
    assert str(folder) in caplog.text and "cannot be kept" in caplog.text
    assert cache.read_text() == "a file"


@pytest.mark.parametrize("at", ["np.save", "os.fsync", "Path.replace"])
def test_a_full_disk_is_a_warning_and_leaves_nothing_behind(
    site: Path, cache: Path, at: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        owner, name = {"np.save": (np, "save"), "os.fsync": (os, "fsync"), "Path.replace": (Path, "replace")}[at]
        patch.setattr(owner, name, full)
        assert same(open_folder(site, SMALL, cache), open_folder(site, SMALL))
    assert "No space left" in caplog.text and list(cache.iterdir()) == []


@pytest.fixture
def closed(site: Path) -> Iterator[Path]:
    """A folder that may be read and not written, with the site in it, where another user can reach it."""
    root = Path(tempfile.mkdtemp())
    shutil.copytree(site, root / "line-3")
    root.chmod(0o555)
    try:
        yield root
    finally:
        root.chmod(0o755)
        shutil.rmtree(root)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
def test_a_cache_that_may_not_be_written_is_a_warning(closed: Path, caplog: pytest.LogCaptureFixture) -> None:
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        found = open_folder(closed / "line-3", SMALL, closed / "cache")
    finally:
        os.seteuid(user)
    assert "Permission denied" in caplog.text and same(found, open_folder(closed / "line-3", SMALL))


def test_starts_at_the_same_time_all_read_the_same_and_leave_one_entry(site: Path, cache: Path) -> None:
    expected = open_folder(site, SMALL)

    def start(number: int) -> bool:
        if number % 3 == 0:
            for path in cache.glob("*.json"):
                path.unlink(missing_ok=True)
        return same(open_folder(site, SMALL, cache), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(start, range(40)))
    assert same(open_folder(site, SMALL, cache), expected)
    index_of(cache)
    assert list(cache.glob("*.part")) == []


def test_names_that_are_not_text_are_kept(site: Path, cache: Path, read: list[str]) -> None:
    strange = os.path.join(os.fsencode(site / "scratches"), b"\xff\xfe.jpg")  # noqa: PTH118
    try:
        shutil.copyfile(first(site), strange)
    except (OSError, ValueError):
        pytest.skip("this file system has no such names")
    open_folder(site, SMALL, cache)
    read.clear()
    assert open_folder(site, SMALL, cache).count("scratches") == EACH + 1 and read == []
