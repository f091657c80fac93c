"""The worker: answers messages from a site's data, under the site's own policy and what was agreed on joining."""

import logging
import os
import sys
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
from client.settings import SiteSettings
from client.site import Site
from client.worker.outbox import Outbox
from client.worker.wire import Header
from client.worker.work import layout_of, work
from common import VERSION, release
from common.errors import PolicyRefusal, RequestError, SealError, SettingsError, TrustError, UpdateError, VersionError
from common.messages import Agreement
from common.plan import plan_for
from common.settings import Settings, flatten
from common.trust.keys import passphrase_from_environment, read_private_key
from common.trust.kit import Kit, read_kit
from common.trust.seals import Facts, opened

log = logging.getLogger("fedreptile.worker")

OF_THE_RUN = ("run.", "outer.", "judge.every", "judge.held-out", "data.sites", "model.initial")
"""Settings that a run may choose without a new agreement, by how they begin: what only the server does. All others say
what a site computes, and must be as in the kit. Of these a site uses the seed alone."""


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


class Worker:
    """One site at work. ``answer`` does one message at a time; ``status`` may be asked meanwhile."""

    def __init__(self, home: SiteHome, clock: Clock = now) -> None:
        """Read what the site is and what was agreed, and open the ledger.

        Raises:
            SettingsError, TrustError or LedgerError: if any of it is missing or cannot be used.
        """
        self.home, self.clock = home, clock
        config = home.config()
        self.kit: Kit = read_kit(home.kit_file)
        if self.kit.site != config.name:
            raise TrustError(f"{home.kit_file} is for site {self.kit.site!r}; {home.config_file} says {config.name!r}")
        self.agreed = agreed_settings(self.kit)
        key = read_private_key(home.signing_key, passphrase_from_environment())
        if not isinstance(key, Ed25519PrivateKey):
            raise TrustError(f"{home.signing_key} is not an Ed25519 key; it must be the site's signing key")
        policy = read_policy(home.policy_file)
        self._own = SiteSettings(config.name, config.data, config.device, config.threads, config.cache, policy=policy)
        self.sizes: Agreement = plan_for(self.agreed, config.device).agreed
        self.outbox = Outbox(home.outbox)
        self.refused, self.doing = Counter[str](), Doing()
        ledger = Ledger(home.ledger, config.ledger_megabytes * 1_000_000, clock)
        self.door = Door(self._own, ledger, key, clock)
        self._site: Site | None = None
        self._seen = ""

    def close(self) -> None:
        if self.door.ledger is not None:
            self.door.ledger.close()

    def warm(self) -> None:
        """Read the data beforehand, so that the first message need not wait for it; what is wrong is only logged."""
        try:
            _ = self._site_for(self.agreed).data
        except Exception as error:
            log.error("the site's data cannot be used yet", exc_info=error)

    def answer(self, header: Header, content: RecordDict) -> RecordDict | Error:
        """Answer a message, by the site's own policy as it is at this moment; so too any error."""
        asked = Asked(str(header.get("type")), begun=self.clock())
        self.doing.now = asked.kind
        try:
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
        if before is not None and seen == self._seen and "data" in before.__dict__:
            site.data = before.data
        self._site, self._seen = site, seen
        return site


def agreed_settings(kit: Kit) -> Settings:
    """Return the settings that a kit agrees on. Raises SettingsError if this version does not know them."""
    return Settings.from_flat(dict(kit.settings))


def effective_settings(agreed: Settings, config: Any) -> Settings:
    """Return the agreed settings with the seed of a run's flat settings. Raises SettingsError like ``Worker``."""
    if not isinstance(config, dict):
        raise RequestError("the run's settings are not a table")
    wanted = flatten(agreed.with_values(config))
    for key, value in flatten(agreed).items():
        if wanted[key] != value and not key.startswith(OF_THE_RUN):
            raise SettingsError(
                f"the run's {key} is {wanted[key]!r} and {value!r} was agreed; a run that computes something else "
                "needs a new kit"
            )
    return agreed.with_values({"run.seed": wanted["run.seed"]})


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
