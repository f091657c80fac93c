"""What a site does for a message, by the message's type."""

from collections.abc import Callable

from flwr.app import RecordDict

from client.door.outbound import Content
from client.site import Site
from common.errors import RequestError
from common.messages import Request, decode_gate_request, decode_request


def work(site: Site, kind: str, content: RecordDict) -> tuple[Content, int]:
    """Do what a message asks for; return the answer and the round that the request names (0 where it names none).

    Raises:
        RequestError: if the message is of no known type, or its content not of the agreed form.
        SiteDataError: if the site's data cannot be used for it.
    """
    if kind == "query":
        return site.introduce(), 0
    kinds: dict[str, Callable[[Request], Content]] = {
        "train": site.train,
        "evaluate": site.evaluate,
        "query.class_table": site.class_table,
    }
    if kind == "query.gate":
        gate = decode_gate_request(content, site.plan.agreed)
        return site.gate(gate), gate.round
    if kind not in kinds:
        known = sorted([*kinds, "query.gate"])
        raise RequestError(f"the server's message is of type {kind!r}; it must be 'query' or one of {known}")
    request = decode_request(content, site.plan.agreed)
    return kinds[kind](request), request.round


def layout_of(site: Site) -> tuple[str, ...]:
    """Return the names of the parameters that an update of the site holds."""
    return tuple(name for name, _ in site.plan.update.entries)
