"""Commands run within this process, for speed."""

from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

from common.errors import FedreptileError

Run = Callable[..., str]


def commands_of(app: typer.Typer) -> tuple[Run, Run]:
    """Return two functions of a command's words: one for what it showed, one for what it was refused with."""

    def invoke(*words: object) -> str:
        result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(word) for word in words])
        if result.exception:
            raise result.exception
        return result.stdout

    def refused(*words: object) -> str:
        with pytest.raises(FedreptileError) as raised:
            invoke(*words)
        return str(raised.value)

    return invoke, refused
