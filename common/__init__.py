"""The algorithm, the networks, what travels and what is trusted. Imports nothing else of this project."""

VERSION = "0.1.0"
"""Of this code. A site compares it with that of the run's app bundle, which may be another than what is installed."""


def release(version: str) -> str:
    """Return major and minor version, such as '0.1': what must agree between a server and its sites."""
    return ".".join(version.split(".")[:2])
