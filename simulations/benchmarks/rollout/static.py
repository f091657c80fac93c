"""The reference: a plain static file server of the same files, over TLS, without client certificates.

nginx with one process if this machine has it, else Starlette's StaticFiles under uvicorn.

python -m simulations.benchmarks.rollout.static FOLDER PORT CERTIFICATE KEY SCRATCH
"""

import os
import shutil
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from common.deployment.forward import BACKLOG, KEEP_ALIVE_SECONDS
from server.gateway.__main__ import allow_files

NGINX = """
daemon off;
master_process off;
pid {scratch}/nginx.pid;
error_log stderr;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    log_not_found off;
    sendfile on;
    keepalive_timeout {keep_alive}s;
    keepalive_requests 1000000000;
    client_body_temp_path {scratch};
    proxy_temp_path {scratch};
    fastcgi_temp_path {scratch};
    uwsgi_temp_path {scratch};
    scgi_temp_path {scratch};
    server {{
        listen 127.0.0.1:{port} ssl backlog={backlog};
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        root {folder};
    }}
}}
"""


def name() -> str:
    """Return which server it is."""
    return "nginx, one process" if shutil.which("nginx") else "Starlette's StaticFiles under uvicorn"


def main(folder: str, port: str, certificate: str, key: str, scratch: str) -> None:
    """Serve a folder at 127.0.0.1 until told to end."""
    allow_files()
    if nginx := shutil.which("nginx"):
        config = Path(scratch, "nginx.conf")
        values = {"folder": folder, "port": port, "certificate": certificate, "key": key, "scratch": scratch}
        config.write_text(NGINX.format(**values, keep_alive=KEEP_ALIVE_SECONDS, backlog=BACKLOG), encoding="utf-8")
        os.execv(nginx, [nginx, "-e", "stderr", "-p", scratch, "-c", str(config)])
    uvicorn.run(
        Starlette(routes=[Mount("/", StaticFiles(directory=folder))]),
        host="127.0.0.1",
        port=int(port),
        ssl_certfile=certificate,
        ssl_keyfile=key,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        backlog=BACKLOG,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
