"""Planted misconfigurations, each of a real site: ``check`` names the one cause, and the fix."""

import contextlib
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from client.check import machine, memory, network
from client.check.cli import check_site
from client.check.findings import Finding, Level, Subject
from client.home import SiteHome
from common.deployment.forward import FROM_HEADER
from common.deployment.ports import free_port
from common.trust.keys import new_tls_key, private_pem
from common.trust.kit import own_versions, read_kit
from tests.client.check.place import (
    NOW,
    Place,
    answering,
    certified,
    over_tls,
    proxying,
    serving,
    stranger,
    swallowing,
)

HEALTHY = (FROM_HEADER, "superlink")


@dataclass
class Plant:
    """A healthy site on which something goes wrong."""

    fed: Place
    home: SiteHome
    patch: pytest.MonkeyPatch
    open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def folder(self) -> Path:
        return self.home.path.parent

    def config(self, **changes: str | int) -> None:
        """Change or add keys of site.toml."""
        lines = self.home.config_file.read_text().splitlines()
        for key, value in changes.items():
            shown = f'"{value}"' if isinstance(value, str) else value
            lines = [line for line in lines if not line.startswith(f"{key} ")] + [f"{key} = {shown}"]
        self.home.config_file.write_text("\n".join(lines))

    def serve(self, serve: Any) -> int:
        return self.open.enter_context(serving(serve))

    def server(self, folder: Path, **answer: Any) -> None:
        """Have the site dial another server with a certificate in a folder."""
        self.fed.dial(self.home, self.serve(over_tls(folder, answering(b"", *HEALTHY, **answer))))

    def own_server(self, **certificate: Any) -> Path:
        return certified(self.folder / "server", self.fed.authority, **certificate)

    def check(self) -> list[Finding]:
        return check_site(Subject(self.home, self.now, seconds=1.0))


def without_name(at: Plant) -> None:
    lines = at.home.config_file.read_text().splitlines()
    at.home.config_file.write_text("\n".join(line for line in lines if not line.startswith("name")))


def other_name(at: Plant) -> None:
    at.config(name="line-9")


def not_joined(at: Plant) -> None:
    shutil.rmtree(at.home.path)


def no_kit_yet(at: Plant) -> None:
    for path in (at.home.kit_file, at.home.policy_file, at.home.tls_certificate):
        path.unlink()


def kit_changed_by_a_byte(at: Plant) -> None:
    data = bytearray(at.home.kit_file.read_bytes())
    place = data.index(b"line-1")
    data[place + 5] ^= 1
    at.home.kit_file.write_bytes(data)


def settings_of_another_version(at: Plant) -> None:
    at.fed.sign(at.home, settings={**read_kit(at.home.kit_file).settings, "inner.momentum": 0.9})


def policy_that_is_not_toml(at: Plant) -> None:
    at.home.policy_file.write_text("[code\nfabs = 3")


def policy_without_the_fab(at: Plant) -> None:
    fab = read_kit(at.home.kit_file).fabs[0]
    at.home.policy_file.write_text(at.home.policy_file.read_text().replace(fab, "ab" * 32))


def policy_that_keeps_parameters(at: Plant) -> None:
    text = at.home.policy_file.read_text().replace('may-leave = ["*"]', 'may-leave = ["head.*"]', 1)
    at.home.policy_file.write_text(text)


def key_that_others_can_read(at: Plant) -> None:
    at.home.signing_key.chmod(0o644)


def key_that_is_lost(at: Plant) -> None:
    at.home.node_key.unlink()


def certificate_of_another_key(at: Plant) -> None:
    at.home.tls_key.write_bytes(private_pem(new_tls_key()))


def certificate_that_expired(at: Plant) -> None:
    at.fed.own_certificate(at.home, NOW, -0.02)


def certificate_that_ends_soon(at: Plant) -> None:
    at.now = read_end(at) - timedelta(days=12)
    at.server(at.own_server(days=3000))


def read_end(at: Plant) -> datetime:
    return datetime.fromisoformat(read_kit(at.home.kit_file).expires)


def certificate_of_another_authority(at: Plant) -> None:
    at.fed.own_certificate(at.home, NOW, 90, by=stranger())


def data_that_are_gone(at: Plant) -> None:
    at.config(data="/mnt/not-mounted/line-1")


def data_of_one_class(at: Plant) -> None:
    for number in range(1, 5):
        shutil.rmtree(at.folder / "data" / f"digit-{number}")


def a_picture_that_is_cut_off(at: Plant) -> None:
    picture = sorted((at.folder / "data" / "digit-3").iterdir())[0]
    picture.write_bytes(picture.read_bytes()[:30])


