"""The models that a site has used, and which of them is in use. Torch is imported only where a model is added.

    000007/model.safetensors   one model, with what it says of itself in about.json
    bases/DIGEST.safetensors   the shared params that models were adapted from, to adapt from them once more
    current                    the number of the model in use; replaced in one step
    history.jsonl              a line for all that happened, never changed
    standing.json              for the site's introduction: {"release": N, "refused": N, "wishes": {class: samples}}

A process that is killed at any moment leaves the old or the new model in use, never none.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.home import SiteHome
from common.deployment.lock import hold
from common.errors import CheckpointError, WritingError
from common.paths import read_table, write_atomically

if TYPE_CHECKING:
    from client.model import SiteModel

MODEL, ABOUT, BASES = "model.safetensors", "about.json", "bases"
NUMBER = re.compile(r"[0-9]{6}")
PATIENCE = 60.0
"""Seconds to wait for another process that changes the store."""


@dataclass(frozen=True)
class About:
    """How a model was made."""

    made: str
    """'release N' or 'adapted'."""
    release: int = 0
    """The release that it comes from; 0: none."""
    model: int = 0
    """The model that was in use when it was made; 0: none."""
    base: str = ""
    """SHA-256 of the shared params that it was adapted from, in hexadecimal; empty: they are not kept."""
    when: str = ""
    """ISO 8601, UTC."""
    classes: tuple[str, ...] = ()
    judgement: Mapping[str, Any] = field(default_factory=dict)
    """Its figures on the site's held-back samples."""
    digest: str = ""
    """SHA-256 of its file, in hexadecimal."""


@dataclass(frozen=True)
class Entry:
    """A model that is kept."""

    number: int
    folder: Path
    about: About

    @property
    def path(self) -> Path:
        return self.folder / MODEL


@dataclass(frozen=True)
class Standing:
    """What the site tells of its models when it introduces itself."""

    release: int = 0
    """The release that it runs; 0: none."""
    refused: int = 0
    """The last release that its own check refused; 0: none."""
    wishes: Mapping[str, int] = field(default_factory=dict)
    """Classes for which it asks a campaign, with the number of their samples."""


