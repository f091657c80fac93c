"""A site's folder as people have it, with all that lies in such folders."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.folder import FolderData, open_folder
from client.data.sites import open_site_data, site_names
from common.errors import SiteDataError
from common.settings import DataSettings

EIGHT = DataSettings(size=8)
NOBODY = 65534


def save(path: Path, grey: int = 128) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(path)
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site with two classes: three pictures of grey levels 10, 20, 30 and one of 200."""
    for name, grey in (("a", 10), ("b", 20), ("c", 30)):
        save(tmp_path / "line-3" / "dent" / f"{name}.png", grey)
    save(tmp_path / "line-3" / "scratch" / "a.png", 200)
    return tmp_path / "line-3"


def greys(data: FolderData, name: str) -> list[int]:
    return [round(float(picture.mean()) * 255) for picture in data.inputs(name, range(data.count(name)))]


def test_pictures_come_in_the_order_of_their_names(site: Path) -> None:
    data = open_folder(site, EIGHT)
    assert data.classes() == ["dent", "scratch"] and data.corrupt == ()
    assert greys(data, "dent") == [10, 20, 30] and greys(data, "scratch") == [200]


def test_classes_are_in_order_whatever_the_order_they_were_given_in() -> None:
    picture = np.zeros((1, 1, 8, 8), np.uint8)
    assert FolderData({"scratch": picture, "dent": picture}).classes() == ["dent", "scratch"]


def test_the_settings_decide_channels_size_and_sense(site: Path) -> None:
    data = open_folder(site, DataSettings(channels=3, size=12, invert=True))
    assert data.inputs("dent", [0]).shape == (1, 3, 12, 12)
    assert greys(data, "dent") == [245, 235, 225]


# ------------------------------------------------------------------------------------------ what is skipped

GOOD_PNG_BYTES = 80


