"""A federation with enrolled sites and releases, made by the server's own functions, and what a site asks of it."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import tomli_w
import torch
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.adoption.fetch import newest_number
from client.enrolment.joining import make_site, take_kit
from client.home import SiteHome
from common.deployment.forward import RELEASES
from common.deployment.ports import free_port
from common.errors import DeployError
from common.learning.params import Params
from common.plan import plan_for
from common.releases.artefact import Artefact, encode
from common.releases.delta import difference_of, encode_delta
from common.settings import Settings
from common.trust.certificates import as_pem, issue_site, serial_of
from common.trust.keys import header_of, hex_of, new_node_key, new_signing_key, new_tls_key, private_pem
from server.enrolment.federation import Wanted, make_federation, read_authority
from server.enrolment.registry import Enrolled, update_registry
from server.enrolment.sites import Approval, approve, write_kit
from server.gateway.__main__ import server_of
from server.home import FederationHome
from server.releases.publishing import Delta, content, promote, publish
from server.releases.registry import About
from simulations.benchmarks.rollout.real import look_and_take, relay, serving
from simulations.benchmarks.rollout.replayed import TIMESTAMP, Asked

WIDTH = 64
CLASSES = 50
"""Of the class table."""
STEP = 0.01
"""How far params move from one release to the next, in standard deviations of a normal distribution."""


@dataclass(frozen=True)
class World:
    """A federation whose gateway listens at a port of 127.0.0.1."""

    home: FederationHome
    port: int

    @property
    def sites(self) -> Path:
        """Folder of the certificates and keys of sites that are replayed, one file for each."""
        return self.home.path.with_name("sites")


@dataclass(frozen=True)
class Recorded:
    """What a real site asked of the gateway, through its relay."""

    look: Sequence[Asked]
    """Where there is nothing new."""
    then: Sequence[Sequence[Asked]]
    """Once there is something new, after that, for each release."""
    connections: int
    """Over which all of it went."""


def make_world(folder: Path) -> World:
    port = free_port()
    home = FederationHome(folder / "federation")
    wanted = Wanted("bench", f"localhost:{port}", f"127.0.0.1:{port}")
    make_federation(home, wanted, None, datetime.now(UTC))
    return World(home, port)


def enrol(world: World, count: int) -> list[Path]:
    """Let many sites in, each with keys and a certificate of its own; return a file with both for each."""
    now, authority = datetime.now(UTC), read_authority(world.home, None)
    entered, files = dict[str, Enrolled](), list[Path]()
    world.sites.mkdir()
    for number in range(count):
        name, key = f"line-{number:05d}", new_tls_key()
        certificate = issue_site(authority, name, key.public_key(), now, 30)
        files.append(world.sites / f"{name}.pem")
        files[-1].write_bytes(as_pem([certificate]) + private_pem(key))
        entered[name] = Enrolled(
            node_key=header_of(new_node_key().public_key()),
            signing_key=hex_of(new_signing_key().public_key()),
            serials=(serial_of(certificate),),
            expires=certificate.not_valid_after_utc.isoformat(timespec="seconds"),
            approved=now.isoformat(timespec="seconds"),
        )
    update_registry(world.home.registry_file, lambda found: replace(found, sites={**found.sites, **entered}))
    return files


def enrol_real(world: World, name: str) -> SiteHome:
    """Let a site in by request and kit, as people do."""
    home, now, kit = SiteHome(world.home.path.with_name(name)), datetime.now(UTC), world.home.path / "kit.json"
    request = make_site(home, name, world.home.path, "cpu", None, now)
    with home.config_file.open("a", encoding="utf-8") as file:
        file.write(tomli_w.dumps({"proxy": "off"}))
    write_kit(world.home, approve(world.home, Approval(request), None, now).kit, kit, None)
    take_kit(home, kit.read_bytes(), None, now)
    return home


def publish_releases(world: World, kinds: Sequence[str]) -> list[dict[str, int]]:
    """Publish releases of Omniglot's network, with class tables, and promote none.

    The values are drawn, not learned: how many bytes they take does not depend on it.

    Args:
        kinds: for each release, int8 or bf16 if it comes with a difference from the one before; else full.

    Returns:
        bytes of each release's files, by kind.
    """
    torch.manual_seed(0)
    settings = Settings.from_flat({"model.width": WIDTH})
    plan = plan_for(settings)
    table = {f"class {number}": (torch.randn(plan.learner.embedding), 10) for number in range(CLASSES)}
    params: Params = plan.initial
    sizes = list[dict[str, int]]()
    for number, kind in enumerate(kinds, 1):
        before, delta = params, None
        params = {name: value + STEP * torch.randn_like(value) for name, value in before.items()}
        if kind != "full":
            difference = difference_of(before, params, kind)
            params = difference.applied_to(before)
        artefact = Artefact(settings, params, table)
        data = encode(artefact)
        if kind != "full":
            delta = Delta(number - 1, kind, encode_delta(difference, content(world.home, number - 1), artefact))
        publish(world.home, data, About(number - 1 or None, code=artefact.code_version), None, datetime.now(UTC), delta)
        sizes.append({"full": len(data), **({kind: len(delta.data)} if delta else {})})
    return sizes


class Recorder:
    """Passes requests on to an ASGI app and notes them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.asked: list[Asked] = []
        self.connections: set[int] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, size = 0, 0

        async def note(message: Message) -> None:
            nonlocal status, size
            status = message.get("status", status)
            size += len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, note)
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"] if name != b"host"]
        self.asked.append(Asked(scope["path"].removeprefix(RELEASES), headers, status, size))
        self.connections.add(scope["client"][1])

    def taken(self) -> list[Asked]:
        """Return what was noted since the last time."""
        asked, self.asked = self.asked, []
        return asked


@contextlib.contextmanager
def recording(world: World) -> Iterator[Recorder]:
    """Have the federation's gateway running, in this process."""
    server = server_of(world.home, f"127.0.0.1:{free_port()}")
    recorder = Recorder(server.config.app)  # type: ignore[arg-type]
    server.config.app = recorder
    with serving(server):
        yield recorder


def rehearse(world: World, site: SiteHome, releases: int) -> Recorded:
    """Promote all releases in a copy of the federation, one after the other, and note what a real site asks.

    Raises:
        DeployError: if what it asks where nothing is new is not how it begins where something is, so that it cannot be
            replayed by one rule.
    """
    copy = World(FederationHome(world.home.path.with_name("rehearsal")), world.port)
    shutil.copytree(world.home.path, copy.home.path)
    with recording(copy) as recorder, relay(site) as source:
        newest_number(site, source)
        recorder.taken()
        newest_number(site, source)
        look, then = recorder.taken(), list[list[Asked]]()
        for number in range(1, releases + 1):
            promote(copy.home, number, (), None, datetime.now(UTC))
            look_and_take(site, source)
            found = recorder.taken()
            then.append(found[len(look) :])
            newest_number(site, source)
            for other in (found[: len(look)], recorder.taken()):
                if [one.path for one in other] != [one.path for one in look] or look[-1].path != TIMESTAMP:
                    raise DeployError(f"a site asks {json.dumps([one.path for one in other])}, and before it was other")
    shutil.rmtree(copy.home.path)
    return Recorded(look, then, len(recorder.connections))
