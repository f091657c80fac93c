"""A federation in one file: which data, dealt how to sites, which model and training, judged how.

The file holds the settings of a run (``common/settings.py``) and three sections that only simulations have.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from client.data.packed import INDEX
from common.errors import SettingsError, SourceError
from common.paths import sites_home
from common.settings import (
    Sections,
    Settings,
    Value,
    as_toml,
    flatten,
    parse_assignments,
    parse_toml,
    read_toml,
    setting,
)
from simulations.judging.evaluate import Protocol, parse_protocol
from simulations.partition import PartitionSettings, partition, write_partition
from simulations.sources.catalogue import CATALOGUE
from simulations.sources.download import Progress, quiet
from simulations.sources.pool import open_pool
from simulations.sources.prepare import prepare

FOLDER = files("simulations") / "federations"
READY = tuple(sorted(path.name.removesuffix(".toml") for path in FOLDER.iterdir() if path.name.endswith(".toml")))
"""Names of the federations that come with the project."""


@dataclass(frozen=True)
class SourceSettings:
    set: str = setting(
        "", "a data set of the catalogue ('fedreptile-sim data list'); empty: sites of your own (--data)"
    )


@dataclass(frozen=True)
class JudgingSettings:
    protocols: str = setting(
        "5-way 1-shot, 5-way 5-shot",
        "what the end result is judged by, commas between; 'pooled' mixes all sites' classes",
    )
    query: int = setting(5, "query inputs per class", least=1)
    episodes: int = setting(1000, "episodes of each protocol; 0 does not judge", least=0)
    alone: bool = setting(True, "also judge what each site reaches without a federation")
    alone_steps: int = setting(100, "inner steps of a new site alone, which has its support set only", least=1)


@dataclass(frozen=True)
class Description(Sections):
    """What only simulations have. Raises SettingsError for a protocol that is not 'N-way K-shot [pooled]'."""

    federation: SourceSettings = SourceSettings()
    sites: PartitionSettings = PartitionSettings()  # noqa: RUF009 - frozen
    judging: JudgingSettings = JudgingSettings()

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        names = [text.strip() for text in self.judging.protocols.split(",")]
        return tuple(parse_protocol(name, self.judging.query, self.judging.episodes) for name in names)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.protocols  # noqa: B018 - raises for what cannot be parsed


@dataclass(frozen=True)
class Federation:
    """A federation, read from a file."""

    name: str
    described: Description
    settings: Settings

    def with_values(self, values: dict[str, Value]) -> "Federation":
        """Return it with some values replaced, of whichever section."""
        own, others = _split(values)
        return replace(self, described=self.described.with_values(own), settings=self.settings.with_values(others))

    def as_toml(self) -> str:
        """Return it as a file, every setting with its meaning, but for paths of this machine."""
        return as_toml(self.described) + "\n" + as_toml(self.settings, PATHS)

    @property
    def dealing(self) -> dict[str, Value]:
        """What decides which site has what."""
        values = {**flatten(self.described), **flatten(self.settings)}
        return {key: value for key, value in values.items() if key.split(".")[0] in DEALING and key not in PATHS}


PATHS = ("run.dir", "data.sites")
DEALING = ("federation", "sites", "data")


@dataclass(frozen=True)
class Dealt:
    """Packed sites to train on, and those to judge on if the description holds any out or anything back."""

    train: Path
    judge: Path | None


def read_federation(source: str, assignments: Iterable[str] = ()) -> Federation:
    """Read a federation that comes with the project, by its name, or a TOML file, by its path; '' has the defaults.

    What the file does not say of ``[data]`` is as its data set is usually read.

    Raises:
        SettingsError: if there is none of that name, or a key or value is not valid.
    """
    if source in READY:
        values, name = parse_toml((FOLDER / f"{source}.toml").read_text(encoding="utf-8"), source), source
    elif source and not Path(source).is_file():
        raise SettingsError(f"there is no file {source}; give a TOML file, or one of {', '.join(READY)}")
    else:
        values, name = (read_toml(Path(source)), Path(source).stem) if source else ({}, "own")
    given = {**values, **parse_assignments(assignments)}
    chosen = CATALOGUE.get(str(given.get("federation.set", "")))
    empty = Federation(name, Description(), Settings().with_values({"run.checkpoint-seconds": 10.0}))
    return empty.with_values({**(chosen.data if chosen else {}), **given})


def deal(federation: Federation, mirror: Path | None = None, progress: Progress = quiet) -> Dealt:
    """Return the sites of a federation, made on first use: indexes into the data set's pool.

    Raises:
        SourceError: if the data set is unknown or cannot be had.
        SettingsError: if it cannot be dealt like that.
    """
    if not federation.described.federation.set:
        raise SettingsError("federation.set is empty; name a data set of the catalogue, or give sites with --data")
    pool_folder = prepare(federation.described.federation.set, federation.settings.data, mirror, progress)
    dealing, name = federation.dealing, federation.name
    if not (name in READY and dealing == read_federation(name).dealing):
        name += "-" + hashlib.sha256(json.dumps(dealing, sort_keys=True).encode()).hexdigest()[:8]
    folder = sites_home() / name
    if not _is_dealt(folder, dealing):
        pool = open_pool(pool_folder)
        shutil.rmtree(folder, ignore_errors=True)
        write_partition(
            folder, pool_folder, partition(pool.classes, pool.attributes, federation.described.sites), dealing
        )
        if not _is_dealt(folder, dealing):
            raise SourceError(f"{folder} holds another deal, which is in use; end that run, or remove the folder")
    judge = folder / "judge"
    return Dealt(folder / "train", judge if judge.exists() else None)


def _is_dealt(folder: Path, dealing: dict[str, Value]) -> bool:
    try:
        return bool(json.loads((folder / "train" / INDEX).read_text(encoding="utf-8"))["origin"] == dealing)
    except (OSError, ValueError, KeyError):
        return False


def _split(values: dict[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Divide values into those of sections that only simulations have, and those of a run."""
    own = {key: value for key, value in values.items() if key.split(".")[0] in vars(Description())}
    return own, {key: value for key, value in values.items() if key not in own}
