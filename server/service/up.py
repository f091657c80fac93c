"""The server's processes: Flower's SuperLink and SuperExec on loopback, the gateway before them, the steward."""

import datetime
import json
import logging
import os
import secrets
import socket
from collections.abc import Callable

from common.deployment.disk import keep_newest
from common.deployment.ports import free_port
from common.deployment.supervisor import Part, Supervisor, alone_in, module, script
from common.errors import FedreptileError
from common.paths import write_atomically
from common.trust.certificates import expiry_warning
from common.trust.keys import VARIABLE as PASSPHRASE
from common.trust.keys import passphrase_for, passphrase_from_environment
from common.trust.names import split_address
from server.enrolment.nodes import register_missing
from server.home import VARIABLE, FederationConfig, FederationHome
from server.releases.repository import renew
from server.service.control import ADDRESS_FILE, is_healthy
from server.service.runs import ACTIVE, all_runs

log = logging.getLogger("fedreptile.supervisor")

DATABASE = "superlink.db"
TASK_POLL_SECONDS = "0.2"
"""Seconds between SuperExec's looks for a task; Flower's own 1 s would be paid once a run."""
KEPT_APPS = 3
"""Unpacked app bundles that are kept; Flower itself deletes none."""
CHORE_SECONDS = 300.0


def run_server(home: FederationHome, when_ready: Callable[[str], None] = lambda address: None) -> None:
    """Run the server until it is asked to stop.

    Raises:
        SettingsError, TrustError: if the folder is not a federation's.
        DeployError: if it is running already.
    """
    config = home.config()
    split_address(config.listen)
    with alone_in(home.run) as ended:
        if ended:
            log.warning("ended what an earlier server left behind: %s", ", ".join(ended))
        _run(home, config, when_ready)


def _run(home: FederationHome, config: FederationConfig, when_ready: Callable[[str], None]) -> None:
    if passphrase := passphrase_for(home.signing_key, home.tls_key):
        os.environ[PASSPHRASE] = passphrase
    for folder in (home.run, home.logs, home.flower, home.runs):
        folder.mkdir(parents=True, exist_ok=True)
    for folder in (home.run, home.flower, home.runs, home.logs):
        folder.chmod(0o700)  # updates and params are in there, and what opens the SuperLink
    write_atomically(home.run / "superexec.secret", secrets.token_hex(32).encode(), 0o600)
    address = f"127.0.0.1:{free_port()}"
    supervisor = Supervisor(
        parts_of(home, config, address),
        home.run,
        home.logs,
        config.log_megabytes << 20,
        lambda: look_after(home, config, supervisor),
        CHORE_SECONDS,
    )
    try:
        supervisor.run(lambda: when_ready(config.listen))
    finally:
        (home.run / ADDRESS_FILE).unlink(missing_ok=True)


def parts_of(home: FederationHome, config: FederationConfig, address: str) -> list[Part]:
    """Return the server's processes in the order in which they start.

    Args:
        address: host:port of loopback where the SuperLink shall listen.
    """
    loopback, secret = home.loopback, str(home.run / "superexec.secret")
    own = {"FLWR_HOME": str(home.flower), VARIABLE: str(home.path), "NO_PROXY": "*", "no_proxy": "*"}
    superlink = script(
        "flower-superlink",
        *("--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--database", str(home.flower / DATABASE)),
        *("--ssl-ca-certfile", str(loopback / "ca.crt"), "--ssl-certfile", str(loopback / "tls.crt")),
        *("--ssl-keyfile", str(loopback / "tls.key"), "--enable-supernode-auth"),
        *("--isolation", "process", "--superexec-auth-secret-file", secret),
    )
    superexec = script(
        "flower-superexec",
        *("--runtime-api-address", address, "--root-certificates", str(loopback / "ca.crt")),
        *("--superexec-auth-secret-file", secret, "--parent-pid", str(os.getpid())),
    )
    folder = ("--home", str(home.path))
    return [
        Part(
            "superlink",
            superlink,
            own,
            before=lambda: _begin_database_anew(home, config),
            ready=lambda: is_healthy(home, address),
            started=lambda: _link_is_up(home, address),
        ),
        Part("superexec", superexec, own | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": TASK_POLL_SECONDS}),
        Part(
            "gateway", module("server.gateway", *folder, "--upstream", address), ready=lambda: _answers(config.listen)
        ),
        Part("steward", module("server.service.steward", *folder), own),
    ]


def _link_is_up(home: FederationHome, address: str) -> None:
    """Say where the SuperLink is, and have it know all sites: those approved while it was down, or all of a new one."""
    write_atomically(home.run / ADDRESS_FILE, json.dumps({"address": address}).encode(), 0o600)
    _register_missing(home)


def _register_missing(home: FederationHome) -> None:
    try:
        if names := register_missing(home):
            log.info("registered %s", ", ".join(names))
    except FedreptileError as error:
        log.error("sites cannot be registered: %s", error)


def _answers(listen: str) -> bool:
    """Say whether something accepts connections where the gateway is to listen."""
    host, port = split_address(listen)
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with socket.create_connection((here, port), 1.0):
            return True
    except OSError:
        return False


def look_after(home: FederationHome, config: FederationConfig, supervisor: Supervisor) -> None:
    """Have the SuperLink know all sites, if it did not at first; free disk that Flower would keep for ever; warn of
    certificates that end soon; have the releases' repository go on saying what is newest.
    """
    _register_missing(home)
    keep_newest(home.flower / "apps", KEPT_APPS)
    for certificate in (home.tls_certificate, home.authority):
        if certificate.exists() and (warning := expiry_warning(certificate, datetime.datetime.now(datetime.UTC))):
            log.warning("%s", warning)
    if _database_is_full(home, config):
        supervisor.restart("superlink")
    for warning in renew(home, datetime.datetime.now(datetime.UTC), passphrase_from_environment()):
        log.warning("%s", warning)


def _begin_database_anew(home: FederationHome, config: FederationConfig) -> None:
    """Delete a database that has grown too large; sites are registered again, and their nodes reconnect."""
    if _database_is_full(home, config):
        log.warning("the SuperLink's database is larger than %d MB and is begun anew", config.database_megabytes)
        for path in home.flower.glob(f"{DATABASE}*"):
            path.unlink()


def _database_is_full(home: FederationHome, config: FederationConfig) -> bool:
    size = sum(path.stat().st_size for path in home.flower.glob(f"{DATABASE}*"))
    return size > config.database_megabytes << 20 and not any(run.state in ACTIVE for run in all_runs(home))
