"""``python -P -m server.gateway --home HOME --upstream 127.0.0.1:PORT``: the process that sites reach."""

import argparse
import contextlib
import logging
import ssl
import sys
from pathlib import Path

import httpx

from common.deployment.forward import Pair, Renewed, Server, server_context, stamp_of
from common.errors import FedreptileError, TrustError
from common.log import show_log
from common.trust.keys import passphrase_from_environment
from common.trust.names import split_address
from server.gateway.app import Gateway
from server.home import FederationHome

log = logging.getLogger("fedreptile.gateway")

UPSTREAM = httpx.Timeout(60.0, connect=5.0)


def main() -> int:
    """Let sites in until told to end; return the process's exit code."""
    words = argparse.ArgumentParser(prog="python -m server.gateway", description=__doc__)
    words.add_argument("--home", type=Path, help="the federation's folder")
    words.add_argument("--upstream", required=True, help="host:port of loopback where the SuperLink listens")
    given = words.parse_args()
    show_log()
    allow_files()
    try:
        server_of(FederationHome.of(given.home), given.upstream).run_until_told()
    except FedreptileError as error:
        log.error("the gateway cannot run: %s", error)
        return 1
    return 0


def allow_files() -> None:
    """Let this process have as many open files, connections among them, as the system allows it."""
    if sys.platform != "win32":
        import resource  # not on Windows

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # some systems say that there is no limit, and have one
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def server_of(home: FederationHome, upstream: str) -> Server:
    """Return the gateway of a federation.

    Raises:
        SettingsError or TrustError: if a file of the federation is missing or cannot be used.
    """
    config = home.config()
    gateway = Gateway(home, config, _superlink(home, upstream))
    pair = Pair(home.tls_certificate, home.tls_key, passphrase_from_environment())
    context = server_context(pair, home.authority)
    certificates = Renewed(lambda: (pair.stamp, stamp_of(home.authority)), lambda: _load(context, pair, home.authority))
    log.info("sites are let in at %s", config.listen)
    return Server(gateway, split_address(config.listen), context, gateway.connections, [certificates])


def _load(context: ssl.SSLContext, pair: Pair, authority: Path) -> None:
    """Take up a renewed pair, and authorities that were added; one that was taken away counts until the next start."""
    pair.load(context)
    try:
        context.load_verify_locations(cafile=authority)
    except OSError as error:
        raise TrustError(f"{authority} cannot be read as certificates of an authority: {error}") from error


def _superlink(home: FederationHome, address: str) -> httpx.AsyncClient:
    try:
        verify = ssl.create_default_context(cafile=str(home.loopback / "ca.crt"))
    except OSError as error:
        raise TrustError(f"{home.loopback / 'ca.crt'} cannot be read as a certificate: {error}") from error
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    return httpx.AsyncClient(
        base_url=f"https://{address}", verify=verify, trust_env=False, timeout=UPSTREAM, limits=limits
    )


if __name__ == "__main__":
    sys.exit(main())
