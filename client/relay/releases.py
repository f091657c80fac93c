"""Files of releases, passed on to the site's own processes: those that the server names, and nothing else.

Any process of the machine may ask, code that the server sent among them. So nothing of its own choice may be in what is
asked of the server: a name passes only if the server's own metadata have it.
"""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from typing import Any

import httpx
from starlette.types import Scope, Send

from client.relay.way import UnavailableError, Way
from common.deployment.forward import RELEASES, RefusedError, answer

METADATA_BYTES: Mapping[str, int] = {"timestamp": 16 << 10, "snapshot": 2 << 20, "targets": 5 << 20}
"""As many as TUF's client takes."""
LARGEST_FILE = 1 << 30
LEARN_SECONDS = 0.2
"""At least so long between two looks at what the server names."""
ROOT = re.compile(r"metadata/([1-9][0-9]{0,4})\.root\.json")
TIMESTAMP = "metadata/timestamp.json"


class Releases:
    """Passes on files of the repository."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._root = 0
        """The newest root that the server has, as far as is known."""
        self._snapshot = 0
        self._names: set[str] = set()
        """What the server's metadata name, from ``releases/`` on."""
        self._learned = 0.0
        self._learning = asyncio.Lock()

    async def pass_on(self, path: str, scope: Scope, send: Send) -> int:
        """Answer with a file; return its bytes.

        Raises:
            RefusedError: if the server has none of that name.
            UnavailableError: if the server cannot be asked.
        """
        name = path.removeprefix(RELEASES)
        if not await self._is_known(name):
            raise RefusedError(404, "release", f"{path[:200]}", "a file that the server's metadata name")
        begun, size = False, 0
        try:
            async with self._way.release(name) as found:
                if found.status_code != httpx.codes.OK:
                    await answer(send, 404, b"", {"content-type": "application/octet-stream"})
                    return 0
                headers = [(b"content-type", b"application/octet-stream")]
                if "content-length" in found.headers:
                    headers.append((b"content-length", found.headers["content-length"].encode()))
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                begun = True
                async for part in found.aiter_raw():
                    size += len(part)
                    if size > LARGEST_FILE:
                        raise UnavailableError("answer", f"the server's file is larger than {LARGEST_FILE} bytes")
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except UnavailableError:
            if not begun:
                raise
            scope["state"]["abort"]()  # an end that is missing is noticed
        return size

    async def _is_known(self, name: str) -> bool:
        if name == TIMESTAMP or name in self._names:
            return True
        async with self._learning:
            if match := ROOT.fullmatch(name):
                return await self._has_root(int(match[1]))
            if name not in self._names:
                await asyncio.sleep(self._learned + LEARN_SECONDS - time.monotonic())
                await self._learn()
            return name in self._names

    async def _has_root(self, number: int) -> bool:
        """Say whether a root is among those that the server has, or the next one, which it may have got just now."""
        self._root = max(self._root, self._way.root)
        while self._root + 1 < number and await self._get(f"metadata/{self._root + 1}.root.json", 0) is not None:
            self._root += 1
        return number <= self._root + 1

    async def _learn(self) -> None:
        """Ask the server which files it names. Whether that is signed is for who takes them to check."""
        self._learned = time.monotonic()
        try:
            version = _version(await self._metadata(TIMESTAMP, "timestamp"), "snapshot.json")
            if version == self._snapshot:
                return
            names = {f"metadata/{version}.snapshot.json"}
            snapshot = await self._metadata(f"metadata/{version}.snapshot.json", "snapshot")
            of_targets = f"metadata/{_version(snapshot, 'targets.json')}.targets.json"
            targets = await self._metadata(of_targets, "targets")
            names |= {of_targets, *(f"targets/{one['hashes']['sha256']}.{name}" for name, one in targets.items())}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UnavailableError("answer", f"the server's releases cannot be read: {error}") from error
        self._names, self._snapshot = names, version

    async def _metadata(self, name: str, kind: str) -> dict[str, Any]:
        found = json.loads(await self._get(name, METADATA_BYTES[kind]) or b"{}")["signed"]
        values: dict[str, Any] = found["targets" if kind == "targets" else "meta"]
        return values

    async def _get(self, name: str, most: int) -> bytes | None:
        """Return a file; None if there is none. With ``most`` 0 only whether there is one matters."""
        async with self._way.release(name) as found:
            if found.status_code != httpx.codes.OK:
                return None
            parts, size = list[bytes](), 0
            async for part in found.aiter_raw():
                if not most:
                    return b""
                size += len(part)
                if size > most:
                    raise UnavailableError("answer", f"the server's {name} is larger than {most} bytes")
                parts.append(part)
            return b"".join(parts)


def _version(meta: Mapping[str, Any], name: str) -> int:
    version = meta[name]["version"]
    if type(version) is not int or version < 1:
        raise ValueError(f"the version of {name} is no number")
    return version
