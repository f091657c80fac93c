"""Checks of the users whose processes the site's parts are to be: who may read the data, and who must not."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.check import reading
from client.check.findings import Finding, Subject, ok, plain, problem, warning
from common.deployment.supervisor import as_user
from common.errors import DeployError

PATIENCE = 600.0


def check_users(subject: Subject) -> Iterator[Finding]:
    """The users exist, can run this installation, and only the worker's can read the data."""
    config = subject.config
    users = {"user": config.user, "app-user": config.app_user, "relay-user": config.relay_user}
    if not any(users.values()):
        yield warning(
            "users",
            "all processes belong to one user, so the code that the server pushes runs as one who may read the data",
            "make users of their own and name them in site.toml (user, app-user, relay-user); then start it as root",
        )
        return
    found = next(filter(None, (_is_not(key, name) for key, name in users.items())), None)
    if found is None and (config.app_user in ("", config.user) or config.relay_user in ("", config.user)):
        found = problem(
            "users",
            "app-user and relay-user must be others than the user who reads the data",
            "name three different users in site.toml, or none",
        )
    found = found or next(filter(None, (_cannot_run(key, name) for key, name in users.items())), None)
    if found is not None:
        yield found
    else:
        yield from _who_reads(Path(config.data), users)


def _is_not(key: str, name: str) -> Finding | None:
    """Return why a user is none whose processes can be started; None if one is."""
    try:
        as_user(name)
    except DeployError as error:
        cause, _, fix = str(error).partition("; ")
        if "only root" in cause:
            return warning("users", f"{key}: {cause}", "check as root, as the site must be started")
        return problem("users", f"{key}: {cause}", fix)
    return None


def _cannot_run(key: str, name: str) -> Finding | None:
    """Return why a user cannot run this installation; None if he can."""
    words = [sys.executable, "-P", "-c", "import client.home, flwr"]
    try:
        done = subprocess.run(
            words, cwd="/", capture_output=True, text=True, timeout=PATIENCE, check=False, **as_user(name)
        )
        said = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except OSError as error:
        said = [str(error.strerror or error)]
    if not said:
        return None
    cause = f"{key}: {name!r} cannot run the installation at {sys.executable}: {plain(said[0])}"
    return problem("users", cause, "install where all users may read it, such as /opt, and not in a home folder")


def _who_reads(data: Path, users: dict[str, str]) -> Iterator[Finding]:
    owner = users["user"]
    seen = _seen_by(owner, data, owner)
    if seen["closed"]:
        yield problem(
            "users",
            f"user {owner!r} cannot read {seen['closed']} file(s) or folder(s) of the data, such as "
            f"{seen['first']['closed'][0]}",
            f"let {owner!r} read them: by their group, or chown -R {owner} {data}",
        )
        return
    for key in ("app-user", "relay-user"):
        seen = _seen_by(users[key], data, owner)
        if seen["readable"]:
            yield problem(
                "users",
                f"{key} {users[key]!r} can read {seen['readable']} file(s) of the data, such as "
                f"{seen['first']['readable'][0]}; it must not",
                f"close them to others: chmod -R o-rwx {data}",
            )
            return
    yield ok("users", f"only {owner or 'root'!r} can read the data")


def _seen_by(name: str, data: Path, owner: str) -> dict[str, Any]:
    """Return what a user may read of the data, of which the owner makes the list."""
    words = [sys.executable, "-I", "-S", str(Path(reading.__file__))]
    listing = [*words, "list", str(data)]
    with subprocess.Popen(listing, cwd="/", stdout=subprocess.PIPE, **as_user(owner)) as lister:
        done = subprocess.run(
            [*words, "try"], cwd="/", stdin=lister.stdout, stdout=subprocess.PIPE, check=True, **as_user(name)
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