def class_with_too_few(at: Plant) -> None:
    for picture in sorted((at.folder / "data" / "digit-2").iterdir())[4:]:
        picture.unlink()


def fewer_classes_than_way(at: Plant) -> None:
    shutil.rmtree(at.folder / "data" / "digit-4")


def gpu_that_is_not_there(at: Plant) -> None:
    at.config(device="cuda:99")


def device_that_is_none(at: Plant) -> None:
    at.config(device="gpu")


def disk_nearly_full(at: Plant) -> None:
    usage = shutil.disk_usage(at.home.path)
    at.patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=30_000_000))


def disk_that_will_be_full(at: Plant) -> None:
    usage = shutil.disk_usage(at.home.path)
    at.patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=900_000_000))


def ledger_that_is_full(at: Plant) -> None:
    at.config(**{"ledger-megabytes": 1})
    at.home.ledger.mkdir()
    (at.home.ledger / "ledger-000001.jsonl").write_bytes(b"x" * 1_000_000)


def memory_that_is_taken(at: Plant) -> None:
    at.patch.setattr(memory, "free_memory", lambda device: 20_000_000)


def clock_before_the_kit(at: Plant) -> None:
    at.now = datetime(2020, 1, 1, tzinfo=UTC)


def clock_ten_minutes_off(at: Plant) -> None:
    at.server(at.own_server(), ahead=600)


def clock_a_little_off(at: Plant) -> None:
    at.server(at.own_server(), ahead=-100)


def closed_port(at: Plant) -> None:
    at.fed.dial(at.home, free_port())


def port_behind_a_firewall(at: Plant) -> None:
    at.fed.dial(at.home, at.open.enter_context(swallowing()))


def name_that_is_unknown(at: Plant) -> None:
    at.fed.dial(at.home, 8443, "no-such-host.invalid")


def proxy_that_is_off(at: Plant) -> None:
    at.config(proxy=f"http://127.0.0.1:{free_port()}")


def proxy_of_the_environment(at: Plant) -> None:
    at.patch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")


def proxy_with_a_password(at: Plant) -> None:
    at.config(proxy=f"http://127.0.0.1:{at.serve(proxying(407))}")


def proxy_that_forbids(at: Plant) -> None:
    at.config(proxy=f"http://127.0.0.1:{at.serve(proxying(403))}")


def proxy_without_a_way(at: Plant) -> None:
    at.config(proxy=f"http://127.0.0.1:{at.serve(proxying(502))}")


def proxy_that_is_none(at: Plant) -> None:
    at.config(proxy=f"http://127.0.0.1:{at.serve(lambda connection: connection.sendall(b'220 mail ready'))}")


def proxy_of_another_kind(at: Plant) -> None:
    at.config(proxy="socks5://user:secret@127.0.0.1:1080")


def tls_opened_on_the_way(at: Plant) -> None:
    at.server(certified(at.folder / "server", stranger()))


def server_of_another_name(at: Plant) -> None:
    at.server(at.own_server(host="old.example.org"))


def server_that_expired(at: Plant) -> None:
    at.server(at.own_server(days=-0.02))


def server_that_ends_soon(at: Plant) -> None:
    at.server(at.own_server(days=9))


def server_without_tls(at: Plant) -> None:
    at.fed.dial(at.home, at.serve(lambda connection: connection.sendall(b"HTTP/1.1 400 x\r\n\r\n")))


def server_that_says_nothing(at: Plant) -> None:
    at.fed.dial(at.home, at.serve(lambda connection: bool(connection.recv(100_000)) and connection.recv(1)))


def another_web_server(at: Plant) -> None:
    at.fed.dial(at.home, at.serve(over_tls(at.own_server(), answering(b"<html>", "Server", "x", status=404))))


def revoked(at: Plant) -> None:
    at.home = at.fed.site("line-2", at.folder / "other")


def not_enrolled(at: Plant) -> None:
    at.fed.own_certificate(at.home, NOW, 90)


def version_that_the_server_refuses(at: Plant) -> None:
    at.patch.setattr(network, "VERSION", "0.0.9")


def version_other_than_the_kits(at: Plant) -> None:
    at.fed.sign(at.home, versions={**own_versions(), "fedreptile": "7.3.0"})


def other_flower(at: Plant) -> None:
    at.patch.setattr(machine, "installed", lambda name: {"flwr": "1.40.2"}.get(name, "0.1.0"))


def torch_that_is_broken(at: Plant) -> None:
    at.patch.setitem(__import__("sys").modules, "torch", None)


