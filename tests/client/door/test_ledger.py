"""The ledger: what is found when somebody changes it, and what survives a crash."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from client.door import cli
from client.door import ledger as module
from client.door.cli import ledger_app
from client.door.ledger import LEFT, REFUSED, Ledger, LedgerIndex, Record, entries, verify
from common.errors import LedgerError

ROOT = Path(module.__file__).parents[2]


def record(number: int = 0, size: int = 100) -> Record:
    return Record(LEFT, "run-1", number, "train", "Update", {"update/delta": [7]}, ("num-examples",), bytes=size)


def write(folder: Path, count: int) -> None:
    with Ledger(folder) as ledger:
        for number in range(count):
            ledger.append(record(number), lambda _, number=number: [f"{number:064x}"])  # type: ignore[misc]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of nine entries in three files."""
    folder = tmp_path_factory.mktemp("ledger")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FILE_BYTES", 2000)
        write(folder, 9)
    assert len(list(folder.glob("ledger-*.jsonl"))) == 3
    return folder


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to, dirs_exist_ok=True))


# ------------------------------------------------------------------------------------------------ the chain


def test_entries_follow_each_other_over_all_files(written: Path) -> None:
    found = list(entries(written))
    assert [entry.number for entry in found] == list(range(1, 10))
    assert [entry.previous for entry in found] == ["0" * 64, *(entry.hash for entry in found[:-1])]
    assert verify(written) == module.Verified(9, 3, 1, found[-1].hash, None)


def test_a_ledger_goes_on_where_it_ended(tmp_path: Path) -> None:
    for _ in range(3):
        write(tmp_path, 2)
    assert verify(tmp_path).entries == 6 and verify(tmp_path).broken is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_byte_changed_anywhere_is_found(written: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(written.glob("ledger-*.jsonl"))))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as scratch:
        changed = copied(written, Path(scratch)) / file.name
        changed.write_bytes(content)
        found = verify(Path(scratch)).broken
        assert found is not None and found.file == changed
        assert found.line == file.read_bytes()[:place].count(b"\n") + 1


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a line taken out": lambda f: f.write_bytes(b"".join(lines_of(f)[:1] + lines_of(f)[2:])),
    "the first line of a file taken out": lambda f: f.write_bytes(b"".join(lines_of(f)[1:])),
    "the last line of a file taken out": lambda f: f.write_bytes(b"".join(lines_of(f)[:-1])),
    "a line twice": lambda f: f.write_bytes(b"".join([*lines_of(f)[:1], *lines_of(f)])),
    "two lines exchanged": lambda f: f.write_bytes(b"".join(lines_of(f)[::-1])),
    "spaces": lambda f: f.write_bytes(f.read_bytes().replace(b'","', b'", "', 1)),
    "a key twice": lambda f: f.write_bytes(f.read_bytes().replace(b'{"arrays"', b'{"base":"x","arrays"', 1)),
    "an empty line": lambda f: f.write_bytes(b"\n" + f.read_bytes()),
    "an emptied file": lambda f: f.write_bytes(b""),
    "a file taken out": lambda f: f.unlink(),
    "a file of another number": lambda f: f.rename(f.with_name("ledger-000009.jsonl")),
    "deep nesting": lambda f: f.write_bytes(b"[" * 100_000 + b"\n" + f.read_bytes()),
    "an endless line": lambda f: f.write_bytes(b" " * (5 << 20) + f.read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_in_the_middle_is_found(written: Path, tmp_path: Path, damage: str) -> None:
    DAMAGE[damage](copied(written, tmp_path) / "ledger-000002.jsonl")
    found = verify(tmp_path)
    assert found.broken is not None and found.entries < 9
    with pytest.raises(LedgerError, match=found.broken.file.name):
        list(entries(tmp_path))


def test_an_entry_that_was_recomputed_does_not_fit_the_ones_after(written: Path, tmp_path: Path) -> None:
    """Who can change an entry can also make its hash; the next entry still has the old one."""
    file = copied(written, tmp_path) / "ledger-000002.jsonl"
    first, *rest = lines_of(file)
    forged = json.loads(first) | {"bytes": 1}
    for name, without in (("stamp", {"objects", "stamp", "hash"}), ("hash", {"hash"})):
        forged[name] = module._sha256(module._canonical({k: v for k, v in forged.items() if k not in without}))
    file.write_bytes(module._canonical(forged) + b"\n" + b"".join(rest))
    found = verify(tmp_path).broken
    assert found is not None and (found.file, found.line) == (file, 2)


def test_older_files_may_be_moved_away_and_it_is_said(written: Path, tmp_path: Path) -> None:
    (copied(written, tmp_path) / "ledger-000001.jsonl").unlink()
    found = verify(tmp_path)
    assert found.broken is None and found.first > 1
    with Ledger(tmp_path) as ledger:
        assert ledger.append(record()).number == 10


def test_a_folder_without_a_ledger_is_no_good_ledger(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(LedgerError, match="there is no ledger"):
            verify(folder)


# ------------------------------------------------------------------------------------------- crash and repair


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 600))
def test_a_line_that_a_crash_cut_short_is_removed_and_an_entry_says_so(cut: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder, 3)
        file = folder / "ledger-000001.jsonl"
        last = len(lines_of(file)[-1])
        file.write_bytes(file.read_bytes()[: -min(cut, last - 1)])
        assert verify(folder).broken is not None
        write(folder, 1)
        assert [entry.event for entry in entries(folder)] == ["left", "left", "repaired", "left"]


