"""An application that answers on a real socket, and a browser without a screen."""

import html
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import httpx
import uvicorn
from fastapi import FastAPI

from common.pages.guard import Guard
from common.pages.serve import config_for

PAGE = {"Accept": "text/html"}


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve in a thread; yield the address."""
    server = uvicorn.Server(config_for(app))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        serving.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            serving.join()


class Browser(httpx.Client):
    """Has the cookie; sends forms as a page of ours does."""

    def __init__(self, address: str, guard: Guard) -> None:
        super().__init__(base_url=address, headers=PAGE, trust_env=False, timeout=60)
        self.guard = guard

    def __enter__(self) -> Self:
        super().__enter__()
        assert self.get(self.guard.link(self.base_url.port or 0)).status_code == 303
        return self

    def see(self, path: str, status: int = 200) -> str:
        """Return the words of a page."""
        answer = self.get(path)
        assert answer.status_code == status, answer.text
        return words(answer.text)

    def submit(self, path: str, status: int = 303, /, **fields: str | list[str]) -> str:
        """Send a form; return the words of the page that it leads to, or of the refusal."""
        answer = self.post(f"{path}?csrf={self.guard.secret}", data=fields, headers={"Origin": str(self.base_url)})
        assert answer.status_code == status, answer.text
        return self.see(answer.headers["location"]) if status == 303 else words(answer.text)


def words(text: str) -> str:
    """Return what people read of a page."""
    return html.unescape(" ".join(re.sub("<[^>]*>", " ", text).split()))
