"""How a command line reads its settings and how it ends."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from common.cli import read_settings, run_cli
from common.errors import SettingsError
from common.settings import Settings


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Put the handler of SIGTERM back after a command line has set its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def command_that(does: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setattr("sys.argv", ["command"])
    app = typer.Typer()
    app.command()(does)
    return app


def raising(error: BaseException) -> Callable[[], None]:
    def does() -> None:
        raise error

    return does


def code_of(does: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> object:
    with pytest.raises(SystemExit) as caught:
        run_cli(command_that(does, monkeypatch))
    return caught.value.code


def test_a_command_that_does_its_work_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_of(lambda: None, monkeypatch) == 0


def test_an_error_for_the_user_is_one_line_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "setting [inner] steps is wrong: " + "a long story " * 20
    assert code_of(raising(SettingsError(text)), monkeypatch) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {text}\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_cli(command_that(raising(ZeroDivisionError()), monkeypatch))


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_of(raising(KeyboardInterrupt()), monkeypatch) == 130


def test_a_request_to_end_puts_things_in_order_and_ends_with_143(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_order = []

    def does() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            put_in_order.append(True)

    assert code_of(does, monkeypatch) == 143
    assert put_in_order == [True]


def test_words_count_more_than_the_file_and_the_file_more_than_the_base(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[run]\nseed = 2\nrounds = 2\n")
    base = Settings.from_flat({"run.seed": 1, "run.rounds": 1, "episode.way": 3})
    found = read_settings(file, ["run.seed=3"], base)
    assert (found.run.seed, found.run.rounds, found.episode.way) == (3, 2, 3)
    assert read_settings(None, [], base) == base
    assert read_settings(None, []) == Settings()
