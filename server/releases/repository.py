"""The repository from which sites take releases: plain files, signed by the rules of TUF. Torch-free.

Four keys sign it. The root's names the other three and is needed only to change them: its owner keeps it elsewhere.
That of the targets signs each release. Those of snapshot and timestamp say which targets are the newest; the server's
process renews their word, so that nobody can hold a site at an old one for longer than a day.

Files are written in an order in which every moment is a whole repository: what is pointed at first, the timestamp last.
"""

import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from securesystemslib.exceptions import StorageError
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import SerializationError

from common.deployment.lock import hold
from common.errors import ReleaseError, TrustError
from common.paths import write_atomically
from common.trust.keys import new_signing_key, private_pem, read_signing_key
from server.home import FederationHome

ROLES = ("root", "targets", "snapshot", "timestamp")
LIFE: Mapping[str, timedelta] = {
    "root": timedelta(days=365),
    "targets": timedelta(days=90),
    "snapshot": timedelta(days=14),
    "timestamp": timedelta(days=1),
}
"""Time for which each role's word is good."""
WARN: Mapping[str, timedelta] = {"root": timedelta(days=30), "targets": timedelta(days=14)}
"""Time before its end from which a role that nobody renews by itself is warned of."""
PATIENCE = 30.0
"""Seconds that a change waits for another one."""
KEPT_SECONDS = 86400.0
"""Time for which files stay that nothing points at any more, for sites in the middle of a download."""
ROOT_FILE = re.compile(r"([0-9]{1,9})\.root\.json")

Role = TypeVar("Role", Root, Targets, Snapshot, Timestamp)


