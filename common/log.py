"""Our log in the processes that Flower starts, which set up Flower's own log only."""

import logging

log = logging.getLogger("fedreptile")


def show_log() -> None:
    """Write our own log from INFO up to the output of the process, unless the process has its log set up.

    Ours alone: the root logger has httpx's too, and as Flower sends each line of a ServerApp's output
    to the SuperLink by httpx, each line would make another.
    """
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