def test_corrupt_files_are_skipped_and_listed_and_cost_nothing_else(site: Path) -> None:
    whole = (site / "dent" / "a.png").read_bytes()
    assert len(whole) < GOOD_PNG_BYTES
    broken = {
        "aa cut off.png": whole[: len(whole) // 2],
        "bb text.png": b"not a picture",
        "cc empty.png": b"",
        "dd other.jpg": b"\xff\xd8\xff\xe0 not a JPEG",
    }
    for name, content in broken.items():
        (site / "dent" / name).write_bytes(content)
    (site / "dent" / "ee points nowhere.png").symlink_to(site / "gone.png")
    (site / "dent" / "a folder.png").mkdir()
    data = open_folder(site, EIGHT)
    assert greys(data, "dent") == [10, 20, 30] and greys(data, "scratch") == [200]
    assert [item.path for item in data.corrupt] == [
        site / "dent" / name for name in [*sorted(broken), "ee points nowhere.png"]
    ]
    assert all(item.reason.startswith("not a readable image") for item in data.corrupt)


def test_corrupt_files_of_all_classes_are_listed(site: Path) -> None:
    for name in ("dent", "scratch"):
        (site / name / "z.png").write_bytes(b"")
    assert [item.path.parent.name for item in open_folder(site, EIGHT).corrupt] == ["dent", "scratch"]


@pytest.mark.parametrize("name", ["note.txt", "labels.csv", "Thumbs.db", "no suffix", "png", "a.png.part", "a.npy"])
def test_files_that_are_no_pictures_by_their_name_are_passed_over_in_silence(site: Path, name: str) -> None:
    (site / "dent" / name).write_bytes(b"anything")
    data = open_folder(site, EIGHT)
    assert data.count("dent") == 3 and data.corrupt == ()


@pytest.mark.parametrize("name", [".a.png", "._a.png", ".DS_Store"])
def test_hidden_files_are_passed_over_in_silence(site: Path, name: str) -> None:
    (site / "dent" / name).write_bytes(b"anything")
    data = open_folder(site, EIGHT)
    assert data.count("dent") == 3 and data.corrupt == ()


def test_hidden_folders_and_files_beside_the_class_folders_are_no_classes(site: Path) -> None:
    save(site / ".cache" / "a.png")
    save(site / "overview.png")
    assert open_folder(site, EIGHT).classes() == ["dent", "scratch"]


@pytest.mark.parametrize(
    "suffix", ["png", "PNG", "Png", "jpg", "JPG", "jpeg", "bmp", "gif", "tif", "TIFF", "webp", "ppm"]
)
def test_every_suffix_of_a_picture_counts_in_upper_and_lower_case(site: Path, suffix: str) -> None:
    kinds = {"jpg": "JPEG", "tif": "TIFF"}
    kind = kinds.get(suffix.lower(), suffix.upper())
    Image.new("L", (8, 8), 77).save(site / "scratch" / f"b.{suffix}", kind)
    found = greys(open_folder(site, EIGHT), "scratch")
    assert len(found) == 2 and abs(found[1] - 77) <= 1


def test_a_picture_under_the_suffix_of_another_kind_is_read_by_what_it_is(site: Path) -> None:
    Image.new("L", (8, 8), 77).save(site / "scratch" / "b.jpg", "PNG")
    assert greys(open_folder(site, EIGHT), "scratch") == [200, 77]


def test_names_may_be_in_any_script(tmp_path: Path) -> None:
    for name in ("Kratzer groß", "傷", "вмятина", "🔧"):
        save(tmp_path / "línea 3" / name / "фото №1 「a」.png", 50)
    data = open_folder(tmp_path / "línea 3", EIGHT)
    assert data.classes() == sorted(["Kratzer groß", "傷", "вмятина", "🔧"])
    assert greys(data, "傷") == [50]


def test_links_to_folders_and_files_are_followed(site: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "dent").symlink_to(site / "dent", target_is_directory=True)
    (linked / "scratch").mkdir()
    (linked / "scratch" / "a.png").symlink_to(site / "scratch" / "a.png")
    data = open_folder(linked, EIGHT)
    assert greys(data, "dent") == [10, 20, 30] and greys(data, "scratch") == [200]


def test_pictures_are_read_once_and_stay_as_they_were_when_the_site_opened(site: Path) -> None:
    data = open_folder(site, EIGHT)
    shutil.rmtree(site)
    assert greys(data, "dent") == [10, 20, 30]


# ------------------------------------------------------------------------------------- what cannot be used


def refused(folder: Path) -> str:
    with pytest.raises(SiteDataError) as raised:
        open_folder(folder, EIGHT)
    return str(raised.value)


def test_an_empty_class_folder_is_refused_by_name_with_what_to_do(site: Path) -> None:
    (site / "blister").mkdir()
    text = refused(site)
    assert str(site / "blister") in text and "no image file" in text
    assert "add images" in text and ".png" in text and "remove the folder" in text


def test_a_class_folder_with_corrupt_files_only_is_refused_with_their_number(site: Path) -> None:
    (site / "blister").mkdir()
    for number in range(3):
        (site / "blister" / f"{number}.png").write_bytes(b"")
    text = refused(site)
    assert str(site / "blister") in text and "3 image file(s), none readable" in text and "remove the folder" in text


def test_a_class_folder_with_other_files_only_is_refused(site: Path) -> None:
    (site / "blister").mkdir()
    (site / "blister" / "note.txt").write_text("later")
    assert "no image file" in refused(site)


def test_a_folder_without_class_folders_is_refused_with_an_example(tmp_path: Path) -> None:
    save(tmp_path / "line-3" / "a.png")
    text = refused(tmp_path / "line-3")
    assert f"{tmp_path / 'line-3'} has no class folder" in text and "line-3/scratch/0001.png" in text


@pytest.mark.parametrize("found", ["nothing", "a file", "a link to nothing", "a link to itself"])
def test_a_folder_that_is_not_there_is_refused_by_name(tmp_path: Path, found: str) -> None:
    folder = tmp_path / "line-3"
    if found == "a file":
        folder.write_text("not a folder")
    elif found == "a link to nothing":
        folder.symlink_to(tmp_path / "gone")
    elif found == "a link to itself":
        folder.symlink_to(folder)
    text = refused(folder)
    assert f"{folder} cannot be read" in text and "existing folder" in text


# ------------------------------------------------------------------------------------------- permissions


@pytest.fixture
def reachable(site: Path) -> Iterator[Path]:
    """The site where another user can reach it: pytest's own folders are closed to others."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    try:
        yield Path(shutil.copytree(site, root / "sites" / "line-3"))
    finally:
        for folder, _, _ in os.walk(root):
            Path(folder).chmod(0o755)
        shutil.rmtree(root)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Read files as a user whom permissions bind."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


needs_permissions = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")

CLOSED = {"no permission": 0o000, "names can be listed and nothing opened": 0o444, "cannot be listed": 0o111}


@needs_permissions
@pytest.mark.parametrize("mode", CLOSED)
def test_a_class_folder_that_may_not_be_read_is_refused_by_name(reachable: Path, mode: str) -> None:
    (reachable / "dent").chmod(CLOSED[mode])
    with without_privileges():
        text = refused(reachable)
    assert str(reachable / "dent") in text


@needs_permissions
@pytest.mark.parametrize("mode", CLOSED)
def test_a_site_folder_that_may_not_be_read_is_refused_by_name(reachable: Path, mode: str) -> None:
    reachable.chmod(CLOSED[mode])
    with without_privileges():
        text = refused(reachable)
    assert str(reachable) in text


@needs_permissions
@pytest.mark.parametrize("mode", CLOSED)
@pytest.mark.parametrize("layout", ["a folder of sites", "one site"])
def test_a_closed_folder_is_an_error_of_the_sites_data_whatever_the_layout(
    reachable: Path, mode: str, layout: str
) -> None:
    reachable.chmod(CLOSED[mode])
    path = reachable.parent if layout == "a folder of sites" else reachable
    with without_privileges(), pytest.raises(SiteDataError, match="line-3"):
        open_site_data(path, "line-3", EIGHT)


@needs_permissions
def test_a_closed_site_among_others_is_an_error_of_the_sites_data_when_names_are_asked_for(reachable: Path) -> None:
    reachable.chmod(0)
    with without_privileges(), pytest.raises(SiteDataError, match="line-3"):
        site_names(reachable.parent)


@needs_permissions
def test_a_picture_that_may_not_be_read_is_skipped_and_listed(reachable: Path) -> None:
    closed = reachable / "dent" / "b.png"
    closed.chmod(0)
    with without_privileges():
        data = open_folder(reachable, EIGHT)
    assert greys(data, "dent") == [10, 30]
    assert [item.path for item in data.corrupt] == [closed]


def test_a_thousand_pictures_are_kept_as_bytes(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 256, (1000, 8, 8), dtype=np.uint8)
    (tmp_path / "line" / "dent").mkdir(parents=True)
    for number, picture in enumerate(values):
        Image.fromarray(picture).save(tmp_path / "line" / "dent" / f"{number:04d}.bmp")
    data = open_folder(tmp_path / "line", EIGHT)
    found = data.inputs("dent", range(1000))
    assert np.array_equal(np.rint(found[:, 0].numpy() * 255).astype(np.uint8), values)
