"""The worker: answers messages from a site's data, under the site's own policy and what was agreed on joining."""

import logging
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, RecordDict

from client.door.ledger import Clock, Ledger, now
from client.door.outbound import Asked, Door
from client.door.policy import read_policy
from client.home import SiteHome
from client.settings import SiteSettings, settings_of
from client.site import Site
from client.worker.outbox import Outbox
from client.worker.wire import Header
from client.worker.work import layout_of, work
from common import VERSION, release
from common.errors import (
    FedreptileError,
    PolicyRefusal,
    RequestError,
    SealError,
    SettingsError,
    TrustError,
    UpdateError,
    VersionError,
)
from common.messages import Agreement, Introduction
from common.paths import read_table
from common.plan import plan_for
from common.settings import Settings, flatten
from common.trust.keys import passphrase_from_environment, read_private_key
from common.trust.kit import Kit, read_kit
from common.trust.seals import Facts, opened

log = logging.getLogger("fedreptile.worker")

OF_THE_RUN = ("run.", "outer.", "judge.every", "judge.held-out", "data.sites", "model.initial", "campaign.", "gate.")
"""Settings that a run may choose without a new agreement, by how they begin: what only the server does. All others say
what a site computes, and must be as in the kit. Of these a site uses the seed and the campaign's class alone."""
STANDING = "standing.json"
"""In the folder of the site's models: which release is in use."""
OF_A_CAMPAIGN = ("inner.steps", "inner.learning-rate", "episode.shot")
"""What a run may choose too if it is a campaign; the limits of the site's policy hold for it."""


@dataclass
class Doing:
    """What the worker is at, and what it has done since it was started."""

    now: str = ""
    """Kind and round; empty: nothing."""
    run: str = ""
    """The last run that was answered."""
    round: int = 0
    answers: int = 0
    again: int = 0
    """Answers that were handed out once more."""


@dataclass(frozen=True)
class Terms:
    """What the site has agreed to."""

    kit: Kit
    settings: Settings
    sizes: Agreement


