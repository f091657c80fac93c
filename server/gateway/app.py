"""What the gateway does with a request: look who asks, read all of it, pass it on to the SuperLink."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import httpx
from starlette.types import Receive, Scope, Send

from common import VERSION
from common.deployment.forward import (
    FLOWER_VERSION,
    FROM_HEADER,
    HEALTH,
    LARGEST_HEADER,
    PASSED,
    RELEASES,
    ROUTES,
    VERSION_HEADER,
    Budget,
    Complaints,
    GoneError,
    RefusedError,
    StateFile,
    answer,
    headers_of,
    read_body,
    refuse,
    route_of,
)
from server.enrolment.registry import Enrolled, Registry
from server.gateway.admission import Caller, Connections, Sites, admit, check_node, check_version, shown_version
from server.gateway.limits import Limits
from server.gateway.releases import PART, opened
from server.gateway.seen import SEEN, STRANGERS, Book, Seen
from server.home import FederationConfig, FederationHome

log = logging.getLogger("fedreptile.gateway")

BODIES_AT_ONCE = 4
"""So many bodies of the largest size are held in memory at once, one of each site; further ones wait."""
ANSWERED = ("content-type", "content-length", "flwr-version-incompatibility-message")
"""Headers of the SuperLink's answers that are passed on."""


