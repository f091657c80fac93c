"""systemd units for the installation at hand."""

import sys
from pathlib import Path

from common.deployment.supervisor import STOP_SECONDS
from common.errors import DeployError

SPARE_SECONDS = 10.0
"""Time beyond that which 'down' takes at most, before systemd kills what is left."""
UNIT = """\
[Unit]
Description=fedreptile {kind} {name}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
User={user}
ExecStart={python} -P -m {module} up --home {home}
ExecStop={python} -P -m {module} down --home {home}
EnvironmentFile=-{home}/environment
Restart=always
RestartSec=5
KillMode=control-group
TimeoutStopSec={stop_seconds:.0f}
LimitNOFILE=65536
UMask=0022
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={writable}
PrivateTmp=yes
PrivateDevices={private_devices}
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""


def unit(kind: str, name: str, home: Path, user: str, *, writable: tuple[Path, ...] = (), gpu: bool = False) -> str:
    """Return the text of a unit that runs a server or site for ever, and starts it with the machine.

    Args:
        kind: 'server' or 'site'.
        user: whose processes they are; 'root' for a site whose parts belong to several users.
        writable: folders beside ``home`` that it writes to, such as a cache; they need not be there.
        gpu: leave the machine's devices visible.

    Raises:
        DeployError: if a path holds what a unit cannot: blanks, quotes, per cent signs or line ends.
    """
    for path in (Path(sys.executable), home, *writable):
        if any(sign in str(path) for sign in " \t\n\"'\\%$"):
            raise DeployError(f"{str(path)!r} cannot stand in a systemd unit; choose a path without blanks and quotes")
    return UNIT.format(
        kind=kind,
        name=name,
        user=user,
        python=sys.executable,
        module={"server": "server.cli", "site": "client.cli"}[kind],
        home=home,
        stop_seconds=STOP_SECONDS + SPARE_SECONDS,
        writable=" ".join([str(home), *(f"-{path}" for path in writable)]),
        private_devices="no" if gpu else "yes",
    )