class Worker:
    """One site at work. ``answer`` does one message at a time; all else may be called meanwhile."""

    def __init__(self, home: SiteHome, clock: Clock = now) -> None:
        """Read what the site is and what was agreed, and open the ledger.

        Raises:
            SettingsError, TrustError or LedgerError: if any of it is missing or cannot be used.
        """
        self.home, self.clock = home, clock
        config = home.config()
        self._working = threading.RLock()  # torch's random numbers are the process's: one thread may draw at a time
        self._kit_seen = kit_stamp(home.kit_file)
        self._terms = read_terms(home, config.name, config.device)
        key = read_private_key(home.signing_key, passphrase_from_environment())
        if not isinstance(key, Ed25519PrivateKey):
            raise TrustError(f"{home.signing_key} is not an Ed25519 key; it must be the site's signing key")
        policy = read_policy(home.policy_file)
        self._own = SiteSettings(config.name, config.data, config.device, config.threads, config.cache, policy=policy)
        self.outbox = Outbox(home.outbox)
        self.refused, self.doing = Counter[str](), Doing()
        ledger = Ledger(home.ledger, config.ledger_megabytes * 1_000_000, clock)
        self.door = Door(self._own, ledger, key, clock)
        self._site: Site | None = None
        self._seen = ""

    @property
    def kit(self) -> Kit:
        return self._terms.kit

    @property
    def agreed(self) -> Settings:
        return self._terms.settings

    @property
    def sizes(self) -> Agreement:
        return self._terms.sizes

    def look_at_kit(self) -> None:
        """Go by a new kit if there is one, unless a message is at work; it looks itself.

        A kit that cannot be used is logged and counted, and the one before stays in use.
        """
        if not self._working.acquire(blocking=False):
            return
        try:
            now = kit_stamp(self.home.kit_file)
            if now != self._kit_seen:
                self._kit_seen = now
                self._terms = read_terms(self.home, self._own.name, self._own.device)
                log.info("the kit of %s is in use", self.kit.issued)
        except FedreptileError as error:
            self.refused["kit"] += 1
            log.error("the kit before stays in use: %s", error)
        finally:
            self._working.release()

    def close(self) -> None:
        if self.door.ledger is not None:
            self.door.ledger.close()

    def warm(self) -> None:
        """Read the data beforehand, so that the first message need not wait for it; what is wrong is only logged."""
        try:
            with self._working:
                _ = self._site_for(self.agreed).data
        except Exception as error:
            log.error("the site's data cannot be used yet", exc_info=error)

    def answer(self, header: Header, content: RecordDict) -> RecordDict | Error:
        """Answer a message, by the site's own policy and kit as they are at this moment; so too any error."""
        with self._working:
            return self._answer(header, content)

    def _answer(self, header: Header, content: RecordDict) -> RecordDict | Error:
        asked = Asked(str(header.get("type")), begun=self.clock())
        self.doing.now = asked.kind
        try:
            self.look_at_kit()
            self.door = replace(self.door, site=self._policed())
            if release(str(header.get("version"))) != release(VERSION):
                raise VersionError(str(header.get("version")), VERSION)
            seal = opened(content, self.kit.server_key, Facts("", 0, asked.kind))
            if not seal.facts.run:
                raise SealError("unsigned", "it names no run")
            facts = seal.facts
            asked = replace(asked, run=facts.run, round=facts.round, base=seal.digest)
            self.doing.now = f"{asked.kind} of round {asked.round}"
            kept = self._kept(asked)
            return self._made(asked, facts.issued, seal.content, header) if kept is None else kept
        except Exception as error:
            self.refused[cause_of(error)] += 1
            log.error("could not answer %s of round %d", asked.kind, asked.round, exc_info=error)
            return self.door.leave_error(error, asked)
        finally:
            self.doing.now = ""

    def _kept(self, asked: Asked) -> RecordDict | None:
        """Hand out once more what has left for the same request under the same policy."""
        answer = self.outbox.find(asked, self.door.policy.digest)
        if answer is None:
            return None
        self.doing.again += 1
        return self.door.leave_again(answer, asked)

    def _made(self, asked: Asked, issued: int, content: RecordDict, header: Header) -> RecordDict:
        settings = self.effective(header.get("config"))
        kept = asked.kind != "query"  # an introduction is of no round and is made anew each time
        if kept:
            self.outbox.check_progress(asked, issued)
        self.door.admit(asked)
        site = self._site_for(settings)
        found, number = work(site, asked.kind, content)
        if isinstance(found, Introduction):
            found = with_standing(found, self.home.models / STANDING, names=self.door.policy.classes.names)
        if kept and number != asked.round:
            raise SealError("replayed", f"it was signed for round {asked.round}; the request says {number}")
        answer = self.door.leave(found, replace(asked, layout=layout_of(site)))
        if kept:
            self.outbox.keep(asked, self.door.policy.digest, answer)
        self.doing.run, self.doing.round = asked.run, asked.round
        self.doing.answers += 1
        return answer

    def status(self) -> dict[str, Any]:
        """Return what people at the site may know of it; classes and counts only if they may leave, since the process
        that talks to the server can ask too."""
        site, policy = self._site, self.door.policy
        data = site.__dict__.get("data") if site is not None else None
        classes = {name: data.count(name) for name in data.classes()} if data and policy.classes.names else {}
        return {
            "site": self._own.name,
            "federation": self.kit.federation,
            "device": self._own.device,
            "version": VERSION,
            "torch": torch.__version__,
            "process": os.getpid(),
            "memory": memory(),
            "device-memory": torch.cuda.memory_allocated(self._own.device) if "cuda" in self._own.device else 0,
            "data-read": data is not None,
            "classes": classes,
            "doing": self.doing.now or "waiting",
            "run": self.doing.run,
            "round": self.doing.round,
            "answers": self.doing.answers,
            "again": self.doing.again,
            "refused": dict(self.refused),
            "policy": policy.digest,
        }

    def effective(self, config: Any) -> Settings:
        """Return the agreed settings with the seed of a run.

        Raises:
            SettingsError: if the run differs from what was agreed in anything that a site computes; it names the key.
        """
        return effective_settings(self.agreed, config)

    def _policed(self) -> SiteSettings:
        self._own = replace(self._own, policy=read_policy(self.home.policy_file))
        return self._own

    def _site_for(self, settings: Settings) -> Site:
        """Return the site under some settings and the present policy; its data are read again if they changed."""
        before, seen = self._site, fingerprint(Path(self._own.data))
        if before is not None and (before.site, before.settings) == (self._own, settings) and seen == self._seen:
            return before
        site = Site(self._own, settings)
        same = before is not None and seen == self._seen and before.settings.data == settings.data
        if before is not None and same and "data" in before.__dict__:
            site.parts, site.data = before.parts, before.data
        self._site, self._seen = site, seen
        return site


