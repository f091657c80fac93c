"""Fetching: the published bytes at the target, or an error that says why and nothing that looks whole."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from common.errors import SourceError
from simulations.sources import download
from simulations.sources.download import Done, NotThereError, Remote, UnreachableError, digest, fetch_all, verify
from tests.simulations.sources.origin import CHANGED, CONTENT, HALF, Origin

SUMS = {"sha256": hashlib.sha256(CONTENT).hexdigest()}
SIZE = len(CONTENT)

KNOWN: dict[str, tuple[int, Mapping[str, str]]] = {"sum and size": (SIZE, SUMS), "sum": (0, SUMS), "nothing": (0, {})}
"""What a manifest may know of a file."""


def remote(origin: Origin, target: Path, size: int = 0, sums: Mapping[str, str] = SUMS, path: str = "/right") -> Remote:
    return Remote((origin.url + path,), target, size, sums)


# --------------------------------------------------------------------------------------------------- sums


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        # Known values: the empty message (RFC 1321, FIPS 180-4) and git's ids of the empty file and of "hello\n".
        ("md5", b"", "d41d8cd98f00b204e9800998ecf8427e"),
        ("sha256", b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("git-blob", b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        ("git-blob", b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ],
)
def test_each_kind_of_sum_is_the_known_one(kind: str, content: bytes, expected: str) -> None:
    assert digest(content, kind) == expected


@pytest.mark.parametrize("kind", ["sha256", "md5", "git-blob"])
def test_a_content_that_differs_in_one_bit_is_told_by_each_kind_of_sum(kind: str) -> None:
    expected = digest(CONTENT, kind)
    assert verify(CONTENT, SIZE, {kind: expected}) == ""
    assert verify(CHANGED, SIZE, {kind: expected}) == (
        f"its {kind} sum is {digest(CHANGED, kind)}; expected {expected}"
    )


def test_one_wrong_sum_among_right_ones_is_enough_and_so_is_a_wrong_size() -> None:
    assert "md5" in verify(CONTENT, 0, {**SUMS, "md5": "0" * 32})
    assert verify(CONTENT[:-1], SIZE, {}) == f"it has {SIZE - 1} bytes; expected {SIZE}"


# ------------------------------------------------------------------------------------------------ success


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("way", ["", "moved", "says nothing"])
def test_what_the_origin_serves_right_lies_at_the_target_and_nothing_else(
    origin: Origin, tmp_path: Path, known: str, way: str
) -> None:
    origin.files["/there"] = CONTENT
    origin.faults["/there"] = [way] if way else []
    target = tmp_path / "new" / "folder" / "set.zip"
    fetch_all([remote(origin, target, *KNOWN[known], path="/there")])
    assert target.read_bytes() == CONTENT and list(target.parent.iterdir()) == [target]


def test_progress_counts_bytes_and_files_up_to_all(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SHOWN_EVERY", 0.001)
    seen: list[Done] = []
    remotes = [remote(origin, tmp_path / str(number), SIZE) for number in range(9)]
    fetch_all(remotes, seen.append)
    assert seen[-1] == Done(9, 9, 9 * SIZE, 9 * SIZE)
    assert [done.bytes for done in seen] == sorted(done.bytes for done in seen)
    fetch_all([*remotes, remote(origin, tmp_path / "of unknown size")], seen.append)
    assert seen[-1] == Done(10, 10, 10 * SIZE, 0)


def test_files_that_are_there_and_right_are_not_asked_for_again_and_damaged_ones_are(
    origin: Origin, tmp_path: Path
) -> None:
    origin.files["/other"] = CONTENT
    kept, damaged = tmp_path / "kept", tmp_path / "damaged"
    kept.write_bytes(CONTENT)
    damaged.write_bytes(CHANGED)
    fetch_all([remote(origin, kept, path="/right"), remote(origin, damaged, path="/other")])
    assert origin.paths() == ["/other"] and damaged.read_bytes() == CONTENT


def test_several_connections_are_used_at_once(origin: Origin, tmp_path: Path) -> None:
    """Four files that end only together: one connection would wait for ever."""
    together = threading.Barrier(4, timeout=10)

    class Waiting(dict[str, bytes]):
        def get(self, key: str, default: object = None) -> bytes:
            together.wait()
            return CONTENT

    origin.files = Waiting()
    fetch_all([remote(origin, tmp_path / str(number)) for number in range(4)])
    assert len(list(tmp_path.iterdir())) == 4


def test_the_second_address_is_asked_only_where_the_first_does_not_have_the_file(
    origin: Origin, tmp_path: Path
) -> None:
    urls = (f"{origin.url}/absent", f"{origin.url}/right")
    fetch_all([Remote(urls, tmp_path / "a", SIZE, SUMS)])
    assert origin.paths() == ["/absent", "/right"]
    with pytest.raises(NotThereError, match="/gone"):
        fetch_all([Remote((f"{origin.url}/absent", f"{origin.url}/gone"), tmp_path / "b", SIZE, SUMS)])
    origin.faults["/absent"] = ["503*"]
    with pytest.raises(UnreachableError, match="/absent"):
        fetch_all([Remote(urls, tmp_path / "c", SIZE, SUMS)])


# --------------------------------------------------------------------------------------- broken and resumed


def ranges(origin: Origin) -> list[str]:
    return [wanted for _, wanted in origin.asked]


def test_a_download_that_breaks_off_goes_on_where_it_was(origin: Origin, tmp_path: Path) -> None:
    origin.faults["/right"] = ["breaks off"]
    fetch_all([remote(origin, tmp_path / "set", SIZE)])
    assert ranges(origin) == ["", f"bytes={HALF}-"]
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [CONTENT]


def test_a_download_that_breaks_off_at_every_try_is_unreachable_and_goes_on_at_the_next_call(
    origin: Origin, tmp_path: Path
) -> None:
    origin.faults["/right"] = ["breaks off"] * 3
    with pytest.raises(UnreachableError, match=r"could not be fetched.*--data-mirror"):
        fetch_all([remote(origin, tmp_path / "set", SIZE)])
    # Each try brings half of what is still missing.
    left = [HALF, HALF + HALF // 2, HALF + HALF // 2 + HALF // 4]
    assert [(file.name, file.stat().st_size) for file in tmp_path.iterdir()] == [("set.part", left[2])]
    fetch_all([remote(origin, tmp_path / "set", SIZE)])
    assert ranges(origin) == ["", *(f"bytes={begin}-" for begin in left)]
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [CONTENT]


def test_a_server_that_ignores_ranges_is_read_from_the_start(origin: Origin, tmp_path: Path) -> None:
    origin.faults["/right"] = ["breaks off", "ignores ranges"]
    fetch_all([remote(origin, tmp_path / "set")])
    assert (tmp_path / "set").read_bytes() == CONTENT


def test_a_server_that_sends_another_range_is_not_believed(origin: Origin, tmp_path: Path) -> None:
    origin.faults["/right"] = ["breaks off", "another range"]
    fetch_all([remote(origin, tmp_path / "set")])
    assert ranges(origin) == ["", f"bytes={HALF}-", ""] and (tmp_path / "set").read_bytes() == CONTENT


def test_without_a_sum_a_download_goes_on_only_if_the_server_vouches_for_the_same_file(
    origin: Origin, tmp_path: Path
) -> None:
    origin.faults["/right"] = ["breaks off"]
    fetch_all([remote(origin, tmp_path / "without", sums={})])
    assert ranges(origin) == ["", ""]
    origin.etags["/right"], origin.faults["/right"] = '"one"', ["breaks off"]
    fetch_all([remote(origin, tmp_path / "with", sums={})])
    assert ranges(origin)[2:] == ["", f"bytes={HALF}-"]
    origin.etags["/right"], origin.faults["/right"] = 'W/"weak"', ["breaks off"]
    fetch_all([remote(origin, tmp_path / "weak", sums={})])
    assert ranges(origin)[4:] == ["", ""]
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [CONTENT] * 3


def test_a_file_that_changed_between_two_tries_is_not_patched_together(origin: Origin, tmp_path: Path) -> None:
    origin.etags["/right"], origin.faults["/right"] = '"old"', ["breaks off", "500*"]
    with pytest.raises(UnreachableError):
        fetch_all([remote(origin, tmp_path / "set", sums={})])
    new = bytes(reversed(CONTENT))
    origin.files["/right"], origin.etags["/right"], origin.faults["/right"] = new, '"new"', []
    fetch_all([remote(origin, tmp_path / "set", sums={})])
    assert (tmp_path / "set").read_bytes() == new


@pytest.mark.parametrize("part", [CHANGED[:HALF][::-1], CHANGED, CONTENT + b"more"], ids=["begin", "whole", "longer"])
def test_a_part_of_something_else_is_thrown_away_and_the_file_fetched_anew(
    origin: Origin, tmp_path: Path, part: bytes
) -> None:
    (tmp_path / "set.part").write_bytes(part)
    fetch_all([remote(origin, tmp_path / "set")])
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [CONTENT]


@pytest.mark.parametrize("fault", ["500", "503", "429", "breaks off", "not http", "says more"])
def test_one_failure_is_tried_again(origin: Origin, tmp_path: Path, fault: str) -> None:
    origin.faults["/right"] = [fault]
    fetch_all([remote(origin, tmp_path / "set", 0 if fault == "says more" else SIZE)])
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [CONTENT]
    # Where more was promised, a second try asks for it, and a third gets the whole.
    assert len(origin.asked) == (3 if fault == "says more" else 2)


def test_what_was_finished_before_an_error_is_not_fetched_again(origin: Origin, tmp_path: Path) -> None:
    remotes = [remote(origin, tmp_path / str(number), path=f"/{number}") for number in range(8)]
    origin.files = {f"/{number}": CONTENT for number in range(8)}
    origin.faults["/7"] = ["500*"]
    with pytest.raises(UnreachableError, match="/7"):
        fetch_all(remotes)
    finished = {file.name for file in tmp_path.iterdir() if not file.name.endswith(".part")}
    assert finished >= {"0", "1", "2", "3"}
    origin.asked.clear()
    origin.faults.clear()
    fetch_all(remotes)
    assert {path[1:] for path in origin.paths()} == {str(number) for number in range(8)} - finished


def test_an_interrupted_fetch_stops_and_goes_on_at_the_next_call(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SHOWN_EVERY", 0.01)
    origin.files["/slow"], origin.faults["/slow"] = CONTENT, ["stalls"]
    remotes = [remote(origin, tmp_path / "fast"), remote(origin, tmp_path / "slow", path="/slow")]

    def interrupt(done: Done) -> None:
        if done.bytes >= SIZE + HALF:
            threading.Timer(0.05, origin.end.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_all(remotes, interrupt)
    assert (tmp_path / "fast").exists() and not (tmp_path / "slow").exists()
    fetch_all(remotes)
    assert origin.asked[2:] == [("/slow", f"bytes={HALF}-")] and (tmp_path / "slow").read_bytes() == CONTENT


# ------------------------------------------------------------------------------------------------ refusals

WRONG = {"changed": "sha256 sum", "says less": "bytes|sha256 sum", "sends more": "bytes|sha256 sum"}


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("known", ["sum and size", "sum"])
@pytest.mark.parametrize("before", [None, b"an older file"])
def test_an_origin_that_sends_something_else_is_wrong_and_not_unreachable(
    origin: Origin, tmp_path: Path, fault: str, known: str, before: bytes | None
) -> None:
    target = tmp_path / "set"
    if before is not None:
        target.write_bytes(before)
    origin.faults["/right"] = [f"{fault}*"]
    with pytest.raises(SourceError, match=f"/right is not the published file: .*({WRONG[fault]})") as raised:
        fetch_all([remote(origin, target, *KNOWN[known])])
    assert not isinstance(raised.value, UnreachableError)
    assert "expected" in str(raised.value) and "--data-mirror" in str(raised.value)
    left = [file.read_bytes() for file in tmp_path.iterdir() if not file.name.endswith(".part")]
    assert left == ([] if before is None else [before])


def test_a_stated_length_that_is_wrong_is_refused_before_the_content_comes(origin: Origin, tmp_path: Path) -> None:
    origin.faults["/right"] = ["says more*"]
    with pytest.raises(SourceError, match=f"it has {SIZE + 10} bytes; expected {SIZE}") as raised:
        fetch_all([remote(origin, tmp_path / "set", SIZE)])
    assert not isinstance(raised.value, UnreachableError) and list(tmp_path.iterdir()) == []


def test_a_length_that_promises_more_than_comes_never_makes_a_whole_file(origin: Origin, tmp_path: Path) -> None:
    origin.faults["/right"] = ["says more*"]
    with pytest.raises(UnreachableError, match="could not be fetched"):
        fetch_all([remote(origin, tmp_path / "set", sums={})])
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("code", ["404", "410"])
def test_a_file_that_is_not_there_is_told_from_an_origin_that_is_not_reached(
    origin: Origin, tmp_path: Path, code: str
) -> None:
    origin.faults["/right"] = [f"{code}*"]
    with pytest.raises(NotThereError, match=rf"/right is not there \({code}\).*moved or removed.*--data-mirror"):
        fetch_all([remote(origin, tmp_path / "set")])
    assert len(origin.asked) == 1, "a file that is not there is not asked for again"


@pytest.mark.parametrize(
    ("fault", "tries"), [("403", 1), ("500", 3), ("503", 3), ("not http", 3), ("moved for ever", 21)]
)
def test_an_origin_that_fails_is_unreachable_and_the_way_out_is_named(
    origin: Origin, tmp_path: Path, fault: str, tries: int
) -> None:
    origin.faults["/right"] = [f"{fault}*"]
    with pytest.raises(UnreachableError) as raised:
        fetch_all([remote(origin, tmp_path / "set")])
    assert not isinstance(raised.value, NotThereError) and len(origin.asked) == tries
    assert f"{origin.url}/right" in str(raised.value) and "--data-mirror" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_an_origin_that_is_not_there_is_unreachable(nobody: str, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=nobody):
        fetch_all([Remote((f"{nobody}/set.zip",), tmp_path / "set.zip", SIZE, SUMS)])
    assert list(tmp_path.iterdir()) == []


def test_an_origin_whose_name_is_not_known_is_unreachable(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UnreachableError, match="not known"):
        fetch_all([Remote(("http://origin.invalid/set.zip",), tmp_path / "set.zip", SIZE, SUMS)])


def test_an_origin_that_falls_silent_is_unreachable_after_a_while(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    origin.faults["/right"] = ["stalls*"]
    began = time.monotonic()
    with pytest.raises(UnreachableError):
        fetch_all([remote(origin, tmp_path / "set")])
    assert time.monotonic() - began < 4, "the time was not the one that is set"


def test_a_full_disk_is_not_blamed_on_the_network(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run would train on other data because a disk is full."""
    replace: Callable[..., Path] = Path.replace

    def full(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SourceError, match=r"cannot be written: No space left.*FEDREPTILE_HOME") as raised:
        fetch_all([remote(origin, tmp_path / "set")])
    assert not isinstance(raised.value, UnreachableError)


def test_a_folder_that_cannot_be_made_is_not_blamed_on_the_network(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "downloads").write_text("a file")
    with pytest.raises(SourceError, match="cannot be written") as raised:
        fetch_all([remote(origin, tmp_path / "downloads" / "set.zip")])
    assert not isinstance(raised.value, UnreachableError)
