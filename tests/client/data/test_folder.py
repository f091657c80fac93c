"""A site's folder as people have it, with all that lies in such folders."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.data.folder import open_folder, read_picture
from client.data.images import read_image
from client.data.indexed import IndexedData
from client.data.sites import open_site_data, site_names
from common.errors import SettingsError, SiteDataError
from common.settings import DataSettings
from tests.mirror import mirror_or_skip

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


def greys(data: IndexedData, name: str) -> list[int]:
    return [round(float(picture.mean()) * 255) for picture in data.inputs(name, range(data.count(name)))]


def test_pictures_come_in_the_order_of_their_names(site: Path) -> None:
    data = open_folder(site, EIGHT)
    assert data.classes() == ["dent", "scratch"] and data.skipped == ()
    assert greys(data, "dent") == [10, 20, 30] and greys(data, "scratch") == [200]


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
    assert [item.where for item in data.skipped] == [
        str(site / "dent" / name) for name in [*sorted(broken), "ee points nowhere.png"]
    ]
    assert all(item.reason.startswith("not a readable image") for item in data.skipped)


def test_corrupt_files_of_all_classes_are_listed(site: Path) -> None:
    for name in ("dent", "scratch"):
        (site / name / "z.png").write_bytes(b"")
    assert [Path(item.where).parent.name for item in open_folder(site, EIGHT).skipped] == ["dent", "scratch"]


@pytest.mark.parametrize("name", ["note.txt", "labels.csv", "Thumbs.db", "no suffix", "png", "a.png.part", "a.npy"])
def test_files_that_are_no_pictures_by_their_name_are_passed_over_in_silence(site: Path, name: str) -> None:
    (site / "dent" / name).write_bytes(b"anything")
    data = open_folder(site, EIGHT)
    assert data.count("dent") == 3 and data.skipped == ()


@pytest.mark.parametrize("name", [".a.png", "._a.png", ".DS_Store"])
def test_hidden_files_are_passed_over_in_silence(site: Path, name: str) -> None:
    (site / "dent" / name).write_bytes(b"anything")
    data = open_folder(site, EIGHT)
    assert data.count("dent") == 3 and data.skipped == ()


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
    assert [item.where for item in data.skipped] == [str(closed)]


def test_a_thousand_pictures_are_kept_as_bytes(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 256, (1000, 8, 8), dtype=np.uint8)
    (tmp_path / "line" / "dent").mkdir(parents=True)
    for number, picture in enumerate(values):
        Image.fromarray(picture).save(tmp_path / "line" / "dent" / f"{number:04d}.bmp")
    data = open_folder(tmp_path / "line", EIGHT)
    found = data.inputs("dent", range(1000))
    assert np.array_equal(np.rint(found[:, 0].numpy() * 255).astype(np.uint8), values)


def test_progress_is_told_and_ends_at_the_number_of_pictures(tmp_path: Path) -> None:
    for number in range(100):
        save(tmp_path / "line" / "dent" / f"{number}.bmp")
    told: list[tuple[int, int]] = []
    open_folder(tmp_path / "line", EIGHT, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(set(told)) and len(told) > 2 and told[-1] == (100, 100)


def test_sixteen_bits_are_asked_for_by_the_settings(site: Path) -> None:
    values = np.arange(0, 64000, 1000, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(site / "scratch" / "b.png")
    data = open_folder(site, DataSettings(size=8, bits=16))
    found = data.inputs("scratch", [0, 1])[:, 0].numpy() * 65535
    assert np.array_equal(np.rint(found), np.stack([np.full((8, 8), 200 * 257), values]))


def test_a_folder_may_be_given_from_the_folder_one_is_in(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.parent)
    assert greys(open_folder(Path("line-3"), EIGHT), "dent") == [10, 20, 30]


# ------------------------------------------------------------------------------ masks, templates beside them


def beside(patterns: str) -> DataSettings:
    return DataSettings(size=8, beside=patterns)


def means(data: IndexedData, name: str) -> list[list[int]]:
    """Return the mean grey level of each channel of each picture of a class."""
    found = data.inputs(name, range(data.count(name)))
    return [[round(float(channel.mean()) * 255) for channel in picture] for picture in found]


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Real photographs of magnetic tiles as a site has them, images/CLASS/NAME.jpg, and masks/CLASS/NAME.png."""
    source = mirror_or_skip() / "magnetic_tile"
    for label in ("Blowhole", "Break"):
        for picture in sorted((source / "images" / label).iterdir())[:4]:
            for kind, name in (("images", picture.name), ("masks", f"{picture.stem}.png")):
                (tmp_path / kind / label).mkdir(parents=True, exist_ok=True)
                shutil.copy(source / kind / label / name, tmp_path / kind / label / name)
    return tmp_path


