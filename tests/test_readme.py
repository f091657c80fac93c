"""What README tells people to type."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import client.cli
import server.cli
import simulations.cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "new-defect.md").read_text(encoding="utf-8")
APPS = {
    "fedreptile-sim": simulations.cli.app,
    "fedreptile-site": client.cli.app,
    "fedreptile-server": server.cli.app,
}


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh(?: laptop)?\n(.*?)```", README + TUTORIAL, flags=re.DOTALL)
    return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]


COMMANDS = [line for line in shell_lines() if line.split(" ")[0] in APPS]


def test_readme_shows_commands_of_all_three_groups_of_users() -> None:
    assert {line.split()[0] for line in COMMANDS} == APPS.keys()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_in_readme_exists_with_its_options(line: str) -> None:
    name, sub, *words = line.split()
    command = typer.main.get_command(APPS[name])
    context = command.make_context(name, ["--help"], resilient_parsing=True)
    found = command.get_command(context, sub)  # type: ignore[attr-defined]
    while hasattr(found, "get_command"):  # a group, such as 'release'
        sub = words.pop(0)
        found = found.get_command(context, sub)
    assert found is not None, f"{name} has no command {sub}"
    known = {option for parameter in found.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_links_in_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_run_runs_the_main_job_to_its_report(tmp_path: Path) -> None:
    """With a reduced budget, in the environment that runs the tests; CI sets up a fresh one by `make test`."""
    assert "\nmake run" in README
    brief = {"run.rounds": 4, "judge.every": 2, "judging.episodes": 8, "judging.alone-steps": 5}
    budget = f"--out {tmp_path / 'run'} " + " ".join(f"--set {key}={value}" for key, value in brief.items())
    done = subprocess.run(
        ["make", "run", f"VENV={sys.prefix}", f"RUN_ARGS={budget}"],
        cwd=ROOT,
        env={**os.environ, "FEDREPTILE_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("30 sites", "5-way 1-shot", "5-way 5-shot", "report:"):
        assert said in done.stdout
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_without_network_and_mirror_the_main_job_uses_digits_and_says_so(tmp_path: Path) -> None:
    """A proxy that refuses every connection stands for no network; the checkout is elsewhere, so no mirror is near."""
    for folder in ("common", "client", "server", "simulations"):
        shutil.copytree(ROOT / folder, tmp_path / "elsewhere" / "checkout" / folder)
    nowhere = "http://127.0.0.1:9"
    words = [sys.executable, "-m", "simulations", "run", "--out", str(tmp_path / "run"), "--set", "judging.episodes=4"]
    done = subprocess.run(
        [*words, "--set", "run.rounds=2"],
        cwd=tmp_path / "elsewhere" / "checkout",
        env={
            **{key: value for key, value in os.environ.items() if key != "FEDREPTILE_DATA_MIRROR"},
            "FEDREPTILE_HOME": str(tmp_path / "home"),
            "HTTPS_PROXY": nowhere,
            "PYTHONPATH": str(tmp_path / "elsewhere" / "checkout"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "using scikit-learn's handwritten digits instead of omniglot" in done.stderr
    assert "10 sites" in done.stdout and "5-way 5-shot" in done.stdout
