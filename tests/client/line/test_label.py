"""Labelling pictures: what lands in the site's data, and all that is refused before anything changes."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.folder import open_folder
from client.line.label import Labelled, label, unlabel
from common.errors import SiteDataError
from tests.client.small import settings_with

DATA = settings_with().data


def picture(path: Path, seed: int = 0, suffix: str = "png") -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, suffix)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name in ("dent", "scratch"):
        for number in range(3):
            picture(tmp_path / "site" / name / f"{number}.png", 100 * len(name) + number)
    return tmp_path / "site"


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(site: Path, pictures: Sequence[Path], name: str, *parts: str, new: bool = False) -> None:
    """Assert that labelling is refused with these words and that nothing changes."""
    before = tree(site)
    with pytest.raises(SiteDataError) as raised:
        label(site, pictures, name, DATA, new=new)
    assert not [part for part in parts if part not in str(raised.value)], str(raised.value)
    assert tree(site) == before


def test_a_labelled_picture_is_a_sample_of_its_class_and_the_original_stays(site: Path, tmp_path: Path) -> None:
    own = picture(tmp_path / "a picture [1].png")
    (done,) = label(site, [own], "dent", DATA)
    assert done == Labelled(own, "dent", done.path, added=True)
    assert done.path.read_bytes() == own.read_bytes() and done.path.parent == site / "dent"
    assert open_folder(site, DATA).count("dent") == 4
    assert "picture" not in done.path.name  # names of files may say who or when


@pytest.mark.parametrize(("suffix", "ending"), [("png", ".png"), ("jpeg", ".jpg"), ("tiff", ".tif"), ("bmp", ".bmp")])
def test_the_copys_name_comes_from_the_content_alone_whatever_the_file_is_called(
    site: Path, tmp_path: Path, suffix: str, ending: str
) -> None:
    own = picture(tmp_path / "IMAGE.jfif", suffix=suffix)
    (done,) = label(site, [own], "dent", DATA)
    assert done.path.suffix == ending
    assert open_folder(site, DATA).count("dent") == 4


def test_a_new_class_needs_a_word_and_the_nearest_one_is_named(site: Path, tmp_path: Path) -> None:
    own = picture(tmp_path / "1.png")
    refused(site, [own], "scrath", "no class 'scrath'", "nearest is 'scratch'", "--new")
    label(site, [own], "crack wide", DATA, new=True)
    assert open_folder(site, DATA).classes() == ["crack wide", "dent", "scratch"]
    label(site, [picture(tmp_path / "2.png", 7)], "crack wide", DATA)
    assert open_folder(site, DATA).count("crack wide") == 2
    assert not [name for name in tree(site) if name.startswith(".")]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../out", "a/b", "a\\b", "/etc", ".hidden", "dot.", " a", "a\n", "con", "x" * 65, "a\0b"]
)
def test_a_name_that_is_no_safe_folder_is_refused(site: Path, tmp_path: Path, name: str) -> None:
    own = picture(tmp_path / "1.png")
    before = tree(tmp_path)
    refused(site, [own], name, "cannot be the name of a class", new=True)
    assert tree(tmp_path) == before


def test_a_class_in_other_letters_is_not_a_new_one(site: Path, tmp_path: Path) -> None:
    refused(site, [picture(tmp_path / "1.png")], "Dent", "'dent' in other letters", new=True)


def test_the_same_picture_again_is_said_and_not_copied(site: Path, tmp_path: Path) -> None:
    own, copy = picture(tmp_path / "1.png"), picture(tmp_path / "2.png")
    first, second = label(site, [own, copy], "dent", DATA)
    assert (first.added, second.added) == (True, False) and first.path == second.path
    (again,) = label(site, [own], "dent", DATA)
    assert not again.added and open_folder(site, DATA).count("dent") == 4
    (there,) = label(site, [site / "scratch" / "1.png"], "scratch", DATA)
    assert not there.added


def test_a_picture_that_has_another_label_is_refused_and_that_is_named(site: Path, tmp_path: Path) -> None:
    own = picture(tmp_path / "1.png")
    (done,) = label(site, [own], "dent", DATA)
    refused(site, [picture(tmp_path / "2.png", 5), own], "scratch", "is labelled 'dent' already", str(done.path))


def bomb(path: Path) -> Path:
    """A PNG that says it has 2^32 pixels, in a few bytes."""
    header = struct.pack(">IIBBBBB", 65536, 65536, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_what_is_no_picture_or_a_bomb_is_refused_before_any_is_copied(site: Path, tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png")
    text = tmp_path / "text.png"
    text.write_text("I am no picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:60])
    for bad in (text, cut, bomb(tmp_path / "bomb.png"), tmp_path / "nowhere.png", tmp_path):
        refused(site, [good, bad], "dent", bad.name)


def test_a_label_is_taken_back_and_the_last_one_takes_its_class_with_it(site: Path, tmp_path: Path) -> None:
    own = [picture(tmp_path / f"{number}.png", number) for number in range(2)]
    copies = [one.path for one in label(site, own, "crack", DATA, new=True)]
    unlabel(site, [own[0]], DATA)
    assert open_folder(site, DATA).count("crack") == 1
    unlabel(site, [copies[1]], DATA)  # by the copy as well as by the original
    assert open_folder(site, DATA).classes() == ["dent", "scratch"]
    assert own[0].exists() and own[1].exists()


def test_what_label_did_not_put_there_is_not_removed(site: Path, tmp_path: Path) -> None:
    before = tree(site)
    with pytest.raises(SiteDataError, match="may be the only copy"):
        unlabel(site, [site / "dent" / "1.png"], DATA)
    with pytest.raises(SiteDataError, match="is not labelled"):
        unlabel(site, [picture(tmp_path / "1.png")], DATA)
    assert tree(site) == before


def test_a_table_cannot_be_labelled_into(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("age,label\n1,a\n")
    with pytest.raises(SiteDataError, match="no folder of class folders"):
        label(tmp_path / "table.csv", [picture(tmp_path / "1.png")], "a", DATA)


def test_a_picture_that_needs_another_beside_it_cannot_be_labelled_by_itself(site: Path, tmp_path: Path) -> None:
    with pytest.raises(SiteDataError, match=r"needs what data\.beside names"):
        label(site, [picture(tmp_path / "1.png")], "dent", settings_with(data__beside="{stem}_mask.png").data)
