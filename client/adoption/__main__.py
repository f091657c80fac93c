"""``python -P -m client.adoption --home HOME``: looks for new releases, and has each adapted, judged and used.

Torch-free: the work is done by ``fedreptile-site adopt``, whose memory is free again when it has ended.
"""

import argparse
import logging
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from client.adoption.fetch import newest_number
from client.home import SiteHome
from client.line.store import is_new, store_of
from common.deployment.supervisor import end_with_parent, module
from common.errors import FedreptileError
from common.log import show_log

log = logging.getLogger("fedreptile.adoption")

SPREAD = (0.5, 1.5)
"""Factors on the pause between two looks, so that sites do not fall into step."""


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m client.adoption", description=__doc__)
    words.add_argument("--home", type=Path, help="the site's folder")
    home = SiteHome.of(words.parse_args().home)
    show_log()
    end_with_parent()
    said = ""
    for pause in pauses(home.config().adopt_seconds):
        time.sleep(pause)
        try:
            look(home)
            said = ""
        except FedreptileError as error:
            if str(error) != said:
                log.warning("%s", error)
            said = str(error)


def pauses(seconds: float) -> Iterator[float]:
    """Yield the pause before each look, without end. The first one is any part of the time between two looks: after a
    power cut many sites start at once."""
    yield random.uniform(0, seconds)
    while True:
        yield seconds * random.uniform(*SPREAD)


def look(home: SiteHome) -> None:
    """Have a release that is new to the site taken up.

    Raises:
        SettingsError, TrustError, DeployError, CheckpointError, WritingError: if that cannot be told now.
    """
    number = newest_number(home)
    if not is_new(store_of(home), number):
        return
    log.info("release %d is new", number)
    subprocess.run([*module("client.cli"), "adopt", "--home", str(home.path)], check=False)


if __name__ == "__main__":
    main()