PROBLEMS: tuple[tuple[Callable[[Plant], None], str, str, str], ...] = (
    (without_name, "site.toml", "has no 'name'", "add it"),
    (other_name, "site.toml", "the name is 'line-9', and the kit is for 'line-1'", "set name = 'line-1'"),
    (not_joined, "site.toml", "is not there", "fedreptile-site join"),
    (no_kit_yet, "kit", "there is none", "request.json to the operator"),
    (kit_changed_by_a_byte, "kit", "was changed after the operator signed it", "ask for it again"),
    (settings_of_another_version, "kit", "inner.momentum", "install the version"),
    (policy_that_is_not_toml, "policy", "policy.toml cannot be read", "correct"),
    (policy_without_the_fab, "policy", "no code may run", "add to code.fabs"),
    (policy_that_keeps_parameters, "model", "keeps back 'conv1.weight' and 15 more", "inner.frozen"),
    (key_that_others_can_read, "keys", "signing.key can be read or written by others (mode 0644)", "chmod 600"),
    (key_that_is_lost, "keys", "node.key is not there", "restore it from a backup"),
    (certificate_of_another_key, "certificate", "is not for the key", "join --kit"),
    (certificate_that_expired, "certificate", "it expired on", "join --renew"),
    (certificate_of_another_authority, "certificate", "issued by 'CN=Corporate Inspection'", "join --kit"),
    (data_that_are_gone, "data", "there is no /mnt/not-mounted/line-1", "is the drive mounted"),
    (data_of_one_class, "data", "only one class (digit-0)", "another class"),
    (gpu_that_is_not_there, "device", "cuda:99", "device = 'cpu'"),
    (device_that_is_none, "device", "torch cannot use 'gpu'", "'cuda:1'"),
    (disk_nearly_full, "disk", "only 30 MB are free", "free some"),
    (ledger_that_is_full, "ledger", "1 of 1 MB, so nothing leaves", "move its older files away"),
    (memory_that_is_taken, "memory", "only 19 MB of this machine's memory are free", "end other processes"),
    (clock_before_the_kit, "clock", "it says 2020-01-01 00:00 UTC, but the kit was issued later", "timedatectl"),
    (clock_ten_minutes_off, "clock", "s behind the server's", "timedatectl"),
    (closed_port, "port", "refuses connections", "ask the operator"),
    (port_behind_a_firewall, "port", "did not answer in 1 s: a firewall drops", "let this machine connect out"),
    (name_that_is_unknown, "server's name", "'no-such-host.invalid' is not known here", "network administrator"),
    (proxy_that_is_off, "proxy", "refuses connections", "proxy in site.toml"),
    (proxy_of_the_environment, "proxy", "refuses connections", "HTTPS_PROXY in the environment"),
    (proxy_with_a_password, "proxy", "wants a user name and a password (407", "user:password@host:port"),
    (proxy_that_forbids, "proxy", "forbids connections to localhost", "allow CONNECT"),
    (proxy_without_a_way, "proxy", "cannot reach localhost", "let the proxy connect"),
    (proxy_that_is_none, "proxy", "is no HTTP proxy", "correct the proxy"),
    (proxy_of_another_kind, "proxy", "…@127.0.0.1:1080", "http://host:port"),
    (tls_opened_on_the_way, "server's certificate", "issued by 'CN=Corporate Inspection'", "except localhost"),
    (server_of_another_name, "server's certificate", "is not for localhost, it is for old.example.org", "the name"),
    (server_that_expired, "server's certificate", "expired on", "renew-server"),
    (server_without_tls, "server's certificate", "does not speak TLS", "compare the address"),
    (server_that_says_nothing, "server's certificate", "did not begin TLS in 1 s", "what stands between"),
    (another_web_server, "admission", "is not the gateway of a federation (HTTP status 404)", "compare the address"),
    (revoked, "admission", "revoked the certificate of line-2", "fresh keys"),
    (not_enrolled, "admission", "line-1 is not enrolled with this certificate", "enrol list"),
    (
        version_that_the_server_refuses,
        "versions",
        "fedreptile 0.0.9 at the site (needed: fedreptile 0.1.0)",
        "wheelhouse",
    ),
    (version_other_than_the_kits, "packages", "and 7.3.0 at the server", "'fedreptile==7.3.0'"),
    (other_flower, "packages", "flwr is 1.40.2", "flwr==1.41.*"),
    (torch_that_is_broken, "torch", "it cannot be loaded", "pip install torch"),
)
WARNINGS: tuple[tuple[Callable[[Plant], None], str, str, str], ...] = (
    (certificate_that_ends_soon, "certificate", "in 12 day(s)", "join --renew"),
    (a_picture_that_is_cut_off, "data", "1 thing(s) cannot be used and are skipped", "replace or remove"),
    (class_with_too_few, "data", "1 of 5 classes have fewer than 6 inputs", "add inputs"),
    (fewer_classes_than_way, "data", "4 classes; an episode of the run has 5", "add classes"),
    (disk_that_will_be_full, "disk", "may grow by", "ledger-megabytes"),
    (clock_a_little_off, "clock", "s ahead of the server's", "timedatectl"),
    (server_that_ends_soon, "server's certificate", "in 9 day(s)", "remind the operator"),
)


