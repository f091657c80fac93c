"""The models of a site: one is in use at every moment, whoever is killed; going back; and the disk that they take."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.line.store import About, Entry, Store
from client.model import SiteModel, adapt_site, read_model
from common.checkpoint import Checkpoint, RunState
from common.errors import CheckpointError, FedreptileError, WritingError
from common.plan import plan_for
from tests.client.small import NumberedData, settings_with

KILLS = int(os.environ.get("FEDREPTILE_TEST_KILLS", "5"))
PLENTY = 10**9


def model_of(*names: str) -> SiteModel:
    settings = settings_with(inner__steps=1)
    plan = plan_for(settings)
    checkpoint = Checkpoint(RunState(1, plan.initial, plan.initial_slots, {}, {}), settings, "test")
    return adapt_site(checkpoint, NumberedData(dict.fromkeys(names, 3)))[0]


@pytest.fixture(scope="module")
def model() -> SiteModel:
    return model_of("a", "b")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", PLENTY, lambda: datetime(2026, 11, 21, tzinfo=UTC))


def added(store: Store, model: SiteModel, count: int) -> list[Entry]:
    """Add models and bring each into use, one after the other."""
    return [store.use(store.add(model, About(f"release {i + 1}", release=i + 1)).number) for i in range(count)]


def test_before_the_first_model_there_is_none(store: Store) -> None:
    assert store.current() is None and store.entries() == [] and store.history() == [] and store.previous() is None
    assert store.standing().release == 0
    assert not store.folder.exists()  # looking changes nothing


def test_a_model_that_is_added_is_kept_and_not_yet_in_use(store: Store, model: SiteModel) -> None:
    entry = store.add(model, About("adapted", judgement={"right": 3}), base=b"shared")
    assert store.current() is None and store.entries() == [entry]
    assert (entry.number, entry.about.made, entry.about.classes) == (1, "adapted", ("a", "b"))
    assert entry.about.when == "2026-11-21T00:00:00+00:00" and entry.about.judgement == {"right": 3}
    assert read_model(entry.path).classes == model.classes
    base = store.base(entry)
    assert base is not None and base.read_bytes() == b"shared"
    assert {path.stat().st_mode & 0o077 for path in store.folder.rglob("*") if path.is_file()} == {0}


def test_using_a_model_says_so_in_current_history_and_standing(store: Store, model: SiteModel) -> None:
    added(store, model, 2)
    current = store.current()
    assert current is not None and current.number == 2
    assert (store.folder / "current").read_text() == "2\n"
    assert [(e["what"], e["number"], e["from"]) for e in store.history()] == [
        ("added", 1, 0), ("used", 1, 0), ("added", 2, 0), ("used", 2, 1),
    ]  # fmt: skip
    assert json.loads((store.folder / "standing.json").read_text()) == {"release": 2, "refused": 0, "wishes": {}}


def test_going_back_leads_further_back_each_time_and_to_any_model_that_is_kept(store: Store, model: SiteModel) -> None:
    added(store, model, 3)
    assert store.rollback().number == 2
    assert store.standing().release == 2
    assert store.rollback().number == 1
    with pytest.raises(CheckpointError, match="there is none to go back to"):
        store.rollback()
    assert store.rollback(3).number == 3
    assert store.rollback().number == 1  # the one that was in use before
    assert [e["what"] for e in store.history()][-4:] == ["went back"] * 4


def test_a_number_is_never_given_twice(store: Store, model: SiteModel) -> None:
    added(store, model, 2)
    store.discard(store.add(model, About("adapted")).number)
    assert store.add(model, About("adapted")).number == 4


def test_the_model_in_use_cannot_be_discarded(store: Store, model: SiteModel) -> None:
    added(store, model, 1)
    with pytest.raises(CheckpointError, match="model 1 is in use"):
        store.discard(1)
    assert store.current() is not None


@pytest.mark.parametrize("ask", [lambda s: s.use(9), lambda s: s.rollback(9), lambda s: s.discard(9)])
def test_a_model_that_is_not_kept_is_refused_by_number_and_nothing_changes(
    store: Store, model: SiteModel, ask: object
) -> None:
    added(store, model, 2)
    before = store.history()
    with pytest.raises(CheckpointError, match=r"model 9 is not kept .*; kept are: 1, 2"):
        ask(store)  # type: ignore[operator]
    current = store.current()
    assert store.history() == before and current is not None and current.number == 2


def test_a_model_whose_file_was_changed_is_not_brought_into_use(store: Store, model: SiteModel) -> None:
    first, _ = added(store, model, 2)
    data = bytearray(first.path.read_bytes())
    data[-1] ^= 1
    first.path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        store.rollback()
    current = store.current()
    assert current is not None and current.number == 2


def test_what_cannot_be_read_again_is_not_added(
    store: Store, model: SiteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SiteModel, "encoded", lambda self: b"no model")
    with pytest.raises(CheckpointError):
        store.add(model, About("adapted"))
    assert store.entries() == []


def test_models_stay_within_their_disk_but_the_present_the_one_before_and_the_newest_are_kept(
    tmp_path: Path, model: SiteModel
) -> None:
    size = len(model.encoded())
    store = Store(tmp_path / "models", int(size * 4.5))
    added(store, model, 4)
    assert [entry.number for entry in store.entries()] == [1, 2, 3, 4]
    store.add(model, About("adapted"))
    assert [entry.number for entry in store.entries()] == [2, 3, 4, 5]
    tight = Store(tmp_path / "models", 1)
    tight.add(model, About("adapted"))
    assert [entry.number for entry in tight.entries()] == [3, 4, 6]
    assert [e["number"] for e in tight.history() if e["what"] == "removed"] == [1, 2, 5]
    assert tight.rollback().number == 3


def test_shared_params_are_kept_once_and_as_long_as_a_model_comes_from_them(tmp_path: Path, model: SiteModel) -> None:
    store = Store(tmp_path / "models", 1)
    for base in (b"first", b"first", b"second", b"second", b"second"):
        store.use(store.add(model, About("adapted"), base=base).number)
    assert [path.read_bytes() for path in (store.folder / "bases").iterdir()] == [b"second"]


def test_a_torn_line_of_history_is_passed_over_and_the_next_begins_anew(store: Store, model: SiteModel) -> None:
    added(store, model, 1)
    with (store.folder / "history.jsonl").open("a") as file:
        file.write('{"what": "us')
    added(store, model, 1)
    assert [(e["what"], e["number"]) for e in store.history()] == [
        ("added", 1), ("used", 1), ("added", 2), ("used", 2),
    ]  # fmt: skip


def test_wishes_and_refusals_are_kept_beside_the_release(store: Store, model: SiteModel) -> None:
    added(store, model, 1)
    store.wish("scratch", 10)
    store.wish("dent", 4)
    store.unwish("dent")
    store.refuse(7, "worse on old classes")
    found = store.standing()
    assert (found.release, found.refused, found.wishes) == (1, 7, {"scratch": 10})
    assert store.history()[-1]["why"] == "release 7: worse on old classes"


def test_a_damaged_note_of_the_model_in_use_says_what_to_do(store: Store, model: SiteModel) -> None:
    added(store, model, 1)
    (store.folder / "current").write_text("one")
    with pytest.raises(CheckpointError, match="current is damaged"):
        store.current()


def test_a_full_disk_leaves_the_model_that_was_in_use(
    store: Store, model: SiteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    added(store, model, 1)
    second = store.add(model, About("adapted"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WritingError, match="No space left"):
            store.add(model, About("adapted"))
        with pytest.raises(WritingError, match="No space left"):
            store.use(second.number)
    current = store.current()
    assert current is not None and current.number == 1
    assert store.add(model, About("adapted")).number == 3


SWAPPING = """
import sys
from pathlib import Path
from client.line.store import About, Store
from client.model import read_model

