"""What Python loads first in all processes of a site that a test has misbehave: PYTHONPATH names this folder.

The file that FEDREPTILE_TEST_FAULTS names says what is wrong at the moment, as JSON: {"clock": 600, "update": "nan"}.
Everything is signed, entered in the ledger and sent as at any other site.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np

FILE = Path(os.environ["FEDREPTILE_TEST_FAULTS"])


def fault(name: str) -> Any:
    """Return what is wrong now; None if nothing is."""
    try:
        return json.loads(FILE.read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError):
        return None


def shift_clock(real: Callable[[], float] = time.time) -> None:
    """Have this process's clock be off by the seconds that ``clock`` says."""
    time.time = lambda: real() + (fault("clock") or 0.0)
    from flwr.supercore import date

    date.now = _shifted(date.now)
    if "client.worker" in sys.orig_argv:
        from client.door import ledger

        ledger.now = _shifted(ledger.now)


def _shifted(now: Callable[[], datetime]) -> Callable[[], datetime]:
    return lambda: now() + timedelta(seconds=fault("clock") or 0.0)


def spoil_updates() -> None:
    """Have the worker answer as ``update`` says: nan, shape, number (a figure that is none) or silent."""
    from client.door import outbound
    from common.messages import Update

    encode = outbound.encode_update

    def spoilt(update: Update) -> Any:
        match fault("update"):
            case "nan":
                update = dataclasses.replace(update, delta=np.full_like(update.delta, np.nan))
            case "shape":
                update = dataclasses.replace(update, delta=update.delta[:-1])
            case "number":
                update = dataclasses.replace(update, scalars={**update.scalars, "num-examples": float("inf")})
            case "silent":
                time.sleep(3600)
        return encode(update)

    outbound.encode_update = spoilt


def answer_twice() -> None:
    """Have SuperNode send each reply again, once the same and once with another id, if ``twice`` says so."""
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.supernode.fleet_http_client import FleetHttpClient

    from client.relay.door import id_of, message_object

    push = FleetHttpClient.PushMessages

    def pushed(client: FleetHttpClient, request: PushMessagesRequest) -> Any:
        answer = push(client, request)
        if fault("twice"):
            other = PushMessagesRequest.FromString(request.SerializeToString())
            message, tree = other.messages_list[0], other.message_object_trees[0]
            message.metadata.created_at += 0.001
            tree.object_id = id_of(message_object(message, [child.object_id for child in tree.children]))
            message.metadata.message_id = tree.object_id
            for name, again in (("same", request), ("other", other)):
                try:
                    said = str(dict(push(client, again).results))
                except httpx.HTTPStatusError as error:
                    said = f"status {error.response.status_code}"
                print(f"answered twice, the {name}: {said}", flush=True)
        return answer

    FleetHttpClient.PushMessages = pushed


shift_clock()
if "client.worker" in sys.orig_argv:
    spoil_updates()
if any(word.endswith("flower-supernode") for word in sys.orig_argv):
    answer_twice()
