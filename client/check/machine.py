"""Checks of the machine: Python, packages, device, disk, loopback."""

import platform
import re
import shutil
import socket
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from client.check.findings import Finding, NeedsError, Subject, ok, plain, problem, warning

LEAST_PYTHON = (3, 11)
FLOWER = "1.41."
INSTALL = "install the same as the server: from the operator's wheelhouse, or pip install"
MEGABYTE = 1_000_000
PARTS = 4
"""Processes that write a log each: worker, relay, SuperNode, SuperExec."""
FLOWER_MEGABYTES = 200
"""What Flower and finished answers take at most, roughly."""
LEAST_FREE = 100 * MEGABYTE
"""With less the next messages may not be written to the ledger, and then nothing leaves."""
FULL = 0.8
"""Part of the ledger's disk from which it is time to move old files away."""


def check_python(subject: Subject) -> Iterator[Finding]:
    """Python is new enough."""
    if sys.version_info[:2] < LEAST_PYTHON:
        yield problem("Python", f"it is {platform.python_version()}; 3.11 or newer is needed", "install Python 3.11")
    else:
        yield ok("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def check_packages(subject: Subject) -> Iterator[Finding]:
    """fedreptile and flwr are installed in versions that go with the server's."""
    own = {name: installed(name) for name in ("fedreptile", "flwr")}
    for name, found in own.items():
        if not found:
            yield problem("packages", f"{name} is not installed for {sys.executable}", f"{INSTALL} {name}")
            return
    if not f"{own['flwr']}.".startswith(FLOWER):
        cause = f"flwr is {own['flwr']}; this version of fedreptile needs {FLOWER}*"
        yield problem("packages", cause, f"pip install 'flwr=={FLOWER}*', or install from the wheelhouse")
        return
    try:
        theirs = subject.kit.versions
    except NeedsError:
        yield ok("packages", f"fedreptile {own['fedreptile']}, flwr {own['flwr']}; the server's are not known yet")
        return
    there = theirs.get("fedreptile", own["fedreptile"])
    if there != own["fedreptile"]:
        cause = f"fedreptile is {own['fedreptile']} here and {there} at the server (when it made the kit)"
        same = _series(there) == _series(own["fedreptile"])
        fix = f"{INSTALL} 'fedreptile=={there}'; or ask for a new kit if the server has another by now"
        yield warning("packages", cause, fix) if same else problem("packages", cause, fix)
    else:
        yield ok("packages", f"fedreptile {own['fedreptile']}, flwr {own['flwr']}, as the server")


def check_torch(subject: Subject) -> Iterator[Finding]:
    """torch is there and can be loaded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch
    except (ImportError, OSError) as error:
        yield problem("torch", f"it cannot be loaded: {plain(str(error))}", f"{INSTALL} torch")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield ok("torch", f"{torch.__version__} ({build})")


def check_device(subject: Subject) -> Iterator[Finding]:
    """The device of site.toml can be computed on."""
    subject.need_torch()
    import torch

    device = subject.config.device
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            torch.ones(2, device=device).sum().item()
        except (RuntimeError, AssertionError, ValueError) as error:
            cause, fix = _device_trouble(device, error, [str(one.message) for one in said])
            yield problem("device", cause, fix)
            return
    shown = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    yield ok("device", f"{device}: {shown}" if shown != device else device)


def _device_trouble(device: str, error: Exception, said: list[str]) -> tuple[str, str]:
    import torch

    cpu = "or set device = 'cpu' in site.toml"
    reason = plain(next(iter(said), "") or str(error).splitlines()[0])
    if not device.startswith("cuda"):
        return f"torch cannot use {device!r}: {reason}", f"write 'cpu', 'cuda' or 'cuda:1', {cpu}"
    if torch.version.cuda is None:
        return (
            f"device is {device!r}, but the installed torch {torch.__version__} is a build without CUDA",
            f"install a build of torch for CUDA, {cpu}",
        )
    if not torch.cuda.is_available():
        return (
            f"device is {device!r}, but torch (built for CUDA {torch.version.cuda}) finds no GPU: {reason}",
            f"install the GPU's driver (nvidia-smi must show it), {cpu}",
        )
    count = torch.cuda.device_count()
    return (
        f"torch cannot use {device!r}: {reason}",
        f"there are {count} GPU(s), cuda:0 to cuda:{count - 1}: choose one of them, {cpu}",
    )


def check_disk(subject: Subject) -> Iterator[Finding]:
    """There is disk for what the site will write, and room in the ledger."""
    home, config = subject.home, subject.config
    ledger, logs = size_of(home.ledger), size_of(home.logs)
    most = config.ledger_megabytes * MEGABYTE
    if ledger >= most:
        yield problem(
            "ledger",
            f"it is full: {ledger / MEGABYTE:.0f} of {config.ledger_megabytes} MB, so nothing leaves any more",
            "move its older files away (all but the newest two), or raise ledger-megabytes in site.toml",
        )
    elif ledger >= FULL * most:
        yield warning(
            "ledger",
            f"{ledger / MEGABYTE:.0f} of {config.ledger_megabytes} MB are used",
            "move its older files away (all but the newest two) before it is full",
        )
    else:
        yield ok("ledger", f"{ledger / MEGABYTE:.0f} of {config.ledger_megabytes} MB are used")
    free = shutil.disk_usage(home.path).free
    to_come = max(most - ledger, 0) + max(PARTS * config.log_megabytes * MEGABYTE - logs, 0)
    to_come += FLOWER_MEGABYTES * MEGABYTE
    cause = f"{free / MEGABYTE:.0f} MB are free at {home.path}"
    if free < LEAST_FREE:
        yield problem("disk", f"only {cause}", "free some: without disk for the ledger nothing leaves the site")
    elif free < to_come:
        yield warning(
            "disk",
            f"{cause}; ledger, logs and outbox may grow by {to_come / MEGABYTE:.0f} MB",
            "free some, or lower ledger-megabytes and log-megabytes in site.toml",
        )
    else:
        yield ok("disk", cause)


def check_loopback(subject: Subject) -> Iterator[Finding]:
    """The site's processes can reach each other on 127.0.0.1."""
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen(1)
            with socket.create_connection(server.getsockname(), subject.seconds):
                pass
    except OSError as error:
        yield problem(
            "ports",
            f"processes of this machine cannot connect to each other on 127.0.0.1: {error.strerror or error}",
            "have the machine's own firewall allow connections from 127.0.0.1 to 127.0.0.1",
        )
        return
    yield ok("ports", "free ones on 127.0.0.1; none is open to others")


def installed(name: str) -> str:
    """Return the version of a package; empty if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder; of one that is not there 0."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _series(version: str) -> tuple[str, ...]:
    return tuple(re.findall("[0-9]+", version)[:2])
