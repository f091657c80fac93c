"""What the operator's side asks of its own SuperLink, which listens on loopback only."""

import contextlib
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from common.errors import DeployError
from common.settings import Value
from server.home import FederationHome

ADDRESS_FILE = "superlink.json"
UNKNOWN = "unknown"
"""Status of a run that the SuperLink does not know, such as one from before its database was begun anew."""


@dataclass(frozen=True)
class RunStatus:
    status: str
    """'pending', 'starting', 'running', 'finished' or 'unknown'."""
    sub_status: str
    """Of a finished run: 'completed', 'failed' or 'stopped'."""
    details: str


@dataclass(frozen=True)
class Node:
    name: str
    online: bool
    since: str
    """When it was last activated: ISO 8601; empty if never."""


class NotUpError(DeployError):
    """The SuperLink does not run, or does not take connections yet."""


class LoopbackClient(ControlHttpClient):
    """Flower's client, which would send even what is meant for 127.0.0.1 to a proxy that the environment names."""

    def __init__(self, base_url: str, **options: Any) -> None:
        super().__init__(base_url, **options)
        self._client.close()
        self._client = httpx.Client(verify=options["verify"], timeout=30.0, trust_env=False)


class Control:
    """A connection to the SuperLink of a federation."""

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def start_run(self, fab: bytes, fab_hash: str, values: Mapping[str, Value]) -> int:
        """Start a run of an app bundle with changes of its defaults; return Flower's id of it."""
        request = StartRunRequest(
            fab=fab_to_proto(Fab(fab_hash, fab, {})), override_config=user_config_to_proto(dict(values))
        )
        return int(self._client.StartRun(request).run_id)

    def stop_run(self, run_id: int) -> None:
        self._client.StopRun(StopRunRequest(run_id=run_id))

    def run_status(self, run_id: int) -> RunStatus:
        try:
            runs = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                return RunStatus(UNKNOWN, "", "")
            raise
        if run_id not in runs:
            return RunStatus(UNKNOWN, "", "")
        status = runs[run_id].status
        return RunStatus(status.status, status.sub_status, status.details)

    def nodes(self) -> dict[int, Node]:
        """Return the registered nodes by Flower's id."""
        found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return {
            node.node_id: Node(node.name, node.status == "online", node.last_activated_at)
            for node in found
            if node.status != "unregistered"
        }


def superlink_address(home: FederationHome) -> str:
    """Return host:port of the running SuperLink.

    Raises:
        NotUpError: if none is running.
        DeployError: if its address cannot be read.
    """
    path = home.run / ADDRESS_FILE
    try:
        address = json.loads(path.read_text(encoding="utf-8"))["address"]
        if not isinstance(address, str) or not address.startswith("127.0.0.1:"):
            raise ValueError(f"its address is {address!r}; it must be 127.0.0.1:PORT")
    except FileNotFoundError as error:
        raise NotUpError(f"the server of {home.path} does not run; start it with 'fedreptile-server up'") from error
    except PermissionError as error:
        raise DeployError(f"{path} is another user's; give the command as the user whose server it is") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeployError(f"{path} cannot be read: {error}; start the server again") from error
    return address


@contextlib.contextmanager
def superlink_client(home: FederationHome) -> Iterator[ControlHttpClient]:
    """Give a client of the SuperLink's control routes, which only loopback reaches.

    Raises:
        NotUpError: if the SuperLink does not run.
        DeployError: if it refuses, or its address cannot be read.
    """
    address = superlink_address(home)
    try:
        with LoopbackClient.from_server_address(
            server_address=address,
            insecure=False,
            root_certificates=(home.loopback / "ca.crt").read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-cli")],
        ) as client:
            yield client
    except httpx.ConnectError as error:
        if "SSL" in str(error) or "certificate" in str(error):
            raise DeployError(
                f"what listens at {address} is not this federation's SuperLink ({error}); "
                "stop it, or start the server again: 'fedreptile-server down', then 'up'"
            ) from error
        raise NotUpError(f"the SuperLink does not answer at {address}; start it with 'fedreptile-server up'") from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise DeployError(f"the SuperLink at {address} did not do what it was asked: {_said(error)}") from error


@contextlib.contextmanager
def control(home: FederationHome) -> Iterator[Control]:
    """Connect to the running SuperLink. Raises NotUpError or DeployError like ``superlink_client``."""
    with superlink_client(home) as client:
        yield Control(client)


def _said(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError) and (found := FlowerError.from_json(error.response.text)):
        return f"[code: {found.code}] {found.message}"
    return str(error) or type(error).__name__


def is_healthy(home: FederationHome, address: str) -> bool:
    """Return whether the SuperLink at an address answers."""
    try:
        answer = httpx.get(
            f"https://{address}/health", verify=_context(str(home.loopback / "ca.crt")), timeout=2.0, trust_env=False
        )
    except httpx.HTTPError:
        return False
    return answer.is_success


def _context(roots: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=roots)
