"""One error class for each party that can be at fault.

``str(error)`` is for the party's own screen and log: it names the file, key or site, what was
found, what is needed and what to do. ``public`` is a constant of the class and is all that may
leave a site: by construction it holds no path, no value and no sample.
"""

from typing import ClassVar


class FedreptileError(Exception):
    """Base of all errors that a user is meant to read."""

    public: ClassVar[str] = "the site could not do what was asked"


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


class CheckpointError(FedreptileError):
    """A checkpoint is missing, damaged or belongs to other settings."""


class SourceError(FedreptileError):
    """A data set could not be fetched or does not match its checksum."""


class LaunchError(FedreptileError):
    """A run could not be started with Flower, or did not end well."""
