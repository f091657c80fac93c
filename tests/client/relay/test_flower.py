"""Flower's own SuperLink and SuperNode with a gateway and a relay between them."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesRequest, StartRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from common.deployment.ports import free_port
from common.deployment.supervisor import script
from common.paths import write_atomically
from server.enrolment.nodes import register_missing
from server.enrolment.sites import revoke
from server.home import FederationHome
from server.service.control import ADDRESS_FILE, control, is_healthy
from tests.client.relay.site import RelayedSite
from tests.server.gateway.world import make_world

PATIENCE = 60.0


@contextlib.contextmanager
def running(words: list[str], home: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            words,
            env={**os.environ, **environment, "NO_PROXY": "*"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def superlink(home: FederationHome, port: int) -> list[str]:
    loopback = home.loopback
    secret = home.run / "superexec.secret"
    write_atomically(secret, b"s" * 64, 0o600)
    return script(
        "flower-superlink",
        *("--host", "127.0.0.1", "--port", str(port), "--database", str(home.flower / "superlink.db")),
        *("--ssl-ca-certfile", str(loopback / "ca.crt"), "--ssl-certfile", str(loopback / "tls.crt")),
        *("--ssl-keyfile", str(loopback / "tls.key"), "--enable-supernode-auth", "--isolation", "process"),
        *("--superexec-auth-secret-file", str(secret)),
    )


def supernode(site: RelayedSite) -> list[str]:
    home, loopback = site.home, site.home.loopback
    secret = home.run / "superexec.secret"
    write_atomically(secret, b"s" * 64, 0o600)
    return script(
        "flower-supernode",
        *("--superlink", f"127.0.0.1:{site.port}", "--root-certificates", str(loopback / "ca.crt")),
        *("--auth-supernode-private-key", str(home.node_key), "--isolation", "process"),
        *("--superexec-auth-secret-file", str(secret), "--host", "127.0.0.1", "--port", str(free_port())),
        *("--ssl-ca-certfile", str(loopback / "ca.crt"), "--ssl-certfile", str(loopback / "tls.crt")),
        *("--ssl-keyfile", str(loopback / "tls.key")),
    )


def wait_for(there: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8", errors="replace")[-4000:]
        time.sleep(0.2)


def test_a_supernode_comes_online_through_relay_and_gateway_and_survives(tmp_path: Path) -> None:
    world = make_world(tmp_path, "north")
    site, home, address = RelayedSite(world), world.server, f"127.0.0.1:{world.inner_port}"
    home.flower.mkdir()
    links, nodes = tmp_path / "superlink.log", tmp_path / "supernode.log"

    def since() -> str:
        """Return when the site's node was last activated, if it is online."""
        with control(home) as superlink:
            return next((node.since for node in superlink.nodes().values() if node.online), "")

    with running(superlink(home, world.inner_port), home.flower, links):
        wait_for(lambda: is_healthy(home, address), links)
        write_atomically(home.run / ADDRESS_FILE, json.dumps({"address": address}).encode(), 0o600)
        assert register_missing(home) == ["north"]
        with site.relay():
            with world.gateway(), running(supernode(site), site.home.flower, nodes) as node:
                wait_for(since, nodes)
                first = since()
                _cannot_control(site)
                node.kill()  # so that the SuperLink still has it online
                node.wait()
            with running(supernode(site), site.home.flower, nodes) as node:
                wait_for(lambda: "retrying" in nodes.read_text(encoding="utf-8"), nodes)
                with world.gateway():
                    wait_for(lambda: since() not in ("", first), nodes)
                    revoke(home, "north", "left", datetime.now(UTC))
                    wait_for(lambda: site.state().get("cause", "").startswith("revoked"), nodes)
                    assert node.poll() is None


def _cannot_control(site: RelayedSite) -> None:
    """Try what only the operator may, with Flower's own clients."""
    address, roots = f"127.0.0.1:{site.port}", (site.home.loopback / "ca.crt").read_bytes()
    version = [RuntimeVersionHttpInterceptor(component_name="flwr-cli")]
    with ControlHttpClient.from_server_address(address, False, roots, version) as client:
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            client.ListNodes(ListNodesRequest())
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            client.StartRun(StartRunRequest())
    runtime = RuntimeHttpClient.from_server_address(address, False, roots, version)
    with runtime, pytest.raises(httpx.HTTPStatusError, match="404"):
        runtime.AcquireTask(AcquireTaskRequest())
