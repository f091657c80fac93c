"""A site's policy: what may run there and what may leave. It is the site's own file; the centre cannot override it.

Torch-free. The door (``client.door.outbound``) and the relay obey it, and each answer carries its digest.
"""

import fnmatch
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import PolicyRefusal, SettingsError
from common.paths import write_atomically
from common.settings import nearest

ALWAYS = "num-examples"
"""The one figure that travels whatever [metrics] says, because the server cannot use an update without it."""


@dataclass(frozen=True)
class CodePolicy:
    fabs: tuple[str, ...] = ()
    """SHA-256 of the app bundles that may run; none: nothing may."""


@dataclass(frozen=True)
class ParametersPolicy:
    may_leave: tuple[str, ...] = ("*",)
    """Patterns of names; an update with any other parameter in it is refused as a whole."""


@dataclass(frozen=True)
class MetricsPolicy:
    may_leave: tuple[str, ...] = ("*",)
    """Patterns of names; other figures are left out of the answers."""


@dataclass(frozen=True)
class ClassesPolicy:
    names: bool = True
    """Whether class names and counts may leave (introduction, per-class results)."""
    tables: bool = False
    """Whether sums of embeddings by class name may leave."""
    minimum: int = 5
    """The least number of inputs of a class for its sum to leave: the sum of one is that one's embedding."""


@dataclass(frozen=True)
class TrafficPolicy:
    bytes_a_day: int = 0
    """Bytes of content that may leave in a day (UTC); 0: no limit."""


@dataclass(frozen=True)
class HoursPolicy:
    work: tuple[str, ...] = ()
    """When the site takes on work, in its local time; none: always. What was begun in time is finished and leaves."""


@dataclass(frozen=True)
class LimitsPolicy:
    way: int = 0
    """Classes per episode at most; 0 as the run says."""
    shot: int = 0
    """Support inputs per class at most; 0 as the run says."""
    steps: int = 0
    """Inner steps at most; 0 as the run says."""


LEAST = {"classes.minimum": 1, "traffic.bytes-a-day": 0, "limits.way": 2, "limits.shot": 0, "limits.steps": 0}
"""Smallest values that make sense; a ``limits.way`` of 0 is allowed too and means no limit."""
MOST = 2**62


@dataclass(frozen=True)
class Policy:
    """The sections of ``policy.toml``, in which names have hyphens. Raises SettingsError for values without sense."""

    code: CodePolicy = CodePolicy()
    parameters: ParametersPolicy = ParametersPolicy()
    metrics: MetricsPolicy = MetricsPolicy()
    classes: ClassesPolicy = ClassesPolicy()
    traffic: TrafficPolicy = TrafficPolicy()
    hours: HoursPolicy = HoursPolicy()
    limits: LimitsPolicy = LimitsPolicy()

    def __post_init__(self) -> None:
        for section in fields(self):
            for item in fields(getattr(self, section.name)):
                key = f"{section.name}.{item.name}".replace("_", "-")
                _check(key, getattr(getattr(self, section.name), item.name), item.default)
        for fab in self.code.fabs:
            if not re.fullmatch("[0-9a-f]{64}", fab):
                raise SettingsError(f"code.fabs holds {fab!r}; it must be a SHA-256: 64 digits from 0-9 and a-f")
        for text in self.hours.work:
            Span.of(text)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the policy says, in hexadecimal; comments and order in the file do not count."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def may_run(self, fab: str) -> bool:
        """Return whether the app bundle with this SHA-256 (hexadecimal) may run."""
        return fab in self.code.fabs

    def works_at(self, moment: datetime) -> bool:
        """Return whether work may begin at a moment (with time zone; the site's own zone decides)."""
        local = moment.astimezone()
        return not self.hours.work or any(Span.of(text).holds(local) for text in self.hours.work)

    def may_report(self, name: str) -> bool:
        """Return whether a figure may leave."""
        return name == ALWAYS or fits(name, self.metrics.may_leave)

    def check_time(self, moment: datetime) -> None:
        """Raises PolicyRefusal if no work may begin at a moment."""
        if not self.works_at(moment):
            raise PolicyRefusal("hours.work", f"it is {moment.astimezone():%a %H:%M}, outside {list(self.hours.work)}")

    def check_parameters(self, names: Iterable[str]) -> None:
        """Raises PolicyRefusal if any parameter of an update may not leave."""
        if kept := [name for name in names if not fits(name, self.parameters.may_leave)]:
            raise PolicyRefusal("parameters.may-leave", f"{kept[0]!r} and {len(kept) - 1} more may not leave")


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name fits one of some patterns ('*' any text, '?' any character); case counts."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
SPAN = re.compile(r"([a-z]{3})(?:-([a-z]{3}))? ([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})")


