"""``data list`` and ``data get``: terms before the download, agreement before the first byte, and what was got."""

import sys
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from common.errors import SourceError
from simulations.sources import cli
from simulations.sources.catalogue import CATALOGUE
from simulations.sources.cli import data_app
from simulations.sources.download import Done, UnreachableError
from tests.simulations.sources.origin import Origin
from tests.simulations.sources.test_prepare import HEARTS, hearts

__all__ = ["hearts"]


def run(*words: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(data_app, list(words), input=answer, env={"COLUMNS": "200"})


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is there to ask."""

    class Answers:
        def isatty(self) -> bool:
            return True

    class Sys:
        stdin = Answers()
        stdout = sys.stdout

    monkeypatch.setattr(cli, "sys", Sys)


def test_list_shows_every_set_with_its_licence_and_counts(home: Path) -> None:
    shown = " ".join(run("list").output.split())
    for chosen in CATALOGUE.values():
        assert chosen.name in shown and str(chosen.items) in shown
    assert "Apache-2.0" in shown and "installed" in shown and "mirror" not in shown.replace("--data-mirror", "")


def test_list_tells_what_is_here(home: Path, mirror: Path, hearts: Origin) -> None:
    assert rows_with("mirror", "list", "--data-mirror", str(mirror)) == {*CATALOGUE} - {"digits"}
    run("get", HEARTS, "--yes")
    assert rows_with("ready", "list") == rows_with("downloaded", "list") == {HEARTS}
    next((home / "downloads").rglob("*.data")).unlink()
    assert rows_with("in part", "list") == {HEARTS}


def rows_with(word: str, *words: str) -> set[str]:
    """Return the sets in whose rows of the table a word stands; a row may take several lines."""
    found, name = set(), ""
    for line in run(*words).output.splitlines():
        cells = [cell.strip() for cell in line.split("│")]
        if len(cells) > 3:
            name = cells[1] or name
            if word in line:
                found.add(name)
    return found


def test_get_from_a_mirror_shows_the_terms_and_asks_nothing(home: Path, mirror: Path) -> None:
    result = run("get", HEARTS, "--data-mirror", str(mirror))
    assert result.exit_code == 0, result.output
    shown = result.output
    for part in (CATALOGUE[HEARTS].terms, CATALOGUE[HEARTS].cite, CATALOGUE[HEARTS].origins[0].commit):
        assert part in shown
    assert shown.index("licence:") < shown.index("920 items of 25 float32, 2 classes")
    assert "hospital: cleveland 303, hungarian 294, switzerland 123, va 200" in shown
    assert str(home / "pools" / HEARTS) in shown and f"fedreptile-sim data show {HEARTS}" in shown


def test_get_from_the_origin_needs_agreement_and_nobody_is_here_to_give_it(home: Path, hearts: Origin) -> None:
    result = run("get", HEARTS)
    assert result.exit_code == 1 and isinstance(result.exception, SourceError)
    assert "--yes" in str(result.exception) and "licence: CC BY 4.0" in result.output and not hearts.asked


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_who_does_not_agree_gets_nothing(home: Path, hearts: Origin, terminal: None, answer: str) -> None:
    result = run("get", HEARTS, answer=answer)
    assert result.exit_code == 1 and "licence: CC BY 4.0" in result.output and not hearts.asked


@pytest.mark.parametrize("way", ["asked", "--yes"])
def test_who_agrees_gets_the_set_and_is_not_asked_again(home: Path, hearts: Origin, terminal: None, way: str) -> None:
    result = run("get", HEARTS, answer="y\n") if way == "asked" else run("get", HEARTS, "--yes")
    assert result.exit_code == 0, result.output
    assert "4 files of 0.0 MB" in result.output and "920 items" in result.output and len(hearts.asked) == 4
    again = run("get", HEARTS)
    assert again.exit_code == 0 and "920 items" in again.output and len(hearts.asked) == 4


def test_a_get_that_broke_off_goes_on_and_fetches_nothing_twice(home: Path, hearts: Origin) -> None:
    broken = next(path for path in hearts.files if "cleveland" in path)
    hearts.faults[broken], hearts.etags[broken] = ["breaks off"] * 3, '"same"'
    assert isinstance(run("get", HEARTS, "--yes").exception, UnreachableError)
    finished = {path.name for path in (home / "downloads").rglob("*.data")}
    (part,) = (home / "downloads").rglob("processed.cleveland.data.part")
    begin = part.stat().st_size
    assert not (home / "pools").exists() and begin > len(hearts.files[broken]) // 2
    hearts.asked.clear()
    assert run("get", HEARTS, "--yes").exit_code == 0
    assert (broken, f"bytes={begin}-") in hearts.asked
    assert not finished & {Path(path).name for path in hearts.paths()}
    assert not list((home / "downloads").rglob("*.part*"))


def test_an_unknown_set_is_refused_with_the_known_ones(home: Path) -> None:
    result = run("get", "mnist")
    assert isinstance(result.exception, SourceError) and "known are omniglot" in str(result.exception)


def test_the_bar_shows_files_and_bytes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, width=120, record=True)
    monkeypatch.setattr(cli, "console", terminal)
    with cli.fetching("gas_drift") as progress:
        progress(Done(3, 6, 2_000_000, 4_000_000))
    assert "gas_drift: 3 of 6 files" in terminal.export_text()