def moved_beside(tiles: Path) -> None:
    for mask in (tiles / "masks").rglob("*.png"):
        mask.rename(tiles / "images" / mask.parent.name / mask.name)


def moved_into_the_class(tiles: Path) -> None:
    for mask in (tiles / "masks").rglob("*.png"):
        (tiles / "images" / mask.parent.name / "masks").mkdir(exist_ok=True)
        mask.rename(tiles / "images" / mask.parent.name / "masks" / mask.name)


def moved_into_one_folder(tiles: Path) -> None:
    (tiles / "images" / "masks").mkdir()
    for mask in (tiles / "masks").rglob("*.png"):
        mask.rename(tiles / "images" / "masks" / mask.name)


def moved_into_the_site(tiles: Path) -> None:
    (tiles / "masks").rename(tiles / "images" / "masks")


def moved_to_a_folder_for_each_class(tiles: Path) -> None:
    for folder in (tiles / "masks").iterdir():
        folder.rename(tiles / "images" / f"{folder.name}_masks")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "{stem}.png": moved_beside,
    "masks/{stem}.png": moved_into_the_class,
    "../masks/{stem}.png": moved_into_one_folder,
    "../masks/{class}/{stem}.png": moved_into_the_site,
    "../{class}_masks/{stem}.png": moved_to_a_folder_for_each_class,
}


@pytest.mark.parametrize("pattern", LAYOUTS)
def test_masks_are_found_wherever_people_keep_them_and_are_neither_samples_nor_classes(
    tiles: Path, pattern: str
) -> None:
    plain = open_folder(tiles / "images", DataSettings(size=48))
    mask = next((tiles / "masks" / "Break").iterdir())
    expected = read_image(mask, 1, 48)
    LAYOUTS[pattern](tiles)
    data = open_folder(tiles / "images", DataSettings(size=48, beside=pattern))
    assert data.classes() == ["Blowhole", "Break"] and data.skipped == ()
    for name in data.classes():
        found = data.inputs(name, range(data.count(name)))
        assert found.shape == (4, 2, 48, 48)
        assert torch.equal(found[:, :1], plain.inputs(name, range(4))), "the picture itself is as without masks"
        assert bool((found[:, 1].amax((1, 2)) > 0).all()), "every mask shows its defect"
    names = sorted(path.stem for path in (tiles / "images" / "Break").glob("*.jpg"))
    own = data.inputs("Break", [names.index(mask.stem)])[0, 1].numpy()
    assert np.array_equal(np.rint(own * 255), expected[0])


def test_templates_of_circuit_boards_are_the_second_channel(tmp_path: Path) -> None:
    with np.load(mirror_or_skip() / "deeppcb" / "crops.npz") as crops:
        kinds = {
            kind: np.unpackbits(crops[kind][:6], axis=1).reshape(-1, 64, 64) * 255 for kind in ("test", "template")
        }
    (tmp_path / "line" / "open").mkdir(parents=True)
    for number in range(6):
        Image.fromarray(kinds["test"][number]).save(tmp_path / "line" / "open" / f"{number}.png")
        Image.fromarray(kinds["template"][number]).save(tmp_path / "line" / "open" / f"{number}_template.png")
    data = open_folder(tmp_path / "line", DataSettings(size=64, beside="{stem}_template.png", invert=True))
    found = np.rint(data.inputs("open", range(data.count("open"))).numpy() * 255)
    assert np.array_equal(found, np.stack([255 - kinds["test"], kinds["template"]], 1)), "only the picture is inverted"


def test_several_things_may_lie_beside_a_picture_in_the_order_of_the_patterns(site: Path) -> None:
    for name, grey in (("a", 1), ("b", 2), ("c", 3)):
        save(site / "dent" / f"{name}_mask.png", grey)
        save(site / "before" / "dent" / f"{name}.bmp", 100 + grey)
    shutil.rmtree(site / "scratch")
    data = open_folder(site, beside("{stem}_mask.png ../before/{class}/{stem}.bmp"))
    assert means(data, "dent") == [[10, 1, 101], [20, 2, 102], [30, 3, 103]]
    other = open_folder(site, beside("../before/{class}/{stem}.bmp {stem}_mask.png"))
    assert means(other, "dent")[0] == [10, 101, 1]