@dataclass(frozen=True)
class Span:
    """Hours on some days of the week; a span over midnight belongs to the day on which it begins."""

    days: frozenset[int]
    """Monday is 0."""
    start: int
    """Minutes from midnight."""
    end: int
    """Minutes from midnight, itself outside; below ``start`` it is on the next day."""

    @classmethod
    def of(cls, text: str) -> "Span":
        """Raises SettingsError unless the text is like 'mon-fri 18:00-06:00' or 'sat 00:00-24:00'."""
        match = SPAN.fullmatch(text)
        first, last = (match[1], match[2] or match[1]) if match else ("", "")
        if match is None or first not in DAYS or last not in DAYS:
            raise SettingsError(f"hours.work holds {text!r}; write it like 'mon-fri 18:00-06:00' or 'sat 00:00-24:00'")
        hours = [int(match[place]) for place in (3, 5)]
        minutes = [int(match[place]) for place in (4, 6)]
        start, end = (60 * hour + minute for hour, minute in zip(hours, minutes, strict=True))
        if max(minutes) > 59 or start >= 24 * 60 or end > 24 * 60 or start == end:
            raise SettingsError(f"hours.work holds {text!r}; hours go from 00:00 to 24:00, and the two must differ")
        begin, count = DAYS.index(first), (DAYS.index(last) - DAYS.index(first)) % 7 + 1
        return cls(frozenset((begin + day) % 7 for day in range(count)), start, end)

    def holds(self, local: datetime) -> bool:
        """Return whether a local time lies within."""
        day, now = local.weekday(), 60 * local.hour + local.minute
        if self.start < self.end:
            return day in self.days and self.start <= now < self.end
        return (day in self.days and now >= self.start) or ((day - 1) % 7 in self.days and now < self.end)


def read_policy(path: Path) -> Policy:
    """Read a policy file; what it does not say is as in ``Policy()``.

    Raises:
        SettingsError: if it is missing or not TOML, or has an unknown section or key, or a value that is wrong; the
            error names the file and the key.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise SettingsError(f"{path} is not there; make the site's folder with 'fedreptile-site join'") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"policy file {path} cannot be read: {error}") from error
    try:
        return policy_of(tree)
    except SettingsError as error:
        raise SettingsError(f"policy file {path}: {error}") from error


def policy_of(tree: dict[str, Any]) -> Policy:
    """Build a policy from sections. Raises SettingsError like ``read_policy``."""
    kinds: dict[str, Any] = {item.name: type(item.default) for item in fields(Policy)}
    sections: dict[str, Any] = {}
    for name, values in tree.items():
        if name not in kinds:
            raise SettingsError(f"unknown section {name!r}; the nearest valid one is {nearest(name, kinds)!r}")
        if not isinstance(values, dict):
            raise SettingsError(f"{name!r} stands outside a [section]")
        known = {item.name.replace("_", "-"): item.name for item in fields(kinds[name])}
        if unknown := [key for key in values if key not in known]:
            wanted = nearest(unknown[0], known)
            raise SettingsError(f"unknown key '{name}.{unknown[0]}'; the nearest valid one is '{name}.{wanted}'")
        plain = {known[key]: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        sections[name] = kinds[name](**plain)
    return Policy(**sections)


def _check(key: str, value: Any, default: Any) -> None:
    if isinstance(default, tuple):
        if not isinstance(value, tuple) or not all(isinstance(item, str) and item for item in value):
            raise SettingsError(f"{key} is {value!r}; it must be a list of texts, such as ['*']")
    elif type(value) is not type(default):
        wanted = "true or false" if isinstance(default, bool) else "a whole number"
        raise SettingsError(f"{key} is {value!r}; it must be {wanted}")
    elif key in LEAST and not LEAST[key] <= value <= MOST and not (key == "limits.way" and value == 0):
        raise SettingsError(f"{key} is {value}; it must be at least {LEAST[key]}")


TEMPLATE = """\
# The policy of this site: what may run here and what may leave. The centre cannot override it.
# It is read anew for every message. See what it comes to with: fedreptile-site explain

[code]
# SHA-256 of the app bundles (FAB) that may run here. An empty list: none may.
fabs = [{fabs}]

[parameters]
# Names of the parameters whose changes may leave, as patterns. An update that holds any other is refused as a whole;
# the run must then freeze it (inner.frozen).
may-leave = ["*"]

[metrics]
# Names of the figures that may leave, as patterns; the others are left out: accuracy-before, accuracy-after,
# nll-before, nll-after, ece-before, ece-after, num-query, inner-steps, seconds. In a campaign also how the model in use
# (champion) and the new one (challenger) do on what the site holds back: num-held-back, num-unknown, and accuracy, nll,
# ece and unknown, each with -champion and -challenger. Without the first and both accuracies the site is no judge.
# num-examples always travels with an update, because the server cannot use an update without it.
may-leave = ["*"]

[classes]
# Whether names of classes, and how many inputs each has, may leave.
names = true
# Whether sums of embeddings by class may leave, so that other sites can recognise this site's classes.
tables = false
# The least number of inputs of a class for its sum to leave: the sum of one would be that one's embedding.
minimum = 5

[traffic]
# Bytes of content that may leave in a day (UTC). 0: no limit.
bytes-a-day = 0

[hours]
# When the site takes on work, in its local time, such as ["mon-fri 18:00-06:00", "sat-sun 00:00-24:00"].
# A span over midnight belongs to the day on which it begins. An empty list: always.
# Work begun in time is finished, and its answer leaves.
work = []

[limits]
# The most classes, inputs per class and steps of one piece of work. 0: as the run says. A campaign may choose
# inner.steps, inner.learning-rate and episode.shot other than agreed, up to these limits.
way = 0
shot = 0
steps = 0
"""


def write_default_policy(path: Path, fabs: Iterable[str]) -> None:
    """Write a policy file with every key explained, for some app bundles (SHA-256, hexadecimal).

    Raises:
        SettingsError: if the file is there already, or a bundle is not a SHA-256.
    """
    bundles = tuple(fabs)
    Policy(code=CodePolicy(bundles))
    if path.exists():
        raise SettingsError(f"{path} is there already and is the site's own; change it by hand, or move it away first")
    write_atomically(path, TEMPLATE.format(fabs=", ".join(f'"{fab}"' for fab in bundles)).encode())
