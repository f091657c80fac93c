"""Checkpoints, both ways; damaged ones; and what a crash in the middle of writing leaves behind."""

import errno
import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from common import checkpoint
from common.checkpoint import (
    NAME,
    RunState,
    code_version,
    read_checkpoint,
    write_checkpoint,
)
from common.errors import CheckpointError
from common.paths import write_atomically
from common.settings import Settings, flatten

SETTINGS = Settings.from_flat({"run.seed": 7, "inner.optimizer": "adam", "inner.learning-rate": 0.1})


def tensors(seed: int, *names: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, 3, generator=generator) for name in names}


def full_state(round_number: int = 12) -> RunState:
    return RunState(
        round_number,
        tensors(round_number, "conv1.weight", "head.bias"),
        {**tensors(1, "second-moment/conv1.weight"), "adam-steps": torch.tensor([60.0])},
        {**tensors(2, "first/conv1.weight"), "steps": torch.tensor([12.0], dtype=torch.float64)},
        tensors(3, "conv1.weight", "head.bias"),
        2,
        {
            "crack": (torch.ones(4, dtype=torch.float64), 5),
            "a/b/c": (torch.zeros(4), 0),
            "Kratzer \u00fc": (torch.ones(4), 1),
        },
    )


def plain_state(params: Mapping[str, Tensor]) -> RunState:
    return RunState(1, params, {}, {}, {})


FLAT = torch.arange(12.0)

STATES = {
    "with everything": full_state(),
    "plain": plain_state(tensors(0, "w")),
    "before the first round": RunState(0, tensors(0, "w"), {}, {}, {}),
    "scalars, empty tensors and float64": plain_state(
        {"scalar": torch.tensor(0.1, dtype=torch.float64), "empty": torch.empty(0, 3), "b": torch.ones(1)}
    ),
    "values that are not finite": plain_state({"w": torch.tensor([math.inf, -math.inf, -0.0, 1e-45])}),
    "names that are hard": plain_state(
        {"params/slots/w": torch.ones(1), "": torch.zeros(1), "\u00fc \n": torch.ones(2)}
    ),
    "views of one flat tensor": plain_state({"a": FLAT[:4].view(2, 2), "b": FLAT[4:]}),
    "turned": RunState(1, {"w": FLAT.view(3, 4).T}, {}, {}, {}, 0, {"crack": (FLAT.view(6, 2)[:, 1], 1)}),
    "the average is the params": RunState(1, {"w": FLAT}, {}, {}, {"w": FLAT}),
    "classes named like parts": RunState(
        1, {"w": FLAT}, {}, {}, {}, 0, {"params/w": (torch.ones(2), 3), "": (torch.zeros(3), 1)}
    ),
}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
@pytest.mark.parametrize("whole_folder", [True, False], ids=["folder", "file"])
def test_a_state_comes_back_from_its_checkpoint(state: RunState, whole_folder: bool, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / NAME, state, SETTINGS)
    found = read_checkpoint(tmp_path if whole_folder else tmp_path / NAME)
    assert (found.state.round, found.state.failed) == (state.round, state.failed)
    for part in ("params", "slots", "optimizer", "average"):
        assert_same(getattr(found.state, part), getattr(state, part))
    assert_same(
        {name: total for name, (total, _) in found.state.prototypes.items()},
        {name: total for name, (total, _) in state.prototypes.items()},
    )
    assert {name: count for name, (_, count) in found.state.prototypes.items()} == {
        name: count for name, (_, count) in state.prototypes.items()
    }
    assert found.settings == SETTINGS
    assert found.code_version == code_version()


texts = st.text(st.characters(codec="utf-8"), max_size=6)


@given(texts, st.dictionaries(texts, st.integers(0, 2**62), max_size=4))
def test_any_name_comes_back(tmp_path_factory: pytest.TempPathFactory, param: str, counts: dict[str, int]) -> None:
    table = {name: (torch.ones(2), count) for name, count in counts.items()}
    state = RunState(1, {param: torch.ones(1)}, {}, {}, {}, 0, table)
    path = tmp_path_factory.getbasetemp() / "any name" / NAME
    write_checkpoint(path, state, Settings())
    found = read_checkpoint(path).state
    assert list(found.params) == [param]
    assert {name: count for name, (_, count) in found.prototypes.items()} == counts


