"""A federation as in production: TLS, registered SuperNodes, every part a process of its own."""

import contextlib
import datetime
import ipaddress
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from client.door.ledger import entries
from common.checkpoint import read_checkpoint
from common.deployment.ports import free_port
from common.settings import Value
from server.launch import APP, Environment, child, flower_environment, stage_app, submit
from server.service.runs import read_journal

PATIENCE = 60.0
CONNECTION = "hospital"


# Keys and certificates


def name_of(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(name_of(issuer), name_of(subject), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def make_certificates(folder: Path) -> None:
    """Write ca.crt, and server.pem and server.key for this machine's loopback address."""
    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    root = (
        builder("test authority", "test authority", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    server = (
        builder("localhost", "test authority", own)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(root.public_bytes(Encoding.PEM))
    (folder / "server.pem").write_bytes(server.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def make_node_key(path: Path) -> Path:
    """Write a SuperNode's private key, and beside it the public one; return the path of the private one."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return path


# Processes


@dataclass(frozen=True)
class Federation:
    """A SuperLink on loopback that admits registered SuperNodes only."""

    folder: Path
    address: str
    environment: Environment

    def register(self, key: Path) -> None:
        words = ["flwr", "supernode", "register", str(key.with_suffix(".pub")), CONNECTION]
        subprocess.run(words, env=self.environment, check=True, capture_output=True)

    @contextlib.contextmanager
    def supernode(self, site: str, data: Path, key: Path | None) -> Iterator[subprocess.Popen[bytes]]:
        """Have a site's SuperNode, whose output goes to ``<site>.out`` and whose ledger is ``<site>``."""
        own = f'site-name="{site}" site-data="{data}" site-ledger="{self.folder / site}"'
        words = ["flower-supernode", "--superlink", self.address, "--root-certificates", str(self.folder / "ca.crt")]
        words += ["--node-config", own, "--port", str(free_port())]
        words += ["--auth-supernode-private-key", str(key)] if key else []
        with (
            (self.folder / f"{site}.out").open("wb") as output,
            child(words, self.environment, output.fileno()) as node,
        ):
            yield node


@pytest.fixture
def federation(tmp_path: Path, left_behind: Callable[[], list[str]]) -> Iterator[Federation]:
    make_certificates(tmp_path)
    address = f"127.0.0.1:{free_port()}"
    environment = flower_environment(tmp_path) | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
    connection = {"address": address, "root-certificates": str(tmp_path / "ca.crt")}
    (tmp_path / "config.toml").write_text(tomli_w.dumps({"superlink": {CONNECTION: connection}}), encoding="utf-8")
    words = ["flower-superlink", "--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
    words += ["--enable-supernode-auth", "--isolation", "subprocess", "--ssl-ca-certfile", str(tmp_path / "ca.crt")]
    words += ["--ssl-certfile", str(tmp_path / "server.pem"), "--ssl-keyfile", str(tmp_path / "server.key")]
    log = tmp_path / "superlink.out"
    with log.open("wb") as output, child(words, environment, output.fileno()):
        wait_for(lambda: "Uvicorn running" in log.read_text(encoding="utf-8"), log)
        yield Federation(tmp_path, address, environment)
    wait_for(lambda: not left_behind(), log)


def wait_for(there: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.1)


def test_registered_sites_finish_a_run_and_strangers_are_refused(federation: Federation, digit_folders: Path) -> None:
    folder, run = federation.folder, federation.folder / "run"
    keys = {name: make_node_key(folder / f"{name}-key") for name in ("line-1", "line-2", "stranger")}
    values: dict[str, Value] = {
        "run.rounds": 2,
        "run.dir": str(run),
        "data.size": 8,
        "episode.shot": 5,
        "outer.join-sites": 2,
        "outer.join-deadline": PATIENCE,
    }
    with contextlib.ExitStack() as running:
        for site in ("line-1", "line-2"):
            federation.register(keys[site])
            running.enter_context(federation.supernode(site, digit_folders / site, keys[site]))
        strangers = [
            running.enter_context(federation.supernode("stranger", digit_folders / "line-1", keys["stranger"])),
            running.enter_context(federation.supernode("keyless", digit_folders / "line-1", None)),
        ]

        submit(stage_app(folder / APP), CONNECTION, values, federation.environment)

        assert all(stranger.wait(PATIENCE) != 0 for stranger in strangers)
    for stranger in ("stranger", "keyless"):
        assert "Failed to initialize the connection" in (folder / f"{stranger}.out").read_text(encoding="utf-8")
        assert not (folder / stranger).exists()
    assert read_checkpoint(run).state.round == 2
    assert [line["used"] for line in read_journal(run)] == [["line-1", "line-2"]] * 2
    for site in ("line-1", "line-2"):
        left = [entry.content for entry in entries(folder / site)]
        assert left == ["Introduction", "Update", "Update"]
