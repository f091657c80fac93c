"""An enrolled site in a folder, the server that asks it, and its worker as a real process."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict

from client.home import SiteHome
from client.worker.wire import call
from common.errors import DeployError
from common.messages import Request, encode_request
from common.paths import write_atomically
from common.plan import plan_for
from common.settings import Settings, flatten
from common.trust.certificates import as_pem, issue_site, new_authority
from common.trust.keys import hex_of, new_tls_key, private_pem
from common.trust.kit import Kit, encode_kit, read_kit
from common.trust.seals import Facts, sealed
from tests.client.small import context_of, first_request, message_of

ROOT = Path(__file__).resolve().parents[3]
FAB = "ab" * 32


@dataclass
class Enrolled:
    """A site's folder, and both keys."""

    home: SiteHome
    settings: Settings
    server_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    site_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    issued: int = 0

    @property
    def socket(self) -> Path:
        return self.home.socket

    @property
    def socket_key(self) -> Path:
        return self.home.socket_key

    def renew(self, settings: Settings | None = None, **changes: Any) -> None:
        """Have another kit in the place of the present one, as ``join`` takes it."""
        self.settings = settings or self.settings
        key = hex_of(self.server_key.public_key())
        kit = replace(read_kit(self.home.kit_file), settings=flatten(self.settings), server_signing_key=key, **changes)
        write_atomically(self.home.kit_file, encode_kit(kit, self.server_key), 0o644)

    def policy(self, text: str) -> None:
        self.home.policy_file.write_text(text, encoding="utf-8")

    def request(self, round_number: int = 1, *, judge: bool = False) -> RecordDict:
        first: Request = first_request(self.settings, round_number, judge=judge)
        return encode_request(first, plan_for(self.settings).agreed.digest)

    def seal(self, content: RecordDict, kind: str, round_number: int = 1, run: str = "run-1") -> RecordDict:
        self.issued += 1
        return sealed(content, Facts(run, round_number, kind, self.issued), self.server_key)

    def asking(self, kind: str = "train", round_number: int = 1, run: str = "run-1") -> Message:
        """Return a sealed message of the server's."""
        content = RecordDict() if kind == "query" else self.request(round_number)
        return message_of(kind, self.seal(content, kind, round_number, run))

    def context(self) -> Context:
        node = {"site-name": "site-0", "site-socket": str(self.socket), "site-socket-key": str(self.socket_key)}
        return context_of(node, self.settings)

    def start(self) -> subprocess.Popen[bytes]:
        with (self.home.path / "worker.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "client.worker", "--home", str(self.home.path)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )

    @contextlib.contextmanager
    def working(self) -> Iterator[subprocess.Popen[bytes]]:
        """Have a worker that answers."""
        process = self.start()
        try:
            self.wait_until_ready()
            yield process
        finally:
            process.kill()
            process.wait()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(DeployError):
                if call(self.socket, self.socket_key, {"op": "ping"}) == {"answer": "pong"}:
                    return
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def log(self) -> str:
        return (self.home.path / "worker.log").read_text(encoding="utf-8")


@contextlib.contextmanager
def enrolled(data: Path, settings: Settings) -> Iterator[Enrolled]:
    """Have a folder of site-0; in a place with a short path, which sockets need."""
    with tempfile.TemporaryDirectory(prefix="fed") as scratch:
        site = Enrolled(SiteHome(Path(scratch)), settings)
        enrol(site, data)
        yield site


def enrol(site: Enrolled, data: Path) -> None:
    """Write what joining and approval leave in a site's folder."""
    home, now = site.home, datetime.now(UTC)
    home.config_file.write_text(f"name = 'site-0'\ndata = {json.dumps(str(data))}\ncache = 'off'\n", encoding="utf-8")
    site.policy(f"[code]\nfabs = ['{FAB}']\n")
    for folder in (home.run, home.socket.parent, home.signing_key.parent):
        folder.mkdir(mode=0o700)
    site.socket_key.write_bytes(secrets.token_bytes(32))
    home.signing_key.touch(0o600)
    home.signing_key.write_bytes(private_pem(site.site_key))
    authority, key = new_authority("test", now), new_tls_key()
    certificate = issue_site(authority, "site-0", key.public_key(), now, 1)
    kit = Kit(
        federation="wards",
        site="site-0",
        address="localhost:9092",
        roots_pem=as_pem([authority.certificate]).decode(),
        authority_pem=as_pem([authority.certificate]).decode(),
        certificate_pem=as_pem([certificate]).decode(),
        server_signing_key=hex_of(site.server_key.public_key()),
        fabs=(FAB,),
        settings=flatten(site.settings),
        versions={},
        issued=now.isoformat(timespec="seconds"),
        expires=(now + timedelta(days=1)).isoformat(timespec="seconds"),
    )
    home.kit_file.write_bytes(encode_kit(kit, site.server_key))
