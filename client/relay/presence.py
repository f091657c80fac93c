"""The site's node as the SuperLink has it: online from its activation until it is silent for a minute.

The SuperLink activates no node that it believes to be online, and tells the server of a restart by a new activation.
So a SuperNode that was killed, or that may have lost a message on the way, is first put offline.
"""

import json
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import httpx
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, DeactivateNodeRequest
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto

from client.relay.way import Answer, UnavailableError
from common.deployment.forward import PREFIX

ACTIVATE, DEACTIVATE = f"{PREFIX}activate-node", f"{PREFIX}deactivate-node"
UNCERTAIN = frozenset({"cut", "timeout", "superlink", "answer"})
"""Causes after which the server may have given a message that never came here; Flower gives each only once."""

Ask = Callable[[str, Mapping[str, str], Proto], Awaitable[Answer]]


class Presence:
    """Knows the node's id, also from before the relay was started, if the state file has it."""

    def __init__(self, node_key: str, state: Path) -> None:
        self._public_key = b64decode(node_key)
        self.node = 0
        """0: not known yet."""
        self._uncertain = False
        try:
            self.node = int(json.loads(state.read_bytes())["node"])
        except (OSError, ValueError, KeyError, TypeError):
            self.node = 0

    def failed(self, error: UnavailableError) -> None:
        """Note that a question for messages failed."""
        self._uncertain = self._uncertain or error.cause in UNCERTAIN

    async def make_sure(self, ask: Ask, headers: Mapping[str, str]) -> None:
        """Have the server ask again for what may have been lost. Raises UnavailableError."""
        if self._uncertain and self.node:
            request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
            await self.activate(ask, headers, request, first=False)
        self._uncertain = False

    async def activate(self, ask: Ask, headers: Mapping[str, str], request: Proto, first: bool = True) -> Answer:
        """Activate the node; if the SuperLink still has it online, put it offline before.

        Args:
            first: whether it may work without that.

        Raises:
            UnavailableError: if it cannot be activated for now.
        """
        found = await ask(ACTIVATE, headers, request) if first else None
        if found is None or (found.status == httpx.codes.PRECONDITION_FAILED and self.node):
            await ask(DEACTIVATE, headers, DeactivateNodeRequest(node_id=self.node))
            found = await ask(ACTIVATE, headers, request)
        if found.status == httpx.codes.PRECONDITION_FAILED:
            raise UnavailableError("not-active", "the SuperLink does not know the node, or still has it online")
        if found.status == httpx.codes.OK:
            try:
                self.node = ActivateNodeResponse.FromString(found.body).node_id
            except DecodeError as error:
                raise UnavailableError("answer", "the server's answer is no ActivateNodeResponse") from error
        return found