def test_a_damaged_earlier_line_stops_the_ledger_and_is_named(tmp_path: Path) -> None:
    write(tmp_path, 3)
    file = tmp_path / "ledger-000001.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"round":1', b'"round":7'))
    before = file.read_bytes()
    with pytest.raises(LedgerError, match=r"ledger-000001\.jsonl, line 2: its hash"):
        Ledger(tmp_path)
    assert file.read_bytes() == before


APPENDING = """
import sys
from pathlib import Path
from client.door.ledger import LEFT, Ledger, Record
with Ledger(Path(sys.argv[1])) as ledger:
    while True:
        print(ledger.append(Record(LEFT, bytes=5)).hash, flush=True)
"""


def appending(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", APPENDING, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_a_killed_process_had_entered_is_there(tmp_path: Path) -> None:
    with appending(tmp_path) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(20)]
        process.kill()
    write(tmp_path, 1)
    found = verify(tmp_path)
    assert found.broken is None
    assert set(said) <= {entry.hash for entry in entries(tmp_path)}


def test_a_second_writer_is_refused_while_there_is_a_first(tmp_path: Path) -> None:
    with appending(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(LedgerError, match="in use by another process"):
            Ledger(tmp_path, patience=0.1)
        process.kill()
    Ledger(tmp_path, patience=5).close()


# ---------------------------------------------------------------------------------------------- how much


def test_a_full_ledger_takes_no_content_and_says_so_but_has_room_for_the_error(tmp_path: Path) -> None:
    with Ledger(tmp_path, most_bytes=2000) as ledger:
        with pytest.raises(LedgerError, match=r"is full.*ledger-megabytes"):
            for number in range(10):
                ledger.append(record(number))
        ledger.append(Record(REFUSED, content="Error", reason="full"))
    assert verify(tmp_path).broken is None


def test_a_full_ledger_goes_on_when_old_files_are_moved_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 1000)
    with Ledger(tmp_path / "ledger", most_bytes=4000) as ledger:
        with pytest.raises(LedgerError, match="is full"):
            for number in range(20):
                ledger.append(record(number))
        oldest, *_, newest = sorted((tmp_path / "ledger").glob("*.jsonl"))
        oldest.rename(tmp_path / oldest.name)
        ledger.append(record(99))
        with pytest.raises(LedgerError, match="is full"):
            for number in range(20):
                ledger.append(record(number))
    found = verify(tmp_path / "ledger")
    assert found.broken is None and found.first > 1
    (tmp_path / oldest.name).rename(oldest)
    assert verify(tmp_path / "ledger").first == 1 and newest.exists()


def test_a_disk_that_is_full_leaves_the_ledger_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append(record())
        before = (tmp_path / "ledger-000001.jsonl").read_bytes()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(LedgerError, match="No space left"):
                ledger.append(record())
        assert (tmp_path / "ledger-000001.jsonl").read_bytes() == before
        assert ledger.append(record()).number == 2
    assert verify(tmp_path).broken is None


def test_bytes_of_a_day_count_on_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 1500)
    moment = datetime(2026, 11, 18, 23, 30, tzinfo=UTC)
    for _ in range(4):
        with Ledger(tmp_path, clock=lambda: moment) as ledger:  # noqa: B023 - it is read at once
            for _ in range(5):
                ledger.append(record(size=10))
        moment += timedelta(minutes=20)
    with Ledger(tmp_path, clock=lambda: moment) as ledger:
        assert (ledger.bytes_on("2026-11-18"), ledger.bytes_on("2026-11-19")) == (100, 100)


# ---------------------------------------------------------------------------------------------- the index


