"""How a page is served: on this machine's loopback only, with a token that is drawn anew at each start."""

import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from common.errors import DeployError
from common.paths import write_atomically

TOKEN_BYTES = 32
TOKEN = "ui.token"
"""In the folder 'run' of a site or a federation."""


def new_token(file: Path) -> str:
    """Draw a token and write it where only the user of this process can read it."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    write_atomically(file, token.encode() + b"\n", 0o600)
    return token


def config_for(app: FastAPI) -> uvicorn.Config:
    """Return how the application is served."""
    return uvicorn.Config(app, log_level="warning", server_header=False, access_log=False, ws="none")


def serve(port: int, file: Path, app_for: Callable[[str], FastAPI], tell: Callable[[int, str], None]) -> None:
    """Answer on 127.0.0.1 until the process is asked to stop.

    Args:
        port: 0 takes any that is free.
        file: where the token lies as long as it is good.
        app_for: given the token, returns the application.
        tell: told the port and the token.

    Raises:
        DeployError: if the port is taken.
        WritingError: if the token cannot be written.
    """
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise DeployError(
                f"port {port} of 127.0.0.1 cannot be used: {error.strerror}; give another --port"
            ) from error
        listening.listen()
        token = new_token(file)
        try:
            app = app_for(token)
            tell(listening.getsockname()[1], token)
            uvicorn.Server(config_for(app)).run(sockets=[listening])
        finally:
            file.unlink(missing_ok=True)
