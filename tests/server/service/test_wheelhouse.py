"""``fedreptile-server wheelhouse``: a folder that installs without network.

The fast tests let pip find wheels that have the real names, versions and requirements of everything installed here and
hardly any content, so that nothing is downloaded. The endurance test does it with the real ones.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from base64 import urlsafe_b64encode
from importlib import metadata
from pathlib import Path

import pytest
import typer

from common import VERSION
from common.errors import DeployError
from server.service.cli import wheelhouse
from server.service.wheelhouse import SUMS, make_wheelhouse
from server.service.wheels import own_wheel, target_of
from tests.commands import commands_of

app = typer.Typer()
app.command()(wheelhouse)
show, refused = commands_of(app)

OURS = f"fedreptile-{metadata.version('fedreptile')}-py3-none-any.whl"
HERE = sysconfig.get_platform().replace("-", "_").replace(".", "_")


def stand_in(folder: Path, name: str, version: str, about: str, tag: str = "py3-none-any") -> None:
    """Write a wheel with metadata and nothing else."""
    stem = f"{name.replace('-', '_').replace('.', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as opened:
        opened.writestr(f"{stem}.dist-info/METADATA", about)
        opened.writestr(f"{stem}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        opened.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of stand-ins for all that is installed here, for this machine and for Windows."""
    folder = tmp_path_factory.mktemp("index")
    for about in metadata.distributions():
        text, name = about.read_text("METADATA") or "", about.metadata["Name"]
        if name == "fedreptile":
            continue
        text = text.partition("\n\n")[0] + "\n"
        if "py3-none-any" in (about.read_text("WHEEL") or ""):
            stand_in(folder, name, about.version, text)
            continue
        stand_in(folder, name, about.version, text, f"cp{sys.version_info[0]}{sys.version_info[1]}-none-{HERE}")
        plain = about.version.partition("+")[0]
        for_windows = text.replace(f"\nVersion: {about.version}\n", f"\nVersion: {plain}\n")
        stand_in(folder, name, plain, for_windows, f"cp{sys.version_info[0]}{sys.version_info[1]}-none-win_amd64")
    if not list(folder.glob("colorama-*")):
        stand_in(folder, "colorama", "0.4.6", "Metadata-Version: 2.1\nName: colorama\nVersion: 0.4.6\n")
    return folder


@pytest.fixture
def pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have pip know the stand-ins alone."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def sums_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != SUMS}