folder = Path(sys.argv[1])
store = Store(folder, int(sys.argv[2]))
entry = store.current()
model = read_model(entry.path)
print("swapping", flush=True)
while True:
    store.use(store.add(model, About("adapted", model=entry.number), base=b"shared").number)
    store.rollback()
"""


def test_a_process_that_is_killed_while_it_swaps_leaves_a_whole_model_in_use(tmp_path: Path, model: SiteModel) -> None:
    """The more often, the better: FEDREPTILE_TEST_KILLS says how often."""
    store = Store(tmp_path / "models", 8 * len(model.encoded()))
    added(store, model, 1)
    for kill in range(KILLS):
        words = [sys.executable, "-c", SWAPPING, str(store.folder), str(8 * len(model.encoded()))]
        with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as process:
            assert process.stdout is not None and process.stdout.readline() == b"swapping\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05 + 0.037 * (kill * 7 % 11))
            process.send_signal(signal.SIGKILL)
        current = store.current()
        assert current is not None
        read_model(current.path)
        assert store.use(current.number).number == current.number  # and whoever comes next can go on
    assert len(store.history()) > 2 * KILLS
    for entry in store.entries():
        read_model(entry.path)
    assert not [path.name for path in store.folder.iterdir() if path.name.endswith((".new", ".old"))]


def test_the_store_can_be_read_without_torch(tmp_path: Path) -> None:
    code = "import sys; from client.line.store import Store; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_one_process_waits_for_another_that_changes_the_store(
    store: Store, model: SiteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    added(store, model, 1)
    monkeypatch.setattr("client.line.store.PATIENCE", 0.0)
    with store._changing(), pytest.raises(FedreptileError, match="being changed by another process"):
        store.rollback(1)
