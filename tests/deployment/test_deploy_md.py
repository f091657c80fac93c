"""What docs/deploy.md tells the operator and the site engineer to type, typed in that order on one machine."""

import re
import shlex
import time
from pathlib import Path

import tomli_w

from client.home import SiteHome
from tests.deployment.deployed import Deployment
from tests.deployment.digits import SETTINGS, digit_folders

DOC = (Path(__file__).resolve().parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")


def commands(who: str) -> list[list[str]]:
    blocks = re.findall(rf"^ *```sh {who}\n(.*?)^ *```", DOC, flags=re.S | re.M)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line]


def test_the_commands_of_the_guide_lead_to_a_finished_run(deployment: Deployment) -> None:
    data = digit_folders(deployment.folder / "data") / "line-1"
    settings = {**SETTINGS, "outer": {"join-sites": 1, "sites-per-round": 0}}
    (deployment.folder / "settings.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    operator, site = commands("operator"), commands("site")
    assert len(operator) >= 5 and len(site) >= 6
    deployment.real = True
    deployment.sites["line-1"] = SiteHome(deployment.folder / "line-1")

    def typed(words: list[str]) -> str:
        replaced = {
            "server.example.org:8443": deployment.address,
            "0.0.0.0:8443": f"127.0.0.1:{deployment.port}",
            "/data/line-1": str(data),
            "FINGERPRINT": ""
            if words[0] != "fedreptile-site" or "FINGERPRINT" not in words
            else fingerprint(deployment),
        }
        return deployment.command(words[0], *(replaced.get(word, word) for word in words[1:]), *extra(words))

    def extra(words: list[str]) -> list[str]:
        return ["--yes"] if words[1:3] == ["enrol", "approve"] else []

    def those(group: list[list[str]], *names: str) -> list[list[str]]:
        return [words for words in group if words[1] in names]

    for words in [*those(operator, "enrol")[:1], *those(operator, "up"), *those(site, "join")[:1]]:
        typed(words)
    began = time.monotonic()
    approved = [*those(operator, "enrol")[1:2], *those(site, "join")[1:2], *those(site, "explain", "check", "up")]
    for words in approved:
        typed(words)
    said = "".join(typed(words) for words in those(operator, "run"))
    assert "is finished" in said
    keys = sum(len(" ".join(words)) + 1 for words in [*approved, *those(operator, "run")])
    print(
        f"from the approval to the end of {settings['run']['rounds']} rounds: {len(approved) + 1} commands, "
        f"{keys} keys, {time.monotonic() - began:.0f} s beside the typing"
    )
    shown = "".join(typed(words) for words in [*those(operator, "status", "show"), *those(site, "status", "ledger")])
    assert "rounds done" in shown and "none was changed" in shown


def fingerprint(deployment: Deployment) -> str:
    return deployment.command("fedreptile-server", "enrol", "fingerprint", "--home", "federation").split()[-1]