def test_a_picture_that_lacks_its_mask_or_has_a_broken_one_is_skipped_and_the_reason_names_the_mask(site: Path) -> None:
    for name in ("a", "b"):
        save(site / "masks" / f"{name}.png", 200)
    (site / "masks" / "b.png").write_bytes(b"")
    data = open_folder(site, beside("../masks/{stem}.png"))
    assert means(data, "dent") == [[10, 200]] and means(data, "scratch") == [[200, 200]]
    reasons = {Path(item.where).name: item.reason for item in data.skipped}
    assert set(reasons) == {"b.png", "c.png"}
    assert str(site / "masks" / "b.png") in reasons["b.png"] and "not a readable image" in reasons["b.png"]
    assert str(site / "masks" / "c.png") in reasons["c.png"] and "there is no" in reasons["c.png"]


def test_a_mask_whose_picture_is_gone_is_skipped_and_not_taken_for_a_picture(site: Path) -> None:
    Image.new("L", (8, 8), 90).save(site / "dent" / "d.jpg")
    for name in ("d", "orphan"):
        save(site / "dent" / f"{name}.png", 255)
    for name in ("a", "b", "c"):
        (site / "dent" / f"{name}.png").unlink()
    Image.new("L", (8, 8), 90).save(site / "scratch" / "a.jpg")
    data = open_folder(site, beside("{stem}.png"))
    assert means(data, "dent") == [[90, 255]] and means(data, "scratch") == [[90, 200]]
    assert [Path(item.where).name for item in data.skipped] == ["orphan.png"]
    assert "the picture itself" in data.skipped[0].reason


def test_two_masks_without_a_picture_do_not_vanish_in_silence(site: Path) -> None:
    for name in ("x.png", "x.bmp"):
        save(site / "dent" / name)
    for folder, stem in (("dent", "a"), ("dent", "b"), ("dent", "c"), ("scratch", "a")):
        save(site / folder / f"{stem}.bmp")
        Image.new("L", (8, 8), 90).save(site / folder / f"{stem}.jpg")
    data = open_folder(site, beside("{stem}.png {stem}.bmp"))
    assert data.count("dent") == 3
    assert [Path(item.where).name for item in data.skipped] == ["x.bmp", "x.png"]


def test_where_no_picture_has_a_mask_the_class_is_refused_with_the_first_reason(site: Path) -> None:
    with pytest.raises(SiteDataError, match=r"3 image file\(s\), none readable.*a_mask\.png"):
        open_folder(site, beside("{stem}_mask.png"))


@pytest.mark.parametrize(
    "pattern",
    [
"../../masks/{class}/{stem}.png", "masks/../../../{stem}.png",
     "/masks/{stem}.png", "C:/masks/{stem}.png", "\\masks\\{stem}.png", "{name}.png", "{}.png", "{0}.png", "{stem.png",
     "stem}.png", "{stem!r}.png", "{stem:>9}.png", "{stem.__class__}.png", "{class[0]}.png"],
)  # fmt: skip
def test_what_is_no_pattern_is_an_error_of_the_settings_that_quotes_it(site: Path, pattern: str) -> None:
    for read in (lambda: open_folder(site, beside(pattern)), lambda: read_picture(site / "x.png", beside(pattern))):
        with pytest.raises(SettingsError) as raised:
            read()
        assert repr(pattern) in str(raised.value) and "data.beside" in str(raised.value)


def test_braces_in_the_names_of_files_and_folders_are_only_names(tmp_path: Path) -> None:
    save(tmp_path / "line" / "{stem}" / "a {class}.jpg", 50)
    save(tmp_path / "line" / "{stem}" / "a {class}_mask.png", 60)
    assert means(open_folder(tmp_path / "line", beside("{stem}_mask.png")), "{stem}") == [[50, 60]]


# ------------------------------------------------------------------------------------------ one new picture


def test_one_picture_is_read_with_what_lies_beside_it(site: Path) -> None:
    save(site / "dent" / "a_mask.png", 77)
    found = read_picture(site / "dent" / "a.png", beside("{stem}_mask.png"))
    assert found.dtype == np.uint8 and found.shape == (2, 8, 8) and found.mean((1, 2)).tolist() == [10, 77]


@pytest.mark.parametrize("name", ["gone.png", "empty.png", "b.png"])
def test_one_picture_that_cannot_be_read_is_refused_by_its_path(site: Path, name: str) -> None:
    (site / "dent" / "empty.png").write_bytes(b"")
    save(site / "dent" / "empty_mask.png")
    save(site / "dent" / "gone_mask.png")
    with pytest.raises(SiteDataError, match=f"dent.{name}: "):
        read_picture(site / "dent" / name, beside("{stem}_mask.png"))
