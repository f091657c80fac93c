"""The register of releases: every one that ever was, and what became of it. Rows are only added. Torch-free.

Numbers only rise, and are never given twice. What holds now follows from the events alone.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    create_engine,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from common.errors import ReleaseError
from common.releases.pointer import Pointer
from common.settings import Value

PUBLISHED, PROMOTED, WITHDRAWN = "published", "promoted", "withdrawn"
PATIENCE = 30.0
"""Seconds that a change waits for another one."""

TABLES = MetaData()
RELEASES = Table(
    "releases",
    TABLES,
    Column("number", Integer, primary_key=True),
    Column("parent", ForeignKey("releases.number")),
    *(Column(name, String, nullable=False) for name in ("campaign", "sites", "settings", "settings_digest")),
    *(Column(name, String, nullable=False) for name in ("code", "fab", "gate", "card", "digest")),
    Column("size", Integer, nullable=False),
    Column("created", String, nullable=False),
    sqlite_autoincrement=True,
)
EVENTS = Table(
    "events",
    TABLES,
    Column("id", Integer, primary_key=True),
    Column("number", ForeignKey("releases.number"), nullable=False),
    Column("what", String, nullable=False),
    Column("detail", String, nullable=False),
    Column("created", String, nullable=False),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True)
class About:
    """Where a release comes from and what is known about it."""

    parent: int | None = None
    """The release that it was learned from, or that it has the content of; None: there was none."""
    campaign: str = ""
    sites: tuple[str, ...] = ()
    """Those that took part."""
    settings: Mapping[str, Value] = field(default_factory=dict)
    settings_digest: str = ""
    code: str = ""
    fab: str = ""
    """SHA-256 of the app bundle that the run used."""
    gate: Mapping[str, Any] = field(default_factory=dict)
    """What the gate found; empty: it went through none."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """What people read about it; never data."""


@dataclass(frozen=True)
class Release:
    number: int
    about: About
    digest: str
    """SHA-256 of its file, hexadecimal."""
    size: int
    """Bytes of its file."""
    created: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class Event:
    number: int
    what: str
    detail: Mapping[str, Any]
    created: str


class Registry:
    """The register in a file. Close it, or use it in a ``with``."""

    def __init__(self, path: Path) -> None:
        """Raises ReleaseError if it is not there or cannot be used."""
        if not path.exists():
            raise ReleaseError(f"{path} is not there; make it with 'fedreptile-server release init'")
        self._path, self._engine = path, _engine(path)

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def register(self, about: About, digest: str, size: int, now: datetime, keep: Callable[[int], None]) -> Release:
        """Add a release.

        Args:
            keep: called with its number before it counts, such as to write its file.

        Raises:
            ReleaseError: if its parent is none, or it cannot be written. It is not added then, nor if ``keep`` raises.
        """
        values = {
            "parent": about.parent,
            "campaign": about.campaign,
            "sites": json.dumps(about.sites),
            "settings": json.dumps(dict(about.settings), sort_keys=True),
            "settings_digest": about.settings_digest,
            "code": about.code,
            "fab": about.fab,
            "gate": json.dumps(dict(about.gate), sort_keys=True),
            "card": json.dumps(dict(about.card), sort_keys=True),
            "digest": digest,
            "size": size,
            "created": _text_of(now),
        }
        with self._transaction() as connection:
            if about.parent is not None:
                _one(connection, about.parent)
            done = connection.execute(insert(RELEASES).values(values))
            assert done.inserted_primary_key is not None
            release = _one(connection, done.inserted_primary_key[0])
            keep(release.number)
        return release

    def note(self, number: int, what: str, detail: Mapping[str, Any], now: datetime) -> None:
        """Add what became of a release. Raises ReleaseError if there is none of that number."""
        with self._transaction() as connection:
            _one(connection, number)
            values = {"number": number, "what": what, "detail": json.dumps(dict(detail)), "created": _text_of(now)}
            connection.execute(insert(EVENTS).values(values))

    def get(self, number: int) -> Release:
        """Raises ReleaseError if there is none of that number."""
        with self._transaction() as connection:
            return _one(connection, number)

    def all(self) -> list[Release]:
        """Return all releases, the oldest first."""
        with self._transaction() as connection:
            return [_release(row) for row in connection.execute(select(RELEASES).order_by(RELEASES.c.number))]

    def events(self, number: int | None = None) -> list[Event]:
        """Return what became of releases, or of one, the oldest first."""
        wanted = select(EVENTS).order_by(EVENTS.c.id)
        if number is not None:
            wanted = wanted.where(EVENTS.c.number == number)
        with self._transaction() as connection:
            return [
                Event(row.number, row.what, json.loads(row.detail), row.created) for row in connection.execute(wanted)
            ]

    def pointer(self) -> Pointer:
        """Return which release each site is meant to run. No site's number ever goes down."""
        return _pointer(self.events())

    def state(self, number: int) -> str:
        """Return in a word how a release stands: withdrawn, all, canary, replaced, published or registered."""
        return _state(number, self.events())

    def told(self, number: int) -> dict[str, Any]:
        """Return all that is known of a release, as plain values. Raises ReleaseError if there is none of it."""
        return _told(self.get(number), self.events())

    def all_told(self) -> list[dict[str, Any]]:
        """Return the same of all releases, the oldest first."""
        events = self.events()
        return [_told(release, events) for release in self.all()]

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            why = str(getattr(error, "orig", None) or error)
            raise ReleaseError(f"{self._path} cannot be used as the register of releases: {why}") from error