class Store:
    """The models in a folder. Several processes may use it at once: those that change it wait for each other.

    Args:
        budget: bytes that it may take. The model in use, the one before it and the newest are kept in any case.
    """

    def __init__(self, folder: Path, budget: int, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.folder, self._budget, self._clock = folder, budget, clock

    # ---------------------------------------------------------------------------------------------- reading

    def current(self) -> Entry | None:
        """Return the model in use; None before there was one.

        Raises:
            CheckpointError: if what says so, or the model, is damaged.
        """
        number = self._current()
        return self.entry(number) if number else None

    def entry(self, number: int) -> Entry:
        """Return a kept model. Raises CheckpointError if there is none of that number."""
        folder = self.folder / f"{number:06d}"
        found = read_table(folder / ABOUT)
        if not found:
            kept = ", ".join(str(one) for one in self._numbers()) or "none"
            raise CheckpointError(f"model {number} is not kept in {self.folder}; kept are: {kept}")
        try:
            about = About(**{**found, "classes": tuple(found["classes"])})
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"{folder / ABOUT} is damaged: {error}; go back to another model") from error
        return Entry(number, folder, about)

    def entries(self) -> list[Entry]:
        """Return the models that are kept, the oldest first."""
        return [self.entry(number) for number in self._numbers()]

    def previous(self) -> Entry | None:
        """Return the model that going back leads to; None if none is kept."""
        return next((self.entry(number) for number in reversed(self._before()) if number in self._numbers()), None)

    def candidate(self) -> Entry | None:
        """Return the model that waits for a decision: the newest that was made here, if it was made beside the model in
        use and was itself never in use. None if there is none."""
        made = [entry for entry in self.entries() if entry.about.made == "adapted"][-1:]
        used = {event["number"] for event in self.history() if event["what"] in ("used", "went back")}
        return next((one for one in made if one.number not in used and one.about.model == self._current()), None)

    def history(self) -> list[dict[str, Any]]:
        """Return what happened, the oldest first: 'what', 'when', 'number', 'from', 'why'. A torn line is left out."""
        try:
            lines = (self.folder / "history.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.folder / 'history.jsonl'} cannot be read: {error.strerror}") from error
        found = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("number"), int) and isinstance(event.get("what"), str):
                found.append(event)
        return found

    def standing(self) -> Standing:
        found = read_table(self.folder / "standing.json")
        wishes = found.get("wishes")
        counted = {str(k): int(v) for k, v in wishes.items()} if isinstance(wishes, dict) else {}
        return Standing(int(found.get("release", 0)), int(found.get("refused", 0)), counted)

    def base(self, entry: Entry) -> Path | None:
        """Return the file of the shared params that a model was adapted from; None if it is not kept."""
        path = self._base(entry.about.base)
        return path if entry.about.base and path.exists() else None

    # --------------------------------------------------------------------------------------------- changing

    def add(self, model: "SiteModel", about: About, base: bytes = b"") -> Entry:
        """Keep a model, which is not in use yet; the oldest others go if they take too much disk.

        Args:
            base: the file of the shared params that it was adapted from.

        Raises:
            CheckpointError: if what was written cannot be read as a model.
            WritingError: if it cannot be written, or another process keeps the store for a minute.
        """
        from client.model import read_model

        with self._changing():
            number = 1 + max([0, *self._numbers(), *(event["number"] for event in self.history())])
            data = model.encoded()
            found = replace(
                about,
                when=self._now(),
                classes=model.classes,
                digest=hashlib.sha256(data).hexdigest(),
                base=self._keep_base(base) if base else "",
            )
            scratch = self.folder / f".{number:06d}.new"
            write_atomically(scratch / MODEL, data, 0o600)
            write_atomically(scratch / ABOUT, json.dumps(asdict(found), indent=1).encode(), 0o600)
            _check_digest(scratch / MODEL, found.digest)
            read_model(scratch / MODEL)
            self._rename(scratch, self.folder / f"{number:06d}")
            self._note("added", number, found.made)
            self._prune(number)
            return self.entry(number)

    def use(self, number: int, why: str = "") -> Entry:
        """Bring a kept model into use, in one step.

        Raises:
            CheckpointError: if it is not kept or its file is damaged; then nothing changes.
            WritingError: if that cannot be written.
        """
        with self._changing():
            return self._switch(number, "used", why)

    def rollback(self, to: int = 0, why: str = "") -> Entry:
        """Go back to a kept model: the one that was in use before the present one, or the one that is named.

        Raises:
            CheckpointError: if there is none to go back to, or it is not kept or damaged; then nothing changes.
            WritingError: if that cannot be written.
        """
        with self._changing():
            before = self.previous()
            if not to and before is None:
                raise CheckpointError(f"no earlier model is kept in {self.folder}; there is none to go back to")
            return self._switch(to or (before.number if before else 0), "went back", why)

    def discard(self, number: int, why: str = "") -> None:
        """Remove a model that is not in use. Raises CheckpointError if it is in use or not kept."""
        with self._changing():
            if number == self._current():
                raise CheckpointError(f"model {number} is in use; go back to another one before it is discarded")
            self.entry(number)
            self._note("discarded", number, why)
            self._remove(number)

    def wish(self, name: str, count: int) -> None:
        """Note that the site asks a campaign for a class of which it has so many samples."""
        with self._changing():
            found = self.standing()
            self._stand(replace(found, wishes={**found.wishes, name: count}))
            self._note("asked for a campaign", self._current(), name)

    def unwish(self, name: str) -> None:
        """Take such a wish back, as when a release has the class."""
        with self._changing():
            found = self.standing()
            self._stand(replace(found, wishes={k: v for k, v in found.wishes.items() if k != name}))

    def refuse(self, release: int, why: str) -> None:
        """Note that the site's own check refused a release."""
        with self._changing():
            self._stand(replace(self.standing(), refused=release))
            self._note("refused", self._current(), f"release {release}: {why}")

    # ----------------------------------------------------------------------------------------------- inside

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = hold(self.folder / ".lock", PATIENCE)
        except OSError as error:
            raise WritingError(f"{self.folder} cannot be written: {error.strerror or error}") from error
        if lock is None:
            raise WritingError(f"{self.folder} is being changed by another process; try again when it has ended")
        with lock:
            self._repair()
            yield

    def _repair(self) -> None:
        """Put in order what a process left that was killed."""
        for path in self.folder.glob(".*.new"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".*.old"):
            shutil.rmtree(path, ignore_errors=True)
        number, uses = self._current(), self._uses()
        if number and (not uses or uses[-1] != number):
            self._note("used", number, "found so after an interruption")
        with suppress(CheckpointError):  # of one that was removed by hand nothing is known
            if number and self.standing().release != (release := self.entry(number).about.release):
                self._stand(replace(self.standing(), release=release))

    def _switch(self, number: int, what: str, why: str) -> Entry:
        found, before = self.entry(number), self._current()
        _check_digest(found.path, found.about.digest)
        write_atomically(self.folder / "current", f"{number}\n".encode(), 0o600)
        self._note(what, number, why, before)
        self._stand(replace(self.standing(), release=found.about.release))
        return found

    def _current(self) -> int:
        path = self.folder / "current"
        try:
            return int(path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}; write the number of a kept model into it") from error

    def _numbers(self) -> list[int]:
        try:
            return sorted(int(path.name) for path in self.folder.iterdir() if NUMBER.fullmatch(path.name))
        except FileNotFoundError:
            return []

    def _uses(self) -> list[int]:
        """Return the models that lead to the present one; going back takes off what came after its goal."""
        found: list[int] = []
        for event in self.history():
            if event["what"] == "went back" and event["number"] in found:
                del found[found.index(event["number"]) + 1 :]
            elif event["what"] in ("used", "went back"):
                found = [number for number in found if number != event["number"]] + [event["number"]]
        return found

    def _before(self) -> list[int]:
        return [number for number in self._uses() if number != self._current()]

    def _note(self, what: str, number: int, why: str, before: int = 0) -> None:
        event = {"what": what, "when": self._now(), "number": number, "from": before, "why": why}
        path = self.folder / "history.jsonl"
        try:
            with open(path, "ab+", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                if file.tell() and not _ends_in_newline(path):
                    file.write(b"\n")  # after a line that was torn
                file.write(json.dumps(event).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise WritingError(f"{path} cannot be written: {error.strerror or error}") from error

    def _stand(self, standing: Standing) -> None:
        write_atomically(self.folder / "standing.json", json.dumps(asdict(standing)).encode(), 0o600)

    def _base(self, digest: str) -> Path:
        return self.folder / BASES / f"{digest}.safetensors"

    def _keep_base(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if not self._base(digest).exists():
            write_atomically(self._base(digest), data, 0o600)
        return digest

    def _prune(self, newest: int) -> None:
        """Remove the oldest models while all take more than the budget, and bases that no model comes from."""
        before = self.previous()
        kept = {newest, self._current(), before.number if before else 0}
        for number in [one for one in self._numbers() if one not in kept]:
            if self._bytes() <= self._budget:
                break
            self._note("removed", number, "to stay within the disk that models may take")
            self._remove(number)

    def _remove(self, number: int) -> None:
        away = self.folder / f".{number:06d}.old"
        self._rename(self.folder / f"{number:06d}", away)
        shutil.rmtree(away, ignore_errors=True)
        used = {entry.about.base for entry in self.entries()}
        for path in (self.folder / BASES).glob("*.safetensors"):
            if path.stem not in used:
                path.unlink(missing_ok=True)

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def _rename(self, path: Path, to: Path) -> None:
        try:
            path.replace(to)
        except OSError as error:
            raise WritingError(f"{to} cannot be written: {error.strerror or error}") from error

    def _now(self) -> str:
        return self._clock().isoformat(timespec="seconds")


def store_of(home: SiteHome) -> Store:
    """Return the store of a site. Raises SettingsError if ``site.toml`` cannot be used."""
    return Store(home.models, home.config().models_megabytes * 1_000_000)


def is_new(store: Store, number: int) -> bool:
    """Return whether a release is newer than all that the site has taken up or refused, also if it went back since."""
    had = [entry.about.release for entry in store.entries()]
    return number > max([0, store.standing().refused, *had])


def _check_digest(path: Path, digest: str) -> None:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; go back to another model") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{path} is damaged: its digest is not the one that was noted; go back to another model")


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
