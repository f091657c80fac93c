"""Releases from a real gateway through a real relay, and what a process of the site cannot do with that."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from client.adoption.fetch import fetch, newest_number
from common.errors import DeployError, SettingsError
from server.enrolment.sites import revoke
from server.gateway.admission import Caller, Connections
from server.releases.publishing import promote, publish
from server.releases.registry import About
from server.releases.repository import Repository
from tests.client.adoption.place import static_server
from tests.client.relay.site import RelayedSite, http_proxy
from tests.server.gateway.world import make_world, wait_until

NOW = datetime.now(UTC)


@pytest.fixture
def site(tmp_path: Path) -> RelayedSite:
    return RelayedSite(make_world(tmp_path, "north"))


@pytest.fixture
def relayed(site: RelayedSite) -> Iterator[RelayedSite]:
    with site.world.gateway(), site.relay():
        wait_until(lambda: site.state().get("port"))
        yield site


def release(site: RelayedSite, data: bytes) -> None:
    made = publish(site.world.server, data, About(), None, NOW)
    promote(site.world.server, made.number, [], None, NOW)


def get(site: RelayedSite, name: str) -> httpx.Response:
    """Ask the relay as any process of the machine can."""
    context = ssl.create_default_context(cafile=str(site.home.loopback / "ca.crt"))
    with httpx.Client(verify=context, trust_env=False) as client:
        return client.get(f"https://127.0.0.1:{site.port}/releases/{name}")


def test_a_site_that_took_its_kit_takes_releases(relayed: RelayedSite) -> None:
    data = b"weights" * 300_000
    release(relayed, data)
    found = fetch(relayed.home)
    assert found is not None
    assert (found.number, found.path.read_bytes()) == (1, data)
    wait_until(lambda: relayed.state()["bytes-in"] > len(data))


def test_looking_again_and_again_takes_one_connection(relayed: RelayedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look asks for the next root, which is not there; no handshake may come of that."""
    release(relayed, b"one")
    opened: list[object] = []
    before = Connections.opened

    def opening(connections: Connections, certificate: bytes | None) -> Caller:
        opened.append(certificate)
        return before(connections, certificate)

    monkeypatch.setattr(Connections, "opened", opening)
    for _ in range(5):
        assert newest_number(relayed.home) == 1
    fetch(relayed.home)
    assert len(opened) == 1


def test_rotated_keys_are_followed_through_the_relay(relayed: RelayedSite) -> None:
    release(relayed, b"one")
    fetch(relayed.home)
    for role in ("root", "timestamp", "root"):
        Repository(relayed.world.server).rotate(role, NOW)
    release(relayed, b"two")
    found = fetch(relayed.home)
    assert found is not None and found.path.read_bytes() == b"two"


def test_a_relay_that_was_started_again_knows_the_names(site: RelayedSite) -> None:
    with site.world.gateway():
        release(site, b"one")
        with site.relay():
            wait_until(lambda: site.state().get("port"))
            found = fetch(site.home)
            assert found is not None
            found.path.unlink()
        with site.relay():
            again = fetch(site.home)
            assert again is not None and again.path.read_bytes() == b"one"


def test_a_process_of_the_site_cannot_say_anything_by_the_names_that_it_asks_for(site: RelayedSite) -> None:
    """A plain server in the gateway's place shows what is asked of it."""
    release(site, b"one")
    with static_server(site.world.server.repository) as server:
        with site.home.config_file.open("a") as file:
            file.write(f'release-url = "{server.url}"\n')
        with site.relay():
            wait_until(lambda: site.state().get("port"))
            for name in (*SECRETS, "metadata/9.root.json"):
                assert get(site, name).status_code == 404
            own = {"timestamp.json", "3.snapshot.json", "3.targets.json", "2.root.json"}
            assert {name.rpartition("/")[2] for name in server.asked} == own
            found = fetch(site.home)
            assert found is not None and found.path.read_bytes() == b"one"


SECRETS = (
    f"targets/{'ab' * 32}.release-1.safetensors",
    f"targets/{'ab' * 32}",
    "metadata/secret.json",
    "metadata/77.snapshot.json",
    "metadata/77.targets.json",
    "metadata/3.targets.json.secret",
    "metadata/timestamp.json?secret",
)


def test_what_the_gateway_refuses_is_told(relayed: RelayedSite) -> None:
    revoke(relayed.world.server, "north", "lost", NOW)
    with pytest.raises(DeployError, match=r"releases cannot be fetched.*revoked"):
        fetch(relayed.home)


def test_a_server_that_is_away_is_told_and_a_relay_too(site: RelayedSite) -> None:
    with site.relay():
        wait_until(lambda: site.state().get("port"))
        with pytest.raises(DeployError, match=r"releases cannot be fetched.*unreachable"):
            fetch(site.home)
    with pytest.raises(DeployError, match="is the site up"):
        fetch(site.home)


def test_releases_come_through_the_proxy_too(site: RelayedSite) -> None:
    release(site, b"one")
    with http_proxy() as proxy, site.world.gateway():
        with site.home.config_file.open("a") as file:
            file.write(f'proxy = "{proxy.url}"\n')
        with site.relay():
            wait_until(lambda: site.state().get("port"))
            assert fetch(site.home) is not None
        assert proxy.lines


def test_a_release_url_that_is_none_is_refused(site: RelayedSite) -> None:
    with site.home.config_file.open("a") as file:
        file.write('release-url = "cdn.example.org"\n')
    with pytest.raises(SettingsError, match=r"release-url is 'cdn\.example\.org'"), site.relay():
        pass
