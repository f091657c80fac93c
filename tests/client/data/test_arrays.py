"""A site's .npz file of pictures or vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.arrays import open_arrays, read_unlabelled_arrays
from client.data.indexed import Skipped
from common.errors import SiteDataError
from common.settings import DataSettings
from tests.mirror import mirror_or_skip

GREY = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
LABELS = np.array([0, 1, 1, 0])


def saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "line.npz"
    np.savez(path, **arrays)
    return path


def picture_settings(**changes: Any) -> DataSettings:
    return DataSettings(**{"size": 8, "inputs": "x", "label": "y", **changes})


def test_grey_pictures_come_as_they_are_by_class(tmp_path: Path) -> None:
    data = open_arrays(saved(tmp_path, x=GREY, y=LABELS), picture_settings())
    assert data.classes() == ["0", "1"]
    np.testing.assert_allclose(data.inputs("1", [1])[0, 0].numpy() * 255, GREY[2], atol=1e-4)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["colours last", "colours first"])
def test_colour_pictures_come_with_colours_first(tmp_path: Path, axes: tuple[int, ...]) -> None:
    colour = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    data = open_arrays(saved(tmp_path, x=colour.transpose(axes), y=LABELS), picture_settings(channels=3))
    np.testing.assert_allclose(data.inputs("0", [1])[0].numpy() * 255, colour[3].transpose(2, 0, 1), atol=1e-4)


def test_pictures_are_brought_to_the_agreed_size(tmp_path: Path) -> None:
    data = open_arrays(saved(tmp_path, x=GREY, y=LABELS), picture_settings(size=4))
    expected = GREY[0].reshape(4, 2, 4, 2).mean((1, 3))
    np.testing.assert_allclose(data.inputs("0", [0])[0, 0].numpy() * 255, expected, atol=0.51)


def test_arrays_beside_the_pictures_add_a_grey_channel_each(tmp_path: Path) -> None:
    template = 255 - GREY
    path = saved(tmp_path, x=GREY, y=LABELS, template=template)
    data = open_arrays(path, picture_settings(beside="template"))
    found = data.inputs("0", [1])[0].numpy() * 255
    np.testing.assert_allclose(found, np.stack([GREY[3], template[3]]), atol=1e-4)


def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path) -> None:
    deep = np.array([[[0, 1], [4095, 2048]]] * 2, dtype=np.uint16)
    data = open_arrays(saved(tmp_path, x=deep, y=[0, 1]), picture_settings(size=2, bits=16, white=4095.0))
    np.testing.assert_allclose(data.inputs("0", [0])[0, 0].numpy() * 4095, deep[0], atol=0.05)


def test_vectors_are_standardised_with_the_sites_own_statistics(tmp_path: Path) -> None:
    vectors = np.array([[1, 10], [3, 10], [5, 10]], dtype=np.float64)
    settings = DataSettings(kind="vector", size=2, inputs="x", label="y")
    data = open_arrays(saved(tmp_path, x=vectors, y=np.array(["a", "b", "a"])), settings)
    assert data.inputs("a", [0, 1]).numpy() == pytest.approx(np.array([[-1.2247, 0], [1.2247, 0]]), abs=1e-4)
    assert data.standardisation is not None


def test_gas_sensors_of_a_real_file_are_read() -> None:
    settings = DataSettings(kind="vector", size=128, inputs="x", label="gas")
    data = open_arrays(mirror_or_skip() / "gas_drift" / "batches.npz", settings)
    assert len(data.classes()) == 6 and sum(data.count(name) for name in data.classes()) == 3927
    assert data.inputs("0", range(10)).isfinite().all()


def test_a_picture_that_cannot_be_used_is_skipped_and_named(tmp_path: Path) -> None:
    broken = GREY.astype(np.float32) / 255
    broken[1, 3, 3] = np.nan
    path = saved(tmp_path, x=broken, y=LABELS)
    data = open_arrays(path, picture_settings())
    assert (data.count("0"), data.count("1")) == (2, 1)
    assert [item.where for item in data.skipped] == [f"{path} input 1"]
    assert isinstance(data.skipped[0], Skipped) and data.skipped[0].reason


def test_inputs_to_classify_need_no_class(tmp_path: Path) -> None:
    path = saved(tmp_path, x=GREY)
    names, values = read_unlabelled_arrays(path, picture_settings())
    assert names == [f"{path}:{number}" for number in range(4)]
    assert values.shape == (4, 1, 8, 8) and values.dtype == np.uint8


@pytest.mark.parametrize(
    ("arrays", "changes", "said"),
    [
        ({"x": GREY}, {}, ["no array 'y'", "it has x"]),
        ({"x": GREY, "y": LABELS[:2]}, {}, ["'y'", "one for each of the inputs [4, 8, 8]"]),
        ({"x": GREY, "y": LABELS / 2}, {}, ["'y'", "float64"]),
        ({"x": GREY[None], "y": LABELS[:1]}, {}, ["[1, 4, 8, 8]", "1 channel(s)"]),
        ({"x": GREY, "y": LABELS}, {"channels": 3}, ["3 channel(s)", "data.channels"]),
        ({"x": GREY, "y": LABELS}, {"beside": "mask"}, ["no array 'mask'"]),
        ({"x": GREY, "y": LABELS, "mask": GREY[:3]}, {"beside": "mask"}, ["4, 3 pictures"]),
        ({"x": GREY, "y": LABELS}, {"kind": "vector"}, ["[4, 8, 8]", "[N, 8]", "data.size"]),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_what_was_found(
    tmp_path: Path, arrays: dict[str, Any], changes: dict[str, Any], said: list[str]
) -> None:
    path = saved(tmp_path, **arrays)
    with pytest.raises(SiteDataError) as caught:
        open_arrays(path, picture_settings(**changes))
    assert all(part in str(caught.value) for part in [str(path), *said]), str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "line.npz"
    path.write_bytes(content)
    with pytest.raises(SiteDataError, match="npz file that can be read"):
        open_arrays(path, picture_settings())


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = saved(tmp_path, x=GREY, y=np.array([{"a": 1}] * 4, dtype=object))
    with pytest.raises(SiteDataError, match="npz file that can be read"):
        open_arrays(path, picture_settings())


def test_vectors_with_endless_numbers_are_skipped_and_named(tmp_path: Path) -> None:
    vectors = np.array([[1.0, 2], [np.inf, 3], [3, np.nan]])
    path = saved(tmp_path, x=vectors, y=np.array(["a", "a", "b"]))
    data = open_arrays(path, DataSettings(kind="vector", size=2, inputs="x", label="y"))
    assert data.count("a") == 1 and [item.where for item in data.skipped] == [f"{path} input 1"]


def test_a_numpy_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "line.npy", GREY)
    (tmp_path / "line.npy").rename(tmp_path / "line.npz")
    with pytest.raises(SiteDataError, match="npz file that can be read"):
        open_arrays(tmp_path / "line.npz", picture_settings())
