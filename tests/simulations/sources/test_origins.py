"""Every set read from its origin's layout: the same pool as from the packed form, where that is of the same pixels."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import SourceError
from simulations.sources.catalogue import CATALOGUE
from simulations.sources.files import Entry, Files, Origin, origin_files
from simulations.sources.pool import Pool
from simulations.sources.sets import xrays
from simulations.sources.sets.boards import crop
from simulations.sources.sets.omniglot import EVALUATION_DEV, read_archive
from simulations.sources.sets.tables import FAULTS, GASES, PLATE_COLUMNS
from tests.mirror import small_archives
from tests.simulations.sources.test_sets import read, settings_of


def in_layout(name: str, folder: Path, contents: dict[str, bytes], sums: bool = True) -> Files:
    """Write files as an origin has them, by path there; and return those of the manifest that are among them."""
    wanted = origin_files(name, folder, CATALOGUE[name].origins)
    by_path = {entry.origin[0][1]: entry for entry in wanted.entries}
    for path, content in contents.items():
        target = wanted.where(by_path[path])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    kept = [entry for entry in wanted.entries if entry.origin[0][1] in contents]
    if not sums:
        kept = [Entry(entry.path, 0, {}, entry.origin, entry.more) for entry in kept]
    return Files(folder, tuple(kept), wanted.origins)


def assert_same(found: Pool, expected: Pool, rows: Any = slice(None)) -> None:
    np.testing.assert_array_equal(found.inputs, expected.inputs[rows])
    for key, values in {"class": expected.classes, **expected.attributes}.items():
        theirs = found.classes if key == "class" else found.attributes[key]
        assert list(theirs) == np.array(values)[rows].tolist(), key


@pytest.mark.parametrize("name", ["neu_steel", "mednist6", "magnetic_tile"])
def test_pictures_at_their_origin_are_those_of_the_packed_form(name: str, mirror: Path, tmp_path: Path) -> None:
    packed = CATALOGUE[name].in_mirror(mirror)
    same = {entry.origin[0][1]: packed.read(entry) for entry in packed.entries if entry.origin}
    masks = {
        f"MT_{entry.names.parent.name}/Imgs/{entry.names.name}": packed.read(entry)
        for entry in packed.entries
        if not entry.origin
    }
    files = in_layout(name, tmp_path, same | masks)
    assert files.complete() and len(files.entries) == len(packed.entries)
    beside = " ".join(CATALOGUE[name].companions)
    found = CATALOGUE[name].read(files, settings_of(name, size=9, beside=beside))
    assert_same(found, read(name, mirror, size=9, beside=beside))


def test_hand_signs_at_their_origin_have_the_same_names_and_classes(mirror: Path, tmp_path: Path) -> None:
    packed = CATALOGUE["sign_digits"].in_mirror(mirror)
    contents = {
        f"Dataset/{entry.names.parent.name}/{entry.names.stem}.JPG": packed.read(entry) for entry in packed.entries
    }
    files = in_layout("sign_digits", tmp_path, contents)
    assert files.complete()
    assert_same(
        CATALOGUE["sign_digits"].read(files, settings_of("sign_digits", size=9)), read("sign_digits", mirror, size=9)
    )


def test_x_rays_at_their_origins_are_chosen_by_sum_and_in_the_same_order(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = CATALOGUE["cxr_pneumonia"].in_mirror(mirror)
    folders = {ours: theirs for theirs, ours in xrays.NIH_FOLDERS.items()}
    contents = {}
    for entry in packed.entries:
        if entry.names.suffix == ".jpg" and entry.names.stem < "00003":
            stream = io.BytesIO()
            Image.open(io.BytesIO(packed.read(entry))).save(stream, "PNG")
            contents[f"Dataset/{folders[entry.names.parent.name]}/{entry.names.stem}.png"] = stream.getvalue()
    with np.load(mirror / "cxr_pneumonia" / "guangzhou28.npz") as arrays:
        images, labels = arrays["train_images"], arrays["train_labels"]
        shuffled = np.random.default_rng(0).permutation(len(images))
        more = np.random.default_rng(1).integers(0, 256, (30, 28, 28), dtype=np.uint8)
        published = {
            "train_images": np.concatenate([more, images[shuffled], images[:5]]),
            "train_labels": np.concatenate([np.ones(30, np.uint8), labels[shuffled], labels[:5]])[:, None],
            "val_images": arrays["val_images"],
            "val_labels": arrays["val_labels"][:, None],
        }
    contents["data/pneumoniamnist.npz"] = as_npz(published)
    files = in_layout("cxr_pneumonia", tmp_path, contents)
    found = CATALOGUE["cxr_pneumonia"].read(files, settings_of("cxr_pneumonia"))
    expected = read("cxr_pneumonia", mirror)
    rows = [
        row
        for row, (hospital, patient) in enumerate(
            zip(expected.attributes["hospital"], expected.attributes["patient"], strict=True)
        )
        if hospital == "guangzhou" or patient < "00003"
    ]
    assert len(rows) > 1300
    assert_same(found, expected, rows)
    changed = {**published, "train_images": published["train_images"] ^ 1}
    in_layout("cxr_pneumonia", tmp_path, {"data/pneumoniamnist.npz": as_npz(changed)})
    with pytest.raises(SourceError, match=r"pneumoniamnist\.npz lacks the training picture"):
        CATALOGUE["cxr_pneumonia"].read(files, settings_of("cxr_pneumonia"))


def as_npz(arrays: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------- boards


def boards(mirror: Path, count: int) -> tuple[dict[str, bytes], list[int]]:
    """Put the crops of some boards back where they were cut; and return files as published, and the crops' rows."""
    with np.load(mirror / "deeppcb" / "crops.npz") as arrays:
        test, template = (np.unpackbits(arrays[key], axis=1).reshape(-1, 64, 64) for key in ("test", "template"))
        group, image, box, label = (arrays[key] for key in ("group", "image", "box", "label"))
    names = sorted(set(zip(group.tolist(), image.tolist(), strict=True)))[:: len(set(image.tolist())) // count]
    contents: dict[str, bytes] = {}
    kept: list[int] = []
    for line, number in names:
        rows = np.flatnonzero((group == line) & (image == number)).tolist()
        kept += rows
        folder = f"PCBData/group{line:05d}/{line:05d}"
        for which, crops in (("test", test), ("temp", template)):
            contents[f"{folder}/{number:08d}_{which}.jpg"] = as_jpeg(assembled(crops[rows], box[rows]))
        lines = "".join(f"{' '.join(map(str, box[row]))} {label[row]}\n" for row in rows)
        contents[f"{folder}_not/{number:08d}.txt"] = lines.encode()
    return contents, kept


def assembled(crops: Any, boxes: Any) -> Any:
    board = np.zeros((640 + 128, 640 + 128), np.uint8)
    for piece, (x1, y1, x2, y2) in zip(crops, boxes, strict=True):
        left, top = (round((a + b) / 2) - 32 + 64 for a, b in ((int(x1), int(x2)), (int(y1), int(y2))))
        board[top : top + 64, left : left + 64] = piece
    return board[64:-64, 64:-64]


def as_jpeg(bits: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(bits * np.uint8(255)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def test_boards_at_their_origin_are_cut_as_the_packed_form_was(mirror: Path, tmp_path: Path) -> None:
    contents, rows = boards(mirror, 60)
    files = in_layout("deeppcb", tmp_path, contents)
    found = CATALOGUE["deeppcb"].read(files, settings_of("deeppcb", beside="template"))
    assert len(rows) > 300
    assert_same(found, read("deeppcb", mirror, beside="template"), rows)


def test_crops_of_one_board_agree_where_they_overlap_so_that_they_are_placed_as_when_they_were_cut(
    mirror: Path,
) -> None:
    """In the real crops: a place wrong by one pixel would show at once."""
    with np.load(mirror / "deeppcb" / "crops.npz") as arrays:
        crops = np.unpackbits(arrays["test"], axis=1).reshape(-1, 64, 64)
        image, box = arrays["image"], arrays["box"].astype(int)
    compared = 0
    for first in range(0, len(crops) - 1, 3):
        if image[first] == image[first + 1]:
            both = [first, first + 1]
            board, seen = assembled(crops[both], box[both]), assembled(np.ones((1, 64, 64)), box[both[:1]])
            shared = (crop(seen, box[first + 1].tolist()) == 1) & (crop(seen, box[first].tolist()) == 1)
            if shared.any():
                np.testing.assert_array_equal(crop(board, box[first].tolist()), crops[first])
                compared += 1
    assert compared > 20


@pytest.mark.parametrize("line", ["1 2 3 4", "1 2 3 4 7", "1 2 3 4 0", "a b c d 1", "1 2 3 4 5 6"])
def test_an_annotation_that_cannot_be_meant_is_refused_with_its_file_and_line(
    mirror: Path, tmp_path: Path, line: str
) -> None:
    contents, _ = boards(mirror, 1)
    name = next(path for path in contents if path.endswith(".txt"))
    files = in_layout("deeppcb", tmp_path, {**contents, name: line.encode()})
    with pytest.raises(SourceError, match=rf"{Path(name).name} has the line {line!r}"):
        CATALOGUE["deeppcb"].read(files, settings_of("deeppcb"))


def test_an_annotation_as_published_is_read() -> None:
    """The first two lines of 00041000.txt, and the first two of the packed form."""
    assert (466 + 493) / 2 == 479.5 and round(479.5) == 480
    board = (np.arange(640 * 640).reshape(640, 640) % 251).astype(np.uint8)
    np.testing.assert_array_equal(crop(board, [466, 441, 493, 470]), board[456 - 32 : 456 + 32, 480 - 32 : 480 + 32])


# ------------------------------------------------------------------------------------------------- tables

PLATES = """\
42,50,270900,270944,267,17,44,24220,76,108,1687,1,0,80,0.0498,0.2415,0.1818,0.0047,0.4706,1.0,1.0,2.4265,0.9031,1.6435,\
0.8182,-0.2913,0.5822,1,0,0,0,0,0,0
645,651,2538079,2538108,108,10,30,11397,84,123,1687,1,0,80,0.7647,0.3793,0.2069,0.0036,0.6,0.9667,1.0,2.0334,0.7782,\
1.4624,0.7931,-0.1756,0.2984,1,0,0,0,0,0,0
829,835,1553913,1553931,71,8,19,7972,99,125,1623,1,0,100,0.971,0.3426,0.3333,0.0037,0.75,0.9474,1.0,1.8513,0.7782,\
1.2553,0.6667,-0.1228,0.215,1,0,0,0,0,0,0
853,860,369370,369415,176,13,45,18996,99,126,1353,0,1,290,0.7287,0.4413,0.1556,0.0052,0.5385,1.0,1.0,2.2455,0.8451,\
1.6532,0.8444,-0.1568,0.5212,1,0,0,0,0,0,0
"""
"""The first rows of the origin's file."""


def test_plates_as_published_are_those_of_the_packed_form(mirror: Path, tmp_path: Path) -> None:
    header = ",".join([*PLATE_COLUMNS, *FAULTS]) + "\n"
    files = in_layout("steel_plates_faults", tmp_path, {"data/SteelPlatesFaults_Clean.csv": (header + PLATES).encode()})
    found = CATALOGUE["steel_plates_faults"].read(files, settings_of("steel_plates_faults"))
    assert_same(found, read("steel_plates_faults", mirror), slice(4))


def test_all_plates_written_in_the_origins_layout_are_read_back(mirror: Path, tmp_path: Path) -> None:
    lines = (mirror / "steel_plates_faults" / "faults.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    names = list(FAULTS.values())
    text = "\n".join(
        ",".join([*row[: len(PLATE_COLUMNS)], *(str(int(row[-1] == name)) for name in names)]) for row in rows
    )
    header = ",".join([*PLATE_COLUMNS, *FAULTS]) + "\n"
    files = in_layout("steel_plates_faults", tmp_path, {"data/SteelPlatesFaults_Clean.csv": (header + text).encode()})
    found = CATALOGUE["steel_plates_faults"].read(files, settings_of("steel_plates_faults"))
    assert_same(found, read("steel_plates_faults", mirror))


HEART = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,target\n"
PATIENTS = {
    "cleveland": "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0\n",
    "hungarian": "28,1,2,130,132,0,2,185,0,0,?,?,?,0\n29,1,2,120,243,0,0,160,0,0,?,?,?,0\n"
    "29,1,2,140,?,0,0,170,0,0,?,?,?,0",
    "switzerland": "32,1,1,95,0,,0,127,0,.7,1,,,1\n34,1,4,115,0,,,154,0,.2,1,,,1\n35,1,4,,0,,0,130,1,,,,7,3",
    "va": "63,1,4,140,260,0,1,112,1,3,2,,,2\n44,1,4,130,209,0,1,127,0,0,,,,0",
}
"""The first rows of the origin's files."""


def test_patients_as_published_are_those_of_the_packed_form(mirror: Path, tmp_path: Path) -> None:
    contents = {f"data/processed.{name}.data": (HEART + text).encode() for name, text in PATIENTS.items()}
    files = in_layout("heart_disease_hospitals", tmp_path, contents, sums=False)
    found = CATALOGUE["heart_disease_hospitals"].read(files, settings_of("heart_disease_hospitals"))
    begin = {"cleveland": 0, "hungarian": 303, "switzerland": 597, "va": 720}
    rows = [begin[name] + row for name, text in PATIENTS.items() for row in range(len(text.split()))]
    assert_same(found, read("heart_disease_hospitals", mirror), rows)


def test_all_patients_in_the_origins_layout_have_the_size_that_the_origin_states(mirror: Path, tmp_path: Path) -> None:
    """Missing cells are "?" in Hungary's file and empty in the others."""
    contents = {}
    for name in PATIENTS:
        rows = (mirror / "heart_disease_hospitals" / f"{name}.csv").read_text().splitlines()[1:]
        mark = "?" if name == "hungarian" else ""
        text = "\n".join(",".join(cell or mark for cell in row.split(",")) for row in rows)
        contents[f"data/processed.{name}.data"] = (HEART + text).encode()
    files = in_layout("heart_disease_hospitals", tmp_path, contents)
    assert all(entry.size for entry in files.entries), "the sizes are checked by reading"
    found = CATALOGUE["heart_disease_hospitals"].read(files, settings_of("heart_disease_hospitals"))
    assert_same(found, read("heart_disease_hospitals", mirror))


@pytest.mark.parametrize(
    ("text", "said"), [("age,sex\n1,2\n", "lacks the columns cp"), (HEART + "63,1,4\n", "has a row of another length")]
)
def test_a_table_of_something_else_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    contents = {f"data/processed.{name}.data": text.encode() for name in PATIENTS}
    files = in_layout("heart_disease_hospitals", tmp_path, contents, sums=False)
    with pytest.raises(SourceError, match=f"processed.cleveland.data {said}"):
        CATALOGUE["heart_disease_hospitals"].read(files, settings_of("heart_disease_hospitals"))


READING = (
    "Ethanol,100.000000,79669.621000,57.102431,12.165471,17.228015,18.266019,-17.543669,-22.992407,-36.005547,"
    "73085.724400,52.674576,14.647445,23.656121,25.056577,-15.232851,-20.346297,-29.393110,20757.918700,6.391225,"
    "4.101275,7.460052,8.423975,-4.566335,-6.295453,-9.259678,20582.400400,6.265032,4.104927,7.677355,8.575529,"
    "-4.535790,-6.284579,-9.219363,3903.681100,3.406625,1.063812,3.217147,4.256209,-0.780353,-1.252798,-2.170336,"
    "4373.035700,3.538104,1.136000,3.286735,4.284596,-0.875100,-1.296537,-2.256125,28553.622100,7.848352,6.151213,"
    "12.636146,13.964818,-6.930295,-10.327137,-13.192912,30076.272400,7.445927,6.659074,14.481048,16.482933,-7.514936,"
    "-11.559286,-16.428602,71253.899200,45.083403,11.706524,16.096557,17.325973,-13.836756,-17.675765,-30.797192,"
    "68298.136900,43.468089,9.291519,11.709281,12.750002,-12.487836,-16.021570,-25.482730,25953.611100,7.422282,"
    "5.212496,8.747683,9.889164,-5.532698,-7.647569,-12.734557,21573.813500,7.565850,4.109863,7.048772,7.953018,"
    "-4.642984,-6.369653,-9.952123,7996.228000,4.485117,2.071506,6.630657,8.713880,-1.705051,-2.805675,-4.371672,"
    "8410.890200,4.478967,2.178072,6.501975,8.278703,-1.699922,-2.539477,-3.901612,36436.103500,10.197013,7.647767,"
    "15.437029,17.135659,-8.825550,-13.989530,-19.696548,32615.371300,9.953570,6.971065,13.647688,15.101238,-7.733062,"
    "-11.838076,-16.338610 \n"
)
"""The first line of the origin's batch4.dat."""


def test_a_reading_as_published_is_that_of_the_packed_form(mirror: Path, tmp_path: Path) -> None:
    files = in_layout("gas_drift", tmp_path, {"data/batch4.dat": READING.encode()})
    expected = read("gas_drift", mirror)
    first = expected.attributes["batch"].index("4")
    assert_same(CATALOGUE["gas_drift"].read(files, settings_of("gas_drift")), expected, slice(first, first + 1))


def test_all_readings_written_in_the_origins_layout_are_read_back(mirror: Path, tmp_path: Path) -> None:
    expected = read("gas_drift", mirror)
    lines: dict[str, list[str]] = {}
    for values, gas, batch in zip(expected.inputs, expected.classes, expected.attributes["batch"], strict=True):
        lines.setdefault(batch, []).append(f"{gas},1.0,{','.join(repr(float(value)) for value in values)} \n")
    contents = {f"data/batch{batch}.dat": "".join(text).encode() for batch, text in lines.items()}
    files = in_layout("gas_drift", tmp_path, contents)
    assert files.complete() and len(files.entries) == 6
    assert_same(CATALOGUE["gas_drift"].read(files, settings_of("gas_drift")), expected)


@pytest.mark.parametrize("line", [READING.replace("Ethanol", "Argon"), READING[:50], READING.replace("57.10", "x")])
def test_a_reading_that_cannot_be_meant_is_refused_with_its_file_and_line(tmp_path: Path, line: str) -> None:
    files = in_layout("gas_drift", tmp_path, {"data/batch4.dat": (READING + line).encode()})
    with pytest.raises(SourceError, match=r"batch4.dat line 2 is not a gas"):
        CATALOGUE["gas_drift"].read(files, settings_of("gas_drift"))
    assert "Ethanol" in GASES


# ----------------------------------------------------------------------------------------------- omniglot


def test_omniglots_published_archives_are_its_packed_form_to_a_grey_level(mirror: Path) -> None:
    """The two small archives hold ten of the thirty background alphabets."""
    expected = read("omniglot", mirror)
    keys = zip(expected.classes, expected.attributes["drawer"], strict=True)
    row_of = {key: row for row, key in enumerate(keys)}
    compared = 0
    for path in small_archives():
        found = read_archive(path.read_bytes(), path.name, settings_of("omniglot"))
        rows = [row_of[key] for key in zip(found.classes, found.drawers, strict=True)]
        assert np.abs(found.pixels.astype(int) - expected.inputs[rows].astype(int)).max() <= 1
        compared += len(rows)
    assert compared == 2720 + 3120


def test_omniglots_archives_at_another_size_are_its_packed_form(mirror: Path) -> None:
    path = small_archives()[0]
    found = read_archive(path.read_bytes(), path.name, settings_of("omniglot", size=15, invert=False))
    expected = read("omniglot", mirror, size=15, invert=False)
    keys = zip(expected.classes, expected.attributes["drawer"], strict=True)
    row_of = {key: row for row, key in enumerate(keys)}
    rows = [row_of[key] for key in zip(found.classes, found.drawers, strict=True)]
    np.testing.assert_array_equal(found.pixels, expected.inputs[rows])


def test_of_omniglots_evaluation_archive_only_ten_alphabets_are_read(tmp_path: Path) -> None:
    drawings = {"images_background/Greek/character01/0001_07.png": picture()}
    hidden = {f"images_evaluation/{name}/character01/0001_01.png": picture() for name in [*EVALUATION_DEV, "Tengwar"]}
    contents = {"python/images_background.zip": zipped(drawings), "python/images_evaluation.zip": zipped(hidden)}
    files = in_layout("omniglot", tmp_path, contents, sums=False)
    pool = CATALOGUE["omniglot"].read(files, settings_of("omniglot"))
    assert set(pool.attributes["alphabet"]) == {"Greek", *EVALUATION_DEV} and pool.attributes["drawer"][0] == "7"
    assert pool.attributes["set"] == ("background", *["evaluation_dev"] * 10)


def picture(grey: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (105, 105), grey).save(stream, "PNG")
    return stream.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return stream.getvalue()


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
    "not a zip": lambda _: b"something else",
    "empty": lambda _: b"",
    "cut off": lambda whole: whole[: len(whole) // 2],
    "a wrong checksum": lambda whole: changed(whole, (DATA + 100, whole[DATA + 100] ^ 0xFF)),
    "damaged compression": lambda whole: changed(whole, (DATA, 0xFF)),
    "an unknown compression": lambda whole: in_both_headers(whole, 8, 99),
    "a password": lambda whole: in_both_headers(whole, 6, 1),
    "data that begin beyond its end": lambda whole: changed(whole, (29, 0x68)),  # length of the extra field
    "no picture": lambda _: zipped({ENTRY: b"not a picture"}),
    "another layout": lambda _: zipped({"Greek/0393_01.png": picture()}),
}


@pytest.mark.parametrize("case", SPOILED)
def test_an_archive_that_cannot_be_read_is_refused_by_name(case: str) -> None:
    whole = zipped({ENTRY: np.random.default_rng(0).bytes(500)})
    with pytest.raises(SourceError, match=r"a\.zip"):
        read_archive(SPOILED[case](whole), "a.zip", settings_of("omniglot"))


def test_files_of_an_archive_that_are_no_drawings_are_passed_over() -> None:
    content = zipped({ENTRY: picture(55), "images_background/Greek/.DS_Store": b"", "README.md": b"", "a/b/c.png": b""})
    found = read_archive(content, "a.zip", settings_of("omniglot"))
    assert found.classes == ["Greek/character01"] and found.pixels.max() == found.pixels.min() == 200


def test_two_origins_of_a_set_lie_apart(tmp_path: Path) -> None:
    files = origin_files("cxr_pneumonia", tmp_path, CATALOGUE["cxr_pneumonia"].origins)
    folders = {files.where(entry).relative_to(tmp_path).parts[0] for entry in files.entries}
    assert folders == {"pneumonia_mnist@9361a718d67e", "COVID-19@ee3e2cffc082"}
    assert Origin("a/b", "c" * 40).folder == f"b@{'c' * 12}"
