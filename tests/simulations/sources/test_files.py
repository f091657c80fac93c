"""Manifests: what is written is read again, and those of the project list what the real mirror holds."""

from pathlib import Path

import pytest

from common.errors import SourceError
from simulations.sources import files as listed
from simulations.sources.catalogue import CATALOGUE
from simulations.sources.download import digest
from simulations.sources.files import Entry, Files, read_manifest, write_manifest

ORIGINS = [name for name, chosen in CATALOGUE.items() if chosen.origins]

ENTRIES = (
    Entry(origin=((0, "a/b, c.txt"), (1, "c:d"))),
    Entry("b.npz", 7, {"sha256": "ab", "md5": "cd"}, (), {"group": ""}),
    Entry("d/e.jpg", 9, {"sha256": "ef"}, ((0, "f.jpg"),), {"group": "3"}),
)


def test_a_manifest_that_was_written_is_read_again_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "MANIFESTS", tmp_path)
    write_manifest("some", ENTRIES[::-1])
    found = read_manifest("some")
    assert [(e.path, e.size, e.sums, e.origin) for e in found] == [(e.path, e.size, e.sums, e.origin) for e in ENTRIES]
    assert [entry.more["group"] for entry in found] == ["", "", "3"]


@pytest.mark.parametrize("name", ORIGINS)
def test_the_manifests_are_what_the_mirror_makes_them(
    name: str, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = {path.name: path.read_bytes() for path in listed.MANIFESTS.iterdir()}
    monkeypatch.setattr(listed, "MANIFESTS", tmp_path)
    monkeypatch.setattr("simulations.sources.sets.xrays.CHOSEN", tmp_path / "guangzhou28_train.txt")
    write_manifest(name, tuple(CATALOGUE[name].listing(mirror / name)))
    for path in tmp_path.iterdir():
        assert path.read_bytes() == committed[path.name]


@pytest.mark.parametrize("name", ORIGINS)
def test_every_file_of_the_packed_form_has_a_sum_and_every_set_can_be_had_from_its_origin(name: str) -> None:
    entries, origins = read_manifest(name), CATALOGUE[name].origins
    assert all(entry.size and entry.sums.keys() == {"sha256"} for entry in entries if entry.path)
    published = [place for entry in entries for place in entry.origin]
    assert published and len(set(published)) == len(published)
    assert {number for number, _ in published} == set(range(len(origins)))


def test_a_file_is_checked_when_it_is_read(tmp_path: Path) -> None:
    entry = Entry("a.txt", 2, {"sha256": digest(b"hi", "sha256")})
    files = Files(tmp_path, (entry,))
    assert not files.any_there() and not files.complete()
    with pytest.raises(SourceError, match=r"a\.txt cannot be read"):
        files.read(entry)
    (tmp_path / "a.txt").write_bytes(b"hi")
    assert files.read(entry) == b"hi" and files.complete()
    (tmp_path / "a.txt").write_bytes(b"ho")
    with pytest.raises(SourceError, match=r"a\.txt is damaged or not the published file: its sha256 sum"):
        files.read(entry)
