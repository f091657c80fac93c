"""The site's processes: the worker with data and model, the relay with the network, and Flower's between them."""

import contextlib
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client.home import SiteConfig, SiteHome
from common.deployment.disk import keep_newest
from common.deployment.ports import free_port
from common.deployment.supervisor import Part, Supervisor, alone_in, as_user, module, script
from common.errors import DeployError, SettingsError
from common.paths import write_atomically
from common.trust.certificates import expiry_warning
from common.trust.keys import VARIABLE as PASSPHRASE
from common.trust.keys import node_key_pem, passphrase_for, passphrase_from_environment, read_ec_key
from common.trust.kit import read_kit

log = logging.getLogger("fedreptile.supervisor")

TASK_POLL_SECONDS = "0.1"
"""Seconds between SuperExec's looks for a message; Flower's own 1 s would be paid for each."""
KEPT_APPS = 3
"""Unpacked app bundles that are kept; Flower itself deletes none."""
CHORE_SECONDS = 300.0


@dataclass(frozen=True)
class Ways:
    """Where the site's processes meet."""

    relay_port: int
    node_port: int
    socket: Path
    """Of the worker."""

    @property
    def socket_key(self) -> Path:
        return self.socket.with_suffix(".key")


def run_site(home: SiteHome, when_ready: Callable[[], None] = lambda: None) -> None:
    """Run the site until it is asked to stop.

    Raises:
        SettingsError, TrustError: if the folder is not that of a site with its kit.
        DeployError: if it is running already, or its users are not as they should be.
    """
    config = home.config()
    kit = read_kit(home.kit_file)
    if kit.site != config.name:
        raise SettingsError(f"{home.config_file} has the name {config.name!r} and the kit is for {kit.site!r}")
    with alone_in(home.run) as ended:
        if ended:
            log.warning("ended what an earlier start left behind: %s", ", ".join(ended))
        _run(home, config, when_ready)


def _run(home: SiteHome, config: SiteConfig, when_ready: Callable[[], None]) -> None:
    if passphrase := passphrase_for(home.signing_key, home.tls_key, home.node_key):
        os.environ[PASSPHRASE] = passphrase
    ways = Ways(free_port(), free_port(), home.socket)
    prepare(home, config, ways)
    supervisor = Supervisor(
        parts_of(home, config, ways),
        home.run,
        home.logs,
        config.log_megabytes << 20,
        lambda: look_after(home),
        CHORE_SECONDS,
    )
    try:
        supervisor.run(when_ready)
    finally:
        for path in (node_key_for_flower(home), ways.socket, ways.socket_key):
            path.unlink(missing_ok=True)


def parts_of(home: SiteHome, config: SiteConfig, ways: Ways) -> list[Part]:
    """Return the site's processes in the order in which they start."""
    ca, secret = str(home.loopback / "ca.crt"), str(app_folder(home) / "superexec.secret")
    folder, node = ("--home", str(home.path)), f"127.0.0.1:{ways.node_port}"
    worker = module("client.worker", *folder, "--socket", str(ways.socket), "--socket-key", str(ways.socket_key))
    supernode = script(
        "flower-supernode",
        *("--superlink", f"127.0.0.1:{ways.relay_port}", "--root-certificates", ca),
        *("--auth-supernode-private-key", str(node_key_for_flower(home))),
        *("--isolation", "process", "--superexec-auth-secret-file", secret),
        *("--host", "127.0.0.1", "--port", str(ways.node_port), "--ssl-ca-certfile", ca),
        *("--ssl-certfile", str(app_folder(home) / "tls.crt"), "--ssl-keyfile", str(app_folder(home) / "tls.key")),
        *("--node-config", f"site-socket='{ways.socket}' site-socket-key='{ways.socket_key}'"),
    )
    superexec = script(
        "flower-superexec",
        *("--runtime-api-address", node, "--root-certificates", ca),
        *("--superexec-auth-secret-file", secret),
        # It ends with its parent, which it can only see if both are of one user; else the next 'up' ends it.
        *(() if as_user(config.app_user) else ("--parent-pid", str(os.getpid()))),
    )
    # Both run code from elsewhere, so they are bare. A proxy is for the relay alone: Flower would send even what is
    # meant for 127.0.0.1 to one that the system has set.
    flower = {"FLWR_HOME": str(home.flower), "NO_PROXY": "*", "no_proxy": "*"}
    return [
        Part(
            "worker",
            worker,
            user=config.user,
            ready=ways.socket.exists,
            before=lambda: ways.socket.unlink(missing_ok=True),
        ),
        Part(
            "relay",
            module("client.relay", *folder, "--port", str(ways.relay_port)),
            user=config.relay_user,
            ready=lambda: _listens(ways.relay_port),
        ),
        *([Part("adoption", module("client.adoption", *folder), user=config.user)] if config.adopt_seconds else []),
        Part("supernode", supernode, flower, bare=True, user=config.app_user, ready=lambda: _listens(ways.node_port)),
        Part(
            "superexec",
            superexec,
            flower | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": TASK_POLL_SECONDS},
            bare=True,
            user=config.app_user,
        ),
    ]


