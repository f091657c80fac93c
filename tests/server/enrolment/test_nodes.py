"""Node keys at a real SuperLink, with TLS and node authentication."""

import json
import ssl
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from common.deployment.ports import free_port
from common.errors import DeployError, TrustError
from common.trust.folders import write_loopback
from common.trust.keys import header_of, new_node_key, openssh_text
from common.trust.request import encode_request
from server.enrolment.cli import app
from server.enrolment.nodes import register_missing, register_node, unregister_node
from server.enrolment.registry import Enrolled, Registry, read_registry, update_registry, write_registry
from server.home import FederationHome
from tests.commands import commands_of
from tests.common.trust.papers import NOW, new_keys


@contextmanager
def superlink(home: FederationHome, database: Path) -> Iterator[None]:
    """Have a SuperLink on loopback, whose address stands where ours look for it."""
    port = free_port()
    words = [str(Path(sysconfig.get_path("scripts")) / "flower-superlink"), "--host", "127.0.0.1", "--port", str(port)]
    words += ["--ssl-ca-certfile", str(home.loopback / "ca.crt"), "--ssl-certfile", str(home.loopback / "tls.crt")]
    words += ["--ssl-keyfile", str(home.loopback / "tls.key"), "--enable-supernode-auth", "--isolation", "process"]
    process = subprocess.Popen(
        [*words, "--database", str(database)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(f"https://127.0.0.1:{port}/health", str(home.loopback / "ca.crt"), process)
        home.run.mkdir(exist_ok=True)
        (home.run / "superlink.json").write_text(json.dumps({"address": f"127.0.0.1:{port}"}))
        yield
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, roots: str, process: subprocess.Popen[bytes]) -> None:

    context = ssl.create_default_context(cafile=roots)
    for _ in range(600):
        assert process.poll() is None, "the SuperLink ended"
        try:
            if httpx.get(url, verify=context, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the SuperLink does not answer")


def enrolled(header: str) -> Enrolled:
    return Enrolled(header, "ab" * 32, (), NOW.isoformat(), NOW.isoformat())


@pytest.fixture
def home(tmp_path: Path) -> FederationHome:
    made = FederationHome(tmp_path / "fed")
    write_loopback(made.loopback, NOW)
    return made


def test_nodes_are_registered_known_again_and_put_out_for_ever(
    home: FederationHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # where nothing listens: loopback must not go there
    keys = {name: new_node_key().public_key() for name in ("line-1", "line-2", "line-3")}
    texts = {name: openssh_text(key) for name, key in keys.items()}
    assert register_node(home, "line-1", texts["line-1"]) is None
    sites = {name: enrolled(header_of(key)) for name, key in keys.items()}
    write_registry(home.registry_file, Registry(sites))

    with superlink(home, tmp_path / "one.db"):
        first = register_node(home, "line-1", texts["line-1"])
        assert first and register_node(home, "line-1", texts["line-1"]) == first
        assert register_missing(home) == ["line-1", "line-2", "line-3"]
        assert register_missing(home) == []
        ids = {name: site.node_id for name, site in read_registry(home.registry_file).sites.items()}
        assert ids["line-1"] == first and len(set(ids.values())) == 3 and 0 not in ids.values()

        assert unregister_node(home, first) and unregister_node(home, first)
        with pytest.raises(TrustError, match="can never be registered again"):
            register_node(home, "line-1", texts["line-1"])
        # A site that was revoked while the SuperLink was down is put out when it is up again.
        bar = {"barred": {sites["line-2"].node_key: "line-2"}}
        update_registry(home.registry_file, lambda now: replace(now, sites={"line-3": now.sites["line-3"]}, **bar))
        assert register_missing(home) == []
        with pytest.raises(TrustError, match="can never be registered again"):
            register_node(home, "line-2", texts["line-2"])

    assert register_node(home, "line-3", texts["line-3"]) is None
    assert not unregister_node(home, ids["line-3"])
    with pytest.raises(DeployError, match="does not answer"):
        register_missing(home)
    with superlink(home, tmp_path / "new.db"):
        assert register_missing(home) == ["line-3"]
        assert read_registry(home.registry_file).sites["line-3"].node_id != ids["line-3"]
        write_loopback(home.loopback, NOW)
        with pytest.raises(DeployError, match="not this federation's SuperLink"):
            register_node(home, "line-3", texts["line-3"])


def test_an_approval_registers_the_node_and_a_revocation_puts_it_out_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    show, refused = commands_of(app)
    show("new", "fed", "--name", "lines", "--address", "localhost:8443")
    home, keys = FederationHome(tmp_path / "fed"), new_keys()
    (tmp_path / "request.json").write_bytes(encode_request("line-3", keys, NOW))
    with superlink(home, tmp_path / "one.db"):
        show("approve", "request.json", "--home", home.path, "--yes")
        node = read_registry(home.registry_file).sites["line-3"].node_id
        assert node
        show("approve", "request.json", "--home", home.path, "--yes")
        assert read_registry(home.registry_file).sites["line-3"].node_id == node
        said = show("revoke", "line-3", "--home", home.path, "--reason", "stolen")
        assert "does not know yet" not in said
        with pytest.raises(TrustError, match="can never be registered again"):
            register_node(home, "line-3", openssh_text(keys.node.public_key()))
        home.registry_file.unlink()  # even if the list is lost, the SuperLink remembers
        assert "never be registered again" in refused("approve", "request.json", "--home", home.path, "--yes")


@pytest.mark.parametrize("content", ["", "{}", '{"address": 1}', '{"address": "10.0.0.1:80"}'])
def test_an_address_that_is_not_loopback_is_refused(home: FederationHome, content: str) -> None:
    home.run.mkdir()
    (home.run / "superlink.json").write_text(content)
    with pytest.raises(DeployError, match=r"superlink\.json cannot be read"):
        register_node(home, "line-1", openssh_text(new_node_key().public_key()))