def test_params_keep_their_names_apart_from_those_of_other_parts(tmp_path: Path) -> None:
    params, slots, optimizer, average = ({"w": torch.full((1,), float(part))} for part in range(4))
    write_checkpoint(tmp_path / NAME, RunState(1, params, slots, optimizer, average), SETTINGS)
    found = read_checkpoint(tmp_path).state
    parts = (found.params, found.slots, found.optimizer, found.average)
    assert [float(part["w"]) for part in parts] == [0, 1, 2, 3]


def test_what_is_published_is_the_average_if_there_is_one() -> None:
    params, average = tensors(0, "w"), tensors(1, "w")
    assert RunState(1, params, {}, {}, {}).published is params
    assert RunState(1, params, {}, {}, {}).failed == 0
    assert RunState(1, params, {}, {}, average).published is average


def test_writing_changes_nothing_in_the_state(tmp_path: Path) -> None:
    state, twin = full_state(), full_state()
    write_checkpoint(tmp_path / NAME, state, SETTINGS)
    assert_same(state.params, twin.params)
    assert_same(state.slots, twin.slots)


def test_the_version_is_that_of_the_installed_project(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_version() == version("fedreptile")

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(checkpoint, "version", missing)
    assert code_version() == "unknown"


# --- Damaged files -------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / NAME, full_state(), SETTINGS)
    return tmp_path / NAME


def assert_refused(path: Path, named: str = "") -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_cut_off_at_any_place_is_refused_and_named(written: Path) -> None:
    data = written.read_bytes()
    draws = torch.randint(len(data), (100,), generator=torch.Generator().manual_seed(0)).tolist()
    for stop in {*range(20), *draws, len(data) - 1}:
        written.write_bytes(data[:stop])
        assert_refused(written)


def test_trailing_bytes_are_refused(written: Path) -> None:
    written.write_bytes(written.read_bytes() + b"\0")
    assert_refused(written)


@pytest.mark.parametrize(
    "data",
    [b"", b"garbage", b"\xff" * 1000, b"\0" * 1000, b'{"json": true}', (2**60).to_bytes(8, "little") + b"{}" * 50],
    ids=["empty", "text", "ones", "zeros", "JSON", "a header that says it is huge"],
)
def test_garbage_is_refused_and_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / NAME).write_bytes(data)
    assert_refused(tmp_path / NAME)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert_refused(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match=NAME):
        read_checkpoint(tmp_path)


def described(**changes: Any) -> dict[str, Any]:
    sound = {"round": 1, "failed": 0, "counts": {"crack": 2}, "settings": flatten(SETTINGS), "code": "1"}
    return {**sound, **changes}


def forged(path: Path, metadata: dict[str, str] | None) -> Path:
    path.write_bytes(save({"params/w": torch.ones(2), "prototypes/crack": torch.ones(2)}, metadata=metadata))
    return path


def test_the_forged_checkpoint_is_sound_unless_something_is_wrong_with_it(tmp_path: Path) -> None:
    found = read_checkpoint(forged(tmp_path / NAME, {"format": "1", "fedreptile": json.dumps(described())}))
    assert found.state.prototypes["crack"][1] == 2


@pytest.mark.parametrize("found", ["2", "", None])
def test_another_format_is_refused_and_both_are_named(tmp_path: Path, found: str | None) -> None:
    metadata = {"fedreptile": json.dumps(described())} | ({} if found is None else {"format": found})
    message = assert_refused(forged(tmp_path / NAME, metadata))
    assert repr(found) in message
    assert repr("1") in message


def without(key: str) -> str:
    left = described()
    del left[key]
    return json.dumps(left)


WRONG_DESCRIPTIONS = {
    "nothing": "null",
    "a list": "[1, 2]",
    "not JSON": "{",
    "a round of text": json.dumps(described(round="first")),
    "no round at all": json.dumps(described(round=None)),
    "an infinite round": json.dumps(described(round=math.inf)),
    "a count too many": json.dumps(described(counts={"crack": 2, "dent": 1})),
    "a count of text": json.dumps(described(counts={"crack": "two"})),
    "counts in a list": json.dumps(described(counts=[2])),
    "settings in a list": json.dumps(described(settings=["run.seed"])),
    "an unknown setting": json.dumps(described(settings={"run.sed": 1})),
    "a setting of the wrong type": json.dumps(described(settings={"run.seed": "one"})),
    "a setting out of range": json.dumps(described(settings={"run.rounds": -1})),
    **{f"{key} missing": without(key) for key in described()},
}


