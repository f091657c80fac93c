"""``python -P -m client.adoption --home HOME``: looks for new releases, and has each adapted, judged and used.

Torch-free: the work is done by ``fedreptile-site adopt``, whose memory is free again when it has ended.
"""

import argparse
import logging
import random
import subprocess
import time
from pathlib import Path

from client.adoption.fetch import newest_number
from client.home import SiteHome
from client.line.store import is_new, store_of
from common.deployment.supervisor import end_with_parent, module
from common.errors import FedreptileError
from common.log import show_log

log = logging.getLogger("fedreptile.adoption")

SPREAD = (0.5, 1.5)
"""Factors on the pause between two looks, so that sites which were started together do not ask together."""


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m client.adoption", description=__doc__)
    words.add_argument("--home", type=Path, help="the site's folder")
    home = SiteHome.of(words.parse_args().home)
    show_log()
    end_with_parent()
    config, said = home.config(), ""
    while True:
        try:
            look(home)
            said = ""
        except FedreptileError as error:
            if str(error) != said:
                log.warning("%s", error)
            said = str(error)
        time.sleep(config.adopt_seconds * random.uniform(*SPREAD))


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