@pytest.fixture
def at(fed: Place, home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> Any:
    planted = Plant(fed, home, monkeypatch)
    with planted.open:
        yield planted


def of(level: Level, findings: list[Finding]) -> list[Finding]:
    """Return the findings of a level, but for the warning of users, which a site of one user always has."""
    return [one for one in findings if one.level == level and (one.what, level) != ("users", Level.WARNING)]


@pytest.mark.parametrize(("plant", "what", "cause", "fix"), PROBLEMS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_one_right_cause_is_named_with_its_fix(
    at: Plant, plant: Callable[[Plant], None], what: str, cause: str, fix: str
) -> None:
    plant(at)
    found = at.check()
    (one,) = of(Level.PROBLEM, found)
    assert (one.what, of(Level.WARNING, found)) == (what, []), found
    assert cause in one.cause and fix in one.fix, one


@pytest.mark.parametrize(("plant", "what", "cause", "fix"), WARNINGS, ids=lambda value: getattr(value, "__name__", ""))
def test_what_will_be_a_problem_is_a_warning(
    at: Plant, plant: Callable[[Plant], None], what: str, cause: str, fix: str
) -> None:
    plant(at)
    found = at.check()
    (one,) = of(Level.WARNING, found)
    assert (one.what, of(Level.PROBLEM, found)) == (what, []), found
    assert cause in one.cause and fix in one.fix, one


def test_a_healthy_site_has_no_problem_and_everything_is_checked(at: Plant) -> None:
    found = at.check()
    assert not of(Level.PROBLEM, found) + of(Level.WARNING, found) + of(Level.SKIPPED, found), found
    whole = "Python packages torch site.toml kit policy keys certificate device ledger disk ports data model memory"
    assert {*whole.split(), "server's name", "port", "proxy", "admission", "clock"} <= {one.what for one in found}


def test_a_healthy_site_behind_a_proxy_is_let_in_through_it(at: Plant) -> None:
    at.config(proxy=f"http://user:secret@127.0.0.1:{at.serve(proxying())}")
    found = at.check()
    assert not of(Level.PROBLEM, found), found
    (proxy,) = [one for one in found if one.what == "proxy"]
    assert "connects through" in proxy.cause and "secret" not in str(found)


def test_a_proxy_of_the_environment_is_passed_by_where_site_toml_says_off_or_no_proxy_names_the_host(at: Plant) -> None:
    at.patch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    at.patch.setenv("NO_PROXY", "localhost")
    assert not of(Level.PROBLEM, at.check())
    at.patch.delenv("NO_PROXY")
    assert of(Level.PROBLEM, at.check())
    at.config(proxy="off")
    assert not of(Level.PROBLEM, at.check())


def test_an_encrypted_key_without_its_passphrase_is_named(at: Plant) -> None:
    from common.trust.keys import read_private_key

    key = read_private_key(at.home.tls_key)
    at.home.tls_key.write_bytes(private_pem(key, "open sesame"))
    (one,) = of(Level.PROBLEM, at.check())
    assert one.what == "keys" and "needs a passphrase" in one.cause and "FEDREPTILE_PASSPHRASE" in one.fix
    at.patch.setenv("FEDREPTILE_PASSPHRASE", "open sesame")
    assert not of(Level.PROBLEM, at.check())


def test_nothing_in_the_sites_folder_but_the_cache_is_changed_by_a_check(at: Plant) -> None:
    def seen() -> dict[Path, tuple[int, int]]:
        paths = (path for path in at.home.path.rglob("*") if at.home.cache not in (path, *path.parents))
        return {path: (path.stat().st_mtime_ns, stat.S_IMODE(path.stat().st_mode)) for path in paths}

    before = seen()
    at.check()
    assert seen() == before


def test_what_a_proxy_says_cannot_steer_the_terminal(at: Plant) -> None:
    port = at.serve(proxying(403, "no \x1b[2J"))
    at.config(proxy=f"http://127.0.0.1:{port}")
    (one,) = of(Level.PROBLEM, at.check())
    assert one.what == "proxy" and "403 no ?[2J" in one.cause


def test_what_an_unverified_server_shows_cannot_steer_the_terminal(at: Plant) -> None:
    from common.trust.certificates import new_authority

    at.server(certified(at.folder / "server", new_authority("evil\x1b[2J", NOW)))
    (one,) = of(Level.PROBLEM, at.check())
    assert one.what == "server's certificate" and "\x1b" not in one.cause and "evil" in one.cause
