"""Node keys at the SuperLink: registered when a site is approved, unregistered when it is revoked."""

import logging
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace

import httpx
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError

from common.errors import DeployError, TrustError
from common.trust.keys import header_of, node_public_key
from server.enrolment.registry import Registry, read_registry, update_registry
from server.home import FederationHome
from server.service.control import NotUpError, superlink_client

UNREGISTERED = "unregistered"
"""Flower's word for a node whose key can never be registered again."""

log = logging.getLogger(__name__)


def register_node(home: FederationHome, name: str, public_key_openssh: str) -> int | None:
    """Register a site's node key with the SuperLink, if it runs.

    Returns:
        Flower's id of the node, also if the key was registered before; None if the SuperLink does not run.

    Raises:
        TrustError: if the key was unregistered once: it can never be used again.
        DeployError: if the SuperLink refuses for another reason.
    """
    pem = _pem(header_of(node_public_key(public_key_openssh)))
    try:
        with superlink_client(home) as control:
            return _register(control, name, pem)
    except NotUpError:
        return None


def unregister_node(home: FederationHome, node_id: int) -> bool:
    """Unregister a node for ever: its SuperNode ends within seconds.

    Returns:
        whether the SuperLink did it, or had done so before; False if it does not run.

    Raises:
        DeployError: if the SuperLink refuses.
    """
    try:
        with superlink_client(home) as control:
            _unregister(control, node_id)
            return True
    except NotUpError:
        return False


def register_missing(home: FederationHome) -> list[str]:
    """Make the SuperLink know just the approved sites: it may have a new database, or not have run at an approval.

    Returns:
        the sites whose node id is new in the registry.

    Raises:
        DeployError: if the SuperLink cannot be reached or refuses.
        TrustError: if the registry cannot be read.
    """
    registry = read_registry(home.registry_file)
    with superlink_client(home) as control:
        known = {bytes(node.public_key): node for node in control.ListNodes(ListNodesRequest()).nodes_info}
        found = _ids_of_sites(control, registry, known)
        for key, site in registry.barred.items():
            node = known.get(_pem(key))
            if node is not None and node.status != UNREGISTERED:
                _unregister(control, node.node_id)
                log.info("unregistered the node of the revoked site %s", site)
    if not found:
        return []
    update_registry(home.registry_file, lambda now: with_node_ids(now, registry, found))
    return sorted(found)


def with_node_ids(registry: Registry, before: Registry, found: Mapping[str, int]) -> Registry:
    """Return the registry with the ids of nodes of those sites that still have the keys that they had before."""
    sites = {
        name: replace(site, node_id=found[name])
        if name in found and site.node_key == before.sites[name].node_key
        else site
        for name, site in registry.sites.items()
    }
    return replace(registry, sites=sites)


def _ids_of_sites(control: ControlHttpClient, registry: Registry, known: Mapping[bytes, NodeInfo]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, site in registry.sites.items():
        pem = _pem(site.node_key)
        node = known.get(pem)
        try:
            number = _register(control, name, pem) if node is None else _usable(node, name)
        except TrustError as error:
            log.error("%s", error)
            continue
        if number != site.node_id:
            found[name] = number
    return found


def _register(control: ControlHttpClient, name: str, pem: bytes) -> int:
    try:
        number = control.RegisterNode(RegisterNodeRequest(public_key=pem, name=name)).node_id
    except httpx.HTTPStatusError as error:
        if _code(error) != ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
            raise
        nodes = control.ListNodes(ListNodesRequest()).nodes_info
        node = next((node for node in nodes if node.public_key == pem), None)
        if node is None:
            raise DeployError(f"the SuperLink knows the node key of site {name!r}, but does not list it") from error
        return _usable(node, name)
    if not number:
        raise DeployError(f"the SuperLink gave the node of site {name!r} no id; try again")
    return number


def _usable(node: NodeInfo, name: str) -> int:
    if node.status == UNREGISTERED:
        raise TrustError(
            f"the node key of site {name!r} was unregistered at the SuperLink and can never be registered again; "
            "have the site make fresh keys: an empty folder, 'fedreptile-site join', a new request"
        )
    return node.node_id


def _unregister(control: ControlHttpClient, node_id: int) -> None:
    try:
        control.UnregisterNode(UnregisterNodeRequest(node_id=node_id))
    except httpx.HTTPStatusError as error:
        if _code(error) != ApiErrorCode.NODE_NOT_FOUND:
            raise


def _code(error: httpx.HTTPStatusError) -> int | None:
    found = FlowerError.from_json(error.response.text)
    return found.code if found else None


def _pem(header: str) -> bytes:
    """Return the PEM bytes of a node key as the registry has it; a signing key gives bytes that are no node's."""
    try:
        return b64decode(header, validate=True)
    except ValueError:
        return b""
