"""A federation's folder at its operator: where its settings, keys, sites, runs and logs are."""

import os
from dataclasses import dataclass
from pathlib import Path

from common.deployment.config import read_config

VARIABLE = "FEDREPTILE_FEDERATION"
"""Environment variable that names the folder; also how the ServerApp that Flower starts finds its keys."""


@dataclass(frozen=True)
class FederationConfig:
    """``federation.toml``: the same names with hyphens."""

    name: str
    address: str
    """What sites dial: host:port; the host is in the server's certificate."""
    listen: str = "0.0.0.0:8443"
    """Where the gateway listens."""
    settings: str = "settings.toml"
    """The settings that sites agree to when they join, and the default of runs; beside federation.toml or absolute."""
    megabytes_a_message: int = 64
    """The largest body that the gateway takes from a site. Flower cuts arrays in pieces of 5 MiB."""
    requests_a_second: float = 50.0
    """Of one site, on average; bursts of ten times as many are let through."""
    megabytes_a_second: float = 50.0
    """From one site, on average."""
    seconds_a_request: float = 60.0
    """Time that a site has to send a whole request."""
    connections_a_site: int = 32
    ask_minutes: float = 60.0
    """While there is no run, sites are asked so often what they are, have and wish; 0: never."""
    log_megabytes: int = 50
    """Disk that the log of each process may take."""
    database_megabytes: int = 1000
    """Flower's database is begun anew, while no run is active, when it has grown beyond this."""


@dataclass(frozen=True)
class FederationHome:
    """Paths in a federation's folder. Nothing here reads or writes, except ``config``."""

    path: Path

    @classmethod
    def of(cls, chosen: Path | None) -> "FederationHome":
        """Return the chosen folder, else ``$FEDREPTILE_FEDERATION``, else ``./federation``."""
        return cls((chosen or Path(os.environ.get(VARIABLE, "federation"))).expanduser().absolute())

    @property
    def config_file(self) -> Path:
        return self.path / "federation.toml"

    @property
    def registry_file(self) -> Path:
        """Approved and revoked sites (server/enrolment/registry.py)."""
        return self.path / "sites.json"

    @property
    def authority_key(self) -> Path:
        return self.path / "keys" / "authority.key"

    @property
    def authority(self) -> Path:
        """Certificate of the authority that signs sites."""
        return self.path / "authority.crt"

    @property
    def tls_key(self) -> Path:
        return self.path / "keys" / "tls.key"

    @property
    def tls_certificate(self) -> Path:
        """The server's certificate and what is between it and its root."""
        return self.path / "tls.crt"

    @property
    def chain(self) -> Path:
        """Roots by which sites know the server."""
        return self.path / "chain.crt"

    @property
    def signing_key(self) -> Path:
        return self.path / "keys" / "signing.key"

    @property
    def loopback(self) -> Path:
        """Folder with ca.crt, tls.crt and tls.key for 127.0.0.1, between the server's own processes."""
        return self.path / "loopback"

    @property
    def flower(self) -> Path:
        """Flower's own home, with the SuperLink's database."""
        return self.path / "flower"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def releases(self) -> Path:
        """Register, files and signing keys of releases, and the repository (server/releases/)."""
        return self.path / "releases"

    @property
    def repository(self) -> Path:
        """What sites may take: plain files that any static server can serve."""
        return self.releases / "repository"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def run(self) -> Path:
        """What only matters while the server runs: process ids, secrets, what the gateway saw."""
        return self.path / "run"

    def config(self) -> FederationConfig:
        """Raises SettingsError if ``federation.toml`` is missing or has a wrong key or value."""
        return read_config(self.config_file, FederationConfig, "make a federation with 'fedreptile-server enrol new'")
