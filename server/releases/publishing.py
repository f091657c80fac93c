"""Releases made, put out, tried at some sites, given to all, and taken back. Torch-free: files come as bytes."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from common.errors import ReleaseError
from common.paths import write_atomically
from common.releases.pointer import POINTER, Pointer, card_of, delta_of, encode_pointer, file_of
from common.trust.folders import new_folder
from server.enrolment.registry import read_registry
from server.home import FederationHome
from server.releases.registry import PROMOTED, PUBLISHED, WITHDRAWN, About, Registry, Release, make_registry
from server.releases.repository import Repository, make_repository


@dataclass(frozen=True)
class Delta:
    """The difference from an earlier release, as a file."""

    base: int
    kind: str
    """int8 or bf16."""
    data: bytes


@dataclass(frozen=True)
class WayBack:
    """What becomes of the sites of a release that is withdrawn."""

    sites: tuple[str, ...]
    """Those that try it; none: all sites have it."""
    to: Release
    """The release whose content they are given."""


def open_registry(home: FederationHome) -> Registry:
    """Open the register of releases; use it in a ``with``. Raises ReleaseError if there is none."""
    return Registry(home.releases / "registry.db")


def make_releases(home: FederationHome, passphrase: str | None, now: datetime) -> None:
    """Make the folder of releases, whole or not at all: an empty register, keys and a repository.

    Raises:
        TrustError: if something is there already.
    """
    with new_folder(home.releases) as scratch:
        make_registry(scratch / "registry.db")
        make_repository(scratch, {POINTER: encode_pointer(Pointer())}, passphrase, now)


def publish(
    home: FederationHome,
    artefact: bytes,
    about: About,
    passphrase: str | None,
    now: datetime,
    delta: Delta | None = None,
) -> Release:
    """Enter a release and put its files into the repository. No site takes it before it is promoted.

    Args:
        artefact: its file; with a difference, what that leads to (common/releases/delta.py).

    Raises:
        ReleaseError: if its parent is none, or register or repository cannot be used.
        TrustError: if a key cannot be read.
    """
    repository, folder = Repository(home, passphrase), home.releases / "files"

    def keep(number: int) -> None:
        write_atomically(folder / f"{number}.safetensors", artefact, 0o644)
        if delta is not None:
            write_atomically(folder / delta_of(number, delta.base, delta.kind), delta.data, 0o644)

    with open_registry(home) as registry:
        release = registry.register(about, hashlib.sha256(artefact).hexdigest(), len(artefact), now, keep)
        put_out(home, registry, repository, now)
    return release


def put_out(home: FederationHome, registry: Registry, repository: Repository, now: datetime) -> None:
    """Put into the repository what the register has and it has not: one release, or what a crash left undone."""
    known = {one.number for one in registry.events() if one.what == PUBLISHED}
    for release in registry.all():
        if release.number not in known:
            repository.publish(dict(_files_of(home, release)), now)
            registry.note(release.number, PUBLISHED, {}, now)
    pointer = encode_pointer(registry.pointer())
    if repository.digest_of(POINTER) != hashlib.sha256(pointer).hexdigest():
        repository.publish({POINTER: pointer}, now)


def promote(home: FederationHome, number: int, sites: Iterable[str], passphrase: str | None, now: datetime) -> None:
    """Give a release to some sites to try, or to all.

    Args:
        sites: canaries, which are added to those that it has; none: all sites.

    Raises:
        ReleaseError: if it is withdrawn, or all sites have this one or a newer one.
        TrustError: if a site is not enrolled or a key cannot be read.
    """
    chosen, repository = sorted(set(sites)), Repository(home, passphrase)
    check_promotion(home, number, chosen)
    with open_registry(home) as registry:
        detail = {"stage": "canary", "sites": chosen} if chosen else {"stage": "all"}
        registry.note(number, PROMOTED, detail, now)
        put_out(home, registry, repository, now)


def check_promotion(home: FederationHome, number: int, sites: Sequence[str]) -> None:
    """Raises ReleaseError like ``promote``."""
    enrolled = read_registry(home.registry_file).sites
    if unknown := sorted(set(sites) - enrolled.keys()):
        raise ReleaseError(
            f"site {unknown[0]!r} is not enrolled; enrolled are: {', '.join(sorted(enrolled)) or 'none'}"
        )
    with open_registry(home) as registry:
        registry.get(number)
        if registry.state(number) == "withdrawn":
            raise ReleaseError(f"release {number} is withdrawn; publish its content again if it is good after all")
        if number < (newest := registry.pointer().all) or (number == newest and sites):
            raise ReleaseError(
                f"all sites are given release {newest}, and numbers never go down; to go back to the content of an "
                f"older one: 'fedreptile-server release withdraw {newest}'"
            )


def withdraw(
    home: FederationHome, number: int, reason: str, passphrase: str | None, now: datetime, to: int | None = None
) -> Release | None:
    """Take a release back: the sites that are given it get a new one, with a higher number and older content.

    Args:
        to: the release whose content they get; None: the nearest ancestor that is not withdrawn.

    Returns:
        the new release; None if no site is given the withdrawn one.

    Raises:
        ReleaseError: if there is no reason, it is withdrawn already, or there is nothing to go back to.
        TrustError: if a key cannot be read.
    """
    if not reason.strip() or not reason.isprintable():
        raise ReleaseError("the reason is empty or holds control characters; say in one line why it is withdrawn")
    repository, made = Repository(home, passphrase), None
    with open_registry(home) as registry:
        back = way_back(registry, number, to)
        if back is not None:
            made = publish(home, _content(home, back.to), _again(back.to, number, reason), passphrase, now)
            detail = {"stage": "canary", "sites": back.sites} if back.sites else {"stage": "all"}
            registry.note(made.number, PROMOTED, detail, now)
        registry.note(number, WITHDRAWN, {"reason": reason.strip(), "by": made.number if made else None}, now)
        put_out(home, registry, repository, now)
    return made


def way_back(registry: Registry, number: int, to: int | None = None) -> WayBack | None:
    """Return what withdrawing a release would give to sites; None if no site is given it. Raises like ``withdraw``."""
    registry.get(number)
    if registry.state(number) == "withdrawn":
        raise ReleaseError(f"release {number} is withdrawn already")
    pointer = registry.pointer()
    sites = pointer.canaries.get(number, ())
    return WayBack(sites, _older(registry, number, to)) if number == pointer.all or sites else None


def content(home: FederationHome, number: int) -> bytes:
    """Return the file of a release. Raises ReleaseError if there is none of that number, or it is not as it was."""
    with open_registry(home) as registry:
        return _content(home, registry.get(number))


def _content(home: FederationHome, release: Release) -> bytes:
    path = home.releases / "files" / f"{release.number}.safetensors"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReleaseError(f"{path} cannot be read: {error.strerror or error}; restore it from a backup") from error
    if hashlib.sha256(data).hexdigest() != release.digest:
        raise ReleaseError(f"{path} is not what was registered as release {release.number}; restore it from a backup")
    return data


def _files_of(home: FederationHome, release: Release) -> Iterable[tuple[str, bytes]]:
    yield file_of(release.number), _content(home, release)
    yield card_of(release.number), json.dumps(card(release), sort_keys=True).encode()
    for path in (home.releases / "files").glob(f"release-{release.number}-from-*.delta"):
        yield path.name, path.read_bytes()


def card(release: Release) -> Mapping[str, object]:
    """Return what every site reads about a release: no names of sites, and nothing of the gate but its card."""
    about = release.about
    return {
        "number": release.number,
        "parent": about.parent,
        "campaign": about.campaign,
        "sites": len(about.sites),
        "settings": about.settings_digest,
        "code": about.code,
        "fab": about.fab,
        "gated": bool(about.gate),
        "digest": release.digest,
        "size": release.size,
        "created": release.created,
        "card": dict(about.card),
    }


def _older(registry: Registry, number: int, to: int | None) -> Release:
    """Return the release to go back to."""
    if to is not None:
        found = registry.get(to)
        if to >= number or registry.state(to) == "withdrawn":
            raise ReleaseError(
                f"release {to} is no older one that is good; 'fedreptile-server release list' shows them"
            )
        return found
    parent = registry.get(number).about.parent
    while parent is not None:
        found = registry.get(parent)
        if registry.state(parent) != "withdrawn":
            return found
        parent = found.about.parent
    raise ReleaseError(f"release {number} has no parent to go back to; name an older release with --to, or publish one")


def _again(older: Release, number: int, reason: str) -> About:
    card = {
        **older.about.card,
        "again": f"the content of release {older.number}, since {number} is withdrawn: {reason}",
    }
    return replace(older.about, parent=older.number, card=card)
