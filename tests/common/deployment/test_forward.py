"""What gateway and relay share, without a network."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.deployment.forward import (
    PREFIX,
    ROUTES,
    SMALL,
    Budget,
    Complaints,
    GoneError,
    RefusedError,
    Renewed,
    StateFile,
    headers_of,
    read_body,
    route_of,
    stamp_of,
)
from common.errors import TrustError


def scope_of(method: str, path: bytes, query: bytes = b"", headers: list[tuple[bytes, bytes]] | None = None) -> Any:
    return {"method": method, "raw_path": path, "query_string": query, "headers": headers or []}


def test_all_routes_of_a_node_pass_but_those_that_register() -> None:
    from flwr.superlink.routers.fleet.router import router

    theirs = {route.path for route in router.routes}  # type: ignore[attr-defined]
    assert theirs - ROUTES.keys() == {f"{PREFIX}register-node", f"{PREFIX}unregister-node"}
    assert ROUTES.keys() <= theirs
    assert all(route_of(scope_of("POST", path.encode())) == path for path in ROUTES)


@pytest.mark.parametrize("path", [b"/v1/control/start-run", b"/v1/fleet/get-run\xff", b"", b"*"])
def test_no_other_path_passes(path: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        route_of(scope_of("POST", path))
    assert refused.value.status == 404 and json.loads(refused.value.body)["error"] == "route"


def test_only_known_headers_are_seen_and_each_once() -> None:
    accept = (b"accept", b"*/*")
    assert headers_of(scope_of("POST", b"/", headers=[accept, (b"cookie", b"y")])) == {"accept": "*/*"}
    for bad in ([accept, accept], [(b"accept", b"\xe4")], [(b"accept", b"x" * 5000)], [(b"accept", b"a\tb")]):
        with pytest.raises(RefusedError, match="headers"):
            headers_of(scope_of("POST", b"/", headers=bad))


@pytest.mark.parametrize(
    "name", ["content-type", "accept", "flwr-timestamp", "flwr-signature", "flwr-package-name", "flwr-component-name"]
)
def test_a_header_has_no_room_for_other_text(name: str) -> None:
    with pytest.raises(RefusedError, match=name):
        headers_of(scope_of("POST", b"/", headers=[(name.encode(), b"patient 0815 has it")]))


def receiving(*messages: dict[str, Any]) -> Callable[[], Any]:
    left = list(messages)

    async def receive() -> dict[str, Any]:
        return left.pop(0)

    return receive


def test_a_body_is_read_up_to_what_is_allowed() -> None:
    parts: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"abc", "more_body": True},
        {"type": "http.request", "body": b"de"},
    ]
    assert asyncio.run(read_body(receiving(*parts), {}, 5)) == b"abcde"
    with pytest.raises(RefusedError, match="too-large"):
        asyncio.run(read_body(receiving(*parts), {}, 4))
    with pytest.raises(RefusedError, match="too-large"):  # nothing is read then
        asyncio.run(read_body(receiving(), {"content-length": "6"}, 5))
    with pytest.raises(GoneError):
        asyncio.run(read_body(receiving(parts[0], {"type": "http.disconnect"}), {}, 5))


def test_memory_for_bodies_is_waited_for() -> None:
    async def use() -> list[str]:
        budget, events = Budget(10 * SMALL), list[str]()

        async def hold(name: str, size: int) -> None:
            async with budget.room(size):
                events.append(f"{name} in")
                await asyncio.sleep(0.01)
                events.append(f"{name} out")

        await asyncio.gather(hold("a", 6 * SMALL), hold("b", 6 * SMALL), hold("small", SMALL))
        assert budget.held == 0
        async with budget.room(100 * SMALL):  # more than there is goes alone
            pass
        return events

    events = asyncio.run(use())
    assert events.index("a out") < events.index("b in") and events.index("small in") < events.index("a out")


def test_who_gives_up_waiting_for_memory_takes_none() -> None:
    async def use() -> int:
        budget = Budget(2 * SMALL)
        async with budget.room(2 * SMALL):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), budget.room(2 * SMALL):
                    pytest.fail("there was no room")
        return budget.held

    assert asyncio.run(use()) == 0


def test_refusals_are_logged_once_a_minute_for_each_site_and_cause(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints, now = Complaints(logging.getLogger("fedreptile.test")), [1000.0]
    monkeypatch.setattr("common.deployment.forward.time.monotonic", lambda: now[0])
    for _ in range(5):
        complaints.tell("north", RefusedError(403, "revoked", "x", "y"))
    complaints.tell("north", RefusedError(403, "expired", "x", "y"))
    complaints.tell("", RefusedError(403, "revoked", "x", "y"))
    assert [record.getMessage() for record in caplog.records] == [
        "refused north: revoked: found x; needed y",
        "refused north: expired: found x; needed y",
        "refused a stranger: revoked: found x; needed y",
    ]
    now[0] += 61
    complaints.tell("north", RefusedError(403, "revoked", "x", "y"))
    assert caplog.records[-1].getMessage().endswith("(4 more since the last such line)")


def test_a_state_file_is_written_now_and_then_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, path = [1000.0], tmp_path / "run" / "state.json"
    monkeypatch.setattr("common.deployment.forward.time.monotonic", lambda: now[0])
    state = StateFile(path)
    state.write({"n": 1})
    state.write({"n": 2})
    assert json.loads(path.read_bytes()) == {"n": 1}
    state.write({"n": 3}, at_once=True)
    assert json.loads(path.read_bytes()) == {"n": 3}
    now[0] += 2.1
    state.write({"n": 4})
    assert json.loads(path.read_bytes()) == {"n": 4} and [one.name for one in path.parent.iterdir()] == ["state.json"]


def test_a_state_file_that_cannot_be_written_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("in the way", encoding="utf-8")
    StateFile(tmp_path / "run" / "state.json").write({"n": 1})
    assert "cannot be written" in caplog.text


def test_what_is_renewed_is_made_again_and_kept_if_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, made = tmp_path / "file", list[str]()

    def make() -> None:
        text = path.read_text(encoding="utf-8")
        if text == "bad":
            raise TrustError("it is bad")
        made.append(text)

    path.write_text("first", encoding="utf-8")
    renewed = Renewed(lambda: stamp_of(path), make)
    renewed.look()
    assert made == ["first"]
    path.write_text("bad", encoding="utf-8")
    renewed.look()
    assert made == ["first"] and "it is bad" in caplog.text
    path.write_text("third one", encoding="utf-8")
    renewed.look()
    assert made == ["first", "third one"]
