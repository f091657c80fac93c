"""A site's policy: what its file may say, and what follows."""

import dataclasses
import tomllib
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.door.policy import (
    TEMPLATE,
    ClassesPolicy,
    CodePolicy,
    Policy,
    Span,
    policy_of,
    read_policy,
    write_default_policy,
)
from common.errors import PolicyRefusal, SettingsError

FAB = "0123456789abcdef" * 4


def policy_from(folder: Path, text: str) -> Policy:
    (folder / "policy.toml").write_text(text, encoding="utf-8")
    return read_policy(folder / "policy.toml")


# ---------------------------------------------------------------------------------------------- the file


def test_the_file_that_join_writes_says_what_the_defaults_are_for_the_bundles_of_the_kit(tmp_path: Path) -> None:
    write_default_policy(tmp_path / "policy.toml", [FAB])
    assert read_policy(tmp_path / "policy.toml") == Policy(code=CodePolicy((FAB,)))


def test_every_key_there_is_stands_explained_in_that_file() -> None:
    tree = tomllib.loads(TEMPLATE.format(fabs=""))
    for section in dataclasses.fields(Policy):
        names = {item.name.replace("_", "-") for item in dataclasses.fields(type(section.default))}  # type: ignore[arg-type]
        assert tree[section.name].keys() == names
    lines = TEMPLATE.splitlines()
    for number, line in enumerate(lines):
        if " = " in line and not line.startswith("#") and lines[number - 1].partition(" ")[0] not in ("way", "shot"):
            assert lines[number - 1].startswith("#"), f"nothing explains {line!r}"