def _pointer(events: Sequence[Event]) -> Pointer:
    everywhere, tried = 0, dict[int, set[str]]()
    for one in events:
        if one.what == PROMOTED and one.detail["stage"] == "all":
            everywhere = max(everywhere, one.number)
        elif one.what == PROMOTED:
            tried.setdefault(one.number, set()).update(one.detail["sites"])
    gone = {one.number for one in events if one.what == WITHDRAWN}
    newer = {number: sites for number, sites in sorted(tried.items()) if number > everywhere and number not in gone}
    return Pointer(everywhere, {number: tuple(sorted(sites)) for number, sites in newer.items()})


def _state(number: int, events: Sequence[Event]) -> str:
    pointer, whats = _pointer(events), {one.what for one in events if one.number == number}
    if WITHDRAWN in whats:
        return "withdrawn"
    if number == pointer.all:
        return "all"
    if number in pointer.canaries:
        return "canary"
    if PROMOTED in whats:
        return "replaced"
    return "published" if PUBLISHED in whats else "registered"


def _told(release: Release, events: Sequence[Event]) -> dict[str, Any]:
    number, about = release.number, vars(release.about)
    canaries = list(_pointer(events).canaries.get(number, ()))
    own = {"number": number, "state": _state(number, events), "canaries": canaries}
    return {**own, **about, "digest": release.digest, "size": release.size, "created": release.created}


def make_registry(path: Path) -> None:
    """Make an empty register, for its owner alone.

    Raises:
        ReleaseError: if one is there or it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600, exist_ok=False)
        engine = _engine(path)
        with engine.begin() as connection:
            TABLES.create_all(connection)
            for table in (RELEASES, EVENTS):
                for change in ("UPDATE", "DELETE"):
                    connection.execute(text(_trigger(table.name, change)))
            connection.execute(text(_no_replacing(RELEASES.name, "number")))
            connection.execute(text(_no_replacing(EVENTS.name, "id")))
        engine.dispose()
    except (OSError, SQLAlchemyError) as error:
        raise ReleaseError(f"{path} cannot be made: {error}") from error


def _trigger(table: str, change: str) -> str:
    return (
        f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
        "BEGIN SELECT RAISE(ABORT, 'releases are only ever added'); END"
    )


def _no_replacing(table: str, key: str) -> str:
    """Return a trigger against INSERT OR REPLACE, for which SQLite calls none of those against deleting."""
    return (
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {key} = NEW.{key}) "
        "BEGIN SELECT RAISE(ABORT, 'releases are only ever added'); END"
    )


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool, connect_args={"timeout": PATIENCE})

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # a transaction begins where we say, not at the first change
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _one(connection: Connection, number: int) -> Release:
    row = connection.execute(select(RELEASES).where(RELEASES.c.number == number)).one_or_none()
    if row is None:
        raise ReleaseError(f"there is no release {number}; 'fedreptile-server release list' shows those there are")
    return _release(row)


def _release(row: Row[Any]) -> Release:
    about = About(
        row.parent,
        row.campaign,
        tuple(json.loads(row.sites)),
        json.loads(row.settings),
        row.settings_digest,
        row.code,
        row.fab,
        json.loads(row.gate),
        json.loads(row.card),
    )
    return Release(row.number, about, row.digest, row.size, row.created)


def _text_of(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="seconds")
