"""DICOM pictures: pydicom's own test files, and files written here whose every number is known."""

import io
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from client.data.cache import PictureCache
from client.data.dicom import is_dicom, read_dicom
from client.data.folder import open_folder, read_picture
from client.data.images import UnreadableImageError, UnreadableNowError
from common.errors import SiteDataError
from common.settings import DataSettings

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")  # as in use; tests begin with filters of their own

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
PATIENT = "Doe^Jane"
RAMP = np.arange(16, dtype=np.uint16).reshape(4, 4) * 256
"""Grey levels 0, 256, … 3840: 12 bits."""


def written(path: Path, values: NDArray[Any], **tags: object) -> Path:
    """Write a picture of one sample [H, W] or three [H, W, 3], 12 bits of 16 unless tags say otherwise."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    header = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    bits = 8 * values.itemsize
    known = {
        "PatientName": PATIENT,
        "PatientID": "1960-02-30",
        "Rows": values.shape[0],
        "Columns": values.shape[1],
        "SamplesPerPixel": 3 if values.ndim == 3 else 1,
        "PhotometricInterpretation": "RGB" if values.ndim == 3 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": 12 if bits == 16 else bits,
        "HighBit": (12 if bits == 16 else bits) - 1,
        "PixelRepresentation": int(values.dtype.kind == "i"),
        "PixelData": values.tobytes(),
        **({"PlanarConfiguration": 0} if values.ndim == 3 else {}),
        **tags,
    }
    for name, value in known.items():
        setattr(header, name, value)
    header["PixelData"].VR = "OW"
    header.save_as(path, enforce_file_format=True)
    return path


def shown(path: Path, **options: Any) -> list[int]:
    """Return the 16 grey levels of a picture of 4 x 4 as 16 bits."""
    return [int(level) for level in read_dicom(path, 1, 4, bits=16, **options).ravel()]


def scaled(values: NDArray[Any], black: float, white: float) -> list[int]:
    unit = (values.astype(float).ravel() - black) / (white - black)
    return [int(level) for level in np.rint(unit.clip(0, 1) * 65535)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "picture.dcm"


# -------------------------------------------------------------------------------------------- grey levels


def test_without_a_window_the_range_is_that_of_the_bits_stored(file: Path) -> None:
    assert shown(written(file, RAMP)) == scaled(RAMP, 0, 4095)
    assert read_dicom(file, 1, 4).dtype == np.uint8
    assert read_dicom(file, 1, 4).ravel().tolist() == [round(level / 4095 * 255) for level in RAMP.ravel().tolist()]


def test_signed_numbers_have_their_range_too(file: Path) -> None:
    values = RAMP.astype(np.int16) - 2048
    assert shown(written(file, values)) == scaled(values, -2048, 2047)


@pytest.mark.parametrize("slope", [2.0, -0.5])
def test_a_rescale_moves_the_range_with_the_numbers(file: Path, slope: float) -> None:
    written(file, RAMP, RescaleSlope=slope, RescaleIntercept=-1024)
    ends = sorted((-1024.0, 4095 * slope - 1024))
    assert shown(file) == scaled(RAMP * slope - 1024, *ends)


def test_a_window_is_black_to_white_in_rescaled_numbers(file: Path) -> None:
    written(file, RAMP, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=100, WindowWidth=1001)
    # PS3.3 C.11.2.1.2.1: from centre - 0.5 - (width - 1) / 2 to centre - 0.5 + (width - 1) / 2
    expected = scaled(RAMP.astype(float) - 1024, 99.5 - 500, 99.5 + 500)
    assert np.abs(np.array(shown(file)) - expected).max() <= 1
    assert {0, 65535} < set(shown(file))


def test_of_several_windows_the_first_counts_and_an_empty_one_is_none(file: Path) -> None:
    several = shown(written(file, RAMP, WindowCenter=[1000, 2000], WindowWidth=[500, 9]))
    assert several == shown(written(file, RAMP, WindowCenter=1000, WindowWidth=500))
    assert shown(written(file, RAMP, WindowCenter=None, WindowWidth=None)) == scaled(RAMP, 0, 4095)


def test_a_lookup_table_comes_before_a_window(file: Path) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = (65535 - 16 * np.arange(4096, dtype="<u2")).astype("<u2").tobytes()
    table["LUTData"].VR = "OW"
    written(file, RAMP, VOILUTSequence=[table], WindowCenter=5, WindowWidth=3)
    assert shown(file) == [65535 - 16 * int(number) for number in RAMP.ravel()]


def test_monochrome1_is_turned_round_so_that_larger_is_brighter(file: Path) -> None:
    values = RAMP.astype(np.int16) - 2048
    window = {"WindowCenter": 0, "WindowWidth": 2000}
    for tags in ({}, window):
        plain = np.array(shown(written(file, values, **tags)))
        turned = np.array(shown(written(file, values, PhotometricInterpretation="MONOCHROME1", **tags)))
        assert np.abs(turned - (65535 - plain)).max() <= 1
    inverted = read_dicom(file, 1, 4, bits=16, invert=True)
    assert np.array_equal(inverted.ravel(), 65535 - turned)


def test_white_counts_where_no_window_says_it_and_not_for_8_bits(file: Path) -> None:
    assert shown(written(file, RAMP), white=1000) == scaled(RAMP, 0, 1000)
    windowed = {"WindowCenter": 2000, "WindowWidth": 4000}
    assert shown(written(file, RAMP, **windowed), white=1000) == shown(file)
    few = (RAMP // 256).astype(np.uint8)
    assert shown(written(file, few), white=1000) == scaled(few, 0, 255)


def test_a_picture_is_resized_and_spread_over_channels_like_any_other(file: Path) -> None:
    found = read_dicom(written(file, RAMP), 3, 2, bits=16)
    blocks = RAMP.reshape(2, 2, 2, 2).mean((1, 3)) / 4095 * 65535
    assert found.shape == (3, 2, 2) and np.abs(found - blocks).max() <= 1


# ------------------------------------------------------------------------------------------------- colour


def test_colours_come_as_red_green_blue(file: Path) -> None:
    values = np.random.default_rng(3).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    assert np.array_equal(read_dicom(written(file, values), 3, 4), values.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "name", ["SC_rgb_rle.dcm", "SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_rle_16bit.dcm", "SC_ybr_full_422_uncompressed.dcm"]
)
def test_bars_of_colour_are_the_same_in_every_colour_model_and_compression(name: str) -> None:
    found = read_dicom(SHIPPED / name, 3, 100)
    bars = [(255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255), (128, 128, 255), (0, 0, 0)]
    for number, colour in enumerate(bars):
        assert np.abs(found[:, 5 + 10 * number, 50].astype(int) - colour).max() <= 5, number


def test_a_palette_is_resolved() -> None:
    header = pydicom.dcmread(SHIPPED / "examples_palette.dcm")
    red = np.frombuffer(header.RedPaletteColorLookupTableData, "<u2")
    row, column = 100, 200
    found = read_dicom(SHIPPED / "examples_palette.dcm", 3, 800, bits=16)
    stored = int(header.pixel_array[row, column])
    assert found[0, int((row + 0.5) * 800 / 350), column] == red[stored]


# --------------------------------------------------------------------------------------- pydicom's own files

READABLE = {
    "CT_small.dcm": (128, 2191),
    "MR_small.dcm": (127, 2145),
    "MR_small_RLE.dcm": (127, 2145),
    "MR_small_bigendian.dcm": (127, 2145),
    "MR_small_implicit.dcm": (127, 2145),
    "MR_small_jp2klossless.dcm": (127, 2145),
    "image_dfl.dcm": (0, 255),
    "examples_jpeg2k.dcm": (0, 255),
    "SC_rgb_jpeg.dcm": (134, 252),
}


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_files_of_every_transfer_syntax_that_needs_no_plugin_are_read(name: str, channels: int) -> None:
    found = read_dicom(SHIPPED / name, channels, 32, bits=16)
    assert found.shape == (channels, 32, 32) and found.dtype == np.uint16 and len(np.unique(found[:3])) > 20


def test_the_same_picture_in_four_transfer_syntaxes_has_the_same_levels() -> None:
    found = [read_dicom(SHIPPED / name, 1, 64, bits=16) for name in READABLE if name.startswith("MR_small")]
    assert len(found) == 5 and all(np.array_equal(found[0], other) for other in found)


def refused(path: Path) -> UnreadableImageError:
    with pytest.raises(UnreadableImageError) as raised:
        read_dicom(path, 1, 8)
    return raised.value


@pytest.mark.parametrize("name", ["JPEGLSNearLossless_08.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm"])
def test_a_compression_that_needs_a_plugin_is_named_with_the_packages_that_read_it(name: str) -> None:
    reason = refused(SHIPPED / name)
    assert isinstance(reason, UnreadableNowError), "it can be read once the package is installed"
    assert "JPEG" in str(reason) and "may need another package" in str(reason) and "pylibjpeg" in str(reason)


@pytest.mark.parametrize(("name", "frames"), [("rtdose.dcm", 15), ("SC_rgb_rle_2frame.dcm", 2)])
def test_several_frames_are_refused_with_their_number(name: str, frames: int) -> None:
    assert f"holds {frames} frames" in str(refused(SHIPPED / name))


@pytest.mark.parametrize("name", ["rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm"])
def test_dicom_that_is_no_picture_is_refused_as_such(name: str) -> None:
    assert "holds no picture" in str(refused(SHIPPED / name))


@pytest.mark.parametrize(
    "name", ["MR_truncated.dcm", "no_meta.dcm", "meta_missing_tsyntax.dcm", "badVR.dcm", "JPGExtended.dcm", "gone.dcm"]
)
def test_damaged_files_are_unreadable(name: str) -> None:
    assert "not a readable picture" in str(refused(SHIPPED / name))


def test_what_a_decoder_cannot_do_says_which_packages_might() -> None:
    assert "pylibjpeg" in str(refused(SHIPPED / "JPGExtended.dcm"))


def test_more_pixels_than_are_safe_are_not_unpacked(file: Path) -> None:
    assert "exceed the limit" in str(refused(written(file, RAMP, Rows=60_000, Columns=60_000)))


# -------------------------------------------------------------------------------- what may be in a reason


def test_every_file_that_pydicom_ships_is_read_or_unreadable_and_no_reason_quotes_a_header(
    capfd: pytest.CaptureFixture[str],
) -> None:
    outcomes = []
    for path in sorted(SHIPPED.glob("*.dcm")):
        try:
            outcomes.append(read_dicom(path, 1, 8).shape)
        except UnreadableImageError as error:
            outcomes.append(())
            header = pydicom.dcmread(path, force=True)
            private = {str(header.get(name)) for name in ("PatientName", "PatientID", "StudyDate", "InstitutionName")}
            assert not any(value in str(error) for value in private - {"None", ""}), path.name
    capfd.readouterr()  # what C libraries say
    assert outcomes.count((1, 8, 8)) > 40 and outcomes.count(()) > 20


def test_whatever_happens_to_its_bytes_a_file_is_read_or_unreadable_and_the_patient_is_not_in_the_reason(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 500, "WindowWidth": 900}
    whole = written(file, RAMP, **tags).read_bytes()
    draw = random.Random(1)
    outcomes = set()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(132, len(data))] = draw.choice([0, 1, 0xFF, draw.randrange(256)])
        file.write_bytes(bytes(data))
        try:
            outcomes.add(read_dicom(file, 1, 8).shape)
        except UnreadableImageError as error:
            outcomes.add(())
            assert "Doe" not in str(error) and "1960" not in str(error)
    assert outcomes == {(), (1, 8, 8)} and "Doe" not in caplog.text


def test_wrong_numbers_in_a_header_are_not_quoted(file: Path) -> None:
    written(file, RAMP, WindowCenter=1234, WindowWidth=1234)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"1234", b"Doe "))
    reason = refused(file)
    assert "Doe" not in str(reason) and "damaged DICOM" in str(reason)
    assert reason.__cause__ is None and reason.__suppress_context__, "a traceback in a log would quote it"


# ---------------------------------------------------------------------------------------------- in a folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "ward-3"
    for name in ("MR", "CT"):
        (folder / name).mkdir(parents=True)
        shutil.copy(SHIPPED / f"{name}_small.dcm", folder / name / "a.dcm")
    return folder


def test_dicom_files_are_found_by_ending_or_by_how_they_begin(site: Path) -> None:
    source = SHIPPED / "MR_small.dcm"
    for name in ("b.DCM", "IM0001", "1.2.840.113619.2.1", "IM.0002"):
        shutil.copy(source, site / "MR" / name)
    for name in ("LICENSE", "1.5", "empty"):
        (site / "MR" / name).write_bytes(b"DICM" * (name != "empty"))
    shutil.copy(source, site / "MR" / "c.bak")
    data = open_folder(site, DataSettings(size=16))
    assert data.count("MR") == 5 and data.count("CT") == 1 and data.skipped == ()
    one, *others = data.inputs("MR", range(5))
    assert all(bool((other == one).all()) for other in others)


def test_what_cannot_be_read_is_skipped_and_listed(site: Path) -> None:
    for name in ("rtdose.dcm", "SC_rgb_jls_lossy_line.dcm", "MR_truncated.dcm"):
        shutil.copy(SHIPPED / name, site / "MR" / name)
    data = open_folder(site, DataSettings(size=16))
    assert data.count("MR") == 1
    reasons = {Path(item.where).name: item.reason for item in data.skipped}
    assert set(reasons) == {"rtdose.dcm", "SC_rgb_jls_lossy_line.dcm", "MR_truncated.dcm"}
    assert "frames" in reasons["rtdose.dcm"] and "another package" in reasons["SC_rgb_jls_lossy_line.dcm"]


def test_one_new_picture_is_read(site: Path) -> None:
    assert read_picture(site / "CT" / "a.dcm", DataSettings(size=16, bits=16)).shape == (1, 16, 16)


def test_files_named_by_numbers_have_masks_of_their_own(site: Path) -> None:
    for name in ("1.2.3", "1.2.4"):
        shutil.copy(SHIPPED / "MR_small.dcm", site / "MR" / name)
    (site / "masks").mkdir()
    written(site / "masks" / "1.2.4.dcm", RAMP)
    written(site / "masks" / "a.dcm", RAMP)
    data = open_folder(site, DataSettings(size=16, beside="../masks/{stem}.dcm"))
    assert data.count("MR") == 2 and [Path(item.where).name for item in data.skipped] == ["1.2.3"]


def test_nothing_of_a_header_is_in_the_cache(site: Path, tmp_path: Path) -> None:
    for name in ("CT", "MR"):
        written(site / name / "b.dcm", RAMP)
        written(site / name / "c.dcm", RAMP, NumberOfFrames=7)
    data = DataSettings(size=16)
    open_folder(site, data, tmp_path / "cache")
    kept = PictureCache(tmp_path / "cache", site, data).load()
    assert kept is not None and len(kept.records) == 6
    for path in (tmp_path / "cache").iterdir():
        content = path.read_bytes()
        assert b"Doe" not in content and b"1960" not in content and b"CompressedSamples" not in content


def test_a_plugin_that_comes_later_is_noticed_although_the_file_stays_the_same(site: Path, tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "MR_small_jpeg_ls_lossless.dcm", site / "MR" / "b.dcm")
    data = DataSettings(size=16)
    open_folder(site, data, tmp_path / "cache")
    kept = PictureCache(tmp_path / "cache", site, data).load()
    assert kept is not None and [record.stamp == "" for record in kept.records] == [False, False, True]


@pytest.mark.parametrize("name", ["a.dcm", "IM0001"])
def test_without_pydicom_the_first_such_file_is_an_error_that_says_what_to_install(
    site: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("CT", "MR"):
        (site / folder / "a.dcm").rename(site / folder / name)
    for module in [loaded for loaded in sys.modules if loaded.split(".")[0] == "pydicom"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(SiteDataError, match=r"pip install 'fedreptile\[dicom\]'") as raised:
        open_folder(site, DataSettings(size=16))
    assert not isinstance(raised.value, UnreadableImageError) and str(site) in str(raised.value)


def test_other_pictures_need_no_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    stream = io.BytesIO(b"P5 1 1 255\n\x80")
    (tmp_path / "line" / "dent").mkdir(parents=True)
    (tmp_path / "line" / "dent" / "a.pgm").write_bytes(stream.getvalue())
    assert open_folder(tmp_path / "line", DataSettings(size=4)).count("dent") == 1


def test_a_file_is_told_by_its_ending_or_its_first_bytes(tmp_path: Path) -> None:
    begins = bytes(128) + b"DICM"
    cases = {"a.dcm": b"", "b": begins, "c.7": begins, "d": begins[:-1], "e.png": begins, "f": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    assert [name for name in cases if is_dicom(tmp_path / name)] == ["a.dcm", "b", "c.7"]
    assert not is_dicom(tmp_path / "gone") and not is_dicom(tmp_path)


def test_in_a_process_of_its_own_nothing_is_said_of_a_file_that_pydicom_warns_of() -> None:
    odd = SHIPPED / "MR_small_padded.dcm"
    with pytest.warns(UserWarning, match="pixel data"):
        _ = pydicom.dcmread(odd).pixel_array
    script = (
        "import logging, sys\nfrom pathlib import Path\nlogging.basicConfig()\n"
        "from client.data.dicom import read_dicom\nprint(read_dicom(Path(sys.argv[1]), 1, 4).shape)\n"
    )
    command = [sys.executable, "-c", script, str(odd)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("(1, 4, 4)\n", "")
