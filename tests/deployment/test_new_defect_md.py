"""What docs/new-defect.md tells a newcomer to type on one laptop, typed in that order in one shell."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deployment.measured import report
from tests.mirror import mirror_or_skip

DOC = (Path(__file__).resolve().parents[2] / "docs" / "new-defect.md").read_text(encoding="utf-8")


@pytest.mark.endurance
def test_a_newcomer_goes_from_nothing_to_a_new_defect_and_back_on_one_laptop(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh laptop\n(.*?)```", DOC, flags=re.S)
    assert len(blocks) == 3
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FEDREPTILE_HOME": str(tmp_path / "home"),
        "FEDREPTILE_DATA_MIRROR": str(mirror_or_skip()),
    }
    began = time.monotonic()
    script = "set -eux\n" + "\n".join(blocks[:2]) + "\nfedreptile-site history --home line-3\n"
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
    finally:
        subprocess.run(["bash", "-c", blocks[2]], cwd=tmp_path, env=environment, timeout=300, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0 and "campaign dents is done: release 2" in done.stdout
    told = [line.split("\t") for line in done.stdout.splitlines() if "site-05/patches" in line and "\t" in line]
    right = sum(words[1] == "patches" for words in told) / len(told)
    report(
        "laptop", ("minutes", "hidden pictures", "recognised"), [((time.monotonic() - began) / 60, len(told), right)]
    )
    assert right >= 0.85 and "model 1" in done.stdout
