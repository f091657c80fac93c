"""Which release a site is meant to run."""

import pytest

from common.errors import TrustError
from common.releases.pointer import Pointer, decode_pointer, encode_pointer


def test_canaries_get_the_newer_release_and_all_others_that_for_all() -> None:
    pointer = decode_pointer(encode_pointer(Pointer(3, {5: ("north",), 6: ("south", "east")})))
    assert [pointer.of(site) for site in ("north", "south", "east", "west")] == [5, 6, 6, 3]


def test_no_site_reads_the_name_of_another() -> None:
    data = encode_pointer(Pointer(3, {5: ("north",), 6: ("north",)}))
    assert b"north" not in data
    first, second = decode_pointer(data).canaries.values()
    assert first != second


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100000,
        b'{"format": "2", "all": 1, "canaries": {}}',
        b'{"format": "fedreptile-pointer-1", "all": "1", "canaries": {}}',
        b'{"format": "fedreptile-pointer-1", "all": -1, "canaries": {}}',
        b'{"format": "fedreptile-pointer-1", "all": 1, "canaries": {"x": []}}',
        b'{"format": "fedreptile-pointer-1", "all": 1, "canaries": {"2": 3}}',
        b'{"format": "fedreptile-pointer-1", "all": 1, "canaries": []}',
    ],
)
def test_a_pointer_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(TrustError):
        decode_pointer(data)
