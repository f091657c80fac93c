"""Faults as they happen to people: processes that are killed, cables, disks and clocks, sites that are not honest."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.home import SiteHome
from common.deployment.supervisor import read_state
from server.home import FederationHome
from tests.deployment.deployed import Deployment

HOSTILE = Path(__file__).with_name("hostile")
DISK_MEGABYTES = 96
IS_ROOT = os.name == "posix" and os.geteuid() == 0


def pid_of(home: FederationHome | SiteHome, part: str) -> int | None:
    """Return the process id of a part that is ready."""
    state = read_state(home.run)
    if state is None:
        return None
    entry = state["supervisor"] if part == "supervisor" else state["parts"][part]
    return entry["pid"] if part == "supervisor" or entry["ready"] else None


def kill_and_wait(deployment: Deployment, home: FederationHome | SiteHome, part: str) -> None:
    """Kill a part and wait until another process does its work."""
    before = deployment.pid(home, part)
    deployment.kill(home, part)
    deployment.wait(lambda: pid_of(home, part) not in (None, before))


@dataclass
class Misbehaviour:
    """What is wrong with the processes of a site; takes effect within the moment."""

    file: Path

    def __call__(self, **faults: Any) -> None:
        """Such as ``clock=600`` (seconds ahead), ``update=["nan"]``, ``twice=True``; nothing: all is well."""
        scratch = self.file.with_suffix(".new")
        scratch.write_text(json.dumps(faults), encoding="utf-8")
        scratch.replace(self.file)


def misbehaving(deployment: Deployment, site: str, **faults: Any) -> Misbehaviour:
    """Have the processes of a site, from its next start, obey what is returned."""
    folder = Path(shutil.copytree(HOSTILE, deployment.folder / f"{site}-hostile"))
    found = Misbehaviour(folder / "faults.json")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    words = ["env", f"PYTHONPATH={path}"]
    deployment.prefix[site] = [*deployment.prefix.get(site, ()), *words]
    found(**faults)
    return found


@contextlib.contextmanager
def cable(deployment: Deployment, site: str) -> Iterator[Callable[[bool], None]]:
    """Have a site behind a cable of its own; give what pulls it out (False) and puts it in (True). Needs root.

    The site is in a network namespace, the server stays where it is and gets an address at the other end of the cable.
    What is sent over a cable that is out is lost without a word. To be had before the federation is made.
    """
    space, here, there = (f"{letters}{os.getpid()}" for letters in ("fr", "fa", "fb"))
    block = f"10.213.{os.getpid() % 250}"
    server, near, far = f"{block}.1", f"{block}.5", f"{block}.6"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", space)
    try:
        ip("addr", "add", f"{server}/32", "dev", "lo")
        ip("link", "add", here, "type", "veth", "peer", "name", there)
        ip("link", "set", there, "netns", space)
        ip("addr", "add", f"{near}/30", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", space, "addr", "add", f"{far}/30", "dev", there)
        ip("-n", space, "link", "set", there, "up")
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", space, "route", "add", "default", "via", near)
        deployment.host, deployment.listen_host = server, "0.0.0.0"
        deployment.prefix[site] = [*deployment.prefix.get(site, ()), "ip", "netns", "exec", space]
        yield lambda plugged: ip("link", "set", here, "up" if plugged else "down")
    finally:
        deployment.down()
        for words in (["link", "del", here], ["addr", "del", f"{server}/32", "dev", "lo"], ["netns", "del", space]):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(*words)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[bool], None]]:
    """Move a folder to a disk of its own; give what fills it to the last byte (True) and makes room (False).

    Needs root.
    """
    aside = folder.rename(folder.with_name(f"{folder.name}-aside"))
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(folder)], check=True)
    shutil.copytree(aside, folder, dirs_exist_ok=True)
    filler = folder / "filler"

    def fill(full: bool) -> None:
        if not full:
            filler.unlink()
            return
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
