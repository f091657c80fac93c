"""A site's folder: where its settings, keys, ledger and logs are."""

import hashlib
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from common.deployment.config import read_config
from common.errors import SettingsError

LONGEST_SOCKET = 100
"""Bytes of a socket's path: systems allow 104 or 108."""


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
    """Absolute folder that keeps decoded pictures; empty: ``cache`` in the site's folder; 'off': none is kept."""
    proxy: str = ""
    """HTTP proxy for the way out, 'http://host:port'; empty: what HTTPS_PROXY says; 'off': none."""
    release_url: str = ""
    """Where the relay takes releases from: URL of the folder with metadata/ and targets/; empty: the gateway."""
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
    adopt_seconds: float = 20.0
    """Between two looks for a new release, which is then adapted, judged and used; 0: only by hand ('adopt')."""
    models_megabytes: int = 500
    """Disk that the models may take which the site has used. The oldest goes first."""

    @property
    def shared_cache(self) -> str:
        """``cache`` for commands that a person runs: 'off' for whoever is another than the worker's user, to whom it
        belongs; a file of root's in it would be none to the worker."""
        folder = Path(self.cache)
        try:
            owner = (folder if folder.exists() else folder.parent).stat().st_uid
        except OSError:
            return "off"
        return "off" if self.user or (hasattr(os, "geteuid") and owner != os.geteuid()) else self.cache


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
    def cache(self) -> Path:
        """Decoded pictures, unless ``site.toml`` names another folder."""
        return self.path / "cache"

    @property
    def models(self) -> Path:
        """The models that the site has used: see ``client.line.store``."""
        return self.path / "models"

    @property
    def watched(self) -> Path:
        """Where the page looks for new pictures, unless it is told another folder."""
        return self.path / "watched"

    @property
    def dropped(self) -> Path:
        """Pictures that people gave to the page."""
        return self.path / "dropped"

    @property
    def releases(self) -> Path:
        """What the site knows of releases: the trusted root and newer metadata, and the files that it has taken."""
        return self.path / "releases"

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

    @property
    def socket(self) -> Path:
        """Where the worker listens: in the site's folder, unless its path is too long or has quotes for Flower."""
        path = self.run / "worker" / "site.sock"
        if len(os.fsencode(path)) <= LONGEST_SOCKET and not set("'\"\\") & set(str(path)):
            return path
        short = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"fedreptile-{short}" / "site.sock"

    @property
    def socket_key(self) -> Path:
        """What the worker's socket asks for."""
        return self.socket.with_suffix(".key")

    def config(self) -> SiteConfig:
        """Return ``site.toml``, its cache filled in.

        Raises:
            SettingsError: if it is missing or has a wrong key or value.
        """
        found = read_config(self.config_file, SiteConfig, "make the site's folder with 'fedreptile-site join'")
        if not Path(found.data).is_absolute():
            raise SettingsError(f"{self.config_file}: data is {found.data!r}; give it from the root")
        return replace(found, cache=found.cache or str(self.cache))