def prepare(home: SiteHome, config: SiteConfig, ways: Ways) -> None:
    """Make the folders of the site's processes, and give each process what it needs and no more.

    Without users of their own all is the user's who starts the site. With them (only root can do that) the worker's
    user alone reads the signing key, the relay's the TLS key, and the app's user neither of them.
    """
    worker, relay, app = (_owner(name) for name in (config.user, config.relay_user, config.app_user))
    home.run.mkdir(parents=True, exist_ok=True)
    home.run.chmod(0o711)
    _folder(ways.socket.parent, worker, 0o2710, group=app)
    _folder(home.ledger, worker, 0o2750, group=relay)
    for own in (home.outbox, home.models, home.releases):
        _folder(own, worker, 0o700)
        for path in own.rglob("*"):  # root may have made them: 'join', 'adapt'
            if not path.is_symlink():
                _give(path, worker)
    if config.cache == str(home.cache):
        _folder(home.cache, worker, 0o700)
    _folder(home.run / "relay", relay, 0o755)
    _folder(app_folder(home), app, 0o700)
    _folder(home.flower, app, 0o700)
    home.logs.mkdir(mode=0o700, exist_ok=True)
    for path, owner in ((home.signing_key, worker), (home.tls_key, relay)):
        _give(path, owner)
    _secret(ways.socket_key, secrets.token_bytes(32), worker, app)
    _secret(app_folder(home) / "superexec.secret", secrets.token_hex(32).encode(), app)
    _secret(node_key_for_flower(home), node_key_pem(read_ec_key(home.node_key, passphrase_from_environment())), app)
    for name in ("tls.crt", "tls.key"):
        _secret(app_folder(home) / name, (home.loopback / name).read_bytes(), app)
        _give(home.loopback / name, relay)


def app_folder(home: SiteHome) -> Path:
    """Return the folder of what Flower's processes and the code that they run may read."""
    return home.run / "app"


def node_key_for_flower(home: SiteHome) -> Path:
    """Return where the node key lies for SuperNode, which cannot read an encrypted one, while the site is up."""
    return app_folder(home) / "node.key"


def look_after(home: SiteHome) -> None:
    """Free disk that Flower would keep for ever; warn of certificates that end soon."""
    keep_newest(home.flower / "apps", KEPT_APPS)
    if warning := expiry_warning(home.tls_certificate):
        log.warning("%s", f"{warning}: 'fedreptile-site join --renew'")


Owner = tuple[int, int] | None
"""User and group id; None: whoever started the site."""


def _owner(name: str) -> Owner:
    found = as_user(name)
    return (found["user"], found["group"]) if found else None


def _folder(path: Path, owner: Owner, mode: int, group: Owner = None) -> None:
    if path.is_symlink():
        raise DeployError(f"{path} is a link; remove it")
    path.mkdir(parents=True, exist_ok=True)
    _chown(path, owner, group)
    path.chmod(mode)


def _secret(path: Path, data: bytes, owner: Owner, group: Owner = None) -> None:
    """Write what only its owner, and a group if one is given, may read."""
    write_atomically(path, data, 0o600)
    _chown(path, owner, group)
    if group:
        path.chmod(0o640)


def _give(path: Path, owner: Owner) -> None:
    _chown(path, owner, None)


def _chown(path: Path, owner: Owner, group: Owner) -> None:
    if owner or group:
        shutil.chown(path, owner[0] if owner else None, (group or owner or (0, 0))[1])


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False
