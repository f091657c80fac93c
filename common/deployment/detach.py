"""Starting a server or site that stays when the command has returned."""

import os
import subprocess
import time
from pathlib import Path

from common.deployment.supervisor import DETACHED, module, read_state
from common.errors import DeployError

PATIENCE = 180.0
LEFT: list["subprocess.Popen[bytes]"] = []
"""What this process leaves running when it ends."""


def start_detached(kind: str, home: Path, run: Path, logs: Path) -> None:
    """Start ``fedreptile-<kind> up`` in a process of its own and wait until all its parts are ready.

    Args:
        kind: 'server' or 'site'.

    Raises:
        DeployError: if it ends, or is not ready in ``PATIENCE`` seconds; with the end of its log.
    """
    if read_state(run) is not None:
        raise DeployError(f"the {kind} of {home} is running already; stop it with 'fedreptile-{kind} down'")
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / "up.log"
    words = module({"server": "server.cli", "site": "client.cli"}[kind], "up", "--home", str(home))
    log.write_bytes(b"")
    with log.open("ab") as output:
        process = subprocess.Popen(
            words,
            env={**os.environ, DETACHED: str(log)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=os.name == "posix",
        )
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        state = read_state(run)
        if state and state["parts"] and all(part["ready"] for part in state["parts"].values()):
            LEFT.append(process)
            return
        time.sleep(0.2)
    process.terminate()
    last = " / ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-6:])
    raise DeployError(f"the {kind} of {home} did not start; {log} ends with: {last or 'nothing'}")
