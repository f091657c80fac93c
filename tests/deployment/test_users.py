"""A site whose processes belong to users of their own: code from the server can read neither data nor keys."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from common.settings import Value
from server.enrolment.bundle import fab_of
from server.launch import APP, stage_app
from server.service.control import control
from tests.deployment.deployed import Deployment
from tests.deployment.digits import SETTINGS, digit_folders

ROOT = Path(__file__).resolve().parents[2]
WORKER, RELAY, CODE = "games", "daemon", "nobody"
"""Users that every Debian has."""

HOSTILE = """
import json, os
from pathlib import Path
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def look(message: Message, context: Context) -> Message:
    found = {"user": os.getuid(), "passphrase": os.environ.get("FEDREPTILE_PASSPHRASE", "")}
    for path in PATHS:
        try:
            found[path] = os.listdir(path) if Path(path).is_dir() else len(Path(path).read_bytes())
        except OSError as error:
            found[path] = type(error).__name__
    for path in WRITE:
        try:
            with open(path, "ab") as file:
                found["write " + path] = "written"
        except OSError as error:
            found["write " + path] = type(error).__name__
    scratch = Path(REPORT + ".new")
    scratch.write_text(json.dumps(found))
    scratch.rename(REPORT)
    return Message(RecordDict(), reply_to=message)
"""


def reachable() -> list[str]:
    """Return words that run a command where every user can reach this Python, also if it lies in root's own folder.

    They make folders that only root may enter enterable in a file system of their own (an overlay), and there only.
    """
    needed = {Path(sys.executable).resolve(), Path(sys.prefix), ROOT}
    closed = sorted({p for path in needed for p in path.parents if len(p.parts) == 2 and not p.stat().st_mode & 0o001})
    if not closed:
        return []
    script = "set -e; scratch=$(mktemp -d); mount -t tmpfs tmpfs $scratch; chmod 755 $scratch; "
    for number, folder in enumerate(closed):
        upper, work = f"$scratch/u{number}", f"$scratch/w{number}"
        script += f"mkdir {upper} {work}; chmod 755 {upper}; "
        script += f"mount -t overlay overlay -o lowerdir={folder},upperdir={upper},workdir={work} {folder}; "
        script += f"chmod 755 {folder}; "
    return ["unshare", "--mount", "sh", "-c", f'{script} exec "$@"', "sh"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can start processes of other users")
def test_code_from_the_server_reads_neither_data_nor_keys_and_the_site_works(deployment: Deployment) -> None:
    deployment.environment["FEDREPTILE_PASSPHRASE"] = "a long secret"
    deployment.folder.chmod(0o755)
    data = digit_folders(deployment.folder / "all") / "line-1"
    deployment.make({**SETTINGS, "outer": {"join-sites": 1, "sites-per-round": 0}})
    site = deployment.enrol("line-1", data, user=WORKER, relay_user=RELAY, app_user=CODE)
    for path in (data, *data.rglob("*")):
        shutil.chown(path, WORKER)
    data.chmod(0o700)
    deployment.prefix["line-1"] = reachable()
    public = deployment.folder / "public"
    public.mkdir(mode=0o777)
    public.chmod(0o777)

    with deployment.up():
        deployment.run("good", "--set", "run.rounds=2")
        assert [line["used"] for line in deployment.journal("good")] == [["line-1"]] * 2
        assert {path.owner() for path in (site.cache, *site.cache.iterdir())} == {WORKER}
        assert any(site.cache.iterdir()), "the worker keeps what it has decoded"

        report = public / "report.json"
        paths = [
            data,
            site.tls_key,
            site.signing_key,
            site.node_key,
            site.outbox,
            site.ledger,
            site.cache,
            site.path / "loopback" / "tls.key",
        ]
        write = [
            site.policy_file,
            site.kit_file,
            site.config_file,
            site.ledger / "ledger-000001.jsonl",
            site.run / "stop",
        ]
        staged = stage_app(deployment.folder / APP)
        code = HOSTILE.replace("PATHS", repr([str(path) for path in paths])).replace(
            "WRITE", repr([str(p) for p in write])
        )
        (staged / "client" / "app.py").write_text(code.replace("REPORT", repr(str(report))), encoding="utf-8")
        fab, fab_hash = fab_of(staged)
        allow(site.policy_file, fab_hash)
        values: dict[str, Value] = {"run.dir": str(deployment.folder / "bad"), "outer.join-deadline": 30.0}
        with control(deployment.server) as superlink:
            superlink.start_run(fab, fab_hash, values)
        deployment.wait(report.exists)

    found = json.loads(report.read_text(encoding="utf-8"))
    import pwd

    assert found.pop("user") == pwd.getpwnam(CODE).pw_uid
    assert found.pop("passphrase") == ""
    assert found == {
        **{str(path): "PermissionError" for path in paths},
        **{f"write {path}": "PermissionError" for path in write},
    }


def allow(policy: Path, fab: str) -> None:
    text = policy.read_text(encoding="utf-8")
    policy.write_text(re.sub(r"^fabs = \[", f'fabs = ["{fab}", ', text, flags=re.M), encoding="utf-8")