@pytest.mark.parametrize("description", WRONG_DESCRIPTIONS.values(), ids=WRONG_DESCRIPTIONS.keys())
def test_a_checkpoint_with_a_wrong_description_is_refused_and_named(tmp_path: Path, description: str) -> None:
    assert_refused(forged(tmp_path / NAME, {"format": "1", "fedreptile": description}))


def test_tensors_without_a_description_are_refused(tmp_path: Path) -> None:
    assert_refused(forged(tmp_path / NAME, {"format": "1"}))
    assert_refused(forged(tmp_path / NAME, None))


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "unpickled"))


def pickled(attack: Attack, path: Path) -> None:
    path.write_bytes(pickle.dumps(attack))


def saved_by_torch(attack: Attack, path: Path) -> None:
    torch.save({"params/w": attack}, path)


@pytest.mark.parametrize("write", [pickled, saved_by_torch])
def test_an_attack_by_pickle_is_refused_and_not_run(tmp_path: Path, write: Callable[[Attack, Path], None]) -> None:
    mark = tmp_path / "mark"
    write(Attack(mark), tmp_path / NAME)
    assert_refused(tmp_path / NAME)
    assert not mark.exists()


# --- Crashes -------------------------------------------------------------------------------------


class CrashError(Exception):
    """The process ends here."""


def crash(*given: object, **named: object) -> None:
    raise CrashError


@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "replace")], ids=["flushing", "renaming"])
def test_a_crash_while_writing_leaves_the_old_checkpoint(
    written: Path, owner: object, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, crash)
        with pytest.raises(CrashError):
            write_checkpoint(written, full_state(13), SETTINGS)
    found = read_checkpoint(written.parent)
    assert found.state.round == 12
    assert_same(found.state.params, full_state(12).params)
    write_checkpoint(written, full_state(14), SETTINGS)  # and what the crash left is not in the way
    assert read_checkpoint(written.parent).state.round == 14


@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "replace")], ids=["flushing", "renaming"])
def test_a_disk_that_is_full_is_an_error_that_names_the_file_and_leaves_nothing_behind(
    written: Path, owner: object, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, full)
        with pytest.raises(CheckpointError) as caught:
            write_checkpoint(written, full_state(13), SETTINGS)
    assert all(part in str(caught.value) for part in (str(written), "the disk is full"))
    assert [path.name for path in written.parent.iterdir()] == [NAME]
    assert read_checkpoint(written).state.round == 12


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(CheckpointError, match=NAME):
        write_checkpoint(tmp_path / "runs" / NAME, full_state(), SETTINGS)


def test_a_crash_while_writing_the_first_checkpoint_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(CrashError):
        write_checkpoint(tmp_path / NAME, full_state(), SETTINGS)
    assert not (tmp_path / NAME).exists()


def test_a_process_killed_while_writing_leaves_the_old_checkpoint(written: Path) -> None:
    code = f"""
        import os, torch
        from pathlib import Path
        from common.checkpoint import RunState, write_checkpoint
        from common.settings import Settings
        Path.replace = lambda *given: os.kill(os.getpid(), 9)
        write_checkpoint(Path({str(written)!r}), RunState(99, {{"w": torch.ones(3)}}, {{}}, {{}}, {{}}), Settings())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert ended.returncode == -9, ended.stderr
    assert read_checkpoint(written).state.round == 12


def test_the_new_checkpoint_is_whole_and_on_disk_before_it_takes_the_place_of_the_old(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def watched_fsync(descriptor: int) -> None:
        events.append(f"flushed {os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def watched_replace(scratch: Path, target: Path) -> Path:
        assert read_checkpoint(target).state.round == 12
        assert read_checkpoint(scratch).state.round == 13
        assert scratch.parent == target.parent  # a rename is atomic within one file system only
        events.append("replaced")
        return replace(scratch, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    write_checkpoint(written, full_state(13), SETTINGS)
    assert events[:2] == [f"flushed {written.stat().st_size} bytes", "replaced"]
    assert read_checkpoint(written).state.round == 13


def test_nothing_is_left_beside_a_checkpoint(written: Path) -> None:
    write_checkpoint(written, full_state(13), SETTINGS)
    assert [path.name for path in written.parent.iterdir()] == [NAME]


def test_folders_are_made_for_a_file_and_its_content_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first" / "rounds.jsonl"
    for content in (b"", b"one\ntwo", b"1"):
        write_atomically(path, content)
        assert path.read_bytes() == content