class Repository:
    """The repository of a federation.

    Args:
        passphrase: of the keys, if they are encrypted.
        root_key: where the root's key lies, if not beside the others.
    """

    def __init__(self, home: FederationHome, passphrase: str | None = None, root_key: Path | None = None) -> None:
        """Raises ReleaseError if the federation has none."""
        self._folder, self._keys = home.repository, home.releases / "keys"
        self._passphrase, self._root_key = passphrase, root_key or self._keys / "root.key"
        self._lock = home.releases / ".lock"
        if not self._folder.is_dir():
            raise ReleaseError(f"{self._folder} is not there; make it with 'fedreptile-server release init'")

    def publish(self, files: Mapping[str, bytes], now: datetime) -> None:
        """Put files beside those that are there, or in their place, and sign that.

        Raises:
            ReleaseError: if the repository is damaged or in use.
            TrustError: if a key cannot be read.
            WritingError: if a file cannot be written; sites then still see what was there.
        """
        with self._alone():
            targets, signer = self._newest("targets", Targets), self._signer("targets")
            for name, data in files.items():
                info = TargetFile.from_data(name, data, ["sha256"])
                write_atomically(self._folder / "targets" / f"{info.hashes['sha256']}.{name}", data, 0o644)
                targets.signed.targets[name] = info
            self._point(targets, {"targets": [signer]}, now)
            self._tidy(targets.signed)

    def renew(self, now: datetime, roles: Collection[str] = ("snapshot", "timestamp")) -> list[str]:
        """Renew the word of those of some roles of which half of its time is over; return which were."""
        with self._alone():
            due = [role for role in roles if self.ends(role) - now < LIFE[role] / 2]
            if due:
                changed = self._newest("targets", Targets) if "targets" in due else None
                self._point(changed, {}, now, anew="snapshot" in due)
        return due

    def renew_root(self, now: datetime) -> None:
        """Renew the root's own word. Raises TrustError if the root's key is not there."""
        with self._alone():
            self._write_root(self._root(), [self._signer("root")], now)

    def rotate(self, role: str, now: datetime) -> None:
        """Replace a role's key by a new one; sites follow by themselves.

        What the role says is signed by both keys before the root names the new one, so that no site ever sees it
        unsigned. A key that is lost can be replaced too, unless it is the root's.

        Raises:
            ReleaseError: if there is no such role.
            TrustError: if a key, which always includes the root's, cannot be read.
        """
        if role not in ROLES:
            raise ReleaseError(f"there is no role {role!r}; choose one of {', '.join(ROLES)}")
        with self._alone():
            root_signer, root, path = self._signer("root"), self._root(), self._path(role)
            old, key = self._old_signers(role), new_signing_key()
            waiting, new = path.with_name(f"{path.name}.new"), CryptoSigner(key)
            write_atomically(waiting, private_pem(key, self._passphrase), 0o600)
            if old and role != "root":
                self._say_again(role, [*old, new], now)
            for keyid in list(root.signed.roles[role].keyids):
                root.signed.revoke_key(keyid, role)
            root.signed.add_key(new.public_key, role)
            self._write_root(root, [root_signer, new] if role == "root" else [root_signer], now)
            if not old:
                self._say_again(role, [new], now)
            waiting.replace(path)

    def _old_signers(self, role: str) -> list[CryptoSigner]:
        try:
            return [self._signer(role)]
        except TrustError:
            if role == "root":
                raise
            return []

    def _say_again(self, role: str, signers: list[CryptoSigner], now: datetime) -> None:
        targets = self._newest("targets", Targets) if role == "targets" else None
        self._point(targets, {role: signers}, now, anew=role == "snapshot")

    def root_text(self) -> str:
        """Return the newest root's file, which a kit brings to a site."""
        return self._read(self._newest_root()).decode()

    def ends(self, role: str) -> datetime:
        """Return until when a role's word is good, UTC."""
        if role == "root":
            return self._root().signed.expires
        if role == "targets":
            return self._newest("targets", Targets).signed.expires
        if role == "snapshot":
            return self._newest("snapshot", Snapshot).signed.expires
        return self._timestamp().signed.expires

    def warnings(self, now: datetime) -> list[str]:
        """Return in words which roles end soon that only a person renews."""
        found = []
        for role, early in WARN.items():
            if (end := self.ends(role)) - now < early:
                found.append(f"the {role} of the releases' repository ends at {end:%Y-%m-%d %H:%M} UTC; renew it")
        return found

    @property
    def has_root_key(self) -> bool:
        return self._root_key.exists()

    def digest_of(self, name: str) -> str:
        """Return the SHA-256 of a file that sites can take; empty if there is none of that name."""
        info = self._newest("targets", Targets).signed.targets.get(name)
        return str(info.hashes["sha256"]) if info else ""

    def names(self) -> list[str]:
        """Return the names of all files that sites can take."""
        return sorted(self._newest("targets", Targets).signed.targets)

    def _point(
        self,
        targets: Metadata[Targets] | None,
        signers: Mapping[str, list[CryptoSigner]],
        now: datetime,
        anew: bool = False,
    ) -> None:
        """Write changed targets if there are any, then a snapshot of them or of the old ones, then the timestamp.

        Args:
            signers: who signs, where it is not the role's own key alone.
            anew: write a snapshot though no targets have changed.
        """
        timestamp = self._timestamp()
        if targets is not None or anew:
            snapshot = self._newest("snapshot", Snapshot)
            if targets is not None:
                data = self._signed(targets, "targets", signers, now)
                self._write(f"{targets.signed.version}.targets.json", data)
                snapshot.signed.meta["targets.json"] = MetaFile.from_data(targets.signed.version, data, ["sha256"])
            data = self._signed(snapshot, "snapshot", signers, now)
            self._write(f"{snapshot.signed.version}.snapshot.json", data)
            timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, data, ["sha256"])
        self._write("timestamp.json", self._signed(timestamp, "timestamp", signers, now))

    def _signed(
        self, metadata: Metadata[Role], role: str, signers: Mapping[str, list[CryptoSigner]], now: datetime
    ) -> bytes:
        metadata.signed.version += 1
        return sign(metadata, signers.get(role) or [self._signer(role)], now + LIFE[role])

    def _write_root(self, root: Metadata[Root], signers: list[CryptoSigner], now: datetime) -> None:
        root.signed.version += 1
        self._write(f"{root.signed.version}.root.json", sign(root, signers, now + LIFE["root"]))

    def _write(self, name: str, data: bytes) -> None:
        write_atomically(self._folder / "metadata" / name, data, 0o644)

    def _path(self, role: str) -> Path:
        return self._root_key if role == "root" else self._keys / f"{role}.key"

    def _signer(self, role: str) -> CryptoSigner:
        """Return what signs for a role. Raises TrustError unless its key is the one that the root names."""
        path, wanted = self._path(role), self._root().signed.roles[role].keyids
        waiting = path.with_name(f"{path.name}.new")
        # A rotation that was cut off after the root was written has left the new key beside the old one.
        for one in (path, waiting) if waiting.exists() else (path,):
            if role == "root" and not one.exists():
                raise TrustError(
                    f"the root's key {one} is not there; bring it from where it is kept, or give --root-key"
                )
            signer = CryptoSigner(read_signing_key(one, self._passphrase))
            if signer.public_key.keyid in wanted:
                return signer
        raise TrustError(f"{path} is not the key of the releases' {role}; restore it from a backup")

    def _root(self) -> Metadata[Root]:
        return self._parsed(self._newest_root(), Root)

    def _newest_root(self) -> Path:
        found = {
            int(match[1]): path
            for path in (self._folder / "metadata").glob("*.root.json")
            if (match := ROOT_FILE.fullmatch(path.name))
        }
        if not found:
            raise ReleaseError(f"{self._folder / 'metadata'} holds no root; restore it from a backup")
        return found[max(found)]

    def _timestamp(self) -> Metadata[Timestamp]:
        return self._parsed(self._folder / "metadata" / "timestamp.json", Timestamp)

    def _newest(self, role: str, kind: type[Role]) -> Metadata[Role]:
        """Return the targets or snapshot that the timestamp leads to; later ones are of a change that was cut off."""
        folder, version = self._folder / "metadata", self._timestamp().signed.snapshot_meta.version
        if role == "targets":
            snapshot = self._parsed(folder / f"{version}.snapshot.json", Snapshot)
            version = snapshot.signed.meta["targets.json"].version
        return self._parsed(folder / f"{version}.{role}.json", kind)

    def _parsed(self, path: Path, kind: type[Role]) -> Metadata[Role]:
        try:
            found: Metadata[Role] = Metadata.from_bytes(self._read(path))
        except (RepositoryError, StorageError, SerializationError) as error:
            raise ReleaseError(f"{path} cannot be read: {error}; restore it from a backup") from error
        if not isinstance(found.signed, kind):
            raise ReleaseError(f"{path} is a {found.signed.type}; restore it from a backup")
        return found

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ReleaseError(f"{path} cannot be read: {error.strerror or error}; restore it from a backup") from error

    def _tidy(self, targets: Targets) -> None:
        """Remove files that nothing has pointed at for a day."""
        known = {f"{info.hashes['sha256']}.{name}" for name, info in targets.targets.items()}
        known |= {f"{self._timestamp().signed.snapshot_meta.version}.snapshot.json", f"{targets.version}.targets.json"}
        for path in (*(self._folder / "targets").iterdir(), *(self._folder / "metadata").glob("*.[st]*.json")):
            if path.name not in known and path.stat().st_mtime < time.time() - KEPT_SECONDS:
                path.unlink()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            file = hold(self._lock, PATIENCE)
        except OSError as error:
            raise ReleaseError(f"{self._lock} cannot be made: {error.strerror or error}") from error
        if file is None:
            raise ReleaseError(f"another process has held {self._lock} for {PATIENCE:.0f} s; wait for it, or end it")
        with file:
            yield


