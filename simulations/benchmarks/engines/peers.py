"""Other frameworks, each in a virtual environment of its own that is made on first use."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from common.paths import data_home
from simulations.benchmarks.engines import NoFigureError

HERE = Path(__file__).resolve().parent / "environments"
READY = "ready"
"""In an environment: what it was made of."""
INSTALL_SECONDS = 1800


@dataclass(frozen=True)
class Framework:
    """What to install, and the script that runs its rounds."""

    title: str
    requirements: str
    script: str
    with_torch: bool = False


PEERS = {
    "pfl": Framework("pfl 0.6, its Reptile", "pfl.txt", "pfl_reptile.py", with_torch=True),
    "fedjax": Framework("FedJAX 0.0.17, fed_avg with jit", "fedjax.txt", "fedjax_avg.py"),
}


@dataclass(frozen=True)
class Peer:
    """A framework's process, ready for rounds."""

    process: subprocess.Popen[str]
    first: float
    """Wall seconds of the first round, with compiling."""
    clients: int

    def round(self) -> tuple[float, float]:
        """Do a round over all clients; return CPU and wall seconds. Raises NoFigureError if the process has ended."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found = answer(self.process)
        return found["cpu"], found["wall"]


@contextmanager
def opened(framework: Framework, network: str, clients: int, console: Console) -> Iterator[Peer | None]:
    """Have a framework's process for a block; None, with a line that says why, where it cannot be had."""
    try:
        python = environment(framework, console)
    except NoFigureError as error:
        console.print(f"{framework.title}: no figure: {error}")
        yield None
        return
    words = [str(python), "-P", str(HERE / framework.script), network, str(clients)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            ready = answer(process)
        except NoFigureError as error:
            console.print(f"{framework.title}: no figure: {error}")
            yield None
            return
        try:
            yield Peer(process, ready["first"], clients)
        finally:
            process.kill()


def answer(process: subprocess.Popen[str]) -> dict[str, float]:
    """Return the next line of JSON, leaving out what libraries print. Raises NoFigureError if the process has ended."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            found: dict[str, float] = json.loads(line)
            return found
    raise NoFigureError(f"its process ended with status {process.wait()}; what it said is above")


def environment(framework: Framework, console: Console) -> Path:
    """Return the Python of a framework's environment, made on first use in the data home's ``benchmarks``.

    Raises:
        NoFigureError: if it cannot be made.
    """
    requirements = HERE / framework.requirements
    folder = data_home() / "benchmarks" / requirements.stem
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    torch = [f"torch=={importlib.metadata.version('torch')}"] if framework.with_torch else []
    made_of = "\n".join([*torch, requirements.read_text(encoding="utf-8")])
    ready = folder / READY
    if ready.is_file() and ready.read_text(encoding="utf-8") == made_of:
        return python
    console.print(f"{framework.title}: making {folder} from {requirements.name} (a few minutes, once)")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        if torch:  # first and alone: the same build that the other figures are measured with, or none
            _pip(python, torch)
        _pip(python, [*torch, "-r", str(requirements)])
        ready.write_text(made_of, encoding="utf-8")
    except (OSError, subprocess.SubprocessError) as error:
        raise NoFigureError(f"it cannot be installed here: {_reason(error)}") from error
    return python


def _pip(python: Path, words: list[str]) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *words]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        env={**os.environ, "PYTHONPATH": ""},
    )


def _reason(error: Exception) -> str:
    said = (error.stderr or "") if isinstance(error, subprocess.CalledProcessError) else str(error)
    errors = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()[-1:]
    return " ".join(errors) or str(error)
