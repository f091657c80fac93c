"""A federation's folder of releases, with files of any bytes."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from common.releases.pointer import Pointer
from server.enrolment.registry import Enrolled, Registry, write_registry
from server.home import FederationHome
from server.releases.publishing import make_releases, open_registry, publish
from server.releases.registry import About, Release

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
SITES = ("east", "north", "south")


def releases_in(folder: Path, now: datetime = NOW) -> FederationHome:
    """Make a federation that has sites and releases and nothing else."""
    home = FederationHome(folder / "federation")
    home.path.mkdir()
    enrolled = Enrolled(node_key="", signing_key="", serials=(), expires="", approved="")
    write_registry(home.registry_file, Registry(dict.fromkeys(SITES, enrolled)))
    make_releases(home, None, now)
    return home


def put(home: FederationHome, data: bytes, parent: int | None = None, now: datetime = NOW) -> Release:
    return publish(home, data, About(parent, campaign="dents", sites=("north",), card={"note": "x"}), None, now)


def pointer_of(home: FederationHome) -> Pointer:
    with open_registry(home) as registry:
        return registry.pointer()
