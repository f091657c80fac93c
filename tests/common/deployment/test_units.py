"""systemd units that systemd itself finds good."""

import shutil
import subprocess
from pathlib import Path

import pytest

from common.deployment.supervisor import STOP_SECONDS
from common.deployment.units import unit
from common.errors import DeployError


@pytest.mark.parametrize(("kind", "user", "gpu"), [("server", "root", False), ("site", "root", True)])
def test_systemd_finds_a_unit_good(tmp_path: Path, kind: str, user: str, gpu: bool) -> None:
    verify = shutil.which("systemd-analyze")
    assert verify, "this test needs systemd-analyze (Debian: systemd)"
    path = tmp_path / f"fedreptile-{kind}.service"
    path.write_text(unit(kind, "line-3", tmp_path, user, writable=(tmp_path / "cache",), gpu=gpu), encoding="utf-8")
    done = subprocess.run([verify, "verify", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and str(path) not in done.stderr, done.stderr


def test_systemd_would_find_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "fedreptile-server.service"
    text = unit("server", "x", tmp_path, "root").replace("ExecStart=/", "ExecStart=/no/such/program /")
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode != 0


def test_devices_are_hidden_unless_there_is_a_gpu_to_use(tmp_path: Path) -> None:
    assert "PrivateDevices=yes" in unit("site", "x", tmp_path, "root")
    assert "PrivateDevices=no" in unit("site", "x", tmp_path, "root", gpu=True)


@pytest.mark.parametrize("kind", ["server", "site"])
def test_systemd_waits_longer_than_down_does(tmp_path: Path, kind: str) -> None:
    lines = unit(kind, "x", tmp_path, "root").splitlines()
    assert next(int(line.partition("=")[2]) for line in lines if line.startswith("TimeoutStopSec=")) > STOP_SECONDS
    assert "LimitNOFILE=65536" in lines, "a connection of the gateway needs two"


def test_a_folder_beside_the_home_need_not_be_there(tmp_path: Path) -> None:
    text = unit("site", "x", tmp_path, "root", writable=(tmp_path / "cache",))
    assert f"\nReadWritePaths={tmp_path} -{tmp_path / 'cache'}\n" in text


def test_a_path_that_a_unit_cannot_hold_is_refused() -> None:
    with pytest.raises(DeployError, match="systemd unit"):
        unit("site", "x", Path("/srv/my site"), "root")
