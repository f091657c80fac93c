"""Reading one picture: every mode in every number of channels, every way to be broken."""

import io
import random
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.data.images import UnreadableImageError, UnreadableNowError, pixels_of, read_image
from client.data.indexed import Pixels
from common.errors import SiteDataError

GREY, WHITE, BLACK = 128, 255, 0


def encoded(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    stream.seek(0)
    return stream


def filled(mode: str, value: object, kind: str) -> io.BytesIO:
    return encoded(Image.new(mode, (6, 9), value), kind)  # type: ignore[arg-type]


def numbers(values: object, kind: str) -> io.BytesIO:
    return encoded(Image.fromarray(np.asarray(values)), kind)


def palette(colour: tuple[int, int, int], **options: object) -> io.BytesIO:
    image = Image.new("P", (6, 9), 1)
    image.putpalette([*(3, 3, 3), *colour])
    return encoded(image, "PNG", **options)


# ---------------------------------------------------------------------------------- grey levels by mode

MID_GREY: dict[str, tuple[str, Callable[[], io.BytesIO]]] = {
    "1, in fine checks": ("1", lambda: numbers(np.indices((56, 56)).sum(0) % 2 == 1, "PNG")),
    "L": ("L", lambda: filled("L", GREY, "PNG")),
    "L as JPEG": ("L", lambda: filled("L", GREY, "JPEG")),
    "LA": ("LA", lambda: filled("LA", (GREY, 255), "PNG")),
    "P": ("P", lambda: palette((GREY, GREY, GREY))),
    "P with another colour transparent": ("P", lambda: palette((GREY, GREY, GREY), transparency=0)),
    "RGB": ("RGB", lambda: filled("RGB", (GREY, GREY, GREY), "PNG")),
    "RGB as JPEG": ("RGB", lambda: filled("RGB", (GREY, GREY, GREY), "JPEG")),
    "RGB as WebP": ("RGB", lambda: filled("RGB", (GREY, GREY, GREY), "WEBP")),
    "RGBA": ("RGBA", lambda: filled("RGBA", (GREY, GREY, GREY, 255), "PNG")),
    "RGBA, white half covered by black": ("RGBA", lambda: filled("RGBA", (0, 0, 0, 127), "PNG")),
    "CMYK, three inks": ("CMYK", lambda: filled("CMYK", (127, 127, 127, 0), "TIFF")),
    "CMYK, black ink": ("CMYK", lambda: filled("CMYK", (0, 0, 0, 127), "TIFF")),
    "CMYK as JPEG": ("CMYK", lambda: filled("CMYK", (127, 127, 127, 0), "JPEG")),
    "YCbCr": ("YCbCr", lambda: filled("YCbCr", (GREY, 128, 128), "TIFF")),
    "I;16 as PNG": ("I;16", lambda: numbers(np.full((9, 6), 32768, np.uint16), "PNG")),
    "I;16 as TIFF": ("I;16", lambda: numbers(np.full((9, 6), 32768, np.uint16), "TIFF")),
    "I with 16-bit values": ("I", lambda: numbers(np.full((9, 6), 32768, np.int32), "TIFF")),
    "I with 8-bit values": ("I", lambda: numbers(np.full((9, 6), GREY, np.int32), "TIFF")),
    "F from 0 to 1": ("F", lambda: numbers(np.full((9, 6), 0.5, np.float32), "TIFF")),
    "F from 0 to 255": ("F", lambda: numbers(np.full((9, 6), 128.0, np.float32), "TIFF")),
    "F from 0 to 65535": ("F", lambda: numbers(np.full((9, 6), 32768.0, np.float32), "TIFF")),
}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("case", MID_GREY)
def test_mid_grey_stays_mid_grey_in_every_mode(case: str, channels: int) -> None:
    mode, make = MID_GREY[case]
    with Image.open(make()) as image:
        assert image.mode == mode, "the case does not test the mode that it names"
    pixels = read_image(make(), channels, 28)
    assert pixels.shape == (channels, 28, 28) and pixels.dtype == np.uint8
    if channels == 4 and "half covered" in case:
        assert set(pixels[:3].ravel()) == {BLACK} and set(pixels[3].ravel()) == {127}
        return
    colours = pixels[:3].astype(int)
    assert abs(colours - GREY).max() <= 2
    if channels == 4:
        assert set(pixels[3].ravel()) == {255}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("level", [BLACK, WHITE])
def test_bilevel_pictures_keep_black_and_white(level: int, channels: int) -> None:
    assert set(read_image(filled("1", level, "PNG"), channels, 8)[:3].ravel()) == {level}


@pytest.mark.parametrize(
    ("value", "level"), [(0, 0), (1, 0), (200, 1), (255, 1), (256, 1), (257, 1), (12850, 50), (65535, 255)]
)
def test_16_bit_pictures_are_scaled_by_their_full_range_however_dark_they_are(value: int, level: int) -> None:
    pixels = read_image(numbers(np.full((9, 6), value, np.uint16), "PNG"), 1, 4)
    assert set(pixels.ravel()) == {level}


def test_numbers_outside_the_usual_ranges_are_scaled_by_the_range_they_have() -> None:
    values = np.tile(np.array([-100.0, 0.0, 100.0, 300.0], np.float32), (4, 1))
    row = read_image(numbers(values, "TIFF"), 1, 4)[0, 0]
    assert row.tolist() == [0, 64, 128, 255]  # (v + 100) / 400 * 255, to the nearest even


def test_a_constant_of_any_size_and_missing_numbers_are_read_without_a_warning() -> None:
    assert read_image(numbers(np.full((4, 4), 1e6, np.float32), "TIFF"), 1, 4).shape == (1, 4, 4)
    holes = np.array([[np.nan, 1.0], [0.0, 0.5]], np.float32)
    assert read_image(numbers(holes, "TIFF"), 1, 2)[0].tolist() == [[0, 255], [0, 128]]


def test_infinite_numbers_count_as_the_largest_and_the_smallest_and_do_not_blot_out_the_rest() -> None:
    values = np.array([[np.inf, -np.inf], [0.0, 1.0]], np.float32)
    assert read_image(numbers(values, "TIFF"), 1, 2)[0].tolist() == [[255, 0], [0, 255]]


TRANSPARENT: dict[str, Callable[[], io.BytesIO]] = {
    "RGBA": lambda: filled("RGBA", (9, 9, 9, 0), "PNG"),
    "LA": lambda: filled("LA", (9, 0), "PNG"),
    "P": lambda: palette((9, 9, 9), transparency=1),
    "L with a transparent grey": lambda: encoded(Image.new("L", (6, 9), 9), "PNG", transparency=9),
    "RGB with a transparent colour": lambda: encoded(
        Image.new("RGB", (6, 9), (9, 9, 9)), "PNG", transparency=(9, 9, 9)
    ),
}


@pytest.mark.parametrize("case", TRANSPARENT)
def test_what_is_transparent_is_white(case: str) -> None:
    assert set(read_image(TRANSPARENT[case](), 1, 8).ravel()) == {WHITE}
    assert set(read_image(TRANSPARENT[case](), 3, 8).ravel()) == {WHITE}


@pytest.mark.parametrize("case", TRANSPARENT)
def test_with_four_channels_what_is_transparent_stays_so(case: str) -> None:
    assert set(read_image(TRANSPARENT[case](), 4, 8)[3].ravel()) == {0}


def test_colours_come_as_red_green_blue() -> None:
    assert read_image(filled("RGB", (250, 120, 10), "PNG"), 3, 4)[:, 0, 0].tolist() == [250, 120, 10]
    assert read_image(palette((250, 120, 10)), 3, 4)[:, 0, 0].tolist() == [250, 120, 10]


def test_grey_of_a_colour_is_its_luma() -> None:
    grey = read_image(filled("RGB", (250, 120, 10), "PNG"), 1, 4)
    luma = 0.299 * 250 + 0.587 * 120 + 0.114 * 10  # ITU-R 601
    assert abs(float(grey[0, 0, 0]) - luma) <= 1


# ------------------------------------------------------------------------------------------ size and sense


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(7).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.mark.parametrize(("down", "across"), [(2, 2), (3, 3), (1, 4), (5, 1)])
def test_a_picture_that_shrinks_is_averaged_over_areas(down: int, across: int) -> None:
    values = noise(28 * down, 28 * across)
    means = values.reshape(28, down, 28, across).mean((1, 3))
    found = read_image(numbers(values, "PNG"), 1, 28)[0]
    assert abs(found - means).max() <= 1


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    values = noise(28, 28)
    assert np.array_equal(read_image(numbers(values, "PNG"), 1, 28)[0], values)


def test_a_small_picture_is_enlarged_in_blocks() -> None:
    values = noise(14, 14)
    assert np.array_equal(read_image(numbers(values, "PNG"), 1, 28)[0], values.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2000), (2000, 3), (105, 105)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiny_and_oblong_pictures_are_read(size: tuple[int, int], channels: int) -> None:
    pixels = read_image(encoded(Image.new("L", size, 200), "PNG"), channels, 28)
    assert pixels.shape == (channels, 28, 28)
    assert set(pixels[:3].ravel()) == {200}


@pytest.mark.parametrize("channels", [1, 3])
def test_invert_swaps_dark_and_light(channels: int) -> None:
    values = noise(28, 28)
    plain = read_image(numbers(values, "PNG"), channels, 28)
    swapped = read_image(numbers(values, "PNG"), channels, 28, invert=True)
    assert np.array_equal(swapped, 255 - plain) and swapped.flags.c_contiguous


def test_invert_leaves_what_is_opaque_opaque() -> None:
    pixels = read_image(filled("RGBA", (10, 20, 30, 255), "PNG"), 4, 4, invert=True)
    assert pixels[:, 0, 0].tolist() == [245, 235, 225, 255]


def test_the_first_frame_of_a_moving_picture_is_read() -> None:
    frames = [Image.new("L", (4, 4), level) for level in (40, 200)]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert set(read_image(moving, 1, 4).ravel()) == {40}


@pytest.mark.parametrize("channels", [0, 2, 5])
def test_a_number_of_channels_that_no_picture_has_is_an_error_of_the_settings_not_of_the_file(channels: int) -> None:
    with pytest.raises(SiteDataError, match=f"data.channels is {channels}") as raised:
        read_image(filled("L", 0, "PNG"), channels, 4)
    assert not isinstance(raised.value, UnreadableImageError)


# ------------------------------------------------------------------------------------------------- broken

WHOLE = {kind: numbers(noise(24, 24), kind).getvalue() for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM")}


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


BROKEN = {
    "nothing": b"",
    "text": b"not a picture\n" * 50,
    "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "PNG signature only": WHOLE["PNG"][:8],
    "PNG with a wrong checksum": flipped(WHOLE["PNG"], WHOLE["PNG"].index(b"IDAT") + 20),
    **{f"{kind} cut to a half": data[: len(data) // 2] for kind, data in WHOLE.items()},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_unreadable(case: str) -> None:
    with pytest.raises(UnreadableImageError, match="not a readable image"):
        read_image(io.BytesIO(BROKEN[case]), 1, 28)


def test_a_missing_file_and_a_folder_are_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(UnreadableImageError):
            read_image(path, 1, 28)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", WHOLE)
def test_whatever_happens_to_its_bytes_a_file_is_read_or_unreadable(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(kind)
    outcomes = set()
    for _ in range(150):
        data = bytearray(WHOLE[kind])
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(draw.choice([40, len(data)]))] = draw.randrange(256)
        try:
            outcomes.add(read_image(io.BytesIO(bytes(data)), draw.choice([1, 3, 4]), 8).shape[1:])
        except UnreadableImageError:
            outcomes.add(())
    capfd.readouterr()  # what C libraries say about it
    assert outcomes == {(), (8, 8)}


def bilevel_png(side: int, rows: int) -> bytes:
    """Return a PNG that claims side x side pixels of one bit and holds this many rows, all black."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(1)
    data = b"".join([packer.compress(bytes(1 + (side + 7) // 8)) for _ in range(rows)] + [packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


BOMBS = {
    "a header that claims 50000 x 50000": bilevel_png(50_000, 0),
    "a whole picture of twice what is safe": bilevel_png(14_000, 14_000),
    "a whole picture a little beyond what is safe": bilevel_png(9_500, 9_500),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_decompression_bomb_is_unreadable_and_the_reason_is_its_size(case: str) -> None:
    with pytest.raises(UnreadableImageError, match="exceeds limit"):
        read_image(io.BytesIO(BOMBS[case]), 1, 28)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_a_decompression_bomb_is_never_unpacked(tmp_path: Path) -> None:
    for number, bomb in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.png").write_bytes(bomb)
    (tmp_path / "good.png").write_bytes(WHOLE["PNG"])
    script = (
        "import re, sys\nfrom pathlib import Path\nfrom client.data.images import UnreadableImageError, read_image\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "read_image(Path(sys.argv[1]) / 'good.png', 1, 28)\n"
        "before = peak()\n"
        "for number in range(3):\n"
        "    try: read_image(Path(sys.argv[1]) / f'{number}.png', 1, 28)\n"
        "    except UnreadableImageError: pass\n"
        "print(peak() - before)\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 * 1024, "more than 32 MiB were used; unpacked, the smallest needs 86 MiB"


class Waiting(io.BytesIO):
    """A file that says when it is first read and then waits."""

    def __init__(self, data: bytes, wait_for: threading.Event) -> None:
        super().__init__(data)
        self.began = threading.Event()
        self._wait_for = wait_for

    def read(self, size: int | None = -1) -> bytes:
        self.began.set()
        assert self._wait_for.wait(10)
        return super().read(size)


def test_reading_in_several_threads_leaves_the_warning_filters_of_the_process_as_they_were() -> None:
    before = list(warnings.filters)
    second_began, first_done = threading.Event(), threading.Event()
    first, second = Waiting(WHOLE["PNG"], second_began), Waiting(WHOLE["PNG"], first_done)
    second.began = second_began
    readers = [threading.Thread(target=read_image, args=(file, 1, 8)) for file in (first, second)]
    readers[0].start()
    assert first.began.wait(10)
    readers[1].start()
    readers[0].join(10)
    first_done.set()
    readers[1].join(10)
    after = list(warnings.filters)
    warnings.filters[:] = before  # type: ignore[index]
    assert after == before


def test_a_picture_is_turned_the_way_its_camera_was_held() -> None:
    picture = Image.new("L", (8, 8), 0)
    picture.paste(255, (0, 0, 8, 4))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: what is above lies to the right
    pixels = read_image(encoded(picture, "PNG", exif=exif), 1, 8)[0]
    assert set(pixels[:, 4:].ravel()) == {255} and set(pixels[:, :4].ravel()) == {0}


def test_a_file_that_would_start_another_program_is_no_picture() -> None:
    postscript = io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableImageError):
        read_image(postscript, 1, 8)


# ----------------------------------------------------------------------------------- more than eight bits


def deep(height: int, width: int) -> Pixels:
    return np.random.default_rng(8).integers(0, 65536, (height, width), dtype=np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_every_grey_level_of_a_16_bit_file(kind: str) -> None:
    values = deep(28, 28)
    found = read_image(numbers(values, kind), 1, 28, bits=16)
    assert found.dtype == np.uint16 and np.array_equal(found[0], values)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_of_an_8_bit_file_are_its_levels_over_the_whole_range(channels: int) -> None:
    values = noise(28, 28)
    found = read_image(numbers(values, "PNG"), channels, 28, bits=16)
    assert found.dtype == np.uint16
    assert np.array_equal(found, read_image(numbers(values, "PNG"), channels, 28).astype(int) * 257)


def test_a_16_bit_picture_that_shrinks_is_averaged_over_areas_without_losing_bits() -> None:
    values = deep(56, 84)
    means = values.reshape(28, 2, 28, 3).mean((1, 3))
    assert abs(read_image(numbers(values, "PNG"), 1, 28, bits=16)[0] - means).max() <= 1


@pytest.mark.parametrize("channels", [3, 4])
def test_deep_grey_is_grey_and_opaque_in_more_channels(channels: int) -> None:
    values = deep(8, 8)
    found = read_image(numbers(values, "PNG"), channels, 8, bits=16)
    assert all(np.array_equal(plane, values) for plane in found[:3])
    assert channels == 3 or set(found[3].ravel()) == {65535}


def test_white_is_what_the_settings_say_and_beyond_it_nothing_is_brighter() -> None:
    row = np.array([[0, 1000, 4095, 5000, 65535]] * 5, np.uint16)
    found = read_image(numbers(row, "PNG"), 1, 5, bits=16, white=4095)[0, 0]
    assert found.tolist() == [0, round(1000 / 4095 * 65535), 65535, 65535, 65535]
    assert read_image(numbers(row, "PNG"), 1, 5, white=4095)[0, 0].tolist() == [0, 62, 255, 255, 255]


@pytest.mark.parametrize("type_", [np.int32, np.float32])
def test_white_counts_for_every_number_of_more_than_8_bits_and_not_for_8(type_: type) -> None:
    rows: NDArray[Any] = np.array([[-5, 0, 1000, 4000]] * 4).astype(type_)
    assert read_image(numbers(rows, "TIFF"), 1, 4, white=2000)[0, 0].tolist() == [0, 0, 128, 255]
    assert read_image(filled("L", 100, "PNG"), 1, 4, white=4095)[0, 0, 0] == 100


@pytest.mark.parametrize(("largest", "level"), [(4095, 255), (65535, 16)])
@pytest.mark.parametrize("white", [0.0, 4095.0])
def test_a_pgm_says_itself_what_is_white_unless_the_settings_do(largest: int, level: int, white: float) -> None:
    pgm = io.BytesIO(b"P5 4 4 %d\n" % largest + np.full((4, 4), 4095, ">u2").tobytes())
    assert set(read_image(pgm, 1, 4, white=white).ravel()) == {255 if white else level}


def test_a_dark_pgm_of_12_bits_stays_dark() -> None:
    pgm = io.BytesIO(b"P5 4 4 4095\n" + np.full((4, 4), 1, ">u2").tobytes())
    assert set(read_image(pgm, 1, 4).ravel()) == {0}


def test_a_12_bit_tiff_is_white_at_4095() -> None:
    levels = [0, 2048, 4095, 4095]
    packed = "".join(f"{level:012b}" for level in levels * 4)
    data = bytes(int(packed[i : i + 8], 2) for i in range(0, len(packed), 8))
    tags = {256: 4, 257: 4, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    tiff = header + data + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    assert read_image(io.BytesIO(tiff), 1, 4, bits=16)[0, 0].tolist() == [0, round(2048 / 4095 * 65535), 65535, 65535]


@pytest.mark.parametrize("values", [noise(8, 8), deep(8, 8)], ids=["8 bits", "16 bits"])
def test_a_tiff_in_which_0_is_white_is_turned_round(values: Pixels) -> None:
    negative = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    stored = (
        255 - values if values.dtype == np.uint8 else values
    )  # Pillow writes the first as a negative, not the other
    bits = 8 * values.itemsize
    assert np.array_equal(read_image(negative, 1, 8, bits=bits)[0], 2**bits - 1 - stored)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_invert_swaps_dark_and_light_of_16_bits_too_but_not_what_is_opaque(channels: int) -> None:
    values = deep(8, 8)
    plain, swapped = (read_image(numbers(values, "PNG"), channels, 8, bits=16, invert=on) for on in (False, True))
    assert np.array_equal(swapped[:3], 65535 - plain[:3]) and np.array_equal(swapped[3:], plain[3:])


def deep_colour() -> bytes:
    """Return a PNG of 2 x 2 pixels, red 0x1234, green 0x5678, blue 0x9abc: a kind that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + bytes.fromhex("123456789abc") * 2) * 2
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_of_16_bit_colour_the_upper_8_bits_are_read_and_white_is_refused() -> None:
    assert read_image(io.BytesIO(deep_colour()), 3, 2, bits=16)[:, 0, 0].tolist() == [
        257 * high for high in (0x12, 0x56, 0x9A)
    ]
    with pytest.raises(UnreadableImageError, match=r"upper 8.*data\.white"):
        read_image(io.BytesIO(deep_colour()), 3, 2, bits=16, white=4095)


def test_a_file_that_is_broken_stays_so_and_one_that_is_closed_may_open_later(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(WHOLE["PNG"][:50])
    for name, later in (("broken.png", False), ("missing.png", True)):
        with pytest.raises(UnreadableImageError) as raised:
            read_image(tmp_path / name, 1, 8)
        assert isinstance(raised.value, UnreadableNowError) == later


# -------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("shape", [(12, 20), (12, 20, 1), (12, 20, 3), (12, 20, 4)])
def test_an_array_of_bytes_is_read_like_the_file_that_holds_it(
    shape: tuple[int, ...], bits: int, channels: int
) -> None:
    values = np.random.default_rng(9).integers(0, 256, shape, dtype=np.uint8)
    file = numbers(values[..., 0] if shape[2:] == (1,) else values, "PNG")
    expected = read_image(file, channels, 6, bits=bits, invert=True)
    found = pixels_of(values, channels, 6, bits=bits, invert=True)
    assert np.array_equal(found, expected) and found.dtype == expected.dtype and found.flags.c_contiguous


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape", [(12, 20), (12, 20, 3), (12, 20, 4)])
def test_numbers_of_16_bits_are_read_like_the_same_picture_of_8(shape: tuple[int, ...], channels: int) -> None:
    values = np.random.default_rng(9).integers(0, 256, shape, dtype=np.uint8)
    few = pixels_of(values, channels, 6).astype(int)
    many = pixels_of(values.astype(np.uint16) * 257, channels, 6).astype(int)
    most = 5 if channels == 4 and shape[2:] == (4,) else 2  # Pillow rounds colours multiplied with a low opacity
    assert abs(few - many).max() <= most


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0, 65535]], np.uint16), [0, 255]),
        (np.array([[0, 1]], np.int64), [0, 255]),
        (np.array([[0, 200]], np.int16), [0, 200]),
        (np.array([[-100, 100]], np.int8), [0, 255]),
        (np.array([[0.0, 0.2]], np.float16), [0, 51]),
        (np.array([[0, 2**63]], np.uint64), [0, 255]),
    ],
)
def test_arrays_of_every_type_of_number_have_a_range(values: Pixels, levels: list[int]) -> None:
    assert pixels_of(np.repeat(values, 2, 0), 1, 2)[0, 0].tolist() == levels


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((4, 4, 2)),
        np.zeros(4),
        np.zeros((0, 4)),
        np.zeros((2, 4, 4, 3)),
        np.array([[1.0, np.nan]]),
        np.array([[1.0, np.inf]], np.float32),
        np.array([[1e308, -1e308]]),
        np.array([[1j, 2]]),
        np.array([["a", "b"]]),
        np.array([[None, 1]]),
    ],
    ids=lambda values: f"{values.dtype} {values.shape}",
)
@pytest.mark.parametrize("white", [0.0, 4095.0])
def test_an_array_that_is_no_picture_is_unreadable(values: Pixels, white: float) -> None:
    if white and np.array_equal(values, [[1e308, -1e308]]):
        assert set(pixels_of(values, 1, 2, white=white).ravel()) == {0, 255}, "white bounds the range"
        return
    with pytest.raises(UnreadableImageError, match="picture"):
        pixels_of(values, 1, 4, white=white)


def test_an_array_is_left_as_it_was() -> None:
    for values in (noise(8, 8), deep(8, 8)):
        before = values.copy()
        read = pixels_of(values, 1, 8, bits=8 * values.itemsize, invert=True)
        read[:] = 0
        assert np.array_equal(values, before)
