"""``python -P -m client.worker --home HOME``: the process of a site that holds data, model and device."""

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from client.home import SiteHome
from client.worker.serve import Server
from client.worker.worker import Worker
from common.deployment.supervisor import end_with_parent
from common.errors import FedreptileError
from common.log import show_log

log = logging.getLogger("fedreptile.worker")

LOOK_SECONDS = 1.0
"""Between two looks for a request to end: a thread that waits for a connection may not see a signal."""


def main() -> int:
    """Serve until the process is told to end (SIGTERM); return its exit code."""
    words = argparse.ArgumentParser(prog="python -m client.worker", description=__doc__)
    words.add_argument("--home", type=Path, help="the site's folder")
    words.add_argument("--socket", type=Path, help="where to listen; otherwise run/worker/site.sock there")
    words.add_argument("--socket-key", type=Path, help="file with the key to ask for; otherwise beside the socket")
    given = words.parse_args()
    show_log()
    end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    home = SiteHome.of(given.home)
    try:
        worker, socket = Worker(home), given.socket or home.socket
        server = Server(worker, socket, given.socket_key or socket.with_suffix(".key"))
        log.info("site %s is ready on %s", worker.kit.site, socket)
        serving = threading.Thread(target=server.run, name="socket", daemon=True)
        serving.start()
        while serving.is_alive():
            serving.join(LOOK_SECONDS)
        return 1
    except FedreptileError as error:
        log.error("the worker cannot start: %s", error)
        return 1
    except (SystemExit, KeyboardInterrupt):
        log.info("the worker ends")
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # a piece of work that is under way is not waited for: its message comes again