class Gateway:
    """The ASGI app.

    Args:
        upstream: what asks the SuperLink; its base address is the SuperLink's.
    """

    def __init__(self, home: FederationHome, config: FederationConfig, upstream: httpx.AsyncClient) -> None:
        """Raises TrustError if the list of sites is damaged."""
        self._upstream, self._largest = upstream, config.megabytes_a_message << 20
        self._passing = {LARGEST_HEADER: str(self._largest), VERSION_HEADER: VERSION, FROM_HEADER: "superlink"}
        self._own = {**self._passing, FROM_HEADER: "gateway"}
        self._sites = Sites(home.registry_file)
        self._limits = Limits(config.requests_a_second, config.megabytes_a_second * 1e6)
        self._budget, self._budgets = Budget(BODIES_AT_ONCE * self._largest), dict[str, Budget]()
        self._repository = home.repository
        self._file = home.run / SEEN
        self._state = StateFile(self._file)
        self._book = Book(self._before())
        self._complaints = Complaints(log)
        self._slow: Counter[str] = Counter()
        self.connections = Connections(config.seconds_a_request, config.connections_a_site, self._slow)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller = scope["state"]["connection"]
        request = _Request(scope, receive, send, scope["state"]["began"] + self.connections.patience)
        try:
            registry = self._sites.registry
            site = admit(caller, registry, datetime.now(UTC))
            await self._serve(request, caller.name, site, registry)
        except RefusedError as error:
            self._note(caller.name, error)
            if not request.answered:
                await refuse(scope, send, error, self._own)
        except GoneError:
            return
        except TimeoutError:  # it does not read its answer
            self._note(caller.name, RefusedError(408, "slow", "an answer that is not read", "reading it"))
            scope["state"]["abort"]()

    def every_second(self) -> None:
        """Note clients that were too slow, and write what was seen."""
        for name, count in self._slow.items():
            for _ in range(count):
                self._note(name, _too_slow(self.connections.patience))
        self._slow.clear()
        self._state.write(self._book.as_json())

    def stopping(self) -> None:
        self._state.write(self._book.as_json(), at_once=True)

    async def closing(self) -> None:
        await self._upstream.aclose()

    async def _serve(self, request: "_Request", name: str, site: Enrolled, registry: Registry) -> None:
        path, headers = route_of(request.scope), headers_of(request.scope)
        if path == HEALTH:
            self._limits.check(name, 0)
            await self._health(request, name, headers)
            return
        if path.startswith(RELEASES):
            await self._release(request, name, path)
            return
        check_node(headers, name, site, registry)
        check_version(headers)
        most = ROUTES[path] or self._largest
        size = min(int(headers.get("content-length", most)), most)
        self._limits.check(name, size)
        seen = self._book.met(name, shown_version(headers[VERSION_HEADER]), _flower(headers))
        async with AsyncExitStack() as memory:
            try:
                async with asyncio.timeout_at(request.deadline):
                    for budget in (self._of_site(name), self._budget):
                        await memory.enter_async_context(budget.room(size))
                    body = await read_body(request.receive, headers, most)
            except TimeoutError:
                raise _too_slow(self.connections.patience) from None
            seen.bytes_in += len(body)
            await self._forward(request, path, headers, body, seen)

    def _of_site(self, name: str) -> Budget:
        """Return the memory that one site may have, so that none takes all of it."""
        return self._budgets.setdefault(name, Budget(self._largest))

    async def _forward(
        self, request: "_Request", path: str, headers: Mapping[str, str], body: bytes, seen: Seen
    ) -> None:
        passed = {name: headers[name] for name in PASSED if name in headers} | {"accept-encoding": "identity"}
        asked = httpx.Request("POST", self._upstream.base_url.join(path), headers=passed, content=body)
        asked.extensions["timeout"] = self._upstream.timeout.as_dict()
        try:
            found = await self._upstream.send(asked, stream=True)
        except httpx.HTTPError as error:
            raise _no_superlink(error) from error
        try:
            given = {name: found.headers[name] for name in ANSWERED if name in found.headers}
            await request.start(found.status_code, {**given, **self._passing})
            async for part in found.aiter_raw(64 << 10):
                seen.bytes_out += len(part)
                async with asyncio.timeout(self.connections.patience):
                    await request.send({"type": "http.response.body", "body": part, "more_body": True})
            await request.send({"type": "http.response.body", "body": b""})
        except httpx.HTTPError:
            request.scope["state"]["abort"]()  # it is begun and cannot be taken back; an end that is missing is noticed
        finally:
            await found.aclose()

    async def _release(self, request: "_Request", name: str, path: str) -> None:
        """Answer with a file of the repository. That there is none is no refusal: sites look for the next root so."""
        found = opened(self._repository, path)
        if found is None:
            self._limits.check(name, 0)
            await answer(request.send, 404, b"", self._own)
            return
        file, size = found
        with file:
            self._limits.check(name, size)
            headers = {"content-type": "application/octet-stream", "content-length": str(size)}
            await request.start(200, {**headers, **self._own})
            while size:
                part = file.read(min(size, PART))  # a thread would cost more memory than such a part time
                if not part:
                    request.scope["state"]["abort"]()
                    return
                size -= len(part)
                self._book.of(name).bytes_out += len(part)
                async with asyncio.timeout(self.connections.patience):
                    await request.send({"type": "http.response.body", "body": part, "more_body": bool(size)})

    async def _health(self, request: "_Request", name: str, headers: Mapping[str, str]) -> None:
        try:
            found = await self._upstream.get(HEALTH)
        except httpx.HTTPError as error:
            raise _no_superlink(error) from error
        if VERSION_HEADER in headers:
            check_version(headers)
        self._book.met(name, shown_version(headers.get(VERSION_HEADER, "")), _flower(headers))
        body = json.dumps({"site": name, "version": VERSION}).encode()
        await answer(request.send, found.status_code, body, {"content-type": "application/json", **self._own})

    def _note(self, name: str, error: RefusedError) -> None:
        try:
            known = name in self._sites.registry.sites
        except RefusedError:
            known = False
        self._book.of(name if known else STRANGERS).refused[error.cause] += 1
        self._complaints.tell(name[:64], error)

    def _before(self) -> Mapping[str, Any]:
        try:
            found = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


class _Request:
    """A request and whether its answer was begun."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, deadline: float) -> None:
        self.scope, self.receive, self.send, self.deadline = scope, receive, send, deadline
        self.answered = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.answered = True
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})


def _flower(headers: Mapping[str, str]) -> str:
    return shown_version(headers[FLOWER_VERSION]) if FLOWER_VERSION in headers else ""


def _too_slow(patience: float) -> RefusedError:
    return RefusedError(408, "slow", "a request that is not complete", f"all of it in {patience:g} s")


def _no_superlink(error: Exception) -> RefusedError:
    return RefusedError(503, "superlink", f"no SuperLink behind the gateway ({type(error).__name__})", "one that runs")