def written_sums(folder: Path) -> dict[str, str]:
    lines = (folder / SUMS).read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def install(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Run install.sh without network: in a namespace of its own, in which even loopback is down."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("cutting off the network of a process needs Linux, root and unshare")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment |= {"PYTHON": sys.executable, "PIP_CONFIG_FILE": os.devnull}
    words = ["unshare", "-n", "sh", str(folder / "install.sh"), str(target)]
    return subprocess.run(words, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False)


def test_a_wheelhouse_is_complete_and_installs_without_network(pip: Path, tmp_path: Path) -> None:
    shown = show(tmp_path / "house")
    assert "MB" in shown and "sh install.sh" in shown
    assert written_sums(tmp_path / "house") == sums_of(tmp_path / "house")
    done = install(tmp_path / "house", tmp_path / "venv")  # pip itself finds out whether anything is missing
    assert done.returncode == 0, done.stderr
    python = str(tmp_path / "venv" / "bin" / "python")
    listed = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    pins = dict(line.split("==") for line in listed.splitlines() if "==" in line)
    assert {"flwr", "torch", "pydicom"} <= pins.keys()
    assert all(metadata.version(name) == version for name, version in pins.items())
    code = "import common, client; print(common.VERSION, client.__file__)"
    said = subprocess.run([python, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.split()[0] == VERSION and said.split()[1].startswith(str(tmp_path / "venv"))
    assert (tmp_path / "venv" / "bin" / "fedreptile-site").exists()


def test_a_file_that_was_changed_on_the_way_is_not_installed(pip: Path, tmp_path: Path) -> None:
    make_wheelhouse(tmp_path / "house", target_of("", ""))
    with (tmp_path / "house" / OURS).open("ab") as file:
        file.write(b"x")
    done = install(tmp_path / "house", tmp_path / "venv")
    assert done.returncode == 1 and "differ from SHA256SUMS" in done.stderr and not (tmp_path / "venv").exists()


def test_a_second_run_uses_wheels_again_but_none_that_was_changed(pip: Path, tmp_path: Path) -> None:
    house = tmp_path / "house"
    first = make_wheelhouse(house, target_of("", ""))
    before = sums_of(house)
    assert first.reused == 0
    (changed,) = house.glob("flwr-*.whl")
    changed.write_bytes(changed.read_bytes() + b"x")
    second = make_wheelhouse(house, target_of("", ""))
    assert (second.reused, sums_of(house)) == (first.wheels - 2, before)  # ours is always made, flwr was got again


def test_a_package_that_is_left_out_goes_with_what_only_it_needs(pip: Path, tmp_path: Path) -> None:
    shown = show(tmp_path / "house", "--without", "torch", "--without", "flwr")
    names = {path.name.partition("-")[0].lower() for path in (tmp_path / "house").glob("*.whl")}
    assert "left out: flwr, torch" in shown and not names & {"torch", "flwr", "sympy", "grpcio", "sqlalchemy"}
    assert {"numpy", "cryptography", "rich"} <= names
    assert "PIP_FIND_LINKS" in (tmp_path / "house" / "README.txt").read_text()


def test_for_windows_its_own_wheels_are_taken_and_what_only_windows_needs(pip: Path, tmp_path: Path) -> None:
    house = tmp_path / "house"
    show(house, "--platform", "win_amd64")
    found = [path.name for path in house.glob("*.whl")]
    assert [name for name in found if name.startswith("torch-") and name.endswith("win_amd64.whl")]
    assert not [name for name in found if HERE in name or name.startswith("uvloop")]
    assert [name for name in found if name.startswith("colorama-")]
    assert b"\r\n" in (house / "install.ps1").read_bytes()
    assert make_wheelhouse(house, target_of("", "")).reused < len(found)  # those of Windows do not fit here


def test_when_pip_finds_no_wheel_nothing_is_changed(pip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheelhouse(tmp_path / "house", target_of("", ""))
    before = sums_of(tmp_path / "house")
    (tmp_path / "house" / SUMS).write_text("")  # so nothing is used again
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(DeployError, match=r"pip could not get .* nothing was changed"):
        make_wheelhouse(tmp_path / "house", target_of("", ""))
    assert sums_of(tmp_path / "house") == before
    assert [path.name for path in tmp_path.iterdir()] == ["house"]


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert "is left as it is" in refused(tmp_path)
    assert "is no folder" in refused(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("--platform", "amiga"), "give a tag such as win_amd64"),
        (("--python", "2.7"), "give a version such as 3.11"),
        (("--python", "3.99"), "give --platform too"),
    ],
)
def test_a_target_that_is_none_is_refused(tmp_path: Path, words: tuple[str, str], cause: str) -> None:
    assert cause in refused(tmp_path / "house", *words)
    assert not list(tmp_path.iterdir())


def test_our_own_wheel_holds_all_our_files_and_a_record_that_pip_accepts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = own_wheel(tmp_path / "a"), own_wheel(tmp_path / "b")
    assert one.path.read_bytes() == other.path.read_bytes()
    with zipfile.ZipFile(one.path) as opened:
        names = opened.namelist()
        (record,) = [name for name in names if name.endswith(".dist-info/RECORD")]
        rows = [line.split(",") for line in opened.read(record).decode().splitlines()]
        sums = [f"sha256={urlsafe_b64encode(hashlib.sha256(opened.read(name)).digest()).decode()}" for name in names]
    recorded = {name: f"{digest}=" for name, digest, _ in rows if name != record}  # a record leaves out the padding
    assert recorded == {name: digest for name, digest in zip(names, sums, strict=True) if name != record}
    assert {"server/cli.py", "client/cli.py", "common/__init__.py", "simulations/federations/digits.toml"} <= {*names}
    assert not [name for name in names if name.endswith(".pyc") or name.startswith("tests")]
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("bin/python" if os.name == "posix" else "Scripts/python.exe")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(one.path)], check=True, capture_output=True)
    shown = subprocess.run([*pip, "show", "--files", "fedreptile"], check=True, capture_output=True, text=True).stdout
    assert "client/cli.py" in shown.replace("\\", "/")
    subprocess.run([*pip, "uninstall", "--yes", "fedreptile"], check=True, capture_output=True)
    assert not list((tmp_path / "venv").rglob("client/cli.py"))


@pytest.mark.endurance
def test_the_real_wheelhouse_installs_without_network_and_makes_the_same_wheel_again(tmp_path: Path) -> None:
    show(tmp_path / "house")
    done = install(tmp_path / "house", tmp_path / "venv")
    assert done.returncode == 0, done.stderr
    (tmp_path / "again").mkdir()
    code = "from pathlib import Path; from server.service.wheels import own_wheel; own_wheel(Path('again'))"
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run(["unshare", "-n", python, "-P", "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "again" / OURS).read_bytes() == (tmp_path / "house" / OURS).read_bytes()
    helped = subprocess.run([str(tmp_path / "venv" / "bin" / "fedreptile-site"), "check", "--help"], check=False)
    assert helped.returncode == 0
