"""A site's folder: where its settings, keys, ledger and logs are."""

import os
from dataclasses import dataclass
from pathlib import Path

from common.deployment.config import read_config
from common.errors import SettingsError


@dataclass(frozen=True)
class SiteConfig:
    """``site.toml``: what this site is. The same names with hyphens."""

    name: str
    """The name under which the site takes part."""
    data: str
    """Absolute path of the site's data: a folder of class folders, a .csv table or an .npz file."""
    device: str = "cpu"
    """Where torch computes: 'cpu', 'cuda', 'cuda:1', …"""
    threads: int = 1
    """Threads of one adaptation. One gives the same bits on every machine of a kind."""
    cache: str = ""
    """Absolute folder that keeps decoded pictures; empty: the data home's; 'off': none is kept."""
    proxy: str = ""
    """HTTP proxy for the way out, 'http://host:port'; empty: what HTTPS_PROXY says; 'off': none."""
    user: str = ""
    """When 'up' is started as root: the user of the process that holds data and model."""
    app_user: str = ""
    """When 'up' is started as root: the user of SuperNode and of code that the server pushes; must not read data."""
    relay_user: str = ""
    """When 'up' is started as root: the user of the relay, which has the network and must not read data."""
    ledger_megabytes: int = 1000
    """Disk that the ledger may take. When it is full nothing leaves any more: move old files away."""
    log_megabytes: int = 50
    """Disk that the log of each process may take."""


@dataclass(frozen=True)
class SiteHome:
    """Paths in a site's folder. Nothing here reads or writes, except ``config``."""

    path: Path

    @classmethod
    def of(cls, chosen: Path | None) -> "SiteHome":
        """Return the chosen folder, else ``$FEDREPTILE_SITE``, else ``./site``."""
        return cls((chosen or Path(os.environ.get("FEDREPTILE_SITE", "site"))).expanduser().absolute())

    @property
    def config_file(self) -> Path:
        return self.path / "site.toml"

    @property
    def policy_file(self) -> Path:
        return self.path / "policy.toml"

    @property
    def request_file(self) -> Path:
        return self.path / "request.json"

    @property
    def kit_file(self) -> Path:
        return self.path / "kit.json"

    @property
    def tls_key(self) -> Path:
        return self.path / "keys" / "tls.key"

    @property
    def tls_certificate(self) -> Path:
        """The site's certificate, by which the gateway knows it."""
        return self.path / "tls.crt"

    @property
    def node_key(self) -> Path:
        return self.path / "keys" / "node.key"

    @property
    def signing_key(self) -> Path:
        return self.path / "keys" / "signing.key"

    @property
    def loopback(self) -> Path:
        """Folder with ca.crt, tls.crt and tls.key for 127.0.0.1, between the site's own processes."""
        return self.path / "loopback"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger"

    @property
    def outbox(self) -> Path:
        """Finished answers, until they are stale."""
        return self.path / "outbox"

    @property
    def flower(self) -> Path:
        """Flower's own home."""
        return self.path / "flower"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def run(self) -> Path:
        """What only matters while the site runs: process ids, sockets, secrets."""
        return self.path / "run"

    @property
    def relay_state(self) -> Path:
        """What the relay says about the connection, for 'status'."""
        return self.run / "relay" / "relay.json"

    def config(self) -> SiteConfig:
        """Raises SettingsError if ``site.toml`` is missing or has a wrong key or value."""
        found = read_config(self.config_file, SiteConfig, "make the site's folder with 'fedreptile-site join'")
        if not Path(found.data).is_absolute():
            raise SettingsError(f"{self.config_file}: data is {found.data!r}; give it from the root")
        return found
