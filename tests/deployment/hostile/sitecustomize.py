"""What Python loads first in all processes of a site that a test has misbehave: PYTHONPATH names a copy of this folder.

The file faults.json beside it says what is wrong at the moment, as JSON: {"clock": 600, "update": ["nan"]}.
Everything is signed, entered in the ledger and sent as at any other site.
"""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

FILE = Path(__file__).with_name("faults.json")


def fault(name: str) -> Any:
    """Return what is wrong now; None if nothing is."""
    try:
        return json.loads(FILE.read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError):
        return None


def replace(place: Any, name: str, changed: Callable[[Any], Any]) -> None:
    """Put in the place of a function what is made of it."""
    setattr(place, name, changed(getattr(place, name)))


def shift_clock(real: Callable[[], float] = time.time) -> None:
    """Have this process's clock be off by the seconds that ``clock`` says.

    In Flower's processes only that which signs for the server: among themselves they agree, as on any machine.
    """
    if any(word.endswith("flower-supernode") for word in sys.orig_argv):
        from flwr.supernode import node_auth_http_interceptor

        replace(node_auth_http_interceptor, "now", _shifted)
    if "client.relay" in sys.orig_argv or "client.worker" in sys.orig_argv:
        time.time = lambda: real() + (fault("clock") or 0.0)
        from client.door import ledger

        replace(ledger, "now", _shifted)
    if "client.relay" in sys.orig_argv:
        from client.relay import app

        replace(app, "now", _shifted)


def _shifted(now: Callable[[], datetime]) -> Callable[[], datetime]:
    return lambda: now() + timedelta(seconds=fault("clock") or 0.0)


def spoil_updates() -> None:
    """Have the worker answer as ``update`` says, which lists one fault an update, over and over.

    They are nan, shape, number (a figure that is none) and silent.
    """
    from client.door import outbound
    from common.messages import Update

    made = itertools.count()

    def spoilt(encode: Callable[[Update], Any], update: Update) -> Any:
        kinds = fault("update") or ["honest"]
        match kinds[next(made) % len(kinds)]:
            case "nan":
                update = dataclasses.replace(update, delta=np.full_like(update.delta, np.nan))
            case "shape":
                update = dataclasses.replace(update, delta=update.delta[:-1])
            case "number":
                update = dataclasses.replace(update, scalars={**update.scalars, "num-examples": float("inf")})
            case "silent":
                time.sleep(fault("seconds") or 3600.0)
        return encode(update)

    replace(outbound, "encode_update", lambda encode: partial(spoilt, encode))


def answer_twice() -> None:
    """Have SuperNode announce each reply that is sent again, the same and with another id, if ``twice`` says so."""
    from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
    from flwr.supernode import start_client_internal
    from flwr.supernode.fleet_http_client import FleetHttpClient

    from client.relay.door import id_of, message_object

    announce, sent = FleetHttpClient.PushMessages, list[tuple[FleetHttpClient, PushMessagesRequest]]()

    def noted(client: FleetHttpClient, request: PushMessagesRequest) -> PushMessagesResponse:
        sent.append((client, request))
        return announce(client, request)

    def with_another_id(request: PushMessagesRequest) -> PushMessagesRequest:
        other = PushMessagesRequest()
        other.CopyFrom(request)
        message, tree = other.messages_list[0], other.message_object_trees[0]
        message.metadata.created_at += 0.001
        tree.object_id = id_of(message_object(message, [child.object_id for child in tree.children]))
        message.metadata.message_id = tree.object_id
        return other

    def pushed(push: Callable[..., None], **given: Any) -> None:
        push(**given)
        while sent:
            client, request = sent.pop()
            for again in (request, with_another_id(request)) if fault("twice") else ():
                try:
                    said = f"{len(announce(client, again).objects_to_push)} objects wanted"
                except httpx.HTTPStatusError as error:
                    said = f"status {error.response.status_code}"
                print(f"answered twice: {said}", flush=True)

    replace(FleetHttpClient, "PushMessages", lambda _: noted)
    replace(start_client_internal, "_push_messages", lambda push: partial(pushed, push))


shift_clock()
if "client.worker" in sys.orig_argv:
    spoil_updates()
if any(word.endswith("flower-supernode") for word in sys.orig_argv):
    answer_twice()