def read_terms(home: SiteHome, name: str, device: str) -> Terms:
    """Read a site's kit.

    Raises:
        TrustError: if it is missing, damaged or another site's.
        SettingsError: if this version does not know the settings in it.
    """
    kit = read_kit(home.kit_file)
    if kit.site != name:
        raise TrustError(f"{home.kit_file} is for site {kit.site!r}; {home.config_file} says {name!r}")
    settings = settings_of(kit)
    return Terms(kit, settings, plan_for(settings, device).agreed)


def kit_stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when another file takes a kit's place; empty if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino


def effective_settings(agreed: Settings, config: Any) -> Settings:
    """Return the agreed settings with what a run's flat settings may choose. Raises SettingsError like ``Worker``."""
    if not isinstance(config, dict):
        raise RequestError("the run's settings are not a table")
    wanted = flatten(agreed.with_values(config))
    used = ("run.seed", "campaign.class", *(OF_A_CAMPAIGN if wanted["campaign.class"] else ()))
    for key, value in flatten(agreed).items():
        if wanted[key] != value and not key.startswith(OF_THE_RUN) and key not in used:
            raise SettingsError(
                f"the run's {key} is {wanted[key]!r} and {value!r} was agreed; a run that computes something else "
                "needs a new kit"
            )
    return agreed.with_values({key: wanted[key] for key in used})


def with_standing(introduction: Introduction, file: Path, *, names: bool) -> Introduction:
    """Return an introduction that also says which release the site's model comes from and which one its check refused;
    if names of classes may leave, also for which classes the site asks a campaign. A file of nonsense says nothing.
    """
    found = read_table(file)
    numbers = {key: found.get(key, 0) for key in ("release", "refused")}
    wishes = found.get("wishes", {})
    if not isinstance(wishes, dict) or any(
        type(number) is not int or number < 0 for number in (*numbers.values(), *wishes.values())
    ):
        log.error("%s does not say which release the site runs; it is left out", file)
        return introduction
    return replace(introduction, **numbers, wishes=wishes if names else {})


def fingerprint(path: Path) -> str:
    """Return what changes when the data at a path do: of a file its size and time; of a folder those of its folders.

    Files that come and go are noticed, and renamed ones; a picture that is rewritten in place is read anew only when
    the site is started again.
    """
    if not path.is_dir():
        return _stamp(path)
    return "|".join(sorted(f"{folder}:{_stamp(Path(folder))}" for folder, _, _ in os.walk(path)))


def cause_of(error: Exception) -> str:
    """Return a short word under which a refusal is counted."""
    if isinstance(error, UpdateError):
        return error.cause
    return error.clause if isinstance(error, PolicyRefusal) else type(error).__name__


def memory() -> int:
    """Return the resident memory of this process in bytes; 0 where it cannot be told."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return f"missing at {time.monotonic_ns()}"
    return f"{found.st_size}:{found.st_mtime_ns}"
