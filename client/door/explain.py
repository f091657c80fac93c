"""What would leave a site under its present policy, worked out for real, with nothing sent and nothing entered."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import RecordDict

from client.door.outbound import Asked, Content, Door, Passing, bytes_of
from client.door.policy import read_policy
from client.home import SiteHome
from client.settings import SiteSettings, settings_of
from client.site import Site
from client.worker.work import layout_of, work
from common.errors import FedreptileError, SettingsError
from common.messages import (
    Candidate,
    ClassTable,
    GateReport,
    GateRequest,
    Introduction,
    Judged,
    Request,
    encode_gate_request,
    encode_request,
)
from common.trust.kit import read_kit

KINDS = {
    "query": "introduction, once a run",
    "train": "a round of training, with judgement",
    "evaluate": "judgement of a site that is held out",
    "query.class_table": "sums by class, once at the end, if the run asks for them",
    "query.gate": "a campaign's model beside the one in use on what is held back; here the first class is the new one",
}


@dataclass(frozen=True)
class Explained:
    """What a site would answer to one kind of message."""

    kind: str
    passing: Passing | None
    """What would leave; None: nothing but the refusal."""
    bytes: int
    counts: Mapping[str, int]
    """Class name -> number of inputs, where the answer says it."""
    refusal: str
    """What the server would be told instead; empty where the answer leaves."""
    why: str
    """Refusals: why, for the site's own eyes."""


def explain_site(home: SiteHome) -> Iterator[Explained]:
    """Work out the answers to each kind of message, with the params that a run starts from.

    Raises:
        SettingsError or TrustError: if the site's folder, policy or kit cannot be used.
    """
    config = home.config()
    policy = read_policy(home.policy_file)
    settings = settings_of(read_kit(home.kit_file))
    own = SiteSettings(config.name, config.data, config.device, config.threads, config.shared_cache, policy=policy)
    return explained(Site(own, settings))


def explained(site: Site) -> Iterator[Explained]:
    """Work out what a site would answer to each kind of message."""
    plan = site.plan
    params, slots = plan.params.pack(plan.initial).numpy(), plan.slots.pack(plan.initial_slots).numpy()
    content = encode_request(Request(1, params, slots, judge=True), plan.agreed.digest)
    nothing = ClassTable((), (), np.zeros((0, plan.agreed.embedding), plan.agreed.dtype))
    model = Candidate(params, slots, nothing)

    def request(kind: str) -> RecordDict:
        if kind != "query.gate":
            return content
        new_class = next(iter(site.data.classes()), "new")
        return encode_gate_request(GateRequest(1, new_class, model, model), plan.agreed.digest)

    for kind in KINDS:
        yield _explained(site, kind, request)


def _explained(site: Site, kind: str, request: Callable[[str], RecordDict]) -> Explained:
    policy = site.site.policy
    unlimited = replace(policy, traffic=replace(policy.traffic, bytes_a_day=0))  # nothing is counted here
    door, asked = Door(replace(site.site, policy=unlimited)), Asked(kind, layout=layout_of(site))
    try:
        door.admit(asked)
        content, _ = work(site, kind, request(kind))
        passing = door.examine(content, asked)
    except FedreptileError as error:
        if isinstance(error, SettingsError):
            raise
        return Explained(kind, None, 0, {}, error.told(), str(error))
    return Explained(kind, passing, bytes_of(passing.record), _counts(content), "", "")


def _counts(content: Content) -> dict[str, int]:
    match content:
        case Introduction():
            return dict(content.classes)
        case ClassTable():
            return dict(zip(content.names, content.counts, strict=True))
        case Judged():
            return {name: total for name, (_, total) in content.per_class.items()}
        case GateReport():
            return {name: total for name, (total, _, _) in content.per_class.items()}
        case _:
            return {}
