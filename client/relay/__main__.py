"""``python -P -m client.relay --home HOME --port PORT``: the process of a site that has the network."""

import argparse
import logging
import sys
from pathlib import Path

from client.door.ledger import LedgerIndex
from client.home import SiteHome
from client.relay.app import Relay
from client.relay.door import OwnPolicy, SecondDoor
from client.relay.way import Way
from common.deployment.forward import Guard, Pair, Renewed, Server, server_context
from common.errors import FedreptileError, TrustError
from common.log import show_log
from common.trust.keys import header_of, passphrase_from_environment, read_ec_key
from common.trust.request import read_request

log = logging.getLogger("fedreptile.relay")


def main() -> int:
    """Pass SuperNode's requests on until told to end; return the process's exit code."""
    words = argparse.ArgumentParser(prog="python -m client.relay", description=__doc__)
    words.add_argument("--home", type=Path, help="the site's folder")
    words.add_argument("--port", type=int, required=True, help="port of 127.0.0.1 to listen on")
    given = words.parse_args()
    show_log()
    try:
        server_of(SiteHome.of(given.home), given.port).run_until_told()
    except FedreptileError as error:
        log.error("the relay cannot run: %s", error)
        return 1
    return 0


def server_of(home: SiteHome, port: int) -> Server:
    """Return the relay of a site.

    Raises:
        SettingsError or TrustError: if a file of the site is missing or cannot be used.
    """
    passphrase = passphrase_from_environment()
    way = Way(home, home.config(), passphrase)
    door = SecondDoor(node_key_of(home, passphrase), LedgerIndex(home.ledger), OwnPolicy(home.policy_file))
    relay = Relay(way, door, home.relay_state, port)
    pair = Pair(home.loopback / "tls.crt", home.loopback / "tls.key")
    context = server_context(pair)
    loopback = Renewed(lambda: pair.stamp, lambda: pair.load(context))
    return Server(relay, ("127.0.0.1", port), context, Guard(), [loopback, way.files])


def node_key_of(home: SiteHome, passphrase: str | None) -> str:
    """Return the public key of the site's SuperNode as Flower sends it.

    It stands in the request, which is no secret; the private key, which the relay's user may be unable to read, is
    opened only where there is no request any more.

    Raises:
        TrustError: if neither can be read.
    """
    try:
        return header_of(read_request(home.request_file).node_key)
    except TrustError as error:
        log.info("%s", error)
        return header_of(read_ec_key(home.node_key, passphrase).public_key())


if __name__ == "__main__":
    sys.exit(main())
