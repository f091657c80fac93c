"""Rounds with their files: resuming, refusing other settings, stopping when sites stay away."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from flwr.app import Error, Message, RecordDict

from common.checkpoint import NAME, read_checkpoint, write_checkpoint
from common.errors import CheckpointError, PolicyRefusal, RoundError, SettingsError
from common.messages import Introduction
from common.settings import Settings, Value
from server.rounds import RunFolder, load_or_begin, run_federation
from server.service.runs import JOURNAL, SITES, WAITING, read_journal
from tests.server.scripted import SMALL, ScriptedGrid, introduction, site, small_plan


def settings(run: Path, **changes: Value) -> Settings:
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    return Settings.from_flat({**SMALL, "run.dir": str(run), "outer.sites-per-round": 0, **keys})


def grid_of(*names: str) -> ScriptedGrid:
    plan = small_plan(outer__sites_per_round=0)
    return ScriptedGrid({node: site(name, plan) for node, name in enumerate(names)})


def test_a_run_leaves_a_checkpoint_and_a_line_for_every_round(tmp_path: Path) -> None:
    state = run_federation(grid_of("a", "b"), settings(tmp_path, run__rounds=3))
    found = read_checkpoint(tmp_path)
    assert found.state.round == state.round == 3
    assert all(torch.equal(found.state.params[name], value) for name, value in state.params.items())
    assert [line["round"] for line in read_journal(tmp_path)] == [1, 2, 3]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_sites_say_is_written_when_there_are_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[list[str]] = []
    note = RunFolder.note_sites

    def noting(folder: RunFolder, introductions: Mapping[str, Introduction]) -> None:
        written.append(sorted(introductions))
        note(folder, introductions)

    monkeypatch.setattr(RunFolder, "note_sites", noting)
    grid, plan = grid_of("a", "b"), small_plan(outer__sites_per_round=0)
    first = grid.answers[0]

    def answer(message: Message) -> RecordDict | Error | None:
        if message.metadata.group_id == "3":
            grid.answers[2] = site("ß", plan)
        return first(message)

    grid.answers[0] = answer
    run_federation(grid, settings(tmp_path, run__rounds=5))
    assert written == [["a", "b"], ["a", "b", "ß"]]
    said = json.loads((tmp_path / SITES).read_text(encoding="utf-8"))
    assert list(said) == ["a", "b", "ß"]
    expected = {"name": "ß", "classes": {"a": 3, "b": 4}, "device": "cpu", "versions": {"torch": "2"}}
    assert said["ß"] == {**expected, "release": 0, "refused": 0, "wishes": {}}


def test_a_round_s_line_names_the_sites_that_it_has_left_at_work(tmp_path: Path) -> None:
    grid = grid_of("a", "b")
    first = grid.answers[1]
    grid.answers[1] = lambda message: first(message) if message.metadata.message_type == "query" else None
    run_federation(grid, settings(tmp_path, run__rounds=2, outer__deadline=0.1, outer__quorum=0.5))
    lines = read_journal(tmp_path)
    assert [list(line["dropped"]) for line in lines] == [["b"], []]
    assert [line["absent"] for line in lines] == [{"b": "still at work on round 1"}] * 2


def test_a_finished_run_started_again_does_nothing(tmp_path: Path) -> None:
    run_federation(grid_of("a"), settings(tmp_path, run__rounds=2))
    grid = grid_of("a")
    run_federation(grid, settings(tmp_path, run__rounds=2))
    assert not grid.sent and len(read_journal(tmp_path)) == 2


def test_an_interrupted_run_goes_on_where_it_was_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = run_federation(grid_of("a", "b"), settings(tmp_path / "whole", run__rounds=5, outer__anneal=True))
    grid = grid_of("a", "b")
    answer, count = grid.answers[1], [0]

    def interrupting(message):  # type: ignore[no-untyped-def]
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return answer(message)

    grid.answers[1] = interrupting
    cut = settings(tmp_path / "cut", run__rounds=5, outer__anneal=True, run__checkpoint_seconds=1e9)
    with pytest.raises(KeyboardInterrupt):
        run_federation(grid, cut)
    assert read_checkpoint(tmp_path / "cut").state.round == 2
    resumed = run_federation(grid_of("a", "b"), cut)
    assert all(torch.equal(resumed.params[name], value) for name, value in whole.params.items())
    assert [line["round"] for line in read_journal(tmp_path / "cut")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("change", ["inner.steps", "run.seed", "model.sharpness", "run.rounds"])
def test_other_settings_are_not_mixed_into_a_run(tmp_path: Path, change: str) -> None:
    begun = settings(tmp_path, run__rounds=2)
    run_federation(grid_of("a"), begun)
    with pytest.raises(CheckpointError, match=change):
        run_federation(grid_of("a"), begun.with_values({change: 7.0 if change == "model.sharpness" else 7}))


def test_settings_that_do_not_change_the_result_may_change(tmp_path: Path) -> None:
    begun = settings(tmp_path, run__rounds=2)
    run_federation(grid_of("a"), begun)
    run_federation(grid_of("a"), begun.with_values({"outer.deadline": 1.0, "run.checkpoint-seconds": 3.0}))


def test_a_run_s_folder_is_not_used_again_when_resuming_is_off(tmp_path: Path) -> None:
    run_federation(grid_of("a"), settings(tmp_path, run__rounds=2))
    with pytest.raises(CheckpointError, match="already holds a run"):
        run_federation(grid_of("a"), settings(tmp_path, run__rounds=2, run__resume=False))


def test_a_damaged_checkpoint_stops_the_run_and_is_left_alone(tmp_path: Path) -> None:
    run_federation(grid_of("a"), settings(tmp_path, run__rounds=2))
    damaged = (tmp_path / NAME).read_bytes()[:100]
    (tmp_path / NAME).write_bytes(damaged)
    with pytest.raises(CheckpointError, match=NAME):
        run_federation(grid_of("a"), settings(tmp_path, run__rounds=2))
    assert (tmp_path / NAME).read_bytes() == damaged


def test_journal_lines_after_the_checkpoint_and_a_half_written_one_are_dropped(tmp_path: Path) -> None:
    chosen = settings(tmp_path, run__rounds=5)
    plan = small_plan(run__rounds=5, run__dir=str(tmp_path), outer__sites_per_round=0)
    state = load_or_begin(plan, RunFolder.of(chosen))
    write_checkpoint(tmp_path / NAME, state, chosen)
    (tmp_path / JOURNAL).write_text(json.dumps({"round": 1}) + "\n" + '{"round": 2, "st')
    assert load_or_begin(plan, RunFolder.of(chosen)).round == 0
    assert read_journal(tmp_path) == []


def test_a_relative_run_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"run\.dir is 'here'"):
        RunFolder.of(settings(Path("here")))


def test_a_run_without_rounds_has_sites_say_what_they_are_have_and_wish_and_nothing_else(tmp_path: Path) -> None:
    grid, asked = grid_of("a", "b"), list[str]()
    for node, answer in list(grid.answers.items()):
        grid.answers[node] = lambda message, answer=answer: (  # type: ignore[misc]
            asked.append(message.metadata.message_type) or answer(message)  # type: ignore[func-returns-value]
        )
    run_federation(grid, settings(tmp_path, run__rounds=0))
    assert asked == ["query", "query"] and json.loads((tmp_path / SITES).read_text(encoding="utf-8")).keys() == {
        "a",
        "b",
    }
    assert not (tmp_path / NAME).exists() and not read_journal(tmp_path)
    run_federation(grid_of(), settings(tmp_path, run__rounds=0, outer__join_sites=1))


def test_rounds_without_quorum_end_the_run_and_name_who_is_missing(tmp_path: Path) -> None:
    grid = grid_of("a", "b")
    grid.answers[7] = lambda m: introduction("silent") if m.metadata.message_type == "query" else None
    chosen = settings(tmp_path, outer__quorum=1.0, outer__deadline=0.01, outer__failed_rounds=1)
    with pytest.raises(RoundError, match=r"1 round had .* silent: no-reply"):
        run_federation(grid, chosen)
    assert read_checkpoint(tmp_path).state.round == 1


def test_a_run_that_would_train_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RoundError, match=r"judge\.held-out is 2 and 2 sites joined"):
        run_federation(grid_of("a", "b"), settings(tmp_path, judge__held_out=2, outer__join_sites=2))


def test_a_run_may_start_from_the_params_of_another(tmp_path: Path) -> None:
    first = run_federation(grid_of("a"), settings(tmp_path / "1", run__rounds=2))
    chosen = settings(tmp_path / "2", run__rounds=1, model__initial=str(tmp_path / "1"))
    second = run_federation(grid_of("a"), chosen)
    for name, value in first.params.items():
        assert torch.allclose(second.params[name], value + 1)
    wider = settings(tmp_path / "3", model__width=3, model__initial=str(tmp_path / "1"))
    with pytest.raises(CheckpointError, match="another network"):
        run_federation(grid_of("a"), wider)


def test_a_run_outlasts_the_hours_of_its_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.roster.REST", 0.3)
    monkeypatch.setattr("server.roster.PAUSE", 0.01)
    chosen = settings(tmp_path, run__rounds=6, outer__join_sites=2, outer__quorum=1.0, outer__failed_rounds=1)
    grid = grid_of("a", "b")
    works, began, waited = grid.answers[1], list[float](), list[bool]()
    rests = Error(101, PolicyRefusal("hours.work", "").told())

    def by_the_clock(message: Message) -> RecordDict | Error | None:
        rounds = len(read_journal(tmp_path))
        if rounds == 3 and not began:
            began.append(time.monotonic())
        if began and time.monotonic() - began[0] < 1.0:
            waited.append((tmp_path / WAITING).exists())
            return rests
        return works(message)

    grid.answers[1] = by_the_clock
    run_federation(grid, chosen)
    journal = read_journal(tmp_path)
    assert [line["round"] for line in journal] == [1, 2, 3, 4, 5, 6]
    assert [line["quorum"] for line in journal] == [True, True, True, False, True, True]
    assert "hours.work" in journal[3]["dropped"]["b"] and any(waited) and not (tmp_path / WAITING).exists()
