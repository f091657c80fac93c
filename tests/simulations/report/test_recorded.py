"""What a run left in its folder, read back or refused with a clear error."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.checkpoint import NAME
from common.errors import CheckpointError
from server.service.runs import JOURNAL
from simulations.report.page import write_report
from simulations.report.recorded import RecordedRun, read_run
from tests.simulations.report.pages import journal, judged


def test_what_a_run_left_is_read_back_as_it_was_written(run: Path) -> None:
    found = read_run(run)
    assert found == RecordedRun("plants-run", found.checkpoint, journal(), [judged()])


def test_without_a_checkpoint_the_error_says_so_and_nothing_is_written(run: Path) -> None:
    (run / NAME).unlink()
    with pytest.raises(CheckpointError, match="is not a checkpoint that can be read"):
        write_report(run)
    assert not (run / "report.html").exists()


def _without(*keys: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        values = json.loads(text)
        part = values
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]
        return json.dumps(values)

    return change


def _with(key: str, value: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), key: value})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text[:-20], "Expecting|Unterminated"),
        (lambda text: "[]", "expected dict"),
        (lambda text: "\udcff", "decode"),
        (_without("after"), "has no 'after'"),
        (_without("before", "ci95"), "before has no 'ci95'"),
        (_with("share_hurt", "0.5"), "share_hurt is '0.5'; expected float"),
        (_with("round", True), "round is 'True'; expected int"),
        (_with("sites", {"C": 1}), "sites: C is '1'; expected dict"),
        (_with("confusion", [["a", "b"]]), r"confusion\[0\] has 2 parts; expected 3"),
        (_with("shown", "none"), "shown is 'none'; expected list"),
    ],
)
def test_a_broken_result_of_judging_is_named_with_what_to_do(
    run: Path, change: Callable[[str], str], told: str
) -> None:
    path = run / "judged-judged-2-way-5-shot.json"
    path.write_bytes(change(path.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=told) as caught:
        write_report(run)
    assert str(path) in str(caught.value) and "fedreptile-sim evaluate" in str(caught.value)


@pytest.mark.parametrize("line", [b'{"round": 1}\n', b"[]\n", b"\xff\n"])
def test_a_broken_journal_is_named_with_what_to_do(run: Path, line: bytes) -> None:
    (run / JOURNAL).write_bytes(line)
    with pytest.raises(CheckpointError, match=r"rounds\.jsonl is not a journal that can be read.*move it away"):
        write_report(run)


def test_a_half_written_last_line_of_the_journal_is_left_out(run: Path) -> None:
    with (run / JOURNAL).open("a") as file:
        file.write('{"round": 3, "st')
    assert [line.round for line in read_run(run).journal] == [1, 2]
