"""``fedreptile-site check`` as a command: table, JSON, exit codes, and where torch cannot be loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from client.check.cli import check
from client.home import SiteHome
from common.errors import SettingsError
from tests.commands import commands_of

app = typer.Typer()
app.command()(check)
show, refused = commands_of(app)
ROOT = Path(__file__).resolve().parents[3]


def test_a_healthy_site_is_shown_in_a_table_with_exit_code_0(home: SiteHome) -> None:
    shown = show("--home", home.path)
    assert "0 problems, 1 warning: the site can run" in shown
    for what in ("Python", "kit", "clock", "server's certificate", "admission"):
        assert [line for line in shown.splitlines() if f"│ {what} " in line and " ok " in line], what


def test_a_problem_is_shown_with_cause_and_whole_fix_and_exit_code_1(home: SiteHome) -> None:
    home.node_key.chmod(0o640)
    done = CliRunner(env={"COLUMNS": "500"}).invoke(app, ["--home", str(home.path)])
    assert done.exit_code == 1
    (line,) = [line for line in done.stdout.splitlines() if "│ problem " in line]
    assert "(mode 0640)" in line and f"chmod 600 {home.node_key}" in line
    assert "1 problem, 1 warning: the site cannot run" in done.stdout


def test_json_says_the_same_and_nothing_else_is_written(home: SiteHome) -> None:
    found = json.loads(show("--home", home.path, "--json"))
    assert found["problem"] is False and {one["level"] for one in found["findings"]} == {"ok", "warning"}
    home.policy_file.unlink()
    done = CliRunner().invoke(app, ["--home", str(home.path), "--json"])
    found = json.loads(done.stdout)
    (one,) = [one for one in found["findings"] if one["level"] == "problem"]
    assert done.exit_code == 1 and found["problem"] is True and one["what"] == "policy"
    assert set(one) == {"what", "level", "cause", "fix", "details"}


def test_files_that_cannot_be_used_are_all_listed_below_the_table(home: SiteHome) -> None:
    pictures = sorted((home.path.parent / "data" / "digit-1").iterdir())[:3]
    for picture in pictures:
        picture.write_bytes(b"")
    shown = show("--home", home.path)
    assert "3 thing(s) cannot be used" in shown
    assert [line for line in shown.splitlines() if line.startswith("data: ")] == [
        f"data: {picture}: not a readable image" for picture in pictures
    ] or all(f"data: {picture}: " in shown for picture in pictures)


def test_the_folder_may_come_from_the_environment(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREPTILE_SITE", str(home.path))
    assert "the server lets line-1 in" in show()


def test_options_of_data_alone_and_of_a_sites_folder_do_not_mix(home: SiteHome) -> None:
    assert "leave it out" in refused("--data", home.path, "--home", home.path)
    assert "go with --data" in refused("--home", home.path, "--set", "data.size=8")
    with pytest.raises(SettingsError, match="leave it out"):
        check(data=home.path, as_json=True)


def test_torch_that_cannot_be_loaded_is_found_by_the_command_itself(home: SiteHome, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text('raise OSError("libcudnn.so.9: cannot open shared object file")')
    environment = {**os.environ, "PYTHONPATH": f"{broken.parent}{os.pathsep}{ROOT}"}
    words = [sys.executable, "-P", "-m", "client.cli", "check", "--home", str(home.path), "--json"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (one,) = [one for one in json.loads(done.stdout)["findings"] if one["level"] == "problem"]
    assert one["what"] == "torch" and "libcudnn.so.9" in one["cause"]
