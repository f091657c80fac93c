"""What a check finds, and the site that is checked. Torch-free, so that a broken torch can be found."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.door.policy import Policy, read_policy
from client.home import SiteConfig, SiteHome
from client.settings import settings_of
from common.errors import FedreptileError
from common.paths import cache_folder
from common.settings import Settings
from common.trust.keys import passphrase_for
from common.trust.kit import Kit, read_kit

if TYPE_CHECKING:
    from common.learning.episode import SiteData

Found = TypeVar("Found")


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "not checked"
    """Because something that it needs has a problem."""


LITTLE = timedelta(minutes=5)
"""By which clocks may differ without harm to certificates: those are backdated."""

STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red", Level.SKIPPED: "dim"}


@dataclass(frozen=True)
class Finding:
    what: str
    """What was checked, in a word or two."""
    level: Level
    cause: str
    """What was found."""
    fix: str = ""
    """What to do; there is one for each warning and problem."""
    details: tuple[str, ...] = ()
    """One line each, shown below the table."""


class NeedsError(Exception):
    """A check needs what another check has a problem with; the text names it."""


@dataclass(frozen=True)
class Subject:
    """The site that is checked. What of it cannot be read raises NeedsError; the check of it says why."""

    home: SiteHome
    now: datetime
    seconds: float = 10.0
    """Patience with each step of the way to the server."""

    @cached_property
    def config(self) -> SiteConfig:
        return self._readable("site.toml", self.home.config)

    @cached_property
    def kit(self) -> Kit:
        return self._readable("kit", lambda: read_kit(self.home.kit_file))

    @cached_property
    def settings(self) -> Settings:
        """The settings that were agreed."""
        return self._readable("kit", lambda: settings_of(self.kit))

    @cached_property
    def policy(self) -> Policy:
        return self._readable("policy", lambda: read_policy(self.home.policy_file))

    @property
    def time(self) -> datetime:
        """The time now, if it is not known to be wrong: the kit cannot have been issued in the future."""
        if self.now < datetime.fromisoformat(self.kit.issued) - LITTLE:
            raise NeedsError("clock")
        return self.now

    @cached_property
    def passphrase(self) -> str | None:
        return passphrase_for(self.home.tls_key, self.home.signing_key, self.home.node_key)

    @cached_property
    def data(self) -> "SiteData":
        """The site's data, as a run opens them."""
        return self._readable("data", self.open_data)

    def open_data(self) -> "SiteData":
        """Raises SettingsError or SiteDataError if the data cannot be used."""
        from client.data.sites import open_site_data

        own = self.config
        return open_site_data(Path(own.data), own.name, self.settings.data, cache_folder(own.shared_cache))

    def need_folder(self) -> None:
        """Raises NeedsError if there is no site here at all: one cause is enough."""
        if not self.home.config_file.exists():
            raise NeedsError("site.toml")

    @staticmethod
    def need_torch() -> None:
        """Raises NeedsError if torch cannot be loaded."""
        try:
            import torch  # noqa: F401
        except (ImportError, OSError) as error:
            raise NeedsError("torch") from error

    @staticmethod
    def _readable(what: str, read: Callable[[], Found]) -> Found:
        try:
            return read()
        except FedreptileError as error:
            raise NeedsError(what) from error


def subject_of(home: SiteHome) -> Subject:
    return Subject(home, datetime.now(UTC))


def ok(what: str, cause: str) -> Finding:
    return Finding(what, Level.OK, cause)


def warning(what: str, cause: str, fix: str, details: Sequence[str] = ()) -> Finding:
    return Finding(what, Level.WARNING, cause, fix, tuple(details))


def problem(what: str, cause: str, fix: str) -> Finding:
    return Finding(what, Level.PROBLEM, cause, fix)


def skipped(what: str, needed: str) -> Finding:
    return Finding(what, Level.SKIPPED, f"mend first: {needed}")


def broken(what: str, error: FedreptileError, fix: str) -> Finding:
    """Return the problem that an error tells of. What its text says after a semicolon is the fix; otherwise ``fix``."""
    cause, _, advice = str(error).partition("; ")
    return problem(what, cause, advice or fix)


def plain(text: str, most: int = 200) -> str:
    """Return text from elsewhere without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])


def as_table(findings: Sequence[Finding]) -> Table:
    """Return the findings as a table: problems red, each with cause and fix."""
    table = Table("checked", "")
    for name in ("found", "what to do"):
        table.add_column(name, overflow="fold")  # nothing is cut off, since it may be a command
    for one in findings:
        style = STYLES[one.level]
        found = Text(one.cause, style="red" if one.level == Level.PROBLEM else "")
        table.add_row(Text(one.what), Text(one.level, style=style), found, Text(one.fix))
    return table


def show(findings: Sequence[Finding], console: Console) -> None:
    console.print(as_table(findings))
    for one in findings:
        for line in one.details:
            console.print(Text(f"{one.what}: {line}"))
    counts = {level: sum(one.level == level for one in findings) for level in Level}
    words = [f"{counts[level]} {level}{'s' * (counts[level] != 1)}" for level in (Level.PROBLEM, Level.WARNING)]
    end = "the site can run" if not counts[Level.PROBLEM] else "the site cannot run, or not for long"
    console.print(Text(f"{', '.join(words)}: {end}"))


def as_values(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings as plain values, for JSON."""
    return {"problem": has_problem(findings), "findings": [asdict(one) for one in findings]}


def has_problem(findings: Sequence[Finding]) -> bool:
    return any(one.level == Level.PROBLEM for one in findings)
