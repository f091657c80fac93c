"""A federation as its operator finds it: sites, a first release, campaigns that went through the real phases."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict

from common.errors import CampaignError
from common.messages import (
    ClassTable,
    GateReport,
    Introduction,
    Update,
    encode_class_table,
    encode_gate_report,
    encode_introduction,
    encode_update,
)
from common.paths import write_atomically
from common.plan import plan_for
from common.releases.artefact import Artefact, encode
from common.settings import Settings, as_toml
from server.campaigns import phases
from server.campaigns.creation import Choice, Wanted, begin_campaign
from server.campaigns.releases import FederationReleases
from server.enrolment.registry import Enrolled, Registry, write_registry
from server.gateway.seen import SEEN
from server.home import FederationHome
from server.releases.publishing import make_releases, open_registry, promote, publish
from server.releases.registry import About
from server.rounds import run_federation
from server.service.control import ADDRESS_FILE, Node
from server.service.runs import FAILED, FINISHED, read_run, update_run
from tests.server.scripted import SMALL, ScriptedGrid

NOW = datetime.now(UTC)
AGREED = Settings.from_flat({**SMALL, "data.hold-back": 0.2, "judge.held-out": 2, "outer.sites-per-round": 1})
OLD = ("crazing", "inclusion", "pitted surface", "scratches")
NEW = "patches"
SITES = ("line-1", "line-2", "line-3", "line-4")
EMBEDDING = plan_for(AGREED).agreed.embedding


@dataclass
class World:
    """A federation's folder, and what its four sites answer; the first has the new class."""

    home: FederationHome
    falls: set[str] = field(default_factory=set)
    """Sites at which the next challenger is bad."""
    silent: set[str] = field(default_factory=set)
    """Sites whose next update cannot be used."""
    refused: dict[str, int] = field(default_factory=dict)
    wishes: dict[str, Mapping[str, int]] = field(default_factory=lambda: {"line-1": {NEW: 10}})
    says: Callable[[str], int] | None = None
    """Which release a site runs; None: the one that it is meant to."""

    def begin(self, name: str, new_class: str, description: str, first: tuple[str, ...] = ()) -> Settings:
        """Ask for a campaign; return its settings."""
        values = {"run.rounds": 3, "outer.deadline": 0.3}
        wanted = Wanted(name, new_class, description, (), first, values, ())
        return Settings.from_flat(dict(begin_campaign(self.home, Choice(), wanted).settings))

    def campaign(self, name: str, new_class: str, description: str, first: tuple[str, ...] = ()) -> None:
        """Have a campaign go to its end, as the server's process does."""
        settings = self.begin(name, new_class, description, first)
        ends: dict[str, Any] = {"state": FINISHED}
        try:
            run_federation(self.grid(new_class), settings, releases=FederationReleases(self.home))
        except CampaignError as error:
            ends = {"state": FAILED, "reason": str(error)}
        update_run(self.home, read_run(self.home.runs / name), **ends)

    def grid(self, new_class: str) -> ScriptedGrid:
        return ScriptedGrid({node: self._site(name, new_class) for node, name in enumerate(SITES, 1)})

    def meant(self, site: str) -> int:
        with open_registry(self.home) as registry:
            return registry.pointer().of(site)

    def _site(self, name: str, new_class: str) -> Callable[[Message], RecordDict | Error | None]:
        classes = dict.fromkeys(OLD, 48) | ({new_class: 10} if name == "line-1" else {})

        def answer(message: Message) -> RecordDict | Error | None:
            kind = message.metadata.message_type
            if kind == "query":
                release = self.says(name) if self.says else self.meant(name)
                wishes = self.wishes.get(name, {})
                refused = self.refused.get(name, 0)
                return encode_introduction(Introduction(name, classes, "cpu", {}, release, refused, wishes))
            if kind == "query.class_table":
                names = tuple(sorted(classes))
                sums = np.ones((len(names), EMBEDDING), np.float32)
                return encode_class_table(ClassTable(names, tuple(classes[one] for one in names), sums))
            if kind == "query.gate":
                return encode_gate_report(self._report(name))
            if name in self.silent:
                return Error(100, "the site could not do it")
            return update()

        return answer

    def _report(self, name: str) -> GateReport:
        place = SITES.index(name)
        rows = {known: (12, 11 - (place + spot) % 2, 11) for spot, known in enumerate(OLD)}
        if name in self.falls:
            rows["scratches"] = (12, 11, 4)
        total, before, after = (sum(row[column] for row in rows.values()) for column in range(3))
        scalars = {
            "num-held-back": float(total),
            "accuracy-champion": before / total,
            "accuracy-challenger": after / total,
            "ece-champion": 0.06,
            "ece-challenger": 0.05,
        }
        if name != "line-1":
            return GateReport(scalars, rows)
        unknown = {"unknown-champion": 0.91, "unknown-challenger": 0.93, "num-unknown": 10.0}
        return GateReport(scalars | unknown, rows, (10, 10), (10, 9))


def update() -> RecordDict:
    size = plan_for(AGREED).agreed.update
    return encode_update(Update(np.ones(size, np.float32), np.empty(0, np.float32), {"num-examples": 4.0}))


def bare(folder: Path) -> FederationHome:
    """Make a federation without a site, a run or a place for releases."""
    home = FederationHome(folder / "federation")
    home.path.mkdir()
    home.config_file.write_text("name = 'steelworks'\naddress = 'fed.example.org:8443'\n", encoding="utf-8")
    (home.path / "settings.toml").write_text(as_toml(AGREED), encoding="utf-8")
    return home


def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Make a federation of four sites that run a first release."""
    monkeypatch.setattr("server.campaigns.releases.fab_of_installation", lambda: (b"", "ab" * 32))
    monkeypatch.setattr(phases, "FIRST_PAUSE", 0.01)
    nodes = {place + 1: Node(name, place < 3, "") for place, name in enumerate(SITES)}
    monkeypatch.setattr("server.service.status._nodes", lambda home: nodes)
    home = bare(folder)
    write_registry(home.registry_file, Registry({name: enrolled(place) for place, name in enumerate(SITES)}))
    write_atomically(home.run / ADDRESS_FILE, json.dumps({"address": "127.0.0.1:1"}).encode())
    seen = {name: {"last-seen": NOW.timestamp() - 3 * place, "version": "0.1.0"} for place, name in enumerate(SITES)}
    write_atomically(home.run / SEEN, json.dumps(seen).encode())
    make_releases(home, None, NOW)
    plan = plan_for(AGREED)
    first = encode(Artefact(AGREED, plan.initial, {}, slots=plan.initial_slots))
    publish(home, first, About(card={"note": "the four classes that all lines know"}), None, NOW)
    promote(home, 1, [], None, NOW)
    return World(home)


def enrolled(place: int) -> Enrolled:
    expires = (NOW + timedelta(days=9 if place == 3 else 300)).isoformat()
    return Enrolled("node", "ab", (), expires, NOW.isoformat(), place + 1, ("hot-rolled",) if place < 2 else ())