def test_a_policy_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("[code]\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="is there already"):
        write_default_policy(tmp_path / "policy.toml", [])
    assert (tmp_path / "policy.toml").read_text(encoding="utf-8") == "[code]\n"


def test_an_empty_list_of_bundles_lets_none_run(tmp_path: Path) -> None:
    assert not policy_from(tmp_path, "[code]\nfabs = []\n").may_run(FAB)
    assert policy_from(tmp_path, f'[code]\nfabs = ["{FAB}"]\n').may_run(FAB)


def test_what_a_file_does_not_say_is_as_by_default(tmp_path: Path) -> None:
    found = policy_from(tmp_path, "[classes]\nminimum = 9\n")
    assert found == Policy(classes=ClassesPolicy(minimum=9))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[clases]\n", "unknown section 'clases'; the nearest valid one is 'classes'"),
        ("[classes]\nname = true\n", "unknown key 'classes.name'; the nearest valid one is 'classes.names'"),
        ("[classes]\nmay_leave = 1\n", "unknown key 'classes.may_leave'"),
        ("minimum = 3\n", "unknown section 'minimum'"),
        ("classes = 3\n", "'classes' stands outside"),
        ("[classes]\nnames = 1\n", "classes.names is 1; it must be true or false"),
        ('[classes]\ntables = "true"\n', "classes.tables is 'true'; it must be true or false"),
        ("[classes]\nminimum = 0\n", "classes.minimum is 0; it must be at least 1"),
        ("[classes]\nminimum = true\n", "classes.minimum is True; it must be a whole number"),
        ("[classes]\nminimum = 5.0\n", "classes.minimum is 5.0; it must be a whole number"),
        ("[traffic]\nbytes-a-day = -1\n", "traffic.bytes-a-day is -1; it must be at least 0"),
        ("[limits]\nway = 1\n", "limits.way is 1; it must be at least 2"),
        ("[limits]\nsteps = -1\n", "limits.steps is -1; it must be at least 0"),
        ('[metrics]\nmay-leave = "*"\n', "metrics.may-leave is '*'; it must be a list of texts"),
        ("[metrics]\nmay-leave = [1]\n", "metrics.may-leave is (1,); it must be a list of texts"),
        ('[parameters]\nmay-leave = [""]\n', "parameters.may-leave is ('',); it must be a list of texts"),
        ('[code]\nfabs = ["abc"]\n', "code.fabs holds 'abc'; it must be a SHA-256"),
        (f'[code]\nfabs = ["{FAB.upper()}"]\n', "it must be a SHA-256"),
        ('[hours]\nwork = ["always"]\n', "hours.work holds 'always'; write it like"),
        ("not toml", "cannot be read"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_what_is_needed(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SettingsError) as raised:
        policy_from(tmp_path, text)
    assert expected in str(raised.value) and str(tmp_path / "policy.toml") in str(raised.value)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="fedreptile-site join"):
        read_policy(tmp_path / "policy.toml")


def test_the_digest_is_of_what_it_says_and_not_of_how_it_is_written(tmp_path: Path) -> None:
    plain = policy_from(tmp_path, "[classes]\nminimum = 9\n[limits]\nway = 3\n")
    other = policy_from(tmp_path, "# words\n[limits]\nway = 3\n\n[classes]\nminimum = 9\ntables = false\n")
    assert plain.digest == other.digest and len(plain.digest) == 64
    assert policy_from(tmp_path, "[classes]\nminimum = 8\n[limits]\nway = 3\n").digest != plain.digest


# ---------------------------------------------------------------------------------------------- hours


@pytest.mark.parametrize(
    ("span", "inside", "outside"),
    [
        (
            "mon-fri 18:00-06:00",
            ["mon 18:00", "tue 05:59", "sat 05:59", "fri 23:59"],
            ["mon 17:59", "mon 05:59", "sat 06:00", "sun 20:00"],
        ),
        ("sat-sun 00:00-24:00", ["sat 00:00", "sun 23:59"], ["fri 23:59", "mon 00:00"]),
        ("wed 08:00-12:00", ["wed 08:00", "wed 11:59"], ["wed 07:59", "wed 12:00", "tue 09:00"]),
        ("fri-mon 22:00-02:00", ["fri 22:00", "tue 01:59", "sun 23:00"], ["tue 22:00", "thu 23:00", "fri 01:00"]),
        ("sun 23:00-01:00", ["sun 23:30", "mon 00:30"], ["mon 01:00", "sun 00:30"]),
    ],
)
def test_work_begins_within_the_hours_only(span: str, inside: list[str], outside: list[str]) -> None:
    policy = policy_of({"hours": {"work": [span]}})
    for text, expected in [*((text, True) for text in inside), *((text, False) for text in outside)]:
        day, clock = text.split()
        number = ("mon", "tue", "wed", "thu", "fri", "sat", "sun").index(day)
        moment = datetime.fromisoformat(f"2026-11-{16 + number} {clock}").astimezone()
        assert moment.weekday() == number
        assert policy.works_at(moment) is expected, text
        if not expected:
            with pytest.raises(PolicyRefusal):
                policy.check_time(moment)


def test_no_hours_are_all_hours_and_several_add_up() -> None:
    noon = datetime(2026, 11, 18, 12).astimezone()
    assert Policy().works_at(noon)
    assert policy_of({"hours": {"work": ["mon 00:00-24:00", "wed 12:00-12:01"]}}).works_at(noon)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mon",
        "mon 8:00-12:00",
        "mon 08:00",
        "mon 08:00-25:00",
        "mon 08:60-12:00",
        "mon 24:00-06:00",
        "mon 08:00-08:00",
        "Mon 08:00-12:00",
        "mon-xyz 08:00-12:00",
        "mon  08:00-12:00",
        "mon 08:00-12:00 ",
        "mon,tue 08:00-12:00",
        "mon 08:00-24:01",
    ],
)
def test_hours_that_are_not_written_as_agreed_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"hours\.work"):
        policy_of({"hours": {"work": [text]}})


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 1439), st.integers(1, 1440), st.integers(0, 7 * 1440 - 1))
def test_a_span_holds_as_many_minutes_after_its_start_as_it_is_long(
    first: int, last: int, start: int, end: int, minute: int
) -> None:
    if start == end:
        return
    days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    span = Span.of(f"{days[first]}-{days[last]} {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}")
    local = datetime(2026, 11, 16 + minute // 1440, minute % 1440 // 60, minute % 60)
    length = (end - start) % 1440 or 1440
    begins = [1440 * ((first + day) % 7) + start for day in range((last - first) % 7 + 1)]
    assert span.holds(local) == any((minute - begin) % (7 * 1440) < length for begin in begins)