def sign(metadata: Metadata[Role], signers: list[CryptoSigner], expires: datetime) -> bytes:
    """Return the file of metadata, signed by some keys and by no others."""
    metadata.signed.expires = expires.replace(microsecond=0)
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def make_repository(folder: Path, files: Mapping[str, bytes], passphrase: str | None, now: datetime) -> None:
    """Make keys and a repository of some files in a new folder of releases.

    Raises:
        WritingError: if a file cannot be written.
    """
    signers: dict[str, CryptoSigner] = {}
    for role in ROLES:
        key = new_signing_key()
        signers[role] = CryptoSigner(key)
        write_atomically(folder / "keys" / f"{role}.key", private_pem(key, passphrase), 0o600)
    root = Metadata(Root(consistent_snapshot=True))
    for role, signer in signers.items():
        root.signed.add_key(signer.public_key, role)
    metadata = folder / "repository" / "metadata"
    write_atomically(metadata / "1.root.json", sign(root, [signers["root"]], now + LIFE["root"]), 0o644)
    targets = Metadata(Targets())
    for name, data in files.items():
        info = targets.signed.targets[name] = TargetFile.from_data(name, data, ["sha256"])
        write_atomically(folder / "repository" / "targets" / f"{info.hashes['sha256']}.{name}", data, 0o644)
    data = sign(targets, [signers["targets"]], now + LIFE["targets"])
    write_atomically(metadata / "1.targets.json", data, 0o644)
    snapshot = Metadata(Snapshot(meta={"targets.json": MetaFile.from_data(1, data, ["sha256"])}))
    data = sign(snapshot, [signers["snapshot"]], now + LIFE["snapshot"])
    write_atomically(metadata / "1.snapshot.json", data, 0o644)
    timestamp = Metadata(Timestamp(snapshot_meta=MetaFile.from_data(1, data, ["sha256"])))
    write_atomically(
        metadata / "timestamp.json", sign(timestamp, [signers["timestamp"]], now + LIFE["timestamp"]), 0o644
    )


def renew(home: FederationHome, now: datetime, passphrase: str | None) -> list[str]:
    """Do what the server's process does for the repository, if there is one: renew what it can.

    Returns:
        warnings about what only a person can renew.
    """
    if not home.repository.is_dir():
        return []
    repository = Repository(home, passphrase)
    repository.renew(now)
    return repository.warnings(now)
