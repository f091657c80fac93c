"""One error class for each party that can be at fault.

``str(error)`` is for the party's own screen and log: it names the file, key or site, what was
found, what is needed and what to do. ``public`` is a constant of the class and is all that may
leave a site: by construction it holds no path, no value and no sample.
"""

import re
from collections.abc import Mapping
from typing import ClassVar


class FedreptileError(Exception):
    """Base of all errors that a user is meant to read."""

    public: ClassVar[str] = "the site could not do what was asked"

    def told(self) -> str:
        """Return all that may be told to the server about it."""
        return f"{type(self).__name__}: {self.public}; the site's own log has the details"


class SettingsError(FedreptileError):
    """The operator's or researcher's settings are wrong."""

    public = "the settings of the run or of the site are not usable at this site"


class SiteDataError(FedreptileError):
    """The site's own data cannot be used."""

    public = "the site's data cannot be used for this request"


class RequestError(FedreptileError):
    """What the server sent does not fit what was agreed."""

    public = "the request does not fit the agreed network or message layout"


class OutboundError(FedreptileError):
    """Something was about to leave the site that may not."""

    public = "the site's outbound check refused the reply"


CLAUSES: Mapping[str, str] = {
    "code.fabs": "this code may not run at the site",
    "hours.work": "outside the site's hours of work",
    "traffic.bytes-a-day": "the site's limit of bytes a day is reached",
    "parameters.may-leave": "the update holds parameters that may not leave; freeze them with inner.frozen",
    "classes.names": "class names may not leave",
    "classes.tables": "class tables may not leave",
    "classes.minimum": "a class has too few inputs for its sum to leave",
}
"""The clauses of a site's policy that can refuse, each with the one sentence that the server is told."""

PASSING = ("hours.work", "traffic.bytes-a-day")
"""Those of them that refuse for a time only."""


class PolicyRefusal(FedreptileError):  # noqa: N818 - it is the site's decision and nobody's error
    """The site's own policy refuses.

    Args:
        clause: one of ``CLAUSES``.
        message: what was refused and why, for the site's own log.
    """

    public = "the site's policy refuses it"

    def __init__(self, clause: str, message: str) -> None:
        if clause not in CLAUSES:
            raise ValueError(f"{clause!r} is not a clause of a policy")
        super().__init__(f"{clause}: {message}")
        self.clause = clause

    def told(self) -> str:
        return f"the site's policy refuses: {self.clause} ({CLAUSES[self.clause]})"

    @classmethod
    def passing(cls, told: str) -> str:
        """Return the clause by which a site has told that it refuses for a time only; empty if it has not."""
        return next((clause for clause in PASSING if cls(clause, "").told() in told), "")


class LedgerError(FedreptileError):
    """The site's ledger is full, damaged, in use by another process or cannot be written, so nothing leaves."""

    public = "the site's ledger is full, damaged or cannot be written, so nothing leaves"


class StaleError(FedreptileError):
    """The server asks for a round that the site has left behind."""

    public = "the request is for a round that is over"


class VersionError(FedreptileError):
    """The run's code and what is installed at the site are of different versions."""

    public = "the run's code and what is installed at the site are of different versions"

    def __init__(self, asked: str, installed: str) -> None:
        """Of what was asked only the form of a version is repeated."""
        shown = [text if VERSION_TEXT.fullmatch(text) else "unknown" for text in (asked, installed)]
        self.versions = f"the run's code is {shown[0]} and the site has {shown[1]}"
        super().__init__(f"{self.versions}; install the same version of fedreptile at both ends")

    def told(self) -> str:
        return f"{type(self).__name__}: {self.versions}"


VERSION_TEXT = re.compile(r"[0-9]{1,6}(\.[0-9a-z+]{1,12}){0,6}")


class UpdateError(FedreptileError):
    """A site's reply does not fit what was agreed.

    Args:
        cause: a short fixed word under which the server counts the dropped reply.
        message: what was found and what was expected.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(f"{cause}: {message}")
        self.cause = cause


class SealError(UpdateError):
    """A signature is missing, wrong, or was made for something else. Causes: see ``common.trust.seals``."""

    public = "the request is not signed by the federation's server, or not for this round"


class TrustError(FedreptileError):
    """A key, certificate, request or kit is missing, damaged, expired or not the expected one."""

    public = "the site's keys or certificates cannot be used"


class DeployError(FedreptileError):
    """A server or site cannot be started, reached or stopped."""

    public = "the site is not ready"


class RoundError(FedreptileError):
    """Rounds cannot go on: too few sites joined or answered."""


class CampaignError(FedreptileError):
    """A campaign has not come to a release at all its sites."""


class CheckpointError(FedreptileError):
    """A checkpoint is missing, damaged or belongs to other settings."""


class WritingError(CheckpointError):
    """A file cannot be written, such as on a full disk. It may be possible later."""


class ReleaseError(FedreptileError):
    """A release is not there, may not be used so, or cannot be published."""


class SourceError(FedreptileError):
    """A data set could not be fetched or does not match its checksum."""


class LaunchError(FedreptileError):
    """A run could not be started with Flower, or did not end well."""
