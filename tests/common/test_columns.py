"""The columns of tables as settings write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.columns import Column, format_columns, parse_columns
from common.errors import SettingsError
from common.settings import DataSettings

names = st.text(st.characters(codec="utf-8", exclude_characters=",=|", exclude_categories=["C", "Z"]), min_size=1)
columns = st.lists(
    st.builds(Column, names, st.just(()) | st.lists(names, min_size=2, max_size=5, unique=True).map(tuple)),
    unique_by=lambda column: column.name,
    max_size=6,
)


@given(columns)
def test_columns_come_back_from_what_is_written(found: list[Column]) -> None:
    assert list(parse_columns(format_columns(found))) == found


def test_a_column_is_a_name_for_numbers_or_a_name_with_its_values() -> None:
    assert parse_columns(" age,, cp = 1 | 2|3 , blood pressure") == (
        Column("age"),
        Column("cp", ("1", "2", "3")),
        Column("blood pressure"),
    )
    assert [column.width for column in parse_columns("age, cp=1|2|3")] == [1, 3]


@pytest.mark.parametrize("text", ["=1|2", "cp=1", "cp=", "cp=1|1", "cp=1||2", "age, age"])
def test_a_column_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"data\.columns"):
        parse_columns(text)


def test_the_settings_say_what_shape_an_input_has() -> None:
    assert DataSettings(channels=3, size=64).shape == (3, 64, 64)
    assert DataSettings(channels=1, size=8, beside="{stem}_mask.png {stem}_template.png").shape == (3, 8, 8)
    assert DataSettings(kind="vector", size=128).shape == (128,)
    assert DataSettings(kind="table", columns="age, cp=1|2|3|4, chol").shape == (6,)