def test_another_process_sees_what_the_ledger_gets_while_it_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 1500)
    index = LedgerIndex(tmp_path / "ledger")
    assert not index.has_object("00" * 32), "there is no ledger yet"
    with Ledger(tmp_path / "ledger") as ledger:
        for number in range(12):
            assert not index.has_object(f"{number:064x}")
            ledger.append(record(number), lambda _, number=number: [f"{number:064x}"])  # type: ignore[misc]
            assert index.has_object(f"{number:064x}")
        ledger.append(Record(REFUSED, content="Error", sha256="ab" * 32))
        assert index.has_error("ab" * 32) and not index.has_error("cd" * 32) and not index.has_object("ab" * 32)
    for nothing in ("", "xyz", "é", "00"):
        assert not index.has_object(nothing)
    asking = "import sys; from client.door.ledger import *; "
    asking += "print(LedgerIndex(Path(sys.argv[1])).has_object(sys.argv[2]))"
    words = [sys.executable, "-c", asking, str(tmp_path / "ledger"), f"{11:064x}"]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_an_object_of_a_line_that_is_not_complete_is_not_there_yet(tmp_path: Path) -> None:
    write(tmp_path, 2)
    file, index = tmp_path / "ledger-000001.jsonl", LedgerIndex(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert index.has_object(f"{0:064x}") and not index.has_object(f"{1:064x}")
    file.write_bytes(whole)
    assert index.has_object(f"{1:064x}")


# ---------------------------------------------------------------------------------------------- the commands


def run(*words: str) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(ledger_app, list(words))
    return done.exit_code, done.output, done.exception


def test_the_commands_show_verify_and_export(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.console, "width", 200)
    code, text, _ = run("show", "--folder", str(written), "--last", "2", "--kind", "Update")
    assert code == 0 and "900" in text and "update/delta" in text
    code, text, _ = run("show", "--folder", str(written), "--run", "another")
    assert code == 0 and "update/delta" not in text
    code, text, _ = run("verify", "--folder", str(written))
    assert code == 0 and "9 entries in 3 file(s): none was changed" in text
    for suffix in ("json", "csv"):
        assert run("export", str(tmp_path / f"out.{suffix}"), "--folder", str(written))[0] == 0
    found = json.loads((tmp_path / "out.json").read_bytes())
    assert [entry["round"] for entry in found] == list(range(9))
    lines = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 10 and lines[0].startswith("event,run,round,kind,content")


def journal_of(folder: Path, to: Path, *more: dict[str, object]) -> Path:
    """Write a server's journal, which has the stamps of a ledger's entries, and those of another site."""
    lines = [
        {"round": entry.round, "ledgers": {"line-1": entry.stamp, "line-2": "ab" * 32}} for entry in entries(folder)
    ]
    to.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]), encoding="utf-8")
    return to


def test_a_ledger_that_was_cut_off_is_found_by_the_servers_journal(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.console, "width", 200)
    ledger, home = copied(written, tmp_path / "site" / "ledger"), str(tmp_path / "site")
    (tmp_path / "site" / "site.toml").write_text("name = 'line-1'\ndata = '/data'\n", encoding="utf-8")
    journal = journal_of(ledger, tmp_path / "rounds.jsonl", {"round": 9, "ledgers": {}})
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"round": 10, "led')  # copied while the server wrote
    code, text, _ = run("verify", "--home", home, "--journal", str(journal))
    assert code == 0 and "9 entries of site 'line-1' have a stamp in " in text and "none is missing here" in text

    kept, cut = sorted(ledger.glob("*.jsonl"))[-2:]
    gone = len(cut.read_bytes().splitlines()) + 1
    cut.unlink()
    kept.write_bytes(b"".join(kept.read_bytes().splitlines(keepends=True)[:-1]))
    assert run("verify", "--home", home)[0] == 0, "the chain is whole"
    code, _, error = run("verify", "--home", home, "--journal", str(journal))
    assert code == 1 and isinstance(error, LedgerError)
    assert f"for round {9 - gone}, " in str(error) and f"for {gone - 1} more of 9" in str(error)


@pytest.mark.parametrize("text", [None, "[]\n", "nothing\n", '{"round": 1}\n', '{"round": 1, "ledgers": 1}\n'])
def test_what_is_no_journal_is_said_to_be_none(written: Path, tmp_path: Path, text: str | None) -> None:
    (tmp_path / "site.toml").write_text("name = 'line-1'\ndata = '/data'\n", encoding="utf-8")
    if text is not None:
        (tmp_path / "rounds.jsonl").write_text(text, encoding="utf-8")
    words = ("--home", str(tmp_path), "--folder", str(written), "--journal", str(tmp_path / "rounds.jsonl"))
    _, _, error = run("verify", *words)
    assert isinstance(error, LedgerError) and "journal" in str(error)


def test_the_commands_say_where_the_ledger_was_changed(written: Path, tmp_path: Path) -> None:
    file = copied(written, tmp_path) / "ledger-000003.jsonl"
    file.write_bytes(file.read_bytes().replace(b"Update", b"update", 1))
    for words in (["verify"], ["show"], ["export", str(tmp_path / "out.json")]):
        _, _, error = run(*words, "--folder", str(tmp_path))
        assert isinstance(error, LedgerError) and "ledger-000003.jsonl, line 1" in str(error)
    assert not (tmp_path / "out.json").exists()
