"""Names that become paths, and addresses."""

import pytest

from common.errors import TrustError
from common.trust.names import checked_name, split_address


@pytest.mark.parametrize("name", ["a", "line-3", "Klinik_Sued.2", "9", "x" * 64, "console", "_".join("ab")])
def test_good_names_are_returned(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/abs",
        "a b",
        "a\n",
        "a\0",
        ".hidden",
        "-rf",
        "a.",
        "x" * 65,
        "straße",
        "con",
        "NUL.txt",
        "Com1",
        "lpt9.a",
        "a:b",
        "a*",
        "~",
        "a\u202eb",
    ],
)
def test_names_that_could_leave_their_folder_or_fool_a_reader_are_refused(name: str) -> None:
    with pytest.raises(TrustError, match="the site's name is"):
        checked_name(name)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("fed.example.org:8443", ("fed.example.org", 8443)),
        ("localhost:1", ("localhost", 1)),
        ("10.0.0.7:65535", ("10.0.0.7", 65535)),
        ("[::1]:8443", ("::1", 8443)),
    ],
)
def test_addresses_are_split(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        ":1",
        "host:0",
        "host:65536",
        "host:8a",
        "http://host:1",
        "::1:80",
        "[host]:1",
        "ho st:1",
        "host:0" + "1" * 9000,
        "host:٣",
        "[10.0.0.1]:1",
        "a" * 300 + ":1",
        "host:" + "9" * 5000,
        "user@host:1",
        "-x:1",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(TrustError, match="it must be host:port"):
        split_address(address)
